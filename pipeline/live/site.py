"""One of several networks of a live run: cameras, their network, and what they leave behind, on one machine.

A site is a whole live run of its own, with its queues and its policy of dropping; it is told from afar which
cameras it has. `Site` knows nothing of where it runs, and its methods may be called from several threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import Condition
from typing import Any, Protocol

from pipeline.errors import ConfigError
from pipeline.live.address import Address
from pipeline.live.delivery import Handover
from pipeline.live.hub import CameraStatus, Shown
from pipeline.live.labeller import Labelled
from pipeline.live.live import Listener, LiveHub

MakeHub = Callable[[tuple[Listener, ...]], LiveHub]


class SiteLostError(Exception):
    """A site does not answer any more, or its process or machine is gone."""


class Pending(Protocol):
    """An answer that is on its way."""

    def done(self) -> bool:
        """Whether `result` would return, or raise, at once."""
        ...

    def result(self, timeout_seconds: float) -> Any:
        """The answer; raises what the site raised, or SiteLostError, also when it takes too long."""
        ...


class SiteHandle(Protocol):
    """A site as it is seen from afar."""

    def ask(self, method: str, *arguments: Any) -> Pending:
        """Call one of the site's methods."""
        ...

    def kill(self) -> None:
        """End it, whatever it is doing."""
        ...


@dataclass(frozen=True)
class Expected:
    """What every node must have, so that a camera is labelled alike wherever it is.

    Attributes:
        version: of Roadmask.
        weights_sha256: of the model.
    """

    version: str
    weights_sha256: str


@dataclass(frozen=True)
class Place:
    """Where a site can be: a machine, or one GPU of it.

    Attributes:
        name: unique.
        shown: as it is told of.
        going: its machine is to be taken away.
    """

    name: str
    shown: str
    going: bool = False


class Places(Protocol):
    """The machines there are. They come and go."""

    def current(self) -> list[Place]: ...

    def open(self, place: Place) -> SiteHandle:
        """Begin to open a site there; its first answer shows whether that worked."""
        ...

    def want(self, sites: int) -> None:
        """Have machines for so many sites, if there is somebody who can start and stop them."""
        ...


@dataclass(frozen=True)
class SiteReport:
    """A site as it is now.

    Attributes:
        cameras: their figures.
        held: whether it could serve at once each camera that it holds for another site.
        kept: cameras' memories, of those it was asked to keep before.
        busy_seconds: its network has worked so far.
        pixels: it has labelled in that time.
        preparing: a network is being made.
        failure: what ended its network, None while it works.
        step_ms: what a step of the network takes, for each input size.
    """

    cameras: tuple[CameraStatus, ...] = ()
    held: dict[str, bool] = field(default_factory=dict)
    kept: dict[str, Handover] = field(default_factory=dict)
    busy_seconds: float = 0.0
    pixels: int = 0
    preparing: bool = False
    failure: str | None = None
    step_ms: dict[tuple[int, int], float] = field(default_factory=dict)


class Site:
    """A live run whose cameras are told to it.

    Args:
        make_hub: makes its hub with these listeners more.
        closing: closed after the hub has ended; its `problems` are told.
    """

    def __init__(self, make_hub: MakeHub, closing: Closing | None = None) -> None:
        self._window, self._closing = _Window(), closing
        self._stack = ExitStack()
        self._hub = self._stack.enter_context(make_hub((self._window,)))

    def add(self, name: str, address: Address, handed: Handover | None, held: bool) -> None:
        """Serve a camera; `held` until it is released. Raises ConfigError if it is here already."""
        self._hub.add_address(address, name, handed=handed, held=held)

    def remove(self, name: str) -> None:
        """Forget a camera, if it is here."""
        try:
            self._hub.remove(name)
        except KeyError:
            return

    def release(self, name: str, handed: Handover | None) -> CameraStatus:
        """Serve a held camera; its figures so far. Raises ConfigError if it is not here."""
        try:
            return self._hub.release(name, handed)
        except KeyError as error:
            raise ConfigError(f"there is no camera named {name!r}") from error

    def hand_over(self, name: str) -> tuple[CameraStatus, Handover | None]:
        """Serve a camera no longer: its last figures, and its memory. Raises ConfigError as above."""
        try:
            return self._hub.hand_over(name)
        except KeyError as error:
            raise ConfigError(f"there is no camera named {name!r}") from error

    def report(self, sizes: tuple[tuple[int, int], ...], keep: tuple[str, ...]) -> SiteReport:
        """How it is.

        Args:
            sizes: input sizes that networks are to be made for, needed here just now or not.
            keep: cameras whose memories are to be in one of the next reports.
        """
        hub, lanes = self._hub, self._hub.lanes()
        hub.prepare(sizes)
        effort = hub.effort
        return SiteReport(
            cameras=tuple(lane.status() for lane in lanes if not lane.held),
            held={lane.name: lane.rehearsed for lane in lanes if lane.held},
            kept=hub.checkpoints(keep),
            busy_seconds=effort.busy_seconds,
            pixels=effort.pixels,
            preparing=hub.preparing,
            failure=str(hub.failure) if hub.failure is not None else None,
            step_ms=hub.step_ms(),
        )

    def shown(self, wanted: tuple[str, ...], timeout_seconds: float) -> tuple[Shown, ...]:
        """The newest labelled frame of each of these cameras, of those that have a new one."""
        return self._window.take(frozenset(wanted), timeout_seconds)

    def close(self) -> tuple[str, ...]:
        """Stop all cameras and the network; what went wrong with what they leave behind."""
        self._stack.close()
        if self._closing is None:
            return ()
        self._closing.close()
        return self._closing.problems


class Closing(Protocol):
    """What a live run leaves behind."""

    @property
    def problems(self) -> tuple[str, ...]: ...

    def close(self) -> None: ...


class _Window(Listener):
    """The newest frames of the cameras that somebody looks at."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._wanted: frozenset[str] = frozenset()
        self._newest: dict[str, Shown] = {}

    def labelled(self, labelled: Labelled) -> None:
        name = labelled.shown.camera
        if name in self._wanted:
            with self._changed:
                self._newest[name] = labelled.shown
                self._changed.notify_all()

    def take(self, wanted: frozenset[str], timeout_seconds: float) -> tuple[Shown, ...]:
        ends_at = time.monotonic() + timeout_seconds
        with self._changed:
            self._wanted = wanted
            self._newest = {name: found for name, found in self._newest.items() if name in wanted}
            while not self._newest and (left := ends_at - time.monotonic()) > 0:
                self._changed.wait(left)
            found, self._newest = tuple(self._newest.values()), {}
        return found
