"""Buildings: walls with recessed windows and doors, shopfronts, bays, balconies, roofs, chimneys.

Local axes of a building: x along the façade (0..width), y up, z into the building; the façade is
the plane z = 0 and looks towards -z.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from .building_style import Style, Tint, draw_style, ledge, wall_look
from .fittings import SHOPFRONTS
from .mesh import BUILDING, GLASS, MATTE, UNIT_UV, Look, Mesh
from .textures import LAYER


def make_building(
    rng: np.random.Generator, kind: str, width: float, depth: float, height_scale: float = 1.0
) -> Mesh:
    """A building of ``kind`` (terrace, house, shop, office, civic, flats), seeded by ``rng``."""
    style = draw_style(rng, kind)
    floors = {
        "terrace": rng.choice([2, 2, 3]),
        "house": 2,
        "shop": rng.choice([2, 3, 3, 4]),
        "office": rng.integers(3, 7),
        "civic": rng.choice([2, 3]),
        "flats": rng.integers(3, 6),
    }[kind]
    floors = max(1, round(floors * height_scale))
    mesh = Mesh()
    if kind == "office" and rng.random() < 0.5:
        height = _curtain_building(mesh, rng, style, width, depth, floors)
    else:
        height = _masonry(mesh, rng, style, kind, width, depth, floors)
    _top(mesh, rng, style, kind, width, depth, height)
    _darken_low(mesh)
    return mesh


def _masonry(
    mesh: Mesh,
    rng: np.random.Generator,
    style: Style,
    kind: str,
    width: float,
    depth: float,
    floors: int,
) -> float:
    """Walls storey by storey; returns the wall's height."""
    height = 0.0
    for floor in range(floors):
        storey = style.floor_height
        if floor == 0 and kind == "shop":
            storey = style.floor_height * 1.18
            _shop_storey(mesh, rng, style, width, storey)
        else:
            _storey(mesh, rng, style, kind, width, height, storey, floor)
        height += storey
    height += 0.3
    mesh.rect((0, height - 0.3, 0), (width, 0, 0), (0, 0.3, 0), **wall_look(style))
    look = wall_look(style)
    mesh.rect((0, 0, depth), (0, 0, -depth), (0, height, 0), **look)
    mesh.rect((width, 0, 0), (0, 0, depth), (0, height, 0), **look)
    mesh.rect((width, 0, depth), (-width, 0, 0), (0, height, 0), **look)
    if kind != "civic" and rng.random() < 0.6:  # a drainpipe
        x, tone = rng.choice([0.12, width - 0.12]), np.full(3, rng.choice([0.12, 0.12, 0.85]))
        mesh.box((x - 0.05, 0, -0.1), (x + 0.05, height, 0), faces="xXz", layer=LAYER["metal"],
                 cls=BUILDING, tint=tone)  # fmt: skip
    if kind in ("civic", "shop", "terrace") and rng.random() < 0.5:  # a string course
        y = height - rng.uniform(0.3, 0.7)
        ledge(mesh, 0, width, y, 0.12, 0.16, style.trim)
    return height


def _openings(rng: np.random.Generator, style: Style, width: float) -> np.ndarray:
    count = max(1, int((width - 0.5) / style.spacing))
    pitch = width / count
    return pitch * (np.arange(count) + 0.5)


def _storey(
    mesh: Mesh,
    rng: np.random.Generator,
    style: Style,
    kind: str,
    width: float,
    base: float,
    storey: float,
    floor: int,
) -> None:
    """One storey's front wall with its windows, and at the ground a door."""
    centres = _openings(rng, style, width)
    w, h = style.window_size
    low = base + max(0.3, (storey - h) * rng.uniform(0.45, 0.6))
    high = min(low + h, base + storey - 0.15)
    spans = [(c - w / 2, c + w / 2, low, high, style.window) for c in centres]
    if floor == 0:
        door = int(rng.integers(0, len(centres)))
        centre = centres[door]
        door_look = "door_glazed" if rng.random() < 0.4 else "door_panel"
        spans[door] = (centre - 0.5, centre + 0.5, base + 0.05, base + 2.25, door_look)
        if kind in ("terrace", "house") and rng.random() < 0.4:
            spans = _bay(mesh, rng, style, spans, door)
    _pierced_wall(mesh, style, width, base, storey, spans)
    colour = rng.uniform(0.15, 0.85) * rng.uniform(0.4, 1.0, 3)
    for x0, x1, y0, y1, layer in spans:
        _opening(mesh, style, (x0, x1, y0, y1), layer, colour)
    if kind == "flats" and floor > 0:
        _balconies(mesh, rng, style, centres[:: int(rng.integers(1, 3))], base)


