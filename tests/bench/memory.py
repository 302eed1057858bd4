"""Does memory grow with the length of a source?

    python -m tests.bench.memory --minutes 1 10

Makes 1080p sources of these lengths from the sample clip, runs `roadmask run` over each, and samples the
memory of its whole process tree (Ray's processes included) ten times a second: the proportional set size,
which counts a page that several processes share once, and Ray's shared memory. A run over the shortest source
comes first and is left out: it may have an engine to build, which takes more memory than a run does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline.bench.measure import family

SAMPLE = Path(__file__).resolve().parents[2] / "sample_videos" / "city_drive.mp4"


def make_source(folder: Path, minutes: float) -> Path:
    """A 1920x1080 H.264 file: the sample scaled up once, then repeated without encoding again."""
    ten_seconds, source = folder / "ten.mp4", folder / f"{minutes:g}min.mp4"
    if not ten_seconds.exists():
        _ffmpeg("-i", SAMPLE, "-vf", "scale=1920:1080", "-c:v", "libx264", "-preset", "veryfast",
                ten_seconds)  # fmt: skip
    _ffmpeg("-stream_loop", round(6 * minutes) - 1, "-i", ten_seconds, "-c", "copy", source)
    return source


def _ffmpeg(*arguments: object) -> None:
    subprocess.run(["ffmpeg", "-nostdin", "-v", "error", "-y", *map(str, arguments)], check=True)


def memory_mb(pids: list[int]) -> tuple[float, float]:
    """Proportional set size of all processes together, and the shared memory in it; MB."""
    total = shared = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            if line.startswith("Pss:"):
                total += int(line.split()[1])
            elif line.startswith("Pss_Shmem:"):
                shared += int(line.split()[1])
    return total / 1024, shared / 1024


def measure(source: Path, arguments: list[str]) -> dict[str, float]:
    """Run over one source; peaks in MB and the time it took."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "pipeline.cli", "run", str(source), "--out", out, "--json",
                   *arguments]  # fmt: skip
        began, peak, shared_peak = time.monotonic(), 0.0, 0.0
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        while process.poll() is None:
            total, shared = memory_mb(family(process.pid))
            peak, shared_peak = max(peak, total), max(shared_peak, shared)
            time.sleep(0.1)
        assert process.stdout is not None
        report = json.loads(process.stdout.read())
    if report["error"]:
        raise RuntimeError(report["error"])
    return {"frames": report["frames"], "peak_mb": round(peak, 1),
            "shared_peak_mb": round(shared_peak, 1),
            "seconds": round(time.monotonic() - began, 1)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 10])
    options, passed_on = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        results = {}
        measure(make_source(Path(folder), min(options.minutes)), passed_on)
        for minutes in options.minutes:
            source = make_source(Path(folder), minutes)
            results[f"{minutes:g} min"] = measure(source, passed_on)
            source.unlink()
            print(f"{minutes:g} min: {results[f'{minutes:g} min']}", file=sys.stderr, flush=True)
    peaks = [result["peak_mb"] for result in results.values()]
    print(json.dumps({"runs": results, "growth_mb": round(peaks[-1] - peaks[0], 1)}))


if __name__ == "__main__":
    main()
