"""From the exported step to a TensorRT engine, by torch_tensorrt's converters.

The same code builds for TensorRT (the extra `trt`) and for TensorRT-RTX (`trt-rtx`), whichever of the two
torch_tensorrt was made for. Precision lies in the model: TensorRT 11 is strongly typed.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from models.program import example_inputs, export_program
from models.quantization import as_operators
from models.step import StreamStep

BEST_STREAMS = 8  # the batch that kernels are chosen for, if the engine takes as many
# How engines are built: part of what an engine depends on.
OPTIONS = {"require_full_compilation": True, "optimization_level": 3}


class ConversionError(Exception):
    """An operator that TensorRT does not take, or an engine that it cannot build."""


@dataclass(frozen=True)
class Coverage:
    """How much of a program TensorRT takes.

    Attributes:
        converted: operators that have a converter.
        total: all operators, after decomposition.
        missing: names of those that have none.
    """

    converted: int
    total: int
    missing: tuple[str, ...]


@dataclass(frozen=True)
class BuiltEngine:
    """A serialised engine, and what is in it.

    Attributes:
        data: the engine.
        coverage: of the program it was built from.
        layers: layers of TensorRT's network.
        outputs: name, type and shape of each output, -1 for the streams.
        largest: streams it takes at once.
    """

    data: bytes
    coverage: Coverage
    layers: int
    outputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    largest: int


def versions() -> dict[str, str]:
    """Of torch_tensorrt, TensorRT and torch; imports them all, so ask only where they are there."""
    converters = import_module(
        "torch_tensorrt"
    )  # makes `tensorrt` TensorRT-RTX where that is installed
    return {
        "torch": str(torch.__version__),
        "torch_tensorrt": str(converters.__version__),
        library_name(): str(import_module("tensorrt").__version__),
    }


def library_name() -> str:
    """The library that torch_tensorrt was made for, once that is imported: "tensorrt" or "tensorrt_rtx"."""
    return str(getattr(import_module("tensorrt"), "_package_name", "tensorrt"))


def build_engine(
    step: StreamStep, size_hw: tuple[int, int], largest: int, timing_cache: Path
) -> BuiltEngine:
    """A TensorRT engine of a step for frames of `size_hw` and 1 to `largest` streams.

    A step that `models.quantization` has calibrated becomes one that multiplies in INT8 or FP8.

    Its inputs are `planes` and `state`; its outputs, in this order, the labels int32 and the next state.

    Raises ConversionError.
    """
    largest = max(2, largest)  # a range of one is no range to torch.export
    with as_operators(step):
        program = export_program(step, size_hw, largest)
        return convert_program(program, step, size_hw, largest, timing_cache)


def convert_program(
    program: ExportedProgram, step: StreamStep, size_hw: tuple[int, int], largest: int,
    timing_cache: Path,
) -> BuiltEngine:  # fmt: skip
    """As `build_engine`, of a program that was exported from the step before."""
    from torch_tensorrt import Input, dynamo

    inputs = []
    for name, example in zip(("planes", "state"), example_inputs(step, size_hw, 1), strict=True):
        shape = tuple(example.shape[1:])
        inputs.append(
            Input(
                min_shape=(1, *shape), opt_shape=(min(BEST_STREAMS, largest), *shape),
                max_shape=(largest, *shape), dtype=example.dtype, name=name,
            )
        )  # fmt: skip
    timing_cache.parent.mkdir(parents=True, exist_ok=True)
    with watching() as seen, _quiet():
        try:
            data = dynamo.convert_exported_program_to_serialized_trt_engine(
                program, arg_inputs=inputs, timing_cache_path=os.fspath(timing_cache), **OPTIONS
            )
        except Exception as error:  # whatever a converter may raise
            missing = ", ".join(seen.coverage.missing) if seen.coverage else ""
            first = str(error).strip().split("\n")[0][:200]
            raise ConversionError(
                f"TensorRT does not take {missing}"
                if missing
                else f"TensorRT cannot build: {first}"
            ) from error
    assert seen.coverage is not None
    return BuiltEngine(bytes(data), seen.coverage, seen.layers, tuple(seen.outputs), largest)


class Seen:
    """What a conversion came by; `quantized` are the layers that quantise, by their numbers' format."""

    def __init__(self) -> None:
        self.coverage: Coverage | None = None
        self.layers = 0
        self.quantized: Counter[str] = Counter()
        self.outputs: list[tuple[str, str, tuple[int, ...]]] = []


@contextmanager
def watching() -> Iterator[Seen]:
    """Look at the graph that is converted, and at the network made of it, as both go by."""
    from torch_tensorrt.dynamo.conversion._TRTInterpreter import TRTInterpreter

    seen = Seen()
    construct = TRTInterpreter._construct_trt_network_def

    def watched(self: Any) -> None:
        nodes = [node for node in self.module.graph.nodes if node.op.startswith("call_")]
        missing = sorted(self.validate_conversion())
        lacking = [node for node in nodes if _has_no_converter(node)]
        seen.coverage = Coverage(len(nodes) - len(lacking), len(nodes), tuple(missing))
        construct(self)
        network = self.ctx.net
        seen.layers = network.num_layers
        for number in range(network.num_layers):
            layer = network.get_layer(number)
            if layer.type.name == "QUANTIZE":
                seen.quantized[layer.get_output(0).dtype.name] += 1
        for number in range(network.num_outputs):
            output = network.get_output(number)
            seen.outputs.append((output.name, output.dtype.name, tuple(output.shape)))

    TRTInterpreter._construct_trt_network_def = watched
    try:
        yield seen
    finally:
        TRTInterpreter._construct_trt_network_def = construct


def _has_no_converter(node: Any) -> bool:
    from torch_tensorrt.dynamo.conversion._ConverterRegistry import DYNAMO_CONVERTERS

    return DYNAMO_CONVERTERS.get(node) is None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch_tensorrt's own log of a failure: the graph as a whole."""
    logger = logging.getLogger("torch_tensorrt")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
