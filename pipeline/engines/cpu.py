"""The CPU engine: the step compiled by OpenVINO, in bfloat16 where the CPU multiplies it.

Frames go through one at a time: on a CPU a batch gains little, and so the labels cannot depend on which
other streams, or how many frames of its own, a frame is batched with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import models
from models.export import convert, core, fix_size, int8_path, openvino, save_whole
from models.spec import ModelFiles, SpecError
from pipeline.engines import EngineChoice
from pipeline.errors import EngineError, ModelError
from pipeline.frames import StreamsPixels
from pipeline.settings import available_cores, cache_folder, cpu_has_amx


def choose_cpu(why: str, precision: str = "auto") -> EngineChoice:
    """OpenVINO in the CPU's best precision, or PyTorch where OpenVINO is not installed.

    Raises EngineError for a precision that cannot be had here.
    """
    cores = available_cores()
    if find_spec("openvino") is None:
        if precision not in ("auto", "f32"):
            raise EngineError(
                f"precision {precision!r} on a CPU needs OpenVINO, which is not installed:"
                " pip install openvino, or use --precision f32"
            )
        return EngineChoice("cpu", "torch float32", f"{why}; OpenVINO is not installed", cores)
    if precision == "f32":
        return EngineChoice("cpu", "OpenVINO f32", f"{why}; f32 asked for", cores)
    # With AMX the network is cheaper than decoding and encoding, which need the other cores.
    threads = max(1, cores // 2) if cpu_has_amx() else cores
    unit = "AMX" if cpu_has_amx() else "AVX-512"
    if precision == "int8":
        return EngineChoice("cpu", "OpenVINO int8", f"{why}; int8 asked for", threads)
    if _has_bf16():
        return EngineChoice("cpu", "OpenVINO bf16", f"{why}; the CPU has bf16 ({unit})", threads)
    if precision == "bf16":
        raise EngineError("precision 'bf16' cannot be had: the CPU has none; use --precision auto")
    return EngineChoice("cpu", "OpenVINO f32", f"{why}; the CPU has no bf16", cores)


def _has_bf16() -> bool:
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoEngine:
    """The step on the CPU, with its bank of states in memory."""

    batches = False

    def __init__(
        self, choice: EngineChoice, files: ModelFiles, model_hw: tuple[int, int], slots: int
    ) -> None:
        self.slots = slots
        self.model_hw = model_hw
        if choice.precision == "int8":  # what has no INT8 form runs in the best float
            model, floats = _read_int8(files), "bf16" if _has_bf16() else "f32"
        else:
            model, floats = _read_or_convert(files), choice.precision
        state_chw = fix_size(model, model_hw)
        properties: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": floats,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": choice.threads,
        }
        if 0 < choice.threads < available_cores():
            # It pins its threads to the first cores: engines side by side would all have the same ones.
            properties["ENABLE_CPU_PINNING"] = False
        try:
            self._request = core().compile_model(model, "CPU", properties).create_infer_request()
        except RuntimeError as error:
            first = str(error).strip().splitlines()[0]
            raise EngineError(f"OpenVINO could not compile the network: {first}") from error
        self.bank = np.zeros((slots + 1, *state_chw), np.float32)

    def step(
        self, frames: StreamsPixels, slots: Sequence[int], reset: Sequence[bool]
    ) -> np.ndarray:
        times = len(frames[0])
        labels = np.empty((len(frames), times, *self.model_hw), np.uint8)
        for row, (slot, fresh) in enumerate(zip(slots, reset, strict=True)):
            state = self.bank[slot : slot + 1]
            if fresh:
                state[:] = 0
            for time in range(times):
                frame = frames[row][time : time + 1, ..., None]
                found = self._request.infer([frame, state], share_inputs=True, share_outputs=True)
                labels[row, time] = found[0][0]
                state[:] = found[1]  # the output's memory is written again by the next call
        return labels

    def read_state(self, slot: int) -> np.ndarray:
        return self.bank[slot].copy()

    def write_state(self, slot: int, state: np.ndarray) -> None:
        self.bank[slot] = state


def _read_int8(files: ModelFiles) -> Any:
    try:
        return core().read_model(int8_path(files))
    except RuntimeError as error:
        raise EngineError(f"{int8_path(files)} cannot be read: make it anew") from error


def _read_or_convert(files: ModelFiles) -> Any:
    """The network in OpenVINO's own format, from the cache if it was converted before.

    Converting imports torch and takes seconds; reading takes milliseconds. The cache's key holds all that
    the result depends on: weights, specification, the networks' code and OpenVINO's version.
    """
    path = converted_path(files)
    if path.exists():
        with suppress(RuntimeError):  # a damaged file is as good as none
            return core().read_model(path)
    try:
        model = convert(files)
    except SpecError as error:
        raise ModelError(str(error)) from error
    try:
        save_whole(model, path)
    except OSError:
        return model  # no place to keep it: convert again next time
    return core().read_model(
        path
    )  # mapped from the file, where the converted one lies in memory twice


def converted_path(files: ModelFiles) -> Path:
    """Where the converted network is kept."""
    return cache_folder() / f"openvino-{_cache_key(files)}.xml"


def _cache_key(files: ModelFiles) -> str:
    digest = hashlib.sha256()
    folder = Path(models.__path__[0])
    code = sorted([*folder.glob("*.py"), *folder.glob("networks/*.py")])
    for path in (files.weights_path, files.spec_path, *code):
        digest.update(path.read_bytes())
    digest.update(openvino().__version__.encode())
    return digest.hexdigest()[:24]
