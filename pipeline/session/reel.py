"""The frames of one camera of a replay: the next ones, and so many that went by that one can step back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from pipeline.session.source import ReplayedFrame


class Reel:
    """A place among a camera's frames. Used by one thread; `since` may be read by others.

    Args:
        frames: from `start` on, and before them those that only bring the memory there.
        start: session seconds at which it starts.
        kept_bytes: of frames that went by; the newest one is kept whatever its size.

    Attributes:
        since: session seconds from which on every frame is still there, or still to come.
    """

    def __init__(self, frames: Iterator[ReplayedFrame], start: float, kept_bytes: int = 0) -> None:
        self._frames, self._kept_bytes = frames, kept_bytes
        self._held: deque[tuple[float, ReplayedFrame]] = deque()  # with when each is due
        self._before: ReplayedFrame | None = None  # the one before all that are held
        self._at = self._passed = self._bytes = 0
        self._latest = self.since = start

    @property
    def stands(self) -> ReplayedFrame | None:
        """The frame before the place, which is what is seen; None if there is none."""
        return self._held[self._at - 1][1] if self._at else self._before

    def next(self) -> tuple[float, ReplayedFrame] | None:
        """The frame after the place, and when it is due; None at the end. Waits until it is labelled.

        Where a codec gives frames in another order than they came in, one is not due before the last.
        """
        if self._at == len(self._held):
            frame = next(self._frames, None)
            while frame is not None and frame.warming and not self._held:
                self._before, frame = frame, next(self._frames, None)
            if frame is None:
                return None
            self._latest = max(self._latest, frame.seconds)
            self._held.append((self._latest, frame))
            self._bytes += _size(frame)
        return self._held[self._at]

    def advance(self) -> bool:
        """Go past the frame that `next` gave; returns whether that is the first time."""
        self._at += 1
        new = self._at > self._passed
        self._passed = max(self._passed, self._at)
        while self._bytes > self._kept_bytes and self._at > 1:
            self._drop_oldest()
        return new

    def turn(self, seconds: float, wanted: Callable[[], bool]) -> None:
        """Go to the place after the last frame up to a time, back or on, while it is `wanted`."""
        while self._at and self._held[self._at - 1][0] > seconds:
            self._at -= 1
        while wanted() and (found := self.next()) is not None and found[0] <= seconds:
            self.advance()

    def _drop_oldest(self) -> None:
        self._before = None
        self._bytes -= _size(self._held.popleft()[1])
        self._at, self._passed = self._at - 1, self._passed - 1
        self.since = self._held[0][0]


def _size(frame: ReplayedFrame) -> int:
    return frame.planes.nbytes + frame.labels.nbytes
