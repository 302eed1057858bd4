"""Does anything get lost when processes are killed?

    python -m tests.bench.chaos --runs 300

Each run labels two short clips and is killed one to five times, at moments drawn from its seed: the driver,
a decoder, segmenter, sink or fused actor, or all of its processes at once. It goes on with --resume, by
itself where only an actor died, and must end with the results of a run that nobody disturbed: labels byte
for byte, videos, time stamps and statistics, but for latencies and the manifest's times. Prints a line a
run, and at the end a line of JSON with the seconds from kill to the next new frame.

Moments are counted in frames, not in seconds, so that they are spread alike over slow and fast machines.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, StageError
from pipeline.run import RunConfig, prepare, run
from pipeline.sinks import OutputOptions
from pipeline.stages import Progress, SourceReport
from tests.bench.memory import SAMPLE, family

FRAMES = {"longer": 200, "shorter": 110}
SIZE_HW = (270, 480)
GIVE_UP_SECONDS = 500.0  # sooner than pytest ends all of a run for one slow test
TRY_AGAIN = 75  # exit status of a run for which Ray was not there in time, as on a crowded machine
_ACTORS = {
    "inline": (), "fused": ("FusedActor",), "spread": ("DecoderActor", "SegmenterActor", "SinkActor"),
}  # fmt: skip


@dataclass(frozen=True)
class Kill:
    """What is killed, and when.

    Attributes:
        victim: "driver", "all", or an actor's name.
        frame: once so many frames are done, of both clips together.
        delay_seconds: after that.
    """

    victim: str
    frame: int
    delay_seconds: float


@dataclass(frozen=True)
class Case:
    """One run of the test, all of it drawn from its seed.

    Attributes:
        embedded: Ray is the run's own and dies with it, instead of one that stays.
    """

    seed: int
    placement: str
    engine: str
    labels: str
    embedded: bool
    kills: tuple[Kill, ...]

    @classmethod
    def draw(cls, seed: int) -> Case:
        dice = random.Random(seed)
        placement = dice.choice(["inline", "fused", "spread"])
        total = sum(FRAMES.values())
        kills = [
            Kill(
                dice.choice(["driver", "all", *_ACTORS[placement] * 2]),
                dice.choice([0, dice.randrange(total), dice.randrange(total), total - 1]),
                dice.choice([0.0, dice.uniform(0, 0.2)]),
            )
            for _ in range(dice.randint(1, 5))
        ]
        kills.sort(key=lambda kill: kill.frame)
        return cls(
            seed, placement, dice.choice(["counting", "counting", "cpu"]),
            dice.choice(["mkv", "mkv", "png"]), dice.random() < 0.15, tuple(kills),
        )  # fmt: skip


@dataclass
class Outcome:
    """What happened in a run.

    Attributes:
        killed: processes of the run that were killed, by what they were.
        missed: kills that came too late: the run was over.
        seconds_to_frame: from each kill to the next new frame.
        differences: what is not as in an undisturbed run; empty if all is well.
    """

    killed: list[str] = field(default_factory=list)
    missed: int = 0
    seconds_to_frame: list[float] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


def make_clips(folder: Path) -> list[Path]:
    """Two clips of the sample, small and short, with sound."""
    clips, start = [], 0.0
    for name, frames in FRAMES.items():
        path = folder / f"{name}.mp4"
        command = ["ffmpeg", "-nostdin", "-v", "error", "-y", "-ss", str(start), "-i", str(SAMPLE),
                   "-f", "lavfi", "-i", "sine=frequency=440", "-frames:v", str(frames), "-shortest",
                   "-vf", f"scale={SIZE_HW[1]}:{SIZE_HW[0]}", "-c:v", "libx264", "-preset",
                   "veryfast", "-g", "40", "-c:a", "aac", str(path)]  # fmt: skip
        subprocess.run(command, check=True)
        clips.append(path)
        start += 2
    return clips


def config(
    clips: list[Path], out: Path, case: Case, resume: bool, address: str | None
) -> RunConfig:
    return RunConfig(
        tuple(map(str, clips)), out, OutputOptions(labels=case.labels, overlay=True),
        engine=case.engine, size_hw=(96, 160), placement=case.placement, address=address,
        chunk=4, resume=resume, checkpoint_seconds=0,
    )  # fmt: skip


def contents(out: Path) -> dict[str, Any]:
    """Hashes of what a run has left of its sources, without what is measured or tells the time."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        name = str(path.relative_to(out))
        if name == "report.json" or name.startswith(".roadmask"):  # the run's own
            continue
        if path.name == "stats.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{**line, "latency_ms": 0} for line in lines]
        elif path.name == "manifest.json":
            manifest = json.loads(path.read_text())
            for key in ("started_at", "finished_at", "resumed_at", "placement", "engine"):
                del manifest[key]
            manifest["outputs"]["stats.jsonl"]["bytes"] = 0  # latencies have more or fewer digits
            found[name] = manifest
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


