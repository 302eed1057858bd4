# ruff: noqa: RUF005 - joints are arrays: + is vector addition
"""Pedestrians and cyclists as posed parts: every part is an instance of a rounded limb or a wheel.

Poses are computed for all people of a frame at once; arrays are [people, 3] in metres, in a frame
where z is the way a person faces and y is up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .mesh import BICYCLIST, PEDESTRIAN, Look, Mesh
from .rng import stream
from .textures import LAYER

SKIN = np.array([(0.86, 0.68, 0.56), (0.78, 0.58, 0.46), (0.5, 0.34, 0.26), (0.36, 0.24, 0.19)])
HAIR = np.array([(0.14, 0.11, 0.09), (0.3, 0.21, 0.13), (0.62, 0.5, 0.32), (0.5, 0.5, 0.5)])
CLOTHES = np.array([
    (0.12, 0.12, 0.14), (0.16, 0.18, 0.26), (0.25, 0.25, 0.27), (0.3, 0.24, 0.2), (0.45, 0.45, 0.46),
    (0.5, 0.14, 0.14), (0.75, 0.74, 0.7), (0.22, 0.3, 0.24), (0.55, 0.48, 0.38), (0.16, 0.26, 0.46),
    (0.62, 0.3, 0.42), (0.8, 0.72, 0.25),
])  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """Instances of one prototype: ``matrices`` [N, 3, 4] (person-local), ``colours`` [N, 3], and
    ``owner`` [N], the person each belongs to."""

    matrices: np.ndarray
    colours: np.ndarray
    owner: np.ndarray


def make_limb() -> Mesh:
    """A rounded limb from y = 0 to y = 1 with radius about 1, thinner at its ends."""
    mesh = Mesh()
    y = np.array([-0.06, 0.0, 0.12, 0.5, 0.85, 1.0, 1.06])
    radius = np.array([0.0, 0.72, 0.98, 1.0, 0.92, 0.66, 0.0])
    angle = np.linspace(0, 2 * np.pi, 8)
    ring = np.stack([np.cos(angle), 0 * angle, np.sin(angle)], axis=1)
    grid = radius[:, None, None] * ring + y[:, None, None] * np.array([0, 1.0, 0])
    tilt = np.array([-1.5, -0.6, -0.15, 0, 0.15, 0.6, 1.5])[:, None, None] * np.array([0, 1.0, 0])
    normal = np.broadcast_to(ring, grid.shape) + tilt
    normal = normal / np.linalg.norm(normal, axis=-1, keepdims=True)
    uv = np.stack(np.broadcast_arrays(angle[None] / 6, y[:, None] * 0.7), axis=-1)
    mesh.grid(grid, normal, uv, layer=LAYER["cloth"], cls=PEDESTRIAN, dyed=True)
    return mesh


def make_wheel() -> Mesh:
    """A bicycle wheel of radius 1 in the y-z plane: tyre, and a few spokes."""
    mesh = Mesh()
    angle = np.linspace(0, 2 * np.pi, 21)
    tube = np.array([(-1, 0), (0, 1), (1, 0), (0, -1), (-1, 0)]) * 0.05
    circle = np.stack([0 * angle, np.sin(angle), np.cos(angle)], axis=1)
    side = np.array([1.0, 0, 0])
    grid = circle[:, None] * (1 + tube[None, :, 1, None]) + tube[None, :, 0, None] * side
    normal = (
        circle[:, None] * np.sign(tube[None, :, 1, None]) + np.sign(tube[None, :, 0, None]) * side
    )
    look: Look = {"layer": LAYER["plain"], "cls": BICYCLIST, "tint": np.full(3, 0.14)}
    mesh.grid(grid, normal, np.zeros((*grid.shape[:2], 2)), **look)
    for a in np.arange(6) * np.pi / 6:
        out = np.array([0, np.sin(a), np.cos(a)])
        across = np.array([0, np.cos(a), -np.sin(a)]) * 0.02
        corners = np.array([[-out - across, out - across, out + across, -out + across]])
        mesh.quads(
            corners, layer=LAYER["plain"], cls=BICYCLIST, tint=np.full(3, 0.5), normals=(1, 0, 0)
        )
    return mesh


def limb_matrices(start: np.ndarray, end: np.ndarray, rx: np.ndarray, rz: np.ndarray) -> np.ndarray:
    """Matrices [N, 3, 4] that stretch the unit limb from ``start`` to ``end`` [N, 3]."""
    y = end - start
    length = np.maximum(np.linalg.norm(y, axis=1, keepdims=True), 1e-6)
    forward = np.array([0.0, 0.0, 1.0])
    axis = y / length
    x = np.cross(axis, forward)
    bad = np.linalg.norm(x, axis=1, keepdims=True) < 1e-3
    x = np.where(bad, np.array([1.0, 0, 0]), x)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    z = np.cross(x, axis)
    columns = [x * np.reshape(rx, (-1, 1)), y, z * np.reshape(rz, (-1, 1)), start]
    return np.stack(columns, axis=2)


class _Figure:
    """Collects the limbs of N people posed together."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.matrices: list[np.ndarray] = []
        self.colours: list[np.ndarray] = []

    def limb(
        self,
        start: np.ndarray,
        end: np.ndarray,
        radius: float | np.ndarray,
        colour: np.ndarray,
        flat: float = 1.0,
    ) -> None:
        radii = np.broadcast_to(radius, (self.count,))
        self.matrices.append(limb_matrices(start, end, radii, radii * flat))
        self.colours.append(np.broadcast_to(colour, (self.count, 3)))

    def parts(self) -> Parts:
        owner = np.tile(np.arange(self.count), len(self.matrices))
        return Parts(np.concatenate(self.matrices), np.concatenate(self.colours), owner)


