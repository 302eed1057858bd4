"""The family, small: networks that are cheap and leave out none of their parts, and what they look at."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks.recurrent import Network
from models.registry import build
from models.spec import Spec
from tests.drives import TINY_ROADNET

TINY: dict[str, dict[str, object]] = {
    "RoadNet": {**TINY_ROADNET, "blocks": [1, 1, 1, 1]},
    "FCN": {"width": 8, "bottleneck": 16},
    "SegNet": {"width": 8},
    "UNet": {"width": 8},
    "DeepLabV3Plus": {"width": 8, "bottleneck": 16, "rates": [1, 2]},
    "SegFormer": {"widths": [8, 16, 24, 32], "depths": [1] * 4, "heads": [1, 2, 3, 4], "fused": 16},
}
SIZE = (40, 72)  # multiples of 8, of nothing more


def spec_of(name: str, **changes: object) -> Spec:
    return Spec(name, **{"network": name, "options": TINY[name], **changes})  # type: ignore[arg-type]


def footage(streams: int, times: int, planes: int = 3, size_hw: tuple[int, int] = SIZE) -> Tensor:
    """Coloured patches with noise over them, float [N, T, C, H, W], 0-255."""
    generator = torch.Generator().manual_seed(3)
    patches = torch.rand(streams * times, planes, 4, 6, generator=generator)
    whole = functional.interpolate(patches, size_hw, mode="nearest")
    noise = 0.1 * torch.rand(whole.shape, generator=generator)
    return (whole * 0.9 + noise).mul(255).unflatten(0, (streams, times))


def made(name: str, **changes: object) -> Network:
    """An untrained network whose norms have seen pictures, so that its labels differ over a frame."""
    torch.manual_seed(0)
    network = build(spec_of(name, **changes))
    for parameter in network.parameters():
        if parameter.ndim > 1 and not parameter.any():  # what begins as nothing takes part too
            nn.init.normal_(parameter, std=0.3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train().clip(footage(2, 2, network.in_channels))
    return network.eval()


def i420(frames: int) -> Tensor:
    """Patches as planar YUV, uint8 [T, 1, h * 3 // 2, w]."""
    height, width = SIZE
    rgb = footage(1, frames)[0]
    luma = rgb[:, :1]
    chroma = rgb[:, 1:, ::2, ::2].reshape(frames, 1, height // 2, width)
    return torch.cat([luma, chroma], 2).to(torch.uint8)
