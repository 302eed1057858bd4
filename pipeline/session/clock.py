"""The clock of a replay, common to all its cameras: paced, as fast as can be, paused, or step by step."""

from __future__ import annotations

import math
import time
from threading import Condition

from pipeline.errors import ConfigError

# As fast as can be, no camera runs further ahead of the slowest than this.
LEAD_SECONDS = 1.0
_STEP_SECONDS = 30.0  # for every camera to have its next frame ready


class ReplayClock:
    """Lets frames go when they are due.

    Args:
        start_seconds: session time at which it starts.
        speed: seconds of the session a second; infinite for as fast as can be.
        end_seconds: of the session, where the position stops.
    """

    def __init__(self, start_seconds: float, speed: float, end_seconds: float = math.inf) -> None:
        self._changed = Condition()
        self._position, self._anchor = start_seconds, time.monotonic()
        self._end = end_seconds
        self._speed, self._paused, self._stopped = _checked(speed), False, False
        self._running = False
        self._moves = 0
        self._cameras: set[str] = set()
        self._due: dict[str, float | None] = {}  # next frame of each camera that goes on, if known
        self._passed: dict[str, float] = {}

    def join(self, camera: str) -> None:
        """A camera takes part; the clock waits for its first frame before it runs."""
        with self._changed:
            self._cameras.add(camera)
            self._due[camera] = None
            self._passed[camera] = self._position

    def leave(self, camera: str) -> None:
        """A camera has no further frame, wherever the clock moves."""
        with self._changed:
            self._cameras.discard(camera)
            self._finish(camera)

    def rest(self, camera: str, moves: int) -> bool:
        """A camera has no further frame: wait until the clock moves; False if the replay stops first."""
        with self._changed:
            if moves == self._moves:
                self._finish(camera)
            self._changed.wait_for(lambda: self._stopped or moves != self._moves)
            return not self._stopped

    def wait(self, camera: str, due: float, moves: int = 0) -> bool:
        """Wait until a camera's next frame is due.

        False if the replay stops first, or the clock has moved more than the `moves` times that the
        camera knows of: then it looks for its place anew.
        """
        with self._changed:
            if moves != self._moves:
                return False
            self._due[camera] = due
            self._begin_if_ready()
            if self._paused or math.isinf(self._speed):  # else nobody waits for this camera
                self._changed.notify_all()
            while not self._stopped and moves == self._moves:
                left = self._left(camera, due)
                if left <= 0:
                    self._due[camera] = None
                    self._passed[camera] = max(due, self._passed.get(camera, due))
                    if math.isinf(self._speed) and not self._paused:
                        self._position = max(self._position, due)
                        self._changed.notify_all()
                    return True
                self._changed.wait(None if math.isinf(left) else left)
            return False

    def stop(self) -> None:
        """Let nothing more go."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def pause(self) -> None:
        """Stand still; what is due already still goes."""
        with self._changed:
            self._position, self._paused = self._now(), True

    def play(self) -> None:
        """Go on."""
        with self._changed:
            self._position, self._anchor = self._now(), time.monotonic()
            self._paused = False
            self._changed.notify_all()

    def move(self, seconds: float) -> None:
        """Go to another time; runs on once every camera has found its place there."""
        with self._changed:
            self._position, self._moves = seconds, self._moves + 1
            self._due = dict.fromkeys(self._cameras)
            self._passed = dict.fromkeys(self._cameras, seconds)
            self._running = False
            self._changed.notify_all()

    def set_speed(self, speed: float) -> None:
        """Another speed from here on. Raises ConfigError unless it is above 0."""
        with self._changed:
            self._position, self._anchor = self._now(), time.monotonic()
            self._speed = _checked(speed)
            self._changed.notify_all()

    def step(self) -> float:
        """Stand still, and let the one next frame of all cameras go; returns the position then."""
        self.pause()
        with self._changed:
            # What is due already must be gone first, or two steps in a row would be one.
            ready = self._changed.wait_for(
                lambda: self._stopped or all(
                    due is not None and due > self._position for due in self._due.values()
                ),
                _STEP_SECONDS,
            )  # fmt: skip
            dues = [due for due in self._due.values() if due is not None]
            if ready and dues and not self._stopped:
                self._position = max(self._position, min(dues))
                self._changed.notify_all()
            return self._position

    @property
    def position(self) -> float:
        """Session seconds."""
        with self._changed:
            return self._now()

    @property
    def place(self) -> tuple[int, float]:
        """How often it has moved, and its position."""
        with self._changed:
            return self._moves, self._now()

    @property
    def running(self) -> bool:
        """Whether every camera has its next frame, so that time goes by unless it is paused."""
        return self._running

    @property
    def speed(self) -> float:
        return self._speed

    @property
    def paused(self) -> bool:
        return self._paused

    def _finish(self, camera: str) -> None:
        self._due.pop(camera, None)
        self._begin_if_ready()
        self._changed.notify_all()

    def _begin_if_ready(self) -> None:
        """Time begins once every camera has its first frame: opening a network takes seconds."""
        if not self._running and all(due is not None for due in self._due.values()):
            self._running, self._anchor = True, time.monotonic()
            self._changed.notify_all()

    def _now(self) -> float:
        if self._paused or not self._running or math.isinf(self._speed):
            return self._position
        return min(self._end, self._position + (time.monotonic() - self._anchor) * self._speed)

    def _left(self, camera: str, due: float) -> float:
        """Seconds until a frame may go; infinite while that depends on something else."""
        if not self._running:
            return math.inf
        if self._paused:
            return 0.0 if due <= self._position else math.inf
        if math.isinf(self._speed):
            others = [self._passed.get(other, due) if at is None else at
                      for other, at in self._due.items() if other != camera]  # fmt: skip
            return 0.0 if not others or due <= min(others) + LEAD_SECONDS else math.inf
        return (due - self._position) / self._speed - (time.monotonic() - self._anchor)


def _checked(speed: float) -> float:
    if not speed > 0:
        raise ConfigError(f"speed must be above 0 or max, got {speed}")
    return float(speed)
