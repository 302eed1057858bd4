"""The CPU engine: the step compiled by OpenVINO, in bfloat16 where the CPU multiplies it.

Frames go through one at a time: on a CPU a batch gains little, and so the labels cannot depend on which
other streams, or how many frames of its own, a frame is batched with.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import models
from models.spec import ModelFiles, SpecError
from pipeline.engines import EngineChoice
from pipeline.errors import EngineError, ModelError
from pipeline.settings import available_cores, cache_folder, cpu_has_amx


def choose_cpu(why: str) -> EngineChoice:
    """OpenVINO in the CPU's best precision, or PyTorch where OpenVINO is not installed."""
    cores = available_cores()
    if find_spec("openvino") is None:
        return EngineChoice("cpu", "torch float32", f"{why}; OpenVINO is not installed", cores)
    if "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        # With AMX the network is cheaper than decoding and encoding, which need the other cores.
        amx = cpu_has_amx()
        threads = max(1, cores // 2) if amx else cores
        unit = "AMX" if amx else "AVX-512"
        return EngineChoice("cpu", "OpenVINO bf16", f"{why}; the CPU has bf16 ({unit})", threads)
    return EngineChoice("cpu", "OpenVINO f32", f"{why}; the CPU has no bf16", cores)


def _openvino() -> Any:
    """The package, without its telemetry: converting a network must not tell anybody outside."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # its stub is used
    import openvino

    return openvino


@cache
def _core() -> Any:
    return _openvino().Core()


class OpenVinoEngine:
    """The step on the CPU, with its bank of states in memory."""

    batches = False

    def __init__(
        self, choice: EngineChoice, files: ModelFiles, model_hw: tuple[int, int], slots: int
    ) -> None:
        self.slots = slots
        self.model_hw = model_hw
        model = _read_or_convert(files, model_hw)
        properties = {
            "INFERENCE_PRECISION_HINT": choice.runtime.split()[-1],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": choice.threads,
        }
        try:
            self._request = _core().compile_model(model, "CPU", properties).create_infer_request()
        except RuntimeError as error:
            first = str(error).strip().splitlines()[0]
            raise EngineError(f"OpenVINO could not compile the network: {first}") from error
        state = model.input(1).shape
        self.bank = np.zeros((slots + 1, *state[1:]), np.float32)

    def step(self, frames: np.ndarray, slots: Sequence[int], reset: Sequence[bool]) -> np.ndarray:
        labels = np.empty((*frames.shape[:2], *self.model_hw), np.uint8)
        for row, (slot, fresh) in enumerate(zip(slots, reset, strict=True)):
            state = self.bank[slot : slot + 1]
            if fresh:
                state[:] = 0
            for time in range(frames.shape[1]):
                frame = frames[row, time : time + 1]
                found = self._request.infer([frame, state], share_inputs=True, share_outputs=True)
                labels[row, time] = found[0][0]
                state[:] = found[1]  # the output's memory is written again by the next call
        return labels

    def read_state(self, slot: int) -> np.ndarray:
        return self.bank[slot].copy()

    def write_state(self, slot: int, state: np.ndarray) -> None:
        self.bank[slot] = state


def _read_or_convert(files: ModelFiles, model_hw: tuple[int, int]) -> Any:
    """The network in OpenVINO's own format, from the cache if it was converted before.

    Converting imports torch and takes seconds; reading takes milliseconds. The cache's key holds all that
    the result depends on: weights, specification, the networks' code, size and OpenVINO's version.
    """
    path = cache_folder() / f"openvino-{_cache_key(files, model_hw)}.xml"
    if path.exists():
        with suppress(RuntimeError):  # a damaged file is as good as none
            return _core().read_model(path)
    model = _convert(files, model_hw)
    try:
        _save(model, path)
    except OSError:
        return model  # no place to keep it: convert again next time
    return _core().read_model(path)


def _cache_key(files: ModelFiles, model_hw: tuple[int, int]) -> str:
    digest = hashlib.sha256()
    for path in (
        files.weights_path,
        files.spec_path,
        *sorted(Path(models.__path__[0]).glob("*.py")),
    ):
        digest.update(path.read_bytes())
    digest.update(f"{model_hw} {_openvino().__version__}".encode())
    return digest.hexdigest()[:24]


def _convert(files: ModelFiles, model_hw: tuple[int, int]) -> Any:
    import torch

    from models.registry import load
    from models.step import StreamStep

    try:
        network, _ = load(str(files.folder))
    except SpecError as error:
        raise ModelError(str(error)) from error
    height, width = model_hw
    planes, state = [1, height * 3 // 2, width], [1, *network.state_shape(model_hw)]
    example = (torch.zeros(planes, dtype=torch.uint8), torch.zeros(state))
    return _openvino().convert_model(
        StreamStep(network).eval(), example_input=example, input=[planes, state]
    )


def _save(model: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.stem}.{os.getpid()}.xml")
    try:
        _openvino().save_model(model, part, compress_to_fp16=False)
    except RuntimeError as error:
        raise OSError(str(error)) from error
    # Weights first: who finds the .xml finds its .bin.
    part.with_suffix(".bin").replace(path.with_suffix(".bin"))
    part.replace(path)
