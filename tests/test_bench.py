"""The benchmark's arithmetic, and that it runs; its figures are nobody's test."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.bench import plain_loop, rate, stage_shares, table
from pipeline.errors import ConfigError
from pipeline.run import RunConfig, prepare
from pipeline.sinks import OutputOptions
from tests import media


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "clip.mp4"
    media.write_moving_clip(path, 48, seed=1)
    return path


def test_rate_leaves_the_warm_up_out() -> None:
    slow_start = [(0.0, 8), (9.0, 16), (10.0, 24), (10.5, 32), (11.0, 40), (12.0, 60)]
    assert rate(slow_start, warm_up=20) == pytest.approx((60 - 24) / 2)
    with pytest.raises(ConfigError, match="too short: give one with over 32 frames"):
        rate([(0.0, 8), (1.0, 16)], warm_up=24)


def test_stage_shares_add_up(clip: Path, tmp_path: Path) -> None:
    plan = prepare(
        RunConfig((str(clip),), tmp_path, OutputOptions(), engine="counting", size_hw=(96, 128))
    )
    stages = stage_shares(plan)
    assert stages.keys() == {"decode", "segment", "write"}
    assert all(cost["ms"] > 0 for cost in stages.values())
    assert sum(cost["share"] for cost in stages.values()) == pytest.approx(1, abs=0.01)


def test_the_plain_loop_labels_like_people_would(clip: Path, tmp_path: Path) -> None:
    stamps = list(plain_loop(str(clip), "roadnet", str(tmp_path / "out.mp4"), 3))
    assert [count for _, count in stamps] == [1, 2, 3]
    assert (tmp_path / "out.mp4").stat().st_size > 0


def test_the_table_shows_every_figure() -> None:
    result = {
        "source": "clip.mp4", "engine": "OpenVINO bf16", "cores": 2, "rounds": 3,
        "fps": {"plain loop": 5.0, "roadmask": 30.1},
        "times_the_plain_loop": {"plain loop": 1.0, "roadmask": 6.02},
        "stage_ms_a_frame": {"decode": {"ms": 3.1, "share": 0.25}},
    }  # fmt: skip
    shown = table(result)
    for figure in ("30.1", "6.02", "3.10", "25.0%", "OpenVINO bf16"):
        assert figure in shown
