"""The step as GPUs run it: weights in half precision, batch norm folded into the convolutions before it, and
exported as one graph of any number of streams.

Colours and the normalisation stay in float32, whatever the weights are in: a byte has more steps between
128 and 255 than bfloat16 does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.registry import load
from models.spec import ModelFiles
from models.step import StreamStep

# Of weights and states; what is quantised is so between them.
DTYPES = {
    "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16,
    "int8": torch.float16, "fp8": torch.float16,
}  # fmt: skip


def make_step(files: ModelFiles, precision: str) -> StreamStep:
    """A model's step for inference, its weights in `precision`: "f32", "f16" or "bf16".

    For "int8" and "fp8" they are in float16, for `models.quantization` to put quantisers between.

    Its input stays uint8 and its labels int32; its state has the weights' precision.

    Raises SpecError if the weights do not fit the specification.
    """
    network, _ = load(str(files.folder))
    fold_batch_norms(network)
    mean, std = network.mean, network.std
    network.to(DTYPES[precision])
    network.mean, network.std = mean, std
    return StreamStep(network).eval().requires_grad_(False)


def fold_batch_norms(network: nn.Module) -> None:
    """Multiply each batch norm that follows a convolution in a `Sequential` into it, in place."""
    for module in list(network.modules()):
        if not isinstance(module, nn.Sequential):
            continue
        for at in range(len(module) - 1):
            before, after = module[at], module[at + 1]
            if isinstance(before, nn.Conv2d) and isinstance(after, nn.BatchNorm2d):
                module[at] = fuse_conv_bn_eval(before, after)
                module[at + 1] = nn.Identity()


def state_shape(step: StreamStep, size_hw: tuple[int, int]) -> tuple[int, int, int]:
    """Shape [C, h, w] of one stream's state for frames of `size_hw`."""
    return step.network.state_shape(size_hw)


def example_inputs(
    step: StreamStep, size_hw: tuple[int, int], streams: int
) -> tuple[Tensor, Tensor]:
    """Inputs of the right shapes, on the step's device: planes uint8 and a state, all zeros."""
    height, width = size_hw
    weights = next(step.network.parameters())
    shape = state_shape(step, size_hw)
    return (
        torch.zeros(streams, height * 3 // 2, width, dtype=torch.uint8, device=weights.device),
        torch.zeros(streams, *shape, dtype=weights.dtype, device=weights.device),
    )


def export_program(step: StreamStep, size_hw: tuple[int, int], largest: int) -> ExportedProgram:
    """The step as one graph for frames of `size_hw` and 1 to `largest` streams.

    Its inputs are `planes` and `state`, its outputs the labels and the next state.
    """
    streams = Dim("streams", min=1, max=max(2, largest))
    # Of one example stream, export would make a constant.
    example = example_inputs(step, size_hw, 2)
    with torch.inference_mode(False), torch.no_grad():
        return export(
            _Separate(step), example, strict=False, dynamic_shapes=({0: streams}, {0: streams})
        )


class _Separate(nn.Module):
    """The step with a next state that is never the input itself.

    A network without memory hands its state on as it came, and TensorRT has no output that is an input.
    """

    def __init__(self, step: StreamStep) -> None:
        super().__init__()
        self.step = step

    def forward(self, planes: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        labels, following = self.step(planes, state)
        return labels, following if self.step.network.recurrent else following + 0.0
