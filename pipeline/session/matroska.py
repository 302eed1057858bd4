"""The media file of a segment: packets of one video track, byte for byte, in an ordinary Matroska file.

Each packet's bytes lie in one piece, so that their place in the file is all a reader needs to know. H.264
with start codes (as RTSP and MPEG-TS have it) is declared as a Video for Windows stream of that FourCC,
because Matroska's own codec id wants lengths instead, and converting would change the bytes. H.265 with start
codes has no FourCC that players know; under Matroska's own id they tell it by its first bytes.

The file can be played at any moment; closing adds what makes it seekable.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import BinaryIO

from pipeline import ebml
from pipeline.planes import Orientation

_TRACK = 1  # its number
_TICK_NS = 1_000_000  # a millisecond; exact time stamps stand in the log
_CLUSTER_MS = 30_000  # a block's offset from its cluster has 16 bits
_OWN_CODEC_IDS = {
    "mjpeg": "V_MJPEG", "vp8": "V_VP8", "vp9": "V_VP9", "av1": "V_AV1", "ffv1": "V_FFV1",
    "mpeg4": "V_MPEG4/ISO/ASP", "mpeg2video": "V_MPEG2", "mpeg1video": "V_MPEG1",
    "theora": "V_THEORA", "hevc": "V_MPEGH/ISO/HEVC",
}  # fmt: skip
_UPRIGHT = Orientation()
_FOURCC = {"h264": b"H264", "png": b"MPNG"}


@dataclass(frozen=True)
class Track:
    """How a player is told what the packets are."""

    codec_id: str
    private: bytes
    size_hw: tuple[int, int]
    orientation: Orientation = _UPRIGHT


def describe(
    codec: str,
    tag: int,
    extradata: bytes,
    size_hw: tuple[int, int],
    orientation: Orientation = _UPRIGHT,
) -> Track:
    """The Matroska track of a stream.

    Args:
        codec: FFmpeg's canonical name.
        tag: the FourCC it came with, 0 if none.
        extradata: set-up data, unchanged.
        size_hw: coded size in pixels, 0 where unknown.
        orientation: how players are to turn the pictures.
    """
    if codec in _OWN_CODEC_IDS:
        return Track(_OWN_CODEC_IDS[codec], extradata, size_hw, orientation)
    if codec == "h264" and extradata[:1] == b"\x01":  # ISO/IEC 14496-15: a version, no start code
        return Track("V_MPEG4/ISO/AVC", extradata, size_hw, orientation)
    fourcc = _FOURCC.get(codec) or struct.pack("<I", tag) if codec in _FOURCC or tag else b""
    fourcc = fourcc or codec.upper().encode("ascii", "replace").ljust(4)[:4]
    height, width = size_hw
    header = struct.pack(
        "<IiiHH4sIiiII", 40 + len(extradata), width, height, 1, 24, fourcc, *[0] * 5
    )
    return Track("V_MS/VFW/FOURCC", header + extradata, size_hw, orientation)


class MediaFile:
    """Appends packets of one track to an empty file.

    Args:
        file: open for binary reading and writing, unbuffered; neither synced nor closed here.
        track: what the packets are.
        time_base: seconds a tick of `pts`.
    """

    def __init__(self, file: BinaryIO, track: Track, time_base: Fraction) -> None:
        self._file, self._track, self._time_base = file, track, time_base
        self._base: int | None = None  # ticks at which this file's time begins
        self._cluster_at: int | None = None
        self._cluster_ms = self._last_ms = 0
        self._cues: list[tuple[int, int]] = []  # milliseconds, position in the segment
        head = ebml.header() + ebml.SEGMENT + ebml.UNKNOWN_SIZE
        self._segment_start = len(head)
        self._room = 1024 + len(track.private)
        self._append(head)
        self.end = len(head)
        self._put(self._segment_start, self._header(None, None))
        self.end = self._segment_start + self._room

    def write(self, ticks: int | None, data: bytes, key: bool) -> int:
        """Append a packet; returns the place of its first byte in the file.

        Args:
            ticks: its time stamp; None for right after the one before.
            data: the packet.
            key: whether decoding can start here.
        """
        now_ms = self._milliseconds(ticks)
        offset = now_ms - self._cluster_ms
        if self._cluster_at is None or key or not -_CLUSTER_MS <= offset <= _CLUSTER_MS:
            self._open_cluster(now_ms, key)
        block = ebml.vint(_TRACK) + struct.pack(
            ">hB", now_ms - self._cluster_ms, 0x80 if key else 0
        )
        head = ebml.SIMPLE_BLOCK + ebml.vint(len(block) + len(data)) + block
        self._append(head + data)
        self._last_ms = max(self._last_ms, now_ms)
        self.end += len(head) + len(data)
        return self.end - len(data)

    def hide(self, data: bytes) -> int:
        """Append data that players pass over; returns the place of its first byte."""
        self._close_cluster()
        head = ebml.VOID + ebml.vint(len(data), 8)
        self._append(head + data)
        self.end += len(head) + len(data)
        return self.end - len(data)

    def finish(self) -> None:
        """Add what players need to seek: lengths and cues."""
        self._close_cluster()
        cues_at = None
        if self._cues:
            cues_at = self.end - self._segment_start
            cues = self._cue_element()
            self._append(cues)
            self.end += len(cues)
        self._put(self._segment_start, self._header(self._last_ms, cues_at))
        self._put(self._segment_start - 8, ebml.vint(self.end - self._segment_start, 8))

    def _milliseconds(self, ticks: int | None) -> int:
        if ticks is None:
            return self._last_ms + 1
        if self._base is None:
            self._base = ticks
        now = round((ticks - self._base) * self._time_base * 1000)
        # Clocks of cameras jump; a player must still get from one packet to the next.
        if not self._last_ms - 60_000 <= now <= self._last_ms + 3_600_000:
            self._base = ticks - round((self._last_ms + 40) / 1000 / self._time_base)
            now = self._last_ms + 40
        return max(0, now)

    def _open_cluster(self, now_ms: int, key: bool) -> None:
        self._close_cluster()
        self._cluster_at, self._cluster_ms = self.end, now_ms
        if key:
            self._cues.append((now_ms, self.end - self._segment_start))
        head = ebml.CLUSTER + ebml.UNKNOWN_SIZE + ebml.element(ebml.CLUSTER_TIME, ebml.uint(now_ms))
        self._append(head)
        self.end += len(head)

    def _close_cluster(self) -> None:
        if self._cluster_at is not None:
            start = self._cluster_at + len(ebml.CLUSTER)
            self._put(start, ebml.vint(self.end - start - 8, 8))
            self._cluster_at = None

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:  # a raw file may take less than all
            view = view[self._file.write(view) :]

    def _put(self, at: int, data: bytes) -> None:
        self._file.seek(at)
        self._append(data)
        self._file.seek(0, os.SEEK_END)

    def _header(self, duration_ms: int | None, cues_at: int | None) -> bytes:
        info, tracks = self._info(duration_ms), self._tracks()
        length = len(ebml.seek_head(0, 0, cues_at))
        header = ebml.seek_head(length, length + len(info), cues_at) + info + tracks
        return header + ebml.void(self._room - len(header))

    def _info(self, duration_ms: int | None) -> bytes:
        fields = [
            (ebml.TIMESTAMP_SCALE, ebml.uint(_TICK_NS)),
            (ebml.MUXING_APP, b"roadmask"),
            (ebml.WRITING_APP, b"roadmask"),
        ]
        if duration_ms is not None:
            fields.append((ebml.DURATION, struct.pack(">d", duration_ms)))
        return ebml.master(ebml.INFO, fields)

    def _tracks(self) -> bytes:
        height, width = self._track.size_hw
        video = [
            (ebml.PIXEL_WIDTH, ebml.uint(max(1, width))),
            (ebml.PIXEL_HEIGHT, ebml.uint(max(1, height))),
        ]
        if self._track.orientation != _UPRIGHT:
            video.append((ebml.PROJECTION, _projection(self._track.orientation)))
        fields = [
            (ebml.TRACK_NUMBER, ebml.uint(_TRACK)),
            (ebml.TRACK_UID, ebml.uint(_TRACK)),
            (ebml.TRACK_TYPE, ebml.uint(1)),  # video
            (ebml.FLAG_LACING, ebml.uint(0)),
            (ebml.CODEC_ID, self._track.codec_id.encode()),
            (ebml.VIDEO, b"".join(ebml.element(*field) for field in video)),
        ]
        if self._track.private:
            fields.append((ebml.CODEC_PRIVATE, self._track.private))
        return ebml.element(ebml.TRACKS, ebml.master(ebml.TRACK_ENTRY, fields))

    def _cue_element(self) -> bytes:
        points = [
            (ebml.CUE_POINT, ebml.cue_point(_TRACK, time_ms, position))
            for time_ms, position in self._cues
        ]
        return ebml.master(ebml.CUES, points)


def _projection(orientation: Orientation) -> bytes:
    """A flat picture that is turned: mirrored by half a turn about the upright axis, then rotated."""
    poses = [(ebml.PROJECTION_TYPE, ebml.uint(0))]
    if orientation.mirrored:
        poses.append((ebml.PROJECTION_POSE_YAW, struct.pack(">d", 180.0)))
    degrees = orientation.degrees - 360 * (orientation.degrees > 180)
    poses.append((ebml.PROJECTION_POSE_ROLL, struct.pack(">d", degrees)))
    return b"".join(ebml.element(*pose) for pose in poses)
