"""Where decoding can begin in the middle of a file, and the proof that it came out right.

Seeking is exact in some files and not in others, and no container says which. So a place in a file is a key
packet, known by its position and size in bytes, and checksums of the last frames before the place as they
were decoded the first time. Who begins at the packet and gets the same frames is where he was; if not, an
earlier packet may do, and decoding from the start always does.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from pipeline.media import in_memory

WINDOW_FRAMES = 8  # that must be equal before a place, bit for bit
_KEYS_KEPT = (
    64  # in a stream of key frames only, the decoder and `WINDOW_FRAMES` are that far behind
)
_KEYS_TRIED = 3  # some streams decode exactly only from a few key frames back


@dataclass(frozen=True)
class KeyPacket:
    """A packet that decoding may begin with.

    Attributes:
        pts, dts: its time stamps in ticks of the stream.
        position, size: where in the file it lies and how large it is, bytes.
        undecodable: packets before it that could not be decoded.
    """

    pts: int
    dts: int
    position: int
    size: int
    undecodable: int

    def is_that(self, packet: Packet) -> bool:
        """Whether a packet of the same file is this one."""
        # Not by its decoding time: behind a jump some demuxers cannot tell it.
        return (packet.pts, packet.pos, packet.size) == (self.pts, self.position, self.size)


@dataclass(frozen=True)
class Place:
    """A place between two frames of a file.

    Attributes:
        keys: where to begin, the best first.
        frames: stamp in ticks and checksum of each of the last frames before it, in order.
    """

    keys: tuple[KeyPacket, ...]
    frames: tuple[tuple[int, int], ...]

    def to_json(self) -> dict[str, Any]:
        return {"keys": [list(vars(key).values()) for key in self.keys],
                "frames": [list(frame) for frame in self.frames]}  # fmt: skip

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Place:
        """Raises KeyError, TypeError or ValueError if `to_json` never gave it."""
        keys = tuple(KeyPacket(*map(int, key)) for key in data["keys"])
        frames = tuple((int(pts), int(checksum)) for pts, checksum in data["frames"])
        if not keys or not frames:
            raise ValueError("a place needs at least one key packet and one frame")
        return cls(keys, frames)


class Trail:
    """What is remembered of a file while it is decoded, to come back to a place in it."""

    def __init__(self) -> None:
        self._keys: deque[KeyPacket] = deque(maxlen=_KEYS_KEPT)
        self._frames: deque[tuple[int | None, int]] = deque(maxlen=WINDOW_FRAMES)
        self._last_dts: int | None = None
        self._lost = False

    def pass_packet(self, packet: Packet, undecodable: int) -> None:
        """Note a packet before it is decoded; `undecodable` packets came before it."""
        pts, dts = packet.pts, packet.dts
        if dts is not None and self._last_dts is not None and dts <= self._last_dts:
            # The clock starts anew: from here on a time stamp names two places.
            self._lost = True
            self._keys.clear()
        self._last_dts = dts if dts is not None else self._last_dts
        if packet.is_keyframe and not self._lost and pts is not None and packet.pos is not None:
            at = pts if dts is None else dts
            self._keys.append(KeyPacket(pts, at, packet.pos, packet.size, undecodable))

    def pass_frame(self, frame: VideoFrame) -> None:
        """Note one of the frames right before a place to come."""
        self._frames.append((frame.pts, checksum(frame)))

    def place(self) -> Place | None:
        """The place behind the frame noted last; None if there is no way back but from the start."""
        frames = [(pts, found) for pts, found in self._frames if pts is not None]
        self._frames.clear()
        stamps = [pts for pts, _ in frames]
        if len(frames) < WINDOW_FRAMES or stamps != sorted(set(stamps)):
            return None
        # What is shown before a key packet may need the pictures before it; what is shown after, not.
        usable = [key for key in self._keys if key.position >= 0 and key.pts <= stamps[0]]
        if not usable:
            return None
        return Place(tuple(usable[: -_KEYS_TRIED - 1 : -1]), tuple(frames))


def packets_from(
    container: InputContainer, stream: VideoStream, key: KeyPacket
) -> Iterator[Packet] | None:
    """The stream's packets from a key packet on; None if they cannot be had."""
    try:
        container.seek(key.dts, stream=stream)
        packets = container.demux(stream)
        for packet in packets:
            if key.is_that(packet):
                return _with_first(packet, packets)
            if not packet.size or (packet.is_keyframe and (packet.pts or 0) > key.pts):
                return None
    except (av.FFmpegError, OSError):
        pass  # this file cannot be searched
    return None


def _with_first(first: Packet, others: Iterator[Packet]) -> Iterator[Packet]:
    yield first
    yield from others


def reach(place: Place, frames: Iterator[VideoFrame]) -> bool:
    """Take frames up to a place; whether the last ones before it are those that were there."""
    (first_pts, _), (last_pts, _) = place.frames[0], place.frames[-1]
    found = []
    for frame in frames:
        if frame.pts is None or frame.pts > last_pts:
            return False
        if frame.pts >= first_pts:
            found.append((frame.pts, checksum(frame)))
        if frame.pts == last_pts:
            return tuple(found) == place.frames
    return False


def checksum(frame: VideoFrame) -> int:
    """CRC-32 of a frame's first plane (luma, or all of it where pixels are packed), without padding."""
    frame = in_memory(frame)
    plane, kind = frame.planes[0], frame.format
    bits = 8 * -(-kind.components[0].bits // 8) if kind.is_planar else kind.padded_bits_per_pixel
    lines = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, abs(plane.line_size))
    return zlib.crc32(lines[: frame.height, : -(-frame.width * bits // 8)].tobytes())
