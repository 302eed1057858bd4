"""Street furniture: lamps, traffic lights, signs, bollards, shelters, fences and walls."""

from __future__ import annotations

import numpy as np

from .fittings import SIGN_GRID
from .mesh import BUILDING, CUTOUT, FENCE, GLASS, LAMP, POLE, SIGN, UNIT_UV, Look, Mesh
from .textures import LAYER

FENCE_KINDS = ("railing", "mesh", "panel", "wall", "wall_railing", "guard")


def make_lamp(rng: np.random.Generator) -> Mesh:
    """A street lamp at the origin whose arm reaches towards +x."""
    mesh = Mesh()
    height, reach = rng.uniform(5.5, 9.5), rng.uniform(0.6, 1.9)
    tone = np.full(3, rng.choice([0.72, 0.62, 0.28, 0.2])) * rng.uniform(0.9, 1.1)
    look: Look = {"layer": LAYER["metal"], "cls": POLE, "tint": tone}
    mesh.tube(np.array([(0, 0, 0), (0, 1.4, 0)]), (0.11, 0.1), sides=7, **look)
    mesh.tube(np.array([(0, 1.4, 0), (0, height, 0)]), (0.075, 0.05), sides=6, **look)
    rise = rng.uniform(0.1, 0.8)
    bend = np.array(
        [(0, height, 0), (0.3 * reach, height + 0.8 * rise, 0), (reach, height + rise, 0)]
    )
    mesh.tube(bend, (0.045, 0.04, 0.04), sides=5, **look)
    y = height + rise
    mesh.box((reach - 0.1, y - 0.06, -0.14), (reach + 0.6, y + 0.07, 0.14), **look)
    glow: Look = {"layer": LAYER["plain"], "cls": POLE, "kind": LAMP, "tint": (1.0, 0.82, 0.5)}
    mesh.rect((reach, y - 0.065, -0.11), (0.5, 0, 0), (0, 0, 0.22), normals=(0, -1, 0), **glow)
    return mesh


def make_traffic_light(rng: np.random.Generator, lit: int) -> Mesh:
    """A signal at the origin facing -z; ``lit`` 0 red, 1 amber, 2 green."""
    mesh = Mesh()
    look: Look = {"layer": LAYER["metal"], "cls": POLE, "tint": np.full(3, rng.choice([0.18, 0.6]))}
    mesh.tube(np.array([(0, 0, 0), (0, 3.5, 0)]), (0.07, 0.06), sides=7, **look)
    mesh.box(
        (-0.24, 2.35, -0.26),
        (0.24, 3.55, -0.2),
        layer=LAYER["metal"],
        cls=SIGN,
        tint=np.full(3, 0.12),
    )
    mesh.box(
        (-0.15, 2.45, -0.45),
        (0.15, 3.45, -0.12),
        layer=LAYER["metal"],
        cls=SIGN,
        tint=np.full(3, 0.1),
    )
    colours = [(1.0, 0.12, 0.08), (1.0, 0.62, 0.1), (0.15, 1.0, 0.55)]
    for i, rgb in enumerate(colours):
        y = 3.27 - 0.32 * i
        on = i == lit
        disc = _disc(0.11, np.array([0, y, -0.455]))
        mesh.quads(
            disc, layer=LAYER["plain"], cls=SIGN, kind=LAMP if on else GLASS,
            tint=np.array(rgb) * (1.0 if on else 0.25), normals=(0, 0, -1),
        )  # fmt: skip
        mesh.box(
            (-0.13, y + 0.11, -0.6),
            (0.13, y + 0.13, -0.45),
            layer=LAYER["metal"],
            cls=SIGN,
            tint=np.full(3, 0.1),
        )
    return mesh


def make_sign(rng: np.random.Generator) -> Mesh:
    """A traffic sign on its pole at the origin, facing -z."""
    mesh = Mesh()
    tone = np.full(3, rng.choice([0.7, 0.5, 0.25]))
    look: Look = {"layer": LAYER["metal"], "cls": POLE, "tint": tone}
    face = int(rng.integers(0, SIGN_GRID * SIGN_GRID))
    wide = face % 8 >= 5
    half = rng.uniform(0.3, 0.42) * (rng.uniform(1.0, 1.9) if wide else 1.0)
    top = rng.uniform(2.3, 3.0)
    mesh.tube(np.array([(0, 0, 0), (0, top + half * 1.6, 0)]), (0.045, 0.045), sides=6, **look)
    sign_face(mesh, face, np.array([0, top + half, -0.06]), half, half * (0.75 if wide else 1.0))
    if rng.random() < 0.3:
        sign_face(
            mesh, 5 + 8 * int(rng.integers(0, 2)), np.array([0, top - 0.25, -0.06]), half * 0.9, 0.2
        )
    return mesh