class Tester:
    """Runs cases against references, each of which is made once.

    Args:
        folder: for clips and results.
        address: of the Ray that stays.
        ray: its process.
    """

    __test__ = False  # by its name pytest would take it for a class of tests

    def __init__(self, folder: Path, address: str, ray: int) -> None:
        self.folder, self.address, self.ray = folder, address, ray
        self.clips = make_clips(folder)
        self._references: dict[tuple[str, str], dict[str, Any]] = {}

    def reference(self, case: Case) -> dict[str, Any]:
        key = (case.engine, case.labels)
        if key not in self._references:
            out = self.folder / f"reference-{'-'.join(key)}"
            plain = Case(0, "inline", *key, embedded=False, kills=())
            for event in run(prepare(config(self.clips, out, plain, False, None))):
                assert isinstance(event, Progress) or event.error is None, event
            self._references[key] = contents(out)
        return self._references[key]

    def test(self, case: Case) -> Outcome:
        """Run a case to its end, whatever it takes."""
        wanted, outcome, kills = self.reference(case), Outcome(), list(case.kills)
        with tempfile.TemporaryDirectory(dir=self.folder) as out:
            resume, deadline = False, time.monotonic() + GIVE_UP_SECONDS
            while not self._once(case, Path(out), resume, kills, outcome):
                resume = True
                if time.monotonic() > deadline:
                    outcome.differences.append("it never came to an end")
                    return outcome
            outcome.missed += len(kills)
            found = contents(Path(out))
            outcome.differences += [
                name for name in sorted(found.keys() | wanted.keys())
                if found.get(name) != wanted.get(name)
            ]  # fmt: skip
        return outcome

    def _once(
        self, case: Case, out: Path, resume: bool, kills: list[Kill], outcome: Outcome
    ) -> bool:
        """Start a run and see it to its end or death; whether it is done."""
        ray = case.placement != "inline" and not case.embedded
        arguments = {"case": case.seed, "clips": list(map(str, self.clips)), "out": str(out),
                     "resume": resume, "address": self.address if ray else None}  # fmt: skip
        command = [sys.executable, "-m", "tests.bench.chaos", "--worker", json.dumps(arguments)]
        # The Ray that stays asks for no token, and one that began here earlier may have left its own behind.
        environment = {**os.environ, **({"RAY_AUTH_MODE": "disabled"} if ray else {})}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment
        ) as worker:
            assert worker.stdout is not None
            roots = [worker.pid, *([self.ray] if ray else [])]
            for line in worker.stdout:
                if not (line.startswith("{") and line.endswith("}\n")):
                    continue  # cut off by a kill, or said by Ray
                event = json.loads(line)
                self._pass(event, outcome)
                while kills and event["frames"] >= kills[0].frame:
                    kill = kills.pop(0)
                    time.sleep(kill.delay_seconds)
                    self._kill(kill.victim, worker, roots, outcome)
        if worker.returncode not in (0, TRY_AGAIN, -signal.SIGKILL):
            outcome.differences.append(f"a run ended with status {worker.returncode}")
        return worker.returncode not in (TRY_AGAIN, -signal.SIGKILL)

    _killed_at: float | None = None
    _frames = 0

    def _pass(self, event: dict[str, Any], outcome: Outcome) -> None:
        if self._killed_at is not None and event["new"]:
            outcome.seconds_to_frame.append(time.monotonic() - self._killed_at)
            self._killed_at = None
        for error in event["errors"]:
            outcome.differences.append(error)

    def _kill(
        self, victim: str, worker: subprocess.Popen[str], roots: list[int], outcome: Outcome
    ) -> None:
        """Kill a victim, once it is there; nobody, if the run ends before."""
        while worker.poll() is None:
            chosen = _victims(victim, worker.pid, roots)
            for pid in chosen:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if chosen:
                outcome.killed.append(victim)
                self._killed_at = time.monotonic()
                return
            time.sleep(0.02)
        outcome.missed += 1


