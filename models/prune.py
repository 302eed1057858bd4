"""Structured pruning: a trained network with its least important channels taken out.

    roadmask prune roadnet --out slim --ratio 0.3

What is left is a smaller dense network that every engine runs faster. It has lost accuracy; training it on
(`init:` in a training's configuration) brings most of that back. Which channels hang together is found by
DepGraph (Fang et al., "Towards Any Structural Pruning", CVPR 2023), as torch-pruning implements it.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.networks.recurrent import Network
from models.registry import build, load, save, take_shapes
from models.spec import ModelFiles, find_model

EXAMPLE_HW = (64, 96)
# Outputs have as many channels as there are classes, attention's inputs as its heads share.
FIXED_LAYERS = (
    "head", "auxiliary", "boundary_head", "score8", "score16", "score32", "query_key_value",
)  # fmt: skip
ROUND_TO = 8  # channels: vector units and tensor cores fill eight at a time


class PruningError(ValueError):
    """A network that cannot be pruned, or a ratio that makes no sense."""


def prune(model: str, out: Path, ratio: float) -> ModelFiles:
    """Write a model with `ratio` of the channels of its layers taken out, the smallest by their weights.

    The memory, what it touches, attention's queries and the outputs keep theirs.

    Args:
        model: a shipped model's name or a model's folder.
        out: folder of the new model.
        ratio: share of each group of channels, over 0 and under 1.

    Raises PruningError, and SpecError as `load` does.
    """
    if not 0 < ratio < 1:
        raise PruningError(f"ratio must be over 0 and under 1, got {ratio}")
    if find_spec("torch_pruning") is None:
        raise PruningError("torch-pruning is not installed: pip install 'roadmask[prune]'")
    if out.resolve() == find_model(model).folder.resolve():
        raise PruningError(f"{out} is the model itself: give another --out")
    network, spec = load(model)
    # Without its memory the network is a plain graph of layers, and the memory's channels stay.
    plain = build(replace(spec, recurrent=False)).eval()
    plain.load_state_dict(network.state_dict(), strict=False)
    _take_channels_out(plain, ratio)
    slim = replace(
        spec,
        name=f"{spec.name}-slim",
        shapes={**spec.shapes, **_changed_shapes(plain, network)},
        measured={},
        training={"pruned_from": spec.name, "ratio": ratio, "before": spec.training},
    )
    take_shapes(network, slim.shapes)
    network.load_state_dict(plain.state_dict(), strict=False)
    return save(out, network, slim)


def _take_channels_out(network: Network, ratio: float) -> None:
    import torch_pruning

    fixed = [m for name, m in network.named_modules() if name.split(".")[-1] in FIXED_LAYERS]
    example = torch.zeros(1, 1, network.in_channels, *EXAMPLE_HW)
    try:
        with warnings.catch_warnings():
            # Of parameters that are no layer's: they are handled as they should be.
            warnings.simplefilter("ignore")
            pruner = torch_pruning.MagnitudePruner(
                _Everything(network), example,
                importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=ratio, round_to=ROUND_TO, ignored_layers=fixed,
            )  # fmt: skip
            kept = set(network.memory_readers())
            for group in pruner.step(interactive=True):
                if not any(dependency.target.module in kept for dependency, _ in group):
                    group.prune()
        with torch.inference_mode():
            network.clip(example)
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise PruningError(f"this network cannot be pruned: {reason}") from error


class _Everything(nn.Module):
    """All outputs of a network's clip path, so that no layer lies outside the graph."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, frames: Tensor) -> list[Tensor]:
        logits, _, auxiliary = self.network.clip(frames)
        return [logits, *auxiliary.values()]


def _changed_shapes(slim: Network, whole: Network) -> dict[str, tuple[int, ...]]:
    before: dict[str, Any] = whole.state_dict()
    return {
        name: tuple(tensor.shape)
        for name, tensor in slim.state_dict().items()
        if tensor.shape != before[name].shape
    }
