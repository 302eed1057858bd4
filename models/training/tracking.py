"""How a training is followed: `log.jsonl`, and TensorBoard where it is installed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from models.labels import paint
from models.training.data import Clip

PICTURES = 3


class Log:
    """`log.jsonl` in the training's folder, a line a record, and the same as TensorBoard events.

    Attributes:
        note: one line on what is missing, or None.
    """

    def __init__(self, folder: Path, tensorboard: bool, step: int) -> None:
        self.path = folder / "log.jsonl"
        self.note: str | None = None
        self._events: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                self.note = f"tensorboard is not installed: the log is {self.path} alone"
            else:
                # Events after the checkpoint that this run resumed from will come again.
                self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=step)  # type: ignore[no-untyped-call]

    def write(self, step: int, **values: Any) -> None:
        """Numbers, or dictionaries of numbers by name."""
        values = {name: _finite(value) for name, value in values.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._events is not None:
            for name, value in values.items():
                several = value if isinstance(value, dict) else {"": value}
                for key, number in several.items():
                    if number is not None:
                        self._events.add_scalar(f"{name}/{key}".rstrip("/"), number, step)

    def show(self, name: str, picture: np.ndarray, step: int) -> None:
        """picture: uint8 [H, W, 3]; only TensorBoard keeps it."""
        if self._events is not None:
            self._events.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None


def _finite(value: Any) -> Any:
    """NaN is no JSON: a class without pixels has no score."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return value if math.isfinite(value) else None


class Means:
    """Means of named numbers since they were last taken."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._count = 0

    def add(self, values: dict[str, float]) -> None:
        self._count += 1
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def take(self) -> dict[str, float]:
        means = {name: total / self._count for name, total in self._sums.items()}
        self._sums, self._count = {}, 0
        return means


class Gallery:
    """Keeps a few validation frames beside their truth and prediction, for the log.

    Args:
        frames: how many frames there are in all; pictures are spread over them.
        palette_rgb: a colour a class.
    """

    def __init__(self, frames: int, palette_rgb: tuple[tuple[int, int, int], ...]) -> None:
        self._wanted = set(np.linspace(0, max(0, frames - 1), PICTURES).astype(int).tolist())
        self._palette = palette_rgb
        self._seen = 0
        self.pictures: list[np.ndarray] = []

    def __call__(self, number: int, clip: Clip, frame: int, predicted: np.ndarray) -> None:
        if self._seen in self._wanted:
            truth, guess = (paint(ids, self._palette) for ids in (clip.labels[frame], predicted))
            self.pictures.append(np.concatenate([clip.rgb[frame], truth, guess], 1))
        self._seen += 1
