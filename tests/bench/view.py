"""What do viewers cost the server: twenty against one? And what becomes of one that stops reading?

    python -m tests.bench.view --viewers 20 --seconds 30

A server process plays a camera at 25 frames a second, runs the shipped network on every frame as
`roadmask live` does, and serves the view; viewers are a process of their own, so that their CPU is not
counted. The server's own CPU time is taken at both ends of each round: nobody, one, many, and many with one
more that never reads. Rounds are repeated, medians shown. With `--no-network` the view's cost stands alone.
Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
import urllib.request

import aiohttp

from models.spec import find_model
from pipeline.engines import choose_engine, engine_factory
from pipeline.view.wire import unpack_frame
from tests.fake_hub import FakeHub, street
from tests.test_view import deaf_viewer

FPS = 25.0
ROUNDS = ("nobody", "one", "many", "many and one deaf")


def serve(network: bool, stall_seconds: float) -> None:
    """The server process; ends with its standard input."""
    from pipeline.view import ViewConfig, start_view

    hub = FakeHub(street(), FPS)
    hub.add("rtsp://camera.example/x", "front")
    if network:
        label_with_network(hub)
    with start_view(hub, ViewConfig(port=0, stall_seconds=stall_seconds)) as view:
        print(view.url, flush=True)
        for _ in sys.stdin:
            print(time.process_time(), flush=True)
    hub.close()


def label_with_network(hub: FakeHub) -> None:
    """Makes the camera run the network on each frame: what a live run's server does anyway."""
    files = find_model("roadnet")
    spec = files.spec()
    step = engine_factory(choose_engine("auto"), files, spec, 1)(street()[0][1].shape).step
    planes = street()[0][0]
    hub.by_name["front"].busy = lambda: step(planes[None, None], [0], [False])  # type: ignore[assignment]


def cpu_seconds(server: subprocess.Popen[str]) -> float:
    """CPU time of the server so far, all its threads."""
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write("\n")
    server.stdin.flush()
    return float(server.stdout.readline())


async def watch(url: str, seconds: float) -> int:
    """One viewer: the frames it got."""
    frames, until = 0, time.monotonic() + seconds
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{url}ws") as ws:
        await ws.send_json({"type": "watch", "cameras": {"front": "h264"}})
        while (left := until - time.monotonic()) > 0:
            try:
                message = await ws.receive(left)
            except TimeoutError:
                break
            if message.type is aiohttp.WSMsgType.BINARY:
                frames += 1
                if frames == 1:
                    unpack_frame(message.data)
            elif message.type is not aiohttp.WSMsgType.TEXT:
                raise RuntimeError(f"the server ended the connection: {message}")
    return frames


def audience(url: str, viewers: int, seconds: float) -> None:
    """The viewers' process; prints the frames that each of them got."""

    async def together() -> list[int]:
        return await asyncio.gather(*(watch(url, seconds) for _ in range(viewers)))

    print(json.dumps(asyncio.run(together())))


def measure(
    server: subprocess.Popen[str], url: str, viewers: int, seconds: float
) -> tuple[float, list[int]]:
    """Share of a core that the server takes, and the frames a second each viewer gets."""
    # Longer than what is measured at both ends: joining is not counted.
    command = [sys.executable, "-m", "tests.bench.view", "--audience", url]
    command += ["--viewers", str(viewers), "--seconds", str(seconds + 4)]
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, text=True) if viewers else None
    time.sleep(3)
    began, before = time.monotonic(), cpu_seconds(server)
    time.sleep(seconds)
    share = (cpu_seconds(server) - before) / (time.monotonic() - began)
    if watching is None:
        return share, []
    frames = json.loads(watching.communicate(timeout=120)[0])
    return share, [round(count / (seconds + 4), 1) for count in frames]


def metric(url: str, name: str) -> float:
    with urllib.request.urlopen(f"{url}metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


def run_round(
    name: str, server: subprocess.Popen[str], url: str, viewers: int, seconds: float
) -> dict[str, float]:
    """Cores the server takes, frames a second of the worst viewer, and deaf viewers dropped."""
    count = {"nobody": 0, "one": 1}.get(name, viewers)
    stalled = 'roadmask_viewers_left_total{reason="stalled"}'
    before = metric(url, stalled)
    deaf = deaf_viewer(url) if name.endswith("deaf") else None
    share, rates = measure(server, url, count, seconds)
    found = {"cores": share, "fps": min(rates, default=0.0)}
    if deaf is not None:
        found["dropped"] = metric(url, stalled) - before
        deaf.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--viewers", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-network", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--audience", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        return serve(not given.no_network, given.seconds / 3)
    if given.audience:
        return audience(given.audience, given.viewers, given.seconds)
    command = [sys.executable, "-m", "tests.bench.view", "--serve", "--seconds", str(given.seconds)]
    command += ["--no-network"] * given.no_network
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        found: dict[str, list[dict[str, float]]] = {name: [] for name in ROUNDS}
        for _ in range(given.rounds):
            for name in ROUNDS:
                found[name].append(run_round(name, server, url, given.viewers, given.seconds))
    finally:
        server.communicate(timeout=60)  # its standard input ends, and so does it
    return show(found, given.viewers)


def show(found: dict[str, list[dict[str, float]]], viewers: int) -> None:
    """The table, and as the last line the same as JSON."""
    medians = {
        name: {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
        for name, rounds in found.items()
    }
    for name, figures in medians.items():
        print(
            f"{name:20}{100 * figures['cores']:7.1f} % of a core{figures['fps']:7.1f} fps a viewer"
        )
    more = medians["many"]["cores"] / medians["one"]["cores"] - 1
    dropped = medians["many and one deaf"]["dropped"]
    print(
        f"{viewers} viewers cost {100 * more:+.1f} % against one; deaf viewers dropped: {dropped:.0f}"
    )
    print(json.dumps({"viewers": viewers, "more_cpu": round(more, 4), "rounds": medians}))


if __name__ == "__main__":
    main()
