"""One network for all cameras: always the newest frame, of the camera that has waited longest."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from threading import Event, Thread

import cv2
import numpy as np

from pipeline.engines import Engine, MakeEngine
from pipeline.frames import Gap, StreamInfo
from pipeline.live.benches import Bench, Benches
from pipeline.live.delivery import Frame, Handover
from pipeline.live.hub import Shown
from pipeline.live.lane import Lane

LIVE_TIME_BASE = Fraction(1, 1000)  # time stamps of what comes from cameras are milliseconds
# Cameras whose frames are brought while the network works. More would only wait and grow old where
# it takes frames one by one.
_AHEAD = 2
_LEAST_SHARE = 0.25  # of the limit: so old a frame may be however slow the network is
_USUAL_PERIODS = 3.0  # a pause of more frame periods than this is a gap
_IDLE_SECONDS = 0.5
_NEW_WEIGHT = 0.1  # of the newest in running means


@dataclass(frozen=True)
class Labelled:
    """All that is known of a labelled frame, for listeners in the network's own thread.

    Attributes:
        shown: what everybody sees of it.
        frame: as it came.
        shares: float32 [K], of each class.
        fresh: the memory began anew with it.
        began_at: `time.time()` at which the network began with it, seconds.
        read_state: a copy of the camera's memory after it, float32 [C, h, w], and the steps it has
            seen; only valid while the listener is being called.
    """

    shown: Shown
    frame: Frame
    shares: np.ndarray
    fresh: bool
    began_at: float
    read_state: Callable[[], tuple[np.ndarray, int]]


@dataclass(frozen=True)
class Effort:
    """What the network has done so far.

    Attributes:
        busy_seconds: in its steps.
        pixels: labelled, at the network's size.
    """

    busy_seconds: float = 0.0
    pixels: int = 0


@dataclass
class _Seat:
    """Where a camera's memory lies."""

    model_hw: tuple[int, int]
    period_seconds: float = 0.0


