"""Builds the street's meshes, one 20 m segment at a time, in street coordinates (t, y, s)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from . import furniture, ground
from .buildings import make_building
from .mesh import TREE, Mesh
from .plan import JUNCTION, KERB, KERB_HEIGHT, SEGMENT, ZONE, Plan, Zone
from .plants import hedge, make_bush, make_tree
from .rng import stream
from .textures import LAYER

FRONT_KINDS = {"shops": "shop", "terrace": "terrace", "suburb": "house"}


@lru_cache(maxsize=64)
def tree_model(kind: str, variant: int) -> Mesh:
    return make_tree(stream(variant, f"tree {kind}"), kind)


@lru_cache(maxsize=8)
def bush_model(variant: int) -> Mesh:
    return make_bush(stream(variant, "bush"))


def build_segment(plan: Plan, index: int) -> Mesh:
    """Everything that stands still on s in [index, index + 1) * SEGMENT; z counts from its start."""
    mesh = Mesh()
    ground.road(mesh, plan, index)
    for side in (-1, 1):
        zone = plan.zone_at((index + 0.5) * SEGMENT, side)
        ground.roadside(mesh, plan, zone, index, side)
        _buildings(mesh, plan, index, side)
        _boundary(mesh, plan, zone, index, side)
        _plants(mesh, plan, zone, index, side)
        _furniture(mesh, plan, zone, index, side)
    return mesh


def kerb_line(plan: Plan, side: int) -> float:
    return side * plan.section.half_width


def pavement_back(plan: Plan, zone: Zone) -> float:
    """Distance from the centre line to the pavement's far edge."""
    return plan.section.half_width + KERB + zone.verge + zone.pavement


def _buildings(mesh: Mesh, plan: Plan, index: int, side: int) -> None:
    """The buildings whose near corner lies in this segment."""
    zone_index = int(np.floor(index * SEGMENT / ZONE))
    zone = plan.zone(zone_index, side)
    base = zone_index * ZONE
    cursor = JUNCTION[1] + 3.5 if zone.side_road else 0.0
    end = ZONE
    line = pavement_back(plan, zone) + zone.yard
    rng = stream(plan.seed, "buildings", zone_index, side)
    number = 0
    low, high = index * SEGMENT - base, (index + 1) * SEGMENT - base
    while cursor < end - 3.0:
        width, gap, kind, depth = _plot(rng, zone)
        width = min(width, end - cursor)
        if kind and low <= cursor < high and width > 3.0:
            own = stream(plan.seed, f"building {number}", zone_index, side)
            model = make_building(own, kind, width, depth)
            _face_street(mesh, model, side, line + own.uniform(0, 0.25), cursor - low, width)
            if kind == "shop" and own.random() < 0.5:
                hanging = furniture.make_projecting_sign(own)
                at = (
                    side * line,
                    own.uniform(2.9, 3.6),
                    cursor - low + own.uniform(0.5, width - 0.5),
                )
                mesh.place(hanging, at, side * np.pi / 2)
        cursor += width + gap
        number += 1
    if zone.side_road and 0 <= JUNCTION[0] - low < SEGMENT:
        _side_street(mesh, plan, zone, zone_index, side, line, -low)


def _plot(rng: np.random.Generator, zone: Zone) -> tuple[float, float, str | None, float]:
    """Width, gap behind it, building kind and depth of the next plot."""
    roll, width = rng.random(), rng.random()
    depth = 8.0 + 4.0 * rng.random()
    if zone.kind == "shops":
        kind = "civic" if roll < 0.08 else ("flats" if roll < 0.18 else "shop")
        return 5.0 + 8.0 * width, 0.0 if roll < 0.85 else 1.5, kind, depth
    if zone.kind == "terrace":
        kind = "flats" if roll < 0.1 else "terrace"
        return 4.8 + 2.2 * width, 0.0 if roll < 0.88 else 3.0, kind, depth
    if zone.kind == "suburb":
        return 7.5 + 5.0 * width, 2.0 + 4.0 * rng.random(), "house", depth
    if zone.kind == "offices":
        kind = "office" if roll < 0.6 else ("flats" if roll < 0.85 else "civic")
        return 14.0 + 16.0 * width, 1.0 + 6.0 * roll, kind, depth + 4
    if zone.kind == "park":
        return 14.0, 14.0 + 20 * width, ("house" if roll < 0.4 else None), depth
    return 18.0, 20.0 + 30 * width, ("office" if roll < 0.25 else None), depth


def _face_street(mesh: Mesh, model: Mesh, side: int, line: float, z: float, width: float) -> None:
    start = z + width if side > 0 else z
    mesh.place(model, (side * line, KERB_HEIGHT, start), side * np.pi / 2)


