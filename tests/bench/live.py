"""How fresh live masks are, and what happens when cameras give more than the machine can label.

    python -m tests.bench.live --budget                  # capture to pixel, by stage
    python -m tests.bench.live --overload 600            # ten times what the network can do
    python -m tests.bench.live --reconnects 200          # does anything leak
    python -m tests.bench.live --return 20               # how soon a camera is back after its server

All against GStreamer's RTSP server on this machine, which takes its part of the cores. Ends in a line of
JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

import numpy as np

from pipeline.engines import choose_engine, engine_factory
from pipeline.live.camera import Camera
from pipeline.live.config import CPU_LATENCY_MS, ENGINE_SLOTS, GPU_LATENCY_MS
from pipeline.live.delivery import CameraConfig
from pipeline.live.labeller import Labelled
from pipeline.live.live import Listener, LiveHub, MakeCamera
from pipeline.run import model_files
from tests.bench.memory import family, memory_mb
from tests.cameras import RtspServer, mount, until

STAGES = ("decode", "wait for the network", "convert", "to the network", "network", "to a listener")
WARM_UP_SECONDS = 10.0


class Stages(Listener):
    """Where the time of each labelled frame went, milliseconds."""

    def __init__(self) -> None:
        self.frames: list[tuple[float, ...]] = []

    def labelled(self, labelled: Labelled) -> None:
        frame, shown = labelled.frame, labelled.shown
        stamps = (frame.captured_at, frame.decoded_at, frame.taken_at, frame.handed_at,
                  labelled.began_at, shown.labelled_at, time.time())  # fmt: skip
        self.frames.append(tuple(1000 * np.diff(stamps)))


@dataclass
class Watcher:
    """A viewer of one camera: how old each mask is when it gets it."""

    latencies_ms: list[float] = field(default_factory=list)

    def follow(self, hub: LiveHub, name: str) -> None:
        feed = hub.subscribe(name)
        Thread(target=self._run, args=(feed,), daemon=True).start()

    def _run(self, feed: Any) -> None:
        while not feed.over:
            shown = feed.take(0.5)
            if shown is not None:
                self.latencies_ms.append(1000 * (time.time() - shown.captured_at))


@contextlib.contextmanager
def cameras_of(inline: bool) -> Iterator[MakeCamera]:
    if inline:
        yield lambda name, address, config: Camera(address, config)
        return
    from pipeline.live.actors import remote_cameras

    with remote_cameras(None) as make:
        yield make


def make_hub(options: argparse.Namespace, make_camera: MakeCamera, *listeners: Listener) -> LiveHub:
    files, spec = model_files(options.model)
    choice = choose_engine(options.engine, options.precision)
    usual_ms = CPU_LATENCY_MS if choice.name in ("cpu", "counting") else GPU_LATENCY_MS
    limit_ms = options.max_latency or usual_ms
    size = tuple(map(int, options.size.split("x"))) if options.size else None
    config = CameraConfig(spec, size_hw=size, max_latency_seconds=limit_ms / 1000)
    return LiveHub(
        config, engine_factory(choice, files, spec, ENGINE_SLOTS), make_camera, listeners=listeners
    )


def budget(options: argparse.Namespace) -> dict[str, Any]:
    """One camera at 25 frames a second: medians of each stage."""
    results = {}
    for height, width in ((360, 480), (720, 1280)):
        for inline in (True, False):
            stages = Stages()
            with (
                RtspServer([mount("/a", (width, height), 25)]) as server,
                cameras_of(inline) as make_camera,
                make_hub(options, make_camera, stages) as hub,
            ):
                hub.add(server.url("/a"), "a")
                until(lambda hub=hub: hub.cameras()[0].frames > 50, 120)
                stages.frames.clear()
                time.sleep(options.seconds)
            where = "a thread" if inline else "a process"
            results[f"{height}x{width}, camera in {where}"] = summary(np.array(stages.frames))
    return results


def summary(frames_ms: np.ndarray) -> dict[str, Any]:
    total = frames_ms.sum(1)
    medians = dict(zip(STAGES, np.median(frames_ms, 0).round(2).tolist(), strict=True))
    return {**medians, "all p50": round(float(np.median(total)), 1),
            "all p95": round(float(np.percentile(total, 95)), 1), "frames": len(total)}  # fmt: skip


def overload(options: argparse.Namespace) -> dict[str, Any]:
    """Cameras that give ten times what the network can label: freshness, fairness, memory, counts."""
    with cameras_of(options.inline) as make_camera:
        capacity = capacity_fps(options)
        fps = max(5, round(options.factor * capacity / options.cameras))
        names = [f"c{place}" for place in range(options.cameras)]
        with (
            RtspServer([mount(f"/{name}", fps=fps) for name in names]) as server,
            make_hub(options, make_camera) as hub,
        ):
            watchers = {name: Watcher() for name in names}
            for name in names:
                hub.add(server.url(f"/{name}"), name)
                watchers[name].follow(hub, name)
            until(lambda: all(status.frames for status in hub.cameras()), 180)
            time.sleep(WARM_UP_SECONDS)
            before = {status.name: status for status in hub.cameras()}
            for watcher in watchers.values():
                watcher.latencies_ms.clear()
            memory = memory_over(options.overload)
            after = {status.name: status for status in hub.cameras()}
    frames = {name: after[name].frames - before[name].frames for name in names}
    latencies = [ms for watcher in watchers.values() for ms in watcher.latencies_ms]
    dropped: dict[str, int] = defaultdict(int)
    for name in names:
        for reason, count in after[name].dropped.items():
            dropped[reason] += count - before[name].dropped.get(reason, 0)
    labelled = sum(frames.values())
    first_minute = memory[: max(1, len(memory) // max(1, round(options.overload / 60)))]
    return {
        "capacity_fps": round(capacity, 1), "offered_fps": fps * options.cameras,
        "labelled_fps": round(labelled / options.overload, 1), "labelled": labelled,
        "dropped": dict(dropped),
        "latency_p50_ms": round(float(np.percentile(latencies, 50)), 1),
        "latency_p95_ms": round(float(np.percentile(latencies, 95)), 1),
        "unfairness": round(max(frames.values()) / max(1, min(frames.values())) - 1, 3),
        "memory_first_minute_mb": round(max(first_minute), 1),
        "memory_growth_mb": round(max(memory) - max(first_minute), 1),
    }  # fmt: skip


def capacity_fps(options: argparse.Namespace) -> float:
    """Frames a second that the network alone does, of a picture like the test camera's."""
    files, spec = model_files(options.model)
    choice = choose_engine(options.engine, options.precision)
    size = tuple(map(int, options.size.split("x"))) if options.size else spec.model_hw((96, 160))
    engine = engine_factory(choice, files, spec, 1)((size[0], size[1]))
    frame = np.full((1, 1, size[0] * 3 // 2, size[1]), 110, np.uint8)
    stamps = []
    for _ in range(60):
        engine.step(frame, [0], [False])
        stamps.append(time.monotonic())
    return 1 / statistics.median(np.diff(stamps[10:]))


def memory_over(seconds: float) -> list[float]:
    """Memory of this process and all it started, MB, twice a second (shared pages once)."""
    import os

    samples, ends_at = [], time.monotonic() + seconds
    while time.monotonic() < ends_at:
        samples.append(memory_mb(family(os.getpid()))[0])
        time.sleep(0.5)
    return samples


def reconnects(options: argparse.Namespace) -> dict[str, Any]:
    """A server that hangs up again and again: threads, open files and memory after the first tenth."""
    from tests.test_live_cameras import frames_of, resources, watching

    with (
        RtspServer([mount("/a", fps=20)]) as server,
        watching(server.url("/a"), longest_wait_seconds=0.02) as (camera, take),
    ):
        frames_of(take, 1)
        baseline = resources()
        for count in range(1, options.reconnects + 1):
            server.drop()
            until(lambda: camera.take(True, 0.2).connections > count)  # noqa: B023
            frames_of(take, 1)
            if count == max(1, options.reconnects // 10):
                baseline = resources()
        threads, files, memory = resources()
    return {"reconnects": options.reconnects, "threads_more": threads - baseline[0],
            "files_more": files - baseline[1], "memory_more_mb": round(memory - baseline[2], 1)}  # fmt: skip


def comings_back(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds from a server that listens again to its camera's first frame."""
    seconds = []
    with (
        RtspServer([mount("/a", fps=20)]) as server,
        cameras_of(options.inline) as make_camera,
        make_hub(options, make_camera) as hub,
    ):
        hub.add(server.url("/a"), "a")
        for _ in range(getattr(options, "return")):
            until(lambda: hub.cameras()[0].state == "live", 120)
            server.kill()
            until(lambda: hub.cameras()[0].state == "reconnecting", 60)
            time.sleep(12)  # long enough for the longest wait between attempts
            server.start()
            began = time.time()
            until(lambda: hub.cameras()[0].state == "live", 60)
            seconds.append(hub.cameras()[0].history[-1].at - began)
    return {"times": len(seconds), "median_s": round(statistics.median(seconds), 2),
            "longest_s": round(max(seconds), 2)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--budget", action="store_true", help="latency by stage")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each row of the budget")
    parser.add_argument("--overload", type=float, metavar="SECONDS")
    parser.add_argument("--reconnects", type=int, metavar="N")
    parser.add_argument("--return", type=int, metavar="N")
    parser.add_argument("--cameras", type=int, default=8)
    parser.add_argument("--factor", type=float, default=10.0, help="offered over possible")
    parser.add_argument("--max-latency", type=float, metavar="MS")
    parser.add_argument("--inline", action="store_true", help="cameras as threads")
    for name, usual in (
        ("model", "roadnet"),
        ("engine", "auto"),
        ("precision", "auto"),
        ("size", ""),
    ):
        parser.add_argument(f"--{name}", default=usual)
    options = parser.parse_args()
    asked: dict[str, tuple[Any, Callable[[argparse.Namespace], dict[str, Any]]]] = {
        "budget": (options.budget, budget), "overload": (options.overload, overload),
        "reconnects": (options.reconnects, reconnects),
        "return": (getattr(options, "return"), comings_back),
    }  # fmt: skip
    results = {name: measure(options) for name, (wanted, measure) in asked.items() if wanted}
    if not results:
        parser.error("say what to measure: --budget, --overload, --reconnects or --return")
    for name, result in results.items():
        print(f"{name}: {json.dumps(result, indent=1)}", file=sys.stderr)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
