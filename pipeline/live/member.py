"""A camera of a fleet, wherever it is served just now: its figures go on when it moves."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field, replace

from pipeline.live.address import Address
from pipeline.live.delivery import Handover
from pipeline.live.hub import CameraStatus, Shown, StateChange
from pipeline.live.lane import Feed
from pipeline.live.spread import CameraDemand

_HISTORY = 50
_NEW_WEIGHT = 0.5  # of the newest in the running mean of what a camera brings
_LEAST_SECONDS = 2.0  # over which that is measured


@dataclass(frozen=True)
class _Totals:
    """Figures that only grow."""

    frames: int = 0
    reconnects: int = 0
    resets: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)

    @staticmethod
    def of(status: CameraStatus) -> _Totals:
        return _Totals(
            status.frames, status.reconnects, status.resets, Counter(status.dropped),
            Counter(status.changes),
        )  # fmt: skip

    @property
    def offered(self) -> int:
        return self.frames + self.dropped.total()

    def plus(self, status: CameraStatus, zero: _Totals) -> _Totals:
        return _Totals(
            self.frames + status.frames - zero.frames,
            self.reconnects + status.reconnects - zero.reconnects,
            self.resets + status.resets - zero.resets,
            self.dropped + (Counter(status.dropped) - zero.dropped),
            self.changes + (Counter(status.changes) - zero.changes),
        )


class Member:
    """One camera of a fleet. Not thread-safe by itself.

    Attributes:
        name, address: the camera's.
        site: name of the site that serves it, None while none does.
        confirmed_at: `time.monotonic()` since which that site has known of it; infinity until then.
        target: name of the site it is being moved to, None if it isn't.
        settled_at: `time.monotonic()` at which it was placed or moved last.
        handed: its memory, for the site to come or in case its own is lost.
        kept_at: `time.monotonic()` at which that was taken.
        feeds: who listens to its frames.
    """

    def __init__(self, name: str, address: Address) -> None:
        self.name, self.address = name, address
        self.site: str | None = None
        self.target: str | None = None
        self.confirmed_at = float("inf")
        self.settled_at = self.kept_at = float("-inf")
        self.handed: Handover | None = None
        self.feeds: list[Feed] = []
        self._base, self._zero = _Totals(), _Totals()
        self._newest: CameraStatus | None = None
        self._own_changes: Counter[str] = Counter()
        self._history: deque[StateChange] = deque(maxlen=_HISTORY)
        self._seen_changes = 0
        self._demand: float | None = None
        self._measured: tuple[float, int] | None = None  # `time.monotonic()`, frames brought
        self._last_index = -1
        self._index_shift = 0

    @property
    def size_hw(self) -> tuple[int, int] | None:
        """Of its picture; None while it is not known."""
        return self._newest.size_hw if self._newest is not None else None

    @property
    def state(self) -> str:
        return self._history[-1].state if self._history else "connecting"

    def status(self) -> CameraStatus:
        """Its figures since it was added, whichever sites it was served by."""
        newest = self._newest or CameraStatus(self.name, self.address.shown, "connecting")
        totals = self._base.plus(newest, self._zero)
        served = self.site is not None
        return replace(
            newest,
            state=self.state,
            history=tuple(self._history),
            fps=newest.fps if served else 0.0,
            latency_ms=newest.latency_ms if served else None,
            latency_p95_ms=newest.latency_p95_ms if served else None,
            frames=totals.frames,
            dropped=dict(totals.dropped),
            reconnects=totals.reconnects,
            resets=totals.resets,
            changes=dict(totals.changes + self._own_changes),
        )

    def demand(self, settled: bool) -> CameraDemand:
        return CameraDemand(self.name, self.site, self._demand, settled)

    def update(self, status: CameraStatus, pixels: int) -> tuple[StateChange, ...]:
        """Take newer figures from its site; what has changed since.

        Args:
            pixels: of a frame at the network's size.
        """
        count = sum(status.changes.values())
        newly = (
            status.history[-(count - self._seen_changes) :] if count > self._seen_changes else ()
        )
        self._seen_changes = count
        self._history.extend(newly)
        self._newest = status
        self._measure(_Totals.of(status).offered, pixels)
        return newly

    def _measure(self, offered: int, pixels: int) -> None:
        now = time.monotonic()
        if self._measured is None or offered < self._measured[1]:
            self._measured = now, offered
        seconds = now - self._measured[0]
        if self.state != "live" or seconds < _LEAST_SECONDS:
            return
        demand = (offered - self._measured[1]) / seconds * pixels
        self._measured = now, offered
        usual = demand if self._demand is None else self._demand
        self._demand = usual + _NEW_WEIGHT * (demand - usual)

    def tell(self, state: str, reason: str) -> StateChange:
        """Note a change of state that no site knows of."""
        change = StateChange(time.time(), state, reason)
        self._history.append(change)
        self._own_changes[state] += 1
        return change

    def leave(self, last: CameraStatus | None = None) -> None:
        """No site serves it any more; its last figures there, if they are known."""
        if last is not None:
            self._newest = last
        if self._newest is not None:
            self._base = self._base.plus(self._newest, self._zero)
            self._newest = replace(
                self._newest, frames=0, dropped={}, reconnects=0, resets=0, changes={}
            )
        self._zero, self.site, self._measured = _Totals(), None, None

    def arrive(self, site: str, zero: CameraStatus | None = None) -> None:
        """A site serves it from now on, with figures that begin at `zero`."""
        self.site, self.settled_at = site, time.monotonic()
        self.confirmed_at = float("inf")
        self._zero = _Totals.of(zero) if zero is not None else _Totals()
        self._seen_changes = sum(self._zero.changes.values())
        if zero is not None:
            self._newest = zero
        begins_at = max(self._last_index + 1, self._base.offered)
        self._index_shift = begins_at - self._zero.offered

    def confirm(self, site: str) -> None:
        """The site has been told of it."""
        if self.site == site:
            self.confirmed_at = time.monotonic()

    def shown(self, shown: Shown) -> Shown | None:
        """A frame from its site as listeners see it, counted on; None if they have seen a later one."""
        index = shown.frame_index + self._index_shift
        if index <= self._last_index:
            return None
        self._last_index = index
        return replace(shown, frame_index=index)

    def end(self) -> None:
        """It is no longer wanted: its listeners see its end."""
        for feed in list(self.feeds):
            feed.end()
        self.feeds = []
