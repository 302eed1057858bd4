"""Containers and codecs as PyAV has them: opening a file, choosing its video stream, decoding a packet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
from av.codec import Codec
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from pipeline.errors import MediaError, SourceNotFoundError

IMAGE_TIME_BASE = Fraction(1, 30)
_NETWORK_TIMEOUTS_S = (10.0, 30.0)  # to open, to read
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip")
_TEXT_FORMATS = ("tty",)  # FFmpeg draws text files as pictures of a terminal
_MOST_NOTES = 20
DEVICE_LAYOUTS = ("nv12", "p010le", "p016le")  # that PyAV gives as tensors
# The device's first context, which PyTorch uses too; as it is current already; one of its own, which takes
# memory a source, and whose frames nobody else can read. FFmpeg refuses the first where somebody else has
# made it with other flags.
_OWN_CONTEXT: dict[str, object] = {"primary_ctx": "0"}
_CUDA_CONTEXTS = ({"primary_ctx": "1"}, {"primary_ctx": "0", "current_ctx": "1"}, _OWN_CONTEXT)


@dataclass(frozen=True)
class Acceleration:
    """Decoding on a device.

    Attributes:
        kind: of the device, by FFmpeg's name, such as "cuda".
        keep: leave the frames there, where they can be worked on; else they come into memory.
    """

    kind: str
    keep: bool = False

    def ways(self) -> Iterator[HWAccel]:
        """The device, as it is best used first."""
        for options in _CUDA_CONTEXTS if self.kind == "cuda" else ({},):
            if "current_ctx" in options:
                if not self.keep:  # in this process nobody else works on the device
                    continue
                _make_context_current()
            yield HWAccel(
                self.kind, allow_software_fallback=True, options=dict(options),
                is_hw_owned=self.keep and options is not _OWN_CONTEXT,
            )  # fmt: skip


def _make_context_current() -> None:
    """Make PyTorch's context the calling thread's."""
    import torch  # who keeps frames on a device has it

    with suppress(RuntimeError, AssertionError):  # no device: FFmpeg will say so
        # Not the whole device: another thread may be capturing a graph.
        torch.cuda.current_stream().synchronize()


@dataclass
class Tally:
    """What went wrong on the way, of the whole stream so far.

    Attributes:
        undecodable_packets: packets (for images, files) that could not be decoded.
        corrupt_frames: frames the decoder marked as damaged.
        interrupted: `stop` said so.
        notes: lines for the user; beyond twenty they are only counted.
    """

    undecodable_packets: int = 0
    corrupt_frames: int = 0
    interrupted: bool = False
    notes: list[str] = field(default_factory=list)
    _left_out: int = 0

    def note(self, line: str) -> None:
        """Adds a line once."""
        if line in self.notes:
            return
        if len(self.notes) < _MOST_NOTES:
            self.notes.append(line)
        else:
            self._left_out += 1

    def all_notes(self) -> tuple[str, ...]:
        """The notes, with a last line that counts those left out."""
        more = (f"and {self._left_out} more such notes",) if self._left_out else ()
        return (*self.notes, *more)

    def save(self) -> dict[str, Any]:
        """What it has come to, for `restore`; JSON can hold it."""
        return {**vars(self), "notes": list(self.notes)}

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on where another tally of the same stream was. Raises KeyError for what `save` never gave."""
        vars(self).update({name: saved[name] for name in vars(self)})


@dataclass(frozen=True)
class MediaFacts:
    """What the container says of the stream, in the terms of `StreamInfo`."""

    time_base: Fraction
    average_rate: Fraction | None
    frame_count: int | None
    coded_hw: tuple[int, int]
    details: dict[str, Any]
    frame_names: tuple[str, ...] | None = None


def open_video(uri: str, hwaccel: Acceleration | None) -> tuple[InputContainer, str]:
    """Opens a file or URL to be decoded on a device; to be decoded on the cores where there is none.

    Args:
        hwaccel: the device; None for the cores.

    Returns the container, and why the device cannot be used; nothing if it can or is not asked for.

    Raises as `open_media`.
    """
    if hwaccel is None:
        return open_media(uri), ""
    why = ""
    for device in hwaccel.ways():
        try:
            return open_media(uri, device), ""
        except MediaError as error:
            why = reason_of(error.__cause__ or error)
    # It may be the source that is at fault.
    return open_media(uri), f"cannot be used here: no device or driver ({why})"


def decodes_on(stream: VideoStream, hwaccel: str) -> bool:
    """Whether the frame that a stream has just given came from a device."""
    context = stream.codec_context
    formats = {
        config.format.name
        for config in context.codec.hardware_configs
        if config.format is not None and config.device_type.name == hwaccel
    }
    return context.is_hwaccel and context.pix_fmt in formats


def hardware_devices() -> list[str]:
    """Kinds of devices that this FFmpeg decodes on, by its names."""
    configs = Codec("h264", "r").hardware_configs
    return sorted({config.device_type.name for config in configs if config.is_supported})


