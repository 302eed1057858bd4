"""Slots, resets and swapping of states."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engines.counting import CountingEngine
from pipeline.frames import Gap
from pipeline.state import StateTable
from tests.streams import stream_info

SIZE = (8, 8)
FRAME = np.full((1, 1, 12, 8), 16, np.uint8)


def step(table: StateTable, *streams: str) -> list[int]:
    """One frame for each stream; the count each pixel was labelled with."""
    slots, reset = table.acquire(list(streams))
    labels = table.engine.step(np.repeat(FRAME, len(streams), 0), slots, reset)
    for stream in streams:
        table.advance(stream, 1)
    return [int(label[0, 1, 1]) for label in labels]


def test_a_stream_counts_its_own_frames() -> None:
    table = StateTable(CountingEngine(SIZE, 2))
    assert step(table, "a") == [1]
    assert step(table, "a", "b") == [2, 1]
    assert step(table, "b", "a") == [2, 3]


def test_a_released_slot_starts_anew() -> None:
    table = StateTable(CountingEngine(SIZE, 1))
    step(table, "a")
    table.release("a")
    assert step(table, "b") == [1]
    table.release("b")
    assert step(table, "a") == [1]


def test_more_streams_than_slots_keep_their_memories() -> None:
    table = StateTable(CountingEngine(SIZE, 2))
    for turn in range(1, 5):
        assert [step(table, name)[0] for name in "abcde"] == [turn] * 5
    assert table.swaps == 5 * 4 - 2


@given(st.lists(st.sets(st.sampled_from("abcdef"), min_size=1, max_size=3), max_size=30))
@settings(max_examples=60, deadline=None)
def test_any_order_of_batches_gives_each_stream_its_own_count(batches: list[set[str]]) -> None:
    table = StateTable(CountingEngine(SIZE, 3))
    seen = dict.fromkeys("abcdef", 0)
    for batch in batches:
        names = sorted(batch)
        for name in names:
            seen[name] += 1
        assert step(table, *names) == [seen[name] for name in names]


@pytest.mark.parametrize(("seconds", "expected"), [(0.5, 3), (1.0, 3), (1.01, 1), (None, 1)])
def test_a_long_gap_resets_and_a_short_one_does_not(seconds: float | None, expected: int) -> None:
    table = StateTable(CountingEngine(SIZE, 1), longest_gap_seconds=1.0)
    step(table, "a")
    step(table, "a")
    was_reset = table.pass_gap(Gap(stream_info("a"), 2, seconds, "lost"))
    assert step(table, "a") == [expected]
    assert was_reset == (expected == 1)
    assert table.advance("a", 2).tolist() == [expected + 1, expected + 2]


def test_a_gap_resets_a_swapped_out_stream_too() -> None:
    table = StateTable(CountingEngine(SIZE, 1))
    step(table, "a")
    step(table, "b")
    table.pass_gap(Gap(stream_info("a"), 1, None, "cut"))
    assert step(table, "a") == [1]


def test_batches_that_cannot_be_are_refused() -> None:
    table = StateTable(CountingEngine(SIZE, 2))
    with pytest.raises(ValueError, match="up to 2 different streams"):
        table.acquire(["a", "a"])
    with pytest.raises(ValueError, match="up to 2 different streams"):
        table.acquire(["a", "b", "c"])


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["step", "step", "release", "gap"]),
            st.sets(st.sampled_from("abcdef"), min_size=1, max_size=3),
        ),
        max_size=40,
    )
)
@settings(max_examples=80, deadline=None)
def test_slots_are_assigned_taken_away_and_used_again(events: list[tuple[str, set[str]]]) -> None:
    """Whatever comes, no two streams own a slot, none is lost, and each stream's count is its own."""
    table = StateTable(CountingEngine(SIZE, 3))
    seen: dict[str, int] = {}
    for what, streams in events:
        for name in streams if what == "release" else ():
            table.release(name)
            seen.pop(name, None)
        for name in streams if what == "gap" else ():
            table.pass_gap(Gap(stream_info(name), 0, None, "cut"))
            seen.pop(name, None)
        if what == "step":
            names = sorted(streams)
            for name in names:
                seen[name] = seen.get(name, 0) + 1
            assert step(table, *names) == [seen[name] for name in names]
        owned = [m.slot for m in table.memories.values() if m.slot is not None]
        assert sorted([*owned, *table.free]) == [0, 1, 2]
        assert all((m.saved is None) or (m.slot is None) for m in table.memories.values())


def test_the_stream_that_was_idle_for_longest_gives_its_slot_up() -> None:
    table = StateTable(CountingEngine(SIZE, 2))
    for batch in (["a"], ["b"], ["a"]):
        step(table, *batch)
    step(table, "c")
    slots = {name: memory.slot for name, memory in table.memories.items()}
    assert slots["b"] is None
    assert {slots["a"], slots["c"]} == {0, 1}
    assert table.swaps == 1


@pytest.mark.parametrize(("lent", "seconds", "kept"), [(None, 5.0, False), (10.0, 5.0, True),
                                                       (10.0, 11.0, False), (0.0, 0.5, False)])  # fmt: skip
def test_a_memory_that_was_brought_along_may_be_lent_time(
    lent: float | None, seconds: float, kept: bool
) -> None:
    before = StateTable(CountingEngine(SIZE, 1))
    assert [step(before, "a") for _ in range(3)][-1] == [3]
    after = StateTable(CountingEngine(SIZE, 1))
    after.restore("a", before.snapshot("a", SIZE), longest_gap_seconds=lent)
    assert after.pass_gap(Gap(stream_info("a"), 3, seconds, "moved")) is not kept
    assert step(after, "a") == [4 if kept else 1]
    assert after.memories["a"].resets == (not kept)
    # For its first frame only: later gaps are judged as all others.
    assert after.pass_gap(Gap(stream_info("a"), 4, 5.0, "cut"))


def test_all_memories_go_to_another_engine() -> None:
    table = StateTable(CountingEngine(SIZE, 2), longest_gap_seconds=7.0)
    for streams in (("a", "b"), ("b", "c"), ("c",)):  # one is swapped out by the third
        step(table, *streams)
    table.pass_gap(Gap(stream_info("c"), 2, None, "cut"))
    moved = table.moved_to(CountingEngine(SIZE, 2), SIZE)
    assert (step(moved, "a"), step(moved, "b"), step(moved, "c")) == ([2], [3], [1])
    assert moved.longest_gap_seconds == 7.0
    assert [moved.memories[name].resets for name in "abc"] == [0, 0, 1]
