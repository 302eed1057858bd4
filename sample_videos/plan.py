"""What stands where: the street's cross-section for a clip, and the character of each 100 m."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .rng import stream

SEGMENT = 20.0  # metres of street in one mesh
ZONE = 100.0  # metres of one character
JUNCTION = (3.5, 13.5)  # where in its zone a side road lies
ZONE_KINDS = ("shops", "terrace", "suburb", "park", "offices", "open")
KERB = 0.15
KERB_HEIGHT = 0.12


@dataclass(frozen=True)
class Section:
    """The road's cross-section, constant through a clip. Offsets t in metres, right positive."""

    half_width: float
    parking: tuple[float, float]  # width of the parking strip at the left, at the right
    lanes_each_way: int
    drive_side: int  # -1 keeps left, 1 keeps right
    edge_lines: str  # double_yellow, white, cycle, none
    centre_line: str  # dashed, solid, double
    line_width: float
    asphalt: str
    asphalt_tone: float

    @property
    def centre(self) -> float:
        return (self.parking[0] - self.parking[1]) / 2

    @property
    def lane_width(self) -> float:
        drivable = 2 * self.half_width - sum(self.parking)
        return drivable / (2 * self.lanes_each_way)

    def lane(self, direction: int, index: int = 0) -> float:
        """Centre t of a lane; ``direction`` 1 is ours, -1 oncoming; index 0 is nearest the middle."""
        return self.centre + direction * self.drive_side * self.lane_width * (index + 0.5)


@dataclass(frozen=True)
class Zone:
    """One side of 100 m of street. Widths in metres."""

    kind: str
    pavement: float
    pavement_layer: str
    verge: float  # grass between kerb and pavement
    yard: float  # between pavement and façade
    fence: str  # a fence kind, "hedge" or "none"
    street_trees: float  # trees a metre
    tree_kind: str
    side_road: bool
    parked: float  # share of the parking places taken
    people: float  # people a metre


class Plan:
    """All choices of layout for one seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        rng = stream(seed, "section")
        lanes = int(rng.choice([1, 2], p=[0.75, 0.25]))
        parking = [2.1 if rng.random() < (0.5 if lanes == 1 else 0.15) else 0.0 for _ in range(2)]
        width = lanes * rng.uniform(3.0, 4.0) + sum(parking) / 2
        self.section = Section(
            half_width=width,
            parking=(parking[0], parking[1]),
            lanes_each_way=lanes,
            drive_side=-1 if rng.random() < 0.7 else 1,
            edge_lines=str(rng.choice(["double_yellow", "white", "cycle", "none"])),
            centre_line=str(rng.choice(["dashed", "dashed", "solid", "double"])),
            line_width=rng.uniform(0.1, 0.16),
            asphalt=str(rng.choice(["asphalt", "asphalt", "asphalt_smooth"])),
            asphalt_tone=rng.uniform(0.62, 1.0),
        )
        self._mix = rng.dirichlet(np.array([1.5, 1.4, 1.4, 0.8, 0.8, 0.5]))
        self._season = str(rng.choice(["summer", "autumn", "winter"]))
        self._crowd = rng.uniform(0.3, 1.6)

    @lru_cache(maxsize=256)  # noqa: B019 - a plan lives as long as its clip
    def zone(self, index: int, side: int) -> Zone:
        """The zone with this index (s // ZONE) at a side (-1 left, 1 right)."""
        rng = stream(self.seed, "zone", index, side)
        common = stream(self.seed, "zone mix", index).random()
        # Both sides of a street are often alike.
        pick = float(common) if rng.random() < 0.65 else float(rng.random())
        place = int(np.searchsorted(np.cumsum(self._mix), pick))
        kind = ZONE_KINDS[min(place, len(ZONE_KINDS) - 1)]
        yard, fences, trees, people = {
            "shops": (0.0, ["none"], 0.02, 0.11),
            "terrace": (
                rng.choice([0.0, 1.8, 3.0]),
                ["wall", "wall_railing", "railing", "hedge", "none"],
                0.02,
                0.04,
            ),
            "suburb": (
                rng.uniform(4, 8),
                ["wall", "hedge", "panel", "hedge", "wall_railing"],
                0.035,
                0.025,
            ),
            "park": (30.0, ["railing", "mesh", "none", "hedge", "wall_railing"], 0.06, 0.03),
            "offices": (rng.choice([0.0, 3.0, 6.0]), ["none", "railing", "wall"], 0.04, 0.05),
            "open": (40.0, ["guard", "mesh", "hedge", "panel", "none"], 0.05, 0.01),
        }[kind]
        return Zone(
            kind=kind,
            pavement=rng.uniform(1.8, 4.5)
            if kind in ("shops", "offices")
            else rng.uniform(1.5, 2.8),
            pavement_layer=str(
                rng.choice(["slabs", "asphalt_smooth", "slabs", "setts", "asphalt"])
            ),
            verge=rng.uniform(1.0, 2.5)
            if kind in ("suburb", "park", "open") and rng.random() < 0.5
            else 0.0,
            yard=float(yard),
            fence=str(rng.choice(fences)) if yard else "none",
            street_trees=trees * float(rng.choice([0.0, 1.0, 1.6])),
            tree_kind=self._tree_kind(rng),
            side_road=bool(rng.random() < 0.55),
            parked=rng.uniform(0.3, 0.95),
            people=people * self._crowd,
        )

    def _tree_kind(self, rng: np.random.Generator) -> str:
        seasons = {
            "summer": ["broad", "small", "slim", "poplar", "broad", "conifer", "bare"],
            "autumn": ["autumn", "broad", "bare", "conifer", "autumn"],
            "winter": ["bare", "bare", "bare", "conifer", "small"],
        }
        return str(rng.choice(seasons[self._season]))

    def tree_kind_near(self, rng: np.random.Generator, zone: Zone) -> str:
        """Mostly the zone's own kind, sometimes another of the season."""
        return zone.tree_kind if rng.random() < 0.6 else self._tree_kind(rng)

    def zone_at(self, s: float, side: int) -> Zone:
        return self.zone(int(np.floor(s / ZONE)), side)

    def in_junction(self, s: float, side: int, margin: float = 0.0) -> bool:
        """Whether a side road (widened by ``margin``) opens at ``s``."""
        for offset in (0, 1):
            index = int(np.floor(s / ZONE)) + offset
            within = s - index * ZONE
            low, high = JUNCTION[0] - margin, JUNCTION[1] + margin
            if low <= within <= high and self.zone(index, side).side_road:
                return True
        return False
