"""Frames out of files: opening, choosing the video stream, and decoding on past what is damaged."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from pipeline.errors import MediaError, SourceNotFoundError
from pipeline.sources import Source
from pipeline.timestamps import LOOK_AHEAD, Timestamps

IMAGE_TIME_BASE = Fraction(1, 30)
_NETWORK_TIMEOUTS_S = (10.0, 30.0)  # to open, to read
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip")
_TEXT_FORMATS = ("tty",)  # FFmpeg draws text files as pictures of a terminal
_MOST_NOTES = 20


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


@dataclass(frozen=True)
class MediaFacts:
    """What the container says of the stream, in the terms of `StreamInfo`."""

    time_base: Fraction
    average_rate: Fraction | None
    frame_count: int | None
    coded_hw: tuple[int, int]
    details: dict[str, Any]
    frame_names: tuple[str, ...] | None = None


class VideoReader:
    """The frames of a video file or URL in presentation order, with their time stamps.

    Attributes:
        facts: what the container says.
        tally: what went wrong so far.
        clock: makes the time stamps, counts those it made up, and the times it was started anew up
            to the frame given last.
    """

    def __init__(self, uri: str, threads: int, stop: Callable[[], bool] | None) -> None:
        """Opens the file.

        Args:
            uri: path or URL.
            threads: decoding threads; 0 for as many as there are cores.
            stop: asked once a packet whether to stop reading; the frames that the decoder still
                holds are given.

        Raises:
            SourceNotFoundError: the file is not there.
            MediaError: it cannot be opened, or holds no video that can be decoded.
        """
        self.tally = Tally()
        self._uri, self._threads, self._stop = uri, threads, stop
        self._closed = False
        self._container = open_media(uri)
        try:
            self._stream = choose_stream(self._container, uri, self.tally)
            self.facts = _facts_of(self._container, self._stream)
        except BaseException:
            self._container.close()
            raise
        self.clock = Timestamps(self.facts.time_base, self.facts.average_rate)

    def __iter__(self) -> Iterator[tuple[VideoFrame, int]]:
        waiting: deque[VideoFrame] = deque()
        for frame in self._frames():
            waiting.append(frame)
            while waiting and (
                len(waiting) > LOOK_AHEAD or not self.clock.jumps_back(waiting[0].pts)
            ):
                yield self._stamped(waiting)
        while waiting:
            yield self._stamped(waiting)

    def _frames(self) -> Iterator[VideoFrame]:
        set_threads(self._stream, self._threads)
        sent = given = 0
        for packet in self._packets():
            frames = decode_packet(self._stream, packet, self.tally)
            sent += packet is not None and packet.size > 0 and not packet.is_discard
            given += len(frames)
            yield from frames
        missing = sent - given - self.tally.undecodable_packets
        if self._threads != 1 and missing > 0 and not self.tally.interrupted:
            yield from self._lost_while_draining(given)

    def close(self) -> None:
        """Closes the file and ends an iteration under way. May be called more than once."""
        self._closed = True
        self._container.close()

    def _packets(self) -> Iterator[Packet | None]:
        """The stream's packets, and what makes the decoder give the frames it still holds."""
        for other in self._container.streams:
            if other.index != self._stream.index:
                other.discard = Discard.all
        try:
            for packet in self._container.demux(self._stream):
                if self._stop is not None and self._stop():
                    self.tally.interrupted = True
                    break
                yield packet
                if self._closed:  # to read on would be to read from freed memory
                    self.tally.interrupted = True
                    return
            else:
                return  # the last packet is one that makes the decoder give all it holds
        except av.FFmpegError as error:
            self.tally.note(f"reading stopped before the end: {_reason(error)}")
        yield None

    def _stamped(self, waiting: deque[VideoFrame]) -> tuple[VideoFrame, int]:
        """The first of the waiting frames, and its stamp."""
        frame = waiting.popleft()
        self.tally.corrupt_frames += frame.is_corrupt
        after = [later.pts for later in waiting]
        return frame, self.clock.stamp(frame.pts, frame.dts, frame.duration, after)

    def _lost_while_draining(self, given: int) -> list[VideoFrame]:
        """The frames that decoding with one thread gives beyond the first `given`.

        With frame threading a damaged packet at the very end makes PyAV drop the frames that other
        threads had finished after it; there is no way to ask for them again.
        """
        frames: list[VideoFrame] = []
        with open_media(self._uri) as container:
            stream = choose_stream(container, self._uri, Tally())
            set_threads(stream, 1)
            count = 0
            try:
                for packet in container.demux(stream):
                    for frame in decode_packet(stream, packet, Tally()):
                        count += 1
                        if count > given:
                            frames.append(frame)
            except av.FFmpegError:
                frames.extend(decode_packet(stream, None, Tally()))
        return frames


