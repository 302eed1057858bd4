"""How soon cameras are served again when the node that labels them is killed, cut off, or is to go.

    python -m tests.bench.fleet --kill 5 --cut 5 --drain 5
    python -m tests.bench.fleet --kill 5 --engine counting --size 64x96   # without a network's work

Ray nodes in network namespaces with addresses of their own (needs root and iproute2): a head that labels
nothing, and `--nodes` that do. A real RTSP server gives the cameras, each of them a process. Each time a
node is taken away: all its processes are killed at once (SIGKILL), its cable is pulled, or Ray is told that
it is to go; then a new node is started. What is measured is the time from then to the first frame of each
of its cameras that another node has labelled. Ends by itself with a table and its conditions, and as the
last line the same as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline.bench.measure import processor_name
from pipeline.settings import available_cores
from tests.bench.cluster import REPOSITORY, Cluster, has_namespaces
from tests.cameras import RtspServer, mount, until

WAYS = ("kill", "cut", "drain")
LIMIT_SECONDS = 10.0
WIDTH = 34


# The driver of the fleet, in the head's namespace. It prints what is to be done to which node.


def drive(options: argparse.Namespace) -> None:
    from pipeline import __version__
    from pipeline.live.actors import nodes
    from pipeline.live.config import LiveConfig, prepare_live
    from pipeline.live.fleet import Fleet
    from pipeline.live.site import Expected

    height, width = map(int, options.size.split("x")) if options.size else (0, 0)
    config = LiveConfig(
        (),
        engine=options.engine,
        size_hw=(height, width) if height else None,
        address=options.drive,
    )
    plan = prepare_live(config)
    expected = Expected(__version__, plan.files.weights_sha256())
    found: dict[str, list[dict[str, Any]]] = {how: [] for how in WAYS}
    with (
        nodes(config, expected) as places,
        Fleet(plan.camera_config, places, say=lambda line: print(line, file=sys.stderr)) as fleet,
    ):
        for number, url in enumerate(options.urls):
            fleet.add(url, f"c{number}")
        for how in WAYS:
            for _ in range(getattr(options, how)):
                until(lambda: settled(fleet, options.nodes), 300)
                time.sleep(5.0)  # memories are fetched every two seconds
                found[how].append(lose(fleet, how, options.drive))
                print(json.dumps({"do": "start"}), flush=True)
    print(json.dumps({"found": found}), flush=True)


def settled(fleet: Any, count: int) -> bool:
    """Whether every camera is live, and all nodes have some."""
    live = all(status.state == "live" and status.fps > 0 for status in fleet.cameras())
    return live and len(set(fleet.where().values())) == count


def lose(fleet: Any, how: str, address: str) -> dict[str, Any]:
    """Have a node taken away, and wait until its cameras are served; seconds for each."""
    import ray
    from ray._raylet import GcsClient

    place = str(fleet.where()[fleet.cameras()[0].name])
    node = next(n for n in ray.nodes() if n["NodeID"] == place.partition("/")[0])
    names = [name for name, at in fleet.where().items() if at == place]
    before = {status.name: status for status in fleet.cameras()}
    feeds = {name: fleet.subscribe(name) for name in names}
    gone_at = time.time()
    if how == "drain":
        GcsClient(address=address).drain_node(node["NodeID"], 2, "bench", 0)
    else:
        print(json.dumps({"do": how, "node": node["NodeManagerAddress"]}), flush=True)
    seconds = {}
    for name, feed in feeds.items():
        while name not in seconds:
            shown = feed.take(60.0)
            if shown is None:
                raise RuntimeError(f"{name} was not served within 60 s")
            if fleet.where()[name] not in (place, None) and shown.labelled_at > gone_at:
                seconds[name] = shown.labelled_at - gone_at
        feed.close()
    after = {status.name: status for status in fleet.cameras()}
    if how == "drain":
        print(json.dumps({"do": "kill", "node": node["NodeManagerAddress"]}), flush=True)
    resets = sum(after[name].resets - before[name].resets for name in names)
    return {"seconds": list(seconds.values()), "resets": resets}


# The cluster around it.


def measure(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    names = [f"/c{number}" for number in range(options.cameras)]
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder)) as cluster:
        for _ in range(options.nodes):
            cluster.start(cpus=1)
        mounts = [mount(name, fps=options.fps) for name in names]
        with RtspServer(mounts, cluster.outside) as server:
            passed_on = (*WAYS, "nodes", "engine", "size")
            command = ["ip", "netns", "exec", cluster.head.name, sys.executable, "-m",
                       "tests.bench.fleet", "--drive", cluster.address,
                       *(f"--{name}={getattr(options, name)}" for name in passed_on),
                       "--urls", *map(server.url, names)]  # fmt: skip
            environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "no_proxy": "*",
                           "RAY_AUTH_MODE": "disabled"}  # fmt: skip
            driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
            try:
                return obey(driver, cluster)
            finally:
                driver.kill()
                driver.wait()


def obey(driver: subprocess.Popen[str], cluster: Cluster) -> dict[str, list[dict[str, Any]]]:
    """Do to the nodes what the driver says, until it gives what it found."""
    assert driver.stdout is not None
    for line in driver.stdout:
        said = json.loads(line)
        if "found" in said:
            return said["found"]
        if said["do"] == "start":
            cluster.start(cpus=1)
            continue
        node = next(node for node in cluster.nodes if node.address == said["node"])
        if said["do"] == "cut":
            node.cut_off()
        else:
            node.kill()
    raise RuntimeError("the driver ended before its time")


def show(options: argparse.Namespace, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    conditions = {
        "machine": f"{processor_name()}, {available_cores()} cores for everything",
        "cluster": f"{options.nodes} nodes and a head in network namespaces",
        "cameras": f"{options.cameras} at {options.fps} fps over RTSP, processes",
        "engine": options.engine,
    }
    result: dict[str, Any] = {"conditions": conditions}
    for key, value in conditions.items():
        print(f"{key:{WIDTH}}{value}", file=sys.stderr)
    for how, rounds in found.items():
        seconds = [one for each in rounds for one in each["seconds"]]
        if not seconds:
            continue
        result[how] = {
            "times": len(rounds), "cameras served again": len(seconds),
            "median, s": round(statistics.median(seconds), 2), "longest, s": round(max(seconds), 2),
            f"within {LIMIT_SECONDS:g} s": sum(one <= LIMIT_SECONDS for one in seconds),
            "memories begun anew": sum(each["resets"] for each in rounds),
        }  # fmt: skip
        print(f"\n{how}", file=sys.stderr)
        for key, value in result[how].items():
            print(f"{key:{WIDTH}}{value}", file=sys.stderr)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kill", type=int, default=0, metavar="N", help="nodes killed")
    parser.add_argument("--cut", type=int, default=0, metavar="N", help="nodes cut off")
    parser.add_argument("--drain", type=int, default=0, metavar="N", help="nodes drained")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--cameras", type=int, default=4)
    parser.add_argument("--fps", type=int, default=5)
    parser.add_argument("--engine", default="cpu")
    parser.add_argument("--size", default="")
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    parser.add_argument("--urls", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        drive(options)
        return
    if not any(getattr(options, how) for how in WAYS):
        parser.error("say what to do: --kill, --cut or --drain")
    if not has_namespaces():
        parser.error("network namespaces cannot be made here: it needs root and iproute2")
    print(json.dumps(show(options, measure(options))))


if __name__ == "__main__":
    main()