def open_media(uri: str, hwaccel: HWAccel | None = None) -> InputContainer:
    """Opens a file or URL for reading.

    Args:
        hwaccel: a device to decode on what it can.

    Raises:
        SourceNotFoundError: there is no such file.
        MediaError: it is not media, or cannot be read.
    """
    remote = "://" in uri and not os.path.exists(uri)
    # Without these, a colon in a name is taken for a protocol, and a % for a numbered series.
    name, options = uri if remote else f"file:{uri}", {"pattern_type": "none"}
    timeout = _NETWORK_TIMEOUTS_S if remote else None
    try:
        container = av.open(
            name, container_options=options, metadata_errors="replace", timeout=timeout,
            hwaccel=hwaccel,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise SourceNotFoundError(f"{uri}: no such file") from error
    except (av.FFmpegError, OSError) as error:
        raise MediaError(f"{uri}: {_why_not_media(uri, error, remote)}") from error
    if container.format.name in _TEXT_FORMATS:
        container.close()
        raise MediaError(f"{uri}: is a text file; expected a video or an image")
    return container


def choose_stream(container: InputContainer, uri: str, tally: Tally) -> VideoStream:
    """The video stream that the `ffmpeg` command would take, with a note if there are several.

    Raises:
        MediaError: there is none that can be decoded.
    """
    videos = list(container.streams.video)
    known = [stream for stream in videos if stream.codec_context is not None]
    if not known:
        held = ", ".join(sorted({stream.type for stream in container.streams}))
        what = f"only {held}" if held else "no stream at all"
        if videos:
            what = "video in a format that cannot be decoded"
        raise MediaError(f"{uri}: holds {what}; expected a video stream")
    chosen = max(known, key=_stream_score)
    films = [stream for stream in known if not stream.disposition & Disposition.attached_pic]
    if len(films) > 1:
        size = f"{chosen.codec_context.width}x{chosen.codec_context.height}"
        tally.note(f"{len(films)} video streams: stream {chosen.index} ({size}) was taken")
    return chosen


def set_threads(stream: VideoStream, threads: int) -> None:
    """Sets the number of decoding threads, 0 for one a core; before the first packet.

    One thread is exact on damaged files and costs the least: frame threading takes a tenth more.
    """
    stream.codec_context.thread_count = threads
    if threads != 1:
        stream.codec_context.thread_type = "AUTO"


def decode_packet(
    stream: VideoStream, packet: Packet | None, tally: Tally, on_device: bool = False
) -> list[VideoFrame]:
    """The frames a packet completes, none if it is damaged; None asks for those still held back.

    Raises MediaError if `on_device` and it is not the packet that is at fault.
    """
    try:
        return [
            frame if stays_on_device(frame) else in_memory(frame) for frame in stream.decode(packet)
        ]
    except av.EOFError:
        return []
    except av.FFmpegError as error:
        if on_device and isinstance(error, (av.error.ExternalError, av.error.MemoryError)):
            raise MediaError(
                f"the device failed to decode ({reason_of(error)}): try without --hwaccel"
            ) from error
        # Also while draining: the error is that of a packet sent before.
        tally.undecodable_packets += 1
        return []


def stays_on_device(frame: VideoFrame) -> bool:
    """Whether a frame lies on a device, in a layout that can be worked on there."""
    return frame.sw_format is not None and frame.sw_format.name in DEVICE_LAYOUTS


def in_memory(frame: VideoFrame) -> VideoFrame:
    """A frame that may lie on a device, brought from there as it is."""
    return frame if frame.sw_format is None else frame.reformat(format=frame.sw_format.name)


def _stream_score(stream: VideoStream) -> tuple[bool, int, int]:
    """As ffmpeg's own choice of a stream: covers last, then the default one, then the largest."""
    shown = stream.disposition
    pixels = stream.codec_context.width * stream.codec_context.height
    film = not shown & Disposition.attached_pic
    return film, pixels + 5_000_000 * bool(shown & Disposition.default), -stream.index


def facts_of(container: InputContainer, stream: VideoStream) -> MediaFacts:
    codec = stream.codec_context
    rate = stream.average_rate or stream.guessed_rate or None
    time_base = stream.time_base or (1 / rate if rate else IMAGE_TIME_BASE)
    details: dict[str, Any] = {
        "container": container.format.name,
        "codec": codec.name,
        "profile": codec.profile,
        "stream_index": stream.index,
        "streams": len(container.streams),
    }
    aspect = stream.sample_aspect_ratio
    if aspect and aspect != 1:
        details["sample_aspect_ratio"] = f"{aspect.numerator}:{aspect.denominator}"
    return MediaFacts(
        time_base=time_base,
        average_rate=rate,
        frame_count=_estimate_frames(container, stream, rate),
        coded_hw=(max(1, codec.height), max(1, codec.width)),
        details={key: value for key, value in details.items() if value is not None},
    )


def _estimate_frames(
    container: InputContainer, stream: VideoStream, rate: Fraction | None
) -> int | None:
    if stream.frames > 0:
        return stream.frames
    if stream.duration and stream.time_base:
        seconds = stream.duration * stream.time_base
    elif container.duration:
        seconds = Fraction(container.duration, av.time_base)
    else:
        return None
    return max(1, round(seconds * rate)) if rate and seconds > 0 else None


def _why_not_media(uri: str, error: Exception, remote: bool) -> str:
    if remote or isinstance(error, PermissionError):
        return f"cannot be opened: {reason_of(error)}; it must be there and readable"
    try:
        with open(uri, "rb") as file:
            head = file.read(12)
    except OSError:
        return f"cannot be read: {reason_of(error)}"
    if not head:
        return "is empty (0 bytes); expected a video or an image"
    if head[4:8] in _MP4_BOXES:
        return (
            "its index (moov) is missing or damaged, as after a recording that was cut off;"
            " expected a finished MP4: repair it first, for instance with untrunc"
        )
    return f"is not media that can be read ({reason_of(error)}); expected a video or an image"


def reason_of(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())