def _pierced_wall(
    mesh: Mesh, style: Style, width: float, base: float, storey: float, spans: list
) -> None:
    """The wall around openings: a column of wall for each pier, strips below and above."""
    strips = []
    left = 0.0
    for x0, x1, y0, y1, _ in spans:
        strips += [(left, x0, base, base + storey), (x0, x1, base, y0), (x0, x1, y1, base + storey)]
        left = x1
    strips.append((left, width, base, base + storey))
    box = np.array([s for s in strips if s[1] - s[0] > 0.01 and s[3] - s[2] > 0.01])
    zero = np.zeros(len(box))
    origin = np.stack([box[:, 0], box[:, 2], zero], axis=1)
    across = np.stack([box[:, 1] - box[:, 0], zero, zero], axis=1)
    up = np.stack([zero, box[:, 3] - box[:, 2], zero], axis=1)
    mesh.rect(origin, across, up, **wall_look(style))


def _opening(
    mesh: Mesh, style: Style, box: tuple[float, float, float, float], layer: str, colour: Tint
) -> None:
    """A recessed window or door with its reveals, sill and lintel."""
    x0, x1, y0, y1 = box
    d, w, h = style.recess, x1 - x0, y1 - y0
    door = layer.startswith("door")
    mesh.rect(
        (x0, y0, d), (w, 0, 0), (0, h, 0), layer=LAYER[layer], cls=BUILDING, kind=GLASS,
        tint=colour if door else (0.95, 0.95, 0.95), open_=0.8,
    )  # fmt: skip
    origin = np.array([(x0, y0, 0), (x1, y0, 0), (x0, y0, 0), (x0, y1, 0)])
    across = np.array([(0, 0, d)] * 2 + [(w, 0, 0)] * 2)
    up = np.array([(0, h, 0)] * 2 + [(0, 0, d)] * 2)
    normals = np.array([(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0)])
    mesh.rect(
        origin, across, up, layer=LAYER["plaster"], cls=BUILDING, tint=style.tint, normals=normals,
        open_=np.array([0.6, 0.6, 0.8, 0.35])[:, None],
    )  # fmt: skip
    if not door:
        ledge(mesh, x0 - 0.08, x1 + 0.08, y0 - 0.07, 0.07, 0.1, style.trim)
    if style.trim[0] > 0.5 and style.wall != "plaster":
        mesh.rect(
            (x0 - 0.06, y1, -0.012), (w + 0.12, 0, 0), (0, 0.2, 0),
            layer=LAYER["plaster"], cls=BUILDING, tint=style.trim * 0.9,
        )  # fmt: skip


def _bay(mesh: Mesh, rng: np.random.Generator, style: Style, spans: list, door: int) -> list:
    """Turn the widest gap beside the door into a bay window; returns the spans left."""
    others = [i for i in range(len(spans)) if i != door]
    if not others:
        return spans
    x0, x1, y0, y1, layer = spans[others[int(rng.integers(0, len(others)))]]
    x0, x1, out = x0 - 0.25, x1 + 0.25, 0.65
    glass: Look = {"layer": LAYER[layer], "cls": BUILDING, "kind": GLASS, "open_": 0.9}
    look = wall_look(style)
    corners = [(x0, 0.0), (x0 + 0.4, -out), (x1 - 0.4, -out), (x1, 0.0)]
    for (ax, az), (bx, bz) in itertools.pairwise(corners):
        across = (bx - ax, 0, bz - az)
        mesh.rect((ax, 0, az), across, (0, y0, 0), **look)
        mesh.rect((ax, y0, az), across, (0, y1 - y0, 0), **glass)
        mesh.rect((ax, y1, az), across, (0, 0.25, 0), layer=LAYER["plaster"], cls=BUILDING)
    top = np.array([[(cx, y1 + 0.25, cz) for cx, cz in corners]])
    mesh.quads(top, layer=LAYER[style.roof], cls=BUILDING, normals=(0, 1, 0), tint=style.roof_tint)
    return [s for s in spans if not (s[0] >= x0 and s[1] <= x1)] or spans


