"""The weights of two models of one network, averaged.

    roadmask average runs/before runs/after --share 0.3 --out runs/average

Training on from a model's weights teaches something new and forgets something old. Weights on the straight
line between before and after often have most of both, at no cost (Wortsman et al., "Robust fine-tuning of
zero-shot models", CVPR 2022). The models must have a history in common: weights learnt apart do not average.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from models.registry import load, save
from models.spec import ModelFiles, find_model

MUST_AGREE = (
    "network", "options", "shapes", "classes", "head", "in_channels", "boundary", "recurrent",
)  # fmt: skip


def average(model: str, other: str, share: float, out: Path) -> ModelFiles:
    """Write a model whose weights are `1 - share` of one model's and `share` of another's.

    All else is as the other model's specification says, which is the one trained later. Running means and
    variances of batch norm are averaged as the weights are.

    Args:
        model, other: shipped models' names or models' folders.
        share: of `other`, over 0 and under 1.
        out: folder of the new model.

    Raises ValueError for a share out of range or models that do not match, SpecError as `load` does.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be over 0 and under 1, got {share}")
    if out.resolve() in {find_model(name).folder.resolve() for name in (model, other)}:
        raise ValueError(f"{out} is one of the models: give another --out")
    (first, before), (network, spec) = load(model), load(other)
    for key in MUST_AGREE:
        expected, got = getattr(before, key), getattr(spec, key)
        if got != expected:
            raise ValueError(
                f"{other} has {key} {got}, {model} has {expected}: they do not average"
            )
    weights = first.state_dict()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(weights[name].lerp(tensor, share))
    training = {"average_of": [before.training, spec.training], "share_of_second": share}
    return save(out, network, replace(spec, training=training, measured={}))
