"""The simulation of `roadmask plan` against a live run: the same cameras, an engine that takes a fixed time.

    python -m tests.bench.plan [--cameras 8] [--fps 30] [--step-ms 8] [--seconds 20]

Cameras give frames at a steady rate into a real `LiveHub`; its engine sleeps. Ends in a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from threading import Event, Lock

import numpy as np

from models.spec import Spec
from pipeline.live.address import Address
from pipeline.live.delivery import CameraConfig, Delivery, Frame
from pipeline.live.labeller import Labelled
from pipeline.live.live import Listener, LiveHub
from pipeline.plan.simulate import Served, Stay, run_node
from pipeline.plan.sizing import Engines

SIZE_HW = (64, 96)


class SleepingEngine:
    """Labels nothing, in a fixed time for each step."""

    def __init__(self, step_seconds: float, largest: int) -> None:
        self.slots, self.batches = largest, largest > 1
        self._step_seconds = step_seconds

    def step(self, frames: np.ndarray, slots: Sequence[int], reset: Sequence[bool]) -> np.ndarray:
        time.sleep(self._step_seconds)
        return np.zeros((*frames.shape[:2], *SIZE_HW), np.uint8)

    def read_state(self, slot: int) -> np.ndarray:
        return np.zeros((1, 1, 1), np.float32)

    def write_state(self, slot: int, state: np.ndarray) -> None:
        pass


class SteadyCamera:
    """Gives a frame each period; one that was not taken before the next is dropped."""

    def __init__(self, phase: float, fps: float) -> None:
        self._period, self._phase = 1 / fps, phase
        self._stopping, self._lock = Event(), Lock()
        self._taken = self._dropped = 0
        self._began = 0.0

    def start(self) -> None:
        self._began = time.time() + self._phase * self._period

    def stop(self) -> None:
        self._stopping.set()

    def join(self, seconds: float) -> None:
        pass

    def take(self, want_frame: bool, timeout_seconds: float) -> Delivery:
        deadline = time.time() + timeout_seconds
        while not self._stopping.is_set():
            there = math.floor((time.time() - self._began) / self._period) + 1
            if want_frame and there > self._taken:
                return self._deliver(there)
            due = self._began + there * self._period if want_frame else deadline
            if min(due, deadline) - time.time() <= 0 and time.time() >= deadline:
                break
            self._stopping.wait(max(0.0, min(due, deadline) - time.time()))
        return Delivery(indices=self._taken, dropped={"overload": self._dropped})

    def _deliver(self, there: int) -> Delivery:
        with self._lock:
            self._dropped += there - self._taken - 1
            self._taken = there
        planes = np.zeros((SIZE_HW[0] * 3 // 2, SIZE_HW[1]), np.uint8)
        captured_at = self._began + (there - 1) * self._period
        frame = Frame(there - 1, captured_at, 0, SIZE_HW, planes, decoded_at=captured_at)
        return Delivery(frame, (), there, {"overload": self._dropped}, 1)


class Latencies(Listener):
    """What was labelled, and how late."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def labelled(self, labelled: Labelled) -> None:
        self.found.append(labelled.shown.labelled_at - labelled.shown.captured_at)


def measured(
    cameras: int, fps: float, step_ms: float, largest: int, seconds: float, limit_ms: float
) -> Served:
    """What a live run did."""
    rng, latencies = np.random.default_rng(1), Latencies()
    config = CameraConfig(Spec("bench"), max_latency_seconds=limit_ms / 1000)
    hub = LiveHub(
        config,
        lambda model_hw: SleepingEngine(step_ms / 1000, largest),
        lambda name, address, config: SteadyCamera(rng.random(), fps),
        listeners=(latencies,),
    )
    with hub:
        for number in range(cameras):
            url = f"rtsp://camera-{number}.example/"
            hub.add_address(Address(url, "rtsp", url), f"camera{number}")
        time.sleep(2.0)  # the network is made, the first frames are gone
        latencies.found.clear()
        before = _dropped(hub)
        time.sleep(seconds)
        found, after = list(latencies.found), _dropped(hub)
    return Served(found, after - before)


def _dropped(hub: LiveHub) -> int:
    return sum(sum(camera.dropped.values()) for camera in hub.cameras())


def simulated(
    cameras: int, fps: float, step_ms: float, largest: int, seconds: float, limit_ms: float
) -> Served:
    """What the simulation says of the same."""
    rng = np.random.default_rng(1)
    stays = [Stay(rng.random(), number, 0.0, seconds) for number in range(cameras)]
    engines = Engines(1, (step_ms, 0.0), largest, cameras, 0.001)
    return run_node(stays, engines, fps, limit_ms / 1000, rng)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cameras", type=int, default=8)
    parser.add_argument("--fps", type=float, default=30.0)
    parser.add_argument("--step-ms", type=float, nargs="+", default=[3.0, 8.0])
    parser.add_argument("--largest", type=int, default=1, help="cameras a step")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--limit-ms", type=float, default=200.0)
    given = parser.parse_args()
    rows = []
    print(f"{'step':>8}{'':12}{'fps':>9}{'dropped':>9}{'p50 ms':>9}{'p99 ms':>9}")
    for step_ms in given.step_ms:
        for name, way in (("measured", measured), ("simulated", simulated)):
            found = way(
                given.cameras, given.fps, step_ms, given.largest, given.seconds, given.limit_ms
            )
            row = {
                "step_ms": step_ms, "way": name, "fps": len(found.latencies) / given.seconds,
                "dropped": found.dropped, "p50_ms": found.latency_ms(0.5),
                "p99_ms": found.latency_ms(0.99),
            }  # fmt: skip
            rows.append(row)
            print(
                f"{step_ms:6.1f}ms  {name:10}{row['fps']:9.1f}{100 * found.dropped:8.1f}%"
                f"{row['p50_ms']:9.1f}{row['p99_ms']:9.1f}"
            )
    print(json.dumps({"cameras": given.cameras, "fps": given.fps, "rows": rows}))


if __name__ == "__main__":
    main()
