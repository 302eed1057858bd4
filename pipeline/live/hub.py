"""What the live pipeline tells the outside: cameras, their state, and their newest labelled frame.

The view, the recorder and the sinks see cameras through `Hub` alone; none of them can hold a camera up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from models.spec import Spec

# A camera's states: being opened; giving frames; open but silent; to be opened again after a pause.
CAMERA_STATES = ("connecting", "live", "silent", "reconnecting", "ended")


@dataclass(frozen=True)
class StateChange:
    """One change of a camera's state.

    Attributes:
        at: `time.time()` in seconds.
        state: one of `CAMERA_STATES`.
        reason: one line, without the camera's password.
    """

    at: float
    state: str
    reason: str


@dataclass(frozen=True)
class CameraStatus:
    """A camera as it is now.

    Attributes:
        name: unique among the cameras.
        url: as given, without its password.
        state: one of `CAMERA_STATES`.
        history: its latest changes of state, oldest first.
        size_hw: of its frames in pixels; None before the first.
        fps: labelled frames a second, over the last seconds.
        latency_ms: from capture to labels, median of the last seconds; None before the first frame.
        frames: labelled since the camera was added.
        dropped: frames not labelled, by reason: "overload" (a newer one was there), "stale" (older
            than the limit), "damaged", "preparing" (the network was not ready for their size yet).
        reconnects, resets: how often it was opened again, and its memory reset.
        shares: float32 [K], of each class in the newest frame; None before the first.
        changes: how often the camera came into each state.
        latency_p95_ms: as `latency_ms`, 95 of 100 frames were faster.
    """

    name: str
    url: str
    state: str
    history: tuple[StateChange, ...] = ()
    size_hw: tuple[int, int] | None = None
    fps: float = 0.0
    latency_ms: float | None = None
    frames: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    reconnects: int = 0
    resets: int = 0
    shares: np.ndarray | None = None
    changes: dict[str, int] = field(default_factory=dict)
    latency_p95_ms: float | None = None


@dataclass(frozen=True)
class Shown:
    """One labelled frame.

    Attributes:
        camera: its name.
        frame_index: of the camera since it was added, from 0; dropped frames count.
        captured_at: `time.time()` at which it arrived, seconds.
        labelled_at: `time.time()` at which its labels were there, seconds.
        planes: uint8 [h * 3 // 2, w], I420, BT.601 limited range, at the model's size.
        labels: uint8 [h, w], a class id a pixel.
    """

    camera: str
    frame_index: int
    captured_at: float
    labelled_at: float
    planes: np.ndarray
    labels: np.ndarray


class Subscription(Protocol):
    """One listener to one camera. It holds the newest frame only: a slow listener skips frames.

    Attributes:
        over: the camera is gone; nothing more will come.
        missed: frames that went by before they were taken.
    """

    over: bool
    missed: int

    def take(self, timeout_seconds: float) -> Shown | None:
        """The newest frame not yet taken; None if none came in time or the camera is gone."""

    def close(self) -> None:
        """Listen no more."""


class Hub(Protocol):
    """All cameras of a live run. Every method may be called from any thread."""

    spec: Spec

    def cameras(self) -> list[CameraStatus]:
        """All cameras, in the order they were added."""

    def add(self, url: str, name: str | None = None) -> str:
        """Add a camera; returns its name.

        Raises ConfigError for a URL of an unknown kind or a name that is taken.
        """

    def remove(self, name: str) -> None:
        """Stop and forget a camera. Raises KeyError if there is none of this name."""

    def subscribe(self, camera: str, depth: int = 1) -> Subscription:
        """Listen to a camera's frames; `depth` of them may wait, of which the oldest is taken first.

        Raises KeyError if there is none of this name.
        """
