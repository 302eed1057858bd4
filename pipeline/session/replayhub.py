"""A replay as the view sees it: the same `Hub` as a live run's, and what steers it."""

from __future__ import annotations

import time
from collections import deque
from threading import Lock

import numpy as np

from models.spec import Spec
from pipeline.errors import ConfigError
from pipeline.live.hub import CameraStatus, Shown, StateChange
from pipeline.live.labeller import class_shares
from pipeline.live.lane import Feed
from pipeline.session.player import Player
from pipeline.session.source import ReplayedFrame

_WINDOW_SECONDS = 5.0
_HISTORY = 50


class _Camera:
    """What is known of one camera at the replay's position."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.feeds: set[Feed] = set()
        self.history: deque[StateChange] = deque(maxlen=_HISTORY)
        self.let_go: deque[float] = deque()
        self.latencies_ms: deque[float] = deque(maxlen=100)
        self.frames = self.reconnects = self.resets = 0
        self.connection: int | None = None
        self.size_hw: tuple[int, int] | None = None
        self.shares: np.ndarray | None = None

    def take_note(self, frame: ReplayedFrame, classes: int) -> None:
        """Bring the figures up to a frame."""
        now = time.monotonic()
        self.let_go.append(now)
        while now - self.let_go[0] > _WINDOW_SECONDS:
            self.let_go.popleft()
        if self.connection is None:
            self.history.append(StateChange(frame.captured_at, "live", "replayed"))
        elif frame.connection > self.connection:
            self.reconnects += 1
            self.history.append(StateChange(frame.captured_at, "live", "it was opened anew"))
        self.connection, self.size_hw = frame.connection, frame.size_hw
        self.frames += 1
        self.resets += frame.reset and self.frames > 1
        if frame.recorded is not None:
            self.latencies_ms.append(frame.recorded.record.latency_ms)
        self.shares = class_shares(frame.labels, classes)

    def status(self, session: str, over: bool) -> CameraStatus:
        span = self.let_go[-1] - self.let_go[0] if len(self.let_go) > 1 else 0.0
        return CameraStatus(
            name=self.name,
            url=session,
            state="ended" if over else "live" if self.frames else "connecting",
            history=tuple(self.history),
            size_hw=self.size_hw,
            fps=(len(self.let_go) - 1) / span if span > 0 else 0.0,
            latency_ms=float(np.median(self.latencies_ms)) if self.latencies_ms else None,
            frames=self.frames,
            reconnects=self.reconnects,
            resets=self.resets,
            shares=self.shares,
        )


class ReplayHub:
    """The cameras of a replay; see `Hub`. Give `on_frame` to the `Player`, and the player to `steer`.

    Attributes:
        spec: of the model that labels now.
        playback: plays, pauses, steps and seeks; None before `steer`.
    """

    def __init__(self, spec: Spec, cameras: tuple[str, ...], session: str) -> None:
        self.spec = spec
        self.playback: Player | None = None
        self._session = session
        self._cameras = {name: _Camera(name) for name in cameras}
        self._lock = Lock()

    def steer(self, player: Player) -> None:
        """Say what plays."""
        self.playback = player

    def on_frame(self, frame: ReplayedFrame) -> None:
        """Show a frame to all who listen to its camera."""
        now = time.time()
        # The time of the replay: viewers drop what is old.
        shown = Shown(frame.camera, frame.frame_index, now, now, frame.planes, frame.labels)
        with self._lock:
            camera = self._cameras.get(frame.camera)
            if camera is None:
                return
            camera.take_note(frame, len(self.spec.classes))
            feeds = list(camera.feeds)
        for feed in feeds:
            feed.put(shown)

    def cameras(self) -> list[CameraStatus]:
        """All cameras, in the order of their names."""
        tallies = self.playback.tallies if self.playback else {}
        with self._lock:
            return [
                camera.status(self._session, name in tallies and tallies[name].over)
                for name, camera in self._cameras.items()
            ]

    def add(self, url: str, name: str | None = None) -> str:
        """Raises ConfigError: a replay has the cameras that were recorded."""
        raise ConfigError("this is a replay: it has the cameras that were recorded, and no others")

    def remove(self, name: str) -> None:
        """Show a camera no longer. Raises KeyError if there is none of this name."""
        with self._lock:
            camera = self._cameras.pop(name)
        for feed in list(camera.feeds):
            feed.end()

    def subscribe(self, camera: str, depth: int = 1) -> Feed:
        """Listen to a camera's frames. Raises KeyError if there is none of this name."""
        with self._lock:
            found = self._cameras[camera]
            feed = Feed(depth, found.feeds.discard)
            found.feeds.add(feed)
            return feed

    def close(self) -> None:
        """End all that listen."""
        with self._lock:
            feeds = [feed for camera in self._cameras.values() for feed in camera.feeds]
        for feed in feeds:
            feed.end()
