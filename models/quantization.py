"""INT8 and FP8 for TensorRT: nvidia-modelopt's quantisers at every convolution, from which torch_tensorrt
makes layers that quantise and dequantise.

Post-training quantisation, no training: weights in steps of their own a channel (INT8) or a tensor (FP8,
E4M3: OCP 8-bit Floating Point Specification 1.0), activations by the largest value seen in footage. What is
not a convolution or a product with weights stays in half precision: upsampling, the gates' sigmoid and
tanh, attention's own products. (OpenVINO has INT8 of its own, made by NNCF: `models.export`.)
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.errors import QuantizationError
from models.program import example_inputs
from models.step import StreamStep

# How modelopt describes the numbers of weights and of activations: bits, or those of exponent and mantissa;
# axis 0 for a step a channel.
FORMATS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "int8": ({"num_bits": 8, "axis": 0}, {"num_bits": 8, "axis": None}),
    "fp8": ({"num_bits": (4, 3), "axis": None}, {"num_bits": (4, 3), "axis": None}),
}
SMALLEST_RANGE = 1e-4
_BACKEND = "roadmask"  # the name under which modelopt finds `_to_operator`


def ensure_modelopt() -> None:
    """Raises QuantizationError if what `calibrate` needs is not installed."""
    if find_spec("modelopt") is None or find_spec("huggingface_hub") is None:
        raise QuantizationError(
            "nvidia-modelopt is not installed, or not what it imports: pip install"
            " 'roadmask[trt-quantize]'"
        )


def calibrate(step: StreamStep, precision: str, frames: Iterable[np.ndarray]) -> int:
    """Put quantisers into a step, in place, and let footage set their ranges.

    Args:
        step: on the device that calibrates; the step in half precision that `make_step` gives.
        precision: "int8" or "fp8".
        frames: uint8 [h * 3 // 2, w], I420, of one size: footage like what will be seen. The state is
            carried from each to the next, so that its ranges are known too.

    Returns how many frames there were. Raises QuantizationError if there are none, and as `ensure_modelopt`.
    """
    ensure_modelopt()
    modelopt = import_module("modelopt.torch.quantization")
    weights, activations = FORMATS[precision]
    chosen = [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*weight_quantizer", "cfg": weights},
        {"quantizer_name": "*input_quantizer", "cfg": activations},
    ]
    seen = 0

    def see(_: object) -> None:
        nonlocal seen
        state: Tensor | None = None
        for frame in frames:
            if state is None:
                size_hw = (frame.shape[0] * 2 // 3, frame.shape[1])
                state = example_inputs(step, size_hw, 1)[1]
            planes = torch.from_numpy(np.ascontiguousarray(frame))[None].to(state.device)
            _, state = step(planes, state)
            seen += 1

    with torch.no_grad(), redirect_stdout(sys.stderr):  # it tells how many it put in
        modelopt.quantize(step.network, {"quant_cfg": chosen, "algorithm": "max"}, forward_loop=see)
    if seen == 0:
        raise QuantizationError("there are no frames to calibrate with")
    for quantizer in quantizers(step):
        # A channel whose weights are all zero has no range, and TensorRT takes no step of zero. What is
        # smaller than this has in half precision no steps to speak of.
        quantizer.amax = quantizer.amax.float().clamp(min=SMALLEST_RANGE)
    return seen


def quantizers(step: StreamStep) -> list[Any]:
    """A step's quantisers at work; none if it was not calibrated."""
    # By name: modelopt is only there where a step may have any.
    found = [module for module in step.modules() if type(module).__name__ == "TensorQuantizer"]
    return [module for module in found if module.is_enabled]


@contextmanager
def as_operators(step: StreamStep) -> Iterator[None]:
    """Within, exporting and converting a step see each of its quantisers as one operator.

    modelopt exports that operator from a GPU alone, and to run it in INT8 there wants an extension that it
    compiles with the CUDA toolkit, which torch_tensorrt then asks of it for the weights, though it does not
    use what it gets. So neither a GPU nor a toolkit is needed to build.
    """
    at_work = quantizers(step)
    if not at_work:
        yield
        return
    internals: Any = import_module("modelopt.torch.quantization.tensor_quant")
    module = import_module("modelopt.torch.quantization.nn.modules.tensor_quantizer")
    utilities = import_module("modelopt.torch.quantization.utils")
    if not module.is_registered_quant_backend(_BACKEND):
        module.register_quant_backend(_BACKEND, _to_operator)
    extension = internals.fake_quant_impl
    try:
        internals.fake_quant_impl = internals._tensor_quant  # the same in plain PyTorch
        for quantizer in at_work:
            quantizer.backend = _BACKEND
        with utilities.export_torch_mode():
            yield
    finally:
        internals.fake_quant_impl = extension
        for quantizer in at_work:
            quantizer.backend = None


def _to_operator(values: Tensor, quantizer: Any) -> Tensor:
    """The operator that torch_tensorrt has a converter for."""
    exponent_bits = quantizer.num_bits[0] if isinstance(quantizer.num_bits, tuple) else 0
    found: Tensor = torch.ops.tensorrt.quantize_op(
        values, quantizer.amax, 8, exponent_bits, False, False
    )
    return found
