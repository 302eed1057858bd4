"""The live run: cameras that come and go, one network for all, and whoever listens to them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from threading import Lock, Thread

from models.spec import Spec
from pipeline.closing import Closing
from pipeline.engines import MakeEngine
from pipeline.errors import ConfigError
from pipeline.live.address import Address, check_name, free_name, parse_address, usual_name
from pipeline.live.delivery import CameraConfig, Delivery, Handover
from pipeline.live.hub import CameraStatus
from pipeline.live.labeller import Effort, Labelled, Labeller
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


class LiveHub(Closing):
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

    def prepare(self, sizes: Collection[tuple[int, int]]) -> None:
        """Make the networks of these input sizes before a camera needs them, and keep them."""
        self._labeller.prepare(sizes)

    @property
    def preparing(self) -> bool:
        """Whether a network is being made just now."""
        return self._labeller.preparing

    @property
    def effort(self) -> Effort:
        """What the network has done so far."""
        return self._labeller.effort

    def listen(self, listener: Listener) -> None:
        """One more listener; it is told of the cameras that come from now on."""
        self._listeners = (*self._listeners, listener)

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

    def add_address(
        self,
        address: Address,
        name: str | None = None,
        *,
        handed: Handover | None = None,
        held: bool = False,
    ) -> str:
        """Add a camera, or a file to be played at its own pace; returns its name.

        Args:
            handed: the memory it brings from another network.
            held: another network still serves it: it is opened, and labelled after `release` only.
        """
        with self._lock:
            if name is not None and check_name(name) in self._lanes:
                raise ConfigError(f"there is a camera named {name!r} already: give another name")
            name = name or free_name(usual_name(address), self._lanes)
            camera = self._make_camera(name, address, self._config)
            lane = Lane(name, address, camera, self._labeller.wake, self._news)
            lane.handed, lane.held = handed, held
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

    def release(self, name: str, handed: Handover | None) -> CameraStatus:
        """Label a held camera from now on. Raises KeyError if there is none of this name.

        Args:
            handed: the memory it brings from the network that served it so far.

        Returns:
            its figures up to now.
        """
        with self._lock:
            lane = self._lanes[name]
        status = lane.status()
        lane.handed, lane.held = handed, False
        return status

    def hand_over(self, name: str) -> tuple[CameraStatus, Handover | None]:
        """Stop labelling a camera and forget it: its last figures, and the memory for another network.

        Raises KeyError if there is none of this name.
        """
        with self._lock:
            lane = self._lanes[name]
        lane.leaving = True
        self._labeller.wake()
        lane.left.wait(_JOIN_SECONDS)  # a step of the network
        status = lane.status()
        self.remove(name)
        return status, lane.handed

    def checkpoints(self, wanted: Collection[str]) -> dict[str, Handover]:
        """Memories of cameras, of those asked for before; those of `wanted` follow their next frames."""
        found = {}
        for lane in self.lanes():
            if lane.checkpoint is not None:
                found[lane.name], lane.checkpoint = lane.checkpoint, None
            lane.checkpoint_wanted |= lane.name in wanted
        return found

    def subscribe(self, camera: str, depth: int = 1) -> Feed:
        """Listen to a camera's frames. Raises KeyError if there is none of this name."""
        with self._lock:
            lane = self._lanes[camera]
        return lane.subscribe(depth)

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
