"""H.264 in MP4 with exactly the time stamps it is given, from planar YUV, with copied audio.

Three things keep the stamps exact: the track's time scale is a whole multiple of the source's, the
movie's is one of the track's (a late start is stored in the movie's ticks), and the encoder reorders
nothing. Time below zero does not exist in MP4: there all streams are moved together, and
`Mp4Writer.pts_offset` says by how much.

Each group of `GROUP_FRAMES` frames has an encoder of its own, so that it depends on nothing before it: a
run that was cut off between two groups goes on with the bytes that it would have written anyway. A new
encoder takes 2.5 ms at 1280x720.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.codec.context import Flags
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from pipeline.audio import AudioCopy
from pipeline.boxes import TrackHead
from pipeline.errors import OutputError
from pipeline.frames import GROUP_FRAMES
from pipeline.movie import Movie
from pipeline.palette import Planes
from pipeline.parts import PartFile, output_errors

_LARGEST_INT = 2**31 - 1  # what readers take for time scales and for ticks between two frames
_SMALLEST_SCALE = 10_000  # a coarser one leaves no room for players' rounding
_COARSER_SCALES = (1_000_000, 1_000)
# ISO/IEC 23091-2 (H.273) code points: primaries, transfer characteristics, matrix.
_COLOUR_TAGS = {"bt601": (6, 6, 6), "bt709": (1, 1, 1)}
_LIMITED_RANGE = 1
_USUAL_RATE = Fraction(25)
_SEI = 6  # kind of a unit (ITU-T H.264, table 7-1)


@dataclass(frozen=True)
class VideoSettings:
    """What a video file is made with.

    Attributes:
        size_hw: height and width in pixels. 4:2:0 needs even ones: odd sizes are stored as 4:4:4.
        time_base: seconds a tick of `pts`.
        rate: frames a second, for the stream's headers and the encoder only; None if unknown.
        matrix: "bt601" or "bt709", of the planes that will be drawn.
        aspect: width of a pixel over its height.
        quality: options of x264 that set the quality.
        threads: encoder threads, 0 for as many as there are cores.
    """

    size_hw: tuple[int, int]
    time_base: Fraction
    rate: Fraction | None
    matrix: str
    aspect: Fraction | None = None
    quality: dict[str, str] = field(default_factory=lambda: {"qp": "22"})
    threads: int = 1


class Mp4Writer:
    """Encodes the frames drawn into `planes`, one after another.

    Attributes:
        planes: y, u, v of the frame that `encode` takes next, uint8 views of the encoder's own
            buffer; their content is not kept between frames. u and v have y's size if
            `full_chroma`, else half of it.
        full_chroma: whether the file is 4:4:4.
        pts_offset: ticks added to every `pts`, 0 unless the first is below zero.
        notes: what the user should know, a line each.
    """

    def __init__(
        self,
        part: PartFile,
        settings: VideoSettings,
        audio: AudioCopy | None = None,
        saved: dict[str, Any] | None = None,
    ) -> None:
        """
        Args:
            part: where it is written: an empty file, or one cut where `save` was called.
            audio: what to copy along.
            saved: what `save` gave, to go on there.

        Raises:
            OutputError: the file cannot be written, or not gone on with.
        """
        height, width = settings.size_hw
        self.full_chroma = bool(height % 2 or width % 2)
        self.pts_offset = 0
        self.notes: list[str] = []
        self._part, self._settings, self._audio = part, settings, audio
        self._frame = VideoFrame(width, height, "yuv444p" if self.full_chroma else "yuv420p")
        y, u, v = (
            np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[
                :, : plane.width
            ]
            for plane in self._frame.planes
        )
        self.planes: Planes = (y, u, v)
        self._first = saved is None
        self._frames = 0
        self._last_pts = 0
        self._last_ticks = max(1, round(1 / ((settings.rate or _USUAL_RATE) * settings.time_base)))
        self._scale = _time_scale(settings.time_base)
        self._encoder: VideoCodecContext | None = None
        with _video_errors(part.final):
            head = replace(_describe(settings, self._frame.format.name), scale=self._scale)
            self._heads = [head, *(audio.heads if audio else ())]
            origins = None if saved is None else saved["origins"]
            self._movie = Movie(part, self._heads, self._movie_scale(self._scale), origins)
        if saved is not None:
            self._restore(saved)

    def encode(self, pts: int) -> None:
        """Append the frame in `planes`. Raises OutputError."""
        if self._frames == 0:
            self.pts_offset = max(0, -pts)
        else:
            self._last_ticks = pts - self._last_pts
            self._check_pause(self._last_ticks * self._settings.time_base)
        with _video_errors(self._part.final):
            if self._encoder is None:
                self._encoder = _open_encoder(self._settings, self._frame.format.name)
            self._copy_audio(pts * self._settings.time_base)
            self._frame.pts = pts + self.pts_offset
            self._frame.time_base = self._settings.time_base
            self._append(self._frame)
            self._last_pts = pts
            self._frames += 1
            if self._frames % GROUP_FRAMES == 0:
                self._end_group()

    def save(self) -> dict[str, Any]:
        """What it takes to go on behind the frames so far, all of which are in the file; JSON can hold it.

        Raises ValueError unless there are a multiple of `GROUP_FRAMES`.
        """
        if self._frames % GROUP_FRAMES:
            raise ValueError(f"frames must be a multiple of {GROUP_FRAMES}, got {self._frames}")
        return {"frames": self._frames, "pts_offset": self.pts_offset, "last_pts": self._last_pts,
                "last_ticks": self._last_ticks, "origins": self._movie.origins}  # fmt: skip

    def finish(self, whole: bool = True) -> None:
        """Write what the file needs at its end; it stays open. Raises OutputError.

        Args:
            whole: the source has ended, so copy its audio to the end; else only as far as the
                pictures go.
        """
        end = (self._last_pts + self._last_ticks) * self._settings.time_base
        with _video_errors(self._part.final):
            self._end_group()
            self._copy_audio(None if whole else end)
            self._movie.flush()
            self._finish_movie()
        if self._audio is not None:
            self._audio.close()

    def abort(self) -> None:
        """Let go of everything; what is in the file does not matter any more."""
        if self._audio is not None:
            self._audio.close()

    def _restore(self, saved: dict[str, Any]) -> None:
        self._frames, self.pts_offset = saved["frames"], saved["pts_offset"]
        self._last_pts, self._last_ticks = saved["last_pts"], saved["last_ticks"]
        if self._audio is not None:  # what is in the file already
            shift = self.pts_offset * self._settings.time_base
            for _ in self._audio.until(self._last_pts * self._settings.time_base, shift):
                pass

    def _end_group(self) -> None:
        if self._encoder is not None:
            self._append(None)
            self._encoder = None
        self._movie.flush()

    def _append(self, frame: VideoFrame | None) -> None:
        assert self._encoder is not None
        ticks = self._last_ticks * self._settings.time_base * self._scale
        for packet in self._encoder.encode(frame):
            assert packet.pts is not None
            self._movie.add(
                0,
                round(packet.pts * self._settings.time_base * self._scale),
                min(max(1, round(ticks)), _LARGEST_INT),
                _with_lengths(bytes(packet), first=self._first),
                packet.is_keyframe,
            )
            self._first = False

    def _copy_audio(self, until_seconds: Fraction | None) -> None:
        if self._audio is None:
            return
        shift = self.pts_offset * self._settings.time_base
        for sample in self._audio.until(until_seconds, shift):
            self._movie.add(1 + sample.track, sample.time, sample.ticks, sample.data)

    def _finish_movie(self) -> None:
        heads, samples, scale = list(self._heads), list(self._movie.samples), self._scale
        ticks = self._last_ticks * self._settings.time_base
        samples[0].last_ticks = max(1, round(ticks * scale))
        longest = max(samples[0].longest_ticks(), 1)
        if longest >= _LARGEST_INT:
            scale = next(s for s in _COARSER_SCALES if longest * s // self._scale < _LARGEST_INT)
            samples[0] = samples[0].with_scale(self._scale, scale)
            heads[0] = replace(heads[0], scale=scale)
            self.notes.append(
                f"{self._part.final.name}: time stamps are rounded to 1/{scale} s, because a pause"
                f" of {longest / self._scale:.1f} s does not fit mp4 in the source's ticks"
            )
        samples[0].last_ticks = min(samples[0].last_ticks, _LARGEST_INT - 1)
        self._movie.finish(heads, samples, self._movie_scale(scale))

    def _movie_scale(self, scale: int) -> int:
        """Ticks a second of the movie: tracks that start late say so in these."""
        exact = math.lcm(scale, *(self._audio.scales if self._audio else ()))
        return exact if exact <= _LARGEST_INT else scale

    def _check_pause(self, seconds: Fraction) -> None:
        if seconds * min(_COARSER_SCALES) >= _LARGEST_INT:
            raise OutputError(
                f"cannot write {self._part.final}: a pause of {float(seconds):.0f} s between two"
                f" frames, mp4 takes at most {_LARGEST_INT // min(_COARSER_SCALES)} s;"
                " cut the source there"
            )


def _open_encoder(settings: VideoSettings, pixel_format: str) -> VideoCodecContext:
    context = av.CodecContext.create("libx264", "w")
    assert isinstance(context, VideoCodecContext)
    context.height, context.width = settings.size_hw
    context.pix_fmt, context.time_base = pixel_format, settings.time_base
    _set_up(context, settings)
    context.flags |= Flags.global_header
    context.open()
    return context


def _set_up(context: VideoCodecContext, settings: VideoSettings) -> None:
    context.framerate = (settings.rate or _USUAL_RATE).limit_denominator(1_000_000)
    context.options = {"preset": "ultrafast", **settings.quality}
    context.gop_size = 2 * GROUP_FRAMES  # one key frame, the first
    context.thread_count = settings.threads
    context.color_range = _LIMITED_RANGE
    context.color_primaries, context.color_trc, context.colorspace = _COLOUR_TAGS[settings.matrix]
    if settings.aspect:
        context.sample_aspect_ratio = settings.aspect


def _describe(settings: VideoSettings, pixel_format: str) -> TrackHead:
    """What the track is, from the header that FFmpeg writes for such an encoder."""
    height, width = settings.size_hw
    file = io.BytesIO()
    with av.open(file, "w", format="mp4", options={"movflags": "empty_moov"}) as trial:
        stream = trial.add_stream(
            "libx264", width=width, height=height, pix_fmt=pixel_format,
            time_base=settings.time_base,
        )  # fmt: skip
        _set_up(stream.codec_context, settings)
        trial.start_encoding()
    return TrackHead.of_movie(file.getvalue())


def _with_lengths(data: bytes, first: bool) -> bytes:
    """A picture's units with lengths instead of start codes (ISO/IEC 14496-15, 5.3.4.2).

    The encoder's note about itself (SEI) stays with the first picture only.
    """
    # No unit ends in zero (ITU-T H.264, 7.4.1): zeros before a start code belong to that.
    units = [unit for part in data.split(b"\0\0\1") if (unit := part.rstrip(b"\0"))]
    if not first:
        units = [unit for unit in units if unit[0] & 31 != _SEI]
    return b"".join(len(unit).to_bytes(4, "big") + unit for unit in units)


def _time_scale(time_base: Fraction) -> int:
    """Ticks a second for the track: the source's, multiplied where that is coarse."""
    scale = time_base.denominator * math.ceil(_SMALLEST_SCALE / time_base.denominator)
    if scale > _LARGEST_INT:
        raise OutputError(
            f"mp4 takes at most {_LARGEST_INT} ticks a second, got {scale}: leave this output out"
        )
    return scale


@contextmanager
def _video_errors(path: Path) -> Iterator[None]:
    try:
        with output_errors(path):
            yield
    except av.FFmpegError as error:
        raise OutputError(
            f"cannot write {path}: the encoder or the file format refuses it"
            f" ({error.strerror or error}); leave this output out"
        ) from error
