"""Cameras for tests: a real RTSP server that can be killed, frozen and started again, and made-up ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from models.spec import Spec
from pipeline.engines.counting import CountingEngine
from pipeline.live.delivery import CameraConfig, Delivery, Frame
from pipeline.live.hub import Shown, StateChange

MODEL_HW = (64, 96)
PYTHON = "/usr/bin/python3"  # Debian's, which has GStreamer's bindings
SCRIPT = Path(__file__).with_name("rtsp_server.py")
BITS = 16
_FIND = (
    "import gi; gi.require_version('GstRtspServer', '1.0');"
    "from gi.repository import Gst, GstRtspServer; Gst.init(None);"
    "assert all(map(Gst.ElementFactory.find, ('x264enc', 'rtph264pay', 'appsrc')))"
)


def has_rtsp_server() -> bool:
    """Whether GStreamer's RTSP server and x264 encoder are installed."""
    if not os.path.exists(PYTHON):
        return False
    return subprocess.run([PYTHON, "-c", _FIND], capture_output=True, check=False).returncode == 0


def camera_config(**changes: Any) -> CameraConfig:
    """Small frames for the network, quick time-outs."""
    settings: dict[str, Any] = {
        "size_hw": MODEL_HW, "max_latency_seconds": 5.0, "open_seconds": 10.0,
        "silence_seconds": 5.0, "quiet_seconds": 1.5,
    }  # fmt: skip
    return CameraConfig(Spec("counting"), **{**settings, **changes})


def mount(path: str, size_wh: tuple[int, int] = (160, 96), fps: int = 5, **more: Any) -> dict:
    """A camera of an `RtspServer`."""
    return {"path": path, "size_wh": list(size_wh), "fps": fps, **more}


class RtspServer:
    """GStreamer's RTSP server in a process of its own; a context manager. `port` stays the same."""

    def __init__(self, mounts: Sequence[dict]) -> None:
        self._mounts = json.dumps(list(mounts))
        self.port = 0
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> RtspServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [PYTHON, str(SCRIPT), str(self.port), self._mounts],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith("ready"), "the RTSP server did not start"
        self.port = int(line.split()[1])

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def freeze(self) -> None:
        """Its sockets stay open, and nothing more comes from them."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def resize(self, path: str, width: int, height: int) -> None:
        """A camera goes on with frames of another size."""
        self._command(f"size {path} {width} {height}")

    def drop(self) -> None:
        """Hangs up on everybody."""
        self._command("drop")

    def _command(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def url(self, path: str, user: str = "") -> str:
        return f"rtsp://{user}127.0.0.1:{self.port}{path}"


def number_of(planes: np.ndarray) -> int:
    """The number that a frame of the test server carries."""
    rows, width = planes.shape
    squares = planes[rows // 3 // 4, :].reshape(BITS, width // BITS)[:, width // BITS // 2]
    return sum(int(level > 110) << bit for bit, level in enumerate(squares))


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Waits until a condition holds and gives what it gave; fails when it takes too long."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)
    return found


class FakeCamera:
    """A camera whose frames a test makes, one for each call of `give`; newest wins, as it should.

    With `fps`, it gives frames by itself, and counts them.
    """

    def __init__(self, fps: float = 0.0, model_hw: tuple[int, int] = MODEL_HW) -> None:
        self.fps, self.model_hw = fps, model_hw
        self.indices = 0
        self.dropped: Counter[str] = Counter()
        self.stopped = Event()
        self._connection = 0
        self._waiting: Frame | None = None
        self._changes: list[StateChange] = []
        self._began = 0.0

    def start(self) -> None:
        self._began = time.monotonic()
        self.change("live", "made up")

    def stop(self) -> None:
        self.stopped.set()

    def join(self, seconds: float) -> None:
        pass

    def give(
        self,
        level: int = 0,
        age_seconds: float = 0.0,
        size_hw: tuple[int, int] = (72, 128),
        stamp_seconds: float | None = None,
    ) -> None:
        if self._waiting is not None:
            self.dropped["overload"] += 1
        rows, width = self.model_hw[0] * 3 // 2, self.model_hw[1]
        self._waiting = Frame(
            self.indices, time.time() - age_seconds, self._connection, size_hw,
            np.full((rows, width), level, np.uint8), self.indices, stamp_seconds,
        )  # fmt: skip
        self.indices += 1

    def lose(self, frames: int) -> None:
        self.indices += frames
        self.dropped["damaged"] += frames

    def reconnect(self) -> None:
        self._connection += 1

    def change(self, state: str, reason: str) -> None:
        self._changes.append(StateChange(time.time(), state, reason))

    def take(self, want_frame: bool, timeout_seconds: float) -> Delivery:
        deadline = time.monotonic() + timeout_seconds
        while not self.stopped.is_set():
            self._make_due()
            if (want_frame and self._waiting) or self._changes or time.monotonic() > deadline:
                break
            time.sleep(0.001)
        frame = None
        if want_frame:
            frame, self._waiting = self._waiting, None
        changes, self._changes = tuple(self._changes), []
        return Delivery(frame, changes, self.indices, dict(self.dropped), self._connection + 1)

    def _make_due(self) -> None:
        due = int((time.monotonic() - self._began) * self.fps) + 1 if self.fps else 0
        if due > self.indices:
            newest = due - self.indices - 1
            self.indices += newest
            self.dropped["overload"] += newest
            self.give()


class SlowEngine(CountingEngine):
    """Counts, and takes its time for it."""

    batches = False

    def __init__(self, model_hw: tuple[int, int], slots: int, step_seconds: float) -> None:
        super().__init__(model_hw, slots)
        self.step_seconds = step_seconds

    def step(self, frames: np.ndarray, slots: Sequence[int], reset: Sequence[bool]) -> np.ndarray:
        time.sleep(self.step_seconds)
        return super().step(frames, slots, reset)


def steps_of(shown: Shown) -> int:
    """How many frames the camera's memory had seen, by the counting engine's labels."""
    return int(shown.labels[1, 1])
