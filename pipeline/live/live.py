"""The live run: cameras that come and go, one network for all, and whoever listens to them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Lock, Thread
from types import TracebackType

from models.spec import Spec
from pipeline.engines import MakeEngine
from pipeline.errors import ConfigError
from pipeline.live.address import Address, check_name, parse_address, usual_name
from pipeline.live.delivery import CameraConfig, Delivery
from pipeline.live.hub import CameraStatus
from pipeline.live.labeller import Labelled, Labeller
from pipeline.live.lane import CameraHandle, Feed, Lane

MakeCamera = Callable[[str, Address, CameraConfig], CameraHandle]
_JOIN_SECONDS = 2.0
_CLOSE_SECONDS = 30.0  # for cameras that have a recording to close
_log = logging.getLogger(__name__)


class Listener:
    """What wants to know everything that happens. All methods come from the hub's threads, must not
    wait for anything, and do nothing here."""

    def camera_added(self, hub: LiveHub, name: str, shown_url: str) -> None:
        """A camera was added; its URL without the password."""

    def camera_news(self, name: str, delivery: Delivery) -> None:
        """What a camera did since the last time."""

    def labelled(self, labelled: Labelled) -> None:
        """A labelled frame."""

    def camera_gone(self, name: str) -> None:
        """A camera was removed."""


class LiveHub:
    """The `Hub` of a live run; a context manager that starts and stops it.

    Args:
        config: how cameras are opened and watched.
        make_engine: makes the engine for an input size.
        make_camera: makes a `Camera`, or one in a process of its own, of its name and address.
        longest_gap_seconds: a gap in a camera's frames up to this long keeps its memory.
        listeners: told of everything.

    Attributes:
        spec: of the model.
        failure: what ended the network, None while it works.
    """

    def __init__(
        self,
        config: CameraConfig,
        make_engine: MakeEngine,
        make_camera: MakeCamera,
        *,
        longest_gap_seconds: float = 1.0,
        listeners: tuple[Listener, ...] = (),
    ) -> None:
        self.spec: Spec = config.spec
        self._config, self._make_camera = config, make_camera
        self._listeners = listeners
        self._lock = Lock()
        self._lanes: dict[str, Lane] = {}
        self._labeller = Labeller(
            make_engine,
            self.lanes,
            self._labelled,
            classes=len(config.spec.classes),
            max_latency_seconds=config.max_latency_seconds,
            longest_gap_seconds=longest_gap_seconds,
        )

    def __enter__(self) -> LiveHub:
        self._labeller.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop every camera and the network. Listeners get the end of what they listen to."""
        self._labeller.stop(_JOIN_SECONDS)
        lanes = self.lanes()
        for lane in lanes:
            lane.stop()
        longest = _CLOSE_SECONDS if self._config.recorded else _JOIN_SECONDS
        deadline = time.monotonic() + longest
        for lane in lanes:
            lane.join(max(0.01, deadline - time.monotonic()))

    @property
    def failure(self) -> BaseException | None:
        return self._labeller.failure

    @property
    def over(self) -> bool:
        """Whether every camera there is has ended."""
        lanes = self.lanes()
        return bool(lanes) and all(lane.over for lane in lanes)

    def step_ms(self) -> dict[tuple[int, int], float]:
        """What a step of the network takes on average, for each input size in use."""
        return self._labeller.step_ms()

    def lanes(self) -> list[Lane]:
        with self._lock:
            return list(self._lanes.values())

    def cameras(self) -> list[CameraStatus]:
        """All cameras, in the order they were added."""
        return [lane.status() for lane in self.lanes()]

    def add(self, url: str, name: str | None = None) -> str:
        """Add a camera by its URL or device; never a file.

        Raises ConfigError for an unknown kind of URL, or a name that is taken or can be none.
        """
        return self.add_address(parse_address(url), name)

    def add_address(self, address: Address, name: str | None = None) -> str:
        """Add a camera, or a file to be played at its own pace; returns its name."""
        with self._lock:
            if name is not None and check_name(name) in self._lanes:
                raise ConfigError(f"there is a camera named {name!r} already: give another name")
            name = name or self._free_name(usual_name(address))
            camera = self._make_camera(name, address, self._config)
            lane = Lane(name, address, camera, self._labeller.wake, self._news)
            self._lanes[name] = lane
        for listener in self._listeners:
            _call(listener.camera_added, self, name, address.shown)
        lane.start()
        self._labeller.wake()
        return name

    def remove(self, name: str) -> None:
        """Stop and forget a camera. Raises KeyError if there is none of this name."""
        with self._lock:
            lane = self._lanes.pop(name)
        lane.stop()
        Thread(target=lane.join, args=(_CLOSE_SECONDS,), name="camera-close", daemon=True).start()
        self._labeller.wake()
        for listener in self._listeners:
            listener.camera_gone(name)

    def subscribe(self, camera: str, depth: int = 1) -> Feed:
        """Listen to a camera's frames. Raises KeyError if there is none of this name."""
        with self._lock:
            lane = self._lanes[camera]
        return lane.subscribe(depth)

    def _free_name(self, name: str) -> str:
        taken = {other.casefold() for other in self._lanes}
        number, free = 2, name
        while free.casefold() in taken:
            free, number = f"{name[:60]}_{number}", number + 1
        return free

    def _news(self, lane: Lane, delivery: Delivery) -> None:
        for listener in self._listeners:
            _call(listener.camera_news, lane.name, delivery)

    def _labelled(self, labelled: Labelled) -> None:
        for listener in self._listeners:
            _call(listener.labelled, labelled)


def _call(method: Callable[..., None], *arguments: object) -> None:
    """A listener that fails is told of, and harms no camera."""
    try:
        method(*arguments)
    except Exception:
        _log.exception("a listener of the live run failed")
