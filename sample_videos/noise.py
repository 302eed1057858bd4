"""Tileable noise and small drawing helpers for the textures, all float [SIZE, SIZE]."""

from __future__ import annotations

import numpy as np

SIZE = 512


def spectral(rng: np.random.Generator, falloff: float, low_cut: float = 0.0) -> np.ndarray:
    """Periodic noise with a 1/f**falloff spectrum, mean 0 and deviation 1."""
    white = np.fft.rfft2(rng.standard_normal((SIZE, SIZE)))
    fy, fx = np.fft.fftfreq(SIZE) * SIZE, np.fft.rfftfreq(SIZE) * SIZE
    radius = np.hypot(fy[:, None], fx[None])
    gain = np.where(radius > low_cut, np.maximum(radius, 1.0) ** -falloff, 0.0)
    gain[0, 0] = 0.0
    out = np.fft.irfft2(white * gain, s=(SIZE, SIZE))
    return out / out.std()


def stretched(rng: np.random.Generator, falloff: float, ratio: float) -> np.ndarray:
    """As :func:`spectral` with features ``1 / ratio`` times as tall as wide (streaks, grain)."""
    white = np.fft.rfft2(rng.standard_normal((SIZE, SIZE)))
    fy, fx = np.fft.fftfreq(SIZE) * SIZE, np.fft.rfftfreq(SIZE) * SIZE
    radius = np.hypot(fy[:, None] / ratio, fx[None])
    gain = np.maximum(radius, 1.0) ** -falloff
    gain[0, 0] = 0.0
    out = np.fft.irfft2(white * gain, s=(SIZE, SIZE))
    return out / out.std()


def axes() -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres as (x [1, SIZE], y [SIZE, 1]) in 0..1, y upwards."""
    line = (np.arange(SIZE) + 0.5) / SIZE
    return line[None, :], line[:, None]


def smooth(edge0: float, edge1: float, x: np.ndarray) -> np.ndarray:
    """GLSL's smoothstep."""
    t = np.clip((x - edge0) / (edge1 - edge0), 0, 1)
    return t * t * (3 - 2 * t)


def solid(rgb: tuple[float, float, float], alpha: float = 1.0) -> np.ndarray:
    """A plain RGBA texture, colours in 0..255."""
    out = np.empty((SIZE, SIZE, 4))
    out[..., :3] = np.asarray(rgb) / 255.0
    out[..., 3] = alpha
    return out


def shade(texture: np.ndarray, factor: np.ndarray | float) -> np.ndarray:
    """Multiply the colour channels in place and return the texture."""
    texture[..., :3] *= factor[..., None] if isinstance(factor, np.ndarray) else factor
    return texture


def fill(
    texture: np.ndarray,
    box: tuple[float, float, float, float],
    rgb: tuple[float, float, float] | np.ndarray,
    alpha: float | None = None,
) -> None:
    """Fill the rectangle (x0, y0, x1, y1 in 0..1, y upwards) with a colour in 0..255."""
    x0, y0, x1, y1 = (round(np.clip(v, 0, 1) * SIZE) for v in box)
    texture[y0:y1, x0:x1, :3] = np.asarray(rgb) / 255.0
    if alpha is not None:
        texture[y0:y1, x0:x1, 3] = alpha
