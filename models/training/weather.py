"""Rain, glare and JPEG over a clip: what a camera behind a windscreen and a cheap encoder do to it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from models.training.config import Augment


@dataclass(frozen=True)
class Rain:
    """Streaks that fall through all frames at one slant and length, and the grey veil they make.

    Attributes:
        density: streaks per 100 000 pixels.
        length, slant: share of the height that a streak spans, and its sideways share of that.
        strength: 0-1, how bright a streak is.
        speed: share of the height that drops fall from frame to frame.
        seed: of the drops' places.
    """

    density: float
    length: float
    slant: float
    strength: float
    speed: float
    seed: int

    @classmethod
    def draw(cls, rng: np.random.Generator, density_range: tuple[float, float]) -> Rain:
        return cls(
            density=float(rng.uniform(*density_range)),
            length=float(rng.uniform(0.03, 0.1)),
            slant=float(rng.normal(0, 0.25)),
            strength=float(rng.uniform(0.15, 0.5)),
            speed=float(rng.uniform(0.2, 0.6)),
            seed=int(rng.integers(2**31)),
        )

    def apply(self, rgb: np.ndarray, frame: int) -> np.ndarray:
        """rgb: uint8 [H, W, 3], frame `frame` of the clip -> the same in the rain."""
        height, width = rgb.shape[:2]
        drops = np.random.default_rng(self.seed)
        count = max(1, round(self.density * height * width / 1e5))
        fall = self.speed * frame * drops.uniform(0.7, 1.3, count)  # near drops fall faster
        span = self.length * height * drops.uniform(0.5, 1.5, count)
        top = (drops.uniform(0, 1, count) + fall) % 1 * (height + span) - span
        # What leaves on one side comes back on the other, as at the bottom: a clip may be long.
        left = ((drops.uniform(0, 1.4, count) + self.slant * fall) % 1.4 - 0.2) * width
        ends = np.stack([left, top, left + self.slant * span, top + span], 1)
        # Fixed point: a sixteenth of a pixel.
        lines = (ends * 16).round().astype(np.int32).reshape(-1, 2, 1, 2)
        streaks = np.zeros((height, width), np.uint8)
        cv2.polylines(streaks, list(lines), False, (255,), 1, cv2.LINE_AA, 4)
        light = cv2.convertScaleAbs(cv2.GaussianBlur(streaks, (0, 0), 0.6), alpha=self.strength)
        veil = 0.25 * self.strength
        veiled = cv2.addWeighted(rgb, 1 - veil, rgb, 0, 150 * veil)
        return np.asarray(cv2.add(veiled, cv2.merge([light] * 3)))


@dataclass(frozen=True)
class Glare:
    """A low sun: a white disc that fades out, a veil over the whole picture, and a chain of reflections.

    Attributes:
        center_xy: shares of width and height, a little outside too.
        size: share of the width where its light has fallen to a third.
        strength: 0-1; 1 whitens the middle.
        drift_xy: shares of width and height, a frame.
    """

    center_xy: tuple[float, float]
    size: float
    strength: float
    drift_xy: tuple[float, float]

    @classmethod
    def draw(cls, rng: np.random.Generator, strength_range: tuple[float, float]) -> Glare:
        return cls(
            center_xy=(float(rng.uniform(-0.1, 1.1)), float(rng.uniform(-0.1, 0.6))),
            size=float(rng.uniform(0.1, 0.35)),
            strength=float(rng.uniform(*strength_range)),
            drift_xy=(float(rng.normal(0, 0.01)), float(rng.normal(0, 0.005))),
        )

    def apply(self, rgb: np.ndarray, frame: int) -> np.ndarray:
        """rgb: uint8 [H, W, 3], frame `frame` of the clip -> the same against the sun."""
        height, width = rgb.shape[:2]
        x = (self.center_xy[0] + self.drift_xy[0] * frame) * width
        y = (self.center_xy[1] + self.drift_xy[1] * frame) * height
        light = self._disc(height, width, x, y, self.size * width)
        for along, radius in ((0.6, 0.03), (1.2, 0.05), (1.6, 0.02)):  # mirrored through the middle
            at = x + (width / 2 - x) * along, y + (height / 2 - y) * along
            light += 0.12 * self._disc(height, width, at[0], at[1], radius * width)
        warm = np.array([1.0, 0.96, 0.86], np.float32)
        added = (255 * self.strength * (light[..., None] + 0.12) * warm).clip(0, 255)
        faded = cv2.convertScaleAbs(rgb, alpha=1 - 0.3 * self.strength)
        return np.asarray(cv2.add(faded, added.astype(np.uint8)))

    @staticmethod
    def _disc(height: int, width: int, x: float, y: float, radius: float) -> np.ndarray:
        rows = np.exp(-(((np.arange(height, dtype=np.float32) - y) / radius) ** 2))
        columns = np.exp(-(((np.arange(width, dtype=np.float32) - x) / radius) ** 2))
        return np.asarray(np.outer(rows, columns))


@dataclass(frozen=True)
class Weather:
    """Rain, glare and JPEG of one clip, each there or not."""

    rain: Rain | None
    glare: Glare | None
    jpeg_quality: int | None

    @classmethod
    def draw(cls, rng: np.random.Generator, augment: Augment) -> Weather:
        """Draws no random number for what is switched off."""
        rain = glare = quality = None
        if augment.rain and rng.random() < augment.rain:
            rain = Rain.draw(rng, augment.rain_density)
        if augment.glare and rng.random() < augment.glare:
            glare = Glare.draw(rng, augment.glare_strength)
        if augment.jpeg and rng.random() < augment.jpeg:
            quality = int(rng.integers(augment.jpeg_quality[0], augment.jpeg_quality[1] + 1))
        return cls(rain, glare, quality)

    def before_lens(self, rgb: np.ndarray, frame: int) -> np.ndarray:
        """uint8 [H, W, 3] -> the same with what is in the air."""
        if self.rain is not None:
            rgb = self.rain.apply(rgb, frame)
        if self.glare is not None:
            rgb = self.glare.apply(rgb, frame)
        return rgb

    def after_sensor(self, rgb: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] -> the same as an encoder leaves it."""
        if self.jpeg_quality is None:
            return rgb
        # OpenCV takes the channels for BGR: swap them, else chroma is thinned on the wrong ones.
        _, data = cv2.imencode(
            ".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, self.jpeg_quality]
        )
        return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))[..., ::-1]
