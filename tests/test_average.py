"""Averaged weights: between two models, and refused where there is nothing between."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from models.average import average
from models.registry import build, load, save
from models.spec import Spec
from pipeline.cli import app
from tests.networks import TINY


def made(folder: Path, seed: int, network: str = "RoadNet") -> Path:
    torch.manual_seed(seed)
    spec = Spec(folder.name, network=network, options=TINY[network], training={"seed": seed})
    save(folder, build(spec), spec)
    return folder


def test_each_weight_lies_where_the_share_says(tmp_path: Path) -> None:
    one, two = made(tmp_path / "one", 1), made(tmp_path / "two", 2)
    done = CliRunner().invoke(
        app, ["average", str(one), str(two), "--share", "0.25", "--out", str(tmp_path / "mean")]
    )
    assert done.exit_code == 0, done.output
    (first, _), (second, _), (mean, spec) = (
        load(str(tmp_path / name)) for name in ("one", "two", "mean")
    )
    for name, tensor in mean.state_dict().items():
        expected = 0.75 * first.state_dict()[name] + 0.25 * second.state_dict()[name]
        torch.testing.assert_close(tensor, expected.half().to(tensor.dtype))
    assert spec.training == {"average_of": [{"seed": 1}, {"seed": 2}], "share_of_second": 0.25}
    assert spec.name == "two"


def test_models_that_do_not_match_are_one_line(tmp_path: Path) -> None:
    one, two = made(tmp_path / "one", 1), made(tmp_path / "two", 2, "UNet")
    with pytest.raises(ValueError, match=r"has network UNet, .* has RoadNet"):
        average(str(one), str(two), 0.5, tmp_path / "mean")
    with pytest.raises(ValueError, match="share must be over 0 and under 1, got 1"):
        average(str(one), str(one), 1, tmp_path / "mean")
    with pytest.raises(ValueError, match="is one of the models"):
        average(str(one), str(one), 0.5, one)
    done = CliRunner().invoke(app, ["average", str(one), "nonesuch", "--out", str(tmp_path / "x")])
    assert done.exit_code
    assert "unknown model 'nonesuch'" in str(done.exception)
    assert not (tmp_path / "mean").exists()
