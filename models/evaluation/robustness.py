"""Damage to pictures: five kinds at five strengths, and bursts that hide a part of some frames on end.

The strengths follow ImageNet-C (Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations", ICLR 2019), where it has the kind:

    kind       1      2      3      4      5     of
    darkness   1      2      3      4      5     stops of light lost: each halves it (linear light)
    noise      0.08   0.12   0.18   0.26   0.38  standard deviation of Gaussian noise, full scale 1
    blur       3      4      6      8      10    radius of the disc a point becomes, pixels at 720 rows
    rain       60     110    180    270    380   streaks a frame, with 5 to 25 % of haze
    jpeg       25     18     15     10     7     JPEG quality, chroma at half the size

Noise, blur and jpeg are ImageNet-C's own figures (its blur for 224 pixels; a disc of so many pixels stands
here for a frame of 720 rows, and grows and shrinks with it). Darkness there is over-exposure and rain is
missing; these are ours. What is random depends on the seed, the kind and the frame alone: every network
meets the same drops.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

STRENGTHS = (1, 2, 3, 4, 5)
GAMMA = 2.2

_STOPS = (1, 2, 3, 4, 5)
_NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)
_RADII_720 = (3, 4, 6, 8, 10)
_STREAKS = (60, 110, 180, 270, 380)
_HAZE = (0.05, 0.1, 0.15, 0.2, 0.25)
_QUALITY = (25, 18, 15, 10, 7)

BURST_FRAMES = 10
BURSTS = ("occlusion", "glare")


def corrupt(rgb: np.ndarray, kind: str, strength: int, seed: int, frame: int) -> np.ndarray:
    """A damaged copy of a picture.

    Args:
        rgb: uint8 [H, W, 3].
        kind: one of `CORRUPTIONS`.
        strength: 1 to 5.
        seed, frame: what is random depends on these and the kind; not on the strength, so that a stronger
            rain is the same rain with more drops.

    Raises ValueError for an unknown kind or strength.
    """
    if kind not in CORRUPTIONS:
        raise ValueError(f"unknown corruption {kind!r}: known are {', '.join(CORRUPTIONS)}")
    if strength not in STRENGTHS:
        raise ValueError(f"strength must be 1 to 5, got {strength}")
    rng = np.random.default_rng((seed, zlib.crc32(kind.encode()), frame))
    return CORRUPTIONS[kind](rgb, strength - 1, rng)


def _darken(rgb: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    light = (np.arange(256) / 255) ** GAMMA / 2 ** _STOPS[level]
    return np.asarray(cv2.LUT(rgb, np.rint(255 * light ** (1 / GAMMA)).astype(np.uint8)))


def _add_noise(rgb: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(rgb.shape, np.float32) * (255 * _NOISE[level])
    return np.clip(np.rint(rgb + noise), 0, 255).astype(np.uint8)


def _defocus(rgb: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    radius = _RADII_720[level] * min(rgb.shape[:2]) / 720
    return np.asarray(cv2.filter2D(rgb, -1, disc(radius), borderType=cv2.BORDER_REFLECT_101))


def disc(radius_px: float) -> np.ndarray:
    """float32 [n, n]: a disc with a soft rim one pixel wide, its sum 1."""
    reach = int(np.ceil(radius_px + 0.5))
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    kernel = np.clip(radius_px + 0.5 - np.hypot(rows, columns), 0, 1).astype(np.float32)
    return kernel / kernel.sum()


def _rain(rgb: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """Streaks fall at a slant, near ones long, wide and bright; haze takes contrast away."""
    height, width = rgb.shape[:2]
    count, most = _STREAKS[level], max(_STREAKS)
    near = rng.uniform(0.2, 1, most)[:count]
    x, y = rng.uniform(-0.1, 1.1, most)[:count] * width, rng.uniform(-0.1, 1, most)[:count] * height
    slant = rng.normal(0.15, 0.03, most)[:count]
    layer = np.zeros((height, width), np.uint8)
    for at in np.argsort(near):
        length = 0.14 * height * near[at]
        ends = [(x[at], y[at]), (x[at] + slant[at] * length, y[at] + length)]
        first, last = ((round(8 * a), round(8 * b)) for a, b in ends)
        thick = max(1, round(near[at] * height / 240))
        cv2.line(layer, first, last, (60 + 120 * near[at],), thick, cv2.LINE_AA, shift=3)
    opacity = cv2.GaussianBlur(layer, (0, 0), max(0.4, height / 900))[..., None] / np.float32(255)
    hazy = rgb + (200 - rgb.astype(np.float32)) * _HAZE[level]
    return np.clip(np.rint(hazy + (225 - hazy) * opacity), 0, 255).astype(np.uint8)


def _compress(rgb: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    half = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420)
    options = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY[level], *half]
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(rgb[..., ::-1]), options)
    if not done:
        raise ValueError(f"a picture of {list(rgb.shape)} cannot be compressed as JPEG")
    back = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))
    return np.ascontiguousarray(back[..., ::-1])


Corruption = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]
CORRUPTIONS: dict[str, Corruption] = {
    "darkness": _darken, "noise": _add_noise, "blur": _defocus, "rain": _rain, "jpeg": _compress,
}  # fmt: skip


@dataclass(frozen=True)
class BurstPlan:
    """Where in a stream bursts lie: clear frames, then ten hidden ones, then clear ones to recover in.

    Each burst has up to `lead` clear frames before it, its `BURST_FRAMES`, and up to `tail` after it. A
    stream has as many bursts as fit, at least one if it is longer than a burst.

    Attributes:
        starts: first frame of each burst.
        length: frames of the stream.
    """

    starts: tuple[int, ...]
    length: int
    lead: int = 10
    tail: int = 10

    @classmethod
    def of(cls, length: int, lead: int = 10, tail: int = 10) -> BurstPlan:
        period = lead + BURST_FRAMES + tail
        starts = tuple(range(lead, length - BURST_FRAMES - tail + 1, period))
        if not starts and length > BURST_FRAMES:  # shorten the tail first, then the lead
            starts = (min(lead, length - BURST_FRAMES),)
        return cls(starts, length, lead, tail)

    def offset(self, frame: int) -> int | None:
        """Frames since the nearest burst began (negative before it); None if the frame is near none."""
        for start in self.starts:
            if start - self.lead <= frame < start + BURST_FRAMES + self.tail:
                return frame - start
        return None

    def burst(self, frame: int) -> int | None:
        """Number of the burst the frame lies in, if any."""
        offset = self.offset(frame)
        if offset is None or not 0 <= offset < BURST_FRAMES:
            return None
        return self.starts.index(frame - offset)


def hide(
    rgb: np.ndarray, kind: str, seed: int, burst: int, offset: int
) -> tuple[np.ndarray, np.ndarray]:
    """A frame with a burst over it.

    "occlusion" is an opaque ellipse, half the frame wide and 0.7 of it high, with a dark smooth texture, as
    of spray or a rag on the lens: it drifts by a hundredth of the width a frame. "glare" is light that
    saturates the middle of a glow of about the same size and veils the rest by a tenth.

    Args:
        rgb: uint8 [H, W, 3].
        kind: one of `BURSTS`.
        seed, burst: choose the place, the same for all frames of a burst.
        offset: frames since the burst began.

    Returns:
        The picture and the hidden pixels, bool [H, W]: those at least half covered.
    """
    if kind not in BURSTS:
        raise ValueError(f"unknown burst {kind!r}: known are {', '.join(BURSTS)}")
    rng = np.random.default_rng((seed, zlib.crc32(kind.encode()), burst))
    height, width = rgb.shape[:2]
    center_x = (rng.uniform(0.3, 0.7) + rng.choice([-0.01, 0.01]) * offset) * width
    center_y = rng.uniform(0.4, 0.65) * height
    rows, columns = np.ogrid[:height, :width]
    distance = np.hypot((columns - center_x) / (0.25 * width), (rows - center_y) / (0.35 * height))
    if kind == "occlusion":
        shade = (rng.uniform(30, 90, (4, 4, 1)) + rng.uniform(-12, 12, 3)).astype(np.float32)
        color = cv2.resize(shade, (width, height), interpolation=cv2.INTER_CUBIC)
        opacity = np.clip((1 - distance) * 20 + 0.5, 0, 1)
    else:
        color = np.full((1, 1, 3), 255, np.float32)
        opacity = np.clip(1.6 * np.exp(-np.square(distance)), 0, 1) * 0.9 + 0.1
    opacity = opacity.astype(np.float32)[..., None]
    mixed = rgb + (color - rgb) * opacity
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8), opacity[..., 0] >= 0.5