def _balconies(
    mesh: Mesh, rng: np.random.Generator, style: Style, centres: np.ndarray, base: float
) -> None:
    half = style.window_size[0] * 0.75
    for c in centres:
        slab: Look = {"layer": LAYER["concrete"], "cls": BUILDING, "metres_a_tile": 3.0}
        mesh.box((c - half, base - 0.12, -1.1), (c + half, base + 0.05, 0), faces="xXyYz", **slab)
        rail: Look = {"layer": LAYER["metal"], "cls": BUILDING, "tint": np.full(3, 0.25)}
        posts = np.linspace(c - half, c + half, 9)[:, None]
        origin = np.concatenate([posts, posts * 0 + base, posts * 0 - 1.1], axis=1)
        mesh.rect(origin, (0.035, 0, 0), (0, 1.0, 0), **rail)
        mesh.box((c - half, base + 1.0, -1.12), (c + half, base + 1.05, -1.06), **rail)


def _shop_storey(
    mesh: Mesh, rng: np.random.Generator, style: Style, width: float, storey: float
) -> None:
    """Display glass, a name board above, perhaps an awning and a light inside."""
    fascia = rng.uniform(0.55, 0.8)
    glass_top = storey - fascia - 0.25
    bays = max(1, round(width / 4.5))
    for bay in range(bays):
        x0, pitch = bay * width / bays, width / bays
        mesh.rect(
            (x0 + 0.18, 0.0, 0.12), (pitch - 0.36, 0, 0), (0, glass_top, 0),
            layer=LAYER[str(rng.choice(SHOPFRONTS))], cls=BUILDING, kind=GLASS, open_=0.75,
        )  # fmt: skip
        pier = np.full(3, rng.uniform(0.3, 0.95))
        for edge in (x0, x0 + pitch - 0.18):
            mesh.box(
                (edge, 0, -0.02), (edge + 0.18, glass_top, 0.12), faces="xXz",
                layer=LAYER["plaster"], cls=BUILDING, tint=pier,
            )  # fmt: skip
    row = int(rng.integers(0, 8))
    uv = UNIT_UV * [1, 0.115] + [0, row / 8 + 0.005]
    boards = max(1, round(width / 5.5))
    for i in range(boards):
        x0 = i * width / boards
        corners = [(x0, glass_top, -0.1), (x0 + width / boards, glass_top, -0.1)]
        corners += [
            (x0 + width / boards, glass_top + fascia, -0.16),
            (x0, glass_top + fascia, -0.16),
        ]
        mesh.quads(np.array([corners]), layer=LAYER["fascia"], cls=BUILDING, uv=uv)
    ledge(mesh, 0, width, glass_top + fascia, 0.08, 0.24, style.trim)
    mesh.rect(
        (0, glass_top + fascia, 0), (width, 0, 0), (0, storey - glass_top - fascia, 0),
        **wall_look(style),
    )  # fmt: skip
    if rng.random() < 0.3:
        _awning(mesh, rng, width, glass_top)


def _awning(mesh: Mesh, rng: np.random.Generator, width: float, top: float) -> None:
    tint = rng.uniform(0.25, 0.9) * rng.uniform(0.55, 1.0, 3)
    low, out = top - 0.55, 1.3
    look: Look = {"layer": LAYER["cloth"], "cls": BUILDING, "tint": tint}
    mesh.rect(
        (0.2, low, -out), (width - 0.4, 0, 0), (0, 0.55, out - 0.1), normals=(0, 0.9, -0.4), **look
    )
    mesh.rect(
        (0.2, low - 0.22, -out), (width - 0.4, 0, 0), (0, 0.22, 0), normals=(0, 0, -1), **look
    )


def _curtain_building(
    mesh: Mesh, rng: np.random.Generator, style: Style, width: float, depth: float, floors: int
) -> float:
    height = floors * style.floor_height
    look: Look = {
        "layer": LAYER["curtain_wall"],
        "cls": BUILDING,
        "kind": GLASS,
        "tint": style.tint,
        "metres_a_tile": style.floor_height * 2,
    }
    base = style.floor_height * rng.uniform(0.9, 1.2)
    mesh.box((0, base, 0), (width, height, depth), faces="xXz", **look)
    mesh.rect(
        (0, 0, 0.8), (width, 0, 0), (0, base, 0), layer=LAYER[str(rng.choice(SHOPFRONTS))],
        cls=BUILDING, kind=GLASS, metres_a_tile=4.0, open_=0.45,
    )  # fmt: skip
    for x in np.arange(0.2, width, 4.0):
        mesh.box((x, 0, 0.1), (x + 0.4, base, 0.5), **wall_look(style))
    wall = wall_look(style)
    mesh.rect((0, base, 0), (width, 0, 0), (0, 0, 0.8), **(wall | {"open_": 0.3}))
    mesh.box((0, 0, 0.8), (width, base, depth), faces="xXZ", **wall)
    return height


