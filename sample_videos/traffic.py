"""Who and what moves or parks, as a function of time: no state, so any frame can be asked for.

Movers of one direction share a speed, so they live in cells of a frame that moves with them
(u = s - speed * time) and are found by looking at the cells now in view.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .conditions import Drive
from .plan import JUNCTION, KERB, KERB_HEIGHT, ZONE, Plan
from .rng import stream
from .street import pavement_back
from .vehicles import vehicle_half_size

PAINTS = np.array([
    (0.13, 0.13, 0.14), (0.2, 0.2, 0.22), (0.72, 0.73, 0.74), (0.86, 0.86, 0.85), (0.5, 0.51, 0.53),
    (0.16, 0.22, 0.4), (0.5, 0.09, 0.09), (0.16, 0.28, 0.2), (0.34, 0.42, 0.55), (0.55, 0.43, 0.22),
    (0.62, 0.64, 0.66), (0.28, 0.1, 0.14),
])  # fmt: skip
CAR_KINDS = ("hatchback", "saloon", "estate", "suv", "van")
CAR_SHARES = (0.4, 0.2, 0.16, 0.13, 0.11)
BEHIND, AHEAD = 9.0, 175.0
WALK = 1.35  # metres a second


@dataclass(frozen=True)
class Vehicle:
    """A motor vehicle at street position (t, s), ``yaw`` against the street, moving at ``speed``
    along it (metres a second)."""

    kind: str
    t: float
    s: float
    yaw: float
    speed: float
    paint: np.ndarray
    y: float = 0.0


@dataclass(frozen=True)
class Person:
    """Somebody on foot (``stride`` > 0 walking) or riding, named by ``key``."""

    key: tuple[int, int]
    t: float
    y: float
    s: float
    yaw: float
    velocity: tuple[float, float]  # across, along
    phase: float
    stride: float


class Traffic:
    """All traffic of one clip."""

    def __init__(self, plan: Plan, drive: Drive) -> None:
        self._plan, self._drive = plan, drive
        rng = stream(plan.seed, "traffic")
        self._oncoming_speed = float(rng.uniform(6, 13))
        self._oncoming_share = float(rng.uniform(0.15, 0.85))
        self._lead_share = float(rng.uniform(0.2, 0.75))
        self._cyclist_share = float(rng.uniform(0.1, 0.5))
        self._beside_speed = float(rng.uniform(-1.5, 2.0))

    def vehicles(self, time: float) -> list[Vehicle]:
        """The motor vehicles near the camera at ``time`` seconds."""
        s = self._drive.distance(time)
        found = [
            *self._oncoming(time, s),
            *self._same_way(time, s),
            *self._parked(s),
            *self._waiting(s),
        ]
        return [v for v in found if -BEHIND < v.s - s < AHEAD]

    def people(self, time: float) -> list[Person]:
        """The pedestrians near the camera."""
        s = self._drive.distance(time)
        found = [*self._walkers(time, s), *self._standing(s), *self._crossing(time, s)]
        return [p for p in found if -4 < p.s - s < 110]

    def cyclists(self, time: float) -> list[Person]:
        """The riders near the camera."""
        s, section = self._drive.distance(time), self._plan.section
        found = []
        for way, speed in ((1, 4.6), (-1, -4.6)):
            side = section.drive_side * way
            strip = section.parking[0 if side < 0 else 1]
            for cell in _cells(s - speed * time, 34.0):
                rng = stream(self._plan.seed, "cyclist", cell, way)
                if rng.random() > self._cyclist_share:
                    continue
                place = (cell + rng.uniform(0.2, 0.8)) * 34.0 + speed * time
                t = side * (section.half_width - strip - rng.uniform(0.4, 0.7))
                yaw = 0.0 if way > 0 else np.pi
                phase = 2 * np.pi * 1.1 * time + rng.uniform(0, 6)
                found.append(Person((cell, 50 + way), t, 0.0, place, yaw, (0.0, speed), phase, 1.0))
        return [p for p in found if -4 < p.s - s < 120]

    def _vehicle(self, rng: np.random.Generator, big: float, **place: float) -> Vehicle:
        kind = str(rng.choice(CAR_KINDS, p=CAR_SHARES))
        if rng.random() < big:
            kind = str(rng.choice(["bus", "coach", "lorry"]))
        paint = PAINTS[rng.integers(0, len(PAINTS))] * rng.uniform(0.7, 1.05)
        if kind == "bus":
            paint = np.array([(0.62, 0.09, 0.08), (0.14, 0.3, 0.55), (0.8, 0.78, 0.7)])[
                rng.integers(0, 3)
            ]
        return Vehicle(kind=kind, paint=np.clip(paint, 0, 1), **place)

    def _oncoming(self, time: float, s: float) -> Iterator[Vehicle]:
        section, speed = self._plan.section, -self._oncoming_speed
        for lane in range(section.lanes_each_way):
            for cell in _cells(s - speed * time, 19.0):
                rng = stream(self._plan.seed, f"oncoming {lane}", cell)
                if rng.random() > self._oncoming_share:
                    continue
                place = (cell + rng.uniform(0.3, 0.7)) * 19.0 + speed * time
                t = section.lane(-1, lane) + rng.normal(0, 0.12)
                yield self._vehicle(rng, 0.07, t=t, s=place, yaw=np.pi, speed=speed)

    def _same_way(self, time: float, s: float) -> Iterator[Vehicle]:
        """Those ahead in our lane keep their distance; a second lane drifts past."""
        section, pace = self._plan.section, self._drive.pace(time)
        for cell in range(0, 8):
            rng = stream(self._plan.seed, "lead", cell)
            if rng.random() > self._lead_share:
                continue
            sway = 2.5 * np.sin(rng.uniform(0.15, 0.4) * time + rng.uniform(0, 6))
            t = section.lane(1) + rng.normal(0, 0.12)
            gap = 14.0 + 21.0 * cell + rng.uniform(0, 5) + sway
            yield self._vehicle(rng, 0.05, t=t, s=s + gap, yaw=0.0, speed=pace)
        for lane in range(1, section.lanes_each_way):
            for cell in _cells(-self._beside_speed * time, 24.0):
                rng = stream(self._plan.seed, f"beside {lane}", cell)
                if rng.random() > self._lead_share:
                    continue
                place = s + (cell + rng.uniform(0.35, 0.65)) * 24.0 + self._beside_speed * time
                yield self._vehicle(
                    rng,
                    0.08,
                    t=section.lane(1, lane),
                    s=place,
                    yaw=0.0,
                    speed=pace + self._beside_speed,
                )

    def _parked(self, s: float) -> Iterator[Vehicle]:
        section = self._plan.section
        for side in (-1, 1):
            if not section.parking[0 if side < 0 else 1]:
                continue
            for cell in _cells(s, 5.9):
                rng = stream(self._plan.seed, "parked", cell, side)
                place = (cell + 0.5) * 5.9 + rng.normal(0, 0.25)
                zone = self._plan.zone_at(place, side)
                if rng.random() > zone.parked or self._plan.in_junction(place, side, 6.0):
                    continue
                t = side * (section.half_width - 1.0 + rng.normal(0, 0.06))
                with_traffic = rng.random() < 0.85
                yaw = 0.0 if (side == section.drive_side) == with_traffic else np.pi
                yield self._vehicle(
                    rng, 0.0, t=t, s=place, yaw=yaw + rng.normal(0, 0.02), speed=0.0
                )

    def _waiting(self, s: float) -> Iterator[Vehicle]:
        """Cars at the mouth of side roads, on driveways and in yards."""
        section = self._plan.section
        for side in (-1, 1):
            for index in range(int((s - BEHIND) // ZONE), int((s + AHEAD) // ZONE) + 1):
                rng = stream(self._plan.seed, "waiting", index, side)
                zone = self._plan.zone(index, side)
                middle = index * ZONE + sum(JUNCTION) / 2
                if zone.side_road and rng.random() < 0.5:
                    half = vehicle_half_size("estate")[1]
                    t = side * (section.half_width + half + rng.uniform(0.8, 8.0))
                    lane = -1.7 * section.drive_side * side
                    yield self._vehicle(
                        rng, 0.0, t=t, s=middle - lane, yaw=-side * np.pi / 2, speed=0.0
                    )
                if zone.kind in ("suburb", "offices", "open", "park") and zone.yard > 5.2:
                    for _ in range(rng.poisson(3.5)):
                        t = side * (
                            pavement_back(self._plan, zone)
                            + rng.uniform(2.8, min(zone.yard - 2.0, 12.0))
                        )
                        place = index * ZONE + rng.uniform(20, 98)
                        yaw = side * np.pi / 2 * rng.choice([-1, 1])
                        yield self._vehicle(
                            rng, 0.0, t=t, s=place, yaw=yaw, speed=0.0, y=KERB_HEIGHT
                        )

    def _walkers(self, time: float, s: float) -> Iterator[Person]:
        for side in (-1, 1):
            for way in (1, -1):
                for cell in _cells(s - way * WALK * time, 7.0):
                    rng = stream(self._plan.seed, f"walker {way}", cell, side)
                    start = (cell + rng.random()) * 7.0 + way * WALK * time
                    zone = self._plan.zone_at(start, side)
                    if rng.random() > 3.5 * zone.people:
                        continue
                    inner = self._plan.section.half_width + KERB + zone.verge
                    share = rng.uniform(0.45, 0.85) if way > 0 else rng.uniform(0.15, 0.5)
                    for member in range(1 + int(rng.random() < 0.35) + int(rng.random() < 0.1)):
                        t = side * (
                            inner + 0.3 + (zone.pavement - 0.5) * ((share + 0.28 * member) % 1.0)
                        )
                        place = start + rng.uniform(-0.4, 0.4)
                        on_road = self._plan.in_junction(place, side, -1.6)
                        phase = 2 * np.pi * 0.95 * time + rng.uniform(0, 6)
                        key = (cell, 10 * member + 2 * side + way + 100)
                        yaw = 0.0 if way > 0 else np.pi
                        y = 0.0 if on_road else KERB_HEIGHT
                        yield Person(key, t, y, place, yaw, (0.0, way * WALK), phase, 0.75)

    def _standing(self, s: float) -> Iterator[Person]:
        for side in (-1, 1):
            for cell in _cells(s, 9.0):
                rng = stream(self._plan.seed, "standing", cell, side)
                place = (cell + rng.random()) * 9.0
                zone = self._plan.zone_at(place, side)
                if rng.random() > 2.2 * zone.people or self._plan.in_junction(place, side, 1.0):
                    continue
                t = side * (
                    self._plan.section.half_width
                    + KERB
                    + zone.verge
                    + rng.uniform(0.3, zone.pavement)
                )
                yield Person(
                    (cell, 200 + side),
                    t,
                    KERB_HEIGHT,
                    place,
                    rng.uniform(0, 6.3),
                    (0.0, 0.0),
                    0.6,
                    0.12,
                )

    def _crossing(self, time: float, s: float) -> Iterator[Person]:
        """People who cross well ahead of us and are over before we come."""
        w = self._plan.section.half_width
        for cell in _cells(s, 70.0):
            rng = stream(self._plan.seed, "crossing", cell)
            place = cell * 70.0 + rng.uniform(0, 70)
            for member in range(int(rng.integers(0, 3))):
                duration = (2 * w + 3.0) / 1.5
                clear = self._drive.time_at(place - 16.0 - 6 * rng.random())
                share = (time - (clear - duration)) / duration
                if not 0.0 <= share <= 1.0:
                    continue
                way = 1 if cell % 2 else -1
                t = way * (share * (2 * w + 3.0) - w - 1.5)
                y = 0.0 if abs(t) < w else KERB_HEIGHT
                at = place + 0.8 * member
                yield Person(
                    (cell, 300 + member),
                    t,
                    y,
                    at,
                    way * np.pi / 2,
                    (way * 1.5, 0.0),
                    6.3 * time,
                    0.85,
                )


def _cells(middle: float, size: float) -> range:
    return range(int((middle - BEHIND - size) // size), int((middle + AHEAD) // size) + 1)
