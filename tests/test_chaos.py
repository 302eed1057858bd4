"""Runs that are killed one to five times end as if nothing had happened. See `tests.bench.chaos`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.bench.chaos import Case, Tester, lasting_ray

SEEDS = range(1, 31)


@pytest.fixture(scope="module")
def tester(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tester]:
    with lasting_ray() as (address, process):
        yield Tester(tmp_path_factory.mktemp("chaos"), address, process)


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_runs_end_as_undisturbed_ones(tester: Tester, seed: int) -> None:
    """Driver, decoder, segmenter, sink, fused actor, or all at once; counted in frames, drawn by seed."""
    case = Case.draw(seed)
    outcome = tester.test(case)
    assert outcome.differences == [], (case, outcome)
    assert len(outcome.killed) + outcome.missed == len(case.kills)


def test_the_seeds_reach_everything() -> None:
    """Every placement, victim, engine and output, the beginning, the middle and the end."""
    cases = [Case.draw(seed) for seed in SEEDS]
    kills = [kill for case in cases for kill in case.kills]
    assert {case.placement for case in cases} == {"inline", "fused", "spread"}
    assert {case.engine for case in cases} == {"counting", "cpu"}
    assert {case.labels for case in cases} == {"mkv", "png"}
    assert {case.embedded for case in cases if case.placement != "inline"} == {True, False}
    assert {len(case.kills) for case in cases} == {1, 2, 3, 4, 5}
    assert {kill.victim for kill in kills} == {
        "driver", "all", "FusedActor", "DecoderActor", "SegmenterActor", "SinkActor",
    }  # fmt: skip
    thirds = {kill.frame * 3 // 310 for kill in kills}
    assert thirds == {0, 1, 2}
