"""Light, weather, camera and drive of a clip, all drawn from its seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .rng import stream

LOOKS = ("clear", "low_sun", "bright", "overcast", "dusk", "rain")


@dataclass(frozen=True)
class Conditions:
    """How a clip is lit and photographed. Light is linear, colours are (r, g, b)."""

    look: str
    sun_azimuth: float  # radians against the street's first heading
    sun_elevation: float  # radians
    sun: np.ndarray
    zenith: np.ndarray
    horizon: np.ndarray
    bounce: np.ndarray  # light from below
    cloud: float  # 0..1
    haze: float  # extinction a metre
    wet: float  # 0..1
    rain: float  # 0..1
    lamps: float  # brightness of head and tail lamps
    fill: float  # share of the sky's light that reaches shade
    exposure: float
    black: float  # linear level taken as black
    contrast: float
    balance: np.ndarray
    saturation: float
    vignette: float
    noise: float  # deviation in display units
    softness: float  # blur in pixels of a 480-line picture
    glare: float
    shutter: float  # share of the frame time that the shutter is open
    bonnet: float  # height of the car's bonnet in the picture, 0 none
    field_of_view: float  # vertical, radians
    camera_height: float  # metres
    pitch: float  # radians, up positive


def draw_conditions(seed: int, look: str | None = None) -> Conditions:
    """The conditions of ``seed``; ``look`` forces one of :data:`LOOKS`."""
    rng = stream(seed, "conditions")
    drawn = str(rng.choice(LOOKS, p=[0.28, 0.14, 0.18, 0.18, 0.12, 0.10]))
    look = drawn if look is None else look
    if look not in LOOKS:
        raise ValueError(f"look must be one of {', '.join(LOOKS)}, got {look!r}")
    overcast = look in ("overcast", "rain")
    elevation = {
        "clear": rng.uniform(18, 55), "low_sun": rng.uniform(8, 20), "bright": rng.uniform(15, 50),
        "overcast": rng.uniform(40, 70), "dusk": rng.uniform(6, 14), "rain": rng.uniform(40, 70),
    }[look]  # fmt: skip
    sun_power = {
        "clear": 2.9,
        "low_sun": 2.4,
        "bright": 2.6,
        "overcast": 0.25,
        "dusk": 0.1,
        "rain": 0.12,
    }[look]
    warm = float(np.clip((30 - elevation) / 30, 0, 1)) if not overcast else 0.0
    sun = (
        sun_power
        * rng.uniform(0.85, 1.15)
        * np.array([1.0, 0.94 - 0.14 * warm, 0.84 - 0.34 * warm])
    )
    zenith, horizon = _sky_colours(rng, look)
    bounce = 0.2 * (zenith + horizon) * np.array([0.55, 0.52, 0.48]) + 0.055 * sun
    exposure = {
        "clear": 0.74,
        "low_sun": 0.85,
        "bright": 1.1,
        "overcast": 0.78,
        "dusk": 0.55,
        "rain": 0.95,
    }[look]
    rain = look == "rain"
    fill = {"overcast": (0.85, 1.0), "rain": (0.85, 1.0), "dusk": (0.35, 0.6)}.get(
        look, (0.5, 0.85)
    )
    return Conditions(
        look=look,
        sun_azimuth=rng.uniform(-np.pi, np.pi) if look != "low_sun" else rng.uniform(-1.4, 1.4),
        sun_elevation=float(np.deg2rad(elevation)),
        sun=sun,
        zenith=zenith,
        horizon=horizon,
        bounce=bounce,
        cloud=float({"clear": rng.uniform(0.05, 0.45), "low_sun": rng.uniform(0.1, 0.5),
                     "bright": rng.uniform(0.1, 0.6), "overcast": 1.0,
                     "dusk": rng.uniform(0.6, 1.0), "rain": 1.0}[look]),
        haze=float(rng.choice([0.0009, 0.0016, 0.003]) * rng.uniform(0.7, 1.3) * (2.2 if rain else 1.0)),
        wet=float(rng.uniform(0.6, 1.0) if rain else
                  rng.uniform(0, 0.5) if overcast and rng.random() < 0.4 else 0.0),
        rain=float(rng.uniform(0.3, 1.0) if rain else 0.0),
        lamps=float({"dusk": 2.4, "rain": 1.2, "overcast": 0.4}.get(look, 0.12)),
        fill=float(rng.uniform(*fill)),
        black=float(rng.uniform(0.0, 0.014) * (0.4 if look == "dusk" else 1.0)),
        exposure=float(exposure * rng.uniform(0.8, 1.2)),
        contrast=float(rng.uniform(0.3, 1.0)),
        balance=1 + 0.035 * rng.standard_normal(3),
        saturation=float(rng.uniform(0.6, 1.0)),
        vignette=float(rng.uniform(0.0, 0.45)),
        noise=float(rng.uniform(0.003, 0.010) * (1.25 if look == "dusk" else 1.0)),
        softness=float(rng.uniform(0.2, 0.7)),
        glare=float(rng.uniform(0.01, 0.05) * (2.2 if look in ("low_sun", "bright") else 1.0)),
        shutter=float({"clear": rng.uniform(0.05, 0.2), "dusk": rng.uniform(0.4, 0.7)}.get(
            look, rng.uniform(0.1, 0.45))),
        bonnet=float(rng.uniform(0.04, 0.1) if rng.random() < 0.3 else 0.0),
        field_of_view=float(np.deg2rad(rng.uniform(36, 52))),
        camera_height=float(rng.uniform(1.15, 1.6)),
        pitch=float(rng.normal(-0.008, 0.022)),
    )  # fmt: skip


def _sky_colours(rng: np.random.Generator, look: str) -> tuple[np.ndarray, np.ndarray]:
    zenith, horizon = {
        "clear": ((0.34, 0.58, 1.05), (1.05, 1.15, 1.25)),
        "low_sun": ((0.32, 0.5, 0.85), (1.3, 1.15, 0.95)),
        "bright": ((0.7, 0.85, 1.1), (1.3, 1.33, 1.33)),
        "overcast": ((1.15, 1.17, 1.2), (1.0, 1.02, 1.04)),
        "dusk": ((0.4, 0.43, 0.5), (0.78, 0.78, 0.74)),
        "rain": ((0.7, 0.73, 0.78), (0.68, 0.7, 0.73)),
    }[look]
    power = rng.uniform(0.85, 1.15)
    return np.array(zenith) * power, np.array(horizon) * power


@dataclass(frozen=True)
class CameraPose:
    """Where the camera is: street position (t, y, s) in metres and angles in radians against the
    street's direction."""

    t: float
    y: float
    s: float
    yaw: float
    pitch: float
    roll: float


