"""The sites of a fleet as they come and go: opened where there is a place, asked how they are, given up."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from typing import Any

from pipeline.errors import PipelineError, StageError
from pipeline.live.site import Pending, Place, Places, SiteHandle, SiteLostError, SiteReport
from pipeline.live.spread import SiteLoad

_LEAST_BUSY_SECONDS = 0.05  # of work, to tell a site's rate by
_NEW_WEIGHT = 0.3  # of the newest in running means
_LONGEST_SHUT_SECONDS = 60.0  # before a place that fails again and again is tried once more
Question = tuple[tuple[tuple[int, int], ...], tuple[str, ...]]


@dataclass(frozen=True)
class FleetConfig:
    """How a fleet is watched and moved; all in seconds.

    Attributes:
        report_seconds: sites are asked how they are so often.
        lost_seconds: one that has not answered for so long is lost.
        open_seconds: how long opening one may take.
        places_seconds: how often machines are looked for.
        checkpoint_seconds: how often each camera's memory is fetched.
        longest_loss_seconds: a gap up to this long keeps the memory of a camera whose site was lost.
        settled_seconds: a camera is not moved for the balance again before.
        ready_seconds: how long a site may take to open a camera that is to move to it.
        gather_seconds: at the start, how long the first sites wait for the others.
    """

    report_seconds: float = 0.5
    lost_seconds: float = 3.0
    open_seconds: float = 120.0
    places_seconds: float = 2.0
    checkpoint_seconds: float = 2.0
    longest_loss_seconds: float = 10.0
    settled_seconds: float = 30.0
    ready_seconds: float = 15.0
    gather_seconds: float = 10.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value}")


class KnownSite:
    """A site, and what is known of it.

    Attributes:
        name: its place's.
        place, handle: where it is, and how to ask it.
        report: its latest, None while it is being opened.
        asked_at: `time.monotonic()` at which the report was asked for that comes next, or came last.
        rate: pixels it labels in a second of work, None while it has done none.
        lost: it was given up.
    """

    def __init__(self, place: Place, handle: SiteHandle) -> None:
        self.name, self.place, self.handle = place.name, place, handle
        self.asked: Pending | None = handle.ask("report", (), ())
        self.asked_at = time.monotonic()
        self.report: SiteReport | None = None
        self.rate: float | None = None
        self.lost = False
        self._measured = (0.0, 0)

    def take(self, report: SiteReport) -> None:
        self.report = report
        busy_seconds = report.busy_seconds - self._measured[0]
        if busy_seconds > _LEAST_BUSY_SECONDS:
            rate = (report.pixels - self._measured[1]) / busy_seconds
            self._measured = report.busy_seconds, report.pixels
            usual = rate if self.rate is None else self.rate
            self.rate = usual + _NEW_WEIGHT * (rate - usual)

    def load(self) -> SiteLoad:
        taking = self.report is not None and not self.place.going
        return SiteLoad(self.name, self.rate or None, taking)


class Sites:
    """All sites there are. Its methods are for one thread, but for `known` and `get`.

    Args:
        places: where sites can be.
        pace: how often to look, and how long to wait.
        say: told in a line what becomes of them.
        question: what to ask a site for in its next report.
        heard, lost: called with a site's report; with a site that was given up, and why.

    Attributes:
        failure: what ended the last site there was, where it would end others as well.
    """

    def __init__(
        self,
        places: Places,
        pace: FleetConfig,
        say: Callable[[str], None],
        question: Callable[[KnownSite], Question],
        heard: Callable[[KnownSite, SiteReport], None],
        lost: Callable[[KnownSite, str], None],
    ) -> None:
        self._places, self._pace, self._say = places, pace, say
        self._question, self._heard, self._lost = question, heard, lost
        self._lock = Lock()
        self._sites: dict[str, KnownSite] = {}
        self._shut: dict[str, float] = {}  # places that failed, and until when they are left alone
        self._failures: dict[str, int] = {}
        self._told: set[str] = set()
        self._looked_at = float("-inf")
        self.failure: BaseException | None = None

    def known(self) -> list[KnownSite]:
        with self._lock:
            return list(self._sites.values())

    def get(self, name: str | None) -> KnownSite | None:
        with self._lock:
            return self._sites.get(name or "")

    def look(self) -> list[KnownSite]:
        """Open sites at new places, and give up those whose places are gone; the new ones."""
        now = time.monotonic()
        if now - self._looked_at < self._pace.places_seconds:
            return []
        self._looked_at = now
        current = {place.name: place for place in self._places.current()}
        opened = []
        for name, place in current.items():
            site = self.get(name)
            if site is not None:
                if place.going and not site.place.going:
                    self._say(f"{place.shown} is to go: its cameras move")
                site.place = place
            elif not place.going and now >= self._shut.get(name, 0.0):
                site = KnownSite(place, self._places.open(place))
                opened.append(site)
                with self._lock:
                    self._sites[name] = site
        for site in self.known():
            if site.name not in current:
                self.lose(site, "is gone")
        return opened

    def hear(self, site: KnownSite) -> None:
        """Take a site's report, or find that it is lost; and ask for the next."""
        now = time.monotonic()
        if site.asked is None:
            if now - site.asked_at >= self._pace.report_seconds:
                site.asked_at = now
                site.asked = site.handle.ask("report", *self._question(site))
        elif site.asked.done():
            try:
                asked, site.asked = site.asked, None
                self._receive(site, asked.result(1.0))
            except SiteLostError as error:
                self.lose(site, str(error))
            except PipelineError as error:
                self.lose(site, str(error), error)
        else:
            patience = self._pace.open_seconds if site.report is None else self._pace.lost_seconds
            if now - site.asked_at > patience:
                self.lose(site, f"has not answered for {patience:g} s")

    def _receive(self, site: KnownSite, report: SiteReport) -> None:
        if report.failure is not None:
            raise StageError(report.failure)
        if site.report is None:
            self._say(f"{site.place.shown} is ready")
            self._failures.pop(site.name, None)
        site.take(report)
        self._heard(site, report)

    def lose(self, site: KnownSite, reason: str, error: PipelineError | None = None) -> None:
        """Give a site up; its place is tried again after a while."""
        site.lost = True
        site.handle.kill()
        failures = self._failures[site.name] = self._failures.get(site.name, 0) + 1
        wait = min(_LONGEST_SHUT_SECONDS, 2.0 ** min(failures, 10))
        self._shut[site.name] = time.monotonic() + wait
        with self._lock:
            self._sites.pop(site.name, None)
        line = f"{site.place.shown}: {reason}"
        if failures == 1 or line not in self._told:
            self._told.add(line)
            self._say(line)
        if error is not None and not self.known():
            self.failure = error
        self._lost(site, reason)

    def close(self, timeout_seconds: float) -> tuple[str, ...]:
        """End all sites; what went wrong with what they leave behind."""
        ends: list[tuple[KnownSite, Any]] = [
            (site, site.handle.ask("close")) for site in self.known() if site.report is not None
        ]
        deadline = time.monotonic() + timeout_seconds
        problems: list[str] = []
        for _, end in ends:
            with suppress(SiteLostError, PipelineError):
                problems += end.result(max(0.1, deadline - time.monotonic()))
        for site in self.known():
            site.handle.kill()
        return tuple(problems)
