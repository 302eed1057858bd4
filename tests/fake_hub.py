"""A hub without cameras: rendered frames with their exact labels, played at a steady rate.

    python -m tests.fake_hub --view 127.0.0.1:8000

serves the view of four such cameras, to look at it.
"""

from __future__ import annotations

import argparse
import functools
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import av
import cv2
import numpy as np

from models.spec import Spec
from pipeline.errors import ConfigError
from pipeline.live.address import check_name, parse_address, usual_name
from pipeline.live.hub import CameraStatus, Shown, StateChange
from pipeline.planes import PlaneConverter
from pipeline.session.timeline import CameraTimeline

SAMPLES = Path(__file__).resolve().parents[1] / "sample_videos"
Frames = list[tuple[np.ndarray, np.ndarray]]


@functools.cache
def street(count: int = 60, step: int = 5, size_hw: tuple[int, int] = (360, 640)) -> Frames:
    """Frames of the sample clip and their labels: I420 planes and uint8 [h, w]."""
    found: Frames = []
    converter = None
    with (
        av.open(str(SAMPLES / "city_drive.mp4")) as clip,
        av.open(str(SAMPLES / "city_drive_labels.mkv")) as truth,
    ):
        for index, (frame, ids) in enumerate(
            zip(clip.decode(video=0), truth.decode(video=0), strict=True)
        ):
            if index >= count * step:
                break
            if index % step:
                continue
            converter = converter or PlaneConverter(frame)
            planes = np.empty((size_hw[0] * 3 // 2, size_hw[1]), np.uint8)
            converter.write_pixels(frame, planes)
            plane = ids.planes[0]
            labels = np.frombuffer(plane, np.uint8).reshape(ids.height, -1)[:, : ids.width]
            small = cv2.resize(labels, size_hw[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
            found.append((planes, small))
    return found


def numbered(classes: int = 11, count: int = 110, size_hw: tuple[int, int] = (96, 128)) -> Frames:
    """Frames that are all of one grey, and labels all of one class, both told by the index alone.

    Frame `i` has luma `40 + 16 * (i % 11)` and class `i % 11`.
    """
    found = []
    for index in range(count):
        planes = np.full((size_hw[0] * 3 // 2, size_hw[1]), 128, np.uint8)
        planes[: size_hw[0]] = 40 + 16 * (index % classes)
        found.append((planes, np.full(size_hw, index % classes, np.uint8)))
    return found


@dataclass
class _Slot:
    """A subscription that keeps the newest frame only."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    shown: Shown | None = None
    over: bool = False
    missed: int = 0

    def put(self, shown: Shown) -> None:
        with self.changed:
            self.missed += self.shown is not None
            self.shown = shown
            self.changed.notify_all()

    def take(self, timeout_seconds: float) -> Shown | None:
        with self.changed:
            self.changed.wait_for(lambda: self.shown is not None or self.over, timeout_seconds)
            shown, self.shown = self.shown, None
            return shown

    def close(self) -> None:
        with self.changed:
            self.over = True
            self.changed.notify_all()


class FakeCamera:
    """Plays frames in a loop. `paused` makes it silent."""

    def __init__(self, name: str, url: str, frames: Frames, fps: float, classes: int) -> None:
        self.frames, self.fps = frames, fps
        self.paused = threading.Event()
        self.slots: list[_Slot] = []
        self.busy: Callable[[], None] = lambda: None
        self._classes = classes
        self._stop = threading.Event()
        self._recent: deque[float] = deque(maxlen=40)
        self.status = CameraStatus(name, url, "connecting")
        self.change("connecting", "opening")
        self._thread = threading.Thread(target=self._play, name=f"fake-{name}", daemon=True)
        self._thread.start()

    def change(self, state: str, reason: str) -> None:
        """Come into a state."""
        history = (*self.status.history, StateChange(time.time(), state, reason))[-20:]
        self.status = replace(self.status, state=state, history=history)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(5)
        for slot in list(self.slots):
            slot.close()

    def _play(self) -> None:
        index, due = 0, time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due = max(due + 1 / self.fps, time.monotonic() - 0.5)
            if self.paused.is_set():
                if self.status.state == "live":
                    self.change("silent", "no frame for 2 s")
                continue
            if self.status.state != "live":
                self.change("live", "first frame, H.264 640x360")
            self._show(index)
            index += 1

    def _show(self, index: int) -> None:
        planes, labels = self.frames[index % len(self.frames)]
        captured_at = time.time()
        self.busy()
        name = self.status.name
        shown = Shown(name, index, captured_at, time.time(), planes, labels)
        counts = np.bincount(labels.ravel(), minlength=256)[: self._classes]
        self._recent.append(time.monotonic())
        span = self._recent[-1] - self._recent[0]
        self.status = replace(
            self.status,
            size_hw=labels.shape,
            frames=index + 1,
            fps=(len(self._recent) - 1) / span if span else 0.0,
            latency_ms=1000 * (time.time() - captured_at) + 21.5,
            latency_p95_ms=1000 * (time.time() - captured_at) + 38.0,
            dropped={"overload": index // 40},
            shares=(counts / labels.size).astype(np.float32),
        )
        for slot in list(self.slots):
            slot.put(shown)


class FakeHub:
    """A `Hub` whose cameras all show the same frames."""

    def __init__(self, frames: Frames, fps: float = 25.0, spec: Spec | None = None) -> None:
        self.spec = spec or Spec("fake")
        self.by_name: dict[str, FakeCamera] = {}
        self._frames, self._fps = frames, fps
        self._lock = threading.Lock()

    def cameras(self) -> list[CameraStatus]:
        with self._lock:
            return [camera.status for camera in self.by_name.values()]

    def add(self, url: str, name: str | None = None) -> str:
        address = parse_address(url)
        name = check_name(name or usual_name(address))
        with self._lock:
            if name in self.by_name:
                raise ConfigError(f"{address.shown}: there is a camera named {name} already")
            frames = self._frames[7 * len(self.by_name) :] + self._frames[: 7 * len(self.by_name)]
            self.by_name[name] = FakeCamera(
                name, address.shown, frames, self._fps, len(self.spec.classes)
            )
        return name

    def remove(self, name: str) -> None:
        with self._lock:
            camera = self.by_name.pop(name)
        camera.stop()

    def subscribe(self, camera: str, depth: int = 1) -> _Slot:
        assert depth == 1
        slot = _Slot()
        with self._lock:
            self.by_name[camera].slots.append(slot)
        return slot

    def close(self) -> None:
        for name in list(self.by_name):
            self.remove(name)

    def listeners(self, name: str) -> int:
        """Open subscriptions of a camera."""
        return sum(not slot.over for slot in self.by_name[name].slots)


class FakePlayer:
    """Steers nothing, and says so."""

    duration_seconds = 60.0

    def __init__(self) -> None:
        self.position_seconds, self.speed, self.paused = 0.0, 1.0, True
        self.preparing = self.ended = False

    def play(self) -> None:
        self.paused = False

    def pause(self) -> None:
        self.paused = True

    def step(self) -> float:
        self.paused = True
        self.position_seconds = min(self.duration_seconds, self.position_seconds + 0.04)
        return self.position_seconds

    def step_back(self) -> float:
        self.paused = True
        self.position_seconds = max(0.0, self.position_seconds - 0.04)
        return self.position_seconds

    def seek(self, seconds: float) -> None:
        self.position_seconds = min(self.duration_seconds, seconds)

    def set_speed(self, speed: float) -> None:
        self.speed = speed


class FakeTimeline:
    """Of one camera, whose server was away once."""

    began_at, complete = 1.7e9, True

    def __init__(self) -> None:
        camera = CameraTimeline(
            [(0.0, "connecting", "added"), (0.5, "live", "640x360"), (20.0, "reconnecting", "gone"),
             (25.0, "live", "640x360")],
            [0.1, 24.0], [(25.0, 5.0, "the camera was reconnecting")], [(3.0, 2, "overload")],
        )  # fmt: skip
        self.cameras = {"front": camera}

    def start(self) -> None:
        pass


class FakeReplay(FakeHub):
    """A hub that says that it is a replay's."""

    def __init__(self, frames: Frames, fps: float = 25.0) -> None:
        super().__init__(frames, fps)
        self.playback, self.timeline = FakePlayer(), FakeTimeline()


def main() -> None:
    from pipeline.view import ViewConfig, start_view

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--view", default="127.0.0.1:8000", metavar="HOST:PORT")
    parser.add_argument("--token")
    parser.add_argument("--fps", type=float, default=12.0)
    given = parser.parse_args()
    host, _, port = given.view.rpartition(":")
    hub = FakeHub(street(), given.fps)
    for name in ("front", "rear", "left", "right"):
        hub.add(f"rtsp://viewer:secret@camera-{name}.example/stream", name)
    with start_view(hub, ViewConfig(host, int(port), given.token)) as view:
        print(view.url, *view.notes, sep="\n", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
