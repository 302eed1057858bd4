"""The ground: carriageway, markings, kerbs, pavements, verges, yards and side roads."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from .mesh import MATTE, PAVEMENT, ROAD, TREE, UNIT_UV, WET, Look, Mesh
from .plan import JUNCTION, KERB, KERB_HEIGHT, SEGMENT, ZONE, Plan, Zone
from .rng import stream
from .textures import LAYER

LIFT = 0.012  # markings lie this far above the asphalt, metres
STEP = 5.0  # ground is cut this fine along the street, to follow bends
WHITE = np.array([0.92, 0.92, 0.9])
YELLOW = np.array([0.78, 0.64, 0.26])


def strip(
    mesh: Mesh, t0: float, t1: float, z0: float, z1: float, y: float, tile: float, **look: Any
) -> None:
    """A level strip, cut along the street, with texture coordinates in metres / ``tile``."""
    cuts = np.linspace(z0, z1, max(1, int(np.ceil((z1 - z0) / STEP))) + 1)
    corners = np.empty((len(cuts) - 1, 4, 3))
    corners[..., 1] = y
    corners[:, [0, 3], 0], corners[:, [1, 2], 0] = t0, t1
    corners[:, :2, 2], corners[:, 2:, 2] = cuts[:-1, None], cuts[1:, None]
    uv = corners[..., [0, 2]] / tile
    mesh.quads(corners, uv=uv, normals=(0, 1, 0), **look)


def road(mesh: Mesh, plan: Plan, index: int) -> None:
    """The carriageway of one segment with its patches and markings."""
    section = plan.section
    w = section.half_width
    tone = np.full(3, section.asphalt_tone)
    look: Look = {"layer": LAYER[section.asphalt], "cls": ROAD, "kind": WET, "tint": tone}
    openness = np.array([[0.75, 1.0, 1.0, 0.75]])
    strip(mesh, -w, -w + 1.2, 0, SEGMENT, 0.0, 2.5, open_=openness, **look)
    strip(mesh, -w + 1.2, w - 1.2, 0, SEGMENT, 0.0, 2.5, **look)
    strip(mesh, w - 1.2, w, 0, SEGMENT, 0.0, 2.5, open_=openness[:, [1, 0, 3, 2]], **look)
    rng = stream(plan.seed, "patches", index)
    for _ in range(rng.poisson(1.2)):  # repairs
        width, length = rng.uniform(0.4, 2.2), rng.uniform(0.6, 6.0)
        t0, z0 = rng.uniform(-w + 0.3, w - width - 0.3), rng.uniform(0, SEGMENT - length)
        shade = {"tint": np.clip(tone * rng.uniform(0.72, 1.25), 0, 1)}
        strip(
            mesh,
            t0,
            t0 + width,
            z0,
            z0 + length,
            0.006,
            2.5,
            **(look | shade | {"layer": LAYER["asphalt_smooth"]}),
        )
    for _ in range(rng.poisson(0.8)):  # manhole covers
        t0, z0 = rng.uniform(-w + 0.5, w - 1.2), rng.uniform(0.5, SEGMENT - 1.5)
        strip(
            mesh,
            t0,
            t0 + 0.55,
            z0,
            z0 + 0.55,
            0.009,
            0.6,
            **(look | {"layer": LAYER["setts"], "tint": np.full(3, 0.45)}),
        )
    _markings(mesh, plan, index, rng)


def _line(
    mesh: Mesh,
    t: float,
    width: float,
    z0: float,
    z1: float,
    tint: np.ndarray = WHITE,
    worn: float = 1.0,
) -> None:
    strip(
        mesh, t - width / 2, t + width / 2, z0, z1, LIFT, 1.3,
        layer=LAYER["marking"], cls=ROAD, kind=WET, tint=tint * worn,
    )  # fmt: skip


def _dashes(
    mesh: Mesh, plan: Plan, index: int, t: float, width: float, mark: float, gap: float, worn: float
) -> None:
    """A dashed line whose rhythm runs on through the segments."""
    period = mark + gap
    start = index * SEGMENT
    for k in range(int(np.floor(start / period)), int(np.ceil((start + SEGMENT) / period))):
        z0, z1 = max(k * period - start, 0.0), min(k * period + mark - start, SEGMENT)
        if z1 - z0 > 0.05:
            _line(mesh, t, width, z0, z1, worn=worn)


def _markings(mesh: Mesh, plan: Plan, index: int, rng: np.random.Generator) -> None:
    section, width = plan.section, plan.section.line_width
    worn = stream(plan.seed, "worn", int(np.floor(index / 7))).uniform(0.72, 1.0)
    s0 = index * SEGMENT
    junction = any(plan.in_junction(s0 + z, side) for side in (-1, 1) for z in (4.0, 8.0, 12.0))
    if section.centre_line == "dashed" or junction:
        mark, gap = (4.0, 2.0) if junction else (2.0, 4.0 if section.lanes_each_way == 1 else 7.0)
        _dashes(mesh, plan, index, section.centre, width, mark, gap, worn)
    elif section.centre_line == "solid":
        _line(mesh, section.centre, width, 0, SEGMENT, worn=worn)
    else:
        for offset in (-width, width):
            _line(mesh, section.centre + offset, width * 0.9, 0, SEGMENT, worn=worn)
    for lane in range(1, section.lanes_each_way):
        for direction in (-1, 1):
            t = section.centre + direction * lane * section.lane_width
            _dashes(mesh, plan, index, t, width, 2.0, 4.0, worn)
    for side in (-1, 1):
        _edge_marking(mesh, plan, index, side, worn)
        _crossing_marks(mesh, plan, index, side, rng, worn)
    if rng.random() < 0.12:
        _lettering(mesh, plan, rng, worn)


def _edge_marking(mesh: Mesh, plan: Plan, index: int, side: int, worn: float) -> None:
    section, s0 = plan.section, index * SEGMENT
    parking = section.parking[0 if side < 0 else 1]
    edge = section.half_width
    pieces = [
        (z, z + 2.0)
        for z in np.arange(0, SEGMENT, 2.0)
        if not plan.in_junction(s0 + z + 1, side, 1.0)
    ]
    for z0, z1 in pieces:
        if parking:
            if int(z0 / 2) % 3 == 0:
                _line(mesh, side * (edge - parking), 0.08, z0, z0 + 1.0, worn=worn)
        elif section.edge_lines == "double_yellow":
            for offset in (0.22, 0.42):
                _line(mesh, side * (edge - offset), 0.075, z0, z1, YELLOW, worn)
        elif section.edge_lines == "white":
            _line(mesh, side * (edge - 0.35), 0.12, z0, z1, worn=worn)
        elif section.edge_lines == "cycle":
            _line(mesh, side * (edge - 1.4), 0.13, z0, z0 + 1.6, worn=worn)


def _crossing_marks(
    mesh: Mesh, plan: Plan, index: int, side: int, rng: np.random.Generator, worn: float
) -> None:
    """Give-way lines at side roads, stop lines at signals, now and then a zebra crossing."""
    section, s0 = plan.section, index * SEGMENT
    zone_index = int(np.floor(s0 / ZONE))
    start = zone_index * ZONE - s0
    zone = plan.zone(zone_index, side)
    w = section.half_width
    if zone.side_road and 0 <= start + JUNCTION[0] < SEGMENT:
        for row in (0.25, 0.65):
            for z in np.arange(start + JUNCTION[0] + 0.4, start + JUNCTION[1] - 0.4, 0.95):
                _line(mesh, side * (w + row), 0.18, z, z + 0.55, worn=worn)
        lane_side = section.drive_side == side
        ours = [section.lane(1, i) for i in range(section.lanes_each_way)]
        if lane_side and plan.zone(zone_index, -side).side_road:
            low, high = min(ours) - section.lane_width / 2, max(ours) + section.lane_width / 2
            z = start + JUNCTION[0] - 1.8
            strip(
                mesh,
                low + 0.1,
                high - 0.1,
                z,
                z + 0.3,
                LIFT,
                1.3,
                layer=LAYER["marking"],
                cls=ROAD,
                kind=WET,
                tint=WHITE * worn,
            )
    if side > 0 and rng.random() < 0.07 and not zone.side_road:
        z0 = rng.uniform(3, 14)
        for t in np.arange(-w + 0.3, w - 0.5, 1.15):
            strip(
                mesh,
                t,
                t + 0.58,
                z0,
                z0 + 2.6,
                LIFT,
                1.3,
                layer=LAYER["marking"],
                cls=ROAD,
                kind=WET,
                tint=WHITE * worn,
            )


def _lettering(mesh: Mesh, plan: Plan, rng: np.random.Generator, worn: float) -> None:
    """SLOW-like strokes or an arrow in our lane, long in the driving direction."""
    t, z = plan.section.lane(1), rng.uniform(2, 12)
    if rng.random() < 0.5:
        _line(mesh, t, 0.16, z, z + 3.0, worn=worn)
        tip = np.array(
            [
                [
                    (t - 0.45, LIFT, z + 2.6),
                    (t + 0.45, LIFT, z + 2.6),
                    (t, LIFT, z + 4.2),
                    (t, LIFT, z + 4.2),
                ]
            ]
        )
        mesh.quads(
            tip, layer=LAYER["marking"], cls=ROAD, kind=WET, normals=(0, 1, 0), tint=WHITE * worn
        )
        return
    for i in range(4):
        left = t - 0.9 + 0.48 * i
        _line(mesh, left, 0.1, z, z + 1.7, worn=worn)
        for level in rng.choice([0.0, 0.8, 1.5], 2, replace=False):
            _line(mesh, left + 0.18, 0.26, z + level, z + level + 0.2, worn=worn)


def roadside(mesh: Mesh, plan: Plan, zone: Zone, index: int, side: int) -> None:
    """Kerb, verge, pavement, yard and far ground on one side, broken where a side road opens."""
    s0 = index * SEGMENT
    cuts = [0.0, SEGMENT]
    zone_start = int(np.floor(s0 / ZONE)) * ZONE - s0
    opening = None
    if zone.side_road and 0 <= zone_start + JUNCTION[0] < SEGMENT:
        opening = (zone_start + JUNCTION[0], zone_start + JUNCTION[1])
        cuts = [0.0, opening[0], opening[1], SEGMENT]
    for z0, z1 in itertools.pairwise(cuts):
        if opening is not None and z0 == opening[0]:
            _side_road(mesh, plan, side, z0, z1)
        elif z1 > z0:
            _bank(mesh, plan, zone, side, z0, z1)


def _bank(mesh: Mesh, plan: Plan, zone: Zone, side: int, z0: float, z1: float) -> None:
    w = plan.section.half_width
    kerb: Look = {"layer": LAYER["kerb"], "cls": PAVEMENT, "kind": WET, "tint": np.full(3, 0.95)}
    _span(mesh, side, w, w + KERB, z0, z1, 1.8, **kerb)
    cuts = np.linspace(z0, z1, max(1, int((z1 - z0) / STEP)) + 1)
    face = np.zeros((len(cuts) - 1, 4, 3))
    face[..., 0] = side * w
    face[:, 2:, 1] = KERB_HEIGHT
    face[:, [0, 3], 2], face[:, [1, 2], 2] = cuts[:-1, None], cuts[1:, None]
    uv = np.stack([face[..., 2] / 1.8, face[..., 1]], axis=-1)
    mesh.quads(
        face, uv=uv, normals=(-side, 0, 0), **(kerb | {"kind": MATTE, "tint": np.full(3, 0.75)})
    )
    t = w + KERB
    if zone.verge:
        grass: Look = {"layer": LAYER["grass"], "cls": TREE, "kind": WET, "dyed": True}
        _span(mesh, side, t, t + zone.verge, z0, z1, 2.2, **grass)
        t += zone.verge
    tone = 0.6 + 0.25 * stream(plan.seed, "pavement tone", int(zone.pavement * 1e6)).random()
    paving: Look = {
        "layer": LAYER[zone.pavement_layer],
        "cls": PAVEMENT,
        "kind": WET,
        "tint": np.full(3, tone),
    }
    shade = np.array([[1.0, 0.68, 0.68, 1.0]]) if zone.yard == 0 else 1.0
    _span(mesh, side, t, t + zone.pavement, z0, z1, 2.2, open_=shade, **paving)
    t += zone.pavement
    if zone.yard:
        yard: Look = {"layer": LAYER["grass"], "cls": TREE, "kind": WET, "dyed": True}
        if zone.kind in ("offices", "terrace"):
            yard = paving | {"layer": LAYER["setts" if zone.kind == "terrace" else "slabs"]}
        _span(mesh, side, t, t + zone.yard, z0, z1, 2.2, **yard)
        t += zone.yard
    else:
        _span(mesh, side, t, t + 0.6, z0, z1, 2.2, **paving)  # under the façades
        t += 0.6
    _span(mesh, side, t, 140.0, z0, z1, 3.0, layer=LAYER["grass"], cls=TREE, kind=WET, dyed=True)


def _span(
    mesh: Mesh,
    side: int,
    near: float,
    far: float,
    z0: float,
    z1: float,
    tile: float,
    **look: Any,
) -> None:
    open_ = look.get("open_")
    if side < 0 and isinstance(open_, np.ndarray):
        look = look | {"open_": open_[:, [1, 0, 3, 2]]}
    t0, t1 = sorted((side * near, side * far))
    strip(mesh, t0, t1, z0, z1, KERB_HEIGHT, tile, **look)


def _side_road(mesh: Mesh, plan: Plan, side: int, z0: float, z1: float) -> None:
    """A road leaving at a right angle between two pavements."""
    w = plan.section.half_width
    look: Look = {"layer": LAYER[plan.section.asphalt], "cls": ROAD, "kind": WET}
    look["tint"] = np.full(3, plan.section.asphalt_tone)
    t0, t1 = sorted((side * w, side * 75.0))
    strip(mesh, t0, t1, z0 + 1.6, z1 - 1.6, 0.0, 2.5, **look)
    near, far = sorted((side * w, side * 75.0))
    for low, high in ((z0, z0 + 1.6), (z1 - 1.6, z1)):
        paving: Look = {
            "layer": LAYER["slabs"],
            "cls": PAVEMENT,
            "kind": WET,
            "tint": np.full(3, 0.7),
        }
        strip(mesh, near, far, low, high, KERB_HEIGHT, 2.2, **paving)
        inner, facing = (high, 1.0) if low == z0 else (low, -1.0)
        _kerb_face(mesh, (near, inner), (far, inner), (0, 0, facing))
        _kerb_face(mesh, (side * w, low), (side * w, high), (-side, 0, 0))


def _kerb_face(
    mesh: Mesh, start: tuple[float, float], end: tuple[float, float], normal: tuple[float, ...]
) -> None:
    """The upright side of a kerb between two points (t, z)."""
    (t0, z0), (t1, z1) = start, end
    corners = np.array([(t0, 0, z0), (t1, 0, z1), (t1, KERB_HEIGHT, z1), (t0, KERB_HEIGHT, z0)])
    uv = UNIT_UV * [(abs(t1 - t0) + abs(z1 - z0)) / 1.8, 0.1]
    look: Look = {"layer": LAYER["kerb"], "cls": PAVEMENT, "tint": np.full(3, 0.75)}
    mesh.quads(corners, uv=uv, normals=normal, **look)