def _at(
    count: int, x: float | np.ndarray, y: float | np.ndarray, z: float | np.ndarray
) -> np.ndarray:
    return np.stack([np.broadcast_to(v, (count,)) for v in (x, y, z)], axis=1).astype(np.float64)


def _wardrobe(seed: int, keys: np.ndarray) -> dict[str, np.ndarray]:
    """Colours and build of each person, from the integers that name them [N, 2]."""
    rows: dict[str, list] = {
        "coat": [],
        "legs": [],
        "skin": [],
        "hair": [],
        "tall": [],
        "long": [],
        "bag": [],
    }
    for a, b in keys:
        rng = stream(seed, "wardrobe", int(a), int(b))
        coat = CLOTHES[min(int(rng.exponential(4.0)), len(CLOTHES) - 1)]
        rows["coat"].append(coat * rng.uniform(0.5, 1.05))
        rows["legs"].append(CLOTHES[rng.integers(0, 6)] * rng.uniform(0.5, 1.0))
        rows["skin"].append(SKIN[min(3, int(rng.exponential(0.9)))])
        rows["hair"].append(HAIR[rng.integers(0, len(HAIR))])
        rows["tall"].append(
            rng.normal(1.0, 0.06) if rng.random() > 0.08 else rng.uniform(0.65, 0.8)
        )
        rows["long"].append(rng.uniform(0.0, 0.42) if rng.random() < 0.5 else 0.0)
        rows["bag"].append(rng.random() < 0.35)
    return {key: np.array(value) for key, value in rows.items()}


def pose_pedestrians(seed: int, keys: np.ndarray, phase: np.ndarray, stride: np.ndarray) -> Parts:
    """Walking people. ``keys`` [N, 2] name them, ``phase`` [N] is the gait's angle in radians and
    ``stride`` [N] its amplitude (0 stands still)."""
    n = len(keys)
    look = _wardrobe(seed, keys)
    fig = _Figure(n)
    hip_y = 0.92 + 0.02 * np.cos(2 * phase)
    neck = _at(n, 0, hip_y + 0.55, 0.03)
    fig.limb(_at(n, 0, hip_y - 0.1, 0), _at(n, 0, hip_y + 0.2, 0), 0.155, look["legs"], 0.8)
    fig.limb(
        _at(n, 0, hip_y - 0.05 - look["long"], 0), neck + [0, 0.02, 0], 0.2, look["coat"], 0.68
    )
    fig.limb(neck, neck + [0, 0.1, 0.01], 0.06, look["skin"])
    fig.limb(neck + [0, 0.09, 0.03], neck + [0, 0.31, 0.03], 0.095, look["skin"], 1.1)
    fig.limb(neck + [0, 0.17, 0.0], neck + [0, 0.335, 0.005], 0.104, look["hair"], 1.1)
    for side in (-1.0, 1.0):
        swing = side * np.sin(phase) * stride
        bend = (0.25 + 0.75 * np.clip(-np.cos(phase) * side, 0, 1)) * stride
        _leg(fig, n, look, _at(n, side * 0.09, hip_y, 0), swing * 0.62, bend)
        shoulder = neck + [side * 0.19, -0.05, -0.01]
        reach = -swing * 0.55
        elbow = shoulder + _at(n, side * 0.05, -0.28 * np.cos(reach), 0.28 * np.sin(reach))
        fore = reach + 0.15 + 0.35 * stride
        hand = elbow + _at(n, 0.0, -0.24 * np.cos(fore), 0.24 * np.sin(fore))
        fig.limb(shoulder, elbow, 0.058, look["coat"] * 0.93)
        fig.limb(elbow, hand, 0.046, look["coat"] * 0.93)
        fig.limb(hand, hand + [0, -0.09, 0.01], 0.042, look["skin"])
    size = np.where(look["bag"], 1.0, 0.01)
    bag = _at(n, -0.27, hip_y - 0.28, 0.02)
    fig.limb(bag, bag + _at(n, 0, 0.3 * size, 0), 0.13 * size, look["legs"] * 0.6 + 0.1, 0.5)
    return _scaled(fig.parts(), look["tall"])


