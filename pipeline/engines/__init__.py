"""Engines: what runs the network. They know tensors only, no paths, codecs or palettes.

An engine serves one input size. It holds the bank of hidden states, one slot a stream, on its own device;
nothing else in the pipeline ever sees a state, except as a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from models.spec import ModelFiles, Spec
from pipeline.errors import EngineError
from pipeline.settings import has_nvidia_driver

ENGINES = ("auto", "cpu", "cuda", "tensorrt")
PRECISIONS = ("auto", "f32", "bf16", "int8")


class Engine(Protocol):
    """One network, compiled for one input size, with its bank of states.

    Attributes:
        slots: how many streams the bank holds.
        batches: whether several streams in one call are faster than one after the other; where they
            are not, nobody needs to wait for company.
    """

    slots: int
    batches: bool

    def step(self, frames: np.ndarray, slots: Sequence[int], reset: Sequence[bool]) -> np.ndarray:
        """Advance N streams by T frames each.

        Args:
            frames: uint8 [N, T, h * 3 // 2, w], I420, BT.601 limited range.
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
        name: "cpu", "cuda" or "counting".
        runtime: what runs it, with its precision: "OpenVINO bf16", "torch float32", ...
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
    if name == "tensorrt":
        raise EngineError(
            "engine 'tensorrt' is not in this version: use --engine cuda on an NVIDIA GPU, or auto"
        )
    if name in ("auto", "cuda"):
        problem = _cuda_problem()
        if not problem and precision == "auto":
            return EngineChoice("cuda", "torch float16", "a CUDA device is here")
        problem = problem or f"it has no precision {precision!r} in this version"
        if name == "cuda":
            raise EngineError(f"engine 'cuda' cannot run here: {problem}; use --engine cpu or auto")
    from pipeline.engines.cpu import choose_cpu

    return choose_cpu(problem if name == "auto" else "asked for", precision)


def check_fit(choice: EngineChoice, files: ModelFiles) -> str | None:
    """SHA-256 of the form of the model that the engine reads, None if it reads the weights themselves.

    Raises EngineError if the chosen precision needs a form that is not there.
    """
    if choice.precision != "int8":
        return None
    from models.export import QuantizationError, check_int8

    try:
        return check_int8(files)
    except QuantizationError as error:
        raise EngineError(str(error)) from error


def _cuda_problem() -> str:
    if not has_nvidia_driver():
        return "no NVIDIA driver is loaded"
    import torch

    return "" if torch.cuda.is_available() else "torch finds no CUDA device"


def engine_factory(choice: EngineChoice, files: ModelFiles, spec: Spec, slots: int) -> MakeEngine:
    """A function that makes the chosen engine for an input size (h, w)."""

    def make(model_hw: tuple[int, int]) -> Engine:
        if choice.name == "counting":
            from pipeline.engines.counting import CountingEngine

            return CountingEngine(model_hw, slots)
        if choice.runtime.startswith("OpenVINO"):
            from pipeline.engines.cpu import OpenVinoEngine

            return OpenVinoEngine(choice, files, model_hw, slots)
        from pipeline.engines.eager import EagerEngine

        return EagerEngine(choice, files, model_hw, slots)

    return make
