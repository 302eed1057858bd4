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

from pipeline.mkv import (
    _CLUSTER,
    _CLUSTER_TIME,
    _CODEC_ID,
    _CODEC_PRIVATE,
    _CUE_CLUSTER_POSITION,
    _CUE_POINT,
    _CUE_TIME,
    _CUE_TRACK,
    _CUE_TRACK_POSITIONS,
    _CUES,
    _DURATION,
    _FLAG_LACING,
    _INFO,
    _MUXING_APP,
    _PIXEL_HEIGHT,
    _PIXEL_WIDTH,
    _SEGMENT,
    _SIMPLE_BLOCK,
    _TIMESTAMP_SCALE,
    _TRACK,
    _TRACK_ENTRY,
    _TRACK_NUMBER,
    _TRACK_TYPE,
    _TRACK_UID,
    _TRACKS,
    _UNKNOWN_SIZE,
    _VIDEO,
    _VOID,
    _WRITING_APP,
    _ebml_header,
    _element,
    _master,
    _seek_head,
    _uint,
    _vint,
    _void,
)

_TICK_NS = 1_000_000  # a millisecond; exact time stamps stand in the log
_CLUSTER_MS = 30_000  # a block's offset from its cluster has 16 bits
_OWN_CODEC_IDS = {
    "mjpeg": "V_MJPEG", "vp8": "V_VP8", "vp9": "V_VP9", "av1": "V_AV1", "ffv1": "V_FFV1",
    "mpeg4": "V_MPEG4/ISO/ASP", "mpeg2video": "V_MPEG2", "mpeg1video": "V_MPEG1",
    "theora": "V_THEORA", "hevc": "V_MPEGH/ISO/HEVC",
}  # fmt: skip
_FOURCC = {"h264": b"H264", "png": b"MPNG"}


@dataclass(frozen=True)
class Track:
    """How a player is told what the packets are."""

    codec_id: str
    private: bytes
    size_hw: tuple[int, int]


def describe(codec: str, tag: int, extradata: bytes, size_hw: tuple[int, int]) -> Track:
    """The Matroska track of a stream.

    Args:
        codec: FFmpeg's canonical name.
        tag: the FourCC it came with, 0 if none.
        extradata: set-up data, unchanged.
        size_hw: coded size in pixels, 0 where unknown.
    """
    if codec in _OWN_CODEC_IDS:
        return Track(_OWN_CODEC_IDS[codec], extradata, size_hw)
    if codec == "h264" and extradata[:1] == b"\x01":  # ISO/IEC 14496-15: a version, no start code
        return Track("V_MPEG4/ISO/AVC", extradata, size_hw)
    fourcc = _FOURCC.get(codec) or struct.pack("<I", tag) if codec in _FOURCC or tag else b""
    fourcc = fourcc or codec.upper().encode("ascii", "replace").ljust(4)[:4]
    height, width = size_hw
    header = struct.pack(
        "<IiiHH4sIiiII", 40 + len(extradata), width, height, 1, 24, fourcc, *[0] * 5
    )
    return Track("V_MS/VFW/FOURCC", header + extradata, size_hw)


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
        head = _ebml_header() + _SEGMENT + _UNKNOWN_SIZE
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
        block = _vint(_TRACK) + struct.pack(">hB", now_ms - self._cluster_ms, 0x80 if key else 0)
        head = _SIMPLE_BLOCK + _vint(len(block) + len(data)) + block
        self._append(head + data)
        self._last_ms = max(self._last_ms, now_ms)
        self.end += len(head) + len(data)
        return self.end - len(data)

    def hide(self, data: bytes) -> int:
        """Append data that players pass over; returns the place of its first byte."""
        self._close_cluster()
        head = _VOID + _vint(len(data), 8)
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
        self._put(self._segment_start - 8, _vint(self.end - self._segment_start, 8))

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
        head = _CLUSTER + _UNKNOWN_SIZE + _element(_CLUSTER_TIME, _uint(now_ms))
        self._append(head)
        self.end += len(head)

    def _close_cluster(self) -> None:
        if self._cluster_at is not None:
            start = self._cluster_at + len(_CLUSTER)
            self._put(start, _vint(self.end - start - 8, 8))
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
        length = len(_seek_head(0, 0, cues_at))
        header = _seek_head(length, length + len(info), cues_at) + info + tracks
        return header + _void(self._room - len(header))

    def _info(self, duration_ms: int | None) -> bytes:
        fields = [
            (_TIMESTAMP_SCALE, _uint(_TICK_NS)),
            (_MUXING_APP, b"roadmask"),
            (_WRITING_APP, b"roadmask"),
        ]
        if duration_ms is not None:
            fields.append((_DURATION, struct.pack(">d", duration_ms)))
        return _master(_INFO, fields)

    def _tracks(self) -> bytes:
        height, width = self._track.size_hw
        video = [(_PIXEL_WIDTH, _uint(max(1, width))), (_PIXEL_HEIGHT, _uint(max(1, height)))]
        fields = [
            (_TRACK_NUMBER, _uint(_TRACK)),
            (_TRACK_UID, _uint(_TRACK)),
            (_TRACK_TYPE, _uint(1)),  # video
            (_FLAG_LACING, _uint(0)),
            (_CODEC_ID, self._track.codec_id.encode()),
            (_VIDEO, b"".join(_element(*field) for field in video)),
        ]
        if self._track.private:
            fields.append((_CODEC_PRIVATE, self._track.private))
        return _element(_TRACKS, _master(_TRACK_ENTRY, fields))

    def _cue_element(self) -> bytes:
        points = []
        for time_ms, position in self._cues:
            place = [(_CUE_TRACK, _uint(_TRACK)), (_CUE_CLUSTER_POSITION, _uint(position))]
            point = _element(_CUE_TIME, _uint(time_ms)) + _master(_CUE_TRACK_POSITIONS, place)
            points.append((_CUE_POINT, point))
        return _master(_CUES, points)
