"""What does the journal cost, and how soon does a killed run go on?

    python -m tests.bench.journal --rounds 5

Runs `roadmask run` on the sample clip with a checkpoint every five seconds, as always, and with none, in
turn, and compares frames a second and the CPU time a frame, which a noisy machine disturbs less; then kills
runs half-way and times `--resume` from its start to the first new frame, and the same for a fused actor,
which the run replaces itself. Prints a line of JSON; run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline.bench.measure import Contender, measure
from pipeline.bench.sweeps import pipeline
from pipeline.run import RunConfig, prepare, run
from pipeline.sinks import OutputOptions
from tests.bench.memory import SAMPLE, family

NEVER_SECONDS = 1e9
HALF_WAY = 150  # frames


def config(out: Path, placement: str, checkpoint_seconds: float, resume: bool = False) -> RunConfig:
    return RunConfig(
        (str(SAMPLE),), out, OutputOptions(overlay=True), placement=placement,
        checkpoint_seconds=checkpoint_seconds, resume=resume,
    )  # fmt: skip


def cost(placement: str, rounds: int) -> dict[str, Any]:
    """Frames a second and CPU time a frame, with checkpoints and without; the journal's share of them."""
    with tempfile.TemporaryDirectory() as out:
        without, with_journal = measure(
            [
                Contender(name, pipeline(config(Path(out), placement, seconds)))
                for name, seconds in (("without", NEVER_SECONDS), ("with", 5.0))
            ],
            rounds,
            lambda line: print(f"{placement}: {line}", file=sys.stderr, flush=True),
        )
    return {
        "fps": with_journal["fps"],
        "fps_without": without["fps"],
        "fps_cost_percent": round(100 * (1 - with_journal["times"]), 2),
        "cpu_ms": with_journal["cpu_ms"],
        "cpu_ms_without": without["cpu_ms"],
        "cpu_cost_percent": round(100 * (with_journal["cpu_ms"] / without["cpu_ms"] - 1), 2),
    }


def seconds_to_go_on(placement: str, victim: str) -> float:
    """From a kill to the first frame that was not there before.

    Args:
        victim: "driver", after whose death the run is started again, or the title of an actor.
    """
    with tempfile.TemporaryDirectory() as out:
        done, killed_at = 0, 0.0
        command = [sys.executable, "-m", "tests.bench.journal", "--worker", placement, out]
        for resume in ([], ["resume"]):
            with subprocess.Popen([*command, *resume], stdout=subprocess.PIPE, text=True) as worker:
                assert worker.stdout is not None
                for frames in map(int, worker.stdout):
                    if killed_at and frames > done:
                        seconds = time.monotonic() - killed_at
                        worker.kill()
                        return seconds
                    if not killed_at and frames > HALF_WAY:
                        done, killed_at = frames, time.monotonic()
                        own = victim == "driver"
                        for pid in [worker.pid] if own else actors(worker.pid, victim):
                            os.kill(pid, signal.SIGKILL)
    raise RuntimeError("the run ended before it could be killed, or never went on")


def actors(root: int, title: str) -> list[int]:
    """Processes of one kind of actor."""
    return [pid for pid in family(root)
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(title.encode())]  # fmt: skip


def work(placement: str, out: str, resume: bool) -> None:
    """A run as a process: a line with the number of frames for each event."""
    for event in run(prepare(config(Path(out), placement, 1, resume))):
        print(event.frames, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        placement, out, *resume = options.worker
        work(placement, out, bool(resume))
        return
    result: dict[str, Any] = {}
    for placement in ("fused", "inline"):
        result[placement] = cost(placement, options.rounds)
        print(f"{placement}: {result[placement]}", file=sys.stderr, flush=True)
    for placement, victim in (
        ("inline", "driver"),
        ("fused", "driver"),
        ("fused", "ray::FusedActor"),
    ):
        seconds = [seconds_to_go_on(placement, victim) for _ in range(options.rounds)]
        result[f"{placement}, {victim} killed, to the next frame"] = {
            "median_s": round(statistics.median(seconds), 2), "max_s": round(max(seconds), 2),
        }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
