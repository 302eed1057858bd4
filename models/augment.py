"""Augmentation of clips: one geometry path and one look for all frames of a clip.

A still becomes a clip by an imagined camera: scale, shift and rotation drift a little from frame to frame,
and the labels move with the picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

IGNORE = 255


@dataclass(frozen=True)
class Look:
    """One photometric setting, the same for every frame of a clip."""

    gain: float
    bias: float
    gamma: float
    saturation: float
    tint: np.ndarray  # float32 [3]
    noise: float
    blur: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Look:
        strong = rng.random() < 0.25
        spread = 2.0 if strong else 1.0
        return cls(
            gain=float(np.exp(rng.normal(0, 0.18 * spread))),
            bias=float(rng.normal(0, 10 * spread)),
            gamma=float(np.exp(rng.normal(0, 0.18 * spread))),
            saturation=float(np.clip(1 + rng.normal(0, 0.25 * spread), 0, 2)),
            tint=np.exp(rng.normal(0, 0.05 * spread, 3)).astype(np.float32),
            noise=float(rng.uniform(0, 9 * spread)) if rng.random() < 0.4 else 0.0,
            blur=float(rng.uniform(0.3, 1.3)) if rng.random() < 0.2 else 0.0,
        )

    def apply(self, rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """rgb: uint8 [H, W, 3] -> the same, changed."""
        table = np.linspace(0, 1, 256, dtype=np.float32) ** self.gamma * 255
        table = table * self.gain + self.bias
        tables = np.clip(table[:, None] * self.tint, 0, 255).astype(np.uint8)[None]
        out = cv2.LUT(rgb, tables)
        if abs(self.saturation - 1) > 0.02:
            grey = cv2.cvtColor(cv2.cvtColor(out, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
            out = cv2.addWeighted(out, self.saturation, grey, 1 - self.saturation, 0)
        if self.blur:
            out = cv2.GaussianBlur(out, (0, 0), self.blur)
        if self.noise:
            grain = np.empty(out.shape, np.int16)
            cv2.setRNGSeed(int(rng.integers(2**31)))
            cv2.randn(grain, np.zeros(3), np.full(3, self.noise))
            out = cv2.add(out, grain, dtype=cv2.CV_8U)
        return np.asarray(out)


@dataclass(frozen=True)
class Window:
    """A crop as the camera sees it: centre and size in source pixels, roll, mirrored or not."""

    center_xy: tuple[float, float]
    scale: float  # output pixels a source pixel
    roll_degrees: float
    mirror: bool

    def matrix(self, crop_hw: tuple[int, int]) -> np.ndarray:
        """Affine map [2, 3] from source to crop coordinates."""
        height, width = crop_hw
        matrix = cv2.getRotationMatrix2D(self.center_xy, self.roll_degrees, self.scale)
        matrix[0, 2] += width / 2 - self.center_xy[0]
        matrix[1, 2] += height / 2 - self.center_xy[1]
        if self.mirror:
            matrix[0] = -matrix[0]
            matrix[0, 2] += width - 1
        return np.asarray(matrix)


def draw_windows(
    rng: np.random.Generator,
    source_hw: tuple[int, int],
    crop_hw: tuple[int, int],
    frames: int,
    scale_range: tuple[float, float],
    drift: float,
    focus_yx: tuple[int, int] | None = None,
) -> list[Window]:
    """One window a frame. `drift` is the imagined camera's motion (0 keeps it still), `focus_yx` a source
    pixel that the crop should hold, for classes that are rare."""
    scale = float(np.exp(rng.uniform(*np.log(scale_range))))
    mirror, roll = bool(rng.random() < 0.5), float(rng.normal(0, 2))
    center = _draw_center(rng, source_hw, crop_hw, scale, focus_yx)
    zoom, pan_x, pan_y, turn = rng.normal(0, 1, 4) * drift * (0.02, 5.0, 2.0, 0.3)
    windows = []
    for step in range(frames):
        shake = rng.normal(0, 0.4 * drift, 2)
        windows.append(
            Window(
                (center[0] + pan_x * step + shake[0], center[1] + pan_y * step + shake[1]),
                scale * float(np.exp(zoom * step)),
                roll + turn * step,
                mirror,
            )
        )
    return windows


def _draw_center(
    rng: np.random.Generator,
    source_hw: tuple[int, int],
    crop_hw: tuple[int, int],
    scale: float,
    focus_yx: tuple[int, int] | None,
) -> tuple[float, float]:
    """Centre (x, y) of a crop that lies inside the source where it fits, else is centred on it."""
    center = []
    for side, crop, focus in zip(source_hw, crop_hw, focus_yx or (None, None), strict=True):
        half = crop / scale / 2
        low, high = min(half, side / 2), max(side - half, side / 2)
        at = rng.uniform(low, high) if focus is None else focus + rng.uniform(-0.7, 0.7) * half
        center.append(float(np.clip(at, low, high)))
    return center[1], center[0]


def warp(
    rgb: np.ndarray, labels: np.ndarray, window: Window, crop_hw: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Cut a window out of a frame and its labels. Outside the frame labels are `IGNORE`."""
    matrix, size_wh = window.matrix(crop_hw), crop_hw[::-1]
    flags = cv2.INTER_AREA if window.scale < 0.7 else cv2.INTER_LINEAR
    picture = cv2.warpAffine(rgb, matrix, size_wh, flags=flags, borderMode=cv2.BORDER_REFLECT_101)
    moved = cv2.warpAffine(labels, matrix, size_wh, flags=cv2.INTER_NEAREST, borderValue=(IGNORE,))
    return picture, moved


def occlude(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blot out a part of one frame (a wiper, a reflection, glare); its labels stay as they are, so that
    the network learns to remember what was there."""
    height, width = rgb.shape[:2]
    out = rgb.copy()
    if rng.random() < 0.5:
        center = int(rng.integers(width)), int(rng.integers(height))
        radius = float(rng.uniform(0.1, 0.35)) * width
        rows, columns = np.ogrid[:height, :width]
        distance = (columns - center[0]) ** 2 + (rows - center[1]) ** 2
        glow = (255 * np.exp(-distance / radius**2)).astype(np.uint8)
        return np.asarray(cv2.add(out, cv2.merge([glow] * 3)))
    top, left = int(rng.integers(height)), int(rng.integers(width))
    down, right = (int(side * rng.uniform(0.1, 0.4)) for side in (height, width))
    out[top : top + down, left : left + right] = rng.integers(0, 256, 3, dtype=np.uint8)
    return out