def sign_face(mesh: Mesh, face: int, centre: np.ndarray, half_x: float, half_y: float) -> None:
    """A sign's printed front looking at -z and its grey back."""
    row, col = divmod(face, SIGN_GRID)
    uv = (UNIT_UV * 0.98 + 0.01 + [col, row]) / SIGN_GRID
    low = centre - [half_x, half_y, 0]
    size = ((2 * half_x, 0, 0), (0, 2 * half_y, 0))
    corners = np.stack([low, low + size[0], low + np.add(*size), low + size[1]])[None]
    mesh.quads(corners, layer=LAYER["signs"], cls=SIGN, kind=CUTOUT, uv=uv, normals=(0, 0, -1))
    back = corners + np.array([0, 0, 0.015])
    grey = np.full(3, 0.22)
    mesh.quads(
        back, layer=LAYER["signs"], cls=SIGN, kind=CUTOUT, uv=uv, normals=(0, 0, 1), tint=grey
    )


def make_projecting_sign(rng: np.random.Generator) -> Mesh:
    """A shop's hanging sign: attached at the origin, reaching towards -z."""
    mesh = Mesh()
    row, col = int(rng.integers(0, 2)), int(rng.integers(0, 2))
    uv = UNIT_UV * 0.48 + [col / 2 + 0.01, row / 2 + 0.01]
    size = rng.uniform(0.6, 0.95)
    for x, facing in ((-0.03, -1.0), (0.03, 1.0)):
        corners = np.array(
            [[(x, 0, -0.2), (x, 0, -0.2 - size), (x, size, -0.2 - size), (x, size, -0.2)]]
        )
        mesh.quads(corners, layer=LAYER["poster"], cls=SIGN, uv=uv, normals=(facing, 0, 0))
    mesh.box(
        (-0.02, size, -0.25 - size),
        (0.02, size + 0.04, 0),
        layer=LAYER["metal"],
        cls=POLE,
        tint=np.full(3, 0.1),
    )
    return mesh


def make_bollard(rng: np.random.Generator) -> Mesh:
    """A black or grey bollard about 1 m tall."""
    mesh = Mesh()
    tone = np.full(3, rng.choice([0.14, 0.14, 0.6]))
    points = np.array([(0, 0, 0), (0, 0.85, 0), (0, 0.95, 0), (0, 1.0, 0)])
    mesh.tube(points, (0.08, 0.065, 0.08, 0.02), sides=8, layer=LAYER["metal"], cls=POLE, tint=tone)
    mesh.tube(np.array([(0, 0.7, 0), (0, 0.78, 0)]), (0.075, 0.075), layer=LAYER["plain"], cls=POLE)
    return mesh


def make_shelter(rng: np.random.Generator) -> Mesh:
    """A bus shelter along z (3.6 m), open towards -x, with an advertisement at its end."""
    mesh = Mesh()
    frame: Look = {
        "layer": LAYER["metal"],
        "cls": BUILDING,
        "tint": np.full(3, rng.choice([0.2, 0.55])),
    }
    for z in (-1.8, 0.0, 1.8):
        mesh.box((0.95, 0, z - 0.04), (1.03, 2.4, z + 0.04), **frame)
    mesh.box((-0.3, 2.4, -1.9), (1.1, 2.5, 1.9), **frame)
    pane: Look = {
        "layer": LAYER["plain"],
        "cls": BUILDING,
        "kind": GLASS,
        "tint": (0.3, 0.33, 0.33),
    }
    mesh.rect((1.0, 0.3, -1.8), (0, 0, 3.6), (0, 2.0, 0), normals=(-1, 0, 0), **pane)
    mesh.box((0.0, 0.2, 1.75), (1.0, 2.3, 1.85), **frame)
    corners = np.array(
        [[(0.05, 0.35, 1.74), (0.95, 0.35, 1.74), (0.95, 2.15, 1.74), (0.05, 2.15, 1.74)]]
    )
    uv = UNIT_UV * 0.48 + [0.01, 0.51]
    mesh.quads(corners, layer=LAYER["poster"], cls=SIGN, uv=uv, normals=(0, 0, -1))
    return mesh


