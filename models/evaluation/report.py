"""The report of an evaluation: one HTML page that needs nothing else, pictures and charts inside it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from html import escape
from pathlib import Path

import cv2
import numpy as np

from models.evaluation.plots import COLORS, Series, line_chart
from models.evaluation.robustness import BURST_FRAMES
from models.evaluation.scorers import WorstFrame
from models.evaluation.scores import DEFINITIONS, RESET, Evaluation
from models.evaluation.tables import Table, tables
from models.labels import is_labelled, paint
from models.spec import Spec

LONGEST_SIDE_PX = 640
"""Pictures are shrunk to this; the figures are measured on the whole ones."""

PAGE_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1d2733; margin: 2rem auto; max-width: 1180px;
  padding: 0 1rem; background: #fff; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .18rem .6rem; text-align: right; border-bottom: 1px solid #e3e8ee; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid #9fb0c3; }
.note { color: #556372; } .scroll { overflow-x: auto; }
.confusion td { text-align: center; min-width: 3.2rem; border: 1px solid #fff; }
.confusion th { font-weight: 500; }
svg { width: 100%; max-width: 860px; display: block; margin: .6rem 0; }
svg .title { font-weight: 600; font-size: 14px; } svg .tick { font-size: 11px; fill: #44525f; }
svg .end { text-anchor: end; } svg .middle { text-anchor: middle; }
svg .grid { stroke: #e3e8ee; } svg .band { fill: #f2e3c6; opacity: .6; }
svg .line { fill: none; stroke-width: 1.8; }
.worst { display: grid; grid-template-columns: repeat(4, 1fr); gap: .5rem; margin: .3rem 0 1.4rem; }
figure { margin: 0; } img { width: 100%; display: block; } figcaption { font-size: 12px; color: #556372; }
.legend span { display: inline-block; margin: 0 1rem .3rem 0; white-space: nowrap; }
.legend i { display: inline-block; width: 1em; height: 1em; margin-right: .35em; vertical-align: -2px; }
@media (max-width: 700px) { .worst { grid-template-columns: repeat(2, 1fr); } }
"""


def write_report(folder: Path, evaluation: Evaluation, worst: list[WorstFrame], spec: Spec) -> Path:
    """Write `index.html` and `evaluation.json` into a folder, made if need be; returns the page.

    Raises OSError if they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.json").write_text(evaluation.to_json(), "utf-8")
    page = folder / "index.html"
    page.write_text(render(evaluation, worst, spec), "utf-8")
    return page


def render(evaluation: Evaluation, worst: list[WorstFrame], spec: Spec) -> str:
    """The page as text."""
    title = escape(f"{evaluation.model} on {evaluation.dataset}")
    first, *rest = tables(evaluation)
    parts = [
        "<!doctype html>", '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{PAGE_STYLE}</style></head><body>",
        f"<h1>{title}</h1>", *_facts(evaluation), table_html(first),
        *[f'<p class="note">{escape(note)}</p>' for note in evaluation.notes],
        *[table_html(table) for table in rest],
        "<h2>Curves</h2>", *charts(evaluation),
        *_confusion(evaluation), *_worst(worst, spec), *_definitions(), "</body></html>",
    ]  # fmt: skip
    return "\n".join(part for part in parts if part)


def _facts(evaluation: Evaluation) -> Iterator[str]:
    settings = ", ".join(f"{name} {value}" for name, value in evaluation.settings.items())
    versions = ", ".join(f"{name} {value}" for name, value in evaluation.versions.items())
    yield f'<p class="note">Weights {evaluation.weights_sha256[:12]}. {escape(settings)}.'
    yield f"{evaluation.seconds} s; {escape(versions)}.</p>"


def table_html(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n"
        for row in table.rows
    )
    return (
        f'<h2>{escape(table.title)}</h2><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def charts(evaluation: Evaluation) -> Iterator[str]:
    """SVG elements: IoU over time, robustness, bursts; those that there are figures for."""
    lines = [
        Series(mode, _over_time(evaluation, mode), COLORS[number], dashed=mode == RESET)
        for number, mode in enumerate(evaluation.modes)
    ]
    yield line_chart("mIoU of each frame", lines, "frame", "mIoU, %")
    kinds = list(dict.fromkeys(curve.kind for curve in evaluation.robustness))
    curves = []
    for curve in evaluation.robustness:
        values = (evaluation.modes[curve.mode].quality.miou, *curve.miou)
        name = curve.kind if len(evaluation.modes) == 1 else f"{curve.kind}, {curve.mode}"
        points = [(float(x), _percent(y)) for x, y in enumerate(values)]
        color = COLORS[kinds.index(curve.kind) % len(COLORS)]
        curves.append(Series(name, points, color, dashed=curve.mode == RESET))
    yield line_chart("Robustness", curves, "strength (0: undamaged)", "mIoU, %")
    for kind in dict.fromkeys(score.kind for score in evaluation.bursts):
        scores = [score for score in evaluation.bursts if score.kind == kind]
        around = [
            Series(
                score.mode, [(float(x), _percent(y)) for x, y in score.over_time],
                COLORS[number], dashed=score.mode == RESET,
            )
            for number, score in enumerate(scores)
        ]  # fmt: skip
        band = [(-0.5, BURST_FRAMES - 0.5, kind)]
        title = f"Burst of {kind}, {scores[0].bursts} pooled"
        yield line_chart(title, around, "frames since it began", "mIoU, %", bands=band)


def _over_time(evaluation: Evaluation, mode: str) -> list[tuple[float, float | None]]:
    """Frames in order, with a break between streams."""
    points: list[tuple[float, float | None]] = []
    stream = None
    for number, point in enumerate(evaluation.modes[mode].over_time):
        if points and point.stream != stream:
            points.append((number, None))
        stream = point.stream
        points.append((number, _percent(point.miou)))
    return points


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _confusion(evaluation: Evaluation) -> Iterator[str]:
    counts = evaluation.modes[evaluation.main_mode].quality.confusion
    if counts is None:
        return
    columns = list(evaluation.classes)
    nothing = any(row[-1] for row in counts)
    head = "".join(
        f"<th>{escape(name)}</th>" for name in [*columns, "none"][: len(columns) + nothing]
    )
    yield "<h2>Confusion matrix: where the pixels of each class went, %</h2>"
    yield f'<div class="scroll"><table class="confusion"><tr><th>is \\ taken for</th>{head}</tr>'
    for index, row in enumerate(counts):
        total = sum(row)
        cells = row if nothing else row[:-1]
        shown = "".join(confusion_cell(value, total, index == at) for at, value in enumerate(cells))
        yield f"<tr><th>{escape(columns[index])}</th>{shown}</tr>"
    yield "</table></div>"


def confusion_cell(value: int, total: int, right: bool) -> str:
    """A `<td>` of a confusion matrix: the share of a row's pixels, %, shaded; blue on the diagonal."""
    if not total:
        return "<td>n/a</td>"
    share = value / total
    hue = "0, 114, 178" if right else "213, 94, 0"
    # The root makes small confusions visible too.
    shade = f"background: rgba({hue}, {0.85 * share**0.5:.2f})"
    text = f"{100 * share:.1f}" if share >= 0.0005 else ""
    return f'<td style="{shade}; color: {"#fff" if share > 0.35 else "inherit"}">{text}</td>'


