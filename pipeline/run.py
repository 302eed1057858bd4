"""`roadmask run`: checks what is asked, decides where the stages run, and runs them.

Where the stages run never changes a label.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from models.spec import DEFAULT_MODEL, ModelFiles, Spec, SpecError, find_model, shipped_models
from pipeline.cluster.errands import FarJob
from pipeline.cluster.job import FarRun
from pipeline.cluster.plan import STAY, FarPlan, Hands, Teller
from pipeline.cluster.storage import open_store
from pipeline.config import RunConfig, check_hwaccel, check_size  # noqa: F401  (others take it from here)
from pipeline.engines import (
    ENGINES,
    PRECISIONS,
    EngineChoice,
    check_fit,
    choose_engine,
    with_kernels,
)
from pipeline.errors import ConfigError, EngineError, ModelError, OutputError
from pipeline.frames import LabelBatch
from pipeline.resume import Survey, survey, unfinished
from pipeline.settings import available_cores
from pipeline.sinks import OutputOptions
from pipeline.sources import Source, expand, inside_its_output
from pipeline.stages import (
    BATCHES_ON_THE_WAY,
    SHARED_MEMORY_BYTES,
    Job,
    RunEvent,
    SourceReport,
    ahead,
    frames_can_stay,
    make_decoder,
    make_segmenter,
    one_line,
    process,
)
from pipeline.versions import versions

SPREAD_LANES, MOST_LANES = 8, 32  # a lane is two processes of some hundred megabytes each
TOGETHER = 4  # fused sources in a process: they share its libraries, engines and interpreter
VIDEO_PLANES = 3


@dataclass(frozen=True)
class Placement:
    """Where the stages run, and why.

    Attributes:
        name: "inline", "fused" or "spread".
        lanes: sources worked on at once.
        reason: in words, for the log and the manifest.
        together: how many of them share a process, where they are fused.
    """

    name: str
    lanes: int
    reason: str
    together: int = 1


def place(config: RunConfig, choice: EngineChoice, sources: int) -> Placement:
    """Decide where the stages run. A fused actor keeps full-size frames in one process, which is faster
    wherever the streams don't need to meet in one engine."""
    # One source alone can't fill two cores: its frames come one after the other.
    fused_lanes = max(1, min(sources, available_cores()))
    together = min(fused_lanes, TOGETHER)
    # A GPU labels faster than a core decodes: each core decodes a source, so that batches are large.
    most = min(MOST_LANES, max(SPREAD_LANES, available_cores())) if choice.on_gpu else SPREAD_LANES
    spread_lanes = max(1, min(sources, most))
    if config.placement == "inline":
        return Placement("inline", 1, "asked for")
    if config.placement == "fused":
        return Placement("fused", fused_lanes, "asked for", together)
    if config.placement == "spread":
        return Placement("spread", spread_lanes, "asked for")
    if frames_can_stay(config.hwaccel, choice):
        return Placement("fused", spread_lanes, STAY, spread_lanes)
    if choice.on_gpu and sources > 1:
        return Placement("spread", spread_lanes, "one GPU serves several streams in a batch")
    why = (
        "the CPU engine gains nothing by batching streams" if choice.name == "cpu" else "one stream"
    )
    return Placement("fused", fused_lanes, why, together)


