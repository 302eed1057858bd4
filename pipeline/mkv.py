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

from pipeline import ebml

_NANOSECONDS = 1_000_000_000
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
        head = ebml.header() + ebml.SEGMENT + ebml.UNKNOWN_SIZE
        self._segment_start = len(head)
        self._end = self._segment_start + _HEADER_BYTES
        if delay_ns is not None:
            self._read()
            head_again = self._header(duration_ns=None, cues_at=None)
            self._file.seek(0)
            self._file.write(head)  # it may have been finished once
            self._rewrite_header(head_again)
            return
        self._file.write(head + ebml.void(_HEADER_BYTES))

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
        block = (
            ebml.vint(_TRACK) + b"\x00\x00\x80"
        )  # no offset to the cluster; key frame, no lacing
        head = ebml.element(ebml.CLUSTER_TIME, ebml.uint(stored_ns))
        head += ebml.SIMPLE_BLOCK + ebml.vint(len(block) + len(data)) + block
        self._times_ns.append(stored_ns)
        self._positions.append(self._end - self._segment_start)
        self._append(ebml.CLUSTER + ebml.vint(len(head) + len(data)) + head)
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
        self._file.seek(self._segment_start - len(ebml.UNKNOWN_SIZE))
        self._file.write(ebml.vint(self._end - self._segment_start, 8))
        self._file.flush()

    def _read(self) -> None:
        """Find the frames that are in the file."""
        end = self._file.seek(0, 2)
        while self._end < end:
            self._file.seek(self._end)
            head = self._file.read(32)
            size, body = ebml.read_vint(head, len(ebml.CLUSTER))
            length, at = ebml.read_vint(head, body + len(ebml.CLUSTER_TIME))
            names = head[: len(ebml.CLUSTER)], head[body : body + len(ebml.CLUSTER_TIME)]
            if names != (ebml.CLUSTER, ebml.CLUSTER_TIME) or self._end + body + size > end:
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
        self._file.write(header + ebml.void(room))
        self._file.seek(self._end)

    def _header(self, duration_ns: int | None, cues_at: int | None) -> bytes:
        info, tracks = self._info(duration_ns), self._tracks()
        # Positions have eight bytes whatever their value, so its length is known before they are.
        length = len(ebml.seek_head(0, 0, cues_at))
        return ebml.seek_head(length, length + len(info), cues_at) + info + tracks

    def _info(self, duration_ns: int | None) -> bytes:
        fields = [
            (ebml.TIMESTAMP_SCALE, ebml.uint(1)),
            (ebml.MUXING_APP, b"roadmask"),
            (ebml.WRITING_APP, b"roadmask"),
        ]
        if duration_ns is not None:
            fields.append((ebml.DURATION, struct.pack(">d", duration_ns)))
        return ebml.master(ebml.INFO, fields)

    def _tracks(self) -> bytes:
        height, width = self._size_hw
        video = [
            (ebml.PIXEL_WIDTH, ebml.uint(width)),
            (ebml.PIXEL_HEIGHT, ebml.uint(height)),
            (ebml.FLAG_INTERLACED, ebml.uint(2)),  # progressive
            # Full range: class ids must not be taken for video levels of 16 to 235.
            (ebml.COLOUR, ebml.element(ebml.RANGE, ebml.uint(2))),
        ]
        fields = [
            (ebml.TRACK_NUMBER, ebml.uint(_TRACK)),
            (ebml.TRACK_UID, ebml.uint(_TRACK)),
            (ebml.TRACK_TYPE, ebml.uint(1)),  # video
            (ebml.FLAG_LACING, ebml.uint(0)),
            (ebml.CODEC_ID, self._codec_id.encode()),
            (ebml.CODEC_PRIVATE, self._codec_private),
            (ebml.VIDEO, b"".join(ebml.element(*field) for field in video)),
        ]
        if self.delay_ns:
            fields.append((ebml.CODEC_DELAY, ebml.uint(self.delay_ns)))
        if frame_ns := self._constant_frame_ns():
            fields.append((ebml.DEFAULT_DURATION, ebml.uint(frame_ns)))
        return ebml.element(ebml.TRACKS, ebml.master(ebml.TRACK_ENTRY, fields))

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
        points = [
            (ebml.CUE_POINT, ebml.cue_point(_TRACK, time_ns, position))
            for time_ns, position in zip(self._times_ns, self._positions, strict=True)
        ]
        return ebml.master(ebml.CUES, points)


def to_nanoseconds(pts: int, time_base: Fraction) -> int:
    """`pts` ticks of `time_base` in whole nanoseconds, halves rounded up."""
    doubled = 2 * pts * time_base.numerator * _NANOSECONDS + time_base.denominator
    return doubled // (2 * time_base.denominator)
