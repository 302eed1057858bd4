"""Which network serves which camera, where there are several: decided from what was measured.

Nothing is done here. A camera's demand is the pixels its frames bring a second, at the network's size; a
network's rate is the pixels it labels in a second of work. Demand over rate is the share of the network's
time that the camera takes, and a network's load the sum of its cameras' shares: above 1 it cannot keep up,
and frames are dropped as everywhere.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# A move must leave the fuller of its two networks with so much less, or what is measured anew each time
# would send cameras to and fro.
LEAST_GAIN = 0.1
TARGET_LOAD = 0.8  # of a network that is neither idle nor late


@dataclass(frozen=True)
class SiteLoad:
    """A network that cameras can be given to.

    Attributes:
        name: unique among them.
        rate: pixels it labels in a second of work; None while it has done none.
        taking: cameras may be given to it; False where its machine is to go.
    """

    name: str
    rate: float | None = None
    taking: bool = True

    def __post_init__(self) -> None:
        if self.rate is not None and not self.rate > 0:
            raise ValueError(f"rate must be above 0 or None, got {self.rate}")


@dataclass(frozen=True)
class CameraDemand:
    """A camera, where it is, and what it takes.

    Attributes:
        name: unique among the cameras.
        site: the network that serves it, None if none does.
        demand: pixels a second; None while it is not known.
        settled: it may be moved for a better balance; False while it has just been.
    """

    name: str
    site: str | None = None
    demand: float | None = None
    settled: bool = True

    def __post_init__(self) -> None:
        if self.demand is not None and not self.demand >= 0:
            raise ValueError(f"demand must be at least 0 or None, got {self.demand}")


@dataclass(frozen=True)
class Move:
    """A camera is to be served by another network from now on, or by one at all."""

    camera: str
    to: str


class _Balance:
    """Loads as they will be after the moves decided so far."""

    def __init__(self, sites: Sequence[SiteLoad], cameras: Sequence[CameraDemand]) -> None:
        self._demands = _filled({camera.name: camera.demand for camera in cameras})
        self._rates = _filled({site.name: site.rate for site in sites})
        self.taking = sorted(site.name for site in sites if site.taking)
        self.served: dict[str, set[str]] = {site.name: set() for site in sites}
        for camera in cameras:
            if camera.site in self.served:
                self.served[camera.site].add(camera.name)
        self._loads = {name: self._sum(name) for name in self.served}

    def share(self, camera: str, site: str) -> float:
        return self._demands[camera] / self._rates[site]

    def load(self, site: str) -> float:
        return self._loads[site]

    def _sum(self, site: str) -> float:
        return math.fsum(self.share(camera, site) for camera in self.served[site])

    def emptiest(self, camera: str) -> str:
        """Where a camera leaves the lowest load; of several, where the fewest cameras are."""
        return min(
            self.taking,
            key=lambda site: (
                round(self.load(site) + self.share(camera, site), 9),
                len(self.served[site]),
                site,
            ),
        )

    def by_demand(self, cameras: Iterable[str]) -> list[str]:
        """The hungriest first: what comes last finds its place most easily."""
        return sorted(cameras, key=lambda camera: (-self._demands[camera], camera))

    def move(self, camera: str, to: str) -> Move:
        for site, served in self.served.items():
            if camera in served:
                served.discard(camera)
                self._loads[site] = self._sum(site)
        self.served[to].add(camera)
        self._loads[to] = self._sum(to)
        return Move(camera, to)

    def best_relief(self, settled: set[str]) -> Move | None:
        """The move that relieves the fullest network most; None if none is worth it."""
        if len(self.taking) < 2:
            return None
        for fullest in sorted(self.taking, key=lambda site: (-self.load(site), site)):
            found = self._relief_of(fullest, settled)
            if found is not None:
                return found
        return None

    def _relief_of(self, fullest: str, settled: set[str]) -> Move | None:
        load = self.load(fullest)
        best: tuple[float, Move] | None = None
        for camera in self.by_demand(self.served[fullest] & settled):
            to = self.emptiest(camera)
            if to == fullest:
                continue
            left = load - self.share(camera, fullest)
            after = max(left, self.load(to) + self.share(camera, to))
            gains = (
                after < load and after <= (1 - LEAST_GAIN) * load
            )  # of nearly nothing, a tenth is 0
            if gains and (best is None or after < best[0]):
                best = after, Move(camera, to)
        return best[1] if best is not None else None


def spread(
    sites: Sequence[SiteLoad], cameras: Sequence[CameraDemand], most_reliefs: int = 2
) -> list[Move]:
    """What is to be moved now.

    A camera whose network is gone, or goes, is given to the network that it leaves with the lowest load,
    the hungriest camera first. Beyond that, a few cameras at a time go from the fullest networks to the
    emptiest, where that gains enough: so a new one is filled step by step. Networks and cameras that are
    not measured yet count as the middle ones of the others.

    Args:
        most_reliefs: how many cameras may be moved for the balance alone.

    Returns:
        moves to sites that are `taking`, at most one a camera; none for a camera where it is. Applied
        again and again, there soon are no more, whatever the demands are, as long as they stay.
    """
    balance = _Balance(sites, cameras)
    if not balance.taking:
        return []
    homeless = [camera.name for camera in cameras if camera.site not in balance.taking]
    moves = [balance.move(name, balance.emptiest(name)) for name in balance.by_demand(homeless)]
    settled = {camera.name for camera in cameras if camera.settled} - set(homeless)
    for _ in range(most_reliefs):
        relief = balance.best_relief(settled)
        if relief is None:
            break
        settled.discard(relief.camera)
        moves.append(balance.move(relief.camera, relief.to))
    return moves


def loads(sites: Sequence[SiteLoad], cameras: Sequence[CameraDemand]) -> dict[str, float]:
    """Share of each network's time that its cameras take."""
    balance = _Balance(sites, cameras)
    return {site.name: balance.load(site.name) for site in sites}


def wanted_sites(sites: Sequence[SiteLoad], cameras: Sequence[CameraDemand]) -> int:
    """How many networks like these would carry all cameras at `TARGET_LOAD`; at least 1.

    Only as many as there are while nothing has been measured.
    """
    if not any(site.rate for site in sites) or not any(camera.demand for camera in cameras):
        return max(1, len(sites))
    rate = statistics.median(site.rate for site in sites if site.rate)
    demands = _filled({camera.name: camera.demand for camera in cameras})
    return max(1, math.ceil(math.fsum(demands.values()) / rate / TARGET_LOAD))


def _filled(measured: dict[str, float | None]) -> dict[str, float]:
    """Values that are not known as the middle one of those that are; 1 where none is."""
    known = [value for value in measured.values() if value]
    usual = statistics.median(known) if known else 1.0
    return {name: usual if value is None else value for name, value in measured.items()}
