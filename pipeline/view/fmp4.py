"""H.264 in fragmented MP4, a fragment a frame, as Media Source Extensions take it.

FFmpeg's muxer makes the header, but it writes a frame's fragment only when the next frame comes, for its
duration: a frame's time of delay for every viewer. So the fragments are made here: forty bytes of boxes
around each frame (ISO/IEC 14496-12, 8.8).
"""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.video.frame import PictureType, VideoFrame

from pipeline.boxes import KEY_SAMPLE, OTHER_SAMPLE, box, full_box
from pipeline.errors import EngineError

TICKS_PER_SECOND = 1000
_TICK = Fraction(1, TICKS_PER_SECOND)
KEYFRAME_EVERY_MS = 2000.0
_SHORTEST_MS, _LONGEST_MS = 40, 1000
_START_CODE = re.compile(rb"\x00\x00\x00?\x01")
_SMPTE_170M, _LIMITED_RANGE = 6, 1  # ITU-T H.273: BT.601's primaries, transfer and matrix
# Constant quality, ultrafast: 6 KB and 1.3 ms a frame at 640x360. `forced-idr`: a viewer can start
# at every keyframe that is asked for.
_X264 = {"preset": "ultrafast", "tune": "zerolatency", "crf": "25", "forced-idr": "1"}
STRIP_ROWS = 8
"""Rows below the picture that hold its number: see `_write_number`."""
_NUMBER_BITS, _BIT_COLUMNS = 16, 8
_BLACK, _WHITE, _GREY = 16, 235, 128


@dataclass(frozen=True)
class Fragment:
    """One encoded frame.

    Attributes:
        data: `moof` and `mdat`.
        init: `ftyp` and `moov`, with keyframes only; else empty.
        codec: for `MediaSource.isTypeSupported`, such as "avc1.42c01e".
        keyframe: a viewer can start here.
    """

    data: bytes
    init: bytes
    codec: str
    keyframe: bool


