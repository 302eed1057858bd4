"""The materials, painted with NumPy once a process: one layer of a texture array each.

Colours are display-referred; the shader squares them. Alpha is a mask whose meaning the surface
kind gives: glass panes for GLASS, coverage for LEAF and CUTOUT.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from . import fittings, foliage
from .noise import SIZE, axes, shade, smooth, solid, spectral, stretched
from .rng import stream

Painter = Callable[[np.random.Generator], np.ndarray]


def _blocks(
    rng: np.random.Generator,
    rows: int,
    cols: int,
    base: tuple[float, float, float],
    joint: tuple[float, float, float],
    joint_width: float,
    spread: float,
    hue: float,
    shift: float = 0.5,
) -> np.ndarray:
    """Bricks, ashlar or slabs: rows of blocks, each of its own shade, with joints."""
    x, y = axes()
    row = np.floor(y * rows).astype(int)
    along = x * cols + shift * (row % 2)
    col = np.floor(along).astype(int) % cols
    fx, fy = along - np.floor(along), y * rows - row
    edge_x = np.minimum(fx, 1 - fx) / cols
    edge_y = np.broadcast_to(np.minimum(fy, 1 - fy) / rows, (SIZE, SIZE))
    inside = smooth(joint_width * 0.4, joint_width, np.minimum(edge_x, edge_y))
    shade_table = 1 + spread * rng.standard_normal((rows, cols))
    hue_table = hue * rng.standard_normal((rows, cols, 3))
    block = np.asarray(base) / 255 * (shade_table[..., None] + hue_table)
    face = block[np.broadcast_to(row, (SIZE, SIZE)), col]
    face = face * (1 + 0.06 * spectral(rng, 0.5) + 0.05 * spectral(rng, 1.2))[..., None]
    out = solid(joint)
    out[..., :3] = out[..., :3] * (1 - inside[..., None]) + face * inside[..., None]
    return shade(out, 1 + 0.05 * spectral(rng, 1.8))


def _brick_red(rng: np.random.Generator) -> np.ndarray:
    return _blocks(rng, 16, 5, (138, 82, 66), (158, 146, 132), 0.007, 0.1, 0.03)


def _brick_buff(rng: np.random.Generator) -> np.ndarray:
    return _blocks(rng, 16, 5, (182, 160, 122), (170, 160, 142), 0.007, 0.07, 0.018)


def _brick_brown(rng: np.random.Generator) -> np.ndarray:
    return _blocks(rng, 16, 5, (110, 84, 70), (120, 110, 100), 0.007, 0.11, 0.03)


def _ashlar(rng: np.random.Generator) -> np.ndarray:
    out = _blocks(rng, 6, 3, (176, 168, 148), (132, 126, 112), 0.004, 0.045, 0.008)
    return shade(out, 1 + 0.08 * stretched(rng, 1.4, 0.2))


def _plaster(rng: np.random.Generator) -> np.ndarray:
    tone = 1 + 0.03 * spectral(rng, 0.3) + 0.04 * spectral(rng, 1.8)
    return shade(solid((205, 203, 197)), tone + 0.035 * stretched(rng, 1.3, 0.12))


def _concrete(rng: np.random.Generator) -> np.ndarray:
    out = _blocks(rng, 2, 2, (158, 155, 148), (96, 94, 90), 0.006, 0.05, 0.008, shift=0)
    return shade(out, 1 + 0.05 * stretched(rng, 1.3, 0.1))


def _boards(rng: np.random.Generator) -> np.ndarray:
    x, _ = axes()
    board = np.floor(x * 12).astype(int)
    gap = smooth(0.02, 0.07, np.minimum(x * 12 - board, 1 - (x * 12 - board)))
    tone = (1 + 0.12 * rng.standard_normal(12))[board] * (0.35 + 0.65 * gap)
    return shade(solid((150, 128, 102)), tone * (1 + 0.09 * stretched(rng, 1.0, 0.06)))


def _tiles(rng: np.random.Generator) -> np.ndarray:
    out = _blocks(rng, 14, 10, (112, 84, 72), (50, 42, 38), 0.004, 0.13, 0.04)
    _, y = axes()
    return shade(out, np.broadcast_to(0.72 + 0.4 * (y * 14 % 1), (SIZE, SIZE)))


def _slate(rng: np.random.Generator) -> np.ndarray:
    return _blocks(rng, 14, 8, (88, 90, 98), (42, 43, 48), 0.003, 0.1, 0.02)


def _asphalt(rng: np.random.Generator) -> np.ndarray:
    tone = 1 + 0.13 * spectral(rng, 0.15, low_cut=8) + 0.05 * spectral(rng, 1.2)
    chips = spectral(rng, 0.0) > 2.4
    out = shade(solid((104, 104, 107)), tone + 0.35 * chips)
    crack = np.abs(spectral(rng, 1.7)) + 0.5 * smooth(-0.6, 0.3, spectral(rng, 1.9))
    return shade(out, 0.62 + 0.38 * smooth(0.0, 0.05, crack))


def _asphalt_smooth(rng: np.random.Generator) -> np.ndarray:
    tone = 1 + 0.09 * spectral(rng, 0.2, low_cut=10) + 0.04 * spectral(rng, 1.5)
    return shade(solid((102, 102, 106)), tone)


def _slabs(rng: np.random.Generator) -> np.ndarray:
    out = _blocks(rng, 4, 3, (138, 135, 130), (84, 82, 78), 0.005, 0.06, 0.01)
    return shade(out, 1 - 0.12 * smooth(0.6, 2.2, spectral(rng, 1.5)))


def _setts(rng: np.random.Generator) -> np.ndarray:
    return _blocks(rng, 10, 6, (132, 122, 114), (86, 78, 72), 0.006, 0.07, 0.02)


def _kerb(rng: np.random.Generator) -> np.ndarray:
    x, _ = axes()
    joint = smooth(0.0, 0.012, np.minimum(x % 0.5, 0.5 - x % 0.5))
    tone = (1 + 0.06 * spectral(rng, 0.5) + 0.06 * spectral(rng, 1.5)) * (0.6 + 0.4 * joint)
    return shade(solid((158, 155, 148)), tone)


def _grass(rng: np.random.Generator) -> np.ndarray:
    tone = 1 + 0.18 * stretched(rng, 0.3, 0.5) + 0.12 * spectral(rng, 1.4)
    out = shade(solid((92, 116, 54)), tone)
    dry = smooth(0.3, 2.0, spectral(rng, 1.3))[..., None]
    out[..., :3] = out[..., :3] * (1 - 0.5 * dry) + 0.5 * dry * np.array([0.5, 0.47, 0.28])
    return out


def _soil(rng: np.random.Generator) -> np.ndarray:
    tone = 1 + 0.2 * spectral(rng, 0.4) + 0.1 * spectral(rng, 1.5)
    return shade(solid((108, 92, 70)), tone)


def _marking(rng: np.random.Generator) -> np.ndarray:
    out = shade(solid((232, 231, 224)), 1 + 0.05 * spectral(rng, 0.3))
    worn = smooth(1.1, 1.9, spectral(rng, 0.7)) * 0.6
    out[..., :3] = out[..., :3] * (1 - worn[..., None]) + worn[..., None] * 0.45
    return out


def _metal(rng: np.random.Generator) -> np.ndarray:
    return shade(solid((200, 200, 200)), 1 + 0.05 * spectral(rng, 0.9))


def _cloth(rng: np.random.Generator) -> np.ndarray:
    return shade(solid((225, 225, 225)), 1 + 0.1 * spectral(rng, 1.4) + 0.05 * spectral(rng, 0.1))


def _plain(rng: np.random.Generator) -> np.ndarray:
    return solid((255, 255, 255))


def _clouds(rng: np.random.Generator) -> np.ndarray:
    """Noise for the sky and for large stains: cloud cover, billows, fine noise, stains."""
    layers = [spectral(rng, falloff) for falloff in (1.75, 1.45, 0.9, 1.6)]
    return np.clip(np.stack(layers, axis=-1) / 6 + 0.5, 0, 1)


PAINTERS: dict[str, Painter] = {
    "plain": _plain,
    "clouds": _clouds,
    "brick_red": _brick_red,
    "brick_buff": _brick_buff,
    "brick_brown": _brick_brown,
    "ashlar": _ashlar,
    "plaster": _plaster,
    "concrete": _concrete,
    "boards": _boards,
    "tiles": _tiles,
    "slate": _slate,
    "asphalt": _asphalt,
    "asphalt_smooth": _asphalt_smooth,
    "slabs": _slabs,
    "setts": _setts,
    "kerb": _kerb,
    "grass": _grass,
    "soil": _soil,
    "marking": _marking,
    "metal": _metal,
    "cloth": _cloth,
    **fittings.PAINTERS,
    **foliage.PAINTERS,
}
LAYER = {name: index for index, name in enumerate(PAINTERS)}


@lru_cache(maxsize=1)
def texture_layers() -> np.ndarray:
    """All materials as uint8 [layers, SIZE, SIZE, 4], first row at the bottom."""
    layers = np.empty((len(PAINTERS), SIZE, SIZE, 4), dtype=np.uint8)
    for index, (name, paint) in enumerate(PAINTERS.items()):
        texture = paint(stream(0, f"texture {name}"))
        layers[index] = np.clip(texture * 255 + 0.5, 0, 255)
    return layers
