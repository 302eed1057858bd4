"""The two short queues inside a camera. Both are bounded by age, so that nothing old is ever worked on."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from threading import Condition

from av.packet import Packet
from av.video.frame import VideoFrame

_LONGEST_LAG_SECONDS = 2.0  # behind by more, a decoder is not going to catch up
_MOST_BYTES = 32 << 20  # nor by more than this, however fast it came
_ARRIVALS_KEPT = 1024  # more packets than wait for a decoder that is going to catch up


@dataclass(frozen=True)
class WaitingFrame:
    """A decoded frame, not converted yet: most of those that are dropped cost nothing more."""

    frame: VideoFrame
    index: int
    captured_at: float
    connection: int
    decoded_index: int
    recording: int | None
    decoded_at: float = 0.0
    stamp_seconds: float | None = None
    captured_monotonic: float | None = None


class Arrivals:
    """When the newest packets arrived by the monotonic clock, by their `time.time()`.

    What lies between the two changes when the machine's clock is set. One thread may add while another asks.
    """

    def __init__(self) -> None:
        self._monotonic: dict[float, float] = {}

    def add(self, arrived: float, monotonic: float) -> None:
        self._monotonic[arrived] = monotonic
        if len(self._monotonic) > _ARRIVALS_KEPT:
            del self._monotonic[next(iter(self._monotonic))]

    def monotonic(self, arrived: float) -> float | None:
        """`time.monotonic()` of a packet's arrival; None if too many have come since."""
        return self._monotonic.get(arrived)


class FrameQueue:
    """Decoded frames, the oldest first. Not thread-safe by itself.

    While the network keeps up, a burst is taken frame by frame. Once a frame had to wait for longer
    than `patience_seconds`, the newest wins and all others go, until the network has caught up.

    Args:
        longest: frames it holds; a further one pushes out the oldest.
        patience_seconds: how long a frame may wait while a newer one is there.
    """

    def __init__(self, longest: int, patience_seconds: float) -> None:
        self._frames: deque[WaitingFrame] = deque()
        self._longest, self._patience_seconds = longest, patience_seconds
        self._behind = False

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, frame: WaitingFrame) -> int:
        """Adds the newest; returns how many were pushed out."""
        self._frames.append(frame)
        if len(self._frames) <= self._longest:
            return 0
        self._frames.popleft()
        return 1

    def take(self, now: float) -> tuple[WaitingFrame | None, int]:
        """The frame to work on next, None if none waits; and how many were dropped for it."""
        if len(self._frames) <= 1:
            self._behind = False
        elif now - self._frames[0].captured_at > self._patience_seconds:
            self._behind = True
        if not self._behind:
            return (self._frames.popleft() if self._frames else None), 0
        newest = self._frames.pop()
        return newest, self.clear()

    def clear(self) -> int:
        """Drops all; returns how many."""
        dropped = len(self._frames)
        self._frames.clear()
        return dropped


class PacketQueue:
    """Packets between the thread that reads and the one that decodes.

    Reading never waits for decoding: what a socket holds back would come out late, with no trace of
    it. A decoder that falls behind by `patience_seconds` goes on with the newest keyframe, if one
    waits; behind by two seconds it drops everything and goes on with the next keyframe to come.
    """

    def __init__(self, patience_seconds: float) -> None:
        self._packets: deque[tuple[Packet, float]] = deque()
        self._changed = Condition()
        self._patience_seconds = patience_seconds
        self._closed = self._until_keyframe = False
        self._bytes = 0

    def put(self, packet: Packet, arrived: float) -> int:
        """Adds a packet; returns how many were dropped, this one perhaps among them."""
        with self._changed:
            if self._until_keyframe and not packet.is_keyframe:
                return 1
            self._until_keyframe = False
            dropped = self._make_room(packet, arrived)
            if dropped and not packet.is_keyframe:
                self._until_keyframe = True
                return dropped + 1
            self._packets.append((packet, arrived))
            self._bytes += packet.size
            self._changed.notify_all()
            return dropped

    def _make_room(self, packet: Packet, arrived: float) -> int:
        """Drop all that waits, if that is the way to catch up; returns how many."""
        lag = arrived - self._packets[0][1] if self._packets else 0.0
        behind = lag > _LONGEST_LAG_SECONDS or self._bytes > _MOST_BYTES
        if not (behind or (packet.is_keyframe and lag > self._patience_seconds)):
            return 0
        dropped, self._bytes = len(self._packets), 0
        self._packets.clear()
        return dropped

    def close(self) -> None:
        """Nothing more will come; what waits is still given."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self) -> tuple[Packet, float] | None:
        """The oldest packet, as soon as there is one; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._packets or self._closed)
            if not self._packets:
                return None
            packet, arrived = self._packets.popleft()
            self._bytes -= packet.size
            return packet, arrived


class Backoff:
    """How long to wait before a camera is opened again: longer each time, and never the same for all.

    Args:
        first_seconds, longest_seconds: of the wait, half of which is left to chance, so that cameras
            that went together do not all come back at once.
        refused_seconds: the longest wait after a wrong password, which some cameras lock for.
    """

    def __init__(
        self,
        first_seconds: float = 0.25,
        longest_seconds: float = 3.0,
        refused_seconds: float = 60.0,
    ) -> None:
        self._first, self._longest, self._refused = first_seconds, longest_seconds, refused_seconds
        self.attempts = 0

    def succeeded(self) -> None:
        """The camera works again."""
        self.attempts = 0

    def next_seconds(self, refused: bool) -> float:
        """The wait after one more failure."""
        longest = self._refused if refused else self._longest
        wait = min(longest, self._first * 2 ** min(self.attempts, 16))
        self.attempts += 1
        return wait * random.uniform(0.5, 1.0)
