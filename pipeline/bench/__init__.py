"""`roadmask bench`: this pipeline against the loops people use, on the same clip and weights, in one run.

    roadmask bench CLIP                         against the plain loop, and what each stage takes
    roadmask bench CLIP --sweep peers           against all of the loops (extra `bench` for ONNX Runtime)
    roadmask bench CLIP --sweep streams > F     1 to 64 streams; python -m tests.bench.plot F draws it
    roadmask bench CLIP --sweep all             everything

How it is measured: `measure.py`. The loops: `loops.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from models.spec import find_model
from pipeline.bench import clips, sweeps
from pipeline.bench.measure import Contender, measure, processor_name
from pipeline.bench.report import table
from pipeline.bench.stages import bound_fps, keep, stage_shares, stages_alone
from pipeline.bench.sweeps import Course, pipeline, plain_contenders
from pipeline.engines import check_fit, choose_engine
from pipeline.errors import ConfigError, PipelineError
from pipeline.run import RunConfig
from pipeline.settings import available_cores
from pipeline.sinks import OutputOptions
from pipeline.versions import versions

SWEEPS = ("peers", "streams", "chunk", "size", "engines", "stages")
Say = Callable[[str], None]


def compare(
    source: str,
    *,
    model: str = "roadnet",
    engine: str = "auto",
    precision: str = "auto",
    rounds: int = 3,
    plain_frames: int = 100,
    frames: int | None = None,
    sweep: Sequence[str] = (),
    hwaccel: str | None = None,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Run the contenders `rounds` times; returns what `table` shows.

    Args:
        source: a video file.
        rounds: how often each contender runs.
        plain_frames: the loops people use are slow: they stop after so many frames.
        frames: measure over the clip's first frames; None for all of them.
        sweep: what to vary, of `SWEEPS`, or "all"; nothing: against the plain loop.
        hwaccel: kind of device that decodes for this pipeline; None for the cores.

    Raises ConfigError for an unknown sweep or a clip too short, PipelineError for what cannot run.
    """
    unknown = sorted({*sweep} - {*SWEEPS, "all"})
    if unknown:
        raise ConfigError(f"unknown sweep {unknown[0]!r}: choose of {', '.join(SWEEPS)} or all")
    if rounds < 1:
        raise ConfigError(f"rounds must be at least 1, got {rounds}")
    with tempfile.TemporaryDirectory(prefix="roadmask-bench-") as folder:
        course = _course(source, Path(folder), frames, plain_frames,
                         model=model, engine=engine, precision=precision, hwaccel=hwaccel)  # fmt: skip
        result = _facts(course, source, rounds)
        if not sweep or "all" in sweep:
            result |= _against_the_plain_loop(course, rounds, say)
        wanted = [name for name in SWEEPS if name in sweep or "all" in sweep]
        if wanted:
            result["sweeps"] = {name: _swept(name, course, rounds, say) for name in wanted}
    return result


def _course(
    source: str, folder: Path, frames: int | None, plain_frames: int, **settings: str | None
) -> Course:
    config = RunConfig((source,), folder, OutputOptions(labels="none"), **settings)  # type: ignore[arg-type]
    whole = Course(Path(source), 0, config, plain_frames)
    found = whole.plan.sources[0]  # raises for what is no video
    if frames is not None:
        clip = clips.cut(found.uri, frames, folder / f"clip{Path(found.uri).suffix}")
        whole = replace(whole, clip=clip, config=replace(config, sources=(str(clip),)))
    length = sum(map(len, keep(whole.plan).batches))
    return replace(whole, frames=length, plain_frames=min(plain_frames, length))


def _facts(course: Course, source: str, rounds: int) -> dict[str, Any]:
    job, kept = course.plan.job, keep(course.plan, 1)
    return {
        "source": source,
        "size_hw": kept.stream.size_hw,
        "model_hw": kept.batches[0].model_hw,
        "frames": course.frames,
        "machine": processor_name(),
        "cores": available_cores(),
        "engine": job.choice.runtime,
        "decoded_on": kept.stream.details.get("decoded_on", "cores"),
        "model": job.facts["model"],
        "rounds": rounds,
        "versions": versions(),
    }


