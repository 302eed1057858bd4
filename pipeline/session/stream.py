"""What a decoder must know of a stream before its first packet, so that a replay decodes alike."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, cast

import av
import numpy as np
from av.codec.codec import UnknownCodecError
from av.packet import Packet, PacketSideData
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from pipeline.errors import MediaError
from pipeline.planes import Orientation
from pipeline.session.checks import (
    MOST_EXTRADATA_BYTES,
    MOST_PIXELS_A_SIDE,
    FormatError,
    bounded_int,
    expect,
    text,
)

_DISPLAY_MATRIX = 5  # AV_PKT_DATA_DISPLAYMATRIX
_MATRIX_BYTES = 36
_PADDING_BYTES = 64  # AV_INPUT_BUFFER_PADDING_SIZE
_COLOURS = ("color_primaries", "color_range", "color_trc", "colorspace")


@dataclass(frozen=True)
class StreamParameters:
    """One connection's video stream.

    Attributes:
        codec: FFmpeg's name of the codec, such as "h264".
        codec_tag: the container's four characters as a number, 0 if it has none.
        extradata: the codec's set-up data, as it came.
        size_hw: coded height and width in pixels; 0 where unknown before the first frame.
        pix_fmt: pixel format, None where unknown.
        time_base: seconds a tick of the packets' time stamps.
        rate: frames a second as the stream states it, None if it does not.
        colours: primaries, range, transfer and matrix as numbers of ITU-T H.273.
        display_matrix: how the pictures are to be turned, where a file's container alone says so: nine
            32-bit numbers as FFmpeg has them; empty where it does not.
        counted: FFmpeg just counts its frames: their time stamps tell no time.
    """

    codec: str
    codec_tag: int
    extradata: bytes
    size_hw: tuple[int, int]
    pix_fmt: str | None
    time_base: Fraction
    rate: Fraction | None = None
    colours: tuple[int, int, int, int] = (2, 0, 2, 2)  # "not specified"
    display_matrix: bytes = b""
    counted: bool = False

    @classmethod
    def of(
        cls, stream: VideoStream, display_matrix: bytes = b"", counted: bool = False
    ) -> StreamParameters:
        """Of an opened stream, before its first packet is decoded; the matrix as `matrix_of` gives it."""
        context = stream.codec_context
        assert stream.time_base is not None
        return cls(
            codec=context.name,
            codec_tag=_tag_of(context),
            extradata=bytes(context.extradata or b""),
            size_hw=(context.height, context.width),
            pix_fmt=context.pix_fmt,
            time_base=Fraction(stream.time_base),
            rate=stream.average_rate or stream.guessed_rate or None,
            colours=tuple(int(getattr(context, name)) for name in _COLOURS),  # type: ignore[arg-type]
            display_matrix=display_matrix,
            counted=counted,
        )

    @property
    def orientation(self) -> Orientation:
        """How the pictures are turned; not at all for a matrix that no right angles make."""
        if not self.display_matrix:
            return Orientation()
        matrix = np.frombuffer(self.display_matrix, np.int32)
        return Orientation.from_matrix(matrix) or Orientation()

    def open_decoder(self) -> StreamDecoder:
        """A decoder on one thread: exact on damaged streams, and without delay.

        Raises MediaError if this build of FFmpeg has none for it.
        """
        try:
            context = av.CodecContext.create(self.codec, "r")
        except UnknownCodecError as error:
            raise MediaError(f"no decoder for {self.codec!r} here") from error
        if not isinstance(context, VideoCodecContext):
            raise MediaError(f"{self.codec!r} is no video codec")
        try:
            self._set_up(context)
            context.open()
        except (av.FFmpegError, ValueError) as error:
            raise MediaError(f"the decoder of {self.codec!r} does not open: {error}") from error
        return StreamDecoder(context, self.display_matrix)

    def _set_up(self, context: VideoCodecContext) -> None:
        if self.extradata:
            # Decoders read on behind it, and PyAV puts nothing there: first zeros, which stay there when
            # the second call makes it shorter.
            context.extradata = self.extradata + bytes(_PADDING_BYTES)
            context.extradata = self.extradata
        if min(self.size_hw) > 0:
            context.height, context.width = self.size_hw
        if self.pix_fmt:
            context.pix_fmt = self.pix_fmt
        tag = self.codec_tag.to_bytes(4, "little")
        if self.codec_tag and tag.isascii():  # PyAV takes no other
            context.codec_tag = tag.decode()
        for name, value in zip(_COLOURS, self.colours, strict=True):
            setattr(context, name, value)
        context.thread_count = 1

    def to_json(self) -> dict[str, Any]:
        """Plain values for the log."""
        plain = asdict(self)
        plain["extradata"] = self.extradata.hex()
        plain["display_matrix"] = self.display_matrix.hex()
        plain["time_base"] = str(self.time_base)
        plain["rate"] = str(self.rate) if self.rate else None
        return plain

    @classmethod
    def from_json(cls, raw: Any) -> StreamParameters:
        """Raises FormatError for anything that `to_json` does not write."""
        expect(isinstance(raw, dict), "stream must be an object")
        extradata = text(raw, "extradata", 2 * MOST_EXTRADATA_BYTES)
        size = raw.get("size_hw")
        colours = raw.get("colours")
        expect(isinstance(size, list) and len(size) == 2, "size_hw must be two numbers")
        expect(isinstance(colours, list) and len(colours) == 4, "colours must be four numbers")
        return cls(
            codec=text(raw, "codec", 64),
            codec_tag=bounded_int(raw.get("codec_tag"), "codec_tag", 0, 2**32 - 1),
            extradata=_bytes(extradata, "extradata"),
            size_hw=tuple(bounded_int(s, "size_hw", 0, MOST_PIXELS_A_SIDE) for s in size),  # type: ignore[arg-type]
            pix_fmt=_pixel_format(raw),
            time_base=_fraction(text(raw, "time_base", 64)),
            rate=None if raw.get("rate") is None else _fraction(text(raw, "rate", 64)),
            colours=tuple(bounded_int(c, "colours", 0, 255) for c in colours),  # type: ignore[arg-type]
            display_matrix=_display_matrix(raw),
            counted=raw.get("counted") is True,
        )


class StreamDecoder:
    """A decoder whose frames are to be turned as the container said, which it cannot know by itself."""

    def __init__(self, context: VideoCodecContext, display_matrix: bytes) -> None:
        self._context, self._matrix = context, display_matrix

    def decode(self, packet: Packet | None) -> list[VideoFrame]:
        """The frames that a packet completes; None for those still held back. Raises as PyAV does."""
        if packet is not None and self._matrix:
            side = PacketSideData(_DISPLAY_MATRIX, len(self._matrix))  # type: ignore[call-arg]
            side.update(self._matrix)
            packet.set_sidedata(side)
        return self._context.decode(packet)


def matrix_of(path: str, stream_index: int) -> bytes:
    """The display matrix of a file's first picture, empty if it has none or cannot be told.

    PyAV tells it of frames alone, and those of the container's own decoder.
    """
    try:
        with av.open(path, metadata_errors="replace") as container:
            for frame in container.decode(container.streams[stream_index]):
                matrix: Any = cast(VideoFrame, frame).side_data.get("DISPLAYMATRIX")
                return b"" if matrix is None else bytes(memoryview(matrix))[:_MATRIX_BYTES]
    except (av.FFmpegError, OSError, ValueError, IndexError):
        pass
    return b""


def _display_matrix(raw: dict[str, Any]) -> bytes:
    given = raw.get("display_matrix")
    if given is None:
        return b""
    found = _bytes(text(raw, "display_matrix", 2 * _MATRIX_BYTES), "display_matrix")
    expect(len(found) in (0, _MATRIX_BYTES), "display_matrix must be nine numbers")
    return found


def _bytes(given: str, name: str) -> bytes:
    try:
        return bytes.fromhex(given)
    except ValueError as error:
        raise FormatError(f"{name} must be hexadecimal") from error


def _tag_of(context: VideoCodecContext) -> int:
    """The container's tag as a number; 0 for one that is not ASCII, which PyAV does not give."""
    try:
        tag: str | int = context.codec_tag
    except UnicodeDecodeError:
        return 0
    return tag if isinstance(tag, int) else int.from_bytes(tag.encode("latin-1")[:4], "little")


def _pixel_format(raw: dict[str, Any]) -> str | None:
    if raw.get("pix_fmt") is None:
        return None
    name = text(raw, "pix_fmt", 64)
    try:
        av.VideoFormat(name)
    except ValueError as error:
        raise FormatError(f"pix_fmt {name!r} is unknown") from error
    return name


def _fraction(given: str) -> Fraction:
    try:
        value = Fraction(given)
    except (ValueError, ZeroDivisionError) as error:
        raise FormatError(f"{given!r} is no fraction") from error
    expect(value > 0, f"{given!r} must be positive")
    expect(max(value.numerator, value.denominator) < 2**31, f"{given!r} is out of range")
    return value