def _side_street(
    mesh: Mesh, plan: Plan, zone: Zone, zone_index: int, side: int, line: float, start: float
) -> None:
    """Buildings and trees along the far side of a side road, and what closes its view."""
    rng = stream(plan.seed, "side street", zone_index, side)
    z = start + JUNCTION[1] + 3.2
    reach = line + 11.0
    while reach < 62.0:
        width = rng.uniform(6, 12)
        kind = FRONT_KINDS.get(zone.kind, "terrace" if rng.random() < 0.5 else "house")
        model = make_building(rng, "terrace" if kind == "shop" else kind, width, 8.0)
        x = reach if side > 0 else -reach - width
        mesh.place(model, (x, 0.1, z + rng.uniform(0, 1.5)))
        reach += width + rng.choice([0.0, 0.0, 3.0])
    for _ in range(5):
        kind = plan.tree_kind_near(rng, zone)
        at = (side * rng.uniform(58, 66), 0.0, start + rng.uniform(0, 18))
        mesh.place(
            tree_model(kind, int(rng.integers(0, 3))), at, rng.uniform(0, 6), rng.uniform(0.9, 1.4)
        )


def _open_stretches(plan: Plan, index: int, side: int) -> list[tuple[float, float]]:
    """The parts (z0, z1) of a segment that no side road takes."""
    z = np.arange(0.0, SEGMENT + 0.01, 0.5)
    free = [not plan.in_junction(index * SEGMENT + v, side, 3.0) for v in z]
    stretches, start = [], None
    for position, ok in zip(z, free, strict=True):
        if ok and start is None:
            start = position
        if start is not None and (not ok or position == z[-1]):
            if position - start > 1.0:
                stretches.append((float(start), float(position)))
            start = None
    return stretches


def _boundary(mesh: Mesh, plan: Plan, zone: Zone, index: int, side: int) -> None:
    """The fence, wall or hedge between pavement and yard, with gates; guard rails at the kerb."""
    rng = stream(plan.seed, "boundary", index, side)
    sub = Mesh()
    x = side * (pavement_back(plan, zone) + 0.2)
    if zone.fence != "none":
        for z0, z1 in _open_stretches(plan, index, side):
            gate = (
                rng.uniform(z0, z1)
                if zone.kind in ("suburb", "terrace") and rng.random() < 0.8
                else None
            )
            pieces = [(z0, z1)] if gate is None else [(z0, gate - 1.2), (gate + 1.2, z1)]
            for a, b in pieces:
                if b - a < 0.8:
                    continue
                own = stream(plan.seed, "fence", int(np.floor(index * SEGMENT / 50)), side)
                if zone.fence == "hedge":
                    hedge(sub, own, x, a, b, own.uniform(0.9, 2.0))
                else:
                    furniture.fence(sub, own, zone.fence, x, a, b)
    elif zone.kind in ("shops", "offices") and rng.random() < 0.18:  # a pedestrian guard rail
        kerb = side * (plan.section.half_width + 0.35)
        for z0, z1 in _open_stretches(plan, index, side):
            furniture.fence(sub, rng, "railing", kerb, z0, min(z1, z0 + rng.uniform(5, 20)))
    mesh.place(sub, (0, KERB_HEIGHT, 0))


def _plants(mesh: Mesh, plan: Plan, zone: Zone, index: int, side: int) -> None:
    rng = stream(plan.seed, "plants", index, side)
    back = pavement_back(plan, zone)

    def tree(t: float, z: float, scale: float) -> None:
        if plan.in_junction(index * SEGMENT + z, side, 4.0):
            return
        model = tree_model(plan.tree_kind_near(rng, zone), int(rng.integers(0, 3)))
        size = scale * np.array([1, rng.uniform(0.85, 1.2), 1])
        mesh.place(model, (side * t, 0.08, z), rng.uniform(0, 6.3), size)

    kerbside = plan.section.half_width + KERB + (zone.verge / 2 if zone.verge else 0.55)
    if zone.street_trees:
        step = 1.0 / zone.street_trees
        first = (-index * SEGMENT) % step
        for z in np.arange(first, SEGMENT, step):
            tree(kerbside, float(z), rng.uniform(0.7, 1.15))
    inside = {"park": 7, "open": 5, "suburb": 2, "offices": 1, "terrace": 1}.get(zone.kind, 0)
    depth = zone.yard if zone.yard > 2 else 0.0
    for _ in range(rng.poisson(inside) if depth else 0):
        reach = min(depth, 26.0) * rng.uniform(0.3, 1.0)
        limit = 0.65 if zone.kind in ("suburb", "offices", "terrace") else rng.uniform(0.7, 1.6)
        tree(back + 0.8 + reach, rng.uniform(0, SEGMENT), limit)
    if rng.random() < 0.7:  # crowns behind the roofs
        tree(back + zone.yard + rng.uniform(13, 24), rng.uniform(0, SEGMENT), rng.uniform(1.0, 1.7))
    for _ in range(rng.poisson(3.0) if depth else 0):
        z = rng.uniform(0, SEGMENT)
        if not plan.in_junction(index * SEGMENT + z, side, 3.5):
            at = (side * (back + rng.uniform(0.8, min(depth, 14.0))), 0.1, z)
            mesh.place(
                bush_model(int(rng.integers(0, 6))), at, rng.uniform(0, 6), rng.uniform(0.7, 1.9)
            )


