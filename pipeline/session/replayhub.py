"""A replay as the view sees it: the same `Hub` as a live run's, and what steers it."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace
from threading import Lock

import numpy as np

from models.spec import Spec
from pipeline.errors import ConfigError
from pipeline.live.hub import CameraStatus, Shown, StateChange
from pipeline.live.labeller import class_shares
from pipeline.live.lane import Feed
from pipeline.session.player import Player
from pipeline.session.reader import Session
from pipeline.session.source import ReplayedFrame
from pipeline.session.timeline import CameraTimeline, Timeline

_WINDOW_SECONDS = 5.0
_HISTORY = 50


class _Camera:
    """What is known of one camera at the replay's position."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.feeds: set[Feed] = set()
        self.let_go: deque[float] = deque()
        self.latencies_ms: deque[float] = deque(maxlen=100)
        self.frames = self.resets = 0
        self.size_hw: tuple[int, int] | None = None
        self.shares: np.ndarray | None = None
        self.last: Shown | None = None

    def take_note(self, frame: ReplayedFrame) -> None:
        """Bring the figures up to a frame that was let go."""
        self.let_go.append(time.monotonic())
        self._forget_old()
        self.frames += 1
        self.resets += frame.reset and self.frames > 1
        if frame.recorded is not None:
            self.latencies_ms.append(frame.recorded.record.latency_ms)

    def see(self, frame: ReplayedFrame, number: int, classes: int) -> Shown:
        """What viewers get: at the time of the replay, for they drop what is old."""
        now = time.time()
        self.size_hw, self.shares = frame.size_hw, class_shares(frame.labels, classes)
        self.last = Shown(self.name, number, now, now, frame.planes, frame.labels)
        return self.last

    def status(self, source: str, timeline: Timeline, position: float, over: bool) -> CameraStatus:
        self._forget_old()
        known = timeline.cameras[self.name]
        history = tuple(
            StateChange(timeline.began_at + at, state, reason)
            for at, state, reason in known.states_until(position, _HISTORY)
        )
        span = self.let_go[-1] - self.let_go[0] if len(self.let_go) > 1 else 0.0
        latencies = sorted(self.latencies_ms)
        return CameraStatus(
            name=self.name,
            url=source,
            state="ended" if over else self._state(known, history),
            history=history,
            size_hw=self.size_hw,
            fps=(len(self.let_go) - 1) / span if span > 0 else 0.0,
            latency_ms=float(np.median(latencies)) if latencies else None,
            latency_p95_ms=latencies[int(0.95 * len(latencies))] if latencies else None,
            frames=self.frames,
            dropped=known.dropped_until(position),
            reconnects=known.reconnects_until(position),
            resets=self.resets,
            shares=self.shares,
        )

    def _state(self, known: CameraTimeline, history: tuple[StateChange, ...]) -> str:
        """As it was recorded; a camera whose states are not known is live once it is seen."""
        if history and known.states:
            return history[-1].state
        return "live" if self.last is not None else "connecting"

    def _forget_old(self) -> None:
        horizon = time.monotonic() - _WINDOW_SECONDS
        while self.let_go and self.let_go[0] < horizon:
            self.let_go.popleft()


class ReplayHub:
    """The cameras of a replay; see `Hub`. Give `on_frame` and `show` to the `Player`, and it to `steer`.

    Attributes:
        spec: of the model that labels now.
        playback: plays, pauses, steps and seeks; None before `steer`.
        timeline: what happened in the session, and when.
    """

    def __init__(self, spec: Spec, session: Session) -> None:
        self.spec = spec
        self.playback: Player | None = None
        self.timeline = Timeline(session)
        # By its name alone: where it lies is nobody's business.
        self._source = f"session {session.folder.resolve().name}"
        self._cameras = {name: _Camera(name) for name in session.cameras}
        self._number = 0
        self._lock = Lock()

    def steer(self, player: Player) -> None:
        """Say what plays."""
        self.playback = player

    def on_frame(self, frame: ReplayedFrame) -> None:
        """Count a frame that was let go."""
        with self._lock:
            camera = self._cameras.get(frame.camera)
            if camera is not None:
                camera.take_note(frame)

    def show(self, frame: ReplayedFrame) -> None:
        """Show a frame to all who listen to its camera; numbers of frames go up even where time goes back."""
        with self._lock:
            camera = self._cameras.get(frame.camera)
            if camera is None:
                return
            self._number += 1
            shown = camera.see(frame, self._number, len(self.spec.classes))
            feeds = list(camera.feeds)
        for feed in feeds:
            feed.put(shown)

    def cameras(self) -> list[CameraStatus]:
        """All cameras, in the order of their names."""
        self.timeline.start()
        player = self.playback
        tallies = player.tallies if player else {}
        position = player.position_seconds if player else 0.0
        with self._lock:
            return [
                camera.status(
                    self._source, self.timeline, position, name in tallies and tallies[name].over
                )
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
        """Listen to a camera's frames, first to the one that is seen already, if there is one.

        Raises KeyError if there is none of this name.
        """
        with self._lock:
            found = self._cameras[camera]
            feed = Feed(depth, found.feeds.discard)
            found.feeds.add(feed)
            if found.last is not None:
                now = time.time()
                feed.put(replace(found.last, captured_at=now, labelled_at=now))
            return feed

    def close(self) -> None:
        """End all that listen."""
        self.timeline.close()
        with self._lock:
            feeds = [feed for camera in self._cameras.values() for feed in camera.feeds]
        for feed in feeds:
            feed.end()
