"""How well does a job use several machines?

    python -m tests.bench.cluster efficiency --clips 200 --nodes 1 2 4
    python -m tests.bench.cluster overhead
    python -m tests.bench.cluster listing --sources 100000
    python -m tests.bench.cluster warmup

Each node is a Ray node in a network namespace of its own, with its own address, on a virtual switch (needs
root and iproute2); what they compute with is the cores of this one machine. `efficiency` labels short clips
by an engine that takes a fixed time a frame and no CPU, so that more nodes can be faster on few cores, and
gives the time on one node over that on N times N. `overhead` uses an engine that takes no time: what is left
is decoding, writing and the way in between. `listing` runs the driver's part of a job, alone, over so many
files. `warmup` gives the share of pixels that a span's labels have in common with those of the whole file.

Every measurement ends in a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import media

REPOSITORY = Path(__file__).resolve().parents[2]
_START_SECONDS = 120.0
_OBJECT_STORE = 100 * 2**20
_PORT = 6399


def has_namespaces() -> bool:
    """Whether network namespaces can be made here."""
    if os.geteuid() or not shutil.which("ip"):
        return False
    name = f"rmtry{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return False
    subprocess.run(["ip", "netns", "del", name], check=False)
    return True


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@dataclass
class Node:
    """A Ray node in a network namespace.

    Attributes:
        name: of the namespace.
        address: its own.
        process: `ray start`, which stays as long as the node does.
        log: what that says.
    """

    name: str
    address: str
    process: subprocess.Popen[bytes]
    log: Path

    def pids(self) -> list[int]:
        """All processes of the node."""
        shown = subprocess.run(
            ["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False
        ).stdout
        return [int(pid) for pid in shown.split()]

    def kill(self) -> None:
        """As when the power goes."""
        while pids := self.pids():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.poll()
            time.sleep(0.05)
        self.process.wait()

    def cut_off(self) -> None:
        """As when its cable is pulled: it goes on, and nobody hears of it."""
        _ip("-n", self.name, "link", "set", "eth0", "down")


@dataclass
class Cluster:
    """Ray nodes that see each other and nothing else; the head is where the driver runs, and has no cores.

    As a context manager it takes everything down at the end.

    Args:
        folder: for Ray's files.
    """

    folder: Path
    nodes: list[Node] = field(default_factory=list)

    def __enter__(self) -> Cluster:
        self._id = f"{os.getpid() % 100000}"
        self._net = f"10.{100 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
        self._bridge = f"rmb{self._id}"
        _ip("link", "add", "name", self._bridge, "type", "bridge")
        _ip("addr", "add", f"{self.outside}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        self._temp = tempfile.mkdtemp(prefix="rm", dir="/tmp")  # paths of sockets are short
        self._names: list[str] = []
        try:
            self.head = self.start(cpus=0, head=True)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for node in self.nodes:
            node.kill()
        for name in self._names:
            subprocess.run(["ip", "netns", "del", name], check=False)
        subprocess.run(["ip", "link", "del", self._bridge], check=False)
        shutil.rmtree(self._temp, ignore_errors=True)

    @property
    def outside(self) -> str:
        """The address of this machine, as the nodes see it."""
        return f"{self._net}.254"

    @property
    def address(self) -> str:
        """Where the cluster is, for `--address`."""
        return f"{self._net}.1:{_PORT}"

    def start(
        self,
        cpus: int = 1,
        *,
        head: bool = False,
        before: str = "",
        environment: dict[str, str] | None = None,
    ) -> Node:
        """Add a node. One after the other: those that start at once are in each other's way.

        Args:
            before: shell command that runs first, where mounts are seen by this node alone.
            environment: variables of its processes.
        """
        number = len(self._names) + 1
        name, address = f"rm{self._id}-{number}", f"{self._net}.{number}"
        self._connect(name, address, number)
        where = (["--head", f"--port={_PORT}", f"--temp-dir={self._temp}", "--include-dashboard=false"]
                 if head else [f"--address={self.address}"])  # fmt: skip
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *where, "--block",
                   f"--node-ip-address={address}", f"--num-cpus={cpus}",
                   f"--object-store-memory={_OBJECT_STORE}", "--disable-usage-stats"]  # fmt: skip
        shell = f"{before or ':'} && exec {' '.join(command)}"
        log = (self.folder / f"node{number}.log").open("wb")
        process = subprocess.Popen(
            ["ip", "netns", "exec", name, "sh", "-c", shell], stdout=log, stderr=log,
            env=_environment(environment),
        )  # fmt: skip
        node = Node(name, address, process, Path(log.name))
        self.nodes.append(node)
        self._wait(node)
        return node

    def _connect(self, name: str, address: str, number: int) -> None:
        _ip("netns", "add", name)
        self._names.append(name)
        inner, outer = "eth0", f"rmv{self._id}-{number}"[:15]
        _ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
        _ip("link", "set", outer, "master", self._bridge, "up")
        _ip("-n", name, "addr", "add", f"{address}/24", "dev", inner)
        _ip("-n", name, "link", "set", inner, "up")
        _ip("-n", name, "link", "set", "lo", "up")

    def _wait(self, node: Node) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while b"Ray runtime started" not in (text := node.log.read_bytes()):
            if node.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"a Ray node did not start: {text.decode(errors='replace')}")
            time.sleep(0.1)

    def command(self, *arguments: object) -> list[str]:
        """`roadmask run` beside the head, with this cluster."""
        return ["ip", "netns", "exec", self.head.name, sys.executable, "-m", "pipeline.cli", "run",
                "--address", self.address, *map(str, arguments)]  # fmt: skip

    def run(
        self, *arguments: object, timeout: float = 600, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a job to its end."""
        return subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=timeout, check=False,
            env=_environment(environment),
        )  # fmt: skip

    def begin(
        self, *arguments: object, environment: dict[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Begin a job."""
        return subprocess.Popen(
            self.command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=_environment(environment),
        )  # fmt: skip


def _environment(more: dict[str, str] | None) -> dict[str, str]:
    """The processes find this repository, and talk to no proxy about each other."""
    return {
        **os.environ, "PYTHONPATH": str(REPOSITORY), "RAY_AUTH_MODE": "disabled", "no_proxy": "*",
        "RAY_worker_niceness": "0",
        # A node that is silent for so long is dead: 15 s instead of half a minute.
        "RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "5000",
        "RAY_health_check_failure_threshold": "3", **(more or {}),
    }  # fmt: skip


def make_clips(folder: Path, count: int, frames: int) -> None:
    """Short clips of different content; all but the first few are links to those."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        clip = folder / f"clip{number:03d}.mp4"
        if number < 4:
            media.write_moving_clip(clip, frames, seed=number)
        else:
            shutil.copyfile(folder / f"clip{number % 4:03d}.mp4", clip)


def measure_efficiency(
    nodes: Sequence[int], clips: int, frames: int, milliseconds: float
) -> dict[str, Any]:
    """Seconds for the same clips on so many nodes of one lane each."""
    seconds: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_clips(folder / "in", clips, frames)
        for count in nodes:
            with Cluster(folder) as cluster:
                slow = {"ROADMASK_COUNTING_MS": str(milliseconds)}
                for _ in range(count):
                    cluster.start(environment=slow)
                report = _timed_job(cluster, folder / "in", folder / f"out{count}")
                assert report["done"] == clips, report
                seconds[count] = report["working_seconds"]
                print(f"{count} nodes: {seconds[count]:.1f} s", file=sys.stderr, flush=True)
    one = seconds[min(seconds)] * min(seconds)
    return {
        "clips": clips, "frames": frames, "engine_ms": milliseconds,
        "seconds": {n: round(s, 2) for n, s in seconds.items()},
        "efficiency": {n: round(one / (n * s), 3) for n, s in seconds.items()},
    }  # fmt: skip


def _timed_job(cluster: Cluster, source: Path, out: Path, *more: str) -> dict[str, Any]:
    done = cluster.run(f"{source}/*.mp4", "--out", out, "--engine", "counting", "-q", "--no-color",
                       "--size", "96x128", *more, timeout=1800)  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr)
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def measure_overhead(sites: Sequence[int], clips: int, frames: int) -> dict[str, Any]:
    """Frames a second through so many segmenters that take no time, on a node each."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_clips(folder / "in", clips, frames)
        for count in sites:
            with Cluster(folder) as cluster:
                for _ in range(count):
                    cluster.start(cpus=3)  # a segmenter, and two lanes
                report = _timed_job(
                    cluster, folder / "in", folder / f"out{count}", "--placement", "spread"
                )
                found[count] = round(report["frames"] / report["working_seconds"], 1)
                print(f"{count} segmenters: {found[count]} fps", file=sys.stderr, flush=True)
    return {"clips": clips, "frames": frames, "fps": found}


def measure_listing(sources: int) -> dict[str, Any]:
    """The driver's part over so many sources, by workers that are done at once; MB at its peak and before."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(sources):
            path = folder / "in" / f"{number // 1000:04d}" / f"{number:07d}.mp4"
            if number % 1000 == 0:
                path.parent.mkdir(parents=True)
            path.touch()
        paths = f"{str(folder / 'in')!r}, {str(folder / 'out')!r}"
        code = f"from tests.bench.cluster import drive; drive({paths})"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY
        )
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found