class Drive:
    """The camera's motion as a function of time: smooth speed changes and a little shake."""

    START_S = 130.0

    def __init__(self, seed: int, conditions: Conditions, lane_t: float, side_sign: float) -> None:
        rng = stream(seed, "drive")
        self._conditions = conditions
        self.speed = float(rng.uniform(5.0, 13.5))  # mean, metres a second
        self._start = self.START_S + 100.0 * float(rng.integers(0, 40)) + float(rng.uniform(0, 100))
        self._ease = rng.dirichlet(np.ones(3)) * rng.uniform(0.1, 0.85)
        self._rate = 2 * np.pi / rng.uniform((6, 11, 19), (11, 19, 34))
        self._phase = rng.uniform(0, 2 * np.pi, 3)
        self._lane_t = lane_t - 0.25 * side_sign
        self._shake = rng.uniform(0.4, 1.4)
        self._shake_phase = rng.uniform(0, 2 * np.pi, 12)
        self._aim = float(rng.normal(0, 0.02))

    def distance(self, time: float) -> float:
        """Distance s along the street, metres."""
        swing = np.sin(self._rate * time + self._phase) - np.sin(self._phase)
        return self._start + self.speed * (time + float((self._ease / self._rate * swing).sum()))

    def pace(self, time: float) -> float:
        """Speed, metres a second."""
        ease = (self._ease * np.cos(self._rate * time + self._phase)).sum()
        return self.speed * (1 + float(ease))

    def time_at(self, s: float) -> float:
        """When the camera is at ``s`` (by bisection; the speed is never negative)."""
        low, high = -400.0, 1.0
        while self.distance(high) < s:
            high *= 2
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if self.distance(middle) < s else (low, middle)
        return high

    def pose(self, time: float) -> CameraPose:
        """The camera at ``time`` seconds."""
        c, p, k = self._conditions, self._shake_phase, self._shake
        rough = k * (0.3 + 0.7 * self.pace(time) / 12)
        wave = [
            float(np.sin(w * time + p[i]))
            for i, w in enumerate((0.5, 1.1, 0.31, 9.3, 13.1, 23.7, 8.1, 17.9, 1.7, 2.9))
        ]
        return CameraPose(
            t=self._lane_t + 0.18 * wave[0],
            y=c.camera_height + 0.006 * rough * (wave[3] + 0.5 * wave[4]),
            s=self.distance(time),
            yaw=self._aim + 0.012 * wave[1] + 0.02 * wave[2] + 0.0009 * rough * wave[5],
            pitch=c.pitch + rough * (0.0016 * wave[6] + 0.0011 * wave[7] + 0.003 * wave[8]),
            roll=rough * (0.0022 * wave[9] + 0.0012 * wave[3]),
        )
