"""An evaluation as tables: for the terminal and for the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from models.evaluation.scores import CARRIED, RESET, BurstScores, Evaluation

if TYPE_CHECKING:
    from rich.console import Console

_SUMMARY = (
    ("mIoU", "miou"), ("pixel accuracy", "pixel_accuracy"), ("mean accuracy", "mean_accuracy"),
    ("mean precision", "mean_precision"), ("mean recall", "mean_recall"), ("mean F1", "mean_f1"),
    ("boundary F1 (0.75 %)", "boundary_f1"), ("mask mIoU", "mask_miou"),
)  # fmt: skip
_STEADINESS = (
    ("TC", "tc"), ("VC8", "vc8"), ("VC16", "vc16"), ("VC8, steady and right", "vc8_right"),
    ("VC16, steady and right", "vc16_right"),
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Text in rows and columns; the first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def percent(value: float | None, digits: int = 2) -> str:
    """0.7051 -> 70.51, None -> n/a."""
    return "n/a" if value is None else f"{100 * value:.{digits}f}"


def tables(evaluation: Evaluation) -> list[Table]:
    """All of it that is there to show."""
    found = [_summary(evaluation), _classes(evaluation)]
    if evaluation.robustness:
        found.append(_robustness(evaluation))
    if evaluation.bursts:
        found.append(_bursts(evaluation))
    return found


def show(evaluation: Evaluation, console: Console) -> None:
    """Print the tables, and what a reader must know of them."""
    from rich.table import Table as RichTable

    for table in tables(evaluation):
        grid = RichTable(title=table.title, title_justify="left", title_style="bold")
        for index, column in enumerate(table.columns):
            grid.add_column(column, justify="right" if index else "left", no_wrap=not index)
        for row in table.rows:
            grid.add_row(*row)
        console.print(grid)
    for note in evaluation.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)


def _summary(evaluation: Evaluation) -> Table:
    """Modes side by side, and with two of them by how many points the first is ahead."""
    rows = list(_summary_rows(evaluation))
    modes = tuple(evaluation.modes)
    columns = ("%", *modes) + (("difference",) if len(modes) == 2 else ())
    title = (
        f"{evaluation.model} on {evaluation.dataset}: {evaluation.frames} frames,"
        f" {evaluation.streams} stream{'s' if evaluation.streams != 1 else ''}"
    )
    return Table(title, columns, tuple(rows))


def _summary_rows(evaluation: Evaluation) -> Iterator[tuple[str, ...]]:
    qualities = [mode.quality for mode in evaluation.modes.values()]
    for name, field in _SUMMARY:
        values = [getattr(quality, field) for quality in qualities]
        if field != "mask_miou" or values[0] is not None:
            yield (name, *_row(values, percent))
    errors = [quality.probability_error for quality in qualities]
    yield ("probability error (MAE)", *_row(errors, lambda value: percent(value, 3)))
    steady = [mode.steadiness for mode in evaluation.modes.values()]
    scores = [scores for scores in steady if scores is not None]
    if len(scores) < len(steady):
        return
    for name, field in _STEADINESS:
        yield (name, *_row([getattr(score, field) for score in scores], percent))
    yield ("flicker", *_row([score.flicker for score in scores], lambda v: percent(v, 3)))
    ratios = [score.flicker_ratio for score in scores]
    yield (
        "flicker / truth's change",
        *_row(ratios, lambda value: "n/a" if value is None else f"{value:.2f} x"),
    )
    for name, field in (("TC of the truth", "tc_of_truth"), ("truth's change", "truth_change")):
        yield (name, *_row([getattr(score, field) for score in scores], percent))


def _row(values: list[float | None], text: Callable[[float | None], str]) -> list[str]:
    cells = [text(value) for value in values]
    if len(values) != 2:
        return cells
    first, second = values
    if first is None or second is None:
        return [*cells, "n/a"]
    ahead = text(abs(first - second))
    return [*cells, f"{'-' if first < second else '+'}{ahead}"]


def _classes(evaluation: Evaluation) -> Table:
    qualities = [mode.quality for mode in evaluation.modes.values()]
    many, masks = len(qualities) > 1, qualities[0].mask_miou is not None
    columns = ["class", "share", *(f"IoU {mode}" if many else "IoU" for mode in evaluation.modes)]
    columns += ["precision", "recall", "F1", "boundary F1", "MAE"] + ["mask IoU"] * masks
    rows = []
    for same in zip(*(quality.classes for quality in qualities), strict=True):
        row = same[0]
        cells = [row.name, percent(row.share), *(percent(other.iou) for other in same)]
        cells += [percent(v) for v in (row.precision, row.recall, row.f1, row.boundary_f1)]
        cells.append(percent(row.probability_error, 3))
        rows.append(tuple(cells + [percent(row.mask_iou)] * masks))
    of = f", {evaluation.main_mode} unless said" if many else ""
    return Table(f"Classes, %{of}", tuple(columns), tuple(rows))


def _robustness(evaluation: Evaluation) -> Table:
    rows = []
    for curve in evaluation.robustness:
        clear = evaluation.modes[curve.mode].quality.miou
        cells = [
            percent(clear),
            *(percent(miou) for miou in curve.miou),
            percent(curve.retained, 1),
        ]
        rows.append((f"{curve.kind}, {curve.mode}", *cells))
    columns = ("damage", "none", "1", "2", "3", "4", "5", "retained")
    return Table("Robustness: mIoU at five strengths, %", columns, tuple(rows))


def _bursts(evaluation: Evaluation) -> Table:
    rows = []
    by_kind = {(score.kind, score.mode): score for score in evaluation.bursts}
    for kind in dict.fromkeys(score.kind for score in evaluation.bursts):
        pair = [by_kind[kind, mode] for mode in (CARRIED, RESET)]
        for score in pair:
            rows.append((f"{kind}, {score.mode}", *(percent(v) for v in _phases(score))))
        ahead = [
            _row([one, other], percent)[-1] for one, other in zip(*map(_phases, pair), strict=True)
        ]
        rows.append((f"{kind}, difference", *ahead))
    columns = ("burst", "clear", "during", "hidden pixels", "10 frames after")
    count = evaluation.bursts[0].bursts
    bursts = f"{count} burst{'s' if count != 1 else ''} of 10 frames"
    return Table(f"{bursts} of each kind: mIoU, %", columns, tuple(rows))


def _phases(score: BurstScores) -> tuple[float | None, ...]:
    return score.clear, score.during, score.hidden, score.after
