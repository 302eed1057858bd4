"""Cameras for tests: a real RTSP server that can be killed, frozen and started again, and made-up ones."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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


def broker_command() -> str | None:
    """Where the mosquitto broker is, None if it is not installed."""
    return shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin")


def has_broker() -> bool:
    return broker_command() is not None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def certificate(folder: Path) -> Path:
    """A key and its own certificate for 127.0.0.1, in one file."""
    path = folder / "both.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=127.0.0.1", "-keyout", path, "-out", folder / "only.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_bytes(path.read_bytes() + (folder / "only.pem").read_bytes())
    return path


@contextlib.contextmanager
def tcp_server(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port that does something with whoever connects."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=attend, args=(client,), daemon=True).start()

    def attend(client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            serve(client)

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # closing alone does not wake who accepts
        listener.close()


@contextlib.contextmanager
def tls_in_front_of(port: int, pem: Path) -> Iterator[int]:
    """A port whose TLS connections go on, without it, to another port of this machine."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)

    def serve(plain: socket.socket) -> None:
        with (
            context.wrap_socket(plain, server_side=True) as client,
            socket.create_connection(("127.0.0.1", port)) as server,
        ):
            threading.Thread(target=pass_on, args=(server, client), daemon=True).start()
            pass_on(client, server)

    def pass_on(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    with tcp_server(serve) as front:
        yield front


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
    """GStreamer's RTSP server in a process of its own; a context manager. `port` stays the same.

    Args:
        mounts: its cameras, each a `mount`.
        address: of this machine, where it listens.
    """

    def __init__(self, mounts: Sequence[dict], address: str = "127.0.0.1") -> None:
        self._mounts, self._address = json.dumps(list(mounts)), address
        self.port = 0
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> RtspServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [PYTHON, str(SCRIPT), str(self.port), self._mounts, self._address],
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
        return f"rtsp://{user}{self._address}:{self.port}{path}"


def number_of(planes: np.ndarray) -> int:
    """The number that a frame of the test server carries."""
    rows, width = planes.shape
    middles = [int((bit + 0.5) * width / BITS) for bit in range(BITS)]
    squares = planes[rows // 3 // 4, middles]
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
        captured_at: float | None = None,
    ) -> None:
        """One more frame, `age_seconds` old, or of a time that the test keeps itself."""
        if captured_at is None:
            captured_at = time.time() - age_seconds
        if self._waiting is not None:
            self.dropped["overload"] += 1
        rows, width = self.model_hw[0] * 3 // 2, self.model_hw[1]
        self._waiting = Frame(
            self.indices, captured_at, self._connection, size_hw,
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
