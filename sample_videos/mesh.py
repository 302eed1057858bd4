"""Meshes made of quads, as NumPy arrays: every scene part is built from these few shapes.

Local axes: x across (to the right when looking along the street), y up, z along the street, metres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Class ids of the eleven CamVid classes, in the SegNet order.
SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)
UNLABELLED = 255

# How a surface is shaded (see shaders.py).
MATTE, GLASS, PAINT, LAMP, WET, LEAF, CUTOUT = range(7)

VERTEX = np.dtype(
    [
        ("position", "<f4", 3),
        ("normal", "u1", 4),  # xyz * 127.5 + 127.5
        ("uv", "<f4", 2),
        ("tint", "u1", 4),  # rgb, ambient openness
        ("meta", "u1", 4),  # texture layer, class id, surface kind, 1 where an instance dyes it
    ]
)
VERTEX_FORMAT = "3f 4f1 2f 4f1 4u1"
VERTEX_NAMES = ("in_position", "in_normal", "in_uv", "in_tint", "in_meta")

UNIT_UV = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=np.float64)
Rgb = Sequence[float] | np.ndarray
Vector = Sequence[float] | np.ndarray
Look = dict[str, Any]  # keyword arguments of Mesh.quads, shared by the parts of a thing


@dataclass
class Mesh:
    """Quads under construction: positions and normals stay float until :meth:`pack`."""

    positions: list[np.ndarray] = field(default_factory=list)  # [N, 4, 3]
    normals: list[np.ndarray] = field(default_factory=list)  # [N, 4, 3]
    uvs: list[np.ndarray] = field(default_factory=list)  # [N, 4, 2]
    tints: list[np.ndarray] = field(default_factory=list)  # [N, 4, 4] in 0..1
    metas: list[np.ndarray] = field(default_factory=list)  # [N, 4] uint8, as VERTEX's meta

    def quads(
        self,
        corners: np.ndarray,
        *,
        layer: int,
        cls: int,
        kind: int = MATTE,
        uv: np.ndarray | None = None,
        normals: np.ndarray | Sequence[float] | None = None,
        tint: Rgb = (1.0, 1.0, 1.0),
        open_: float | np.ndarray = 1.0,
        dyed: bool = False,
    ) -> None:
        """Add quads. ``corners`` [N, 4, 3]; ``uv`` [N, 4, 2] or [4, 2]; ``normals`` [N, 3] or
        [N, 4, 3], else from the corners; ``tint`` [3] or [N, 3]; ``open_`` (how much of the sky
        the surface sees) broadcast to [N, 4]; ``dyed`` parts take the colour of their instance."""
        corners = np.asarray(corners, dtype=np.float64).reshape(-1, 4, 3)
        count = len(corners)
        if normals is None:
            cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 3] - corners[:, 0])
            normals = cross / np.maximum(np.linalg.norm(cross, axis=1, keepdims=True), 1e-9)
        normals = np.asarray(normals, dtype=np.float64)
        if normals.ndim < 3:
            normals = normals.reshape(-1, 1, 3)
        rgba = np.ones((count, 4, 4))
        colour = np.asarray(tint, dtype=np.float64)
        rgba[..., :3] = colour.reshape(-1, 1, 3) if colour.ndim < 3 else colour
        rgba[..., 3] = open_
        meta = np.array([layer, cls, kind, dyed], np.uint8)
        self.positions.append(corners)
        self.normals.append(np.broadcast_to(normals, (count, 4, 3)))
        self.uvs.append(np.broadcast_to(UNIT_UV if uv is None else uv, (count, 4, 2)))
        self.tints.append(rgba)
        self.metas.append(np.broadcast_to(meta, (count, 4)))

    def rect(
        self,
        origin: Vector,
        across: Vector,
        up: Vector,
        metres_a_tile: float | None = None,
        uv_shift: Sequence[float] = (0.0, 0.0),
        **look: Any,
    ) -> None:
        """Add parallelograms: ``origin``, ``across``, ``up`` broadcast to [N, 3]. With
        ``metres_a_tile`` the texture repeats by size, else it is stretched once over each."""
        origin, across, up = np.broadcast_arrays(
            *(np.atleast_2d(np.asarray(a, dtype=np.float64)) for a in (origin, across, up))
        )
        corners = np.stack([origin, origin + across, origin + across + up, origin + up], axis=1)
        uv = None
        if metres_a_tile is not None:
            width = np.linalg.norm(across, axis=1)[:, None, None]
            height = np.linalg.norm(up, axis=1)[:, None, None]
            size = np.concatenate([width, height], axis=2) / metres_a_tile
            start = np.stack([origin @ _direction(across), origin @ _direction(up)], axis=-1)
            uv = UNIT_UV * size + start[:, None] / metres_a_tile + np.asarray(uv_shift)
        self.quads(corners, uv=uv, **look)

    def box(
        self,
        low: Vector,
        high: Vector,
        metres_a_tile: float | None = None,
        faces: str = "xXyYzZ",
        **look: Any,
    ) -> None:
        """Add an axis-aligned box; ``faces`` names those wanted (x the low one, X the high)."""
        lo, hi = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
        size = hi - lo
        ex, ey, ez = np.diag(size)
        table = {
            "x": (lo, ez, ey),
            "X": (lo + ex + ez, -ez, ey),
            "y": (lo, ex, ez),
            "Y": (lo + ey + ez, ex, -ez),
            "z": (lo + ex, -ex, ey),
            "Z": (lo + ez, ex, ey),
        }
        for face in faces:
            origin, across, up = table[face]
            self.rect(origin, across, up, metres_a_tile, **look)

    def tube(
        self,
        points: np.ndarray,
        radii: Vector,
        sides: int = 6,
        metres_a_tile: float = 1.0,
        **look: Any,
    ) -> None:
        """Add a round tube through ``points`` [K, 3] with a radius at each."""
        points = np.asarray(points, dtype=np.float64)
        axis = points[-1] - points[0]
        axis /= np.linalg.norm(axis)
        helper = np.array([1.0, 0, 0]) if abs(axis[0]) < 0.8 else np.array([0, 0, 1.0])
        u = np.cross(axis, helper)
        u /= np.linalg.norm(u)
        v = np.cross(axis, u)
        angle = np.linspace(0, 2 * np.pi, sides + 1)
        ring = np.cos(angle)[:, None] * u + np.sin(angle)[:, None] * v  # [sides + 1, 3]
        grid = points[:, None] + np.asarray(radii)[:, None, None] * ring  # [K, sides + 1, 3]
        length = np.r_[0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))]
        around = 2 * np.pi * float(np.mean(radii)) * np.linspace(0, 1, sides + 1)
        uv = np.stack(np.broadcast_arrays(around[None], length[:, None]), axis=-1) / metres_a_tile
        self.grid(grid, np.broadcast_to(ring, grid.shape), uv, **look)

    def grid(self, points: np.ndarray, normals: np.ndarray, uv: np.ndarray, **look: Any) -> None:
        """Add the quads of a [K, M] grid with smooth normals."""
        self.quads(
            _cells(points),
            normals=_cells(normals),
            uv=_cells(uv),
            **look,
        )

    def place(
        self,
        other: Mesh,
        at: Vector,
        yaw: float = 0.0,
        scale: float | Sequence[float] | np.ndarray = 1.0,
        tint: Rgb | None = None,
    ) -> None:
        """Add a copy of ``other``, scaled, turned about y by ``yaw`` radians, then moved."""
        c, s = np.cos(yaw), np.sin(yaw)
        turn = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
        size = np.broadcast_to(np.asarray(scale, dtype=np.float64), 3)
        for p, n, u, t, m in zip(
            other.positions, other.normals, other.uvs, other.tints, other.metas, strict=True
        ):
            self.positions.append((p * size) @ turn.T + np.asarray(at, dtype=np.float64))
            self.normals.append((n * np.sign(size)) @ turn.T)
            self.uvs.append(u)
            self.tints.append(t if tint is None else t * np.r_[np.asarray(tint), 1.0])
            self.metas.append(m)

    def pack(self) -> np.ndarray:
        """All quads as one :data:`VERTEX` array, four vertices a quad."""
        if not self.positions:
            return np.zeros(0, dtype=VERTEX)
        vertices = np.zeros(4 * sum(len(p) for p in self.positions), dtype=VERTEX)
        vertices["position"] = np.concatenate(self.positions).reshape(-1, 3)
        normal = np.concatenate(self.normals).reshape(-1, 3)
        vertices["normal"][:, :3] = np.clip(normal * 127.5 + 128.0, 0, 255).astype(np.uint8)
        vertices["uv"] = np.concatenate(self.uvs).reshape(-1, 2)
        tint = np.concatenate(self.tints).reshape(-1, 4)
        vertices["tint"] = np.clip(tint * 255.0 + 0.5, 0, 255).astype(np.uint8)
        vertices["meta"] = np.concatenate(
            [np.broadcast_to(m[:, None], (len(m), 4, 4)) for m in self.metas]
        ).reshape(-1, 4)
        return vertices


def quad_indices(quads: int) -> np.ndarray:
    """Triangle indices (uint32) of ``quads`` quads."""
    corner = np.array([0, 1, 2, 0, 2, 3], dtype=np.uint32)
    return (np.arange(quads, dtype=np.uint32)[:, None] * 4 + corner).ravel()


def _direction(vectors: np.ndarray) -> np.ndarray:
    return vectors[0] / max(float(np.linalg.norm(vectors[0])), 1e-9)


def _cells(grid: np.ndarray) -> np.ndarray:
    corners = [grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]]
    return np.stack(corners, axis=2).reshape(-1, 4, grid.shape[-1])
