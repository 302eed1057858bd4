"""H.264 in MP4 with exactly the time stamps it is given, from planar YUV, with copied audio.

Three things keep the stamps exact: the track's time scale is a whole multiple of the source's, the
movie's is one of the track's (a late start is stored in the movie's, by default milliseconds, and
moves every frame), and the encoder reorders nothing. Time below zero does not exist in MP4: there
all streams are moved together, and `Mp4Writer.pts_offset` says by how much.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from pipeline.audio import AudioCopy
from pipeline.errors import OutputError
from pipeline.palette import Planes
from pipeline.parts import PartFile, output_errors

_LARGEST_INT = 2**31 - 1  # libavformat's limit for time scales and for ticks between two frames
_SMALLEST_SCALE = 10_000  # what libavformat would itself raise a coarser one to
_COARSER_SCALES = (1_000_000, 1_000)
# ISO/IEC 23091-2 (H.273) code points: primaries, transfer characteristics, matrix.
_COLOUR_TAGS = {"bt601": (6, 6, 6), "bt709": (1, 1, 1)}
_LIMITED_RANGE = 1
_USUAL_RATE = Fraction(25)


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
        self, part: PartFile, settings: VideoSettings, audio: AudioCopy | None = None
    ) -> None:
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
        self._first_pts: int | None = None
        self._last_pts = 0
        self._last_ticks = max(1, round(1 / ((settings.rate or _USUAL_RATE) * settings.time_base)))
        self._last_stored = -1
        self._scale = _time_scale(settings.time_base)
        self._encoder: VideoStream | None = None
        with _video_errors(part.final):
            self._open()

    def encode(self, pts: int) -> None:
        """Append the frame in `planes`. Raises OutputError."""
        with _video_errors(self._part.final):
            if self._first_pts is None:
                self._first_pts = pts
                self.pts_offset = max(0, -pts)
            else:
                self._last_ticks = pts - self._last_pts
                self._make_room(self._last_ticks)
            self._last_pts = pts
            self._copy_audio(Fraction(pts) * self._settings.time_base)
            self._frame.pts = pts + self.pts_offset
            self._frame.time_base = self._settings.time_base
            self._mux(self._frame)

    def finish(self, whole: bool = True) -> None:
        """Write what the file needs at its end; it stays open. Raises OutputError.

        Args:
            whole: the source has ended, so copy its audio to the end; else only as far as the
                pictures go.
        """
        end = Fraction(self._last_pts + self._last_ticks) * self._settings.time_base
        with _video_errors(self._part.final):
            self._mux(None)
            self._copy_audio(None if whole else end)
            self._container.close()
        if self._audio is not None:
            self._audio.close()

    def abort(self) -> None:
        """Let go of everything; what is in the file does not matter any more."""
        with suppress(av.FFmpegError, OSError, ValueError):
            self._container.close()
        if self._audio is not None:
            self._audio.close()

    def _open(self) -> None:
        rates = [] if self._audio is None else self._audio.rates_hz
        # Audio that starts late is stored in the movie's ticks too.
        movie_scale = math.lcm(self._scale, *rates)
        options = {
            "video_track_timescale": str(self._scale),
            "movie_timescale": str(movie_scale if movie_scale <= _LARGEST_INT else self._scale),
        }
        self._container = av.open(self._part.file, "w", format="mp4", options=options)
        if self._encoder is None:
            self._encoder = self._stream = self._add_encoder()
        else:
            self._stream = self._container.add_stream_from_template(self._encoder)
        if self._audio is not None:
            self._audio.attach(self._container)
        self._container.start_encoding()

    def _add_encoder(self) -> VideoStream:
        settings = self._settings
        height, width = settings.size_hw
        stream = self._container.add_stream(
            "libx264",
            rate=(settings.rate or _USUAL_RATE).limit_denominator(1_000_000),
            width=width,
            height=height,
            pix_fmt=self._frame.format.name,
            time_base=settings.time_base,
            options={"preset": "ultrafast", **settings.quality},
        )
        context = stream.codec_context
        context.thread_count = settings.threads
        context.color_range = _LIMITED_RANGE
        context.color_primaries, context.color_trc, context.colorspace = _COLOUR_TAGS[
            settings.matrix
        ]
        if settings.aspect:
            context.sample_aspect_ratio = settings.aspect
        return stream

    def _mux(self, frame: VideoFrame | None) -> None:
        assert self._encoder is not None
        for packet in self._encoder.encode(frame):
            assert packet.pts is not None
            self._stamp(packet, packet.pts * self._settings.time_base)
            packet.stream = self._stream
            self._container.mux_one(packet)

    def _stamp(self, packet: Packet, seconds: Fraction) -> None:
        """Time a picture in the file's ticks: exact, unless `_make_room` made them coarse."""
        self._last_stored = max(self._last_stored + 1, round(seconds * self._scale))
        packet.pts = packet.dts = self._last_stored
        packet.time_base = Fraction(1, self._scale)
        # Counts for the last frame only: others last until the next one.
        shown = self._last_ticks * self._settings.time_base * self._scale
        packet.duration = min(max(1, round(shown)), _LARGEST_INT - 1)

    def _copy_audio(self, until_seconds: Fraction | None) -> None:
        if self._audio is None:
            return
        shift = self.pts_offset * self._settings.time_base
        for packet in self._audio.until(until_seconds, shift):
            self._container.mux_one(packet)

    def _make_room(self, ticks: int) -> None:
        """Go on with coarser time stamps if so many source ticks between two frames don't fit."""
        pause = ticks * self._settings.time_base
        if pause * self._scale < _LARGEST_INT:
            return
        fitting = [scale for scale in _COARSER_SCALES if pause * scale < _LARGEST_INT]
        if not fitting:
            raise OutputError(
                f"cannot write {self._part.final}: a pause of {float(pause):.0f} s between two"
                f" frames, mp4 takes at most {_LARGEST_INT // min(_COARSER_SCALES)} s;"
                " cut the source there"
            )
        self._scale = fitting[0]
        self.notes.append(
            f"{self._part.final.name}: time stamps are rounded to 1/{self._scale} s,"
            f" because a pause of {float(pause):.1f} s does not fit mp4 in the source's ticks"
        )
        self._container.close()
        before = self._part.renew()
        self._open()
        self._take_over(before)
        before.unlink()

    def _take_over(self, before: Path) -> None:
        """Copy what an earlier file has into the new one."""
        self._last_stored = -1
        with av.open(f"file:{before}") as earlier:
            # The file has lengths where the encoder's packets, which follow, have start codes.
            to_encoders = BitStreamFilterContext("h264_mp4toannexb", earlier.streams.video[0])
            for packet in earlier.demux():
                if packet.dts is None:  # the empty one after each stream's last
                    continue
                if not isinstance(packet.stream, VideoStream):
                    self._pass_on(packet)
                    continue
                seconds = packet.dts * packet.time_base  # the filter empties the packet
                for picture in to_encoders.filter(packet):
                    self._stamp(picture, seconds)
                    self._pass_on(picture)

    def _pass_on(self, packet: Packet) -> None:
        packet.stream = self._container.streams[packet.stream_index]
        self._container.mux_one(packet)


def _time_scale(time_base: Fraction) -> int:
    """Ticks a second for the track: the source's, multiplied where libavformat wants more."""
    return time_base.denominator * math.ceil(_SMALLEST_SCALE / time_base.denominator)


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
