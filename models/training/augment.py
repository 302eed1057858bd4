"""Augmentation of clips: one geometry path and one look for all frames of a clip.

A still becomes a clip by an imagined camera: scale, shift and rotation drift a little from frame to frame,
and the labels move with the picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from models.training.config import Augment

TURN_AFTER = 12  # frames that an imagined camera goes one way
LONGEST_BURST = 16  # frames: about a second


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
    def draw(cls, rng: np.random.Generator, augment: Augment) -> Look:
        spread = 1.7 if rng.random() < augment.strong else 1.0
        noisy, noise_levels = augment.noise, augment.noise_levels * spread
        return cls(
            gain=float(np.exp(rng.normal(0, augment.contrast * spread))),
            bias=float(rng.normal(0, augment.brightness * spread)),
            gamma=float(np.exp(rng.normal(0, augment.gamma * spread))),
            saturation=float(np.clip(1 + rng.normal(0, augment.saturation * spread), 0, 2)),
            tint=np.exp(rng.normal(0, augment.tint * spread, 3)).astype(np.float32),
            noise=float(rng.uniform(0, noise_levels)) if rng.random() < noisy else 0.0,
            blur=float(rng.uniform(*augment.blur_pixels)) if rng.random() < augment.blur else 0.0,
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

    def motion_from(self, previous: Window, crop_hw: tuple[int, int]) -> np.ndarray:
        """Affine map [2, 3] from this window's crop to the previous one's: where in it a pixel was.

        In normalised coordinates, -1 to 1 from edge to edge of the crop, as `affine_grid` wants it.
        """
        full = np.vstack([self.matrix(crop_hw), [0, 0, 1]])
        before = np.vstack([previous.matrix(crop_hw), [0, 0, 1]])
        height, width = crop_hw
        pixels = np.array(
            [[width / 2, 0, width / 2 - 0.5], [0, height / 2, height / 2 - 0.5], [0, 0, 1]]
        )
        return (np.linalg.inv(pixels) @ before @ np.linalg.inv(full) @ pixels)[:2].astype(
            np.float32
        )


def draw_windows(
    rng: np.random.Generator,
    source_hw: tuple[int, int],
    crop_hw: tuple[int, int],
    frames: int,
    scale_range: tuple[float, float],
    augment: Augment,
    drift: float,
    focus_yx: tuple[int, int] | None = None,
    focus_step: int = 0,
) -> list[Window]:
    """One window a frame. `drift` is the imagined camera's motion (0 keeps it still), `focus_yx` a source
    pixel that the crop should hold at `focus_step`, for classes that are rare."""
    scale = float(np.exp(rng.uniform(*np.log(scale_range))))
    mirror, roll = bool(rng.random() < augment.flip), float(rng.normal(0, augment.roll_degrees))
    center = _draw_center(rng, source_hw, crop_hw, scale, focus_yx)
    zoom, pan_x, pan_y, turn = rng.normal(0, 1, 4) * drift * (0.02, 5.0, 2.0, 0.3)
    windows = []
    began = int(rng.integers(2 * TURN_AFTER)) if frames > TURN_AFTER else 0
    for step in range(frames):
        shake = rng.normal(0, 0.4 * drift, 2)
        way = _way(began + step) - _way(began + focus_step)
        windows.append(
            Window(
                (center[0] + pan_x * way + shake[0], center[1] + pan_y * way + shake[1]),
                scale * float(np.exp(zoom * way)),
                roll + turn * way,
                mirror,
            )
        )
    return windows


def _way(step: int) -> int:
    """How far the imagined camera has come: it turns back again and again, for there is but one picture."""
    at = step % (2 * TURN_AFTER)
    return min(at, 2 * TURN_AFTER - at)


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


def warp_picture(picture: np.ndarray, window: Window, crop_hw: tuple[int, int]) -> np.ndarray:
    """Cut a window out of a picture [H, W] or [H, W, C], mirrored where it reaches beyond."""
    return np.asarray(
        cv2.warpAffine(picture, window.matrix(crop_hw), crop_hw[::-1], flags=cv2.INTER_LINEAR,
                       borderMode=cv2.BORDER_REFLECT_101)
    )  # fmt: skip


def warp_ids(ids: np.ndarray, window: Window, crop_hw: tuple[int, int], outside: int) -> np.ndarray:
    """Cut a window out of integers [H, W] that must not be mixed; `outside` where there are none."""
    return np.asarray(
        cv2.warpAffine(ids, window.matrix(crop_hw), crop_hw[::-1], flags=cv2.INTER_NEAREST,
                       borderValue=(outside,))
    )  # fmt: skip


@dataclass(frozen=True)
class Burst:
    """Something that hides a part of some frames on end: glare, a wiper, spray, a washed-out exposure.

    The labels stay as they are, so that the network learns to remember what was there.
    """

    frames: range
    kind: str  # "glow", "patch" or "wash"
    center_xy: tuple[float, float]  # shares of width and height
    size: float  # share of the width
    strength: float  # 0-1
    drift_xy: tuple[float, float]  # shares of width and height, a frame
    color: tuple[int, int, int]

    @classmethod
    def draw(cls, rng: np.random.Generator, frames: int, burn_in: int = 0) -> Burst:
        """A burst in a clip of `frames` frames: the first one stays clear, and it ends among those that are
        trained on, which are after `burn_in`, or just before them."""
        last = int(rng.integers(max(1, burn_in - 2), frames))
        length = int(rng.integers(1, LONGEST_BURST + 1))
        color = rng.integers(0, 256, 3)
        return cls(
            frames=range(max(1, last - length + 1), last + 1),
            kind=str(rng.choice(["glow", "patch", "wash"], p=[0.4, 0.4, 0.2])),
            center_xy=(float(rng.uniform()), float(rng.uniform())),
            size=float(rng.uniform(0.15, 0.5)),
            strength=float(rng.uniform(0.5, 0.95)),
            drift_xy=(float(rng.normal(0, 0.03)), float(rng.normal(0, 0.03))),
            color=(int(color[0]), int(color[1]), int(color[2])),
        )

    def apply(self, rgb: np.ndarray, frame: int) -> np.ndarray:
        """rgb: uint8 [H, W, 3], frame `frame` of the clip -> the same with the burst over it."""
        if frame not in self.frames:
            return rgb
        height, width = rgb.shape[:2]
        x = (self.center_xy[0] + self.drift_xy[0] * frame) * width
        y = (self.center_xy[1] + self.drift_xy[1] * frame) * height
        if self.kind == "wash":
            return np.asarray(cv2.addWeighted(rgb, 1 - self.strength, rgb, 0, 255 * self.strength))
        if self.kind == "glow":
            rows, columns = np.ogrid[:height, :width]
            distance = (columns - x) ** 2 + (rows - y) ** 2
            glow = (255 * np.exp(-distance / (0.7 * self.size * width) ** 2)).astype(np.uint8)
            return np.asarray(cv2.add(rgb, cv2.merge([glow] * 3)))
        out = rgb.copy()
        half = int(self.size * width / 2)
        cv2.rectangle(out, (int(x) - half, int(y) - half), (int(x) + half, int(y) + half),
                      self.color, cv2.FILLED)  # fmt: skip
        return out
