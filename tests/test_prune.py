"""Pruning: smaller, still whole, and refused where it cannot be done."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from models.cost import cost
from models.prune import PruningError, prune
from models.registry import build, load, save
from models.spec import Spec
from pipeline.cli import app

pytest.importorskip("torch_pruning", reason="pruning needs the extra prune")
SIZE = (64, 96)


def untrained(folder: Path, network: str) -> Path:
    torch.manual_seed(0)
    spec = Spec("wide", network=network)
    save(folder, build(spec), spec)
    return folder


@pytest.mark.parametrize("name", ["RoadNet", "FCN", "SegNet"])
def test_a_pruned_network_is_smaller_and_keeps_its_memory(tmp_path: Path, name: str) -> None:
    prune(str(untrained(tmp_path / "wide", name)), tmp_path / "slim", 0.3)
    (wide, _), (slim, spec) = load(str(tmp_path / "wide")), load(str(tmp_path / "slim"))
    assert cost(slim, SIZE).parameters < 0.9 * cost(wide, SIZE).parameters
    assert cost(slim, SIZE).gflops < 0.8 * cost(wide, SIZE).gflops
    assert spec.name == "wide-slim"
    assert slim.state_shape(SIZE) == wide.state_shape(SIZE)
    frames = torch.rand(1, 3, 3, *SIZE) * 255
    with torch.inference_mode():
        logits, state, _ = slim.clip(frames)
        assert logits.shape == wide.clip(frames)[0].shape
        assert not torch.equal(logits[:, 2], slim.clip(frames[:, 2:])[0][:, 0]), "no memory"
    assert state.abs().max() > 0


def test_a_pruned_network_can_be_pruned_again(tmp_path: Path) -> None:
    prune(str(untrained(tmp_path / "wide", "UNet")), tmp_path / "slim", 0.3)
    prune(str(tmp_path / "slim"), tmp_path / "slimmer", 0.3)
    slim, slimmer = (load(str(tmp_path / name))[0] for name in ("slim", "slimmer"))
    assert cost(slimmer, SIZE).gflops < 0.8 * cost(slim, SIZE).gflops
    with pytest.raises(PruningError, match="is the model itself"):
        prune(str(tmp_path / "slim"), tmp_path / "slim", 0.3)


def test_the_smallest_channels_go_and_the_others_stay_as_they_were(tmp_path: Path) -> None:
    folder = untrained(tmp_path / "wide", "UNet")
    network, spec = load(str(folder))
    first = next(m for m in network.modules() if isinstance(m, torch.nn.Conv2d))
    keep = torch.arange(len(first.weight)) % 2 == 0
    with torch.no_grad():
        first.weight[~keep] *= 1e-3
    save(folder, network, spec)
    prune(str(folder), tmp_path / "slim", 0.3)
    slim = next(m for m in load(str(tmp_path / "slim"))[0].modules()
                if isinstance(m, torch.nn.Conv2d))  # fmt: skip
    rows = {tuple(row.flatten().tolist()) for row in load(str(folder))[0].state_dict()[
        next(n for n, m in network.named_modules() if m is first) + ".weight"]}  # fmt: skip
    assert len(slim.weight) < len(first.weight)
    assert {tuple(row.flatten().tolist()) for row in slim.weight} <= rows


def test_what_cannot_be_pruned_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PruningError, match=r"ratio must be over 0 and under 1, got 1.5"):
        prune("roadnet", tmp_path / "slim", 1.5)
    folder = untrained(tmp_path / "wide", "SegFormer")
    with pytest.raises(PruningError, match="this network cannot be pruned"):
        prune(str(folder), tmp_path / "slim", 0.3)
    assert not (tmp_path / "slim").exists()
    done = CliRunner().invoke(app, ["prune", "nonesuch", "--out", str(tmp_path / "slim")])
    assert "unknown model 'nonesuch'" in str(done.exception)
