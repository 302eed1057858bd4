"""Kernels for the CUDA engine, made by PyTorch's own compiler ahead of time, so that no run waits for them.

Without them the engine runs PyTorch's ready-made kernels; the labels are the same but for rounding.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.program import export_program
from models.spec import ModelFiles
from pipeline.engines import EngineChoice
from pipeline.engines.artefacts import Artefact, model_facts
from pipeline.engines.device import Device, first_line, reporting
from pipeline.engines.loading import load_step
from pipeline.errors import EngineError


def artefact(
    choice: EngineChoice, files: ModelFiles, model_hw: tuple[int, int], device: Device
) -> Artefact:
    """Where the kernels for a size lie, and what they must depend on to fit."""
    facts = {
        **model_facts(files, choice.precision, model_hw),
        "torch": str(torch.__version__),
        "GPU": device.name,
    }
    return Artefact("cuda", files, model_hw, choice.precision, facts)


def build(
    choice: EngineChoice, files: ModelFiles, model_hw: tuple[int, int], streams: int, device: Device
) -> tuple[Artefact, int]:
    """Compile the step for 1 to `streams` streams and keep it; also the number of its operators.

    Raises EngineError where there is no compiler, or it fails.
    """
    step = load_step(files, choice.precision, device, model_hw, streams)
    # The compiler chooses layouts by itself only where the number of streams is fixed.
    step = step.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    program = export_program(step, model_hw, streams)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step.pt2"
        try:
            with reporting(device, model_hw, streams):
                program = program.run_decompositions({torch.ops.aten.pad.default: _padded})
                torch._inductor.aoti_compile_and_package(program, package_path=str(path))
        except EngineError:
            raise
        except Exception as error:  # whatever a compiler may raise
            raise EngineError(
                f"PyTorch's compiler failed ({first_line(error)[:200]}); it needs a C++ compiler, and"
                " Triton for a GPU. Without it --engine cuda runs ready-made kernels"
            ) from error
        where = artefact(choice, files, model_hw, device)
        where.save(path.read_bytes(), {"streams": streams})
    return where, sum(node.op == "call_function" for node in program.graph.nodes)


def _padded(
    x: Tensor, padding: list[int], mode: str = "constant", value: float | None = None
) -> Tensor:
    """Padding with the edge's pixels as a concatenation.

    PyTorch 2.13's compiler fails at the indices that it would else make of a padded pixel shuffle.
    """
    if mode != "replicate":
        return torch.ops.aten.constant_pad_nd(x, padding, value or 0.0)
    left, right, top, bottom = padding
    for dim, before, after in ((-1, left, right), (-2, top, bottom)):
        first, last = x.narrow(dim, 0, 1), x.narrow(dim, x.shape[dim] - 1, 1)
        x = torch.cat([first] * before + [x] + [last] * after, dim)
    return x


def load(
    choice: EngineChoice, files: ModelFiles, model_hw: tuple[int, int], device: Device
) -> tuple[Any, int] | None:
    """The compiled step, (planes, state) -> [labels, next state], and how many streams it takes at once;
    None if there is none that fits."""
    where = artefact(choice, files, model_hw, device)
    try:
        _, record = where.read()
        # Single-threaded, it asks for no event between calls, which a CUDA graph could not record; the
        # engine makes one call at a time anyway.
        step = torch._inductor.aoti_load_package(str(where.path), run_single_threaded=True)
        return step, int(record["streams"])
    except (EngineError, RuntimeError):
        return None  # PyTorch's own kernels do as well
