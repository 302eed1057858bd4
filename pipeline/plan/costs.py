"""What a frame costs in each stage, as `roadmask bench` measured it on some machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from models.spec import SpecError, find_model
from pipeline.errors import ConfigError

HOW = "expected what `roadmask bench CLIP --sweep stages --sweep streams` printed"


@dataclass(frozen=True)
class Costs:
    """Costs of one frame.

    Attributes:
        machine, cores, engine: where they were measured, and with what.
        model: name or folder of the network.
        size_hw, model_hw: of the video, and of the network's input, in pixels.
        decode_ms, draw_ms, encode_ms: of one core, for a frame of `size_hw`.
        out_bytes: written for each frame by what encoding cost.
        on_device: the network runs on a GPU.
        step_ms: of a step of n streams, `step_ms[0] + n * step_ms[1]`, by the clock.
        engine_cores: cores that an engine keeps busy meanwhile; 0 with a GPU.
    """

    machine: str
    cores: int
    engine: str
    model: str
    size_hw: tuple[int, int]
    model_hw: tuple[int, int]
    decode_ms: float
    draw_ms: float
    encode_ms: float
    out_bytes: float
    on_device: bool
    step_ms: tuple[float, float]
    engine_cores: float

    def __post_init__(self) -> None:
        if min(*self.size_hw, *self.model_hw) < 1 or self.decode_ms <= 0 or sum(self.step_ms) <= 0:
            raise ValueError("sizes and costs must be above 0")

    def pixels(self, size_hw: tuple[int, int]) -> float:
        """How many times the measured video's pixels a frame has: decoding and encoding grow with them."""
        return size_hw[0] * size_hw[1] / (self.size_hw[0] * self.size_hw[1])

    def network_share(self, size_hw: tuple[int, int]) -> float:
        """The same for the network, whose input size follows from the video's by its specification."""
        try:
            height, width = find_model(self.model).spec().model_hw(size_hw)
        except (SpecError, OSError):  # a model that is not on this machine
            return 1.0
        return height * width / (self.model_hw[0] * self.model_hw[1])


def load_costs(path: Path | None) -> Costs:
    """Costs from a file that `roadmask bench` printed, or those shipped with this version.

    Raises ConfigError for a file that is not there or holds something else.
    """
    try:
        text = (
            (files("pipeline.plan") / "costs.json").read_text()
            if path is None
            else path.read_text()
        )
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--costs {path}: {error}; {HOW}") from error
    try:
        return _read(_last_json(text))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ConfigError(f"--costs {path}: {error!r} in it; {HOW}") from error


def _last_json(text: str) -> dict[str, Any]:
    """The whole text, or its last line: a benchmark prints a table first."""
    try:
        found = json.loads(text)
    except ValueError:
        found = json.loads(text.strip().splitlines()[-1])
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found


def _read(measured: dict[str, Any]) -> Costs:
    alone = measured["sweeps"]["stages"]["alone"]
    on_device = "upload" in alone
    network = alone["network"]
    steps = [(1, float(network["ms"]))]
    if on_device:
        rows = measured["sweeps"].get("streams", {}).get("rows", ())
        bare = [row for row in rows if row["name"].startswith("bare engine") and row["fps"]]
        steps = [(int(row["x"]), 1000 * row["x"] / row["fps"]) for row in bare] or steps
    return Costs(
        machine=measured["machine"],
        cores=int(measured["cores"]),
        engine=measured["engine"],
        model=measured["model"]["name"],
        size_hw=_pair(measured["size_hw"]),
        model_hw=_pair(measured["model_hw"]),
        decode_ms=float(alone["decode"]["cpu_ms"]),
        draw_ms=float(alone["draw"]["cpu_ms"]),
        encode_ms=float(alone["encode"]["cpu_ms"]),
        out_bytes=float(alone["encode"]["bytes"]),
        on_device=on_device,
        step_ms=fit_steps(steps) if on_device else (0.0, steps[0][1]),
        engine_cores=0.0 if on_device else max(1.0, network["cpu_ms"] / network["ms"]),
    )


def _pair(given: Sequence[int]) -> tuple[int, int]:
    height, width = given
    return int(height), int(width)


def fit_steps(steps: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """A step's fixed cost and that of each stream in it, ms, by least squares; neither is negative.

    Args:
        steps: streams in a step, and what it took in ms. One alone is taken for a stream's cost.
    """
    if len({streams for streams, _ in steps}) < 2:
        return 0.0, steps[0][1] / steps[0][0]
    streams, took_ms = (np.array(column, float) for column in zip(*steps, strict=True))
    slope, fixed = (float(value) for value in np.polyfit(streams, took_ms, 1))
    if fixed < 0 or slope <= 0:
        return 0.0, float((took_ms / streams).max())
    return fixed, slope
