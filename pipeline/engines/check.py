"""Is an engine what it should be? Its labels and states against those of plain float32, on frames drawn from
a seed: the same seed again must give the same, another seed something else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import numpy as np

from pipeline.engines import Engine
from pipeline.errors import EngineError

TIMES = 4  # frames of each check, so that the memory has a say
LATENCY_SECONDS = 1.0  # spent on measuring each batch size


@dataclass(frozen=True)
class Tolerance:
    """How far an engine may be from float32.

    Attributes:
        labels: share of the pixels whose label may differ.
        state: mean difference of the states, which lie in -1 to 1.
    """

    labels: float
    state: float


# Frames of noise have more pixels between two classes than footage has, and OpenVINO's colours are rounded.
TOLERANCES = {
    "f32": Tolerance(0.005, 0.002), "f16": Tolerance(0.01, 0.005),
    "bf16": Tolerance(0.03, 0.01), "int8": Tolerance(0.1, 0.1), "fp8": Tolerance(0.1, 0.1),
}  # fmt: skip


@dataclass(frozen=True)
class Findings:
    """What a check has found.

    Attributes:
        labels: share of the pixels whose label differs from float32's.
        state: mean difference of the states from float32's.
        repeated: share of the pixels that differ where the same frames were seen in another slot, in
            the company of another stream if the engine takes batches.
        other_seed: share of the pixels that differ for frames of another seed.
        other_seed_state: mean difference of the states for frames of another seed.
    """

    labels: float
    state: float
    repeated: float
    other_seed: float
    other_seed_state: float

    def problem(self, tolerance: Tolerance) -> str | None:
        """What is wrong with the engine, None if nothing is."""
        for what, value, most in (
            ("labels differ from float32's on", self.labels, tolerance.labels),
            ("labels of the same frames differ between two slots on", self.repeated, tolerance.labels),
        ):  # fmt: skip
            if not value <= most:
                return f"its {what} {value:.2%} of the pixels, at most {most:.2%} would be right"
        if not self.state <= tolerance.state:
            return (
                f"its states are {self.state:.4f} off float32's, at most {tolerance.state} is right"
            )
        if max(self.other_seed, self.other_seed_state) == 0:
            return "it gives the same labels and states for frames of another seed"
        return None


def check(engine: Engine, reference: Engine, model_hw: tuple[int, int]) -> Findings:
    """Run an engine and a float32 one, each with at least two slots, on the same frames."""
    first, other = seeded_frames(1, model_hw), seeded_frames(2, model_hw)
    expected = reference.step(first, [0], [True])
    found = engine.step(first, [0], [True])
    after = engine.read_state(0)
    if engine.batches:
        both = engine.step(np.concatenate([other, first]), [0, 1], [True, True])
        changed, again = both[:1], both[1:]
    else:
        again, changed = (
            engine.step(frames, [slot], [True]) for frames, slot in ((first, 1), (other, 0))
        )
    return Findings(
        labels=_differing(found, expected),
        state=_distance(after, reference.read_state(0)),
        repeated=_differing(again, found),
        other_seed=_differing(changed, found),
        other_seed_state=_distance(engine.read_state(0), after),
    )


def ensure(findings: Findings, precision: str) -> None:
    """Raises EngineError for findings beyond what a precision may do."""
    problem = findings.problem(TOLERANCES[precision])
    if problem is not None:
        raise EngineError(f"the engine is not right: {problem}")


def seeded_frames(seed: int, model_hw: tuple[int, int]) -> np.ndarray:
    """Coloured patches with noise over them, uint8 [1, T, h * 3 // 2, w], I420."""
    rng = np.random.default_rng(seed)
    height, width = model_hw[0] * 3 // 2, model_hw[1]
    coarse = rng.integers(16, 236, (TIMES, -(-height // 24), -(-width // 24)))
    patches = coarse.repeat(24, 1).repeat(24, 2)[:, :height, :width]
    noise = rng.integers(-8, 9, patches.shape)
    return (patches + noise).clip(0, 255).astype(np.uint8)[None]


def latencies_ms(
    engine: Engine, model_hw: tuple[int, int], sizes: Sequence[int]
) -> dict[int, float]:
    """Median time of a step of one frame for each number of streams, after a warm-up."""
    return {size: median(step_times_ms(engine, model_hw, size, LATENCY_SECONDS)) for size in sizes}


def step_times_ms(
    engine: Engine, model_hw: tuple[int, int], size: int, seconds: float
) -> list[float]:
    """Times of steps of one frame of `size` streams, at least five, after a warm-up."""
    frames = seeded_frames(3, model_hw)[:, :1].repeat(size, 0)
    slots, reset = range(size), [True] * size
    times: list[float] = []
    for _ in range(3):
        engine.step(frames, slots, reset)
    began = perf_counter()
    while len(times) < 5 or perf_counter() < began + seconds:
        start = perf_counter()
        engine.step(frames, slots, reset)
        times.append(1000 * (perf_counter() - start))
    return times


def _differing(some: np.ndarray, others: np.ndarray) -> float:
    return float((some != others).mean())


def _distance(some: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(some - other).mean())