def _worst(worst: list[WorstFrame], spec: Spec) -> Iterator[str]:
    if not worst:
        return
    yield "<h2>Worst frames</h2>"
    colors = "".join(
        f'<span><i style="background: rgb{color}"></i>{escape(name)}</span>'
        for name, color in zip(spec.classes, spec.palette_rgb, strict=True)
    )
    yield f'<p class="legend">{colors}<span><i style="background: #000"></i>unlabelled</span></p>'
    for frame in worst:
        name = escape(f"{frame.stream}, frame {frame.number} ({frame.name})")
        yield f'<div>{name}: mIoU {100 * frame.miou:.1f} %</div><div class="worst">'
        yield figure(frame.rgb, "picture", ".jpg")
        for labels, caption in ((frame.truth, "truth"), (frame.predicted, "prediction")):
            yield figure(paint(labels, spec.palette_rgb), caption, ".png")
        yield figure(error_map(frame), "errors in red, unlabelled black", ".jpg")
        yield "</div>"


def error_map(frame: WorstFrame) -> np.ndarray:
    """uint8 [H, W, 3]: the picture in pale grey, what was labelled wrongly in red, unlabelled in black."""
    grey = cv2.cvtColor(cv2.cvtColor(frame.rgb, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    shown = (0.6 * grey + 90).astype(np.uint8)
    unlabelled = ~is_labelled(frame.truth)
    wrong = (frame.truth != frame.predicted) & ~unlabelled
    shown[wrong] = (0.35 * grey[wrong] + 0.65 * np.array([220, 20, 20])).astype(np.uint8)
    shown[unlabelled] = 0
    return shown


def figure(rgb: np.ndarray, caption: str, suffix: str) -> str:
    """A `<figure>` with a picture, uint8 [H, W, 3], inside it; `suffix` is ".jpg" or ".png"."""
    scale = LONGEST_SIDE_PX / max(rgb.shape[:2])
    if scale < 1:
        how = cv2.INTER_NEAREST if suffix == ".png" else cv2.INTER_AREA
        rgb = cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=how)
    done, data = cv2.imencode(suffix, np.ascontiguousarray(rgb[..., ::-1]))
    if not done:
        raise ValueError(f"a picture of {list(rgb.shape)} cannot be stored as {suffix}")
    kind = "jpeg" if suffix == ".jpg" else "png"
    text = base64.b64encode(data.tobytes()).decode()
    return (
        f'<figure><img alt="{caption}" src="data:image/{kind};base64,{text}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _definitions() -> Iterator[str]:
    yield "<h2>What the figures mean</h2><dl>"
    for name, text in DEFINITIONS.items():
        yield f"<dt><b>{escape(name)}</b></dt><dd>{escape(text)}</dd>"
    yield "</dl>"
