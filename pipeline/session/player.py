"""Playing a session: every camera through decoder and segmenter, on one clock, to whoever listens."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from threading import Lock, Thread

from pipeline.session.clock import ReplayClock
from pipeline.session.memory import ReplaySegmenter
from pipeline.session.reader import CameraFiles, Session
from pipeline.session.source import CameraSource, ModelSize, ReplayedFrame
from pipeline.stages import ahead

AHEAD_FRAMES = 10  # labelled before they are due, so that a burst is not late
_LATENESS_KEPT = 100_000

OnFrame = Callable[[ReplayedFrame], None]


@dataclass
class Tally:
    """What one camera's replay came to so far.

    Attributes:
        frames: let go.
        lost: recorded label maps whose frames are not in the recording.
        unlabelled: frames that were not labelled when recorded, and so are not now.
        over: it has no further frame.
    """

    frames: int = 0
    lost: int = 0
    unlabelled: int = 0
    over: bool = False


@dataclass
class Lateness:
    """How far from the recorded clock frames were let go, seconds; late is above zero."""

    seconds: list[float] = field(default_factory=list)

    def add(self, late: float) -> None:
        if len(self.seconds) < _LATENESS_KEPT:
            self.seconds.append(late)

    def quantile_ms(self, share: float) -> float | None:
        """Milliseconds; None without frames."""
        if not self.seconds:
            return None
        ordered = sorted(abs(late) for late in self.seconds)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Player:
    """Plays a session. All methods may be called from any thread, but not from `on_frame`.

    Attributes:
        session: what is played.
        tallies: by camera, anew after each `seek`.
        lateness: of the frames let go since the last `seek` or change of pace.
    """

    def __init__(
        self,
        session: Session,
        segmenter: ReplaySegmenter,
        model_hw: ModelSize,
        on_frame: tuple[OnFrame, ...] = (),
        *,
        speed: float = 1.0,
        start_seconds: float = 0.0,
        paused: bool = False,
    ) -> None:
        """
        Args:
            segmenter: labels the frames.
            model_hw: the network's input size for a picture's size.
            on_frame: get every frame as it is let go, each camera's in order, from its own thread.
            speed: seconds of the session a second; infinite for as fast as can be. No frame is dropped.
            start_seconds: where to start.
            paused: stand still before the first frame.
        """
        self.session = session
        self._segmenter, self._model_hw, self._on_frame = segmenter, model_hw, on_frame
        self._speed, self._paused = speed, paused
        self._control = Lock()
        self._threads: list[Thread] = []
        self._errors: list[BaseException] = []
        self._stop = False
        self._clock = ReplayClock(start_seconds, speed)
        self.tallies: dict[str, Tally] = {}
        self.lateness = Lateness()
        self.duration_seconds = _duration(session)
        self._start(start_seconds)

    def __enter__(self) -> Player:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def position_seconds(self) -> float:
        """Where the clock is, seconds from the session's beginning."""
        return self._clock.position

    @property
    def speed(self) -> float:
        """Seconds of the session a second; infinite for as fast as can be."""
        return self._speed

    @property
    def paused(self) -> bool:
        return self._paused

    @property
    def failed(self) -> bool:
        """Whether something went wrong: `join` raises it."""
        return bool(self._errors)

    @property
    def ended(self) -> bool:
        """Whether no camera has a further frame."""
        return all(tally.over for tally in self.tallies.values())

    def play(self) -> None:
        """Go on."""
        with self._control:
            self._paused, self.lateness = False, Lateness()
            self._clock.play()

    def pause(self) -> None:
        """Stand still."""
        with self._control:
            self._paused = True
            self._clock.pause()

    def step(self) -> float:
        """Pause, and let the one next frame of all cameras go; returns the position."""
        with self._control:
            self._paused = True
            return self._clock.step()

    def set_speed(self, speed: float) -> None:
        """Raises ConfigError unless it is above 0; infinite for as fast as can be."""
        with self._control:
            self._clock.set_speed(speed)
            self._speed, self.lateness = speed, Lateness()

    def seek(self, seconds: float) -> None:
        """Go on from another time, with the memory as it was there."""
        with self._control:
            self._halt()
            self._start(max(0.0, min(seconds, self.duration_seconds)))

    def wait(self, seconds: float) -> bool:
        """Wait for the end, but no longer than so; returns whether it has come."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return self.ended

    def join(self) -> None:
        """Wait for the end. Raises what went wrong in a camera's thread."""
        while True:
            threads = self._threads
            for thread in threads:
                thread.join()
            if threads is self._threads:
                break
        if self._errors:
            raise self._errors[0]

    def close(self) -> None:
        """Stop, wherever it is. May be called again."""
        with self._control:
            self._halt()

    def _start(self, seconds: float) -> None:
        self._stop = False
        self._clock = clock = ReplayClock(seconds, self._speed, self.duration_seconds)
        if self._paused:
            clock.pause()
        self.tallies = {name: Tally() for name in self.session.cameras}
        self.lateness = Lateness()
        for name in self.session.cameras:
            clock.join(name)
        self._threads = [
            Thread(target=self._play, args=(camera, seconds, clock, self.tallies[name]),
                   name=f"replay-{name}", daemon=True)
            for name, camera in self.session.cameras.items()
        ]  # fmt: skip
        for thread in self._threads:
            thread.start()

    def _halt(self) -> None:
        self._stop = True
        self._clock.stop()
        for thread in self._threads:
            thread.join()

    def _play(self, camera: CameraFiles, start: float, clock: ReplayClock, tally: Tally) -> None:
        source = CameraSource(
            self.session, camera, self._segmenter, self._model_hw, start, lambda: self._stop
        )
        try:
            with closing(ahead(source.frames(), AHEAD_FRAMES)) as frames:
                for frame in frames:
                    if frame.warming:
                        continue
                    if not clock.wait(camera.name, frame.seconds):
                        return
                    if not math.isinf(clock.speed) and not clock.paused:
                        self.lateness.add((clock.position - frame.seconds) / clock.speed)
                    for give in self._on_frame:
                        give(frame)
                    tally.frames += 1
        except BaseException as error:
            self._errors.append(error)
        finally:
            tally.lost, tally.unlabelled, tally.over = source.lost, source.unlabelled, True
            clock.leave(camera.name)


def _duration(session: Session) -> float:
    """Seconds from the session's beginning to the last record of its last segments."""
    from pipeline.session.records import EventRecord, LabelRecord, PacketRecord

    end = 0.0
    for camera in session.cameras.values():
        for segment in (*camera.packets[-1:], *camera.labels[-1:]):
            end = max(end, session.seconds(segment, segment.head.began))
            for record in segment.records(session.notes):
                if isinstance(record, PacketRecord):
                    end = max(end, session.seconds(segment, record.arrived))
                elif isinstance(record, LabelRecord):
                    end = max(end, session.seconds(segment, record.captured))
                elif isinstance(record, EventRecord):
                    end = max(end, session.seconds(segment, record.mono))
    return end
