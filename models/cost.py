"""What a network costs: `python -m models.cost [HxW]` prints it for the whole family."""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from models.networks.recurrent import Network
from models.registry import NETWORKS, build
from models.spec import Spec


@dataclass(frozen=True)
class Cost:
    """What one frame of one stream costs.

    Attributes:
        parameters: learnt numbers, those for training only among them.
        gflops: 1e9 operations a frame, each multiply-add counted as two, of convolutions and matrix
            products; what runs for each pixel (norms, activations, resizing) is left out, as is usual.
    """

    parameters: int
    gflops: float


def cost(network: Network, size_hw: tuple[int, int]) -> Cost:
    """Counts on shapes alone: nothing is computed, and the network stays as it is."""
    shapes = copy.deepcopy(network).eval().to("meta")
    frames = torch.zeros(1, network.in_channels, *size_hw, device="meta")
    state = torch.zeros(1, *network.state_shape(size_hw), device="meta")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        shapes(frames, state)
    parameters = sum(tensor.numel() for tensor in network.parameters())
    return Cost(parameters, counter.get_total_flops() / 1e9)


def main(size_hw: tuple[int, int]) -> None:
    """Print the table."""
    print(f"one frame, {size_hw[1]}x{size_hw[0]}")
    print(f"{'':16}{'M parameters':>14}{'GFLOPs':>9}{'without memory':>18}{'GFLOPs':>9}")
    for name in NETWORKS:
        row = f"{name:16}"
        for recurrent, room in ((True, 14), (False, 18)):
            found = cost(build(Spec(name, network=name, recurrent=recurrent)), size_hw)
            row += f"{found.parameters / 1e6:{room}.2f}{found.gflops:9.2f}"
        print(row)


if __name__ == "__main__":
    height, width = (sys.argv[1] if len(sys.argv) > 1 else "360x480").split("x")
    main((int(height), int(width)))
