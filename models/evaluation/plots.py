"""Line charts as SVG text, to stand in an HTML page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

# Okabe and Ito's colours, to be told apart by everybody.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_WIDTH, _HEIGHT = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 150, 34, 44


@dataclass(frozen=True)
class Series:
    """One line. A point whose y is None breaks it."""

    name: str
    points: Sequence[tuple[float, float | None]]
    color: str
    dashed: bool = False


@dataclass(frozen=True)
class Axes:
    """Data to pixels."""

    x_ticks: tuple[float, ...]
    y_ticks: tuple[float, ...]
    x_range: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        first, last = self.x_range
        across = (x - first) / ((last - first) or 1)
        up = (y - low) / (high - low)
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
        )


def ticks(low: float, high: float, most: int = 6) -> tuple[float, ...]:
    """At most `most` + 2 round numbers that enclose low and high."""
    span = max(high - low, 1e-9)
    raw = span / most
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(round(step * index, 10) for index in range(first, max(last, first + 1) + 1))


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    bands: Sequence[tuple[float, float, str]] = (),
) -> str:
    """An SVG element; empty if no series has a point.

    Args:
        bands: (from, to, what) stretches of x to shade.
    """
    known = [(x, y) for line in series for x, y in line.points if y is not None]
    if not known:
        return ""
    xs, ys = [x for x, _ in known], [y for _, y in known]
    inside = tuple(tick for tick in ticks(min(xs), max(xs), 8) if min(xs) <= tick <= max(xs))
    axes = Axes(inside, ticks(min(ys), max(ys)), (min(xs), max(xs)))
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">',
        f'<text x="{_LEFT}" y="18" class="title">{escape(title)}</text>',
        *_bands(axes, bands), *_grid(axes, x_label, y_label),
    ]  # fmt: skip
    for number, line in enumerate(series):
        parts += [*_line(axes, line), _legend(line, number)]
    return "\n".join([*parts, "</svg>"])


def _bands(axes: Axes, bands: Sequence[tuple[float, float, str]]) -> list[str]:
    parts = []
    for first, last, what in bands:
        (left, bottom), (right, top) = (
            axes.at(x, y) for x, y in ((first, axes.y_ticks[0]), (last, axes.y_ticks[-1]))
        )
        parts.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}"'
            f' height="{bottom - top:.1f}" class="band"/>'
            f'<text x="{(left + right) / 2:.1f}" y="{top + 12:.1f}" class="tick middle">'
            f"{escape(what)}</text>"
        )
    return parts


def _grid(axes: Axes, x_label: str, y_label: str) -> list[str]:
    left, right = axes.x_range
    parts = []
    for tick in axes.y_ticks:
        (x0, y), (x1, _) = axes.at(left, tick), axes.at(right, tick)
        parts.append(f'<line x1="{x0:.1f}" y1="{y:.1f}" x2="{x1:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{x0 - 6:.1f}" y="{y + 4:.1f}" class="tick end">{tick:g}</text>')
    for tick in axes.x_ticks:
        x, y = axes.at(tick, axes.y_ticks[0])
        parts.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" class="tick middle">{tick:g}</text>')
    x, y = axes.at((left + right) / 2, axes.y_ticks[0])
    parts.append(f'<text x="{x:.1f}" y="{y + 34:.1f}" class="tick middle">{escape(x_label)}</text>')
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(
        f'<text x="14" y="{middle:.1f}" class="tick middle"'
        f' transform="rotate(-90 14 {middle:.1f})">{escape(y_label)}</text>'
    )
    return parts


def _line(axes: Axes, line: Series) -> list[str]:
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in line.points:
        if y is None:
            runs.append([])
        else:
            runs[-1].append(axes.at(x, y))
    dash = ' stroke-dasharray="5 4"' if line.dashed else ""
    parts = []
    for run in runs:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in run)
        if len(run) > 1:
            parts.append(f'<polyline points="{path}" class="line" stroke="{line.color}"{dash}/>')
        if len(run) == 1 or len(line.points) <= 40:  # else the points would be a ribbon
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{line.color}"/>'
                      for x, y in run]  # fmt: skip
    return parts


def _legend(line: Series, number: int) -> str:
    x, y = _WIDTH - _RIGHT + 14, _TOP + 10 + 18 * number
    dash = ' stroke-dasharray="5 4"' if line.dashed else ""
    return (
        f'<line x1="{x}" y1="{y - 4}" x2="{x + 22}" y2="{y - 4}" class="line"'
        f' stroke="{line.color}"{dash}/>'
        f'<text x="{x + 28}" y="{y}" class="tick">{escape(line.name)}</text>'
    )
