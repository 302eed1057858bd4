"""A Matroska writer for one video track whose time stamps are exact.

libavformat writes Matroska with time stamps of a millisecond, which moves the frames of all but a
few sources. Here a tick is a nanosecond (RFC 9559, 11.2, allows any scale), so a time stamp turned
back into a source's time base is the one it had, for every time base of a nanosecond or more.

Only what such a file needs is written: EBML header, SeekHead, Info, Tracks, one Cluster a frame
(a block's own offset has 16 bits, 32 microseconds, so each frame needs its cluster; 30 bytes), and
Cues with every frame, since every frame is a key frame.
"""

from __future__ import annotations

import struct
from array import array
from fractions import Fraction
from typing import BinaryIO

_NANOSECONDS = 1_000_000_000
_UNKNOWN_SIZE = b"\x01" + b"\xff" * 7
_HEADER_BYTES = 1024  # SeekHead, Info, Tracks and a Void: they are written again at the end
_TRACK = 1


class MatroskaWriter:
    """Writes key frames of one track, each with its own time stamp, to a seekable file.

    Time stamps below zero are kept: clusters cannot hold them, so all are raised by the first one's
    distance from zero and the track's CodecDelay, which readers subtract, gives it back.

    Args:
        file: opened for binary writing, at its start; flushed but not closed by `finish`. To go on with
            what a `MatroskaWriter` wrote, readable too, and cut behind a frame.
        codec_id: Matroska's name of the codec, for example "V_FFV1".
        codec_private: the codec's set-up data.
        size_hw: height and width in pixels.
        time_base: seconds a tick of the `pts` given to `write`.
        delay_ns: to go on, the `delay_ns` of the writer that wrote the file; None to begin.

    Attributes:
        delay_ns: nanoseconds by which the time stamps are raised in the file.

    Raises:
        ValueError: the file to go on with is not such a file.
    """

    def __init__(
        self,
        file: BinaryIO,
        codec_id: str,
        codec_private: bytes,
        size_hw: tuple[int, int],
        time_base: Fraction,
        delay_ns: int | None = None,
    ) -> None:
        self._file = file
        self._codec_id = codec_id
        self._codec_private = codec_private
        self._size_hw = size_hw
        self._time_base = time_base
        self.delay_ns = delay_ns or 0
        self._times_ns = array("q")  # as stored, the delay added
        self._positions = array("q")  # of the clusters, from the start of the segment's data
        head = _ebml_header() + _SEGMENT + _UNKNOWN_SIZE
        self._segment_start = len(head)
        self._end = self._segment_start + _HEADER_BYTES
        if delay_ns is not None:
            self._read()
            head_again = self._header(duration_ns=None, cues_at=None)
            self._file.seek(0)
            self._file.write(head)  # it may have been finished once
            self._rewrite_header(head_again)
            return
        self._file.write(head + _void(_HEADER_BYTES))

    def write(self, pts: int, data: bytes) -> None:
        """Append one key frame; `pts` must increase strictly and may start below zero."""
        time_ns = to_nanoseconds(pts, self._time_base)
        if not self._times_ns:
            self.delay_ns = max(0, -time_ns)
            # Readable from the first frame on, should the end never be written.
            self._rewrite_header(self._header(duration_ns=None, cues_at=None))
        stored_ns = time_ns + self.delay_ns
        if self._times_ns and stored_ns <= self._times_ns[-1]:
            raise ValueError(f"pts must increase strictly, got {pts} after a later or equal one")
        block = _vint(_TRACK) + b"\x00\x00\x80"  # no offset to the cluster; key frame, no lacing
        head = _element(_CLUSTER_TIME, _uint(stored_ns))
        head += _SIMPLE_BLOCK + _vint(len(block) + len(data)) + block
        self._times_ns.append(stored_ns)
        self._positions.append(self._end - self._segment_start)
        self._append(_CLUSTER + _vint(len(head) + len(data)) + head)
        self._append(data)

    def finish(self, last_duration_ns: int) -> None:
        """Write the cues, and the header again with what is known only now.

        Args:
            last_duration_ns: how long the last frame is shown, nanoseconds.
        """
        cues_at, duration_ns = None, 0
        if self._times_ns:
            cues_at = self._end - self._segment_start
            duration_ns = self._times_ns[-1] - self._times_ns[0] + last_duration_ns
            self._append(self._cues())
        self._rewrite_header(self._header(duration_ns, cues_at))
        self._file.seek(self._segment_start - len(_UNKNOWN_SIZE))
        self._file.write(_vint(self._end - self._segment_start, 8))
        self._file.flush()

    def _read(self) -> None:
        """Find the frames that are in the file."""
        end = self._file.seek(0, 2)
        while self._end < end:
            self._file.seek(self._end)
            head = self._file.read(32)
            size, body = _read_vint(head, len(_CLUSTER))
            length, at = _read_vint(head, body + len(_CLUSTER_TIME))
            names = head[: len(_CLUSTER)], head[body : body + len(_CLUSTER_TIME)]
            if names != (_CLUSTER, _CLUSTER_TIME) or self._end + body + size > end:
                raise ValueError(f"no frame at byte {self._end}")
            self._times_ns.append(int.from_bytes(head[at : at + length], "big"))
            self._positions.append(self._end - self._segment_start)
            self._end += body + size

    def _append(self, data: bytes) -> None:
        self._file.write(data)
        self._end += len(data)

    def _rewrite_header(self, header: bytes) -> None:
        room = _HEADER_BYTES - len(header)
        if room < 2:
            raise ValueError(f"header must fit {_HEADER_BYTES - 2} bytes, got {len(header)}")
        self._file.seek(self._segment_start)
        self._file.write(header + _void(room))
        self._file.seek(self._end)

    def _header(self, duration_ns: int | None, cues_at: int | None) -> bytes:
        info, tracks = self._info(duration_ns), self._tracks()
        # Positions have eight bytes whatever their value, so its length is known before they are.
        length = len(_seek_head(0, 0, cues_at))
        return _seek_head(length, length + len(info), cues_at) + info + tracks

    def _info(self, duration_ns: int | None) -> bytes:
        fields = [
            (_TIMESTAMP_SCALE, _uint(1)),
            (_MUXING_APP, b"roadmask"),
            (_WRITING_APP, b"roadmask"),
        ]
        if duration_ns is not None:
            fields.append((_DURATION, struct.pack(">d", duration_ns)))
        return _master(_INFO, fields)

    def _tracks(self) -> bytes:
        height, width = self._size_hw
        video = [
            (_PIXEL_WIDTH, _uint(width)),
            (_PIXEL_HEIGHT, _uint(height)),
            (_FLAG_INTERLACED, _uint(2)),  # progressive
            # Full range: class ids must not be taken for video levels of 16 to 235.
            (_COLOUR, _element(_RANGE, _uint(2))),
        ]
        fields = [
            (_TRACK_NUMBER, _uint(_TRACK)),
            (_TRACK_UID, _uint(_TRACK)),
            (_TRACK_TYPE, _uint(1)),  # video
            (_FLAG_LACING, _uint(0)),
            (_CODEC_ID, self._codec_id.encode()),
            (_CODEC_PRIVATE, self._codec_private),
            (_VIDEO, b"".join(_element(*field) for field in video)),
        ]
        if self.delay_ns:
            fields.append((_CODEC_DELAY, _uint(self.delay_ns)))
        if frame_ns := self._constant_frame_ns():
            fields.append((_DEFAULT_DURATION, _uint(frame_ns)))
        return _element(_TRACKS, _master(_TRACK_ENTRY, fields))

    def _constant_frame_ns(self) -> int | None:
        """Nanoseconds a frame, None unless all are equal to the rounding of source and file."""
        count = len(self._times_ns) - 1
        if count < 1:
            return None
        start, mean = self._times_ns[0], (self._times_ns[-1] - self._times_ns[0]) / count
        tolerance = float(self._time_base * _NANOSECONDS + 1)
        for index, time in enumerate(self._times_ns):
            if abs(time - start - index * mean) > tolerance:
                return None
        return round(mean)

    def _cues(self) -> bytes:
        points = []
        for time_ns, position in zip(self._times_ns, self._positions, strict=True):
            place = [(_CUE_TRACK, _uint(_TRACK)), (_CUE_CLUSTER_POSITION, _uint(position))]
            point = _element(_CUE_TIME, _uint(time_ns)) + _master(_CUE_TRACK_POSITIONS, place)
            points.append((_CUE_POINT, point))
        return _master(_CUES, points)


