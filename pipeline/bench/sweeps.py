"""What `roadmask bench --sweep` varies: streams, frames a chunk, sizes, engines, the loop itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from models.spec import find_model
from pipeline.bench import clips
from pipeline.bench.loops import (
    check_bench_extra,
    export_onnx,
    onnx_loop,
    plain_loop,
    reader_model_writer_loop,
)
from pipeline.bench.measure import WARM_UP_FRAMES, Contender, Track
from pipeline.bench.stages import keep
from pipeline.engines import EngineChoice, check_fit, choose_engine, engine_factory
from pipeline.engines.artefacts import built_sizes
from pipeline.errors import MediaError, PipelineError
from pipeline.run import Plan, RunConfig, prepare, prepare_here, run
from pipeline.settings import available_cores
from pipeline.stages import SourceReport, make_segmenter, process

STREAMS = (1, 2, 4, 8, 16, 32, 64)
CHUNKS = (1, 2, 4, 8, 16)
SIZES_HW = ((360, 480), (360, 640), (540, 960), (720, 1280), (1080, 1920))
SHORTEST_CLIP_FRAMES = 32  # of many streams at once each is short
BARE_FRAMES = 72  # that a bare engine runs over, at least
EAGER = {place: f"{place}, torch float32 (eager)" for place in ("cpu", "cuda")}  # by where it runs


@dataclass(frozen=True)
class Course:
    """What everybody runs over.

    Attributes:
        clip: a video file.
        frames: its length, frames.
        config: the run of this clip, class colours only.
        plain_frames: the loops people use stop after so many frames: they are slow.
    """

    clip: Path
    frames: int
    config: RunConfig
    plain_frames: int

    @property
    def plan(self) -> Plan:
        """Raises PipelineError if the clip cannot be read."""
        plan = prepare_here(self.config)
        if not plan.sources:
            raise MediaError(plan.failures[0].error or f"{self.clip} cannot be read")
        return plan

    @property
    def device(self) -> str:
        """Where PyTorch and ONNX Runtime run the loops people use."""
        return "cuda" if self.plan.job.choice.on_gpu else "cpu"


def pipeline(config: RunConfig) -> Callable[[], Track]:
    """A contender's run: all sources of a configuration, through `run`."""

    def go() -> Track:
        track, done = Track(), dict[str, int]()
        for event in run(prepare(config)):
            if isinstance(event, SourceReport) and event.error:
                raise MediaError(event.error)
            done[event.stream_id] = event.frames
            track.note(sum(done.values()), last=isinstance(event, SourceReport))
        return track

    return go


def threads(config: RunConfig) -> Callable[[], Track]:
    """A contender's run: the first source's stages as threads of this process, without Ray."""

    def go() -> Track:
        plan, track = prepare_here(config), Track()
        segmenter = make_segmenter(plan.job)
        for event in process(
            plan.job, plan.sources[0], segmenter, stop=lambda: False, threads=True
        ):
            track.note(event.frames, last=isinstance(event, SourceReport))
        return track

    return go


def loop(make: Callable[[], Iterator[tuple[float, int]]]) -> Callable[[], Track]:
    """A contender's run: a loop that tells after each step how far it is."""

    def go() -> Track:
        track = Track()
        for _, frames in make():
            track.note(frames)
        track.note(track.stamps[-1][1] if track.stamps else 0, last=True)
        return track

    return go


