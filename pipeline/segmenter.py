"""The segmenter: frames of many streams in, label maps out, each stream with its own memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing, nullcontext
from dataclasses import replace
from threading import Lock

from pipeline.batch import Batcher, Request
from pipeline.engines import Engine, MakeEngine
from pipeline.engines.memory import device_bytes
from pipeline.errors import EngineError
from pipeline.frames import (
    EndOfStream,
    FrameBatch,
    FrameItem,
    Gap,
    LabelBatch,
    LabelItem,
    StreamState,
)
from pipeline.state import StateTable
from pipeline.work import Step, Stretch, stopwatch

# Engines of sizes that no stream has just now: a folder of photographs may have dozens.
KEPT_IDLE_ENGINES = 2
# A stream that has been alone for so long gets all threads. Between two files of many it is for a moment.
ALONE_SECONDS = 2.0


class Segmenter:
    """Labels the frames of any number of streams. `labels` may run in many threads, one a stream.

    Args:
        make_engine: makes the engine for an input size; called once for each size that occurs.
        window_seconds: how long a batch waits for other streams, where batches are faster at all.
        longest_gap_seconds: a gap in a stream up to this long keeps its memory.
        engines: engines of one size side by side; streams are spread over them. More than one pays on a
            CPU, where an engine has a few threads and streams need not meet.
        make_wide: makes an engine with the threads of all of them, and of the same labels, for a stream
            that has been the only one for `alone_seconds`; None for no such change.

    Attributes:
        device_lost: no engine will run in this process any more.
    """

    def __init__(
        self,
        make_engine: MakeEngine,
        window_seconds: float = 0.005,
        longest_gap_seconds: float = 1.0,
        engines: int = 1,
        make_wide: MakeEngine | None = None,
        alone_seconds: float = ALONE_SECONDS,
    ) -> None:
        if engines < 1:
            raise ValueError(f"engines must be at least 1, got {engines}")
        self._engines = engines
        self._make_wide, self._alone_seconds = make_wide, alone_seconds
        self._alone_since: float | None = None
        self._make_lane: Callable[[tuple[int, int]], _Lane] = lambda model_hw: _Lane(
            make_engine(model_hw), model_hw, window_seconds, longest_gap_seconds
        )
        self._lanes: dict[tuple[int, int], list[_Lane]] = {}
        self.device_lost = False
        self._lock = Lock()

    def _join(self, model_hw: tuple[int, int], stream_id: str) -> _Lane:
        """The lane of an input size with the fewest streams, and now with this one too."""
        with self._lock:
            lanes = self._lanes.pop(model_hw, [])
            self._lanes[model_hw] = lanes  # most recently joined last
            if len(lanes) < self._engines and all(lane.streams for lane in lanes):
                lanes.append(self._make_lane(model_hw))
            lane = min(lanes, key=lambda lane: len(lane.streams))
            lane.join(stream_id)
            idle = [size for size, old in self._lanes.items() if not any(x.streams for x in old)]
            for size in idle[: max(0, len(idle) - KEPT_IDLE_ENGINES)]:
                del self._lanes[size]
            return lane

    def _share(self, lane: _Lane) -> None:
        """Give a lane's stream the threads of all engines while it is alone, and else its own."""
        if self._make_wide is None:
            return
        now = time.monotonic()
        with self._lock:
            alone = sum(len(x.streams) for lanes in self._lanes.values() for x in lanes) == 1
            since = self._alone_since = (self._alone_since or now) if alone else None
        wide = since is not None and now - since > self._alone_seconds
        if wide != lane.wide:
            lane.widen(self._make_wide if wide else None)

    def labels(
        self,
        frames: Iterable[FrameItem],
        stream_id: str = "",
        state: StreamState | None = None,
    ) -> Generator[LabelItem, None, None]:
        """One stream's items, in order: a `LabelBatch` for each `FrameBatch`; gaps and the end go by.

        Closing the iterator closes `frames` and frees the stream's slot.

        Args:
            frames: the stream's items.
            stream_id: the stream's, needed only with a state.
            state: what it begins with, of an earlier `Mark`; None for zeros.
        """
        lane: _Lane | None = None
        model_hw = (0, 0)
        # A decoder that is still running must stop when its consumer fails.
        guard = closing(frames) if hasattr(frames, "close") else nullcontext()  # type: ignore[type-var]
        with guard:
            try:
                if state is not None:
                    model_hw, lane = state.model_hw, self._join(state.model_hw, stream_id)
                    lane.restore(stream_id, state)
                for item in frames:
                    if isinstance(item, FrameBatch):
                        if lane is None or item.model_hw != model_hw:
                            if lane is not None:  # the size changed: the memory stays behind
                                lane.leave(stream_id)
                            model_hw, stream_id = item.model_hw, item.stream.stream_id
                            lane = self._join(model_hw, stream_id)
                        self._share(lane)
                        yield lane.label(item)
                        continue
                    if isinstance(item, Gap) and lane is not None:
                        lane.pass_gap(item)
                    yield item
                    if isinstance(item, EndOfStream):
                        return
            except EngineError as error:
                if error.device_lost:
                    self.device_lost = True
                if lane is not None:
                    self._drop(lane)
                raise
            finally:
                if lane is not None:
                    lane.leave(stream_id)

    def _drop(self, lane: _Lane) -> None:
        """Give no stream a lane whose engine has failed: the next one gets a new engine, and its chance."""
        with self._lock:
            lanes = self._lanes.get(lane.model_hw, [])
            if lane in lanes:  # no other of its streams was first
                lanes.remove(lane)