def to_nanoseconds(pts: int, time_base: Fraction) -> int:
    """`pts` ticks of `time_base` in whole nanoseconds, halves rounded up."""
    doubled = 2 * pts * time_base.numerator * _NANOSECONDS + time_base.denominator
    return doubled // (2 * time_base.denominator)


# Element ids (RFC 8794, 11; RFC 9559, 5.1).
_EBML = b"\x1a\x45\xdf\xa3"
_EBML_VERSION = b"\x42\x86"
_EBML_READ_VERSION = b"\x42\xf7"
_EBML_MAX_ID_LENGTH = b"\x42\xf2"
_EBML_MAX_SIZE_LENGTH = b"\x42\xf3"
_DOC_TYPE = b"\x42\x82"
_DOC_TYPE_VERSION = b"\x42\x87"
_DOC_TYPE_READ_VERSION = b"\x42\x85"
_VOID = b"\xec"
_SEGMENT = b"\x18\x53\x80\x67"
_SEEK_HEAD = b"\x11\x4d\x9b\x74"
_SEEK = b"\x4d\xbb"
_SEEK_ID = b"\x53\xab"
_SEEK_POSITION = b"\x53\xac"
_INFO = b"\x15\x49\xa9\x66"
_TIMESTAMP_SCALE = b"\x2a\xd7\xb1"
_DURATION = b"\x44\x89"
_MUXING_APP = b"\x4d\x80"
_WRITING_APP = b"\x57\x41"
_TRACKS = b"\x16\x54\xae\x6b"
_TRACK_ENTRY = b"\xae"
_TRACK_NUMBER = b"\xd7"
_TRACK_UID = b"\x73\xc5"
_TRACK_TYPE = b"\x83"
_FLAG_LACING = b"\x9c"
_DEFAULT_DURATION = b"\x23\xe3\x83"
_CODEC_ID = b"\x86"
_CODEC_PRIVATE = b"\x63\xa2"
_CODEC_DELAY = b"\x56\xaa"
_VIDEO = b"\xe0"
_PIXEL_WIDTH = b"\xb0"
_PIXEL_HEIGHT = b"\xba"
_FLAG_INTERLACED = b"\x9a"
_COLOUR = b"\x55\xb0"
_RANGE = b"\x55\xb9"
_CLUSTER = b"\x1f\x43\xb6\x75"
_CLUSTER_TIME = b"\xe7"
_SIMPLE_BLOCK = b"\xa3"
_CUES = b"\x1c\x53\xbb\x6b"
_CUE_POINT = b"\xbb"
_CUE_TIME = b"\xb3"
_CUE_TRACK_POSITIONS = b"\xb7"
_CUE_TRACK = b"\xf7"
_CUE_CLUSTER_POSITION = b"\xf1"


