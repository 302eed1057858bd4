"""What `roadmask eval` does: run, show how far it is, print tables, write JSON and the report."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from models.errors import DataError
from models.evaluation.evaluate import EvalConfig, Progress, evaluate
from models.evaluation.report import write_report
from models.evaluation.robustness import CORRUPTIONS
from models.evaluation.scores import Evaluation
from models.evaluation.tables import show
from models.spec import find_model
from models.terminal import Terminal

LINE_EVERY_SECONDS = 5.0
PLAIN_WIDTH = 130  # columns of a table that goes to a file


def main(
    model: str,
    dataset: Path,
    *,
    robustness: str | None = None,
    scales: str = "1",
    json_to: str | None = None,
    report: Path | None = None,
    quiet: bool = False,
    **options: Any,
) -> Evaluation:
    """Evaluate, print and write.

    Args:
        model, dataset, options: as `EvalConfig` has them.
        robustness: kinds of damage with commas between them, or "all".
        scales: numbers with commas between them.
        json_to: file for the figures; "-" for standard output, where tables then go to standard error.
        report: folder for the HTML report.
        quiet: neither progress nor tables.

    Raises DataError for a wrong option or data, SpecError for a wrong model, OSError for a result that
    cannot be written.
    """
    config = EvalConfig(
        model, dataset, corruptions=_kinds(robustness), scales=_numbers(scales), **options
    )
    with frame_progress(sys.stderr, quiet) as progress:
        evaluation, worst = evaluate(config, progress)
    if not quiet:
        out = sys.stderr if json_to == "-" else sys.stdout
        show(evaluation, Console(file=out, width=None if out.isatty() else PLAIN_WIDTH))
    if json_to == "-":
        sys.stdout.write(evaluation.to_json())
    elif json_to is not None:
        Path(json_to).write_text(evaluation.to_json(), "utf-8")
    if report is not None:
        page = write_report(report, evaluation, worst, find_model(model).spec())
        print(f"report: {page}", file=sys.stderr)
    return evaluation


def _kinds(text: str | None) -> tuple[str, ...]:
    if text is None:
        return ()
    if text == "all":
        return tuple(CORRUPTIONS)
    return tuple(dict.fromkeys(kind.strip() for kind in text.split(",")))


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise DataError(f"scales must be numbers such as 0.75,1,1.25, got {text!r}") from error


@contextmanager
def frame_progress(stream: TextIO, quiet: bool) -> Iterator[Progress]:
    """A bar with the time left on a terminal, a line every few seconds elsewhere, nothing if quiet."""
    columns = ("{task.completed}/{task.total} frames",)
    with Terminal(stream, columns=columns, bar=not quiet, transient=True) as terminal:
        if quiet:
            yield lambda what, done, total: None
        elif terminal.has_bar:
            terminal.tick(0, None, "loading")
            yield lambda what, done, total: terminal.tick(done, total, what)
        else:
            yield _Lines(terminal)


class _Lines:
    """Progress as plain lines."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal, self.shown = terminal, time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        if time.monotonic() - self.shown >= LINE_EVERY_SECONDS:
            self.shown = time.monotonic()
            self.terminal.line(f"{what}: {done}/{total} frames")
