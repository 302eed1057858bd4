"""Real TensorRT-RTX engines on a machine without a GPU: `python -m tests.rtx NETWORK...` builds each network
as it is shipped, and small with every other head, with memory and without, and prints a line of JSON each.
`INT8` and `FP8` for a network stand for the shipped model in that precision.

The builder needs no GPU, but torch_tensorrt asks for one here and there. What it asks is answered below, for
this process alone: that is why it is one of its own.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from models.program import example_inputs, make_step
from models.quantization import FORMATS, calibrate, quantizers
from models.registry import build, save
from models.spec import Spec, find_model
from models.step import StreamStep
from models.tensorrt import BuiltEngine, ConversionError, build_engine, convert_program, watching
from pipeline.compile import read_footage
from tests.bench.memory import SAMPLE
from tests.networks import TINY

VARIANTS: list[dict[str, Any]] = [
    {"head": head, "boundary": boundary, "recurrent": recurrent}
    for recurrent in (True, False)
    for head, boundary in (("softmax", False), ("sigmoid", False), ("softmax", True))
][1:]  # the first is what is shipped
SHIPPED_HW, QUANTIZED_HW, TINY_HW = (360, 640), (184, 320), (40, 72)
LARGEST = 8


@contextmanager
def answering_for_a_gpu():  # type: ignore[no-untyped-def]
    """What torch_tensorrt asks of a GPU when it is imported."""
    card = SimpleNamespace(
        name="none", major=8, minor=9, total_memory=2**34, multi_processor_count=1
    )
    answers = {
        "get_device_capability": lambda device=None: (8, 9),
        "current_device": lambda: 0,
        "get_device_properties": lambda device=None: card,
        "mem_get_info": lambda device=None: (2**34, 2**34),
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    if not hasattr(torch._C, "_CudaDeviceProperties"):
        torch._C._CudaDeviceProperties = type("_CudaDeviceProperties", (), {})  # type: ignore[attr-defined]
    is_file = os.path.isfile
    # Its own runtime library wants CUDA's. It is not needed to build.
    with patch("os.path.isfile", lambda path: "libtorchtrt" not in str(path) and is_file(path)):
        yield


class Kept:
    """Stands for an engine on a GPU: its bytes."""

    def __init__(self, data: Any) -> None:
        self.data = bytes(data)

    def serialize(self) -> bytes:
        return self.data


class KeepingRuntime:
    """Stands for the runtime, which needs a GPU to read an engine."""

    def __init__(self, logger: object) -> None:
        pass

    def deserialize_cuda_engine(self, data: Any) -> Kept:
        return Kept(data)


def without_a_gpu() -> None:
    """Import torch_tensorrt and let it build."""
    with answering_for_a_gpu():
        import torch_tensorrt  # noqa: F401
    from torch_tensorrt.dynamo import _compiler
    from torch_tensorrt.dynamo.conversion import _TRTInterpreter

    _compiler.to_torch_device = lambda device: torch.device("cpu")
    library = ModuleType("tensorrt")
    library.__getattr__ = lambda name, whole=_TRTInterpreter.trt: getattr(whole, name)  # type: ignore[method-assign]
    library.Runtime = KeepingRuntime  # type: ignore[attr-defined]
    _TRTInterpreter.trt = library


def built(spec: Spec, size_hw: tuple[int, int]) -> tuple[BuiltEngine, dict[str, float]]:
    """A network's engine in half precision, and what it took from weights to engine."""
    with tempfile.TemporaryDirectory() as folder:
        files = save(Path(folder), build(spec), spec)
        began, worked = time.monotonic(), time.process_time()
        engine = build_engine(make_step(files, "f16"), size_hw, LARGEST, Path(folder) / "timing")
        took = {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - worked}
        return engine, took


def report(spec: Spec, size_hw: tuple[int, int], **more: object) -> dict[str, object]:
    """What is known of a network's engine, or of why there is none."""
    facts: dict[str, object] = {
        "network": spec.network, "head": spec.head, "boundary": spec.boundary,
        "recurrent": spec.recurrent, **more,
    }  # fmt: skip
    try:
        engine, took = built(spec, size_hw)
    except ConversionError as error:
        return {**facts, "error": str(error)}
    state = build(spec).state_shape(size_hw)
    return {
        **facts, **took, "converted": engine.coverage.converted,
        "operators": engine.coverage.total, "layers": engine.layers, "bytes": len(engine.data),
        "outputs": engine.outputs, "state": state, "size_hw": size_hw,
    }  # fmt: skip


def quantized(precision: str) -> dict[str, object]:
    """What is known of the shipped model's engine in INT8 or FP8.

    TensorRT-RTX takes quantised convolutions in FP8 alone: of INT8 there is the network that would be built.
    """
    files = find_model("roadnet")
    footage, _, _ = read_footage((str(SAMPLE),), 16, QUANTIZED_HW, files.spec())
    step = make_step(files, precision)
    calibrate(step, precision, footage[::2])
    differing = _differing(step, make_step(files, "f32"), footage[1::2])
    error = None
    with tempfile.TemporaryDirectory() as folder, watching() as seen:
        try:
            build_engine(step, QUANTIZED_HW, LARGEST, Path(folder) / "timing")
        except ConversionError as refused:
            error = str(refused)
    assert seen.coverage is not None
    return {
        "precision": precision, "error": error, "quantizers": len(quantizers(step)),
        "smallest": min(float(each.amax.min()) for each in quantizers(step)),
        "differing": differing, "converted": seen.coverage.converted,
        "operators": seen.coverage.total, "quantized": seen.quantized, "outputs": seen.outputs,
    }  # fmt: skip


def _differing(step: StreamStep, exact: StreamStep, footage: list[np.ndarray]) -> float:
    """Share of the pixels that two steps label differently, each with its own memory."""
    differing = []
    with torch.no_grad():
        states = [example_inputs(each, QUANTIZED_HW, 1)[1] for each in (step, exact)]
        for frame in footage:
            planes = torch.from_numpy(frame)[None]
            labels = []
            for number, each in enumerate((step, exact)):
                found, states[number] = each(planes, states[number])
                labels.append(found)
            differing.append(float((labels[0] != labels[1]).float().mean()))
    return sum(differing) / len(differing)


class Unsupported(nn.Module):
    """An operator that TensorRT has not."""

    def forward(self, planes: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return planes.int(), torch.linalg.qr(state.float())[0]


def refusal() -> dict[str, object]:
    """What is said of a network that cannot be converted."""
    spec = Spec("x", network="FCN", options=TINY["FCN"])
    with tempfile.TemporaryDirectory() as folder:
        step = make_step(save(Path(folder), build(spec), spec), "f16")
        example = (torch.zeros(2, 60, 72, dtype=torch.uint8), torch.zeros(2, 8, 2, 3).half())
        program = torch.export.export(Unsupported(), example, strict=False)
        try:
            convert_program(program, step, TINY_HW, LARGEST, Path(folder) / "timing")
        except ConversionError as error:
            return {"refusal": str(error)}
    return {"refusal": None}


def main(names: list[str]) -> None:
    without_a_gpu()
    print(json.dumps(refusal()), flush=True)
    for name in names:
        if name.lower() in FORMATS:
            print(json.dumps(quantized(name.lower())), flush=True)
            continue
        print(json.dumps(report(Spec(name, network=name), SHIPPED_HW, shipped=True)), flush=True)
        for variant in VARIANTS:
            spec = Spec(name, network=name, options=TINY[name], **variant)
            print(json.dumps(report(spec, TINY_HW, shipped=False)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
