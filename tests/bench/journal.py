"""What does the journal cost, and how soon does a killed run go on?

    python -m tests.bench.journal --rounds 5

Runs `roadmask run` on the sample clip with a checkpoint every five seconds, as always, and with none, in
turn, and compares frames a second from the first batch to the last; then kills runs half-way and times
`--resume` from its start to the first new frame, and the same for a fused actor, which the run replaces
itself. Prints a line of JSON; run it on a quiet machine.
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

from pipeline.run import RunConfig, prepare, run
from pipeline.sinks import OutputOptions
from pipeline.stages import Progress
from tests.bench.memory import SAMPLE, family

NEVER_SECONDS = 1e9
HALF_WAY = 150  # frames


def config(out: Path, placement: str, checkpoint_seconds: float, resume: bool = False) -> RunConfig:
    return RunConfig(
        (str(SAMPLE),), out, OutputOptions(overlay=True), placement=placement,
        checkpoint_seconds=checkpoint_seconds, resume=resume,
    )  # fmt: skip


def frames_a_second(placement: str, checkpoint_seconds: float) -> float:
    """Of one run, its start left out."""
    with tempfile.TemporaryDirectory() as out:
        times: list[tuple[float, int]] = []
        for event in run(prepare(config(Path(out), placement, checkpoint_seconds))):
            if isinstance(event, Progress):
                times.append((time.monotonic(), event.frames))
            else:
                assert event.error is None, event.error
    (began, first), (ended, last) = times[0], times[-1]
    return (last - first) / (ended - began)


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
        with_journal, without = [], []
        for number in range(options.rounds):
            for found, seconds in ((with_journal, 5.0), (without, NEVER_SECONDS))[
                :: 1 - 2 * (number % 2)
            ]:
                found.append(frames_a_second(placement, seconds))
        shares = [1 - a / b for a, b in zip(with_journal, without, strict=True)]
        result[placement] = {
            "fps": round(statistics.median(with_journal), 2),
            "fps_without": round(statistics.median(without), 2),
            "cost_percent": round(100 * statistics.median(shares), 2),
            "cost_percent_each": [round(100 * share, 2) for share in shares],
        }
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
