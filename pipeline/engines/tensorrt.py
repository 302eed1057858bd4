"""The TensorRT engine: built by `roadmask compile`, run inside the graph engine's CUDA graphs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import quantization, tensorrt
from models.program import DTYPES
from models.spec import ModelFiles
from pipeline.engines import EngineChoice
from pipeline.engines.artefacts import Artefact, calibration_of, model_facts
from pipeline.engines.cuda import GraphEngine
from pipeline.engines.device import CudaDevice, Device, first_line, reporting
from pipeline.engines.loading import load_step
from pipeline.errors import EngineError
from pipeline.settings import cache_folder

OUTPUTS = ("output0", "output1")  # labels and next state, as torch_tensorrt names them
INSTALL = "pip install 'roadmask[trt]' (or 'roadmask[trt-rtx]' for an RTX card)"


def tensorrt_problem(precision: str) -> str:
    """Why TensorRT can't be used on this machine, which has a CUDA device; empty if it can."""
    if find_spec("torch_tensorrt") is None:
        return f"torch_tensorrt is not installed: {INSTALL}"
    if find_spec("tensorrt") is None and find_spec("tensorrt_rtx") is None:
        return f"TensorRT's own libraries are not installed: {INSTALL}"
    try:
        import_module("torch_tensorrt")
    except Exception as error:  # without a library it raises a bare Exception
        return f"torch_tensorrt does not load ({first_line(error)}): {INSTALL}"
    if precision == "int8" and tensorrt.library_name() == "tensorrt_rtx":
        return "TensorRT-RTX (1.5) has no INT8 convolutions; --precision fp8 it takes"
    return ""


def artefact(
    choice: EngineChoice, files: ModelFiles, model_hw: tuple[int, int], device: Device
) -> Artefact:
    """Where the engine for a size lies, and what it must depend on to fit."""
    options = {name: str(value) for name, value in tensorrt.OPTIONS.items()}
    facts = {
        **model_facts(files, choice.precision, model_hw),
        **options,
        **tensorrt.versions(),
        "GPU": device.name,
    }
    return Artefact("tensorrt", files, model_hw, choice.precision, facts)


def build(
    choice: EngineChoice, files: ModelFiles, model_hw: tuple[int, int], streams: int, device: Device,
    footage: Sequence[np.ndarray] = (),
) -> tuple[Artefact, tensorrt.BuiltEngine]:  # fmt: skip
    """Build an engine for 1 to `streams` streams and keep it.

    Args:
        footage: for INT8 and FP8: frames uint8 [h * 3 // 2, w], I420, to calibrate with.

    Raises EngineError.
    """
    where = artefact(choice, files, model_hw, device)
    quantized = choice.precision in quantization.FORMATS
    if quantized and not footage:
        raise EngineError(f"{choice.precision} wants footage to calibrate with: `{where.command}`")
    step = load_step(files, choice.precision, device, model_hw, streams)
    try:
        with reporting(device, model_hw, streams):
            if quantized:
                quantization.calibrate(step, choice.precision, footage)
            built = tensorrt.build_engine(
                step, model_hw, streams, cache_folder() / "tensorrt-timing"
            )
    except quantization.QuantizationError as error:
        raise EngineError(str(error)) from error
    except tensorrt.ConversionError as error:
        raise EngineError(f"{error}: use --engine cuda") from error
    record: dict[str, Any] = {"streams": built.largest}
    if quantized:
        record["calibration"] = calibration_of(footage)
    where.save(built.data, record)
    return where, built


def tensorrt_engine(
    choice: EngineChoice,
    files: ModelFiles,
    model_hw: tuple[int, int],
    slots: int,
    device: Device | None = None,
) -> GraphEngine:
    """The engine from the cache folder.

    Raises EngineError, with the command to run, if there is none that fits.
    """
    device = device or CudaDevice()
    where = artefact(choice, files, model_hw, device)
    data, record = where.read()
    with reporting(device, model_hw, slots):
        plan = Plan(data, where.command)
    return GraphEngine(
        device, lambda size: plan.execution(size, device), state_chw=plan.state_chw,
        model_hw=model_hw, slots=slots, dtype=DTYPES[choice.precision],
        largest=int(record["streams"]),
    )  # fmt: skip


class Plan:
    """A deserialised engine, and the memory that its executions work in: one after the other, so that all
    share what the largest needs.

    Raises EngineError if TensorRT does not take it.
    """

    def __init__(self, data: bytes, command: str) -> None:
        import_module("torch_tensorrt")  # makes `tensorrt` TensorRT-RTX where that is installed
        runtime = import_module("tensorrt")
        self._library = runtime
        # The runtime must outlive what it has read.
        self._runtime = runtime.Runtime(runtime.Logger(runtime.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise EngineError(
                f"TensorRT {runtime.__version__} does not take the engine: run `{command}`"
            )
        self._memory: Tensor | None = None
        _, channels, rows, columns = self._shape("state", 1)
        self.state_chw = (channels, rows, columns)

    def _shape(self, name: str, streams: int) -> tuple[int, ...]:
        shape = self._engine.get_tensor_shape(name)
        return tuple(streams if size == -1 else int(size) for size in shape)

    def execution(self, streams: int, device: Device) -> Execution:
        """What runs the engine for just so many streams; no two at once."""
        # By default each would take what the largest batch needs.
        ours = self._library.ExecutionContextAllocationStrategy.USER_MANAGED
        strategies = getattr(self._library, "DynamicShapesKernelSpecializationStrategy", None)
        if strategies is None:
            context = self._engine.create_execution_context(ours)
        else:  # TensorRT-RTX would else change kernels later, which a captured graph can't
            config = self._engine.create_runtime_config()
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
            config.set_execution_context_allocation_strategy(ours)
            context = self._engine.create_execution_context(config)
        if context is None:
            raise RuntimeError("TensorRT made no execution context, most often for want of memory")
        if self._memory is None:
            size = max(1, int(self._engine.device_memory_size_v2))
            self._memory = torch.empty(size, dtype=torch.uint8, device=device.torch_device)
        context.set_device_memory(self._memory.data_ptr(), self._memory.numel())
        shapes = [self._shape(name, streams) for name in ("planes", "state", *OUTPUTS)]
        return Execution(context, device, shapes, self._memory)


class Execution:
    """The engine for one batch size. Each graph needs one of its own: the shapes are part of a capture.

    Args:
        context: TensorRT's.
        device: where it runs.
        shapes: of planes, state, labels and next state.
        memory: what the context works in; TensorRT itself does not hold it.
    """

    def __init__(
        self, context: Any, device: Device, shapes: list[tuple[int, ...]], memory: Tensor
    ) -> None:
        planes, state, labels, _ = shapes
        self._context, self._device, self._memory = context, device, memory
        for name, shape in (("planes", planes), ("state", state)):
            if not context.set_input_shape(name, shape):
                raise RuntimeError(f"TensorRT does not take {name} of the shape {list(shape)}")
        self._labels = torch.zeros(labels, dtype=torch.int32, device=device.torch_device)

    def __call__(self, planes: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        following = torch.empty_like(state)
        tensors = {
            "planes": planes,
            "state": state,
            OUTPUTS[0]: self._labels,
            OUTPUTS[1]: following,
        }
        for name, tensor in tensors.items():
            if not self._context.set_tensor_address(name, tensor.data_ptr()):
                raise RuntimeError(f"TensorRT does not take the memory of {name}")
        if not self._context.execute_async_v3(self._device.stream_handle()):
            raise RuntimeError("TensorRT could not run the network")
        return self._labels, following
