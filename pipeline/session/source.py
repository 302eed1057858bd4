"""One recorded camera as a stream of frames for the segmenter: what live labelled, reset where live reset."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np

from pipeline.frames import EndOfStream, FrameBatch, FrameItem, Gap, LabelBatch, StreamInfo
from pipeline.planes import FrameFormat, PlaneConverter
from pipeline.session.labels import (
    LabelEntry,
    Matcher,
    Start,
    all_entries,
    find_start,
    warm_start,
)
from pipeline.session.memory import ReplaySegmenter
from pipeline.session.packets import DecodedFrame, KeyFrame, decode_from, key_frame_before
from pipeline.session.reader import CameraFiles, Session

ModelSize = Callable[[tuple[int, int]], tuple[int, int]]
WARM_SECONDS = 3.0  # of frames before the start, where no state was recorded that could be used


@dataclass(frozen=True)
class ReplayedFrame:
    """One frame of a replay with its labels.

    Attributes:
        camera: its name.
        seconds: session time at which it came.
        frame_index: as it was shown, or counted anew where nothing was.
        planes: uint8 [h * 3 // 2, w], I420, BT.601 limited range, at the model's size.
        labels: uint8 [h, w], as found now.
        size_hw: of the camera's picture in pixels.
        recorded: the label map that was shown; None if none was recorded.
        exact: with the same engine `labels` equals what was recorded.
        warming: before the time asked for: it only brings the memory there.
        captured_at: `time.time()` of its arrival when it was recorded.
        connection: of the camera, as recorded.
        reset: the memory was reset before it.
    """

    camera: str
    seconds: float
    frame_index: int
    planes: np.ndarray
    labels: np.ndarray
    size_hw: tuple[int, int]
    recorded: LabelEntry | None
    exact: bool
    warming: bool
    captured_at: float
    connection: int
    reset: bool


@dataclass(frozen=True)
class _Chosen:
    """A decoded frame that is to be labelled.

    Attributes:
        entry: its recorded label map, None if there is none.
        gap: how long it lasted, None if unknown, and why; None if none lies before the frame.
        exact: as of `ReplayedFrame`.
    """

    decoded: DecodedFrame
    entry: LabelEntry | None = None
    gap: tuple[float | None, str] | None = None
    exact: bool = False


@dataclass(frozen=True)
class _Next:
    """A frame on its way through the segmenter."""

    chosen: _Chosen
    index: int
    pixels: np.ndarray
    size_hw: tuple[int, int]
    reset: bool


class CameraSource:
    """The frames of one recorded camera from a time on, each labelled by `segmenter`.

    Where labels were recorded, exactly the frames that have one are labelled, and the memory is reset where
    it was. Otherwise all frames are, and gaps are what the times of arrival say.

    Args:
        states_fit: the recorded memories are of the network that labels now.

    Attributes:
        name: the camera's.
        lost: recorded label maps whose frames are not in the recording.
        unlabelled: frames that were not labelled when recorded, and so are not now.
    """

    def __init__(
        self,
        session: Session,
        camera: CameraFiles,
        segmenter: ReplaySegmenter,
        model_hw: ModelSize,
        start_seconds: float = 0.0,
        stop: Callable[[], bool] = lambda: False,
        states_fit: bool = True,
    ) -> None:
        self.name = camera.name
        self.lost = self.unlabelled = 0
        self._session, self._camera, self._segmenter = session, camera, segmenter
        self._model_hw, self._start_seconds, self._stop = model_hw, start_seconds, stop
        self._states_fit = states_fit
        self._waiting: deque[_Next] = deque()
        self._converter: PlaneConverter | None = None

    def frames(self) -> Iterator[ReplayedFrame]:
        """All of them, in order, through decoder and segmenter."""
        try:
            for batch in self._segmenter.labels(self._items()):
                if isinstance(batch, LabelBatch):
                    yield self._labelled(batch, self._waiting.popleft())
        finally:
            self._segmenter.forget(self._camera.name)

    def _labelled(self, batch: LabelBatch, waited: _Next) -> ReplayedFrame:
        entry, decoded = waited.chosen.entry, waited.chosen.decoded
        seconds = entry.seconds if entry else decoded.seconds
        return ReplayedFrame(
            camera=self._camera.name,
            seconds=seconds,
            frame_index=waited.index,
            planes=waited.pixels,
            labels=batch.labels[0],
            size_hw=waited.size_hw,
            recorded=entry,
            exact=waited.chosen.exact and not self._segmenter.refused(self.name),
            warming=0 < self._start_seconds > seconds + 1e-6,
            captured_at=entry.record.wall if entry else decoded.wall,
            connection=decoded.segment.head.connection,
            reset=waited.reset,
        )

    def _items(self) -> Iterator[FrameItem]:
        stream: StreamInfo | None = None
        count = 0
        for chosen in self._as_recorded() if self._camera.labels else self._every():
            if self._stop():
                break
            pixels = self._convert(chosen.decoded)
            if pixels is None:
                self.lost += chosen.entry is not None
                continue
            before, stream = stream, self._stream()
            index = chosen.entry.record.frame_index if chosen.entry else count
            gap = chosen.gap
            if chosen.entry is None and before is not None and before.size_hw != stream.size_hw:
                gap = (None, "the picture changed its size")
            if gap is not None:
                yield Gap(stream, index, *gap)
            reset = chosen.entry.record.reset if chosen.entry else gap is not None
            self._waiting.append(_Next(chosen, index, pixels, stream.size_hw, reset))
            yield FrameBatch(stream, index, (index,), pixels[None], (time.monotonic(),))
            count += 1
        if stream is not None:
            yield EndOfStream(stream, count)

    def _as_recorded(self) -> Iterator[_Chosen]:
        """The frames that were labelled; what to do before each, and whether its labels will be equal."""
        session, camera, name = self._session, self._camera, self._camera.name
        if self._states_fit:
            start = find_start(session, camera, self._start_seconds)
        else:
            start = warm_start(session, camera, self._start_seconds - WARM_SECONDS)
        matcher = Matcher(all_entries(session, camera, start))
        exact = start.exact if start else False
        if start is not None and start.state is not None:
            self._segmenter.restore(name, start.state, start.steps)
        lost, broken = 0, -1
        for decoded in decode_from(session, camera, self._key_before(start)):
            broken = decoded.broken if broken < 0 else broken
            entry = matcher.match(decoded)
            if entry is None:
                self.unlabelled += 1
                if matcher.over:
                    break
                continue
            if entry.record.reset:
                exact = True
            elif matcher.lost > lost or decoded.broken > broken or entry.follows_damage:
                exact = False  # the memory has not seen what it had seen
            lost, broken = matcher.lost, decoded.broken
            gap = (None, "as recorded") if entry.record.reset else None
            yield _Chosen(decoded, entry, gap, exact)
            if not exact and self._states_fit and (state := entry.state()) is not None:
                assert entry.checkpoint is not None
                self._segmenter.restore(name, state, entry.checkpoint.steps)
                exact = True
        self.lost += matcher.finish()

    def _every(self) -> Iterator[_Chosen]:
        """All frames, from a little before the time asked for."""
        before: DecodedFrame | None = None
        for decoded in decode_from(self._session, self._camera, self._key_at_time()):
            gap = decoded.gap_after(before) if before is not None else None
            before = decoded
            yield _Chosen(decoded, None, gap)

    def _key_before(self, start: Start | None) -> KeyFrame | None:
        if start is None or self._start_seconds <= 0:
            return None
        return key_frame_before(
            self._session, self._camera, start.entry.record.connection, start.entry.seconds
        )

    def _key_at_time(self) -> KeyFrame | None:
        wanted = self._start_seconds - WARM_SECONDS
        if wanted <= 0:
            return None
        began = [s for s in self._camera.packets
                 if s.head.stream and self._session.seconds(s, s.head.began) <= wanted]  # fmt: skip
        if not began:
            return None
        return key_frame_before(self._session, self._camera, began[-1].head.connection, wanted)

    def _convert(self, decoded: DecodedFrame) -> np.ndarray | None:
        """The frame at the model's size; None if its pixels cannot be converted, as live."""
        frame = decoded.frame
        try:
            if self._converter is None or self._converter.format != FrameFormat.of(frame):
                self._converter = PlaneConverter(frame)
            height, width = self._model_hw(self._converter.size_hw)
            pixels = np.empty((height * 3 // 2, width), np.uint8)
            self._converter.write_pixels(frame, pixels)
        except (av.FFmpegError, ValueError):
            return None
        return pixels

    def _stream(self) -> StreamInfo:
        """The camera, with the size of the frame converted last."""
        assert self._converter is not None
        return StreamInfo(
            self._camera.name, str(self._session.folder), self._converter.size_hw, Fraction(1, 1),
            matrix=self._converter.matrix,
        )  # fmt: skip


def as_job_size(
    size_hw: tuple[int, int] | None, otherwise: Callable[[tuple[int, int]], tuple[int, int]]
) -> ModelSize:
    """The network's input size for a picture's size."""
    return otherwise if size_hw is None else lambda _: size_hw
