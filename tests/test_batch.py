"""Batches across streams: when they close, who is in them, and that no schedule shows in the labels."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.spec import find_model
from pipeline.batch import Batcher, Request, Waiting
from pipeline.engines import MakeEngine, choose_engine, engine_factory
from pipeline.engines.counting import CountingEngine
from pipeline.errors import EngineError
from pipeline.frames import FrameBatch, FrameItem, Gap, LabelBatch
from pipeline.segmenter import Segmenter
from tests.streams import batches, frame_pixels, stream_info

SIZE = (4, 8)
PATIENCE_SECONDS = 60


def frames(name: str, length: int = 1) -> FrameBatch:
    item = next(batches(stream_info(name, SIZE), frame_pixels(0, length, SIZE), length))
    assert isinstance(item, FrameBatch)
    return item


def names(batch: list[Request]) -> list[str]:
    return [request.stream_id for request in batch]


def waiting(streams: str, largest: int = 8, window_seconds: float = 0.005) -> Waiting:
    queue = Waiting(largest, window_seconds)
    for name in streams:
        queue.join(name)
    return queue


def in_threads(jobs: dict[str, Callable[[], None]]) -> None:
    threads = [threading.Thread(target=job, name=name) for name, job in jobs.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive(), f"stream {thread.name} hangs"


# When a batch closes.


def test_a_batch_is_due_when_every_live_stream_has_given_frames() -> None:
    queue = waiting("ab")
    queue.add(Request(frames("a"), 1.0))
    assert queue.due_at(free_since=0.0) == pytest.approx(1.005)
    queue.add(Request(frames("b"), 1.002))
    assert queue.due_at(free_since=0.0) == -math.inf
    assert names(queue.take(window_over=False)) == ["a", "b"]
    assert queue.due_at(free_since=0.0) == math.inf


def test_the_window_begins_when_the_engine_is_free() -> None:
    queue = waiting("ab")
    queue.add(Request(frames("a"), 1.0))
    assert queue.due_at(free_since=3.0) == pytest.approx(3.005)


def test_a_stream_with_frames_of_another_length_is_not_waited_for() -> None:
    queue = waiting("ab")
    queue.add(Request(frames("a", 8), 1.0))
    queue.add(Request(frames("b", 3), 1.0))
    assert queue.due_at(free_since=0.0) == -math.inf
    assert names(queue.take(window_over=False)) == ["a"]
    assert names(queue.take(window_over=False)) == ["b"]


def test_a_full_batch_is_due_and_takes_the_oldest() -> None:
    queue = waiting("abcd", largest=2)
    for name in "cab":
        queue.add(Request(frames(name), 1.0))
    assert queue.due_at(free_since=0.0) == -math.inf
    assert names(queue.take(window_over=False)) == ["c", "a"]


def test_a_stream_that_ends_is_not_waited_for() -> None:
    queue = waiting("ab")
    queue.add(Request(frames("a"), 1.0))
    queue.leave("b")
    assert queue.due_at(free_since=0.0) == -math.inf


def test_a_stream_is_waited_for_once_and_then_when_it_has_given_frames_again() -> None:
    queue = waiting("ab")
    for turn in range(3):
        queue.add(Request(frames("a"), float(turn)))
        assert (queue.due_at(free_since=0.0) > -math.inf) == (turn == 0)
        queue.take(window_over=turn == 0)
    queue.add(Request(frames("b"), 9.0))
    queue.add(Request(frames("a"), 9.0))
    assert names(queue.take(window_over=False)) == ["b", "a"]
    queue.add(Request(frames("a"), 10.0))
    assert queue.due_at(free_since=0.0) == pytest.approx(10.005)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="largest must be at least 1"):
        Waiting(0, 0.0)
    queue = waiting("a")
    queue.add(Request(frames("a")))
    with pytest.raises(ValueError, match="stream 'a' waits with a request already"):
        queue.add(Request(frames("a")))
    with pytest.raises(ValueError, match="engines must be at least 1, got 0"):
        Segmenter(lambda hw: CountingEngine(hw, 1), engines=0)


# Fair, by any schedule: simulated time, so that bounds are exact.


@dataclass
class Simulation:
    """Streams that give a batch, wait for its labels, pause, and give the next, before one engine."""

    queue: Waiting
    pauses: dict[str, list[float]]  # seconds before each batch of a stream
    lengths: dict[str, int]
    step_seconds: float
    now: float = 0.0
    idle_seconds: float = 0.0  # the engine had something to do and waited for company
    served: list[tuple[list[str], dict[str, int]]] = field(default_factory=list)

    def run(self) -> None:
        """`served` gets each batch, with how many batches each of its requests had seen go before."""
        left = {name: list(pauses) for name, pauses in self.pauses.items()}
        arrivals = {name: left[name].pop(0) for name in left}
        seen: dict[str, int] = {}
        free_since = 0.0
        while arrivals or seen:
            due = self.queue.due_at(free_since)
            coming = min(arrivals.values(), default=math.inf)
            if coming <= max(due, self.now):
                self._wait(coming, bool(seen))
                for name in [n for n, at in arrivals.items() if at <= self.now]:
                    del arrivals[name]
                    self.queue.add(Request(frames(name, self.lengths[name]), self.now))
                    seen[name] = 0
                continue
            self._wait(due, True)
            batch = names(self.queue.take(window_over=due > -math.inf))
            self.served.append((batch, {name: seen.pop(name) for name in batch}))
            for name in seen:
                seen[name] += 1
            self.now += self.step_seconds
            free_since = self.now
            for name in batch:
                if left[name]:
                    arrivals[name] = self.now + left[name].pop(0)
                else:
                    self.queue.leave(name)

    def _wait(self, until: float, for_company: bool) -> None:
        if for_company:
            self.idle_seconds += max(0.0, until - self.now)
        self.now = max(self.now, until)


schedules = st.dictionaries(
    st.sampled_from("abcdefgh"),
    st.lists(st.floats(0, 0.05), min_size=1, max_size=12),
    min_size=1,
)


@given(schedules, st.integers(1, 9), st.floats(0, 0.02), st.data())
@settings(max_examples=150, deadline=None)
def test_nobody_starves_however_lengths_are_mixed(
    pauses: dict[str, list[float]], largest: int, step_seconds: float, data: st.DataObject
) -> None:
    lengths = {name: data.draw(st.sampled_from([1, 2, 8])) for name in pauses}
    alike = len(set(lengths.values())) == 1
    simulation = Simulation(waiting("".join(pauses), largest), pauses, lengths, step_seconds)
    simulation.run()
    streams = len(pauses)
    # Batches that went before a request's own, the one in progress when it came included.
    bound = -(-streams // largest) if alike else streams
    for batch, waited in simulation.served:
        assert len(batch) <= largest
        assert len({lengths[name] for name in batch}) == 1
        assert max(waited.values()) <= bound, (batch, waited)
    given_batches = {name: sum(name in batch for batch, _ in simulation.served) for name in pauses}
    assert given_batches == {name: len(gaps) for name, gaps in pauses.items()}


@given(schedules, st.integers(1, 40), st.floats(0, 0.02))
@settings(max_examples=150, deadline=None)
def test_a_slow_stream_costs_a_window_for_each_batch_of_its_own(
    pauses: dict[str, list[float]], slow_batches: int, step_seconds: float
) -> None:
    """All the time that the engine waits for company: a window for each batch of those it waits for."""
    pauses = {**pauses, "slow": [5.0] * slow_batches}
    queue = waiting("".join(n for n in pauses if n != "slow"))
    queue.join("slow")
    simulation = Simulation(queue, pauses, dict.fromkeys(pauses, 1), step_seconds)
    simulation.run()
    total = sum(len(gaps) for gaps in pauses.values())
    assert simulation.idle_seconds <= (total + 1e-6) * queue.window_seconds


def test_fast_streams_hardly_notice_one_that_is_silent() -> None:
    """Two streams of a hundred batches beside one that never gives a frame: one window, no more."""
    queue = waiting("ab")
    queue.join("silent")
    simulation = Simulation(
        queue, {"a": [0.0] * 100, "b": [0.0] * 100}, {"a": 1, "b": 1}, step_seconds=0.01
    )
    simulation.run()
    assert simulation.idle_seconds == pytest.approx(queue.window_seconds)
    assert [batch for batch, _ in simulation.served] == [["a", "b"]] * 100


# In threads: no interleaving shows in the labels.


@dataclass(frozen=True)
class Drive:
    """A stream of a random schedule: batches of these lengths, gaps before some, pauses between."""

    seed: int
    lengths: tuple[int, ...]
    gaps: frozenset[int]
    pauses_ms: tuple[int, ...]

    def items(self, pauses: bool) -> Iterator[FrameItem]:
        stream = stream_info(f"s{self.seed}", SIZE)
        pixels, start = frame_pixels(self.seed, sum(self.lengths), SIZE), 0
        for number, length in enumerate(self.lengths):
            if pauses:
                time.sleep(self.pauses_ms[number % len(self.pauses_ms)] / 1000)
            if number in self.gaps:
                yield Gap(stream, start, None, "cut")
            part = pixels[start : start + length]
            stamps = tuple(range(start, start + length))
            yield FrameBatch(stream, start, stamps, part, (time.monotonic(),) * length)
            start += length


drives = st.builds(
    Drive,
    seed=st.integers(0, 10**6),
    lengths=st.lists(st.sampled_from([1, 1, 3, 8]), min_size=1, max_size=8).map(tuple),
    gaps=st.frozensets(st.integers(0, 7), max_size=2),
    pauses_ms=st.lists(st.sampled_from([0, 0, 1, 4]), min_size=1, max_size=4).map(tuple),
)


def labels_and_steps(segmenter: Segmenter, items: Iterator[FrameItem]) -> list[np.ndarray]:
    found = [item for item in segmenter.labels(items) if isinstance(item, LabelBatch)]
    return [np.concatenate([b.labels for b in found]), np.concatenate([b.steps for b in found])]


@given(
    st.lists(drives, min_size=1, max_size=9, unique_by=lambda drive: drive.seed),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.002]),
    st.sampled_from([0.0, 0.005, 60.0]),
)
@settings(max_examples=40, deadline=None)
def test_labels_equal_those_of_separate_runs(
    given_drives: list[Drive], slots: int, engines: int, window_seconds: float, alone_seconds: float
) -> None:
    """Up to nine streams over one to four slots of one to three engines: more streams than slots too."""

    def make(model_hw: tuple[int, int]) -> CountingEngine:
        return CountingEngine(model_hw, slots)

    segmenter = Segmenter(make, window_seconds, 1.0, engines, make, alone_seconds)
    found: dict[int, list[np.ndarray]] = {}

    def follow(drive: Drive) -> Callable[[], None]:
        def job() -> None:
            found[drive.seed] = labels_and_steps(segmenter, drive.items(pauses=True))

        return job

    in_threads({str(drive.seed): follow(drive) for drive in given_drives})
    for drive in given_drives:
        alone = Segmenter(lambda hw: CountingEngine(hw, 1))
        expected = labels_and_steps(alone, drive.items(pauses=False))
        for now, before in zip(found[drive.seed], expected, strict=True):
            np.testing.assert_array_equal(now, before, err_msg=str(drive))


def test_streams_are_spread_over_the_engines_and_take_their_slots_back() -> None:
    made: list[CountingEngine] = []

    def make(hw: tuple[int, int]) -> CountingEngine:
        made.append(CountingEngine(hw, 2))
        return made[-1]

    segmenter = Segmenter(make, engines=2)
    meeting = threading.Barrier(4)

    def follow(name: str) -> Callable[[], None]:
        def items() -> Iterator[FrameItem]:
            for item in batches(stream_info(name, SIZE), frame_pixels(1, 6, SIZE), 2):
                yield item
                if isinstance(item, FrameBatch):
                    meeting.wait(PATIENCE_SECONDS)

        return lambda: labels_and_steps(segmenter, items()) and None

    for _ in range(2):
        in_threads({name: follow(name) for name in "abcd"})
    assert len(made) == 2
    for engine in made:  # both streams of each: six frames in each slot
        assert sorted(engine.bank[:, 0, 0, 0]) == [0, 6, 6]


def test_an_engine_that_has_failed_is_given_to_nobody_else() -> None:
    class Failing(CountingEngine):
        def step(self, *args: Any) -> np.ndarray:
            raise EngineError("the device is lost")

    made: list[CountingEngine] = []

    def make(hw: tuple[int, int]) -> CountingEngine:
        made.append((CountingEngine if made else Failing)(hw, 2))
        return made[-1]

    segmenter = Segmenter(make)
    drive = [*batches(stream_info("a", SIZE), frame_pixels(1, 6, SIZE), 2)]
    with pytest.raises(EngineError, match="the device is lost"):
        labels_and_steps(segmenter, iter(drive))
    found = labels_and_steps(segmenter, iter(drive))
    assert len(made) == 2
    np.testing.assert_array_equal(found[0][:, -1, -1], np.arange(1, 7))


def test_a_leader_that_is_interrupted_leaves_the_others_a_leader() -> None:
    """As Ctrl-C in the thread that leads, which then never comes back."""
    served: list[str] = []

    def step(batch: list[Request]) -> None:
        for request in batch:
            served.append(request.stream_id)
            request.steps, request.labels = np.ones(1, np.int64), np.zeros((1, *SIZE), np.uint8)

    batcher = Batcher(step, largest=4, window_seconds=PATIENCE_SECONDS)
    for name in ("a", "b", "never"):
        batcher.join(name)
    interrupted = threading.Event()
    close = batcher._close

    def interrupt() -> list[Request]:
        if threading.current_thread().name == "a":
            interrupted.wait(PATIENCE_SECONDS)
            raise KeyboardInterrupt
        return close()

    batcher._close = interrupt  # type: ignore[method-assign]

    def give(name: str) -> None:
        try:
            batcher.submit(frames(name))
        except KeyboardInterrupt:
            batcher.leave(name)

    leader = threading.Thread(target=give, args=("a",), name="a")
    leader.start()
    while batcher._waiting.oldest is None:
        time.sleep(0.001)
    follower = threading.Thread(target=give, args=("b",), name="b")
    follower.start()
    interrupted.set()
    leader.join(PATIENCE_SECONDS)
    batcher.leave("never")
    follower.join(PATIENCE_SECONDS)
    assert not follower.is_alive()
    assert served == ["b"]


def test_sixty_four_streams_take_turns() -> None:
    """Sixty-four threads over a batch of eight: each gets what it gave, as often as all the others."""
    calls: list[list[str]] = []

    def step(batch: list[Request]) -> None:
        calls.append(names(batch))
        for request in batch:
            request.steps = np.zeros(1, np.int64)
            request.labels = request.frames.pixels[:, :4]

    batcher = Batcher(step, largest=8, window_seconds=PATIENCE_SECONDS)
    streams = [f"s{number}" for number in range(64)]
    for name in streams:
        batcher.join(name)

    def follow(number: int) -> Callable[[], None]:
        def job() -> None:
            pixels = frame_pixels(number, 5, SIZE)
            for item in batches(stream_info(f"s{number}", SIZE), pixels, 1, end=False):
                assert isinstance(item, FrameBatch)
                done = batcher.submit(item)
                np.testing.assert_array_equal(done.labels, item.pixels[:, :4])
            batcher.leave(f"s{number}")

        return job

    in_threads({name: follow(number) for number, name in enumerate(streams)})
    assert sorted(name for batch in calls for name in batch) == sorted(streams * 5)
    assert max(map(len, calls)) == 8


def test_the_last_stream_gets_all_threads_and_its_own_again_when_it_is_not_alone() -> None:
    made: list[str] = []

    def make(kind: str) -> MakeEngine:
        def engine(model_hw: tuple[int, int]) -> CountingEngine:
            made.append(kind)
            return CountingEngine(model_hw, 4)

        return engine

    drive = Drive(1, (2,) * 12, frozenset({9}), (2,))
    other = Drive(2, (2,) * 12, frozenset(), (2,))
    segmenter = Segmenter(make("own"), engines=2, make_wide=make("wide"), alone_seconds=0.0)
    first = segmenter.labels(drive.items(pauses=True))
    found = [next(first), next(first)]
    assert made == ["own", "wide"]
    second = segmenter.labels(other.items(pauses=True))
    next(second)
    found += [next(first), next(first)]
    assert made == ["own", "wide", "own"]
    second.close()
    found += [next(first), next(first)]
    assert made == ["own", "wide", "own", "wide"]
    found += list(first)
    expected = labels_and_steps(Segmenter(make("own")), drive.items(pauses=False))
    batches = [item for item in found if isinstance(item, LabelBatch)]
    np.testing.assert_array_equal(np.concatenate([b.labels for b in batches]), expected[0])
    np.testing.assert_array_equal(np.concatenate([b.steps for b in batches]), expected[1])


def test_the_threads_of_an_engine_change_no_label() -> None:
    """What the last stream relies on, with the network that is shipped."""
    files = find_model("roadnet")
    choice = choose_engine("cpu")
    random = np.random.default_rng(5)
    frames = random.integers(16, 235, (1, 3, 288, 256), np.uint8)
    labels, states = [], []
    for threads in (1, 2):
        engine = engine_factory(replace(choice, threads=threads), files, files.spec(), 1)(
            (192, 256)
        )
        labels.append(engine.step(frames, [0], [True]))
        states.append(engine.read_state(0))
    np.testing.assert_array_equal(*labels)
    np.testing.assert_array_equal(*states)