def fence(mesh: Mesh, rng: np.random.Generator, kind: str, x: float, z0: float, z1: float) -> None:
    """A fence or wall of ``kind`` (see :data:`FENCE_KINDS`) along z at ``x``."""
    length = z1 - z0
    if kind in ("railing", "mesh"):
        high = rng.uniform(0.95, 1.25) if kind == "railing" else rng.uniform(1.2, 2.0)
        _screen(mesh, rng, kind, x, z0, length, 0.0, high)
    elif kind == "panel":
        tint = np.clip(rng.uniform(0.55, 1.0) * (1 + 0.05 * rng.standard_normal(3)), 0, 1)
        look: Look = {"layer": LAYER["boards"], "cls": FENCE, "tint": tint, "open_": _grounded()}
        mesh.box(
            (x - 0.03, 0, z0), (x + 0.03, rng.uniform(1.2, 1.8), z1), 1.8, faces="xXYzZ", **look
        )
    elif kind == "guard":
        _guard_rail(mesh, x, z0, z1)
    else:
        layer = str(rng.choice(["brick_red", "brick_buff", "brick_brown", "ashlar"]))
        high = rng.uniform(0.5, 1.3) if kind == "wall" else rng.uniform(0.35, 0.6)
        look = {
            "layer": LAYER[layer],
            "cls": FENCE,
            "tint": np.full(3, rng.uniform(0.7, 0.95)),
        }
        look["open_"] = _grounded()
        tile = 2.4 if layer == "ashlar" else 1.2
        mesh.box((x - 0.12, 0, z0), (x + 0.12, high, z1), tile, faces="xXzZ", **look)
        cap: Look = {"layer": LAYER["concrete"], "cls": FENCE}
        mesh.box((x - 0.16, high, z0), (x + 0.16, high + 0.07, z1), 3.0, faces="xXYzZ", **cap)
        if kind == "wall_railing":
            _screen(mesh, rng, "railing", x, z0, length, high + 0.07, high + 0.9)


def _grounded() -> np.ndarray:
    return np.array([[0.6, 0.6, 1.0, 1.0]])


def _screen(
    mesh: Mesh,
    rng: np.random.Generator,
    kind: str,
    x: float,
    z0: float,
    length: float,
    low: float,
    high: float,
) -> None:
    tone = np.array(
        [(0.1, 0.1, 0.11), (0.75, 0.77, 0.78), (0.12, 0.26, 0.18)][int(rng.integers(0, 3))]
    )
    layer = LAYER["railing" if kind == "railing" else "mesh_fence"]
    uv = UNIT_UV * [length / 1.1, 1.0]
    corners = np.array(
        [[(x, low, z0), (x, low, z0 + length), (x, high, z0 + length), (x, high, z0)]]
    )
    look: Look = {"layer": layer, "cls": FENCE, "kind": CUTOUT, "uv": uv, "tint": tone}
    mesh.quads(corners, normals=(-np.sign(x), 0, 0), **look)
    posts: Look = {"layer": LAYER["metal"], "cls": FENCE, "tint": tone}
    for z in np.arange(z0, z0 + length, 2.2):
        mesh.box((x - 0.03, low, z - 0.03), (x + 0.03, high + 0.05, z + 0.03), faces="xXz", **posts)
    mesh.box((x - 0.025, high - 0.06, z0), (x + 0.025, high, z0 + length), faces="xXY", **posts)


def _guard_rail(mesh: Mesh, x: float, z0: float, z1: float) -> None:
    look: Look = {"layer": LAYER["metal"], "cls": FENCE, "tint": np.full(3, 0.8)}
    profile = np.array([(0, 0.42), (-0.05, 0.5), (0, 0.57), (-0.05, 0.65), (0, 0.73)])
    grid = np.zeros((2, len(profile), 3))
    grid[..., 0] = x + profile[:, 0] * np.sign(x)
    grid[..., 1] = profile[:, 1]
    grid[..., 2] = np.array([[z0], [z1]])
    normals = np.broadcast_to(
        np.array([(-1, 0.5, 0), (-1, 0, 0)] * 3)[:5] * [np.sign(x), 1, 1], grid.shape
    )
    mesh.grid(grid, normals, grid[..., 1:], **look)
    for z in np.arange(z0 + 1, z1, 3.0):
        mesh.box((x - 0.05, 0, z - 0.05), (x + 0.05, 0.7, z + 0.05), faces="xXz", **look)


def _disc(radius: float, centre: np.ndarray) -> np.ndarray:
    """An octagon facing -z as two quads and a middle band: [3, 4, 3]."""
    angle = np.pi / 8 + np.arange(8) * np.pi / 4
    ring = centre + radius * np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    return np.stack([ring[[0, 1, 2, 3]], ring[[0, 3, 4, 7]], ring[[4, 5, 6, 7]]])