def _leg(
    fig: _Figure, n: int, look: dict, hip: np.ndarray, swing: np.ndarray, bend: np.ndarray
) -> None:
    knee = hip + _at(n, 0, -0.43 * np.cos(swing), 0.43 * np.sin(swing))
    shin = swing - bend
    ankle = knee + _at(n, 0, -0.41 * np.cos(shin), 0.41 * np.sin(shin))
    fig.limb(hip, knee, 0.086, look["legs"])
    fig.limb(knee, ankle, 0.062, look["legs"])
    shoe = np.array([0.1, 0.09, 0.09])
    fig.limb(ankle + [0, -0.03, -0.07], ankle + [0, -0.05, 0.17], 0.05, shoe)


def pose_cyclists(seed: int, keys: np.ndarray, phase: np.ndarray) -> tuple[Parts, Parts]:
    """Riders on bicycles: (limbs, wheels), ``phase`` [N] turns the pedals."""
    n = len(keys)
    look = _wardrobe(seed, keys)
    fig, wheels = _Figure(n), _Figure(n)
    saddle, crank = _at(n, 0, 0.95, -0.2), _at(n, 0, 0.3, 0.02)
    head, bar = _at(n, 0, 0.88, 0.42), _at(n, 0, 1.04, 0.46)
    frame = look["coat"] * 0.5 + np.array([0.12, 0.12, 0.13])
    rear, front = _at(n, 0, 0.34, -0.46), _at(n, 0, 0.34, 0.58)
    for a, b in (
        (crank, saddle),
        (saddle * [1, 0.93, 1], head),
        (crank, head),
        (rear, crank),
        (rear, saddle * [1, 0.9, 1]),
        (front, bar),
    ):
        fig.limb(a, b, 0.02, frame)
    fig.limb(bar + [-0.27, 0, 0], bar + [0.27, 0, 0], 0.018, np.array([0.1, 0.1, 0.1]))
    fig.limb(saddle + [0, 0, -0.12], saddle + [0, 0, 0.12], 0.06, np.array([0.08, 0.08, 0.08]))
    for hub in (rear, front):
        matrix = np.zeros((n, 3, 4))
        matrix[:, [0, 1, 2], [0, 1, 2]] = 0.335
        matrix[:, :, 3] = hub
        wheels.matrices.append(matrix)
        wheels.colours.append(np.ones((n, 3)))
    hips, chest = saddle + [0, 0.1, 0.0], _at(n, 0, 1.46, 0.14)
    fig.limb(hips + [0, -0.06, 0], chest, 0.185, look["coat"], 0.72)
    fig.limb(chest + [0, -0.02, 0.02], chest + [0, 0.1, 0.06], 0.06, look["skin"])
    fig.limb(chest + [0, 0.08, 0.06], chest + [0, 0.3, 0.08], 0.095, look["skin"], 1.1)
    helmet = np.where(look["bag"][:, None], CLOTHES[(keys[:, 1] % 12).astype(int)], look["hair"])
    fig.limb(chest + [0, 0.19, 0.03], chest + [0, 0.35, 0.05], 0.115, helmet, 1.2)
    for side in (-1.0, 1.0):
        turn = phase + (np.pi if side > 0 else 0.0)
        pedal = crank + _at(n, side * 0.12, 0.17 * np.sin(turn), 0.17 * np.cos(turn))
        hip = hips + [side * 0.09, -0.02, 0.02]
        knee = (hip + pedal) / 2 + _at(n, side * 0.03, 0.1, 0.22 + 0.05 * np.sin(turn))
        fig.limb(hip, knee, 0.088, look["legs"])
        fig.limb(knee, pedal + [0, 0.05, -0.02], 0.062, look["legs"])
        fig.limb(pedal + [0, 0.03, -0.1], pedal + [0, 0.02, 0.14], 0.048, np.array([0.1, 0.1, 0.1]))
        shoulder = chest + [side * 0.18, -0.06, 0.02]
        elbow = (shoulder + bar) / 2 + [side * 0.2, -0.08, -0.04]
        fig.limb(shoulder, elbow, 0.055, look["coat"] * 0.93)
        fig.limb(elbow, bar + [side * 0.25, 0.02, 0], 0.045, look["coat"] * 0.93)
        fig.limb(bar + [side * 0.25, 0, 0], bar + [side * 0.25, 0.05, 0.05], 0.04, look["skin"])
    return fig.parts(), wheels.parts()


def _scaled(parts: Parts, scale: np.ndarray) -> Parts:
    return Parts(parts.matrices * scale[parts.owner, None, None], parts.colours, parts.owner)
