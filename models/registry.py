"""From a name or a folder to a network with its weights."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from models.roadnet import RoadNet
from models.spec import ModelFiles, Spec, SpecError, find_model

NETWORKS: dict[str, type[RoadNet]] = {"RoadNet": RoadNet}


def build(spec: Spec) -> RoadNet:
    """The network a specification describes, untrained. Raises SpecError for an unknown one."""
    if spec.network not in NETWORKS:
        raise SpecError(f"unknown network {spec.network!r}: known are {', '.join(NETWORKS)}")
    try:
        return NETWORKS[spec.network](classes=len(spec.classes), **spec.options)
    except TypeError as error:
        raise SpecError(
            f"network {spec.network!r} does not take {spec.options}: {error}"
        ) from error


def load(name_or_path: str = "roadnet") -> tuple[RoadNet, Spec]:
    """A trained network in evaluation mode, and its specification.

    Raises SpecError if there is no such model, or its weights do not fit its specification.
    """
    files = find_model(name_or_path)
    spec = files.spec()
    network = build(spec)
    try:
        weights = load_file(files.weights_path)
    except Exception as error:  # safetensors raises its own type for a damaged file
        raise SpecError(f"{files.weights_path} is not a safetensors file: {error}") from error
    _check_fit(network, weights, files)
    network.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return network.eval(), spec


def _check_fit(network: RoadNet, weights: dict[str, torch.Tensor], files: ModelFiles) -> None:
    expected = network.state_dict()
    missing = sorted(expected.keys() - weights.keys())
    unknown = sorted(weights.keys() - expected.keys())
    if missing or unknown:
        problem = f"lacks {missing[0]!r}" if missing else f"holds unknown {unknown[0]!r}"
        count = len(missing) + len(unknown)
        raise SpecError(
            f"{files.weights_path} does not fit {files.spec_path.name}: it {problem}"
            f" ({count} such tensors)"
        )
    for name, tensor in expected.items():
        if weights[name].shape != tensor.shape:
            raise SpecError(
                f"{files.weights_path} does not fit {files.spec_path.name}: {name} must be"
                f" {list(tensor.shape)}, got {list(weights[name].shape)}"
            )


def save(folder: Path, network: RoadNet, spec: Spec) -> ModelFiles:
    """Write `spec.json` and `weights.safetensors` (fp16; counters of batch norm left as they are)."""
    folder.mkdir(parents=True, exist_ok=True)
    files = ModelFiles(folder)
    halves = {
        name: (t.half() if t.is_floating_point() else t).contiguous()
        for name, t in network.state_dict().items()
    }
    part = files.weights_path.with_suffix(".part")
    save_file(halves, part)
    part.replace(files.weights_path)
    files.spec_path.write_text(spec.to_json(), "utf-8")
    return files
