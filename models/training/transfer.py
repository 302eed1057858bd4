"""What a training takes over from other models: first weights, or a teacher to learn from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from models.errors import DataError
from models.networks.recurrent import Network
from models.registry import load
from models.spec import Spec, find_model
from models.training.config import TrainConfig


def spec_to_train(config: TrainConfig) -> Spec:
    """The specification of the model to be trained: if it starts from a pruned one, with its shapes.

    Raises SpecError for a specification that contradicts itself, DataError if the pruned one is another.
    """
    spec = config.spec()
    if config.init is None:
        return spec
    pruned = find_model(config.init).spec()
    if not pruned.shapes:
        return spec
    for key in ("network", "options"):
        expected, got = getattr(pruned, key), getattr(spec, key)
        if got != expected:
            raise DataError(f"init: {config.init!r} is pruned: {key} must be {expected}, got {got}")
    return replace(spec, shapes=pruned.shapes)


def start_from(network: Network, model: str) -> str:
    """Copy the weights of another model where names and shapes fit; returns a line on what was taken.

    Raises DataError if nothing fits, SpecError if there is no such model.
    """
    other, _ = load(model)
    own, given = network.state_dict(), other.state_dict()
    fitting = {
        name: tensor
        for name, tensor in given.items()
        if name in own and own[name].shape == tensor.shape
    }
    if not fitting:
        raise DataError(f"init: no weight of {model!r} fits this network")
    network.load_state_dict(fitting, strict=False)
    fresh = [name for name in own if name not in fitting]
    rest = f"; new: {', '.join(fresh[:4])}{' and more' if len(fresh) > 4 else ''}" if fresh else ""
    return f"started from {model}: {len(fitting)} of {len(own)} tensors{rest}"


def origins(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """Of the model that a training starts from, and of its teacher, which they are and how they came about.

    Raises SpecError if there is no such model.
    """
    found = {}
    for role, model in (("started_from", config.init), ("taught_by", config.teacher)):
        if model is not None:
            files = find_model(model)
            found[role] = {
                "model": model,
                "weights_sha256": files.weights_sha256(),
                "training": files.spec().training,
            }
    return found


def load_teacher(config: TrainConfig) -> Network | None:
    """The teacher of a distillation, ready to be asked; None if there is none.

    Raises DataError if it does not answer the student's question, SpecError if there is no such model.
    """
    if config.teacher is None:
        return None
    network, spec = load(config.teacher)
    for key in ("classes", "head", "in_channels"):
        expected, got = getattr(config, key), getattr(spec, key)
        if got != expected:
            raise DataError(f"teacher {config.teacher!r}: {key} must be {expected}, got {got}")
    return network.requires_grad_(False)
