"""What the parts of one building share: walls, windows, proportions, and ledges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .fittings import WINDOWS
from .mesh import BUILDING, Look, Mesh
from .textures import LAYER

Tint = tuple[float, ...] | np.ndarray


@dataclass(frozen=True)
class Style:
    """What the parts of one building share. Sizes in metres."""

    wall: str
    wall_tile: float
    tint: Tint
    roof: str
    roof_tint: Tint
    trim: np.ndarray
    window: str
    window_size: tuple[float, float]  # width, height
    spacing: float  # between window centres
    floor_height: float
    recess: float
    uv_shift: tuple[float, float]


def draw_style(rng: np.random.Generator, kind: str) -> Style:
    """Draw materials and proportions for a building of ``kind``."""
    walls = {
        "terrace": ["brick_red", "brick_buff", "brick_buff", "brick_brown", "plaster"],
        "house": ["brick_red", "brick_brown", "plaster", "plaster", "brick_buff"],
        "shop": ["brick_red", "brick_buff", "brick_brown", "plaster", "plaster", "ashlar"],
        "office": ["concrete", "brick_brown", "concrete", "brick_buff"],
        "civic": ["ashlar", "ashlar", "brick_red"],
        "flats": ["brick_buff", "brick_red", "plaster", "boards", "concrete"],
    }[kind]
    wall = str(rng.choice(walls))
    tile = {"ashlar": 2.4, "plaster": 5.0, "concrete": 3.2, "boards": 1.8}.get(wall, 1.2)
    tint = np.clip(rng.uniform(0.68, 1.0) * (1 + 0.035 * rng.standard_normal(3)), 0.3, 1)
    if wall == "plaster" and rng.random() < 0.45:  # painted
        tint = tint * rng.choice(
            [(1, 0.93, 0.78), (0.86, 0.92, 1), (1, 0.86, 0.8), (0.7, 0.7, 0.7)]
        )
    sizes = {
        "terrace": (1.05, 1.55),
        "house": (1.7, 1.25),
        "shop": (1.05, 1.6),
        "office": (2.2, 1.6),
        "civic": (1.3, 2.5),
        "flats": (1.6, 1.5),
    }[kind]
    size = (sizes[0] * rng.uniform(0.85, 1.2), sizes[1] * rng.uniform(0.9, 1.1))
    return Style(
        wall=wall,
        wall_tile=tile,
        tint=tint,
        roof=str(rng.choice(["tiles", "slate", "slate"])),
        roof_tint=np.full(3, rng.uniform(0.7, 1.0)),
        trim=np.full(3, rng.choice([0.95, 0.9, 0.8, 0.35])),
        window=str(rng.choice(WINDOWS)),
        window_size=size,
        spacing=size[0] + rng.uniform(0.7, 1.8),
        floor_height={"civic": 4.0, "office": 3.4}.get(kind, 2.9) * rng.uniform(0.95, 1.08),
        recess=rng.uniform(0.07, 0.2),
        uv_shift=(rng.random(), rng.random()),
    )


def wall_look(style: Style) -> Look:
    """How a quad of the building's wall looks."""
    return {
        "layer": LAYER[style.wall],
        "cls": BUILDING,
        "metres_a_tile": style.wall_tile,
        "tint": style.tint,
        "uv_shift": style.uv_shift,
    }


def ledge(
    mesh: Mesh, x0: float, x1: float, y: float, height: float, reach: float, tint: Tint
) -> None:
    """A ledge from x0 to x1 at height y: a sill, a cornice or a string course."""
    look: Look = {"layer": LAYER["plaster"], "cls": BUILDING, "tint": tint}
    mesh.box((x0, y, -reach), (x1, y + height, 0), faces="xXYz", **look)
    mesh.rect(
        (x0, y, -reach), (x1 - x0, 0, 0), (0, 0, reach), open_=0.4, normals=(0, -1, 0), **look
    )