def _ebml_header() -> bytes:
    fields = [
        (_EBML_VERSION, _uint(1)),
        (_EBML_READ_VERSION, _uint(1)),
        (_EBML_MAX_ID_LENGTH, _uint(4)),
        (_EBML_MAX_SIZE_LENGTH, _uint(8)),
        (_DOC_TYPE, b"matroska"),
        (_DOC_TYPE_VERSION, _uint(4)),  # CodecDelay and Colour came with 4
        (_DOC_TYPE_READ_VERSION, _uint(2)),  # SimpleBlock came with 2
    ]
    return _master(_EBML, fields)


def _seek_head(info_at: int, tracks_at: int, cues_at: int | None) -> bytes:
    places = [(_INFO, info_at), (_TRACKS, tracks_at)]
    if cues_at is not None:
        places.append((_CUES, cues_at))
    seeks = [
        (_SEEK, _element(_SEEK_ID, name) + _element(_SEEK_POSITION, _uint(place, 8)))
        for name, place in places
    ]
    return _master(_SEEK_HEAD, seeks)


def _master(name: bytes, children: list[tuple[bytes, bytes]]) -> bytes:
    return _element(name, b"".join(_element(*child) for child in children))


def _element(name: bytes, body: bytes) -> bytes:
    return name + _vint(len(body)) + body


def _void(length: int) -> bytes:
    """A Void element of `length` bytes in all, 2 or more."""
    size_bytes = min(8, length - 1)
    body = length - 1 - size_bytes
    return _VOID + _vint(body, size_bytes) + bytes(body)


def _vint(value: int, length: int | None = None) -> bytes:
    """EBML variable-size integer (RFC 8794, 4), as short as can be unless `length` is given."""
    # All ones mean "unknown", so a length holds one value less than its bits could.
    length = length or _vint_bytes(value)
    return (value | 1 << 7 * length).to_bytes(length, "big")


def _vint_bytes(value: int) -> int:
    """How many bytes `_vint` makes of a value."""
    return next(n for n in range(1, 9) if value < (1 << 7 * n) - 1)


def _read_vint(data: bytes, at: int) -> tuple[int, int]:
    """An EBML variable-size integer, and the place behind it. Raises ValueError if it is not whole."""
    length = 9 - data[at].bit_length() if at < len(data) and data[at] else 0
    if not length or at + length > len(data):
        raise ValueError("an integer is cut off")
    return int.from_bytes(data[at : at + length], "big") & ~(1 << 7 * length), at + length


def _uint(value: int, length: int | None = None) -> bytes:
    return value.to_bytes(length or max(1, (value.bit_length() + 7) // 8), "big")
