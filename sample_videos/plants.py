"""Trees, bushes and hedges: a trunk with limbs, and cards of leaves set on blobs."""

from __future__ import annotations

import numpy as np

from .mesh import LEAF, TREE, Look, Mesh
from .textures import LAYER

TREE_KINDS = ("broad", "small", "slim", "autumn", "bare", "conifer", "poplar")


def make_tree(rng: np.random.Generator, kind: str) -> Mesh:
    """A tree of ``kind`` about 8 m tall standing at the origin; see :data:`TREE_KINDS`."""
    mesh = Mesh()
    if kind == "conifer":
        _conifer(mesh, rng)
        return mesh
    height = 8.0 * rng.uniform(0.85, 1.15)
    crown_low = height * (0.12 if kind == "poplar" else rng.uniform(0.26, 0.36))
    radius = height * (0.13 if kind == "poplar" else rng.uniform(0.26, 0.36))
    tips = _skeleton(mesh, rng, height, crown_low, radius)
    if kind == "bare":
        _twig_cards(mesh, rng, tips, radius)
        return mesh
    leaf = {"poplar": "leaf_small"}.get(kind, f"leaf_{kind}")
    centre = np.array([0, (crown_low + height) / 2 + 0.2, 0])
    half = np.array([radius, (height - crown_low) / 2 + 0.3, radius])
    blobs = _blobs(rng, centre, half, 13)
    tint = np.clip(rng.uniform(0.75, 1.0) * (1 + 0.06 * rng.standard_normal(3)), 0.4, 1)
    _leaf_cards(mesh, rng, blobs, LAYER[leaf], tint, cards=22, size=0.24 * radius)
    return mesh


def make_bush(rng: np.random.Generator) -> Mesh:
    """A bush about 1.2 m across at the origin."""
    mesh = Mesh()
    half = np.array([0.6, 0.5, 0.6]) * rng.uniform(0.8, 1.2, 3)
    blobs = _blobs(rng, np.array([0, half[1] * 0.9, 0]), half, 3)
    leaf = LAYER[str(rng.choice(["leaf_small", "leaf_broad", "leaf_slim"]))]
    _leaf_cards(mesh, rng, blobs, leaf, np.full(3, rng.uniform(0.6, 0.95)), cards=12, size=0.32)
    return mesh


def hedge(
    mesh: Mesh, rng: np.random.Generator, x: float, z0: float, z1: float, height: float
) -> None:
    """A clipped hedge along z at ``x``, bumpy, with leaf cards breaking its outline."""
    look: Look = {"layer": LAYER["hedge"], "cls": TREE, "tint": np.full(3, rng.uniform(0.75, 1.0))}
    steps = max(2, int((z1 - z0) / 1.0) + 1)
    along = np.linspace(z0, z1, steps)
    profile = np.array(
        [(-0.38, 0.0), (-0.42, 0.6), (-0.28, 1.0), (0.28, 1.0), (0.42, 0.6), (0.38, 0)]
    )
    grid = np.empty((steps, len(profile), 3))
    grid[..., 0] = x + profile[None, :, 0] * (1 + 0.12 * rng.standard_normal((steps, 1)))
    grid[..., 1] = profile[None, :, 1] * height * (1 + 0.04 * rng.standard_normal((steps, 1)))
    grid[..., 2] = along[:, None]
    normal = np.array(
        [(-1, 0.1, 0), (-0.9, 0.4, 0), (-0.5, 0.9, 0), (0.5, 0.9, 0), (0.9, 0.4, 0), (1, 0.1, 0)]
    )
    uv = np.stack(
        np.broadcast_arrays(along[:, None] / 1.2, np.array([0, 0.6, 1, 1.4, 1.9, 2.4])[None]),
        axis=-1,
    )
    open_ = np.array([[0.6, 0.9, 0.9, 0.6]])
    mesh.grid(grid, np.broadcast_to(normal, grid.shape), uv, open_=open_, **look)
    for z in np.arange(z0 + 0.3, z1 - 0.2, 0.7):
        at = np.array([x + rng.normal(0, 0.1), height * rng.uniform(0.75, 1.0), z])
        _cards(
            mesh,
            rng,
            at[None],
            np.array([[0, 1.0, 0]]),
            LAYER["leaf_small"],
            look["tint"] * 0.9,
            0.35,
            0.9,
        )


def _skeleton(
    mesh: Mesh, rng: np.random.Generator, height: float, crown_low: float, radius: float
) -> np.ndarray:
    """Trunk and limbs; returns the limbs' ends [K, 3]."""
    bark: Look = {"layer": LAYER["bark"], "cls": TREE, "tint": np.full(3, rng.uniform(0.55, 0.95))}
    girth = height * rng.uniform(0.016, 0.024)
    lean = rng.normal(0, 0.02 * height, 2)
    top = np.array([lean[0], height * 0.8, lean[1]])
    points = np.linspace((0, -0.2, 0), top, 5)
    points[1:-1, [0, 2]] += rng.normal(0, 0.05, (3, 2))
    mesh.tube(points, girth * np.array([1.5, 1.0, 0.75, 0.5, 0.2]), sides=7, **bark)
    tips = [top]
    for i in range(9):
        share = rng.uniform(0.25, 0.95)
        y = crown_low + (height * 0.78 - crown_low) * share * 0.8
        start = np.array([lean[0] * share, y, lean[1] * share])
        angle = 2.4 * i + rng.normal(0, 0.3)
        reach = radius * rng.uniform(0.6, 0.95) * (1.1 - 0.5 * share)
        end = start + np.array(
            [np.cos(angle) * reach, reach * rng.uniform(0.5, 1.2), np.sin(angle) * reach]
        )
        middle = (start + end) / 2 + np.array([0, -0.1 * reach, 0])
        mesh.tube(
            np.array([start, middle, end]), girth * np.array([0.5, 0.32, 0.12]), sides=5, **bark
        )
        tips += [middle, end]
    return np.array(tips)


