"""The street's centre line: a curve in the plane with gentle hills, known at any distance."""

from __future__ import annotations

import numpy as np

from .rng import stream

Waves = tuple[np.ndarray, np.ndarray, np.ndarray]  # amplitudes, wave numbers, phases


class Path:
    """Maps street coordinates (t across, y up, s along, metres) to the world (x, y, z).

    Heading and height are sums of sines of s; positions are integrated metre by metre from s = 0
    and kept (three numbers a metre), so any s >= ``START`` can be asked for.
    """

    START = -400.0

    def __init__(self, seed: int) -> None:
        rng = stream(seed, "path")
        bend = rng.choice([0.15, 0.5, 1.0], p=[0.4, 0.35, 0.25])
        lengths = rng.uniform((260, 420, 800), (420, 800, 1600))
        self._heading: Waves = (
            bend * np.array([0.10, 0.22, 0.4]) * rng.uniform(0.4, 1.0, 3),
            2 * np.pi / lengths,
            rng.uniform(0, 2 * np.pi, 3),
        )
        lengths = rng.uniform((180, 380), (380, 900))
        self._height: Waves = (
            rng.choice([0.2, 1.0]) * np.array([0.5, 2.2]) * rng.uniform(0.2, 1.0, 2),
            2 * np.pi / lengths,
            rng.uniform(0, 2 * np.pi, 2),
        )
        self._points = np.zeros((1, 2))
        self._extend(1024)

    def heading(self, s: np.ndarray | float) -> np.ndarray:
        """Direction of the street in radians, 0 along z, growing towards x."""
        return _waves(self._heading, s)

    def height(self, s: np.ndarray | float) -> np.ndarray:
        return _waves(self._height, s)

    def to_world(self, points: np.ndarray) -> np.ndarray:
        """World positions [N, 3] of street points [N, 3] = (t, y, s)."""
        t, y, s = points[:, 0], points[:, 1], points[:, 2]
        self._extend(int(np.max(s) - self.START) + 8 if len(s) else 0)
        place = s - self.START
        index = np.clip(place.astype(int), 0, len(self._points) - 2)
        share = (place - index)[:, None]
        on_line = self._points[index] * (1 - share) + self._points[index + 1] * share
        angle = self.heading(s)
        x = on_line[:, 0] + t * np.cos(angle)
        z = on_line[:, 1] - t * np.sin(angle)
        return np.stack([x, y + self.height(s), z], axis=1)

    def turn(self, normals: np.ndarray, s: np.ndarray) -> np.ndarray:
        """Directions [N, 3] in street axes at distances ``s`` [N] turned into the world's."""
        angle = self.heading(s)
        c, n = np.cos(angle), np.sin(angle)
        x = normals[:, 0] * c + normals[:, 2] * n
        z = -normals[:, 0] * n + normals[:, 2] * c
        return np.stack([x, normals[:, 1], z], axis=1)

    def _extend(self, count: int) -> None:
        have = len(self._points)
        if count < have:
            return
        count = max(count + 1, 2 * have)
        s = self.START + np.arange(have - 1, count - 1) + 0.5
        angle = self.heading(s)
        steps = np.stack([np.sin(angle), np.cos(angle)], axis=1)
        grown = self._points[-1] + np.cumsum(steps, axis=0)
        self._points = np.concatenate([self._points, grown])


def _waves(waves: Waves, s: np.ndarray | float) -> np.ndarray:
    amplitude, number, phase = waves
    return (amplitude * np.sin(np.asarray(s)[..., None] * number + phase)).sum(-1)