class _Lane:
    """One engine of one input size, the engine's slots, and the batcher before it.

    Attributes:
        wide: its streams are labelled by an engine of more threads, for as long as that is free.
    """

    def __init__(
        self,
        engine: Engine,
        model_hw: tuple[int, int],
        window_seconds: float,
        longest_gap_seconds: float,
    ) -> None:
        self.engine, self.own_engine, self.model_hw = engine, engine, model_hw
        self.wide = False
        self.states = StateTable(engine, longest_gap_seconds)
        self.states_lock = Lock()
        self.streams: set[str] = set()
        batches = engine.batches
        self.batcher = Batcher(
            self._step,
            largest=engine.slots if batches else 1,
            window_seconds=window_seconds if batches else 0.0,
        )

    def join(self, stream_id: str) -> None:
        self.streams.add(stream_id)
        self.batcher.join(stream_id)

    def leave(self, stream_id: str) -> None:
        self.streams.discard(stream_id)
        self.batcher.leave(stream_id)
        with self.states_lock:
            self.states.release(stream_id)

    def widen(self, make_wide: MakeEngine | None) -> None:
        """Go on with an engine that `make_wide` makes, or with its own again; states go along."""
        engine = make_wide(self.model_hw) if make_wide is not None else self.own_engine
        with self.states_lock:
            self.states = self.states.moved_to(engine, self.model_hw)
            self.engine, self.wide = engine, make_wide is not None

    def pass_gap(self, gap: Gap) -> None:
        with self.states_lock:
            self.states.pass_gap(gap)

    def restore(self, stream_id: str, state: StreamState) -> None:
        with self.states_lock:
            self.states.restore(stream_id, state)

    def label(self, frames: FrameBatch) -> LabelBatch:
        done = self.batcher.submit(frames)
        assert done.labels is not None
        assert done.steps is not None
        mark = frames.mark
        if mark is not None:  # nothing of this stream is in the engine before this has gone on
            with self.states_lock:
                state = self.states.snapshot(frames.stream.stream_id, frames.model_hw)
            mark = replace(mark, state=state)
        return LabelBatch(
            stream=frames.stream,
            frame_index=frames.frame_index,
            pts=frames.pts,
            labels=done.labels,
            decoded_at=frames.decoded_at,
            labelled_at=time.monotonic(),
            steps=done.steps,
            pictures=frames.pictures,
            mark=mark,
            decode=frames.decode,
            step=done.step,
        )

    def _step(self, batch: list[Request]) -> None:
        began, clock = time.monotonic(), stopwatch()
        ids = [request.frames.stream.stream_id for request in batch]
        pixels = [request.frames.pixels for request in batch]
        with self.states_lock:
            slots, reset = self.states.acquire(ids)
            labels = self.engine.step(pixels, slots, reset)
            for request, found in zip(batch, labels, strict=True):
                stream_id = request.frames.stream.stream_id
                request.steps = self.states.advance(stream_id, len(found))
                request.step = self._measured(request, batch, began, clock())
                request.labels = found

    def _measured(self, request: Request, batch: list[Request], began: float, run: Stretch) -> Step:
        waited = max(0.0, began - request.submitted_at)
        return Step(
            wait=Stretch(run.began_at - waited, waited), run=run, streams=len(batch),
            leads=request is batch[0], waiting=self.batcher.waiting, device_bytes=device_bytes(),
        )  # fmt: skip