def _top(
    mesh: Mesh,
    rng: np.random.Generator,
    style: Style,
    kind: str,
    width: float,
    depth: float,
    height: float,
) -> None:
    """A roof: gabled along or across the façade, or flat behind a parapet."""
    flat = kind in ("office", "flats") or (kind == "shop" and rng.random() < 0.35)
    if flat:
        look = wall_look(style)
        rise = rng.uniform(0.3, 1.0)
        mesh.box((0, height, 0), (width, height + rise, depth), faces="xXz", **look)
        mesh.rect(
            (0, height, 0.3), (width, 0, 0), (0, 0, depth), layer=LAYER["asphalt"], cls=BUILDING
        )
        ledge(mesh, -0.05, width + 0.05, height + rise - 0.12, 0.12, 0.1, style.trim)
        return
    across = kind == "house" and rng.random() < 0.5
    _gable(mesh, rng, style, width, depth, height, across)
    if rng.random() < 0.75:
        x = rng.choice([0.5, width - 0.9])
        ridge = height + min(depth, width if across else depth) * 0.33
        stack = replace(style, tint=np.asarray(style.tint) * 0.85)
        z = depth * rng.uniform(0.4, 0.6)
        mesh.box(
            (x - 0.35, height - 0.3, z - 0.3), (x + 0.35, ridge + 0.9, z + 0.3), **wall_look(stack)
        )
        for pot in (-0.18, 0.18):
            points = np.array([(x + pot, ridge + 0.9, z), (x + pot, ridge + 1.25, z)])
            mesh.tube(points, (0.11, 0.09), layer=LAYER["tiles"], cls=BUILDING)


def _gable(
    mesh: Mesh,
    rng: np.random.Generator,
    style: Style,
    width: float,
    depth: float,
    height: float,
    across: bool,
) -> None:
    """Two slopes with eaves and the two wall triangles under the ridge."""
    span, run = (width, depth) if across else (depth, width)
    rise, eave = span * rng.uniform(0.28, 0.42), 0.3

    def point(side: float, y: float, along: float) -> tuple[float, float, float]:
        return (side, y, along) if across else (along, y, side)

    drop = eave * rise / (span / 2)
    look: Look = {"layer": LAYER[style.roof], "cls": BUILDING, "tint": style.roof_tint}
    length = run + 2 * eave if across else run
    start = -eave if across else 0.0
    uv = UNIT_UV * [length / 2.5, float(np.hypot(span / 2, rise)) / 2.5]
    for side, edge in ((-eave, -1.0), (span + eave, 1.0)):
        foot, ridge = height - drop, height + rise
        corners = [
            point(side, foot, start),
            point(side, foot, start + length),
            point(span / 2, ridge, start + length),
            point(span / 2, ridge, start),
        ]
        slope = np.array(point(edge * rise, span / 2, 0.0))
        mesh.quads(np.array([corners]), uv=uv, normals=slope / np.linalg.norm(slope), **look)
    wall: Look = {"layer": LAYER[style.wall], "cls": BUILDING, "tint": style.tint, "kind": MATTE}
    for along, facing in ((0.0, -1.0), (run, 1.0)):
        corners = [point(0, height, along), point(span, height, along)]
        corners += [point(span / 2, height + rise, along)] * 2
        flat = np.array(corners)[:, [0 if across else 2, 1]] / style.wall_tile
        mesh.quads(np.array([corners]), uv=flat, normals=point(0, 0, facing), **wall)
    if not across:  # gutter
        mesh.box(
            (0, height - 0.16, -eave - 0.08), (width, height - 0.05, -eave + 0.04), faces="yYzZ",
            layer=LAYER["metal"], cls=BUILDING, tint=np.full(3, rng.choice([0.15, 0.85])),
        )  # fmt: skip


def _darken_low(mesh: Mesh) -> None:
    """Walls see less of the sky near the ground."""
    for positions, tints in zip(mesh.positions, mesh.tints, strict=True):
        tints[..., 3] *= 0.62 + 0.38 * np.clip(positions[..., 1] / 7.0, 0, 1) ** 0.7
