"""What `roadmask compile` builds for each engine, and the cache folder then holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.spec import ModelFiles
from pipeline.engines import EngineChoice, engine_factory
from pipeline.engines.device import CudaDevice
from pipeline.errors import EngineError, OutputError


@dataclass(frozen=True)
class Built:
    """An engine on disk.

    Attributes:
        path: its file.
        size_bytes: of all its files.
        converted: operators of the network that its runtime takes.
        operators: all of them.
        forget: makes sure that nobody uses it, where it turns out not to be right.
    """

    path: Path
    size_bytes: int
    converted: int
    operators: int
    forget: Callable[[], None] = lambda: None


def build(
    choice: EngineChoice, files: ModelFiles, model_hw: tuple[int, int], streams: int,
    footage: Sequence[np.ndarray] = (),
) -> Built:  # fmt: skip
    """Build an engine for 1 to `streams` streams, anew even if there is one.

    Args:
        footage: for a TensorRT engine in INT8 or FP8: frames uint8 [h * 3 // 2, w], I420, to calibrate with.

    Raises EngineError, ModelError or OutputError.
    """
    if choice.name == "cpu":
        return _build_openvino(choice, files, model_hw)
    if not choice.on_gpu:
        raise EngineError(f"engine {choice.name!r} needs no compiling")
    device = CudaDevice()
    if choice.name == "cuda":
        from pipeline.engines import inductor

        where, operators = inductor.build(choice, files, model_hw, streams, device)
        return Built(where.path, where.path.stat().st_size, operators, operators, where.forget)
    from pipeline.engines import tensorrt

    where, built = tensorrt.build(choice, files, model_hw, streams, device, footage)
    coverage = built.coverage
    return Built(where.path, len(built.data), coverage.converted, coverage.total, where.forget)


def _build_openvino(choice: EngineChoice, files: ModelFiles, model_hw: tuple[int, int]) -> Built:
    from models.export import core, fix_size, int8_path
    from pipeline.engines.cpu import converted_path

    if not choice.runtime.startswith("OpenVINO"):
        raise EngineError("there is nothing to compile without OpenVINO: pip install openvino")
    path = int8_path(files) if choice.precision == "int8" else converted_path(files)
    if choice.precision != "int8":
        path.unlink(missing_ok=True)
    engine_factory(choice, files, files.spec(), 1)(model_hw)  # converts and keeps what isn't there
    if not path.is_file():
        raise OutputError(f"cannot write to the cache folder {path.parent}")
    model = core().read_model(path)
    fix_size(model, model_hw)
    sizes = [part.stat().st_size for part in (path, path.with_suffix(".bin"))]
    return Built(path, sum(sizes), len(core().query_model(model, "CPU")), len(model.get_ops()))