def share_cores(choice: EngineChoice, placement: Placement) -> tuple[EngineChoice, int]:
    """Split a CPU engine's threads among the engines of a run: what each of them is, and how many a
    process may have.

    Sources side by side get an engine each with a thread or more, rather than one after the other an
    engine with all threads: a network split among threads takes a sixth more of the cores' time, by
    measurement.
    """
    if placement.name != "fused" or choice.name != "cpu":
        return choice, 1
    processes = -(-placement.lanes // placement.together)
    engines = max(1, min(placement.together, choice.threads // processes))
    return replace(choice, threads=max(1, choice.threads // (processes * engines))), engines


@dataclass(frozen=True)
class Plan:
    """A checked run, ready to go.

    Attributes:
        job: what all sources have in common.
        sources: what will be worked on, in order.
        failures: reports of what was named but isn't there, or cannot be gone on with.
        done: reports of sources that an earlier run has finished.
        warnings: what the user should know before anything runs, a line each.
        placement: where the stages will run.
    """

    job: Job
    sources: tuple[Source, ...]
    failures: tuple[SourceReport, ...]
    placement: Placement
    done: tuple[SourceReport, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """Sources that were named, those that cannot be used too."""
        return len(self.sources) + len(self.failures) + len(self.done)

    @property
    def status_folder(self) -> Path:
        """Where a status of the run may lie."""
        return self.job.out

    def decisions(self) -> Iterator[str]:
        """What was decided and why, a line each."""
        choice, placement = self.job.choice, self.placement
        yield f"engine {choice.name} ({choice.runtime}): {choice.reason}"
        shared = f", {placement.together} a process" if placement.together > 1 else ""
        yield f"placement {placement.name}, {placement.lanes} at once{shared}: {placement.reason}"


def prepare(config: RunConfig) -> Plan | FarPlan:
    """Check all that can be checked before anything runs, and decide where it runs.

    Raises ConfigError, ModelError, EngineError or OutputError.
    """
    return _prepare_far(config) if config.far else prepare_here(config)


def prepare_here(config: RunConfig) -> Plan:
    """As `prepare`, for what runs on this machine."""
    files, spec = model_files(config.model)
    choice = with_kernels(choose_engine(config.engine, config.precision), files)
    form = check_fit(choice, files)
    expansion = expand(config.sources)
    _check_out(config.out)
    failures = [SourceReport(given, given, error=one_line(e)) for given, e in expansion.failures]
    sources = []
    for source in expansion.sources:
        if inside_its_output(source, config.out):
            failures.append(_in_its_own_way(source, config.out))
        else:
            sources.append(source)
    job = _job(config, files, spec, choice, place(config, choice, len(sources)), form)
    found = survey(job, sources) if config.resume else Survey(tuple(sources), (), ())
    placement = place(config, choice, len(found.left))
    choice, engines = share_cores(choice, placement)
    return Plan(
        job=replace(_job(config, files, spec, choice, placement, form), engines=engines),
        sources=found.left,
        failures=(*failures, *found.refused),
        placement=placement,
        done=found.done,
        warnings=() if config.resume else tuple(unfinished(job, sources)),
    )


def run(
    plan: Plan | FarPlan,
    stop: Callable[[], bool] = lambda: False,
    teller: Teller | None = None,
) -> Generator[RunEvent, None, None]:
    """Run all sources of a plan and give events as they come; each source's last is its report.

    Args:
        stop: asked often; once True, what is decoded is finished, files are closed and the run ends.
        teller: hears what a job on a cluster decides on its way.
    """
    if isinstance(plan, FarPlan):
        yield from FarRun(plan, stop, teller).events()
        return
    yield from plan.failures
    yield from plan.done
    if plan.sources and plan.placement.name != "inline":
        from pipeline.cluster.crew import run_on_ray  # Ray takes a second to import

        yield from run_on_ray(
            plan.job, plan.sources, fused=plan.placement.name == "fused",
            lanes=plan.placement.lanes, together=plan.placement.together, stop=stop,
        )  # fmt: skip
    elif plan.sources:
        segmenter = make_segmenter(plan.job)
        for source in plan.sources:
            if stop():
                return
            yield from process(
                plan.job, source, segmenter, stop=stop, threads=False, resume=plan.job.resume
            )


def name_anywhere(model: str, files: ModelFiles) -> str:
    """What a model is called on every node: a shipped one lies elsewhere there, a folder is shared."""
    return model if model in shipped_models() else str(files.folder.absolute())


def _prepare_far(config: RunConfig) -> FarPlan:
    files, spec = model_files(config.model)
    if config.engine not in (*ENGINES, "counting"):
        raise EngineError(f"unknown engine {config.engine!r}: choose one of {', '.join(ENGINES)}")
    if config.precision not in PRECISIONS:
        raise EngineError(
            f"unknown precision {config.precision!r}: choose one of {', '.join(PRECISIONS)}"
        )
    out = config.to or os.path.abspath(config.out)
    if config.to is not None:
        open_store(config.to)
    else:
        _check_out(config.out)
    model = name_anywhere(config.model, files)

    def make_job(hands: Hands) -> FarJob:
        placement = Placement(hands.name, hands.lanes, hands.reason, hands.together)
        near = _job(config, files, spec, hands.choice, placement, hands.form_sha256)
        shown = replace(near, out=Path(out), model=model, engines=hands.engines)
        return FarJob(**vars(shown), remote_out=config.to,
                      split_seconds=config.split_seconds)  # fmt: skip

    return FarPlan(
        sources=config.sources, out=out, model=model, engine=config.engine,
        precision=config.precision, placement=config.placement,
        weights_sha256=files.weights_sha256(), address=config.address, resume=config.resume,
        tries=config.tries, segmenters=config.segmenters, hwaccel=config.hwaccel, make_job=make_job,
    )  # fmt: skip


def _in_its_own_way(source: Source, out: Path) -> SourceReport:
    error = (
        f"{source.uri}: its results would go to {out / source.stream_id}, where it lies itself:"
        " give another --out"
    )
    return SourceReport(source.stream_id, source.uri, error=error)


def model_files(name: str) -> tuple[ModelFiles, Spec]:
    """The model's files and specification. Raises ModelError.

    Whether the weights fit is found out by whoever loads them: that needs torch.
    """
    try:
        files = find_model(name)
        spec = files.spec()
        files.weights_sha256()
    except SpecError as error:
        raise ModelError(str(error)) from error
    except OSError as error:
        raise ModelError(f"model {name!r} cannot be read: {error}") from error
    if spec.in_channels != VIDEO_PLANES:
        raise ModelError(
            f"model {name!r} takes frames of {spec.in_channels} planes, video has {VIDEO_PLANES}:"
            " give another model (`roadmask eval` takes this one's data)"
        )
    return files, spec


def _job(
    config: RunConfig,
    files: ModelFiles,
    spec: Spec,
    choice: EngineChoice,
    placement: Placement,
    form_sha256: str | None,
) -> Job:
    facts: dict[str, Any] = {
        "model": {"name": spec.name, "weights_sha256": files.weights_sha256(),
                  "size_hw": config.size_hw or "by the source's aspect"},
        "engine": {"name": choice.name, "runtime": choice.runtime, "reason": choice.reason,
                   "threads": choice.threads, "form_sha256": form_sha256},
        "placement": {"name": placement.name, "lanes": placement.lanes,
                      "together": placement.together, "reason": placement.reason},
        "versions": versions(),
    }  # fmt: skip
    if frames_can_stay(config.hwaccel, choice) and placement.name != "spread":
        facts["scaled_on"] = f"{config.hwaccel} where it decodes"
    # Of the streams that share an engine each has a slot.
    together = placement.lanes if placement.name == "spread" else placement.together
    batch_bytes, slots = None, max(SPREAD_LANES, together)
    if placement.name == "spread":
        # All batches on their way must fit into shared memory.
        batch_bytes = SHARED_MEMORY_BYTES // (placement.lanes * BATCHES_ON_THE_WAY)
    return Job(
        out=config.out.absolute(), options=config.options, model=str(files.folder.absolute()),
        choice=choice, size_hw=config.size_hw, chunk=config.chunk, slots=slots,
        batch_bytes=batch_bytes, facts=facts, resume=config.resume,
        checkpoint_seconds=config.checkpoint_seconds, hwaccel=config.hwaccel,
    )  # fmt: skip


def _check_out(out: Path) -> None:
    """Make the output folder and see that it can be written to. Raises OutputError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out, prefix=".roadmask-"):
            pass
    except OSError as error:
        why = error.strerror or str(error)
        raise OutputError(
            f"cannot write to output folder {out}: {why}; give another --out"
        ) from error


def segment(
    source: str | os.PathLike[str],
    model: str = DEFAULT_MODEL,
    engine: str = "auto",
    *,
    precision: str = "auto",
    chunk: int = 8,
    pictures: bool = False,
    hwaccel: str | None = None,
) -> Iterator[LabelBatch]:
    """The label batches of any one source, in order, in this process.

    Args:
        source: a video file or a folder of images.
        pictures: whether batches bring their full-size frames along.
        hwaccel: kind of device to decode videos on, such as "cuda", where it can; None for the cores.

    Raises PipelineError at once if the source, the model or the engine is not there.
    """
    check_hwaccel(hwaccel)
    files, _ = model_files(model)
    choice = choose_engine(engine, precision)
    check_fit(choice, files)
    expansion = expand([os.fspath(source)])
    for _, error in expansion.failures:
        raise error
    if len(expansion.sources) != 1:
        raise ConfigError(f"{source} holds {len(expansion.sources)} videos: give one at a time")
    job = Job(
        out=Path(), options=OutputOptions(overlay=pictures), model=str(files.folder),
        choice=choice, chunk=chunk, slots=1, checkpoint_seconds=None, hwaccel=hwaccel,
    )  # fmt: skip
    return _label_batches(job, expansion.sources[0])


def _label_batches(job: Job, source: Source) -> Iterator[LabelBatch]:
    with ExitStack() as stack:
        decoder = stack.enter_context(make_decoder(job, source, with_network=True))
        frames = stack.enter_context(closing(ahead(decoder, 2)))
        items = stack.enter_context(closing(make_segmenter(job).labels(frames)))
        yield from (item for item in items if isinstance(item, LabelBatch))
