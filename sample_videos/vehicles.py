"""Cars, vans, lorries and buses: bodies lofted through cross-sections, with glass, wheels, lamps.

Local axes: x across, y up, z forwards; the origin lies on the ground below the middle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .mesh import CAR, GLASS, LAMP, MATTE, PAINT, UNIT_UV, Look, Mesh
from .textures import LAYER

# The cross-section from sill to roof centre: (share of the width, share of the way from sill to
# belt, then from belt to roof).
SECTION_X = np.array([0.90, 0.99, 1.0, 0.985, 0.95, 0.88, 0.80, 0.66, 0.0])
SECTION_LOW = np.array([0.0, 0.22, 0.6, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0])
SECTION_HIGH = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 0.93, 1.0, 1.03])


@dataclass(frozen=True)
class Body:
    """One body type. ``stations`` run from the rear to the front: (z, roof height, width share,
    what lies between this station and the next: B body, S side windows, W windscreen, P pillar).
    """

    half_width: float
    sill: float
    belt: float
    wheel_radius: float
    axles: tuple[float, ...]
    stations: tuple[tuple[float, float, float, str], ...]

    @property
    def half_length(self) -> float:
        return max(abs(self.stations[0][0]), abs(self.stations[-1][0]))


BODIES: dict[str, Body] = {
    "hatchback": Body(0.84, 0.2, 0.94, 0.3, (-1.22, 1.22), (
        (-1.9, 0.5, 0.84, "B"), (-1.92, 0.78, 0.9, "B"), (-1.84, 0.97, 0.93, "W"),
        (-1.48, 1.38, 0.94, "P"), (-1.36, 1.42, 0.96, "S"), (-0.42, 1.47, 1.0, "P"),
        (-0.34, 1.47, 1.0, "S"), (0.3, 1.43, 1.0, "W"), (1.02, 0.97, 0.98, "B"),
        (1.5, 0.87, 0.95, "B"), (1.8, 0.74, 0.86, "B"), (1.9, 0.5, 0.74, "B"))),
    "saloon": Body(0.88, 0.2, 0.94, 0.31, (-1.4, 1.35), (
        (-2.25, 0.5, 0.82, "B"), (-2.27, 0.86, 0.9, "B"), (-2.1, 0.98, 0.93, "B"),
        (-1.62, 1.0, 0.95, "W"), (-1.02, 1.36, 0.95, "P"), (-0.92, 1.39, 0.96, "S"),
        (-0.3, 1.43, 1.0, "P"), (-0.22, 1.43, 1.0, "S"), (0.4, 1.4, 1.0, "W"),
        (1.16, 0.97, 0.98, "B"), (1.8, 0.88, 0.95, "B"), (2.15, 0.74, 0.85, "B"),
        (2.26, 0.5, 0.74, "B"))),
    "estate": Body(0.88, 0.22, 0.96, 0.32, (-1.38, 1.36), (
        (-2.25, 0.5, 0.85, "B"), (-2.27, 0.85, 0.9, "B"), (-2.2, 0.99, 0.93, "W"),
        (-1.92, 1.4, 0.94, "P"), (-1.8, 1.43, 0.95, "S"), (-1.2, 1.46, 0.98, "P"),
        (-1.1, 1.46, 0.98, "S"), (-0.3, 1.48, 1.0, "P"), (-0.2, 1.48, 1.0, "S"),
        (0.42, 1.44, 1.0, "W"), (1.15, 0.99, 0.98, "B"), (1.8, 0.9, 0.95, "B"),
        (2.13, 0.76, 0.86, "B"), (2.24, 0.5, 0.75, "B"))),
    "suv": Body(0.93, 0.32, 1.1, 0.37, (-1.35, 1.38), (
        (-2.2, 0.6, 0.88, "B"), (-2.22, 0.98, 0.93, "B"), (-2.14, 1.13, 0.95, "W"),
        (-1.92, 1.62, 0.95, "P"), (-1.78, 1.66, 0.96, "S"), (-1.05, 1.7, 0.98, "P"),
        (-0.95, 1.7, 0.98, "S"), (-0.2, 1.72, 1.0, "P"), (-0.1, 1.72, 1.0, "S"),
        (0.5, 1.67, 1.0, "W"), (1.14, 1.14, 0.98, "B"), (1.85, 1.06, 0.96, "B"),
        (2.14, 0.92, 0.9, "B"), (2.22, 0.6, 0.8, "B"))),
    "van": Body(0.98, 0.28, 1.15, 0.35, (-1.55, 1.6), (
        (-2.45, 0.55, 0.95, "B"), (-2.47, 1.2, 0.97, "W"), (-2.44, 1.75, 0.97, "B"),
        (-2.38, 2.0, 0.98, "B"), (-0.2, 2.06, 1.0, "P"), (-0.1, 2.06, 1.0, "B"),
        (0.2, 2.05, 1.0, "S"), (1.0, 1.92, 1.0, "W"), (1.72, 1.2, 0.98, "B"),
        (2.2, 1.0, 0.95, "B"), (2.42, 0.8, 0.87, "B"), (2.48, 0.5, 0.78, "B"))),
}  # fmt: skip
DARK = np.full(3, 0.09)


def make_vehicle(kind: str) -> Mesh:
    """A body of ``kind``: a key of :data:`BODIES`, or "lorry", "bus", "coach"."""
    if kind in BODIES:
        return _car(BODIES[kind])
    return {"lorry": _lorry, "bus": lambda: _bus(2), "coach": lambda: _bus(1)}[kind]()


def vehicle_half_size(kind: str) -> tuple[float, float]:
    """Half width and half length in metres."""
    if kind in BODIES:
        return BODIES[kind].half_width, BODIES[kind].half_length
    return {"lorry": (1.2, 3.6), "bus": (1.25, 5.2), "coach": (1.25, 5.0)}[kind]


def _car(body: Body) -> Mesh:
    mesh = Mesh()
    grid = _loft(body)
    normals = _grid_normals(grid)
    lower = np.array([0.45, 0.6, 0.75, 0.9, 1, 1, 1, 1, 1])
    open_grid = np.concatenate([lower, lower[-2::-1]])
    for row, what in enumerate(body.stations[:-1]):
        for group, columns in _column_groups(what[3]):
            for c in columns:
                quad = grid[row : row + 2, c : c + 2]
                look = _surface(group)
                shade = open_grid[[c, c + 1]][None, [0, 1, 1, 0]]
                mesh.grid(
                    quad,
                    normals[row : row + 2, c : c + 2],
                    quad[..., 1:] * 0.5,
                    open_=shade,
                    **look,
                )
    for end, facing in ((0, -1.0), (-1, 1.0)):  # close the ends below the bumpers
        ring = grid[end]
        half = len(ring) // 2
        corners = np.stack(
            [ring[:half], ring[1 : half + 1], ring[::-1][1 : half + 1], ring[::-1][:half]], axis=1
        )
        mesh.quads(corners, normals=(0, 0, facing), **_surface("body"))
    _underside(mesh, body.half_width, body.half_length, body.sill)
    _wheels(mesh, body.half_width, body.wheel_radius, body.axles)
    _trim(mesh, body)
    return mesh


def _loft(body: Body) -> np.ndarray:
    """Grid [stations, points, 3] around the body from the left sill over the roof to the right."""
    rows = []
    for z, roof, share, _ in body.stations:
        belt = min(body.belt, roof - 0.02)
        y = body.sill + SECTION_LOW * (belt - body.sill) + SECTION_HIGH * (roof - belt)
        lift = 0.12 if z in (body.stations[0][0], body.stations[-1][0]) else 0.0
        y = np.maximum(y, body.sill + lift)
        x = SECTION_X * body.half_width * share
        if roof < body.belt + 0.15:  # bonnet and boot are nearly full width to their edge
            x[5:8] = np.array([0.93, 0.88, 0.7]) * body.half_width * share
        half = np.stack([x, y, np.full_like(x, z)], axis=1)
        rows.append(np.concatenate([half * [-1, 1, 1], half[-2::-1]]))
    return np.array(rows)


def _grid_normals(grid: np.ndarray) -> np.ndarray:
    along = np.gradient(grid, axis=0)
    around = np.gradient(grid, axis=1)
    normal = np.cross(along, around)
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-6)
    outward = grid - np.array([0, 0.6, 0]) * [1, 1, 0] - grid * [0, 0, 1]
    flip = np.sign((normal * outward).sum(-1, keepdims=True))
    return normal * np.where(flip == 0, 1, flip)


def _column_groups(what: str) -> list[tuple[str, list[int]]]:
    side, top = [4, 5, 10, 11], [6, 7, 8, 9]
    body = [0, 1, 2, 3, 12, 13, 14, 15]
    if what == "W":
        return [("body", body), ("glass", side + top)]
    if what == "S":
        return [("body", body + top), ("glass", side)]
    if what == "P":
        return [("body", body + top), ("pillar", side)]
    return [("body", body + side + top)]


def _surface(group: str) -> dict:
    if group == "glass":
        return {"layer": LAYER["plain"], "cls": CAR, "kind": GLASS, "tint": (0.2, 0.22, 0.23)}
    if group == "pillar":
        return {"layer": LAYER["plain"], "cls": CAR, "kind": MATTE, "tint": DARK}
    return {"layer": LAYER["plain"], "cls": CAR, "kind": PAINT, "dyed": True}


def _underside(mesh: Mesh, half_width: float, half_length: float, sill: float) -> None:
    look: Look = {"layer": LAYER["plain"], "cls": CAR, "tint": np.full(3, 0.05), "open_": 0.15}
    w, z = half_width * 0.88, half_length * 0.93
    mesh.box((-w, sill - 0.06, -z), (w, sill + 0.1, z), **look)


def _wheels(mesh: Mesh, half_width: float, radius: float, axles: tuple[float, ...]) -> None:
    for z in axles:
        for side in (-1.0, 1.0):
            outer, inner = side * (half_width - 0.01), side * (half_width - 0.24)
            tyre: Look = {
                "layer": LAYER["plain"],
                "cls": CAR,
                "tint": np.full(3, 0.16),
                "open_": 0.55,
            }
            ends = np.array([(inner, radius, z), (outer, radius, z)])
            mesh.tube(ends, (radius, radius), sides=14, **tyre)
            centre = np.array([outer + side * 0.004, radius, z])
            _wheel_disc(mesh, centre, side, radius)
            arch = np.array([outer - side * 0.012, radius + 0.02, z])
            _fan(mesh, arch, side, radius * 1.22, np.full(3, 0.05))


def _fan(mesh: Mesh, centre: np.ndarray, side: float, radius: float, tint: np.ndarray) -> None:
    angle = np.linspace(0, 2 * np.pi, 13)
    ring = centre + radius * np.stack([0 * angle, np.sin(angle), np.cos(angle)], axis=1)
    corners = np.stack(
        [np.broadcast_to(centre, (6, 3)), ring[:-1:2], ring[1::2], ring[2::2]], axis=1
    )
    mesh.quads(corners, layer=LAYER["plain"], cls=CAR, normals=(side, 0, 0), tint=tint, open_=0.3)


def _wheel_disc(mesh: Mesh, centre: np.ndarray, side: float, radius: float) -> None:
    angle = np.linspace(0, 2 * np.pi, 13)
    circle = np.stack([0 * angle, np.sin(angle), np.cos(angle)], axis=1)
    ring = centre + radius * circle
    uv_ring = 0.75 + 0.245 * circle[:, 1:]
    corners = np.stack(
        [np.broadcast_to(centre, (6, 3)), ring[:-1:2], ring[1::2], ring[2::2]], axis=1
    )
    uv = np.stack([np.full((6, 2), 0.75), uv_ring[:-1:2], uv_ring[1::2], uv_ring[2::2]], axis=1)
    mesh.quads(
        corners, layer=LAYER["vehicle_trim"], cls=CAR, uv=uv, normals=(side, 0, 0), open_=0.75
    )


def _trim(mesh: Mesh, body: Body) -> None:
    """Lamps, plates, grille, bumpers and mirrors."""
    w, front, rear = body.half_width, body.stations[-1][0], body.stations[0][0]
    lamp_y, z_lamp = body.belt - 0.28, body.stations[-2][0]
    for side in (-1.0, 1.0):
        a, b = sorted((side * w * 0.44, side * w * 0.8))
        _panel(
            mesh, (a, lamp_y - 0.1), (b, lamp_y + 0.08), z_lamp + 0.1, 1.0, LAMP, (1.0, 0.97, 0.88)
        )
        a, b = sorted((side * w * 0.68, side * w * 0.9))
        _panel(
            mesh,
            (a, body.belt - 0.3),
            (b, body.belt - 0.1),
            rear - 0.035,
            -1.0,
            LAMP,
            (0.72, 0.05, 0.05),
        )
        mirror_z = next(s[0] for s in body.stations if s[3] == "W" and s[0] > -0.5) + 0.35
        x = side * (w + 0.09)
        look: Look = {"layer": LAYER["plain"], "cls": CAR, "kind": PAINT, "dyed": True}
        mesh.box(
            (x - 0.09, body.belt + 0.02, mirror_z - 0.06),
            (x + 0.09, body.belt + 0.16, mirror_z + 0.05),
            **look,
        )
    bumper: Look = {"layer": LAYER["plain"], "cls": CAR, "tint": np.full(3, 0.13)}
    low = body.sill + 0.04
    mesh.box((-w * 0.82, low, rear - 0.07), (w * 0.82, low + 0.14, rear + 0.2), **bumper)
    mesh.box((-w * 0.72, low, front - 0.25), (w * 0.72, low + 0.13, front + 0.06), **bumper)
    grille = np.array([(-w * 0.4, lamp_y - 0.12), (w * 0.4, lamp_y + 0.02)])
    _panel(
        mesh,
        grille[0],
        grille[1],
        z_lamp + 0.11,
        1.0,
        MATTE,
        (0.9, 0.9, 0.9),
        "vehicle_trim",
        (0.0, 0.0),
    )
    _panel(
        mesh,
        (-0.26, low + 0.05),
        (0.26, low + 0.16),
        front + 0.07,
        1.0,
        MATTE,
        (1, 1, 1.3),
        "vehicle_trim",
        (0.5, 0.0),
    )
    plate_y = body.belt - 0.35
    _panel(
        mesh,
        (-0.26, plate_y),
        (0.26, plate_y + 0.11),
        rear - 0.045,
        -1.0,
        MATTE,
        (1, 1, 1),
        "vehicle_trim",
        (0.5, 0.0),
    )


def _panel(
    mesh: Mesh, low: tuple | np.ndarray, high: tuple | np.ndarray, z: float, facing: float, kind: int,
    tint: tuple, layer: str = "plain", quarter: tuple[float, float] = (0.0, 0.0),
) -> None:  # fmt: skip
    """A small upright quad at ``z`` facing along ±z, with a quarter of its texture."""
    x = (low[0], high[0]) if facing < 0 else (high[0], low[0])
    corners = np.array(
        [[(x[0], low[1], z), (x[1], low[1], z), (x[1], high[1], z), (x[0], high[1], z)]]
    )
    uv = UNIT_UV * 0.48 + np.array(quarter) + 0.01
    mesh.quads(
        corners, layer=LAYER[layer], cls=CAR, kind=kind, uv=uv, tint=tint, normals=(0, 0, facing)
    )


def _boxy(mesh: Mesh, low: tuple, high: tuple, **look: Any) -> None:
    mesh.box(
        low, high, **({"layer": LAYER["plain"], "cls": CAR, "kind": PAINT, "dyed": True} | look)
    )


def _bus(decks: int) -> Mesh:
    """A bus or coach of one or two decks, 10.4 m long."""
    mesh = Mesh()
    height, w, z = (4.2 if decks == 2 else 3.0), 1.25, 5.2
    _boxy(mesh, (-w, 0.35, -z), (w, height, z))
    pane: Look = {"layer": LAYER["plain"], "cls": CAR, "kind": GLASS, "tint": (0.17, 0.19, 0.2)}
    for deck in range(decks):
        y0 = 1.25 + 1.75 * deck
        for side in (-1.0, 1.0):
            for i in range(7):
                z0 = -z + 0.35 + i * 1.4
                mesh.rect(
                    (side * (w + 0.01), y0, z0),
                    (0, 0, 1.28),
                    (0, 0.95, 0),
                    normals=(side, 0, 0),
                    **pane,
                )
        for facing, drop in ((1.0, 0.35 if deck == 0 else 0.0), (-1.0, -0.1)):
            mesh.rect(
                (-w + 0.12, y0 - drop, facing * (z + 0.01)), (2 * w - 0.24, 0, 0), (0, 1.1 + drop, 0),
                normals=(0, 0, facing), **pane,
            )  # fmt: skip
    _end_lamps(mesh, w, z, 0.75)
    _panel(
        mesh, (-0.7, height - 0.42), (0.7, height - 0.12), z + 0.02, 1.0, LAMP, (0.45, 0.33, 0.05)
    )
    _panel(mesh, (-0.6, 2.55), (0.6, 2.95), -z - 0.02, -1.0, MATTE, (1, 1, 1), "poster", (0.5, 0.5))
    _underside(mesh, w, z, 0.34)
    _wheels(mesh, w + 0.025, 0.48, (-3.0, 3.2))
    band: Look = {"layer": LAYER["plain"], "cls": CAR, "tint": np.full(3, 0.82)}
    for side in (-1.0, 1.0):  # a light band and the door
        x = side * (w + 0.008)
        mesh.rect((x, 2.3, -z), (0, 0, 2 * z), (0, 0.35, 0), normals=(side, 0, 0), **band)
        door = band | {"kind": GLASS, "tint": (0.14, 0.15, 0.16)}
        mesh.rect((x, 0.5, 3.9), (0, 0, 1.15), (0, 1.75, 0), normals=(side, 0, 0), **door)
    return mesh


def _lorry() -> Mesh:
    mesh = Mesh()
    _boxy(mesh, (-1.05, 0.5, 1.9), (1.05, 2.6, 3.6))
    white = {"dyed": False, "tint": np.full(3, 0.86), "kind": MATTE, "layer": LAYER["metal"]}
    _boxy(mesh, (-1.2, 0.9, -3.6), (1.2, 3.4, 1.75), **white)
    pane: Look = {"layer": LAYER["plain"], "cls": CAR, "kind": GLASS, "tint": (0.16, 0.18, 0.2)}
    mesh.rect((-0.92, 1.5, 3.61), (1.84, 0, 0), (0, 0.85, 0), normals=(0, 0, 1), **pane)
    for side in (-1.0, 1.0):
        mesh.rect((side * 1.06, 1.5, 2.5), (0, 0, 0.9), (0, 0.75, 0), normals=(side, 0, 0), **pane)
    _end_lamps(mesh, 1.1, 3.6, 0.8)
    _underside(mesh, 1.1, 3.6, 0.55)
    _wheels(mesh, 1.12, 0.48, (-2.3, 2.6))
    return mesh


def _end_lamps(mesh: Mesh, w: float, z: float, y: float) -> None:
    for side in (-1.0, 1.0):
        a, b = sorted((side * w * 0.62, side * w * 0.94))
        _panel(mesh, (a, y - 0.12), (b, y + 0.1), z + 0.03, 1.0, LAMP, (1.0, 0.97, 0.88))
        _panel(mesh, (a, y - 0.15), (b, y + 0.15), -z - 0.03, -1.0, LAMP, (0.72, 0.05, 0.05))
    _panel(
        mesh,
        (-0.26, y - 0.2),
        (0.26, y - 0.09),
        z + 0.03,
        1.0,
        MATTE,
        (1, 1, 1),
        "vehicle_trim",
        (0.5, 0.0),
    )
    _panel(
        mesh,
        (-0.26, y - 0.2),
        (0.26, y - 0.09),
        -z - 0.03,
        -1.0,
        MATTE,
        (1, 1, 1),
        "vehicle_trim",
        (0.5, 0.0),
    )
