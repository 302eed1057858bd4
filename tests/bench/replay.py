"""How near to the recorded clock is a replay, and how fast as fast as can be?

    python -m tests.bench.replay --cameras 8 --seconds 20

Records simulated cameras (H.264 at 640x360, a quarter of the frames dropped, gaps, reconnects; labels by the
counting engine or, with `--network`, by the shipped one), then replays the session at 1x and as fast as can
be, verifying every label. Prints, last, a line of JSON. At 1x the machine must keep up with 30 frames a
second of each camera.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from models.spec import DEFAULT_MODEL, find_model
from pipeline.engines import choose_engine, engine_factory
from pipeline.session import Configuration, Limits
from pipeline.session.replay import Replay, ReplayConfig
from tests import media
from tests.bench.memory import SAMPLE
from tests.recordings import Script, counting_configuration, record

MODEL_HW = (360, 640)
LIMIT_MS = 20.0


def record_session(folder: Path, cameras: int, seconds: float, network: bool) -> Path:
    """A session of the sample clip, again and again; each camera has drops and gaps of its own."""
    turns = max(1, round(seconds / 10))
    clip = folder / "clip.mp4"
    media.ffmpeg("-i", SAMPLE, "-vf", "scale=640:360", "-c:v", "libx264", "-preset", "ultrafast", "-g", 30,
                 clip)  # fmt: skip
    scripts = {}
    for number in range(cameras):
        drop = frozenset(range(number % 4, 100_000, 4))
        silent = {60 + 10 * number: 0.4, 150 + number: 1.5} if number % 2 else {}
        scripts[f"camera{number}"] = Script([clip] * turns, drop, silent)
    configuration, make = counting_configuration(MODEL_HW), None
    if network:
        files, choice = find_model(DEFAULT_MODEL), choose_engine("cpu")
        spec = files.spec()
        make = engine_factory(choice, files, spec, 1)
        configuration = Configuration(
            DEFAULT_MODEL, files.weights_sha256(), choice.name, choice.runtime, size_hw=MODEL_HW,
            classes=spec.classes, palette_rgb=spec.palette_rgb,
        )  # fmt: skip
    extra: dict[str, Any] = {} if make is None else {"make_engine": make}
    record(folder / "session", scripts, configuration=configuration, limits=Limits(),
           model_hw=MODEL_HW, **extra)  # fmt: skip
    return folder / "session"


def measure(session: Path, speed: float) -> dict[str, Any]:
    """One replay at a speed, verified."""
    replay = Replay(ReplayConfig(session, speed=speed, verify=True))
    began, cpu_before = time.monotonic(), time.process_time()
    with replay.player() as player:
        player.join()
        frames = sum(tally.frames for tally in player.tallies.values())
        late = {f"p{q}": player.lateness.quantile_ms(q / 100) for q in (50, 95, 99)}
    assert replay.verification is not None
    took, cpu = time.monotonic() - began, time.process_time() - cpu_before
    return {"frames": frames, "seconds": round(took, 2), "fps": round(frames / took, 1),
            "cpu_ms_a_frame": round(1000 * cpu / max(1, frames), 2),
            "session_seconds": round(player.duration_seconds, 2),
            "off_the_clock_ms": late if math.isfinite(speed) else None,
            "identical": replay.verification.identical}  # fmt: skip


def told(result: dict[str, Any]) -> str:
    """One replay for people."""
    late = result["off_the_clock_ms"]
    clock = ""
    if late is not None:
        figures = ", ".join(f"{name} {value:.1f}" for name, value in late.items())
        kept = "kept" if late["p99"] <= LIMIT_MS else "NOT KEPT"
        clock = f"; off the recorded clock, ms: {figures} (p99 within {LIMIT_MS:g}: {kept})"
    labels = "all labels identical" if result["identical"] else "LABELS DIFFER"
    return (
        f"{result['session_seconds']:.1f} s of session in {result['seconds']:.1f} s,"
        f" {result['frames']} frames, {result['fps']:.0f} fps,"
        f" {result['cpu_ms_a_frame']:.1f} ms of CPU a frame; {labels}{clock}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cameras", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--network", action="store_true", help="label by the shipped network")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        session = record_session(Path(folder), options.cameras, options.seconds, options.network)
        results = {}
        for name, speed in (("1x", 1.0), ("max", math.inf)):
            results[name] = measure(session, speed)
            print(f"{name:>4}: {told(results[name])}", flush=True)
        size = sum(path.stat().st_size for path in session.rglob("*") if path.is_file())
    print(json.dumps({"cameras": options.cameras, "network": options.network,
                      "session_mb": round(size / 1e6, 1), **results}))  # fmt: skip
    sys.exit(not all(result["identical"] for result in results.values()))


if __name__ == "__main__":
    main()