def _furniture(mesh: Mesh, plan: Plan, zone: Zone, index: int, side: int) -> None:
    rng = stream(plan.seed, "furniture", index, side)
    kerb = plan.section.half_width + KERB
    s0 = index * SEGMENT

    def put(model: Mesh, t: float, z: float, yaw: float = 0.0) -> None:
        if not plan.in_junction(s0 + z, side, 1.0):
            mesh.place(model, (side * t, KERB_HEIGHT, z), yaw)

    in_turn = (index + side) % 2 == 0 and (index // 2 + side) % 2 == 0
    if in_turn or rng.random() < 0.15:
        lamp = furniture.make_lamp(stream(plan.seed, "lamp model"))
        put(lamp, kerb + 0.35, rng.uniform(2, 18), np.pi if side > 0 else 0.0)
    for _ in range(rng.poisson(0.8)):
        put(
            furniture.make_sign(rng),
            kerb + rng.uniform(0.3, 0.6),
            rng.uniform(1, 19),
            rng.normal(0, 0.12),
        )
    if rng.random() < 0.25:  # a bare pole or a sign seen from behind
        put(furniture.make_sign(rng), kerb + 0.4, rng.uniform(1, 19), np.pi + rng.normal(0, 0.2))
    if zone.kind in ("shops", "offices") and rng.random() < 0.3:
        z0 = rng.uniform(0, 12)
        model = furniture.make_bollard(rng)
        for i in range(int(rng.integers(3, 7))):
            put(model, kerb + 0.35, z0 + 1.4 * i)
    if zone.pavement > 2.4 and rng.random() < 0.06:
        put(furniture.make_shelter(rng), kerb + 0.7, rng.uniform(4, 15), np.pi if side < 0 else 0.0)
    zone_start = int(np.floor(s0 / ZONE)) * ZONE
    near_junction = 0 <= zone_start + JUNCTION[0] - 2.2 - s0 < SEGMENT
    crossing = (
        plan.zone(int(np.floor(s0 / ZONE)), -1).side_road
        and plan.zone(int(np.floor(s0 / ZONE)), 1).side_road
    )
    if near_junction and crossing:
        for yaw, z in (
            (0.0, JUNCTION[0] - 2.0),
            (0.0, JUNCTION[1] + 1.5),
            (np.pi, JUNCTION[1] + 2.0),
        ):
            light = furniture.make_traffic_light(rng, 2)
            mesh.place(light, (side * (kerb + 0.4), KERB_HEIGHT, zone_start + z - s0), yaw)


def backdrop(seed: int) -> Mesh:
    """A ring of distant woods around the camera, radius 330 m, seen where the street ends."""
    rng = stream(seed, "backdrop")
    angle = np.linspace(0, 2 * np.pi, 257)
    waves = sum(np.sin(angle * k + rng.uniform(0, 6.3)) / k**0.5 for k in (3, 7, 17, 31, 53, 97))
    height = 9.0 + 2.2 * waves + 0.8 * rng.standard_normal(257)
    height[-1] = height[0]
    grid = np.empty((2, 257, 3))
    grid[..., 0], grid[..., 2] = 330 * np.cos(angle), 330 * np.sin(angle)
    grid[0, :, 1], grid[1, :, 1] = -14.0, height
    normal = np.stack([-np.cos(angle), 0.4 + 0 * angle, -np.sin(angle)], axis=1)
    uv = np.stack(
        [np.broadcast_to(angle * 30, (2, 257)), np.array([[0], [2.0]]) + 0 * angle], axis=-1
    )
    mesh = Mesh()
    mesh.grid(
        grid,
        np.broadcast_to(normal, grid.shape),
        uv,
        layer=LAYER["hedge"],
        cls=TREE,
        tint=np.full(3, 0.9),
    )
    return mesh