def _blobs(
    rng: np.random.Generator, centre: np.ndarray, half: np.ndarray, count: int
) -> np.ndarray:
    """Spheres filling an ellipsoid: [count, 4] of centre and radius."""
    direction = rng.standard_normal((count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    reach = rng.uniform(0.35, 0.68, (count, 1))
    radius = rng.uniform(0.42, 0.62, count) * float(np.min(half)) * 1.05
    return np.c_[centre + direction * reach * half, radius]


def _leaf_cards(
    mesh: Mesh,
    rng: np.random.Generator,
    blobs: np.ndarray,
    layer: int,
    tint: np.ndarray,
    cards: int,
    size: float,
) -> None:
    """Leaf cards over each blob's surface, lit as the blob, darker below and inside."""
    low, high = blobs[:, 1].min(), blobs[:, 1].max() + 1e-6
    middle = blobs[:, :3].mean(0)
    for x, y, z, radius in blobs:
        direction = rng.standard_normal((cards, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        at = np.array([x, y, z]) + direction * radius * rng.uniform(0.45, 0.95, (cards, 1))
        outward = at - middle
        outward /= np.linalg.norm(outward, axis=1, keepdims=True)
        normal = 0.65 * direction + 0.5 * outward + np.array([0, 0.2, 0])
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        height = np.clip((at[:, 1] - low) / (high - low), 0, 1)
        open_ = 0.45 + 0.3 * height + 0.25 * np.clip(direction[:, 1], -0.5, 1)
        _cards(mesh, rng, at, normal, layer, tint, size * 1.55, np.clip(open_, 0.25, 1)[:, None])


def _cards(
    mesh: Mesh,
    rng: np.random.Generator,
    at: np.ndarray,
    normal: np.ndarray,
    layer: int,
    tint: np.ndarray,
    size: float,
    open_: float | np.ndarray,
) -> None:
    """Square leaf cards of half-width ``size`` in random planes, centred on ``at`` [N, 3]."""
    count = len(at)
    u = rng.standard_normal((count, 3))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    v = np.cross(u, rng.standard_normal((count, 3)))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    u, v = u * size, v * size
    corners = np.stack([at - u - v, at + u - v, at + u + v, at - u + v], axis=1)
    shade = tint * rng.uniform(0.82, 1.12, (count, 1))
    mesh.quads(
        corners,
        layer=layer,
        cls=TREE,
        kind=LEAF,
        normals=normal,
        tint=np.clip(shade, 0, 1),
        open_=open_,
    )


def _twig_cards(mesh: Mesh, rng: np.random.Generator, tips: np.ndarray, radius: float) -> None:
    """Winter branches: upright cards of twigs rooted along the limbs."""
    for tip in np.concatenate([tips, tips[::2] + rng.normal(0, 0.2, tips[::2].shape)]):
        for _ in range(2):
            angle = rng.uniform(0, np.pi)
            out = np.array([tip[0], 0.0, tip[2]])
            lean = out / max(float(np.linalg.norm(out)), 0.3) * rng.uniform(0.2, 0.7)
            up = (np.array([0, 1.0, 0]) + lean) * radius * rng.uniform(0.7, 1.1)
            side = np.array([np.cos(angle), 0, np.sin(angle)]) * radius * rng.uniform(0.7, 1.0)
            mesh.rect(
                tip - side / 2 - up * 0.08, side, up, dyed=True, layer=LAYER["twigs"], cls=TREE, kind=LEAF,
                normals=(0, 0.7, 0), tint=np.full(3, rng.uniform(0.7, 1.0)), open_=0.8,
            )  # fmt: skip


def _conifer(mesh: Mesh, rng: np.random.Generator) -> None:
    height = 9.0 * rng.uniform(0.8, 1.2)
    bark: Look = {"layer": LAYER["bark"], "cls": TREE, "tint": (0.6, 0.55, 0.5)}
    mesh.tube(np.array([(0, -0.2, 0), (0, height * 0.95, 0)]), (0.18, 0.03), **bark)
    tint = np.full(3, rng.uniform(0.75, 1.0))
    for level in np.linspace(0.08, 0.97, 22):
        reach = height * 0.2 * (1.03 - level) * rng.uniform(0.85, 1.15) + 0.2
        angle = level * 40 + np.arange(7) * 0.9 + rng.normal(0, 0.15, 7)
        out = np.stack([np.cos(angle), 0 * angle, np.sin(angle)], axis=1)
        for share, layer in ((0.85, "needles"), (0.6, "leaf_small"), (0.3, "leaf_small")):
            at = out * reach * share + np.array([0, level * height - 0.25 * reach * share, 0])
            at = at + rng.normal(0, 0.06, at.shape)
            open_ = 0.25 + 0.35 * level + 0.3 * share
            shade = tint * (0.58, 0.68, 0.62)
            _cards(
                mesh,
                rng,
                at,
                out * 0.7 + [0, 0.55, 0],
                LAYER[layer],
                shade,
                0.3 * reach + 0.14,
                open_,
            )
