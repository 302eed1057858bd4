"""A camera goes to a site, or from one to another with its memory, without a break where that can be."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import replace
from threading import Event, RLock
from typing import Any

from pipeline.errors import PipelineError
from pipeline.live.delivery import Handover
from pipeline.live.hub import CameraStatus
from pipeline.live.member import Member
from pipeline.live.site import SiteLostError
from pipeline.live.sites import FleetConfig, KnownSite

_CALL_SECONDS = 10.0  # a site that is alive answers in milliseconds, when it is busy in two seconds
_log = logging.getLogger(__name__)


class Mover:
    """Carries out what was decided. Its methods wait for sites, and may run in several threads.

    Args:
        pace: how long to wait.
        lock: guards members.
        stopping: set when the fleet ends.
    """

    def __init__(self, pace: FleetConfig, lock: RLock, stopping: Event) -> None:  # type: ignore[valid-type]
        self._pace, self._lock, self._stopping = pace, lock, stopping

    def serve(self, member: Member, target: KnownSite) -> None:
        """A camera that has arrived at a site begins there; if that fails, it has no site again."""
        try:
            self._call(target, "add", member.name, member.address, member.handed, False)
            with self._lock:
                member.confirm(target.name)
        except (SiteLostError, PipelineError) as error:
            _log.info("%s did not come to %s: %s", member.name, target.place.shown, error)
            with self._lock:
                if member.site == target.name:
                    member.leave()

    def move(self, member: Member, source: KnownSite, target: KnownSite) -> bool:
        """A camera whose `target` is set goes there; whether it did. Whatever happens, it is not lost."""
        try:
            self._call(target, "add", member.name, member.address, None, True)
            ready = self._await_ready(member, source, target)
            if not ready and not source.place.going:  # no more than a better balance was at stake
                self._call(target, "remove", member.name)
                return False
            self._hand_over(member, source, target, ready)
        except (SiteLostError, PipelineError) as error:
            _log.info("%s did not move to %s: %s", member.name, target.place.shown, error)
            return False
        finally:
            with self._lock:
                member.target, member.settled_at = None, time.monotonic()
        return True

    def _call(self, site: KnownSite, method: str, *arguments: Any) -> Any:
        return site.handle.ask(method, *arguments).result(_CALL_SECONDS)

    def _await_ready(self, member: Member, source: KnownSite, target: KnownSite) -> bool:
        """Whether the target can serve the camera, or must, since the source is lost."""
        ends_at = time.monotonic() + self._pace.ready_seconds
        while time.monotonic() < ends_at and not self._stopping.is_set():
            if target.lost:
                raise SiteLostError("it was lost")
            if source.lost or (target.report and target.report.held.get(member.name)):
                return True
            self._stopping.wait(0.02)
        return False

    def _hand_over(self, member: Member, source: KnownSite, target: KnownSite, ready: bool) -> None:
        if not ready:  # perhaps the camera can be opened by one at a time
            self._call(target, "remove", member.name)
        last: CameraStatus | None = None
        handed: Handover | None = member.handed
        if not source.lost:
            with suppress(SiteLostError):
                last, handed = self._call(source, "hand_over", member.name)
        with self._lock:
            if member.site == source.name:  # else it left when the site was lost
                member.leave(last)
            member.handed = handed
            if not ready or last is None:
                self.lend_time(member)
        zero = None
        if ready:
            zero = self._call(target, "release", member.name, member.handed)
        else:
            self._call(target, "add", member.name, member.address, member.handed, False)
        with self._lock:
            if not target.lost:
                member.arrive(target.name, zero)
                member.confirm(target.name)

    def lend_time(self, member: Member) -> None:
        """A longer gap than usual may be before its next frame."""
        if member.handed is not None:
            longest = self._pace.longest_loss_seconds
            member.handed = replace(member.handed, longest_gap_seconds=longest)
