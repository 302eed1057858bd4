"""The command line. Nothing heavy is imported before a command needs it: `--help` answers at once."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline import __version__
from pipeline.cli_eval import evaluate_model
from pipeline.cli_live import watch_live
from pipeline.cli_model import average_models, compile_model, prune_model
from pipeline.cli_ops import observing, plan_capacity, show_status
from pipeline.cli_session import record_session, replay_session
from pipeline.doctor import check_machine
from pipeline.errors import ConfigError, EngineError, ModelError, OutputError, PipelineError
from pipeline.options import (
    FAILED,
    INTERRUPTED,
    WRONG_USE,
    EngineName,
    HardwareDecoding,
    ModelName,
    NetworkSize,
    Quiet,
    Stopper,
    parse_size,
)

if TYPE_CHECKING:
    from pipeline.progress import Display
    from pipeline.run import FarPlan, Plan

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Streaming semantic segmentation of driving footage: footage in, class masks out.",
)
samples_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Get sample footage: rendered, or real by URL.",
)
app.add_typer(samples_app, name="samples")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"roadmask {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Video file, folder of videos, folder of images, or quoted glob; s3://, gs://, ... too.",
        ),
    ],
    out: Annotated[
        str,
        typer.Option(metavar="DIR|URL", help="Where results go; each source gets a folder in it."),
    ],
    labels: Annotated[
        str, typer.Option(metavar="mkv|png|none", help="How to write the lossless class ids.")
    ] = "mkv",
    color: Annotated[bool, typer.Option(help="Write color.mp4, the class colours.")] = True,
    overlay: Annotated[
        bool,
        typer.Option("--overlay", help="Write overlay.mp4, masks over the footage, with sound."),
    ] = False,
    model: ModelName = "roadnet",
    engine: EngineName = "auto",
    precision: Annotated[
        str,
        typer.Option(
            metavar="auto|f32|f16|bf16|int8|fp8",
            help="What the network multiplies in; int8 is the fastest on a CPU, and a little coarser.",
        ),
    ] = "auto",
    size: NetworkSize = None,
    hwaccel: HardwareDecoding = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an earlier run of the same was cut off.")
    ] = False,
    inline: Annotated[
        bool, typer.Option("--inline", help="Run in this process, for debugging and profiling.")
    ] = False,
    placement: Annotated[
        str,
        typer.Option(
            metavar="auto|fused|spread",
            help="One actor a source, or decoders, segmenter and sinks apart. Never changes a label.",
        ),
    ] = "auto",
    address: Annotated[
        str | None, typer.Option(metavar="auto|HOST:PORT", help="A running Ray cluster to use.")
    ] = None,
    tries: Annotated[
        int,
        typer.Option(
            min=1, help="With --address or buckets: failures until a source is put aside."
        ),
    ] = 3,
    segmenters: Annotated[
        int, typer.Option(min=1, help="Of a cluster: segmenters that share each GPU.")
    ] = 1,
    split: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="With --address or buckets: label files of twice this in spans of so long, side by side;"
            " almost the same labels, else whole.",
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST:]PORT",
            help="Serve Prometheus metrics and the run's status (extra `metrics`).",
        ),
    ] = None,
    trace: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|URL",
            help="Write a span a batch and stage, or send by OTLP (extra `trace`).",
        ),
    ] = None,
    quiet: Quiet = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Show decisions, and tracebacks of defects.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a line of JSON a source on standard output.")
    ] = False,
) -> None:
    """Label footage: class colours, overlay, lossless labels, statistics and manifest a source.

    Exit status: 0 all done, 1 some source failed, 2 wrong use, 130 interrupted.
    """
    from pipeline.progress import Display

    with Display(quiet=quiet, verbose=verbose, as_json=as_json) as display:
        from pipeline.config import whereto
        from pipeline.run import RunConfig, prepare
        from pipeline.sinks import OutputOptions

        plan = prepare(
            RunConfig(
                sources=tuple(sources), **whereto(out),
                options=OutputOptions(labels=labels, color=color, overlay=overlay),
                model=model, engine=engine, precision=precision, size_hw=parse_size(size),
                placement=_placement(inline, placement), address=address, resume=resume, tries=tries,
                segmenters=segmenters, split_seconds=split, hwaccel=hwaccel,
            )
        )  # fmt: skip
        raise typer.Exit(_execute(plan, display, metrics, trace))


def _placement(inline: bool, placement: str) -> str:
    if inline and placement not in ("auto", "inline"):
        raise ConfigError(f"--inline and --placement {placement} exclude each other: give one")
    return "inline" if inline else placement


def _execute(
    plan: Plan | FarPlan, display: Display, metrics: str | None = None, trace: str | None = None
) -> int:
    """Run a plan before the user's eyes; returns the exit status."""
    from pipeline.run import Plan, run

    stopper = Stopper()
    if isinstance(plan, Plan):  # a job on a cluster says these on its way
        display.begin(plan.count)
        for decision in plan.decisions():
            display.say(decision)
    for warning in plan.warnings:
        display.warn(warning)
    with observing(plan, display, metrics, trace) as observer:
        try:
            with stopper.listening(display.warn), closing(run(plan, stopper, display)) as events:
                for event in events:
                    observer.update(event)
                    display.show(event)
        except KeyboardInterrupt:
            return INTERRUPTED
        observer.ended(stopper.pressed)
    display.summary()
    if stopper.pressed:
        return INTERRUPTED
    return FAILED if display.failed else 0