def _victims(victim: str, driver: int, roots: list[int]) -> list[int]:
    if victim == "driver":
        return [driver]
    names = tuple(f"ray::{name}" for names in _ACTORS.values() for name in names)
    titles = {pid: _title(pid) for root in roots for pid in family(root)}
    actors = {pid: title for pid, title in titles.items() if title.startswith(names)}
    if victim == "all":
        return list(dict.fromkeys([driver, *family(driver), *actors]))
    return [pid for pid, title in actors.items() if title.startswith(f"ray::{victim}")]


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def work(arguments: dict[str, Any]) -> None:
    """The run itself, as a process: a line of JSON an event."""
    case, begun = Case.draw(arguments["case"]), False
    plan = prepare(
        config(list(map(Path, arguments["clips"])), Path(arguments["out"]), case,
               arguments["resume"], arguments["address"])
    )  # fmt: skip
    print(json.dumps({"frames": 0, "new": False, "errors": []}), flush=True)
    done: dict[str, int] = {}
    for event in run(plan):
        errors = [event.error] if isinstance(event, SourceReport) and event.error else []
        # The first event of a source that is gone on with tells what there was already.
        begun = isinstance(event, Progress) and event.frames > done.get(event.stream_id, 10**9)
        done[event.stream_id] = event.frames
        print(
            json.dumps({"frames": sum(done.values()), "new": begun, "errors": errors}), flush=True
        )  # fmt: skip


_RAY = """
import ray, sys
ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False,
         object_store_memory=256 * 2**20)
print("address", ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@contextmanager
def lasting_ray() -> Iterator[tuple[str, int]]:
    """A Ray that outlives the runs; gives its address and its process."""
    command, address = [sys.executable, "-c", _RAY], None
    with ExitStack() as stack:
        # Ray gives up after half a minute, which may not do on a crowded machine.
        for _ in range(3):
            ray = stack.enter_context(subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                text=True, env={**os.environ, "RAY_AUTH_MODE": "disabled"},
            ))  # fmt: skip
            assert ray.stdout is not None
            found = (line.split()[1] for line in ray.stdout if line.startswith("address "))
            if (address := next(found, None)) is not None:
                break
        if address is None:
            raise RuntimeError("Ray did not start")
        yield address, ray.pid  # it ends with its standard input, which the stack closes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--first", type=int, default=1, help="the first run's seed")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        try:
            work(json.loads(options.worker))
        except (StageError, ConfigError) as error:
            # Not reaching the Ray that stays is no failure of the run; a wrong configuration is.
            if isinstance(error, ConfigError) and not str(error).startswith("no Ray cluster at"):
                raise
            print(error, file=sys.stderr)
            sys.exit(TRY_AGAIN)
        return
    bad, seconds, killed = 0, [], 0
    with tempfile.TemporaryDirectory() as folder, lasting_ray() as (address, ray):
        tester = Tester(Path(folder), address, ray)
        for seed in range(options.first, options.first + options.runs):
            case = Case.draw(seed)
            began = time.monotonic()
            outcome = tester.test(case)
            bad += bool(outcome.differences)
            killed += len(outcome.killed)
            seconds += outcome.seconds_to_frame
            print(
                f"{seed}: {case.placement} {case.engine} {case.labels}"
                f"{' embedded' if case.embedded else ''}, killed {outcome.killed}, missed"
                f" {outcome.missed}, {time.monotonic() - began:.1f} s:"
                f" {outcome.differences or 'equal'}",
                file=sys.stderr, flush=True,
            )  # fmt: skip
    result = {"runs": options.runs, "different": bad, "processes_killed": killed}
    if seconds:
        result |= {"to_next_frame_s": round(statistics.median(seconds), 2),
                   "to_next_frame_s_max": round(max(seconds), 2)}  # fmt: skip
    print(json.dumps(result))
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