def drive(source: str, out: str) -> None:
    """Run a job's driver over a tree of files; whoever works on them is done at once. Prints JSON."""
    from pipeline.cluster.catalogue import Catalogue
    from pipeline.cluster.feed import Retried
    from pipeline.cluster.ledger import Ledger, Lock
    from pipeline.cluster.listing import Listed, listed
    from pipeline.engines import EngineChoice
    from pipeline.progress import Display
    from pipeline.sinks import OutputOptions
    from pipeline.stages import Job, Progress, SourceReport

    job = Job(Path(out), OutputOptions(), "roadnet", EngineChoice("counting", "NumPy", "asked for"))
    peaks, began = {"begin": _peak_mb()}, time.monotonic()
    with Lock(out), Catalogue() as catalogue, Display(quiet=True) as display:
        catalogue.fill(item for item in listed([f"{source}/**/*.mp4"]) if isinstance(item, Listed))
        peaks["listed"], listing = _peak_mb(), time.monotonic() - began
        ledger = Ledger(out, anew=True)
        feed = Retried(job, catalogue, ledger, 3, lambda line: None)
        display.begin(feed.pending())
        done = 0
        while (work := feed.take(())) is not None:
            name = work.source.stream_id
            display.show(Progress(name, 1, 1))
            for report in feed.reported(work, SourceReport(name, work.source.uri, 1)):
                display.show(report)
            done += 1
            if done == 1000:
                peaks["1000 done"] = _peak_mb()
        ledger.close()
        counts = catalogue.counts()
    peaks["all done"] = _peak_mb()
    seconds = time.monotonic() - began
    print(json.dumps({
        "sources": counts.done, "peak_mb": peaks, "listing_seconds": round(listing, 1),
        "seconds": round(seconds, 1),
        "growth_mb": round(peaks["all done"] - peaks["1000 done"], 1),
        "sources_a_second": round(counts.done / max(1e-3, seconds - listing), 1),
    }))  # fmt: skip