class ImageReader:
    """Images as a stream: the first frame of each file, `pts` its place in the list.

    Attributes: as of `VideoReader`. A file that cannot be decoded leaves its `pts` out, so that
    `frame_names[pts]` is a frame's name whatever is missing.
    """

    def __init__(self, source: Source, threads: int, stop: Callable[[], bool] | None) -> None:
        self.tally = Tally()
        self.clock = Timestamps(IMAGE_TIME_BASE, 1 / IMAGE_TIME_BASE)
        self._files, self._threads, self._stop = source.files, threads, stop
        self.facts = MediaFacts(
            time_base=IMAGE_TIME_BASE,
            average_rate=1 / IMAGE_TIME_BASE,
            frame_count=len(source.files),
            coded_hw=(1, 1),
            details={"container": "images", "codec": Path(source.files[0]).suffix[1:].lower()},
            frame_names=tuple(Path(file).stem for file in source.files),
        )

    def __iter__(self) -> Iterator[tuple[VideoFrame, int]]:
        for place, file in enumerate(self._files):
            if self._stop is not None and self._stop():
                self.tally.interrupted = True
                return
            frame = self._read(place, file)
            if frame is not None:
                self.tally.corrupt_frames += frame.is_corrupt
                yield frame, self.clock.stamp(place)

    def leave_out(self, place: int, reason: str) -> None:
        """Counts a file that gives no frame, with a note."""
        self.tally.undecodable_packets += 1
        self.tally.note(f"{os.path.basename(self._files[place])} was left out: {reason}")

    def close(self) -> None:
        """Nothing stays open between images."""

    def _read(self, place: int, file: str) -> VideoFrame | None:
        inside = Tally()
        try:
            with open_media(file) as container:
                stream = choose_stream(container, file, inside)
                set_threads(stream, self._threads)
                for packet in container.demux(stream):
                    for frame in decode_packet(stream, packet, inside):
                        return frame
            reason = "nothing in it can be decoded"
        except MediaError as error:
            reason = str(error).removeprefix(f"{file}: ")
        except (SourceNotFoundError, av.FFmpegError) as error:
            reason = _reason(error)
        self.leave_out(place, reason)
        return None


def open_media(uri: str) -> InputContainer:
    """Opens a file or URL for reading.

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
            name, container_options=options, metadata_errors="replace", timeout=timeout
        )
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


def decode_packet(stream: VideoStream, packet: Packet | None, tally: Tally) -> list[VideoFrame]:
    """The frames a packet completes, none if it is damaged; None asks for those still held back."""
    try:
        return stream.decode(packet)
    except av.EOFError:
        return []
    except av.FFmpegError:
        # Also while draining: the error is that of a packet sent before.
        tally.undecodable_packets += 1
        return []


def _stream_score(stream: VideoStream) -> tuple[bool, int, int]:
    """As ffmpeg's own choice of a stream: covers last, then the default one, then the largest."""
    shown = stream.disposition
    pixels = stream.codec_context.width * stream.codec_context.height
    film = not shown & Disposition.attached_pic
    return film, pixels + 5_000_000 * bool(shown & Disposition.default), -stream.index


def _facts_of(container: InputContainer, stream: VideoStream) -> MediaFacts:
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
        return f"cannot be opened: {_reason(error)}; it must be there and readable"
    try:
        with open(uri, "rb") as file:
            head = file.read(12)
    except OSError:
        return f"cannot be read: {_reason(error)}"
    if not head:
        return "is empty (0 bytes); expected a video or an image"
    if head[4:8] in _MP4_BOXES:
        return (
            "its index (moov) is missing or damaged, as after a recording that was cut off;"
            " expected a finished MP4: repair it first, for instance with untrunc"
        )
    return f"is not media that can be read ({_reason(error)}); expected a video or an image"


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())
