"""How fresh live masks are, and what happens when cameras give more than the machine can label.

    python -m tests.bench.live --budget                  # capture to pixel, by stage
    python -m tests.bench.live --overload 600            # ten times what the network can do
    python -m tests.bench.live --reconnects 200          # does anything leak
    python -m tests.bench.live --return 20               # how soon a camera is back after its server

All against GStreamer's RTSP server on this machine, which takes its part of the cores. `--budget` and
`--overload` are looked at through the real view by a viewer in a process of its own: a frame has arrived
when its picture and its labels are unpacked there; what a browser adds is its own decoding and drawing.
Each ends by itself, prints a table with its conditions, and as the last line the same as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.bench.measure import family, processor_name
from pipeline.engines import EngineChoice, choose_engine, engine_factory
from pipeline.live.camera import Camera
from pipeline.live.config import CPU_LATENCY_MS, GPU_LATENCY_MS, engine_slots
from pipeline.live.delivery import CameraConfig
from pipeline.live.labeller import Labelled
from pipeline.live.live import Listener, LiveHub, MakeCamera
from pipeline.run import model_files
from pipeline.settings import available_cores
from tests.bench.memory import memory_mb
from tests.cameras import RtspServer, mount, number_of, until

STAGES = ("decode", "wait for the network", "convert", "to the network", "network",
          "encode and send")  # fmt: skip
WARM_UP_SECONDS = 10.0
WIDTH = 34


@dataclass(frozen=True)
class Seen:
    """A frame as a viewer got it; times are `time.time()` in seconds."""

    camera: str
    index: int
    arrived_at: float


class Stamps(Listener):
    """When each labelled frame was where on its way, seconds; and the numbers the server gave frames."""

    def __init__(self) -> None:
        self.frames: dict[tuple[str, int], tuple[float, ...]] = {}
        self.ends: dict[str, list[tuple[int, int]]] = defaultdict(list)  # index, number

    def labelled(self, labelled: Labelled) -> None:
        frame, shown = labelled.frame, labelled.shown
        self.frames[shown.camera, frame.index] = (
            frame.captured_at, frame.decoded_at, frame.taken_at, frame.handed_at,
            labelled.began_at, shown.labelled_at,
        )  # fmt: skip
        ends = self.ends[shown.camera]
        ends[1:] = [(frame.index, number_of(frame.planes))]

    def clear(self) -> None:
        self.frames.clear()
        self.ends.clear()

    def unaccounted(self) -> int:
        """Frames that the server gave between the first and the last labelled one, and that were neither
        labelled nor counted as dropped: its numbers went further than ours."""
        return sum(
            abs((last[1] - first[1]) % 65536 - (last[0] - first[0]))
            for first, last in (ends for ends in self.ends.values() if len(ends) == 2)
        )


@contextlib.contextmanager
def cameras_of(inline: bool) -> Iterator[MakeCamera]:
    if inline:
        yield lambda name, address, config: Camera(address, config)
        return
    from pipeline.live.actors import remote_cameras

    with remote_cameras(None) as make:
        yield make


def choice_of(options: argparse.Namespace) -> tuple[EngineChoice, float]:
    """The engine, and the limit of frames' age in milliseconds."""
    choice = choose_engine(options.engine, options.precision)
    usual_ms = CPU_LATENCY_MS if choice.name in ("cpu", "counting") else GPU_LATENCY_MS
    return choice, options.max_latency or usual_ms


def size_of(options: argparse.Namespace) -> tuple[int, int] | None:
    if not options.size:
        return None
    height, width = map(int, options.size.split("x"))
    return height, width


def make_hub(options: argparse.Namespace, make_camera: MakeCamera, *listeners: Listener) -> LiveHub:
    files, spec = model_files(options.model)
    choice, limit_ms = choice_of(options)
    config = CameraConfig(spec, size_hw=size_of(options), max_latency_seconds=limit_ms / 1000)
    return LiveHub(
        config,
        engine_factory(choice, files, spec, engine_slots(choice)),
        make_camera,
        listeners=listeners,
    )


# The viewer, in a process of its own.