@samples_app.command()
def render(
    out: Annotated[Path, typer.Option(help="Folder for the clip and its labels.")],
    seed: Annotated[int, typer.Option(help="Another seed, another street.")] = 1,
    frames: Annotated[int, typer.Option(min=1, help="Length in frames.")] = 300,
    size: Annotated[str, typer.Option(metavar="HxW", help="Size in pixels.")] = "720x1280",
    fps: Annotated[float, typer.Option(min=1.0, help="Frames a second.")] = 30.0,
) -> None:
    """Render a driving clip with exact labels (needs the extra `render`)."""
    from pipeline import samples

    size_hw = parse_size(size)
    assert size_hw is not None
    for path in samples.render(out, seed, frames, size_hw, fps):
        print(path)


@samples_app.command()
def download(
    out: Annotated[Path, typer.Option(help="Folder for the clips.")],
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="All if none.")
    ] = None,
) -> None:
    """Download real driving clips under free licences, checked by SHA-256."""
    from pipeline import samples

    for path in samples.download(out, names):
        print(path)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML file, such as models/configs/roadnet.yaml.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, log and model.")],
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change the file, such as seed=2; may be repeated."
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="CHECKPOINT", help="Go on from this, not from the folder's last one."),
    ] = None,
) -> None:
    """Train a network; an interrupted training in the same folder goes on."""
    from models.errors import DataError
    from models.spec import SpecError
    from models.training import train as training

    try:
        folder = training.main(config, out, changes or (), resume)
    except (DataError, SpecError) as error:
        raise ConfigError(str(error)) from error
    except FloatingPointError as error:
        raise PipelineError(str(error)) from error
    except OSError as error:
        raise OutputError(f"cannot write to {out}: {error.strerror or error}") from error
    except KeyboardInterrupt:
        how = "the same command without --resume" if resume else "the same command"
        print(f"stopped: {how} goes on from the last checkpoint, if there is one", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    if folder is not None:
        print(folder)


app.command("eval")(evaluate_model)
app.command("live")(watch_live)
app.command("record")(record_session)
app.command("replay")(replay_session)
app.command("doctor")(check_machine)
app.command("compile")(compile_model)
app.command("prune")(prune_model)
app.command("average")(average_models)
app.command("status")(show_status)
app.command("plan")(plan_capacity)


@app.command()
def bench(
    source: Annotated[
        str, typer.Argument(metavar="VIDEO", help="A video file.")
    ] = "sample_videos/city_drive.mp4",
    model: ModelName = "roadnet",
    engine: EngineName = "auto",
    precision: Annotated[
        str,
        typer.Option(metavar="auto|f32|f16|bf16|int8|fp8", help="What the network multiplies in."),
    ] = "auto",
    rounds: Annotated[int, typer.Option(min=1, help="How often each contender runs.")] = 3,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Measure over the video's first frames only.")
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="peers|streams|chunk|size|engines|stages|all",
            help="Measure this instead; may be repeated.",
        ),
    ] = None,
    hwaccel: HardwareDecoding = None,
) -> None:
    """Measure this pipeline against the loops people use: a table, then a line of JSON."""
    import json

    from pipeline.bench import compare, table

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    result = compare(
        source, model=model, engine=engine, precision=precision, rounds=rounds,
        frames=frames, sweep=sweep or (), hwaccel=hwaccel, say=say,
    )  # fmt: skip
    print(table(result))
    print(json.dumps(result))


def main() -> None:
    """Entry point of `roadmask`. Errors a user can act on are one line; others keep their traceback."""
    try:
        app()
    except PipelineError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        wrong_use = isinstance(error, (ConfigError, ModelError, EngineError, OutputError))
        sys.exit(WRONG_USE if wrong_use else FAILED)


if __name__ == "__main__":
    main()