def bare(choice: EngineChoice, model: str, pixels: np.ndarray) -> Callable[[], Track]:
    """A contender's run: the engine alone, over frames in memory. It is made at the first call.

    Args:
        pixels: uint8 [N, T, h * 3 // 2, w]: N streams, T frames a step.
    """
    engines: list[Any] = []
    streams, times = pixels.shape[:2]

    def go() -> Track:
        if not engines:
            files = find_model(model)
            model_hw = pixels.shape[2] * 2 // 3, pixels.shape[3]
            engines.append(engine_factory(choice, files, files.spec(), streams)(model_hw))
        # One step is the warm-up, and at least two more are counted.
        track, slots = Track(warm_up=streams * times - 1), list(range(streams))
        for step in range(1, 2 + max(2, -(-BARE_FRAMES // (streams * times)))):
            engines[0].step(pixels, slots, [step == 1] * streams)
            track.note(step * streams * times)
        track.note(track.stamps[-1][1], last=True)
        return track

    return go


def frames_of(course: Course, streams: int, chunk: int) -> np.ndarray:
    """uint8 [streams, chunk, h * 3 // 2, w]: the clip's first frames, the same for every stream."""
    batches = keep(course.plan, chunk + course.config.chunk).batches
    pixels = np.concatenate([batch.pixels for batch in batches])
    several = -(-chunk // len(pixels))
    return np.stack([np.concatenate([pixels] * several)[:chunk]] * streams)


def plain_contenders(course: Course) -> list[Contender]:
    """The loop people write, as it is and with the one line that makes it faster."""
    out = str(course.config.out / "plain.mp4")
    plain = partial(plain_loop, str(course.clip), course.config.model, out, course.plain_frames)
    return [
        Contender("plain loop", loop(partial(plain, False, course.device))),
        Contender("plain loop, channels_last", loop(partial(plain, True, course.device))),
    ]


def peers(course: Course, say: Callable[[str], None]) -> list[Contender]:
    """The loops people use, the bare engine, and this pipeline."""
    clip, model, out = str(course.clip), course.config.model, str(course.config.out / "peer.mp4")
    frames, device, plan = course.plain_frames, course.device, course.plan
    chunks = partial(reader_model_writer_loop, clip, model, out, frames)
    found = [
        *plain_contenders(course),
        Contender("reader, model, writer; chunks of 12", loop(partial(chunks, 12, device))),
        Contender("reader, model, writer; frame by frame", loop(partial(chunks, 1, device))),
    ]
    try:
        check_bench_extra()
    except PipelineError as error:
        say(f"left out: {error}")
    else:
        onnx = course.config.out / "step.onnx"
        if not onnx.exists():
            say("exporting to ONNX")
            export_onnx(model, keep(plan, 1).stream.size_hw, onnx)
        alone = partial(onnx_loop, clip, model, out, frames, onnx, device)
        found.append(Contender("ONNX Runtime a frame", loop(alone)))
    pixels = frames_of(course, 1, course.config.chunk)
    found.append(Contender("bare engine, no video", bare(plan.job.choice, model, pixels)))
    return [*found, Contender("roadmask", pipeline(course.config))]


def streams(course: Course, counts: Iterable[int] = STREAMS) -> list[Contender]:
    """One to many sources in one run, and as many streams in each step of the bare engine."""
    choice, model = course.plan.job.choice, course.config.model
    runs, engines = [], []
    for count in counts:
        length = max(min(SHORTEST_CLIP_FRAMES, course.frames), course.frames * 4 // max(count, 4))
        clip = course.config.out / f"of{length}.mp4"
        if not clip.exists():
            clips.cut(str(course.clip), length, clip)
        named = tuple(map(str, clips.copies(clip, count)))
        several = replace(course.config, sources=named)
        runs.append(Contender(f"roadmask, {count} streams", pipeline(several), x=count))
        engine = bare(choice, model, frames_of(course, count, 1))
        name, first = f"bare engine, {count} streams", "bare engine, 1 streams"
        engines.append(Contender(name, engine, against=first, x=count))
    return [*runs, *engines]


def chunks(course: Course, lengths: Iterable[int] = CHUNKS) -> list[Contender]:
    """One to many frames a chunk."""
    choice, model = course.plan.job.choice, course.config.model
    runs, engines = [], []
    for length in lengths:
        config = replace(course.config, chunk=length)
        runs.append(Contender(f"roadmask, chunks of {length}", pipeline(config), x=length))
        engine = bare(choice, model, frames_of(course, 1, length))
        name, first = f"bare engine, chunks of {length}", "bare engine, chunks of 1"
        engines.append(Contender(name, engine, against=first, x=length))
    return [*runs, *engines]


def sizes(course: Course, sizes_hw: Iterable[tuple[int, int]] = SIZES_HW) -> list[Contender]:
    """Small to large video, each against the plain loop on the same; and the engine at that size itself."""
    found = []
    for height, width in sizes_hw:
        clip = course.config.out / f"{width}x{height}.mp4"
        if not clip.exists():
            clips.scaled(course.clip, (height, width), clip)
        config = replace(course.config, sources=(str(clip),))
        this = replace(course, clip=clip, config=config)
        plain, faster = plain_contenders(this)
        first = f"plain loop, {width}x{height}"
        # Networks take multiples of 8: of 960x540 they see 960x544.
        network_hw = -(-height // 8) * 8, -(-width // 8) * 8
        at_size = replace(this, config=replace(config, size_hw=network_hw))
        engine = bare(this.plan.job.choice, config.model, frames_of(at_size, 1, config.chunk))
        name = f"bare engine at {network_hw[1]}x{network_hw[0]}"
        found += [
            replace(plain, name=first, against=first, x=height),
            replace(faster, name=f"{first}, channels_last", against=first, x=height),
            Contender(f"roadmask, {width}x{height}", pipeline(config), first, height),
            Contender(name, engine, against=first, x=height),
        ]
    return found


def engine_choices(model: str) -> dict[str, EngineChoice]:
    """Every engine that can run here, by name; eager PyTorch in float32 first, on the CPU and on a GPU."""
    cores = available_cores()
    eager = EngineChoice("cpu", "torch float32", "the measure of the others", cores)
    found = {EAGER["cpu"]: eager}
    wanted = [("cpu", p) for p in ("f32", "bf16", "int8")]
    wanted += [("cuda", p) for p in ("f32", "f16", "bf16")]
    wanted += [("tensorrt", p) for p in ("f16", "int8", "fp8")]
    for name, precision in wanted:
        with suppress(PipelineError):  # what cannot run here is left out
            choice = choose_engine(name, precision)
            check_fit(choice, find_model(model))
            if choice.on_gpu:
                found.setdefault(EAGER["cuda"], replace(eager, name="cuda"))
            if choice.runtime != "torch float32":
                threads = cores if name == "cpu" else choice.threads
                found[f"{name}, {choice.runtime}"] = replace(choice, threads=threads)
    return found


def engines(course: Course) -> list[Contender]:
    """Every engine that can run here, bare, with all cores, over the same frames: against eager PyTorch
    where it runs itself. TensorRT's are those that `roadmask compile` has made."""
    pixels, model = frames_of(course, 1, course.config.chunk), course.config.model
    found = []
    for name, choice in engine_choices(model).items():
        if _is_there(choice, model, pixels):
            first = EAGER["cuda" if choice.on_gpu else "cpu"]
            found.append(Contender(name, bare(choice, model, pixels), against=first))
    return found


def _is_there(choice: EngineChoice, model: str, pixels: np.ndarray) -> bool:
    """Whether an engine that must have been made beforehand has been."""
    if choice.name != "tensorrt":
        return True
    height, width = pixels.shape[2] * 2 // 3, pixels.shape[3]
    return f"{height}x{width}" in built_sizes("tensorrt", find_model(model), choice.precision)


def agreement(course: Course, frames: int = WARM_UP_FRAMES) -> dict[str, float]:
    """Share of pixels that each engine labels as eager float32 does, over the clip's first frames."""
    pixels, files = frames_of(course, 1, frames), find_model(course.config.model)
    model_hw, labels = (pixels.shape[2] * 2 // 3, pixels.shape[3]), {}
    for name, choice in engine_choices(course.config.model).items():
        if _is_there(choice, course.config.model, pixels):
            engine = engine_factory(choice, files, files.spec(), 1)(model_hw)
            labels[name] = engine.step(pixels, [0], [True])
    first = next(iter(labels.values()))
    return {name: round(float((found == first).mean()), 5) for name, found in labels.items()}


def together(course: Course) -> list[Contender]:
    """The three ways of running the stages: through Ray, as threads without it, one after the other."""
    inline = replace(course.config, placement="inline")
    return [
        Contender("roadmask", pipeline(course.config)),
        Contender("threads, no Ray", threads(course.config)),
        Contender("roadmask --inline", pipeline(inline)),
    ]