async def look(url: str, cameras: list[str], seconds: float) -> None:
    """Prints a line for each frame that arrives: camera, index, `time.time()`."""
    import aiohttp

    from pipeline.view.wire import unpack_frame

    ends_at = time.monotonic() + seconds
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{url}ws") as ws:
        await ws.send_json({"type": "watch", "cameras": dict.fromkeys(cameras, "h264")})
        while (left := ends_at - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                message = await ws.receive(left)
                if message.type is aiohttp.WSMsgType.BINARY:
                    frame = unpack_frame(message.data)
                    print(frame.camera, frame.frame_index, f"{time.time():.6f}")
                elif message.type is not aiohttp.WSMsgType.TEXT:
                    raise RuntimeError(f"the server ended the connection: {message}")


@contextlib.contextmanager
def viewer(hub: LiveHub, cameras: list[str], seconds: float) -> Iterator[Callable[[], list[Seen]]]:
    """Serves a hub's view to one viewer for so long; what is yielded waits, and gives what it saw."""
    from pipeline.view import ViewConfig, start_view

    # Its lines go to a file: a pipe that nobody reads meanwhile fills, and the viewer would stop reading too.
    with start_view(hub, ViewConfig(port=0)) as view, tempfile.TemporaryFile("w+") as lines:
        command = [sys.executable, "-m", "tests.bench.live", "--look", view.url]
        command += ["--seconds", str(seconds), "--names", *cameras]
        process = subprocess.Popen(command, stdout=lines)

        def seen() -> list[Seen]:
            failed = process.wait(timeout=seconds + 60)
            lines.seek(0)
            words = [line.rsplit(" ", 2) for line in lines]
            if failed or not words:
                raise RuntimeError(
                    "the viewer saw nothing" if not words else "the viewer was dropped"
                )
            return [Seen(name, int(index), float(at)) for name, index, at in words]

        try:
            yield seen
        finally:
            process.kill()
            process.wait()


# What is measured.


def budget(options: argparse.Namespace) -> dict[str, Any]:
    """One camera at 25 frames a second, one viewer: medians of each stage, milliseconds."""
    rows = {}
    for height, width in ((360, 480), (720, 1280)):
        for inline in (True, False):
            stamps = Stamps()
            with (
                RtspServer([mount("/a", (width, height), 25)]) as server,
                cameras_of(inline) as make_camera,
                make_hub(options, make_camera, stamps) as hub,
            ):
                hub.add(server.url("/a"), "a")
                until(lambda hub=hub: hub.cameras()[0].frames > 50, 120)
                with viewer(hub, ["a"], options.seconds) as seen:
                    found = seen()
            where = "a thread" if inline else "a process"
            rows[f"{height}x{width}, camera in {where}"] = summary(stamps, found)
    return {"rows": rows}


def summary(stamps: Stamps, seen: list[Seen]) -> dict[str, Any]:
    """Medians of the stages of the frames that a viewer saw, its first two seconds left out."""
    begun = seen[0].arrived_at + 2 if seen else 0.0
    ways = np.array([
        (*stamps.frames[frame.camera, frame.index], frame.arrived_at)
        for frame in seen if frame.arrived_at > begun
    ])  # fmt: skip
    stages_ms = 1000 * np.diff(ways)
    total = stages_ms.sum(1)
    medians = dict(zip(STAGES, np.median(stages_ms, 0).round(2).tolist(), strict=True))
    return {**medians, "all, median": round(float(np.median(total)), 1),
            "all, p95": round(float(np.percentile(total, 95)), 1), "frames": len(total)}  # fmt: skip


def overload(options: argparse.Namespace) -> dict[str, Any]:
    """Cameras that give ten times what the network can label: freshness, fairness, memory, counts."""
    stamps, seconds = Stamps(), options.overload
    with cameras_of(options.inline) as make_camera:
        capacity = capacity_fps(options)
        fps = max(5, round(options.factor * capacity / options.cameras))
        names = [f"c{place}" for place in range(options.cameras)]
        with (
            RtspServer([mount(f"/{name}", fps=fps) for name in names]) as server,
            make_hub(options, make_camera, stamps) as hub,
        ):
            for name in names:
                hub.add(server.url(f"/{name}"), name)
            until(lambda: all(status.frames for status in hub.cameras()), 180)
            with viewer(hub, names, WARM_UP_SECONDS + seconds) as seen:
                time.sleep(WARM_UP_SECONDS)
                began_at, before = time.time(), {status.name: status for status in hub.cameras()}
                stamps.clear()
                memory = memory_over(seconds)
                after = {status.name: status for status in hub.cameras()}
                unaccounted = stamps.unaccounted()
                found = [frame for frame in seen() if frame.arrived_at > began_at]
    frames = {name: after[name].frames - before[name].frames for name in names}
    ages_ms = [
        1000 * (frame.arrived_at - stamps.frames[frame.camera, frame.index][0])
        for frame in found if (frame.camera, frame.index) in stamps.frames
    ]  # fmt: skip
    minute = max(1, round(len(memory) * min(1.0, 60 / seconds)))
    dropped = dropped_between(before, after)
    labelled = sum(frames.values())
    return {
        "network alone, fps": round(capacity, 1), "offered, fps": fps * options.cameras,
        "arrived, fps": round((labelled + sum(dropped.values())) / seconds, 1),
        "labelled, fps": round(labelled / seconds, 1),
        "arrived over labelled": round(1 + sum(dropped.values()) / max(1, labelled), 1),
        "dropped": dropped, "neither labelled nor counted": unaccounted,
        "age at the viewer, median ms": round(float(np.median(ages_ms)), 1),
        "age at the viewer, p95 ms": round(float(np.percentile(ages_ms, 95)), 1),
        "limit ms": choice_of(options)[1], "frames at the viewer": len(ages_ms),
        "most over least served": round(max(frames.values()) / max(1, min(frames.values())), 3),
        "memory in the first minute, MB": round(max(memory[:minute]), 1),
        "memory growth since, MB": round(max(memory[minute:], default=0) - max(memory[:minute]), 1)
        if len(memory) > minute else "needs more than a minute",
    }  # fmt: skip


def dropped_between(before: dict[str, Any], after: dict[str, Any]) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    for name, status in after.items():
        for reason, count in status.dropped.items():
            found[reason] += count - before[name].dropped.get(reason, 0)
    return dict(found)


def capacity_fps(options: argparse.Namespace) -> float:
    """Frames a second that the network alone does, of a picture like the test camera's."""
    files, spec = model_files(options.model)
    height, width = size_of(options) or spec.model_hw((96, 160))
    engine = engine_factory(choice_of(options)[0], files, spec, 1)((height, width))
    frame = np.full((1, 1, height * 3 // 2, width), 110, np.uint8)
    stamps = []
    for _ in range(60):
        engine.step(frame, [0], [False])
        stamps.append(time.monotonic())
    return 1 / statistics.median(np.diff(stamps[10:]))


def memory_over(seconds: float) -> list[float]:
    """Memory of this process and all it started, MB, twice a second (shared pages once)."""
    samples, ends_at = [], time.monotonic() + seconds
    while (left := ends_at - time.monotonic()) > 0:
        samples.append(memory_mb(family(os.getpid()))[0])
        time.sleep(min(0.5, left))
    return samples


def reconnects(options: argparse.Namespace) -> dict[str, Any]:
    """A server that hangs up again and again: what there is more of than after the first tenth."""
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
    return {"reconnects": options.reconnects, "threads more": threads - baseline[0],
            "open files and sockets more": files - baseline[1],
            "memory more, MB": round(memory - baseline[2], 1)}  # fmt: skip


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
            time.sleep(options.away)  # long enough for the longest wait between attempts
            server.start()
            began = time.time()
            until(lambda: hub.cameras()[0].state == "live", 60)
            seconds.append(hub.cameras()[0].history[-1].at - began)
    return {"times": len(seconds), "median, s": round(statistics.median(seconds), 2),
            "longest, s": round(max(seconds), 2), "away for, s": options.away}  # fmt: skip


# What is printed.


def conditions(options: argparse.Namespace) -> dict[str, Any]:
    choice, limit_ms = choice_of(options)
    return {
        "machine": f"{processor_name()}, {available_cores()} cores, shared with the RTSP server",
        "network": f"{options.model}, {choice.runtime}, {choice.threads or 'all'} threads,"
                   f" {options.size or 'size by the picture'}",
        "limit": f"{limit_ms:g} ms",
        "cameras": "threads" if options.inline else "processes",
    }  # fmt: skip


def show(name: str, result: dict[str, Any]) -> None:
    print(f"\n{name}", file=sys.stderr)
    if "rows" not in result:
        for key, value in result.items():
            print(f"{key:{WIDTH}}{value}", file=sys.stderr)
        return
    rows = result["rows"]
    print(f"{'ms':{WIDTH}}" + "".join(f"{row:>36}" for row in rows), file=sys.stderr)
    for key in next(iter(rows.values())):
        print(
            f"{key:{WIDTH}}" + "".join(f"{row[key]:>36}" for row in rows.values()), file=sys.stderr
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--budget", action="store_true", help="latency by stage")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each row of the budget")
    parser.add_argument("--overload", type=float, metavar="SECONDS")
    parser.add_argument("--reconnects", type=int, metavar="N")
    parser.add_argument("--return", type=int, metavar="N")
    parser.add_argument("--away", type=float, default=12.0, help="seconds a server stays away")
    parser.add_argument("--cameras", type=int, default=8)
    parser.add_argument("--factor", type=float, default=10.0, help="offered over possible")
    parser.add_argument("--max-latency", type=float, metavar="MS")
    parser.add_argument("--inline", action="store_true", help="cameras as threads")
    for name, usual in (("model", "roadnet"), ("engine", "auto"), ("precision", "auto"),
                        ("size", "")):  # fmt: skip
        parser.add_argument(f"--{name}", default=usual)
    parser.add_argument("--look", help=argparse.SUPPRESS)
    parser.add_argument("--names", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not any((options.budget, options.overload, options.reconnects, getattr(options, "return"),
                options.look)):  # fmt: skip
        parser.error("say what to measure: --budget, --overload, --reconnects or --return")
    return options


def main() -> None:
    options = parse()
    if options.look:
        asyncio.run(look(options.look, options.names, options.seconds))
        return
    asked: dict[str, tuple[Any, Callable[[argparse.Namespace], dict[str, Any]]]] = {
        "budget": (options.budget, budget), "overload": (options.overload, overload),
        "reconnects": (options.reconnects, reconnects),
        "return": (getattr(options, "return"), comings_back),
    }  # fmt: skip
    found: dict[str, Any] = {"conditions": conditions(options)}
    show("conditions", found["conditions"])
    for name, (wanted, measure) in asked.items():
        if wanted:
            found[name] = measure(options)
            show(name, found[name])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