class FragmentEncoder:
    """Encodes frames of one size, with `STRIP_ROWS` rows more."""

    def __init__(self, size_hw: tuple[int, int]) -> None:
        """`size_hw` in pixels, both even. Raises EngineError if this build has no H.264 encoder."""
        self.size_hw = size_hw
        self._sequence = 0
        self._key_pts_ms: float | None = None
        self._last_pts_ms: int | None = None
        self._interval_ms = float(_SHORTEST_MS)
        self._duration_ms = _SHORTEST_MS
        height, width = size_hw
        self._frame = VideoFrame(width, height + STRIP_ROWS, "yuv420p")
        self._views = [
            np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, -1)[:, : plane.width]
            for plane in self._frame.planes
        ]
        for view, value in zip(self._views, (_BLACK, _GREY, _GREY), strict=True):
            view[:] = value
        self._open()

    def _open(self) -> None:
        height, width = self._frame.height, self._frame.width
        file = io.BytesIO()
        options = {
            "movflags": "empty_moov+default_base_moof+frag_custom",
            "video_track_timescale": str(TICKS_PER_SECOND),
        }
        try:
            self._container = av.open(file, "w", format="mp4", options=options)
            self._stream = self._container.add_stream(
                "libx264", rate=25, width=width, height=height, pix_fmt="yuv420p", options=_X264
            )
            context = self._stream.codec_context
            context.time_base = self._frame.time_base = _TICK
            context.thread_count = 1
            context.gop_size = 10_000  # keyframes come by the clock, see `encode`
            context.color_primaries = context.color_trc = context.colorspace = _SMPTE_170M
            context.color_range = _LIMITED_RANGE
            self._container.start_encoding()
        except (av.FFmpegError, ValueError) as error:
            raise EngineError(
                f"the view's video cannot be encoded as H.264 at {width}x{height}: {error}"
            ) from error
        self._init = file.getvalue()
        avcc = self._init[self._init.index(b"avcC") + 4 :]
        self._codec = f"avc1.{avcc[1:4].hex()}"

    def encode(
        self, planes: np.ndarray, number: int, pts_ms: int, keyframe: bool = False
    ) -> Fragment:
        """One frame, as a fragment of its own.

        Args:
            planes: uint8 [h * 3 // 2, w], I420, BT.601 limited range.
            number: of the frame, written below the picture.
            pts_ms: when it is shown, more than the frame's before.
            keyframe: a viewer wants to start here.
        """
        keyframe = self._advance(pts_ms) or keyframe
        height, width = self.size_hw
        chroma = planes[height:].reshape(2, height // 2, width // 2)
        for view, plane in zip(self._views, (planes[:height], *chroma), strict=True):
            np.copyto(view[: len(plane)], plane)
        self._write_number(number)
        self._frame.pts = pts_ms
        self._frame.pict_type = PictureType.I if keyframe else PictureType.NONE
        packets = self._stream.encode(self._frame)
        if len(packets) != 1:
            raise EngineError(f"the encoder must give a packet a frame, got {len(packets)}")
        if packets[0].is_keyframe:
            self._key_pts_ms = pts_ms
        return self._fragment(bytes(packets[0]), pts_ms, packets[0].is_keyframe)

    def _write_number(self, number: int) -> None:
        """Draws the number's low bits below the picture, a black or white square each.

        Players tell by their clock which frame they show; Firefox's is one frame off half of the
        time. What is in the picture is right in each of them, and sits in rows that the encoder
        fills up to whole macroblocks anyway where the height is an odd multiple of eight.
        """
        bits = min(_NUMBER_BITS, self.size_hw[1] // _BIT_COLUMNS)
        values = np.where((number >> np.arange(bits)) & 1, _WHITE, _BLACK).astype(np.uint8)
        self._views[0][self.size_hw[0] :, : bits * _BIT_COLUMNS] = np.repeat(values, _BIT_COLUMNS)

    def _advance(self, pts_ms: int) -> bool:
        """Takes note of the time; whether this frame must be a keyframe.

        A frame's duration is unknown when it is sent. Players take a step of more than twice the
        last duration for a break, after which they wait for a keyframe (Media Source Extensions,
        3.5.8); so a frame claims twice the usual interval, and behind a longer pause comes a
        keyframe.
        """
        after_pause = False
        if self._last_pts_ms is not None:
            step_ms = pts_ms - self._last_pts_ms
            after_pause = step_ms > 2 * self._duration_ms
            self._interval_ms += (min(step_ms, _LONGEST_MS) - self._interval_ms) / 8
        self._last_pts_ms = pts_ms
        self._duration_ms = round(min(max(2 * self._interval_ms, _SHORTEST_MS), _LONGEST_MS))
        due = self._key_pts_ms is None or pts_ms - self._key_pts_ms >= KEYFRAME_EVERY_MS
        return due or after_pause

    def _fragment(self, annex_b: bytes, pts_ms: int, keyframe: bool) -> Fragment:
        self._sequence += 1
        sample = b"".join(
            struct.pack(">I", len(unit)) + unit for unit in _START_CODE.split(annex_b) if unit
        )
        flags = KEY_SAMPLE if keyframe else OTHER_SAMPLE
        # trun: data offset, then of its one sample duration, size and flags (0x1, 0x100, 0x200, 0x400)
        run = (1, _MOOF_BYTES + 8, self._duration_ms, len(sample), flags)
        track = box(
            b"traf",
            full_box(b"tfhd", 0, 0x020000, struct.pack(">I", 1)),
            full_box(b"tfdt", 1, 0, struct.pack(">Q", pts_ms)),
            full_box(b"trun", 0, 0x701, struct.pack(">IiIII", *run)),
        )
        moof = box(b"moof", full_box(b"mfhd", 0, 0, struct.pack(">I", self._sequence)), track)
        data = moof + box(b"mdat", sample)
        return Fragment(data, self._init if keyframe else b"", self._codec, keyframe)

    def close(self) -> None:
        """Lets go of the encoder."""
        self._stream.codec_context.flush_buffers()
        self._container.close()


_MOOF_BYTES = 8 + 16 + (8 + 16 + 20 + 32)  # moof(mfhd, traf(tfhd, tfdt, trun)), always the same
