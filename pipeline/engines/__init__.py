"""Engines: what runs the network. They know tensors only, no paths, codecs or palettes.

An engine serves one input size. It holds the bank of hidden states, one slot a stream, on its own device;
nothing else in the pipeline ever sees a state, except as a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from models.spec import ModelFiles, Spec
from pipeline.errors import EngineError
from pipeline.frames import StreamsPixels
from pipeline.settings import has_nvidia_driver

ENGINES = ("auto", "cpu", "cuda", "tensorrt")
CPU_PRECISIONS = ("auto", "f32", "bf16", "int8")
GPU_PRECISIONS = ("auto", "f32", "f16", "bf16")
TENSORRT_PRECISIONS = (*GPU_PRECISIONS, "int8", "fp8")
PRECISIONS = ("auto", "f32", "f16", "bf16", "int8", "fp8")
FP8_CAPABILITY = (8, 9)  # Ada and newer
TENSORRT_NEEDS = "it needs an NVIDIA GPU and pip install 'roadmask[trt]'"


class Engine(Protocol):
    """One network, compiled for one input size, with its bank of states.

    Attributes:
        slots: how many streams the bank holds.
        batches: whether several streams in one call are faster than one after the other; where they
            are not, nobody needs to wait for company.
    """

    slots: int
    batches: bool

    def step(
        self, frames: StreamsPixels, slots: Sequence[int], reset: Sequence[bool]
    ) -> np.ndarray:
        """Advance N streams by T frames each.

        Args:
            frames: of each stream uint8 [T, h * 3 // 2, w], I420, BT.601 limited range; or of all of them
                [N, T, ...]. Tensors on the device only where the engine is on it too.
            slots: N different rows of the bank, one a stream.
            reset: N flags: start from zeros instead of the slot's state.

        Returns:
            labels uint8 [N, T, h, w]. The same whatever N and T the frames come in.
        """
        ...

    def read_state(self, slot: int) -> np.ndarray:
        """A copy of a slot's state, float32 [C, hs, ws]."""
        ...

    def write_state(self, slot: int, state: np.ndarray) -> None:
        """Put a state that `read_state` gave into a slot."""
        ...


MakeEngine = Callable[[tuple[int, int]], Engine]


@dataclass(frozen=True)
class EngineChoice:
    """An engine and why it was taken; both stand in the log and the manifest.

    Attributes:
        name: "cpu", "cuda", "tensorrt" or "counting".
        runtime: what runs it, with its precision: "OpenVINO bf16", "CUDA graphs f16", ...
        reason: why, in words.
        threads: threads the engine computes with; 0 leaves it to the runtime.
    """

    name: str
    runtime: str
    reason: str
    threads: int = 0

    @property
    def precision(self) -> str:
        """What the network multiplies in, as `runtime` says it."""
        return self.runtime.split()[-1]

    @property
    def on_gpu(self) -> bool:
        """Whether its network, states and batches are a GPU's."""
        return self.name in ("cuda", "tensorrt")


def choose_engine(name: str, precision: str = "auto") -> EngineChoice:
    """Decide what runs the network on this machine.

    Raises EngineError for an unknown engine or precision, or one that was asked for and cannot be had.
    """
    if precision not in PRECISIONS:
        raise EngineError(f"unknown precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    if name == "counting":
        return EngineChoice("counting", "NumPy", "asked for; it proves the order of frames")
    if name not in ENGINES:
        raise EngineError(f"unknown engine {name!r}: choose one of {', '.join(ENGINES)}")
    if name == "cpu":
        return _choose_cpu("asked for", precision)
    problem = _gpu_problem("cuda" if name == "auto" else name, precision)
    if not problem:
        found = "a CUDA device is here" if name == "auto" else "asked for"
        runtime = "TensorRT" if name == "tensorrt" else "CUDA graphs"
        multiplied = "f16" if precision == "auto" else precision
        return EngineChoice("cuda" if name == "auto" else name, f"{runtime} {multiplied}", found)
    if name == "auto":
        return _choose_cpu(problem, precision)
    raise EngineError(f"engine {name!r} cannot run here: {problem}; use --engine cpu or auto")


def _choose_cpu(why: str, precision: str) -> EngineChoice:
    if precision not in CPU_PRECISIONS:
        where = "GPUs" if precision in GPU_PRECISIONS else "--engine tensorrt"
        raise EngineError(
            f"precision {precision!r} is for {where}: a CPU takes {', '.join(CPU_PRECISIONS)}"
        )
    from pipeline.engines.cpu import choose_cpu

    return choose_cpu(why, precision)


def _gpu_problem(name: str, precision: str) -> str:
    """Why an engine can't run on this machine's GPU, if there is one; empty if it can."""
    if not has_nvidia_driver():
        return "no NVIDIA driver is loaded" + ("" if name == "cuda" else f" ({TENSORRT_NEEDS})")
    import torch

    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    taken = TENSORRT_PRECISIONS if name == "tensorrt" else GPU_PRECISIONS
    if precision not in taken:
        return f"it takes precision {', '.join(taken)}, got {precision!r}"
    if name == "cuda":
        return ""
    if precision == "fp8" and (found := torch.cuda.get_device_capability()) < FP8_CAPABILITY:
        return (
            f"FP8 wants a GPU of compute capability {'.'.join(map(str, FP8_CAPABILITY))} or more,"
            f" this one has {'.'.join(map(str, found))}; --precision int8 it has"
        )
    from pipeline.engines.tensorrt import tensorrt_problem

    return tensorrt_problem(precision)


def with_kernels(choice: EngineChoice, files: ModelFiles) -> EngineChoice:
    """The choice, its reason saying which kernels a CUDA engine will have."""
    if choice.name != "cuda":
        return choice
    from pipeline.engines.artefacts import built_sizes

    sizes = built_sizes("cuda", files, choice.precision)
    if sizes:
        kernels = f"kernels were compiled for {', '.join(sizes)}"
    else:
        kernels = "PyTorch's own kernels, for `roadmask compile --engine cuda` has made none"
    return replace(choice, reason=f"{choice.reason}; {kernels}")


def check_fit(choice: EngineChoice, files: ModelFiles) -> str | None:
    """SHA-256 of the form of the model that the engine reads, None if it reads the weights themselves.

    Of TensorRT in INT8 or FP8: of what its engines were calibrated with.

    Raises EngineError if the chosen precision needs a form that is not there.
    """
    if choice.name == "tensorrt":
        from pipeline.engines.artefacts import calibrations

        return calibrations(files, choice.precision)
    if choice.name != "cpu" or choice.precision != "int8":
        return None
    from models.errors import QuantizationError
    from models.export import check_int8

    try:
        return check_int8(files)
    except QuantizationError as error:
        raise EngineError(str(error)) from error


def engine_factory(choice: EngineChoice, files: ModelFiles, spec: Spec, slots: int) -> MakeEngine:
    """A function that makes the chosen engine for an input size (h, w)."""

    def make(model_hw: tuple[int, int]) -> Engine:
        if choice.name == "counting":
            from pipeline.engines.counting import CountingEngine

            return CountingEngine(model_hw, slots)
        if choice.runtime.startswith("OpenVINO"):
            from pipeline.engines.cpu import OpenVinoEngine

            return OpenVinoEngine(choice, files, model_hw, slots)
        if choice.name == "tensorrt":
            from pipeline.engines.tensorrt import tensorrt_engine

            return tensorrt_engine(choice, files, model_hw, slots)
        if choice.name == "cuda" and choice.runtime.startswith("CUDA"):
            from pipeline.engines.cuda import cuda_engine

            return cuda_engine(choice, files, model_hw, slots)
        from pipeline.engines.eager import EagerEngine

        return EagerEngine(choice, files, model_hw, slots)

    return make
