"""The first stage: a source becomes batches of frames at the model's size.

`Decoder` is a plain class that knows nothing of where it runs:

    with Decoder(source, model_hw=lambda size_hw: (360, 640)) as decoder:
        for item in decoder:  # FrameBatch and Gap, and at the end exactly one EndOfStream
            ...
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import av
import numpy as np
from av.video.frame import VideoFrame

from pipeline.closing import Closing
from pipeline.errors import MediaError
from pipeline.frames import (
    GROUP_FRAMES,
    EndOfStream,
    FrameBatch,
    FrameItem,
    Gap,
    Mark,
    Pictures,
    Pixels,
    StreamInfo,
)
from pipeline.media import Acceleration, stays_on_device
from pipeline.planes import FrameFormat, PlaneConverter
from pipeline.reader import ImageReader, VideoReader
from pipeline.seek import WINDOW_FRAMES
from pipeline.sources import Source

if TYPE_CHECKING:
    from pipeline.session.frames import SessionReader

Reader: TypeAlias = "VideoReader | ImageReader | SessionReader"
ModelSize = Callable[[tuple[int, int]], tuple[int, int]]


class Decoder(Closing):
    """Decodes one source, every frame exactly once, in presentation order.

    `pts` are the video stream's own, in its own time base; see `Timestamps` for what happens to
    those that are missing or do not increase. For a folder of images `pts` is the image's place in
    `StreamInfo.frame_names`, so a frame's name is `frame_names[pts]` even after an image that could
    not be decoded; `frame_index` counts decoded frames.

    Damaged packets are counted and decoding goes on after them, and so are images that cannot be
    decoded or converted. A change of size ends the chunk, is announced by a `Gap`, and goes on with
    a new `StreamInfo`. A clock that starts anew, as in recordings joined end to end, ends the chunk
    and is announced by a `Gap` too. Holes in the time stamps are not: a time-lapse is nothing else,
    and would have one before every frame.
    """

    def __init__(
        self,
        source: Source,
        *,
        model_hw: ModelSize,
        chunk: int = 8,
        pictures: bool = False,
        threads: int = 1,
        stop: Callable[[], bool] | None = None,
        batch_bytes: int | None = None,
        mark_seconds: float | None = None,
        start: Mark | None = None,
        hwaccel: str | None = None,
        keep_on_device: bool = False,
    ) -> None:
        """
        Args:
            source: what to decode.
            model_hw: gives the network's height and width, multiples of 8, for a displayed size.
            chunk: frames a batch; only the last one before a `Gap`, a change of format or the end
                has fewer, or all of them by `batch_bytes`.
            pictures: whether batches carry the frames at full size too.
            threads: decoding threads; 0 for as many as there are cores. More than one is faster by
                the clock, costs about a tenth more CPU and buffers a frame a thread.
            stop: asked once a packet; when it says True, what is decoded is sent and the stream
                ends with `interrupted`. All packets read so far are decoded, so between the last
                frames B-frames may be missing that come later in the file.
            batch_bytes: upper bound of a batch's `pixels` and `pictures` together; batches have
                fewer frames to stay under it, but never less than one. None for no bound.
            mark_seconds: how often a batch brings a `Mark`, at the next multiple of `GROUP_FRAMES`,
                where batches end then; None for never.
            start: a mark of an earlier decoder of this source, to go on from: what comes is what
                that one gave after it.
            hwaccel: kind of device to decode videos on, such as "cuda", where it is there and knows their
                codec; None for the cores.
            keep_on_device: leave what was decoded there on it, for a network that runs there in this process.
        """
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}")
        if batch_bytes is not None and batch_bytes < 1:
            raise ValueError(f"batch_bytes must be at least 1 or None, got {batch_bytes}")
        if threads < 0:
            raise ValueError(f"threads must be 0 (one a core) or more, got {threads}")
        self._source, self._model_hw = source, model_hw
        self._chunk_frames, self._pictures = chunk, pictures
        self._threads, self._stop, self._batch_bytes = threads, stop, batch_bytes
        self._mark_seconds, self._start = mark_seconds, start
        self._hwaccel = Acceleration(hwaccel, keep_on_device) if hwaccel else None
        self._reader: Reader | None = None

    def close(self) -> None:
        """Closes the source; not while another thread iterates: that is what `stop` is for."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def __iter__(self) -> Generator[FrameItem, None, None]:
        """Decodes from the start, or the mark. Closing the generator closes the source.

        Raises:
            SourceNotFoundError: the file is not there.
            MediaError: the source cannot be opened, or not one frame of it can be decoded.
        """
        self.close()
        reader = self._reader = self._open()
        try:
            yield from self._items(reader)
        finally:
            reader.close()
            if self._reader is reader:  # frees the codec and its threads too
                self._reader = None

    def _open(self) -> Reader:
        if self._source.kind == "images":
            return ImageReader(self._source, self._threads, self._stop)
        if self._source.kind == "session":
            from pipeline.session.frames import SessionReader  # few runs need it

            return SessionReader(self._source, self._stop)
        return VideoReader(self._source.uri, self._threads, self._stop, self._hwaccel)

    def _items(self, reader: Reader) -> Iterator[FrameItem]:
        chunk: _Chunk | None = None
        count, size_hw, restarts = self._go_on(reader)
        marker = _Marker(reader, self._mark_seconds)
        for frame, pts in reader:
            anew = reader.clock.restarts > restarts
            into = chunk
            if into is None or anew or not into.fits(frame):
                into = self._start_chunk(reader, frame, count)
            try:
                into.add(frame, pts)
            except MediaError as error:
                if not isinstance(reader, ImageReader):
                    raise
                reader.leave_out(pts, str(error).removeprefix(f"{self._source.uri}: "))
                continue
            if into is not chunk:
                if chunk is not None:
                    yield from chunk.take()
                if size_hw is not None:
                    yield from _gap(size_hw, into.stream, count, reader.gap_reason if anew else "")
            chunk, size_hw, restarts = into, into.stream.size_hw, reader.clock.restarts
            count += 1
            marker.pass_frame(frame, count)
            if chunk.full or marker.at_boundary(count):
                yield from chunk.take(marker.mark(count, size_hw))
        if chunk is not None:
            yield from chunk.take()
        yield self._end(reader, chunk, count)

    def _go_on(self, reader: Reader) -> tuple[int, tuple[int, int] | None, int]:
        """Bring the reader to the start; frames before it, size of the last, restarts of the clock."""
        if self._start is None:
            return 0, None, 0
        saved = self._start.decoder
        reader.go_on(self._start.frame_index, saved)
        height, width = saved["size_hw"]
        return self._start.frame_index, (height, width), saved["clock"]["restarts"]

    def _start_chunk(self, reader: Reader, frame: VideoFrame, frame_index: int) -> _Chunk:
        converter = _converter_for(frame, reader.facts.details.get("codec", ""))
        stream = _describe(self._source, reader, frame, converter)
        height, width = self._model_hw(converter.size_hw)
        if height < 8 or width < 8 or height % 8 or width % 8:
            raise ValueError(
                f"the model's height and width must be multiples of 8, got {height}x{width}"
                f" for frames of {converter.size_hw[0]}x{converter.size_hw[1]}"
            )
        return _Chunk(
            stream,
            converter,
            frame_index=frame_index,
            frames=self._frames_a_batch((height, width), converter.size_hw),
            model_hw=(height, width),
            pictures=self._pictures,
        )

    def _frames_a_batch(self, model_hw: tuple[int, int], size_hw: tuple[int, int]) -> int:
        if self._batch_bytes is None:
            return self._chunk_frames
        frame_bytes = math.prod(model_hw) * 3 // 2
        if self._pictures:
            rows, columns = size_hw
            frame_bytes += rows * columns + 2 * ((rows + 1) // 2) * ((columns + 1) // 2)
        return min(self._chunk_frames, max(1, self._batch_bytes // frame_bytes))

    def _end(self, reader: Reader, chunk: _Chunk | None, frame_count: int) -> EndOfStream:
        tally = reader.tally
        if frame_count == 0 and not tally.interrupted:
            raise MediaError(f"{self._source.uri}: {reader.why_no_frame()}")
        return EndOfStream(
            chunk.stream if chunk else _describe(self._source, reader),
            frame_count,
            corrupt_frames=tally.corrupt_frames,
            undecodable_packets=tally.undecodable_packets,
            repaired_pts=reader.clock.repaired,
            notes=(*tally.all_notes(), *reader.clock.notes),
            interrupted=tally.interrupted,
        )


class _Marker:
    """Makes a mark now and then, with what the reader needs to come back to it."""

    def __init__(self, reader: Reader, every_seconds: float | None) -> None:
        self._reader, self._every_seconds = reader, every_seconds
        self._last = time.monotonic()
        self._due = False

    def at_boundary(self, count: int) -> bool:
        """Whether a batch must end behind the first `count` frames."""
        return self._every_seconds is not None and count % GROUP_FRAMES == 0

    def pass_frame(self, frame: VideoFrame, count: int) -> None:
        """See the frame given last, the `count`th of the stream."""
        if self._every_seconds is None:
            return
        place = count % GROUP_FRAMES or GROUP_FRAMES
        if place == GROUP_FRAMES - WINDOW_FRAMES + 1:
            self._due = time.monotonic() - self._last >= self._every_seconds
        if self._due and place > GROUP_FRAMES - WINDOW_FRAMES:
            self._reader.remember(frame)

    def mark(self, count: int, size_hw: tuple[int, int]) -> Mark | None:
        """A mark behind the first `count` frames, if one is due there."""
        # What comes after the user's stop may lack frames that come later in the file.
        if not self._due or not self.at_boundary(count) or self._reader.tally.interrupted:
            return None
        self._due, self._last = False, time.monotonic()
        return Mark(count, {**self._reader.save(), "size_hw": list(size_hw)})


class _Chunk:
    """Frames of one format on their way to becoming a `FrameBatch`."""

    def __init__(
        self,
        stream: StreamInfo,
        converter: PlaneConverter,
        *,
        frame_index: int,
        frames: int,
        model_hw: tuple[int, int],
        pictures: bool,
    ) -> None:
        self.stream = stream
        self._converter, self._frame_index = converter, frame_index
        self._frames, self._model_hw, self._with_pictures = frames, model_hw, pictures
        self._begin()

    @property
    def full(self) -> bool:
        return len(self._pts) == self._frames

    def fits(self, frame: VideoFrame) -> bool:
        """Whether a frame is of the same format as those of this chunk."""
        return FrameFormat.of(frame) == self._converter.format

    def add(self, frame: VideoFrame, pts: int) -> None:
        place = len(self._pts)
        if place == 0:
            self._allocate()
        try:
            self._converter.write_pixels(frame, self._pixels[place])
            if self._with_pictures:
                y, u, v = self._planes
                self._converter.write_pictures(frame, (y[place], u[place], v[place]))
        except av.FFmpegError as error:
            layout = self._converter.format.pixel_format
            raise MediaError(
                f"{self.stream.source}: frames of the pixel format {layout} cannot be"
                f" converted ({error.strerror}); expected YUV, RGB or grey"
            ) from error
        self._pts.append(pts)
        self._decoded_at.append(time.monotonic())

    def take(self, mark: Mark | None = None) -> Iterator[FrameBatch]:
        """The frames added so far as a batch, if there are any; begins anew after them."""
        frames = len(self._pts)
        if frames == 0:
            return
        pictures = Pictures(*(plane[:frames] for plane in self._planes)) if self._planes else None
        yield FrameBatch(
            self.stream,
            self._frame_index,
            tuple(self._pts),
            self._pixels[:frames],
            tuple(self._decoded_at),
            pictures,
            mark,
        )
        self._frame_index += frames
        self._begin()

    def _begin(self) -> None:
        self._pts: list[int] = []
        self._decoded_at: list[float] = []
        self._pixels: Pixels = np.empty((0, 0, 0), np.uint8)
        self._planes: tuple[np.ndarray, ...] = ()

    def _allocate(self) -> None:
        self._pixels = self._converter.room(self._frames, self._model_hw)
        if self._with_pictures:
            rows, columns = self.stream.size_hw
            chroma = (self._frames, (rows + 1) // 2, (columns + 1) // 2)
            shapes = ((self._frames, rows, columns), chroma, chroma)
            self._planes = tuple(np.empty(shape, np.uint8) for shape in shapes)


def _converter_for(frame: VideoFrame, codec: str) -> PlaneConverter:
    """What writes the planes of frames such as this one, where they lie."""
    if not stays_on_device(frame):
        return PlaneConverter(frame)
    # It takes PyTorch, which few decoders need.
    from pipeline.device_planes import DevicePlaneConverter

    return DevicePlaneConverter(frame, codec)


def _describe(
    source: Source,
    reader: Reader,
    frame: VideoFrame | None = None,
    converter: PlaneConverter | None = None,
) -> StreamInfo:
    facts = reader.facts
    details = dict(facts.details)
    if frame is not None and converter is not None:
        details |= _frame_details(frame, converter)
        if converter.odd_rotation:
            reader.tally.note(
                f"rotation by {frame.rotation} degrees is not applied: no multiple of 90"
            )
    return StreamInfo(
        stream_id=source.stream_id,
        source=source.uri,
        size_hw=converter.size_hw if converter else facts.coded_hw,
        time_base=facts.time_base,
        average_rate=facts.average_rate,
        frame_count=facts.frame_count,
        matrix=converter.matrix if converter else "bt709",
        frame_names=facts.frame_names,
        rotation_degrees=converter.orientation.degrees if converter else 0,
        details=details,
    )


def _frame_details(frame: VideoFrame, converter: PlaneConverter) -> dict[str, Any]:
    found: dict[str, Any] = {"pixel_format": converter.format.pixel_format}
    if converter.orientation.mirrored:
        found["mirrored"] = True
    if frame.interlaced_frame:
        found["interlaced"] = True
    return found


def _gap(old: tuple[int, int], after: StreamInfo, frame_index: int, why: str) -> Iterator[Gap]:
    """What is between two chunks, if it is more than another pixel format.

    Args:
        why: the reader's word for it, if it has one.
    """
    new = after.size_hw
    if old != new:
        reason = f"size changed from {old[1]}x{old[0]} to {new[1]}x{new[0]}"
        yield Gap(after, frame_index, None, reason)
    elif why:
        yield Gap(after, frame_index, None, why)