def _against_the_plain_loop(course: Course, rounds: int, say: Say) -> dict[str, Any]:
    rows = measure(_contenders(course), rounds, say)
    stages = stage_shares(course.plan)
    return {
        "fps": {row["name"]: row["fps"] for row in rows},
        "times_the_plain_loop": {row["name"]: row["times"] for row in rows},
        "cpu_ms_a_frame": {row["name"]: row["cpu_ms"] for row in rows},
        "stage_ms_a_frame": stages,
    }


def _contenders(course: Course) -> list[Contender]:
    config, choice = course.config, course.plan.job.choice
    everything = replace(config, options=OutputOptions(overlay=True))
    contenders = [
        *plain_contenders(course),
        Contender("roadmask", pipeline(config)),
        Contender("roadmask, labels and overlay too", pipeline(everything)),
        Contender("roadmask --inline", pipeline(replace(config, placement="inline"))),
    ]
    with suppress(PipelineError):  # an INT8 form that is not there, or of other weights
        check_fit(choose_engine("cpu", "int8"), find_model(config.model))
        if choice.name == "cpu" and choice.precision != "int8":
            fastest = replace(config, precision="int8")
            contenders.append(Contender("roadmask --precision int8", pipeline(fastest)))
    return contenders


def _swept(name: str, course: Course, rounds: int, say: Say) -> dict[str, Any]:
    say(f"sweep: {name}")
    if name == "stages":
        return _stages(course, rounds, say)
    contenders = {
        "peers": lambda: sweeps.peers(course, say),
        "streams": lambda: sweeps.streams(course),
        "chunk": lambda: sweeps.chunks(course),
        "size": lambda: sweeps.sizes(course),
        "engines": lambda: sweeps.engines(course),
    }[name]()
    swept: dict[str, Any] = {"rows": measure(contenders, rounds, say)}
    if name == "engines":
        swept["labels_equal"] = sweeps.agreement(course)
    return swept


def _stages(course: Course, rounds: int, say: Say) -> dict[str, Any]:
    """The stages alone, the bound that follows, and how near to it they come together."""
    alone = []
    rows: list[list[dict[str, Any]]] = []
    for number in range(rounds):  # in turn with the runs: the machine's speed wanders
        alone.append(stages_alone(course.plan))
        rows.append(measure(sweeps.together(course), 1))
        fps = ", ".join(f"{row['name']} {row['fps']:.1f}" for row in rows[-1])
        say(f"round {number + 1}/{rounds}  stages alone, then together: {fps} fps")
    on_device = course.plan.job.choice.on_gpu
    bounds = [bound_fps(costs, on_device) for costs in alone]
    return {
        "alone": {
            stage: {key: round(median(costs[stage][key] for costs in alone), 3) for key in cost}
            for stage, cost in alone[0].items()
        },
        "bound_fps": round(median(bounds), 2),
        "rows": [_merged([row[place] for row in rows], bounds) for place in range(len(rows[0]))],
        "rays_share_of_cpu": _rays_share(rows),
    }


def _merged(rounds: list[dict[str, Any]], bounds: list[float]) -> dict[str, Any]:
    """One contender's rows of several rounds as one, with its share of the rounds' bounds."""
    costs = [row["cpu_ms"] for row in rounds if row["cpu_ms"] is not None]
    return {
        **rounds[0],
        "fps": round(median(row["fps"] for row in rounds), 2),
        "times": round(median(row["times"] for row in rounds), 3),
        "cpu_ms": round(median(costs), 2) if costs else None,
        "of_bound": round(
            median(row["fps"] / bound for row, bound in zip(rounds, bounds, strict=True)), 3
        ),
    }


def _rays_share(rounds: list[list[dict[str, Any]]]) -> dict[str, float] | None:
    """How much of a frame's CPU time goes, with Ray, over that of the same stages without it."""
    shares: dict[str, list[float]] = {}
    for rows in rounds:
        with_ray, *without = rows
        for other in without:
            if with_ray["cpu_ms"] and other["cpu_ms"]:
                share = 1 - other["cpu_ms"] / with_ray["cpu_ms"]
                shares.setdefault(f"against {other['name']}", []).append(share)
    return {name: round(median(found), 3) for name, found in shares.items()} or None


__all__ = ["SWEEPS", "compare", "table"]
