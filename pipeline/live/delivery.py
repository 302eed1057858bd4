"""What a camera hands over: its newest frame, and all that happened since it was asked last."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from models.spec import Spec
from pipeline.frames import StreamState
from pipeline.live.hub import StateChange


@dataclass(frozen=True)
class CameraConfig:
    """How cameras are opened, watched and opened again; it crosses to other processes.

    Attributes:
        spec: of the model, which gives the size frames are wanted in.
        size_hw: input size of the network in pixels, None for what `spec` says.
        max_latency_seconds: frames older than this are of no use to anybody.
        open_seconds: how long opening may take.
        silence_seconds: without a frame for so long, the camera is opened anew.
        quiet_seconds: without a frame for so long, it is called silent.
        longest_wait_seconds: before it is tried again; it grows up to this.
        attempts: to open it in a row before it is given up; None for ever.
        recorded: cameras have recordings to close when they are stopped.
        queue_frames: decoded frames that may wait; the oldest goes for a new one.
    """

    spec: Spec
    size_hw: tuple[int, int] | None = None
    max_latency_seconds: float = 0.2
    open_seconds: float = 10.0
    silence_seconds: float = 10.0
    quiet_seconds: float = 2.0
    longest_wait_seconds: float = 3.0
    attempts: int | None = None
    recorded: bool = False
    queue_frames: int = 4

    def __post_init__(self) -> None:
        for name in ("max_latency_seconds", "open_seconds", "silence_seconds", "quiet_seconds",
                     "longest_wait_seconds"):  # fmt: skip
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.queue_frames < 1:
            raise ValueError(f"queue_frames must be at least 1, got {self.queue_frames}")
        if self.attempts is not None and self.attempts < 1:
            raise ValueError(f"attempts must be at least 1 or None, got {self.attempts}")

    def model_hw(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """The network's input size for frames of `size_hw`."""
        return self.size_hw or self.spec.model_hw(size_hw)


@dataclass(frozen=True)
class Frame:
    """One frame on its way to the network.

    Attributes:
        index: of the camera, from 0; frames that were dropped count.
        captured_at: `time.time()` at which its packet arrived, seconds.
        connection: which of the camera's connections it came by, from 0.
        size_hw: of the camera's picture, upright, in pixels.
        planes: uint8 [h * 3 // 2, w], I420, BT.601 limited range, at the model's size.
        pts: its own time stamp as decoded, ticks; None if it has none.
        stamp_seconds: `pts` in seconds, by the camera's clock; None if it has no clock.
        decoded_index: place among the frames of its connection, from 0.
        recording: the connection's number in the recording, None if nothing records.
        decoded_at, taken_at, handed_at: `time.time()` at which it left the decoder, began to be
            converted, and was handed over, seconds.
        captured_monotonic: `time.monotonic()` at which its packet arrived, seconds; None if unknown.
    """

    index: int
    captured_at: float
    connection: int
    size_hw: tuple[int, int]
    planes: np.ndarray
    pts: int | None = None
    stamp_seconds: float | None = None
    decoded_index: int = 0
    recording: int | None = None
    decoded_at: float = 0.0
    taken_at: float = 0.0
    handed_at: float = 0.0
    captured_monotonic: float | None = None

    @property
    def model_hw(self) -> tuple[int, int]:
        return self.planes.shape[0] // 3 * 2, self.planes.shape[1]


@dataclass(frozen=True)
class Delivery:
    """Everything of a camera since the delivery before.

    Attributes:
        frame: the newest one, None if none was wanted or none came.
        changes: of the camera's state, oldest first.
        indices: frames the camera has given so far, dropped ones included.
        dropped: those not handed over so far, by reason.
        connections: how often the camera has been opened so far.
        stuck_seconds: how long the camera's thread has been inside one call.
    """

    frame: Frame | None = None
    changes: tuple[StateChange, ...] = ()
    indices: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    connections: int = 0
    stuck_seconds: float = 0.0


@dataclass(frozen=True)
class Handover:
    """A camera's memory on its way from one network to another.

    Attributes:
        state: the memory.
        size_hw: of the camera's picture, in pixels.
        captured_at: `time.time()` at which the last frame in it arrived, seconds, by the clock of the
            machine it was labelled on: machines whose clocks differ take gaps for longer or shorter.
        longest_gap_seconds: a gap since then up to this long keeps it; None for the usual rule.
    """

    state: StreamState
    size_hw: tuple[int, int]
    captured_at: float
    longest_gap_seconds: float | None = None
