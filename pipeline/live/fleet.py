"""Cameras spread over the networks of several machines, and moved with their memories as these come and go.

`Fleet` is the hub of such a run. It decides, by `spread`, which site serves which camera, and has it carried
out:

- A camera that has a site moves without a break: the new site opens it too and gets ready, then the old one
  stops and its memory, of the last frame it labelled, goes to the new one.
- When a site is lost, its cameras begin elsewhere with the memory that was fetched last, every
  `checkpoint_seconds`: what it has seen since is lost, and the frames until it is served again. The memory
  is taken if it is no older than `longest_loss_seconds`, else the camera begins anew, which is counted.

It holds no frames but the newest ones of cameras somebody listens to. It must live as long as the run does:
sites end with it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Event, RLock, Thread

from models.spec import Spec
from pipeline.closing import Closing
from pipeline.errors import ConfigError, PipelineError
from pipeline.live.address import (
    Address,
    check_anywhere,
    check_name,
    free_name,
    parse_address,
    usual_name,
)
from pipeline.live.delivery import CameraConfig, Delivery
from pipeline.live.hub import CameraStatus, Shown, StateChange
from pipeline.live.lane import Feed
from pipeline.live.live import Listener
from pipeline.live.member import Member
from pipeline.live.moving import Mover
from pipeline.live.site import Places, SiteLostError, SiteReport
from pipeline.live.sites import FleetConfig, KnownSite, Question, Sites
from pipeline.live.spread import Move, spread, wanted_sites

_AT_ONCE = 16  # cameras that are being placed or moved
_MOST_KEPT = 16  # memories in one report, two megabytes each
_log = logging.getLogger(__name__)


class Fleet(Closing):
    """The hub of a live run over several machines; a context manager that starts and stops it.

    Args:
        config: how cameras are opened and watched.
        places: the machines.
        listeners: told of cameras' changes of state; frames they get by `subscribe` alone.
        say: told in a line what becomes of the machines.
        pace: how often it looks, and how long it waits.

    Attributes:
        spec: of the model.
        problems: what went wrong with outputs, once it is closed.
    """

    def __init__(
        self,
        config: CameraConfig,
        places: Places,
        *,
        listeners: tuple[Listener, ...] = (),
        say: Callable[[str], None] = lambda line: None,
        pace: FleetConfig | None = None,
    ) -> None:
        self.spec: Spec = config.spec
        self.problems: tuple[str, ...] = ()
        self._config, self._places, self._pace = config, places, pace or FleetConfig()
        self._listeners = listeners
        self._lock = RLock()
        self._members: dict[str, Member] = {}
        self._failure: BaseException | None = None
        self._begun_at: float | None = None
        self._wanted = 0
        self._stopping, self._woken, self._listening = Event(), Event(), Event()
        self._sites = Sites(places, self._pace, say, self._question, self._heard, self._lost)
        self._mover = Mover(self._pace, self._lock, self._stopping)
        self._pool = ThreadPoolExecutor(_AT_ONCE, "fleet")
        self._thread = Thread(target=self._run, name="fleet", daemon=True)

    def __enter__(self) -> Fleet:
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop every site. Listeners get the end of what they listen to."""
        if self._stopping.is_set():
            return
        for event in (self._stopping, self._woken, self._listening):
            event.set()
        self._thread.join(10.0)
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.problems = self._sites.close(30.0)
        if self._wanted:
            # Else the autoscaler keeps the nodes until somebody asks for others.
            self._places.want(0)
        with self._lock:
            for member in self._members.values():
                member.end()

    # What the outside sees.

    @property
    def failure(self) -> BaseException | None:
        """Why it can't go on, None while it can."""
        return self._failure or self._sites.failure

    @property
    def over(self) -> bool:
        """Whether every camera there is has been given up."""
        with self._lock:
            members = list(self._members.values())
        return bool(members) and all(member.state == "ended" for member in members)

    @property
    def preparing(self) -> bool:
        """Networks are made elsewhere, not in this process."""
        return False

    def step_ms(self) -> dict[tuple[int, int], float]:
        """What a step of the slowest network takes, for each input size in use."""
        found: dict[tuple[int, int], float] = {}
        for site in self._sites.known():
            for size, step_ms in site.report.step_ms.items() if site.report else ():
                found[size] = max(step_ms, found.get(size, 0.0))
        return found

    def where(self) -> dict[str, str | None]:
        """The place each camera is served at, None for those that are not."""
        with self._lock:
            return {member.name: member.site for member in self._members.values()}

    def cameras(self) -> list[CameraStatus]:
        """All cameras, in the order they were added."""
        with self._lock:
            return [member.status() for member in self._members.values()]

    def add(self, url: str, name: str | None = None) -> str:
        """Add a camera by its URL. Raises ConfigError as `LiveHub.add`, and as `add_address`."""
        return self.add_address(parse_address(url), name)

    def add_address(self, address: Address, name: str | None = None) -> str:
        """Add a camera; returns its name. Raises ConfigError for one that not every machine can reach."""
        check_anywhere(address)
        with self._lock:
            if name is not None and check_name(name) in self._members:
                raise ConfigError(f"there is a camera named {name!r} already: give another name")
            name = name or free_name(usual_name(address), self._members)
            member = self._members[name] = Member(name, address)
        self._tell(member, "connecting", "waits for a network")
        self._woken.set()
        return name

    def remove(self, name: str) -> None:
        """Stop and forget a camera. Raises KeyError if there is none of this name."""
        with self._lock:
            member = self._members.pop(name)
            member.end()
        site = self._sites.get(member.site)
        if site is not None:
            self._pool.submit(_remove, site, name)
        for listener in self._listeners:
            listener.camera_gone(name)

    def subscribe(self, camera: str, depth: int = 1) -> Feed:
        """Listen to a camera's frames. Raises KeyError if there is none of this name."""
        with self._lock:
            feed = Feed(depth, self._unsubscribe)
            self._members[camera].feeds.append(feed)
        self._listening.set()
        return feed

    def _unsubscribe(self, feed: Feed) -> None:
        with self._lock:
            for member in self._members.values():
                if feed in member.feeds:
                    member.feeds.remove(feed)

    def listen(self, listener: Listener) -> None:
        """Tell one more of the cameras' changes of state."""
        self._listeners = (*self._listeners, listener)

    # The fleet's own thread.

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._woken.clear()
            try:
                for site in self._sites.look():
                    Thread(target=self._pull, args=(site,), name="frames", daemon=True).start()
                for site in self._sites.known():
                    self._sites.hear(site)
                self._order()
            except Exception as error:  # for the owner: cameras would stay where they are for ever
                _log.exception("the fleet's own thread failed")
                self._failure = error
                return
            self._woken.wait(self._pace.report_seconds / 4)

    def _question(self, site: KnownSite) -> Question:
        """Input sizes in use anywhere, so that every site is ready for every camera; and the names of
        the site's cameras whose memories were fetched longest ago."""
        now, due, sizes = time.monotonic(), [], set()
        with self._lock:
            for member in self._members.values():
                if member.size_hw is not None:
                    sizes.add(self._config.model_hw(member.size_hw))
                kept_for = now - member.kept_at
                if member.site == site.name and kept_for >= self._pace.checkpoint_seconds:
                    due.append((-kept_for, member.name))
        return tuple(sorted(sizes)), tuple(name for _, name in sorted(due)[:_MOST_KEPT])

    def _heard(self, site: KnownSite, report: SiteReport) -> None:
        news = []
        with self._lock:
            for status in report.cameras:
                member = self._members.get(status.name)
                if member is not None and member.site == site.name:
                    news.append((member, member.update(status, self._pixels(status.size_hw))))
            for name, handed in report.kept.items():
                member = self._members.get(name)
                if member is not None and member.site == site.name:
                    member.handed, member.kept_at = handed, time.monotonic()
            strays = self._strays(site, report)
            self._miss(site, report)
        for name in strays:
            self._pool.submit(_remove, site, name)
        for member, changes in news:
            self._spread_news(member, changes)

    def _strays(self, site: KnownSite, report: SiteReport) -> list[str]:
        """Cameras that the site has and should not: they went elsewhere when it could not be asked."""
        found = []
        for name in (*(status.name for status in report.cameras), *report.held):
            member = self._members.get(name)
            if member is None or site.name not in (member.site, member.target):
                found.append(name)
        return found

    def _miss(self, site: KnownSite, report: SiteReport) -> None:
        """Cameras that the site was told of and does not have are placed anew."""
        here = {status.name for status in report.cameras}
        for member in self._members.values():
            known_to_it = member.site == site.name and member.confirmed_at < site.asked_at
            if known_to_it and member.target is None and member.name not in here:
                member.leave()

    def _pixels(self, size_hw: tuple[int, int] | None) -> int:
        height, width = self._config.model_hw(size_hw) if size_hw is not None else (0, 0)
        return height * width

    def _lost(self, site: KnownSite, reason: str) -> None:
        """The cameras of a site that was given up are placed anew, with the memories there are."""
        with self._lock:
            members = [m for m in self._members.values() if m.site == site.name]
            for member in members:
                member.leave()
                self._mover.lend_time(member)
        for member in members:
            self._tell(member, "reconnecting", f"{site.place.shown} was lost: {reason}")
        self._woken.set()

    # Who serves whom.

    def _order(self) -> None:
        sites = self._sites.known()
        if not self._gathered(sites):
            return
        settled_before = time.monotonic() - self._pace.settled_seconds
        with self._lock:
            demands = [
                member.demand(settled=member.settled_at < settled_before)
                for member in self._members.values()
                if member.target is None and member.state != "ended"
            ]
            moving = any(member.target for member in self._members.values())
        loads = [site.load() for site in sites]
        for move in spread(loads, demands, most_reliefs=0 if moving else 2):
            self._begin(move)
        wanted = wanted_sites(loads, demands)
        if wanted != self._wanted and demands:
            self._wanted = wanted
            self._places.want(wanted)

    def _gathered(self, sites: list[KnownSite]) -> bool:
        """Whether it is time to place cameras: at the start, the first site waits for the others."""
        ready = sum(site.report is not None for site in sites)
        if ready and self._begun_at is None:
            self._begun_at = time.monotonic()
        if self._begun_at is None:
            return False
        return ready == len(sites) or time.monotonic() - self._begun_at > self._pace.gather_seconds

    def _begin(self, move: Move) -> None:
        with self._lock:
            member, target = self._members.get(move.camera), self._sites.get(move.to)
            if member is None or target is None:
                return
            source = self._sites.get(member.site)
            if source is None:
                member.arrive(target.name)
            else:
                member.target = target.name
        if source is None:
            self._pool.submit(self._mover.serve, member, target)
        else:
            self._pool.submit(self._move, member, source, target)

    def _move(self, member: Member, source: KnownSite, target: KnownSite) -> None:
        if self._mover.move(member, source, target):
            self._tell(member, "live", f"moved to {target.place.shown}")
        self._woken.set()

    # Frames and news.

    def _pull(self, site: KnownSite) -> None:
        """Bring the newest frames of those of a site's cameras that somebody listens to."""
        while not (site.lost or self._stopping.is_set()):
            with self._lock:
                members = [m for m in self._members.values() if m.site == site.name and m.feeds]
            if not members:
                self._listening.clear()
                self._listening.wait(self._pace.report_seconds)
                continue
            wanted = tuple(member.name for member in members)
            try:
                found = site.handle.ask("shown", wanted, 0.5).result(self._pace.open_seconds)
            except (SiteLostError, PipelineError):  # whether it is lost is found out elsewhere
                self._stopping.wait(self._pace.report_seconds)
                continue
            for shown in found:
                self._hand_out(site, shown)

    def _hand_out(self, site: KnownSite, shown: Shown) -> None:
        with self._lock:
            member = self._members.get(shown.camera)
            if member is None or member.site != site.name:
                return
            counted, feeds = member.shown(shown), list(member.feeds)
        if counted is not None:
            for feed in feeds:
                feed.put(counted)

    def _tell(self, member: Member, state: str, reason: str) -> None:
        with self._lock:
            change = member.tell(state, reason)
        self._spread_news(member, (change,))

    def _spread_news(self, member: Member, changes: tuple[StateChange, ...]) -> None:
        for listener in self._listeners if changes else ():
            with suppress(Exception):
                listener.camera_news(member.name, Delivery(changes=changes))


def _remove(site: KnownSite, name: str) -> None:
    with suppress(SiteLostError, PipelineError):
        site.handle.ask("remove", name).result(10.0)
