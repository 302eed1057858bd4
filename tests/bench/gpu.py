"""An engine on a GPU: what a step takes, how much faster than eager float32 it is, how many cameras it holds,
whether its memory stays as it is. Frames are drawn from a seed; there is no video in it.

    python -m tests.bench.gpu [--engine cuda|tensorrt] [--precision f16] [--model roadnet] [--frames 108000]

With video: `roadmask bench CLIP --engine cuda --sweep all`. `--engine cpu` runs the same on a CPU, one stream
at a time, to see that it runs.
"""

from __future__ import annotations

import argparse
import json
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import numpy as np
import torch

from pipeline.bench.measure import processor_name
from pipeline.compile import model_files
from pipeline.engines import Engine, EngineChoice, choose_engine, engine_factory
from pipeline.engines.check import seeded_frames, step_times_ms
from pipeline.engines.cuda import bucket_sizes
from pipeline.engines.eager import EagerEngine
from pipeline.engines.memory import device_bytes

CHUNK = 8
CAMERA_FPS = 30
SECONDS = 3.0


def latencies(engine: Engine, size_hw: tuple[int, int], sizes: list[int]) -> dict[int, Any]:
    """Median and 99th percentile, milliseconds, of a step of one frame of so many streams."""
    found = {}
    for size in sizes:
        times = step_times_ms(engine, size_hw, size, SECONDS)
        found[size] = {
            "p50": median(times),
            "p99": quantiles(times, n=100)[98],
            "steps": len(times),
        }
    return found


def held(times: dict[int, Any]) -> int:
    """Cameras of 30 frames a second of which the engine alone labels every frame: steps of the measured
    sizes after each other, by their 99th percentile."""
    return max(int(1000 / CAMERA_FPS / facts["p99"]) * size for size, facts in times.items())


def chunks(size_hw: tuple[int, int], streams: int) -> np.ndarray:
    """A full chunk of every stream."""
    return np.concatenate([seeded_frames(4, size_hw)] * 2, 1)[:, :CHUNK].repeat(streams, 0)


def frames_a_second(engine: Engine, frames: np.ndarray) -> float:
    """Of one call."""
    streams, times = frames.shape[:2]
    start = perf_counter()
    engine.step(frames, range(streams), [False] * streams)
    return streams * times / (perf_counter() - start)


def against_eager(
    engine: Engine, eager: Engine, size_hw: tuple[int, int], streams: int, rounds: int = 7
) -> dict[str, float]:
    """Frames a second of both, in turn, and the median of the ratios within a round."""
    found, frames = [], chunks(size_hw, streams)
    for number in range(rounds + 1):
        pair = [frames_a_second(one, frames) for one in (engine, eager)]
        if number:  # the first is a warm-up
            found.append(pair)
    own, plain = zip(*found, strict=True)
    ratio = median(a / b for a, b in found)
    return {"engine": median(own), "eager float32": median(plain), "times": ratio}


def memory_over(
    engine: Engine, size_hw: tuple[int, int], streams: int, frames: int
) -> dict[str, float] | None:
    """Megabytes of the device in use by anybody, at the start and at the most over so many frames."""
    first = device_bytes()
    if first is None:
        return None
    most, given = first[0], chunks(size_hw, streams)
    for _ in range(-(-frames // (streams * CHUNK))):
        frames_a_second(engine, given)
        most = max(most, (device_bytes() or first)[0])
    return {"first": first[0] / 1e6, "most": most / 1e6, "frames": frames}


def device_name(choice: EngineChoice) -> str:
    if choice.name == "cpu":
        return processor_name()
    return str(torch.cuda.get_device_name())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--engine", default="cuda")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--model", default="roadnet")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument(
        "--frames", type=int, default=CAMERA_FPS * 3600, help="of the memory's watch"
    )
    options = parser.parse_args()
    choice = choose_engine(options.engine, options.precision)
    files, spec = model_files(options.model)
    size_hw = spec.model_hw((720, 1280))
    engine = engine_factory(choice, files, spec, options.streams)(size_hw)
    streams = options.streams if engine.batches else 1
    where = "cpu" if choice.name == "cpu" else "cuda"
    eager = EagerEngine(
        EngineChoice(where, "torch float32", "to compare with", choice.threads),
        files, size_hw, streams,
    )  # fmt: skip
    sizes = [size for size in bucket_sizes(streams) if size in (1, 8, 32, 64)]
    times = latencies(engine, size_hw, sizes)
    print(json.dumps({
        "device": device_name(choice), "engine": f"{choice.name} ({choice.runtime})",
        "size_hw": size_hw, "latency_ms": times, "cameras_held": held(times),
        "frames_a_second": against_eager(engine, eager, size_hw, streams),
        "device_megabytes": memory_over(engine, size_hw, streams, options.frames),
    }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