def _peak_mb() -> float:
    """Of this process alone: what `getrusage` tells begins with the peak of whoever started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    peak_kb = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return round(peak_kb / 1024, 1)


def measure_warm_up(clip: Path, lengths: Sequence[int], precision: str) -> dict[str, Any]:
    """Share of equal pixels behind a seam, by the frames before it that were seen too: of the worst frame, of
    the first, and of two seconds."""
    import numpy as np

    from pipeline.engines import choose_engine
    from pipeline.frames import FrameBatch
    from pipeline.run import model_files
    from pipeline.sinks import OutputOptions
    from pipeline.sources import expand
    from pipeline.stages import Job, make_decoder, make_segmenter

    files, _ = model_files("roadnet")
    job = Job(Path(), OutputOptions(), str(files.folder), choose_engine("auto", precision), chunk=1, slots=1,
              checkpoint_seconds=None)  # fmt: skip
    with make_decoder(job, expand([str(clip)]).sources[0]) as decoder:
        frames = [item for item in decoder if isinstance(item, FrameBatch)]
    segmenter = make_segmenter(job)

    def labels(begin: int, end: int) -> np.ndarray:
        return np.concatenate([batch.labels for batch in segmenter.labels(iter(frames[begin:end]))])  # type: ignore[union-attr]

    whole = labels(0, len(frames))
    found = {}
    for length in lengths:
        same = []
        for seam in range(max(lengths), len(frames) - 30, 40):
            behind = labels(seam - length, min(len(frames), seam + 60))[length:]
            same.append(
                [float((a == b).mean()) for a, b in zip(behind, whole[seam:], strict=False)]
            )
        found[length] = {
            "worst_frame": round(min(map(min, same)), 5),
            "first_frame": round(min(row[0] for row in same), 5),
            "two_seconds": round(min(sum(row) / len(row) for row in same), 5),
        }
        print(length, found[length], file=sys.stderr, flush=True)
    return {"clip": clip.name, "runtime": job.choice.runtime, "agreement": found}


@contextmanager
def s3_server(address: str = "127.0.0.1") -> Iterator[str]:
    """An S3-compatible server on this machine, by moto; gives its address."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(address, 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("efficiency", "overhead", "listing", "warmup"))
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--milliseconds", type=float, default=40.0, help="a frame, of the engine")
    parser.add_argument("--sources", type=int, default=100_000)
    parser.add_argument(
        "--clip", type=Path, default=REPOSITORY / "sample_videos" / "city_drive.mp4"
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[0, 4, 8, 16, 32, 48, 64, 96])
    parser.add_argument("--precision", default="auto")
    options = parser.parse_args()
    if options.what == "efficiency":
        result = measure_efficiency(
            options.nodes, options.clips, options.frames, options.milliseconds
        )
    elif options.what == "overhead":
        result = measure_overhead([1, 4], options.clips, options.frames)
    elif options.what == "listing":
        result = measure_listing(options.sources)
    else:
        result = measure_warm_up(options.clip, options.lengths, options.precision)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
