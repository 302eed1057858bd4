"""From a name or a folder to a network with its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import nn

from models.networks.deeplab import DeepLabV3Plus
from models.networks.fcn import FCN
from models.networks.recurrent import Network, Recurrent
from models.networks.roadnet import RoadNet
from models.networks.segformer import SegFormer
from models.networks.segnet import SegNet
from models.networks.unet import UNet
from models.spec import ModelFiles, Spec, SpecError, find_model

NETWORKS: dict[str, Callable[..., Network]] = {
    "RoadNet": RoadNet,
    "FCN": partial(Recurrent, FCN),
    "SegNet": partial(Recurrent, SegNet),
    "UNet": partial(Recurrent, UNet),
    "DeepLabV3Plus": partial(Recurrent, DeepLabV3Plus),
    "SegFormer": partial(Recurrent, SegFormer),
}


def build(spec: Spec) -> Network:
    """The network a specification describes, untrained.

    Raises SpecError for an unknown one, or options that it does not take.
    """
    if spec.network not in NETWORKS:
        raise SpecError(f"unknown network {spec.network!r}: known are {', '.join(NETWORKS)}")
    try:
        network = NETWORKS[spec.network](
            classes=len(spec.classes),
            in_channels=spec.in_channels,
            boundary=spec.boundary,
            recurrent=spec.recurrent,
            multi_label=spec.head == "sigmoid",
            **spec.options,
        )
        take_shapes(network, spec.shapes)
    except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError) as error:
        # Options come from a file: what they break in a constructor can be any of these.
        reason = str(error).splitlines()[0]
        raise SpecError(
            f"network {spec.network!r} does not take {spec.options}: {reason}"
        ) from error
    return network


def take_shapes(network: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give some of a network's tensors other shapes, zeros in them, and tell their layers.

    Raises ValueError for a tensor that the network does not have.
    """
    for name, shape in shapes.items():
        owner_name, _, attribute = name.rpartition(".")
        try:
            owner = network.get_submodule(owner_name)
            old = getattr(owner, attribute)
        except AttributeError as error:
            raise ValueError(f"shapes: there is no {name}") from error
        if not isinstance(old, torch.Tensor) or old.ndim != len(shape):
            raise ValueError(f"shapes: {name} cannot be {list(shape)}")
        new = torch.zeros(shape, dtype=old.dtype)
        setattr(owner, attribute, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
        if isinstance(owner, nn.Conv2d) and attribute == "weight":
            owner.out_channels, owner.in_channels = shape[0], shape[1] * owner.groups
        if isinstance(owner, nn.ConvTranspose2d) and attribute == "weight":
            owner.in_channels, owner.out_channels = shape[0], shape[1] * owner.groups
        if isinstance(owner, nn.BatchNorm2d) and attribute == "running_mean":
            owner.num_features = shape[0]


def load(name_or_path: str = "roadnet") -> tuple[Network, Spec]:
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


def _check_fit(network: Network, weights: dict[str, torch.Tensor], files: ModelFiles) -> None:
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


def save(folder: Path, network: Network, spec: Spec) -> ModelFiles:
    """Write `spec.json` and `weights.safetensors` (fp16; counters of batch norm left as they are)."""
    folder.mkdir(parents=True, exist_ok=True)
    files = ModelFiles(folder)
    halves = {
        name: (t.half() if t.is_floating_point() else t).contiguous()
        for name, t in network.state_dict().items()
    }
    weights, text = (p.with_suffix(".part") for p in (files.weights_path, files.spec_path))
    weights.write_bytes(serialize(halves))  # `save_file` would make it readable by its owner alone
    text.write_text(spec.to_json(), "utf-8")
    weights.replace(files.weights_path)
    text.replace(files.spec_path)
    return files
