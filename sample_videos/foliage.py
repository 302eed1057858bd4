"""Painted leaves, twigs, hedge and bark; alpha is coverage."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from .noise import SIZE, axes, shade, smooth, solid, spectral, stretched


def _stamp(
    out: np.ndarray,
    cx: float,
    cy: float,
    length: float,
    width: float,
    angle: float,
    rgb: np.ndarray,
) -> None:
    """Paint one pointed leaf (sizes in pixels)."""
    reach = int(length) + 2
    x0, x1 = max(int(cx) - reach, 0), min(int(cx) + reach + 1, SIZE)
    y0, y1 = max(int(cy) - reach, 0), min(int(cy) + reach + 1, SIZE)
    if x0 >= x1 or y0 >= y1:
        return
    dx, dy = np.arange(x0, x1)[None] - cx, np.arange(y0, y1)[:, None] - cy
    along = (dx * np.cos(angle) + dy * np.sin(angle)) / length
    side = (-dx * np.sin(angle) + dy * np.cos(angle)) / width
    mask = np.abs(side) < 1 - along * along
    vein = 0.85 + 0.3 * smooth(0.0, 0.4, np.abs(side))
    patch = out[y0:y1, x0:x1]
    patch[mask, :3] = (rgb * vein[..., None])[mask]
    patch[mask, 3] = 1.0


def _leaves(
    rng: np.random.Generator, count: int, length: float, slim: float, base: tuple[float, ...]
) -> np.ndarray:
    """A loose clump of leaves, denser in the middle, the later ones lighter."""
    out = solid((60, 70, 40), 0.0)
    out[..., :3] = np.asarray(base) / 255 * 0.6
    for i in range(count):
        reach = SIZE * 0.46 * np.sqrt(rng.random()) * rng.uniform(0.75, 1.0)
        around = rng.uniform(0, 2 * np.pi)
        cx, cy = SIZE / 2 + reach * np.cos(around), SIZE / 2 + reach * np.sin(around)
        tone = (0.55 + 0.5 * i / count) * (1 + 0.12 * rng.standard_normal())
        rgb = np.asarray(base) / 255 * tone * (1 + 0.06 * rng.standard_normal(3))
        size = length * rng.uniform(0.7, 1.3)
        _stamp(out, cx, cy, size, size * slim, rng.uniform(0, 2 * np.pi), rgb)
    return out


def _branch(
    rng: np.random.Generator,
    out: np.ndarray,
    start: np.ndarray,
    angle: float,
    length: float,
    width: float,
) -> None:
    """A twig that wanders and forks, as overlapping slim stamps."""
    if length < 12 or width < 0.5:
        return
    at = start
    for step in range(5):
        angle += rng.normal(0, 0.16)
        nxt = at + length / 5 * np.array([np.cos(angle), np.sin(angle)])
        middle = (at + nxt) / 2
        tone = rng.uniform(0.7, 1.1) * np.array([0.47, 0.42, 0.37])
        _stamp(out, middle[0], middle[1], length / 5 * 0.75, width, angle, tone)
        at = nxt
        if step > 0:
            turn = angle + rng.choice([-1, 1]) * rng.uniform(0.35, 0.9)
            _branch(rng, out, at, turn, length * rng.uniform(0.45, 0.65), width * 0.62)


def _twigs(rng: np.random.Generator) -> np.ndarray:
    out = solid((86, 76, 66), 0.0)
    for _ in range(4):
        start = np.array([SIZE / 2 + rng.normal(0, 20), 8.0])
        _branch(rng, out, start, np.pi / 2 + rng.normal(0, 0.35), SIZE * 0.85, 6.5)
    return out


def _needles(rng: np.random.Generator) -> np.ndarray:
    """A conifer bough: needles along drooping stems."""
    out = solid((40, 58, 40), 0.0)
    for _ in range(26):
        at = np.array([rng.uniform(0.1, 0.9) * SIZE, rng.uniform(0.25, 0.95) * SIZE])
        angle = rng.uniform(-2.2, -0.9)
        for _ in range(14):
            at = at + 9 * np.array([np.cos(angle), np.sin(angle)])
            for side in (-1, 1):
                rgb = np.array([0.17, 0.26, 0.15]) * rng.uniform(0.6, 1.4)
                _stamp(out, at[0], at[1], rng.uniform(12, 20), 2.6, angle + side * 0.8, rgb)
    return out


def _hedge(rng: np.random.Generator) -> np.ndarray:
    out = solid((34, 42, 24))
    for i in range(1900):
        tone = (0.45 + 0.6 * i / 1900) * rng.uniform(0.8, 1.2)
        rgb = np.array([78, 98, 52]) / 255 * tone * (1 + 0.08 * rng.standard_normal(3))
        cx, cy = rng.uniform(0, SIZE, 2)
        _stamp(out, cx, cy, rng.uniform(7, 13), 4.5, rng.uniform(0, 6.3), rgb)
    return shade(out, 1 + 0.12 * spectral(rng, 1.2))


def _bark(rng: np.random.Generator) -> np.ndarray:
    x, _ = axes()
    ridges = stretched(rng, 1.0, 0.15)
    return shade(solid((104, 92, 80)), 1 + 0.22 * ridges + 0.08 * spectral(rng, 0.6) + 0 * x)


PAINTERS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "leaf_broad": partial(_leaves, count=420, length=24, slim=0.5, base=(116, 134, 70)),
    "leaf_small": partial(_leaves, count=1000, length=13, slim=0.55, base=(108, 122, 68)),
    "leaf_slim": partial(_leaves, count=700, length=24, slim=0.2, base=(124, 138, 92)),
    "leaf_autumn": partial(_leaves, count=420, length=20, slim=0.5, base=(156, 122, 72)),
    "needles": _needles,
    "twigs": _twigs,
    "hedge": _hedge,
    "bark": _bark,
}
