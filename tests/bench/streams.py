"""Many streams in one run against as many `roadmask run` at once: frames a second, memory, labels.

    python -m tests.bench.streams --streams 8 --frames 100 300

Each contender works on as many copies of the sample clip, once cut to the first and once to the second number
of frames. Frames a second are given over the whole command, starting up included, and from the difference
of the two lengths, without it. Memory is the proportional set size of all processes together, Ray's included,
at its peak. Contenders take turns; medians over the rounds; the labels of both must be the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np

from pipeline.bench import clips
from pipeline.bench.measure import family
from tests.bench.memory import SAMPLE, memory_mb

RUN = [sys.executable, "-m", "pipeline.cli", "run"]
TOGETHER, APART = "one run", "a run each, at once"


@dataclass
class Peak:
    """The most memory that a few process trees have held at once, MB."""

    pids: list[int]
    most: float = 0.0
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Peak:
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.2):  # reading it costs the measured ones time
            processes = [pid for root in self.pids for pid in family(root)]
            self.most = max(self.most, memory_mb(processes)[0])


def seconds_and_mb(commands: Sequence[list[str]]) -> tuple[float, float]:
    """Run commands at once: how long until the last has ended, and their memory's peak.

    Raises RuntimeError if one of them fails.
    """
    began = time.monotonic()
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    with Peak([process.pid for process in running]) as peak:
        errors = [process.communicate()[1] for process in running]
    seconds = time.monotonic() - began
    for process, error in zip(running, errors, strict=True):
        if process.returncode:
            raise RuntimeError(f"{' '.join(process.args)} failed: {error.strip()[-500:]}")  # type: ignore[arg-type]
    return seconds, peak.most


def commands(
    contender: str, sources: Sequence[Path], out: Path, passed_on: list[str]
) -> list[list[str]]:
    ends = ["--out", str(out), "-q", *passed_on]
    if contender == TOGETHER:
        return [[*RUN, *map(str, sources), *ends]]
    return [[*RUN, str(source), *ends] for source in sources]


def steady_fps(frames: int, short_s: float, long_s: float) -> float:
    """Frames a second without the start: so many more frames took so much longer.

    Raises RuntimeError if they did not.
    """
    if long_s <= short_s:
        raise RuntimeError(
            f"{frames} frames more took {long_s:.1f} instead of {short_s:.1f} seconds:"
            " give lengths further apart, or a quieter machine"
        )
    return frames / (long_s - short_s)


def different_frames(one: Path, other: Path) -> int:
    """Label frames of two outputs that are not the same in every pixel; a missing one counts."""
    different = 0
    for path in sorted(one.glob("*/labels.mkv")):
        with av.open(str(path)) as a, av.open(str(other / path.parent.name / path.name)) as b:
            frames = [c.decode(video=0) for c in (a, b)]
            while True:
                pair = [next(decoded, None) for decoded in frames]
                if pair == [None, None]:
                    break
                arrays = [f.to_ndarray(format="gray") for f in pair if f is not None]
                different += len(arrays) < 2 or not np.array_equal(*arrays)
    return different


def measure(
    streams: int, lengths: tuple[int, int], rounds: int, clip: Path, passed_on: list[str]
) -> dict[str, object]:
    """Both contenders, in turn; what `main` prints.

    Raises RuntimeError if a run fails or the labels are not the same.
    """
    figures: dict[str, dict[str, list[float]]] = {
        name: {"fps_with_start": [], "fps": [], "peak_mb": []} for name in (TOGETHER, APART)
    }
    with tempfile.TemporaryDirectory(prefix="roadmask-streams-") as name:
        folder, wrong = Path(name), 0
        sources = {
            n: clips.copies(clips.cut(str(clip), n, folder / f"of{n}.mp4"), streams)
            for n in lengths
        }
        for number in range(rounds):
            for contender in (TOGETHER, APART)[:: -1 if number % 2 else 1]:
                took = {}
                for length in lengths:
                    out = folder / contender / str(length)
                    took[length], mb = seconds_and_mb(
                        commands(contender, sources[length], out, passed_on)
                    )
                short, long = lengths
                found = figures[contender]
                found["fps_with_start"].append(streams * long / took[long])
                found["fps"].append(steady_fps(streams * (long - short), took[short], took[long]))
                found["peak_mb"].append(mb)
                print(f"round {number + 1}/{rounds}  {contender}: {found['fps'][-1]:.1f} fps,"
                      f" {mb:.0f} MB", file=sys.stderr, flush=True)  # fmt: skip
            wrong += different_frames(folder / TOGETHER / str(long), folder / APART / str(long))
    if wrong:
        raise RuntimeError(f"{wrong} label frames differ between one run and separate ones")
    return _summary(figures, streams, lengths, rounds)


def _summary(
    figures: dict[str, dict[str, list[float]]], streams: int, lengths: tuple[int, int], rounds: int
) -> dict[str, object]:
    def times(key: str) -> float:
        pairs = zip(figures[TOGETHER][key], figures[APART][key], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 3)

    return {
        "streams": streams, "frames": lengths, "rounds": rounds,
        **{name: {key: round(statistics.median(values), 1) for key, values in found.items()}
           for name, found in figures.items()},
        "times": {key: times(key) for key in ("fps_with_start", "fps", "peak_mb")},
        "labels": "the same",
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Many streams in one run, and in a run each.")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument(
        "--frames", type=int, nargs=2, default=(100, 300), metavar=("SHORT", "LONG")
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clip", type=Path, default=SAMPLE)
    options, passed_on = parser.parse_known_args()
    short, long = options.frames
    if not 0 < short < long:
        parser.error(f"--frames must be two lengths, the shorter first, got {short} {long}")
    result = measure(options.streams, (short, long), options.rounds, options.clip, passed_on)
    print(f"{'':24}{'fps':>8}{'with start':>12}{'peak MB':>9}")
    for name in (TOGETHER, APART):
        found = result[name]
        assert isinstance(found, dict)
        print(f"{name:24}{found['fps']:8.1f}{found['fps_with_start']:12.1f}{found['peak_mb']:9.0f}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