class Labeller:
    """Takes frames of all cameras, labels them, and hands them to their lanes. A thread of its own.

    A camera is served when it has a frame and has waited longest, so that under overload all get the
    same share. Engines that batch get one frame of each camera that has one, and wait for those that had one
    of late, but never longer than the window. A network for a new
    size is made beside the work; until it is there, that camera's frames are dropped. None of its
    threads may be left alone when the interpreter ends: native code that comes back to an interpreter
    that is gone crashes.

    Args:
        make_engine: makes the engine for an input size.
        lanes: the cameras just now, in order.
        labelled: called with each labelled frame.
        classes: K.
        max_latency_seconds: frames that would be labelled later than this after they arrived go.
        longest_gap_seconds: a gap in a camera's frames up to this long keeps its memory.

    Attributes:
        failure: what ended it, None if nothing did.
        effort: what it has done so far.
    """

    def __init__(
        self,
        make_engine: MakeEngine,
        lanes: Callable[[], Sequence[Lane]],
        labelled: Callable[[Labelled], None],
        *,
        classes: int,
        max_latency_seconds: float,
        longest_gap_seconds: float,
    ) -> None:
        self._lanes, self._labelled = lanes, labelled
        self._classes, self._limit = classes, max_latency_seconds
        self._longest_gap = longest_gap_seconds
        self._kept: frozenset[tuple[int, int]] = frozenset()
        self._seats: dict[Lane, _Seat] = {}
        self._frame_came, self._stopping = Event(), Event()
        self._benches = Benches(make_engine, longest_gap_seconds, self._made, self._stopping.is_set)
        self._thread = Thread(target=self._run, name="labeller")
        self.failure: BaseException | None = None
        self.effort = Effort()

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """There is a frame, or a camera has come or gone."""
        self._frame_came.set()

    def stop(self, join_seconds: float) -> None:
        """Label no more, once the frames under way are done."""
        self._stopping.set()
        self._frame_came.set()
        self._thread.join(join_seconds)

    def step_ms(self) -> dict[tuple[int, int], float]:
        """What a step of the network takes on average, for each input size in use."""
        benches = self._benches.there().items()
        return {size: 1000 * bench.step_seconds for size, bench in benches}

    def prepare(self, sizes: Collection[tuple[int, int]]) -> None:
        """Make the networks of these input sizes, and keep them even while no camera needs them."""
        self._kept = frozenset(sizes)
        for model_hw in sizes:
            self._benches.want(model_hw)

    @property
    def preparing(self) -> bool:
        """Whether a network is being made just now; that cannot be interrupted."""
        return self.failure is None and self._benches.making

    def _made(self, failure: BaseException | None) -> None:
        """There is a network more, or none can be."""
        if failure is not None:
            self.failure = failure
            self._stopping.set()
        self._frame_came.set()

    def _run(self) -> None:
        cv2.setNumThreads(1)
        try:
            while not self._stopping.is_set():
                self._frame_came.clear()
                lanes = self._lanes()
                self._tidy(lanes)
                batch, wait_seconds = self._due(self._sift(lanes))
                bench = self._benches.get(batch[0][1].model_hw) if batch else None
                self._look_ahead(lanes, everybody=bench is None or bench.engine.batches)
                if batch:
                    self._label(batch)
                else:
                    self._frame_came.wait(wait_seconds)
        except Exception as error:  # for the hub's owner: without a network nothing can go on
            self.failure = self.failure or error

    def _tidy(self, lanes: Sequence[Lane]) -> None:
        """Give up the memories of cameras that are gone, and engines nobody has needed lately."""
        for lane in [lane for lane in self._seats if lane not in lanes or lane.over]:
            self._leave(lane)
        for lane in lanes:
            if lane.drained and not lane.over and lane.frame is None:
                lane.finish()
            if lane.leaving and not lane.left.is_set():
                lane.leave(self._handover(lane))
        self._benches.tidy({seat.model_hw for seat in self._seats.values()} | self._kept)

    def _sift(self, lanes: Sequence[Lane]) -> dict[tuple[int, int], list[Lane]]:
        """The cameras that have a frame to label, by the network's input size, those that have waited longest
        first. Frames that nobody will label are taken away, and word is given of what comes after them."""
        waiting: dict[tuple[int, int], list[Lane]] = {}
        for lane in sorted(lanes, key=lambda lane: lane.served_at):
            frame = lane.frame
            if frame is None:
                continue
            if lane.leaving:
                lane.take_frame(frame)
            elif lane.held:  # another network still serves this camera
                lane.take_frame(frame)
                lane.rehearsed = self._benches.want(frame.model_hw) is not None
            elif not self._in_time(frame):
                lane.drop("stale", frame)
            elif self._benches.want(frame.model_hw) is None:
                lane.drop("preparing", frame)
            else:
                waiting.setdefault(frame.model_hw, []).append(lane)
        return waiting

    def _due(
        self, waiting: dict[tuple[int, int], list[Lane]]
    ) -> tuple[list[tuple[Lane, Frame]], float]:
        """The frames to label next; none if there are none yet, and how long to wait for more, seconds."""
        least, benches = _IDLE_SECONDS, self._benches.there()
        for model_hw in benches.keys() - waiting.keys():
            benches[model_hw].waits_since = None
        for model_hw, lanes in waiting.items():
            bench = benches[model_hw]
            left = bench.window_left({lane.name for lane in lanes})
            if left <= 0:
                return self._take(bench, model_hw, lanes), 0.0
            least = min(least, left)
        return [], least

    def _take(
        self, bench: Bench, model_hw: tuple[int, int], lanes: Sequence[Lane]
    ) -> list[tuple[Lane, Frame]]:
        """The newest frames of cameras, as many as the engine takes at once."""
        batch: list[tuple[Lane, Frame]] = []
        for lane in lanes[: bench.most]:
            frame = lane.take_frame()
            if frame is None:
                continue
            if frame.model_hw != model_hw:  # the camera's size has changed this moment
                lane.drop("overload")
                continue
            batch.append((lane, frame))
            lane.served_at = time.monotonic()
        return batch

    def _look_ahead(self, lanes: Sequence[Lane], everybody: bool) -> None:
        order = sorted(lanes, key=lambda lane: lane.served_at)
        for lane in order if everybody else order[:_AHEAD]:
            lane.want()

    def _in_time(self, frame: Frame) -> bool:
        bench = self._benches.get(frame.model_hw)
        step_seconds = bench.step_seconds if bench is not None else 0.0
        allowed = max(self._limit - step_seconds, _LEAST_SHARE * self._limit)
        return time.time() - frame.captured_at <= allowed

    def _label(self, batch: list[tuple[Lane, Frame]]) -> None:
        bench = self._benches.get(batch[0][1].model_hw)
        assert bench is not None
        resets = [self._pass_gap(lane, frame) for lane, frame in batch]
        for lane, _ in batch:
            bench.served(lane.name)
        began, began_at = time.monotonic(), time.time()
        slots, fresh = bench.states.acquire([lane.name for lane, _ in batch])
        pixels = [frame.planes[None] for _, frame in batch]
        labels = bench.engine.step(pixels, slots, fresh)
        took_seconds = time.monotonic() - began
        bench.step_seconds = _mean(bench.step_seconds, took_seconds)
        self.effort = Effort(
            self.effort.busy_seconds + took_seconds, self.effort.pixels + labels.size
        )
        labelled_at = time.time()
        for place, (lane, frame) in enumerate(batch):
            steps = int(bench.states.advance(lane.name, 1)[0])
            shown = Shown(
                lane.name, frame.index, frame.captured_at, labelled_at, frame.planes,
                labels[place, 0],
            )  # fmt: skip
            shares = class_shares(shown.labels, self._classes)
            lane.labelled(frame, shown, shares, resets[place])
            if lane.checkpoint_wanted:
                lane.keep(self._handover(lane))
            read = partial(_read_state, bench.engine, slots[place], steps)
            self._labelled(Labelled(shown, frame, shares, fresh[place], began_at, read))

    def _pass_gap(self, lane: Lane, frame: Frame) -> bool:
        """Tell the camera's state what is missing before a frame; True if it was reset."""
        seat = self._seats.get(lane) or self._take_over(lane, frame)
        if seat is None or seat.model_hw != frame.model_hw:
            self._leave(lane)
            self._seats[lane] = _Seat(frame.model_hw)
            return seat is not None
        gap = self._gap(lane, frame, seat)
        bench = self._benches.get(frame.model_hw)
        return gap is not None and bench is not None and bench.states.pass_gap(gap)

    def _take_over(self, lane: Lane, frame: Frame) -> _Seat | None:
        """The seat of a camera that brings its memory from another network, at its first frame."""
        handed, lane.handed = lane.handed, None
        bench = self._benches.get(frame.model_hw)
        if handed is None or bench is None:
            return None
        seat = self._seats[lane] = _Seat(handed.state.model_hw)
        if seat.model_hw == frame.model_hw:
            bench.states.restore(lane.name, handed.state, handed.longest_gap_seconds)
            lane.last = replace(
                frame, index=-1, connection=-1, captured_at=handed.captured_at,
                size_hw=handed.size_hw, stamp_seconds=None,
            )  # fmt: skip
        return seat

    def _handover(self, lane: Lane) -> Handover | None:
        """A camera's memory as it is now, None if it has none."""
        seat, last = self._seats.get(lane), lane.last
        bench = self._benches.get(seat.model_hw) if seat is not None else None
        if seat is None or bench is None or last is None:
            return lane.handed  # of the network before this one, if it has labelled nothing since
        state = bench.states.snapshot(lane.name, seat.model_hw)
        return Handover(state, last.size_hw, last.captured_at)

    def _gap(self, lane: Lane, frame: Frame, seat: _Seat) -> Gap | None:
        last = lane.last
        if last is None:
            return None
        stream = StreamInfo(lane.name, lane.address.shown, frame.size_hw, LIVE_TIME_BASE)
        if frame.size_hw != last.size_hw:
            return Gap(stream, frame.index, None, "the camera's picture changed its size")
        seconds = _seconds_between(last, frame)
        follows = frame.index == last.index + 1 and frame.connection == last.connection
        if follows:
            paused = seconds > self._longest_gap and seat.period_seconds > 0
            if not (paused and seconds > _USUAL_PERIODS * seat.period_seconds):
                seat.period_seconds = _mean(seat.period_seconds, seconds)
                return None
        return Gap(stream, frame.index, seconds, "frames are missing")

    def _leave(self, lane: Lane) -> None:
        seat = self._seats.pop(lane, None)
        bench = self._benches.get(seat.model_hw) if seat is not None else None
        if bench is not None:
            bench.release(lane.name)


def _seconds_between(last: Frame, frame: Frame) -> float:
    """Time between two frames by the camera's clock, which a machine that is late does not move; by
    their arrival where it cannot be told."""
    before, after = last.stamp_seconds, frame.stamp_seconds
    same_clock = frame.connection == last.connection and before is not None and after is not None
    if same_clock and after > before:  # type: ignore[operator]
        return after - before  # type: ignore[operator]
    return frame.captured_at - last.captured_at


def _read_state(engine: Engine, slot: int, steps: int) -> tuple[np.ndarray, int]:
    return engine.read_state(slot), steps


def class_shares(labels: np.ndarray, classes: int) -> np.ndarray:
    """Share of each class in a label map, float32 [classes]."""
    counts = cv2.calcHist([labels], [0], None, [256], [0, 256]).ravel()
    return (counts[:classes] / labels.size).astype(np.float32)


def _mean(mean: float, newest: float) -> float:
    return newest if mean == 0 else mean + _NEW_WEIGHT * (newest - mean)
