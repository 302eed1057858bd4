"""How soon does a run show something?

    python -m tests.bench.startup

Times `roadmask --help`, and of `roadmask run` on the sample clip the first line and the first frames, with
the compiled network cached and not. Medians of three; run it on a quiet machine.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SAMPLE = Path(__file__).resolve().parents[2] / "sample_videos" / "city_drive.mp4"
ROADMASK = [sys.executable, "-m", "pipeline.cli"]


def help_seconds() -> float:
    began = time.monotonic()
    subprocess.run([*ROADMASK, "--help"], check=True, capture_output=True)
    return time.monotonic() - began


def run_seconds(cache: str, *arguments: str) -> tuple[float, float]:
    """Seconds to the first line and to the first frames of a run, which is then stopped."""
    with tempfile.TemporaryDirectory() as out:
        began = time.monotonic()
        process = subprocess.Popen(
            [*ROADMASK, "run", str(SAMPLE), "--out", out, *arguments],
            stderr=subprocess.PIPE, text=True, env={**os.environ, "ROADMASK_CACHE": cache},
        )  # fmt: skip
        assert process.stderr is not None
        process.stderr.readline()
        line = time.monotonic() - began
        while "frames" not in process.stderr.readline():
            if process.poll() is not None:
                raise RuntimeError("the run ended without a frame")
        frames = time.monotonic() - began
        process.terminate()
        process.communicate()
        return line, frames


def main() -> None:
    with tempfile.TemporaryDirectory() as cache:
        cold = run_seconds(cache)
        warm = [run_seconds(cache) for _ in range(3)]
        inline = [run_seconds(cache, "--inline") for _ in range(3)]
    result = {
        "help_s": statistics.median(help_seconds() for _ in range(3)),
        "first_line_s": statistics.median(line for line, _ in warm),
        "first_frames_s": statistics.median(frames for _, frames in warm),
        "first_frames_inline_s": statistics.median(frames for _, frames in inline),
        "first_frames_nothing_cached_s": cold[1],
    }
    print(json.dumps({name: round(value, 2) for name, value in result.items()}))


if __name__ == "__main__":
    main()
