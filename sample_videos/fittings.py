"""Painted façade parts, fences and traffic signs: windows, doors, shopfronts, sign faces."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from .noise import SIZE, axes, fill, shade, smooth, solid, spectral, stretched

SIGN_GRID = 4  # the "signs" layer holds SIGN_GRID x SIGN_GRID faces
INK = (28, 28, 32)


def _pane(rng: np.random.Generator, out: np.ndarray, box: tuple, curtain: bool) -> None:
    """One glass pane: a dark room behind, perhaps curtains or a blind."""
    x0, y0, x1, y1 = box
    depth = rng.uniform(22, 52)
    fill(out, box, (depth, depth * 1.02, depth * 1.06), 1.0)
    if not curtain:
        return
    tone = np.array([rng.uniform(120, 205)] * 3) * rng.uniform(0.88, 1.0, 3)
    if rng.random() < 0.5:
        share = rng.uniform(0.12, 0.35) * (x1 - x0)
        fill(out, (x0, y0, x0 + share, y1), tone * 0.75, 0.8)
        fill(out, (x1 - share, y0, x1, y1), tone * 0.75, 0.8)
    else:
        fill(out, (x0, y1 - rng.uniform(0.15, 0.7) * (y1 - y0), x1, y1), tone * 0.8, 0.8)


def _window(
    rng: np.random.Generator,
    cols: int,
    rows: int,
    frame: tuple[float, float, float],
    bar: float,
    curtain: bool,
) -> np.ndarray:
    out = solid(frame, 0.0)
    shade(out, 1 + 0.03 * spectral(rng, 1.0))
    border = 0.06
    width, height = (1 - 2 * border) / cols, (1 - 2 * border) / rows
    for i in range(cols):
        for j in range(rows):
            x0, y0 = border + i * width + bar / 2, border + j * height + bar / 2
            _pane(rng, out, (x0, y0, x0 + width - bar, y0 + height - bar), curtain)
    folds = 1 + 0.12 * np.sin(axes()[0] * 150) * (out[..., 3] == 0.8)
    return shade(out, folds)


def _door(rng: np.random.Generator, glazed: bool) -> np.ndarray:
    out = solid((222, 222, 222), 0.0)
    shade(out, 1 + 0.04 * stretched(rng, 1.0, 0.1))
    for x0 in (0.14, 0.54):
        for y0, y1 in ((0.08, 0.42), (0.5, 0.74)):
            fill(out, (x0, y0, x0 + 0.32, y1), (165, 165, 165))
            fill(out, (x0 + 0.02, y0 + 0.015, x0 + 0.3, y1 - 0.01), (200, 200, 200))
    if glazed:
        fill(out, (0.14, 0.5, 0.86, 0.92), (40, 42, 46), 1.0)
    fill(out, (0.0, 0.94, 1.0, 1.0), (60, 62, 66), 1.0)
    fill(out, (0.85, 0.44, 0.9, 0.49), (120, 110, 70))
    return out


def _shopfront(rng: np.random.Generator) -> np.ndarray:
    """Display windows with goods and posters behind the glass, and a door."""
    grey = rng.choice([30, 45, 60, 120, 205])
    frame = np.clip(grey * (1 + 0.2 * rng.standard_normal(3)), 0, 255)
    out = solid(tuple(frame), 0.0)
    riser, top = rng.uniform(0.06, 0.24), rng.uniform(0.9, 0.97)
    door = rng.integers(0, 4)
    for bay in range(4):
        x0, x1 = bay / 4 + 0.015, (bay + 1) / 4 - 0.015
        y0 = 0.03 if bay == door else riser
        room = rng.uniform(26, 60)
        fill(out, (x0, y0, x1, top), (room, room * 0.97, room * 0.92), 0.9)
        for _ in range(0 if bay == door else rng.integers(6, 22)):
            w, h = rng.uniform(0.01, 0.06), rng.uniform(0.02, 0.16)
            cx, cy = rng.uniform(x0, x1 - w), y0 + abs(rng.normal(0, 0.22))
            if cy + h < top:
                goods = rng.uniform(25, 190) * rng.uniform(0.65, 1.0, 3)
                fill(out, (cx, cy, min(cx + w, x1), cy + h), goods, 0.85)
        if rng.random() < 0.3:
            poster = rng.uniform(90, 250) * rng.uniform(0.5, 1.0, 3)
            cx, cy = rng.uniform(x0, x1 - 0.1), rng.uniform(y0 + 0.1, 0.6)
            fill(out, (cx, cy, cx + 0.1, cy + 0.22), poster, 0.3)
        for lamp in np.arange(x0 + 0.03, x1, 0.07):
            fill(out, (lamp, top - 0.04, lamp + 0.012, top - 0.02), (235, 225, 190), 0.6)
    return out


def _letters(
    rng: np.random.Generator, out: np.ndarray, box: tuple, ink: tuple | np.ndarray, count: int
) -> None:
    """Strokes that read as lettering from a car: stems, bars and bowls."""
    x0, y0, x1, y1 = box
    step, height = (x1 - x0) / count, y1 - y0
    for i in range(count):
        if rng.random() < 0.13:
            continue
        left, pen = x0 + i * step, step * 0.22
        right = left + step * 0.78
        fill(out, (left, y0, left + pen, y1), ink)
        if rng.random() < 0.6:
            fill(out, (right - pen, y0, right, y1), ink)
        for level in rng.choice([0.0, 0.42, 0.82], rng.integers(1, 4), replace=False):
            fill(out, (left, y0 + level * height, right, y0 + (level + 0.18) * height), ink)


def _fascia(rng: np.random.Generator) -> np.ndarray:
    """Eight shop name boards, one above another."""
    out = solid((60, 60, 64), 0.0)
    for row in range(8):
        ground = rng.uniform(15, 225) * rng.uniform(0.6, 1.0, 3)
        y0, y1 = row / 8, (row + 1) / 8
        fill(out, (0, y0, 1, y1), ground)
        ink = (238, 236, 228) if ground.mean() < 110 else (30, 30, 40)
        start = rng.uniform(0.08, 0.3)
        box = (start, y0 + 0.035, 1 - start, y1 - 0.035)
        _letters(rng, out, box, ink, int(rng.integers(6, 15)))
    return out


def _curtain_wall(rng: np.random.Generator) -> np.ndarray:
    out = solid((120, 122, 126), 0.0)
    for i in range(6):
        for j in range(2):
            x0, y0 = i / 6 + 0.008, j / 2
            fill(out, (x0, y0 + 0.01, x0 + 0.15, y0 + 0.11), (74, 78, 84), 0.4)
            _pane(rng, out, (x0, y0 + 0.13, x0 + 0.15, y0 + 0.49), rng.random() < 0.35)
    return out


def _garage(rng: np.random.Generator) -> np.ndarray:
    _, y = axes()
    ridge = 0.8 + 0.2 * smooth(0.0, 0.15, y * 16 % 1)
    return shade(solid((205, 205, 205)), np.broadcast_to(ridge, (SIZE, SIZE)))


def _railing(rng: np.random.Generator) -> np.ndarray:
    x, y = axes()
    bars = np.abs((x * 9) % 1 - 0.5) < 0.13
    rails = (np.abs(y - 0.9) < 0.025) | (np.abs(y - 0.1) < 0.025)
    out = shade(solid((210, 210, 210)), 1 + 0.1 * spectral(rng, 1.0))
    out[..., 3] = bars | rails
    return out


def _mesh_fence(rng: np.random.Generator) -> np.ndarray:
    x, y = axes()
    wires = (np.abs((x * 24) % 1 - 0.5) < 0.1) | (np.abs((y * 12) % 1 - 0.5) < 0.08)
    posts = np.abs(x - 0.5) < 0.02
    out = shade(solid((190, 195, 190)), 1 + 0.06 * spectral(rng, 1.0))
    out[..., 3] = wires | posts
    return out


def _sign_face(rng: np.random.Generator, index: int) -> np.ndarray:
    """One traffic sign face, [n, n, 4] with coverage in alpha."""
    n = SIZE // SIGN_GRID
    line = (np.arange(n) + 0.5) / n * 2 - 1
    x, y = line[None, :], line[:, None]
    radius = np.hypot(x, y)
    face = np.zeros((n, n, 4))
    white, red, blue = (0.92, 0.92, 0.9), (0.74, 0.1, 0.12), (0.1, 0.24, 0.6)

    def ink(mask: np.ndarray, rgb: tuple[float, ...], alpha: float = 1.0) -> None:
        face[np.broadcast_to(mask, (n, n))] = (*rgb, alpha)

    def strokes(count: int, size: float, rgb: tuple[float, ...]) -> None:
        for _ in range(count):
            cx, cy = rng.uniform(-size, size, 2)
            w, h = rng.uniform(0.06, 0.3), rng.uniform(0.06, 0.16)
            ink((abs(x - cx) < w) & (abs(y - cy) < h) & (radius < 0.62), rgb)

    shape = index % 8
    if shape in (0, 1):  # prohibition or limit
        ink(radius < 0.95, red)
        ink(radius < 0.72, white)
        if shape == 0:
            for cx in (-0.28, 0.28):
                ink((abs(x - cx) < 0.2) & (abs(y) < 0.38), (0.1, 0.1, 0.1))
                ink((abs(x - cx) < 0.09) & (abs(y) < 0.24), white)
        else:
            strokes(4, 0.35, (0.1, 0.1, 0.1))
            ink((abs(x - y) < 0.16) & (radius < 0.75), red)
    elif shape == 2:  # warning triangle
        inside = (y > -0.78) & (np.abs(x) * 1.75 + y < 0.92)
        ink(inside, red)
        ink((y > -0.6) & (np.abs(x) * 1.75 + y < 0.52), white)
        ink((abs(x) < 0.09) & (y > -0.45) & (y < 0.15), (0.1, 0.1, 0.1))
    elif shape == 3:  # mandatory: white arrow on blue
        ink(radius < 0.95, white)
        ink(radius < 0.88, blue)
        ink((abs(x + y * 0.4) < 0.13) & (abs(y) < 0.55), white)
        ink((abs(x) + abs(y + 0.45) < 0.35), white)
    elif shape == 4:  # no entry
        ink(radius < 0.95, red)
        ink((abs(x) < 0.66) & (abs(y) < 0.17), white)
    else:  # rectangular panels: blue, green, white, yellow, brown
        grounds = [blue, (0.05, 0.36, 0.22), white, (0.9, 0.75, 0.1), (0.42, 0.24, 0.12), red]
        ground = grounds[int(rng.integers(0, len(grounds)))]
        text = (0.1, 0.1, 0.1) if sum(ground) > 1.5 else white
        ink((abs(x) < 0.97) & (abs(y) < 0.97), text)
        ink((abs(x) < 0.92) & (abs(y) < 0.92), ground)
        for level in np.arange(-0.6, 0.7, 0.4):
            for cx in np.arange(-0.7, rng.uniform(0.1, 0.8), 0.15):
                ink((abs(x - cx) < 0.05) & (abs(y - level) < 0.11), text)
    return face


def _signs(rng: np.random.Generator) -> np.ndarray:
    out = np.zeros((SIZE, SIZE, 4))
    n = SIZE // SIGN_GRID
    for index in range(SIGN_GRID * SIGN_GRID):
        row, col = divmod(index, SIGN_GRID)
        out[row * n : (row + 1) * n, col * n : (col + 1) * n] = _sign_face(rng, index)
    return out


def _poster(rng: np.random.Generator) -> np.ndarray:
    """Four advertisement faces."""
    out = solid((230, 230, 230))
    for row in range(2):
        for col in range(2):
            x0, y0 = col / 2, row / 2
            ground = np.clip(rng.uniform(10, 250, 3), 0, 255)
            fill(out, (x0, y0, x0 + 0.5, y0 + 0.5), ground)
            for _ in range(5):
                w, h = rng.uniform(0.05, 0.25), rng.uniform(0.04, 0.2)
                cx, cy = x0 + rng.uniform(0.02, 0.48 - w), y0 + rng.uniform(0.02, 0.48 - h)
                fill(out, (cx, cy, cx + w, cy + h), rng.uniform(10, 250, 3))
            text = (x0 + 0.06, y0 + 0.08, x0 + 0.44, y0 + 0.15)
            _letters(rng, out, text, (250, 250, 250) if ground.mean() < 128 else INK, 9)
    return out


def _vehicle_trim(rng: np.random.Generator) -> np.ndarray:
    """A grid of four: grille, number plate, lamp glass, wheel rim."""
    out = solid((40, 41, 44), 0.0)
    x, y = axes()
    slats = 0.6 + 0.6 * (np.abs((y * 24) % 1 - 0.5) < 0.2)
    shade(out, np.broadcast_to(slats, (SIZE, SIZE)))
    fill(out, (0.5, 0.0, 1.0, 0.5), (215, 195, 90))
    _letters(rng, out, (0.54, 0.1, 0.96, 0.4), INK, 7)
    fill(out, (0.0, 0.5, 0.5, 1.0), (225, 225, 225))
    radius, angle = np.hypot(x - 0.75, y - 0.75) * 4, np.arctan2(y - 0.75, x - 0.75)
    spokes = np.cos(angle * 5) > -0.1
    rim = (radius < 0.64) & ((radius > 0.54) | (radius < 0.18) | spokes)
    quarter = np.broadcast_to((x >= 0.5) & (y >= 0.5), (SIZE, SIZE))
    out[quarter & ~rim, :3] = 0.1
    out[quarter & rim, :3] = 0.68
    return out


WHITE, DARK, TIMBER = (225, 224, 218), (52, 54, 58), (110, 84, 60)
_WINDOW_STYLES = [
    (1, 2, WHITE, 0.04, True),
    (2, 4, WHITE, 0.025, True),
    (2, 2, WHITE, 0.035, False),
    (2, 1, WHITE, 0.05, True),
    (3, 2, DARK, 0.03, False),
    (2, 1, DARK, 0.03, True),
    (4, 6, WHITE, 0.015, False),
    (2, 2, TIMBER, 0.04, True),
]
WINDOWS = [f"window_{i}" for i in range(len(_WINDOW_STYLES))]
SHOPFRONTS = [f"shopfront_{i}" for i in range(9)]

PAINTERS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    **{
        name: partial(
            _window, cols=style[0], rows=style[1], frame=style[2], bar=style[3], curtain=style[4]
        )
        for name, style in zip(WINDOWS, _WINDOW_STYLES, strict=True)
    },
    **dict.fromkeys(SHOPFRONTS, _shopfront),
    "door_panel": partial(_door, glazed=False),
    "door_glazed": partial(_door, glazed=True),
    "fascia": _fascia,
    "curtain_wall": _curtain_wall,
    "garage": _garage,
    "railing": _railing,
    "mesh_fence": _mesh_fence,
    "signs": _signs,
    "poster": _poster,
    "vehicle_trim": _vehicle_trim,
}
