"""Learning rates, optimisers, and the averaged weights that are kept."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from models.training.config import Phase, TrainConfig


def learning_rate(phase: Phase, step: int) -> float:
    """Linear warm-up, then from the peak to the final rate along half a cosine or a polynomial.

    Args:
        step: of the phase, from 0.
    """
    if step < phase.warmup_steps:
        return phase.peak_rate * (step + 1) / phase.warmup_steps
    done = (step - phase.warmup_steps) / max(1, phase.steps - phase.warmup_steps)
    if phase.schedule == "poly":
        left = (1 - done) ** phase.poly_power
    else:
        left = 0.5 * (1 + math.cos(math.pi * done))
    return phase.final_rate + (phase.peak_rate - phase.final_rate) * left


def make_optimizer(network: nn.Module, config: TrainConfig) -> Optimizer:
    """The optimiser a configuration names; its learning rate is set anew each step."""
    groups = _decay_groups(network, config.weight_decay)
    if config.optimizer == "sgd":
        momentum = config.momentum
        return SGD(groups, lr=1e-3, momentum=momentum, nesterov=momentum > 0)
    return Adam(groups) if config.optimizer == "adam" else AdamW(groups)


def _decay_groups(network: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Weight decay for kernels only: biases and batch norm keep their scale."""
    kernels = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    return [{"params": kernels, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Move an exponential moving average of all weights and buffers on by one step."""
    # A young average follows fast, else the first thousand steps weigh it down.
    decay = min(decay, (1 + step) / (10 + step))
    for mean, now in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(now, 1 - decay)
        else:
            mean.copy_(now)
