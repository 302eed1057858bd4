"""How a training is followed: `log.jsonl`, TensorBoard where it is installed, and a bar on a terminal."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np

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
        self._palette = np.zeros((256, 3), np.uint8)
        self._palette[: len(palette_rgb)] = palette_rgb
        self._seen = 0
        self.pictures: list[np.ndarray] = []

    def __call__(self, number: int, clip: Clip, frame: int, predicted: np.ndarray) -> None:
        if self._seen in self._wanted:
            truth, guess = self._palette[clip.labels[frame]], self._palette[predicted]
            self.pictures.append(np.concatenate([clip.rgb[frame], truth, guess], 1))
        self._seen += 1


class Terminal:
    """Lines of progress, and on a terminal a bar with the time left below them."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Terminal:
        if self.stream.isatty():
            self._bar = _make_bar(self.stream)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, line: str) -> None:
        if self._bar is None:
            print(line, file=self.stream, flush=True)
        else:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def tick(self, done: int, total: int) -> None:
        """`done` of `total` steps are done."""
        if self._bar is None:
            return
        if self._task is None:  # speed is that of this run, not of the steps it resumed after
            self._task = self._bar.add_task("training", total=total, completed=done)
        self._bar.update(self._task, completed=done)


def _make_bar(stream: TextIO) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("step {task.completed}/{task.total}"),
        TimeRemainingColumn(),
        console=Console(file=stream),
        speed_estimate_period=300,
    )
