"""`roadmask eval` as the command line sees it: its options, and its errors in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import ConfigError, OutputError
from pipeline.options import INTERRUPTED, ModelArgument


def evaluate_model(
    model: ModelArgument,
    dataset: Annotated[
        Path,
        typer.Argument(help="Folder with images/ and labels/ (or masks/), or of rendered clips."),
    ],
    include: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="Only pictures or clips in whose name it is found."),
    ] = None,
    exclude: Annotated[
        str | None, typer.Option(metavar="REGEX", help="None in whose name it is found.")
    ] = None,
    sequence_step: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Pictures whose numbers rise by N follow each other, 0: none do; by default those"
            " that rise by equal steps.",
        ),
    ] = None,
    reset_every_frame: Annotated[
        bool, typer.Option("--reset-every-frame", help="Start the state anew with every frame.")
    ] = False,
    compare_reset: Annotated[
        bool, typer.Option("--compare-reset", help="State carried and state reset, side by side.")
    ] = False,
    steadiness: Annotated[
        bool | None,
        typer.Option(help="Measure TC, VC and flicker; by default where frames are consecutive."),
    ] = None,
    robustness: Annotated[
        str | None,
        typer.Option(
            metavar="all|KIND,...",
            help="mIoU at five strengths of darkness, noise, blur, rain, jpeg.",
        ),
    ] = None,
    bursts: Annotated[
        bool, typer.Option("--bursts", help="mIoU while and after ten frames are hidden in part.")
    ] = False,
    scales: Annotated[
        str,
        typer.Option(
            metavar="X,...",
            help="Average over these sizes, as shares of the usual one; each keeps its own state.",
        ),
    ] = "1",
    flip: Annotated[
        bool,
        typer.Option("--flip", help="Average with the mirrored frame, which keeps its own state."),
    ] = False,
    precision: Annotated[
        str, typer.Option(metavar="f32|bf16", help="bf16 is faster where the CPU has it.")
    ] = "f32",
    seed: Annotated[int, typer.Option(min=0, help="Of what is random in damage.")] = 0,
    json_to: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write all figures as JSON.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Folder for an HTML report: tables, curves, the worst frames."),
    ] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no tables.")] = False,
) -> None:
    """Measure a network on labelled footage: accuracy, steadiness, robustness.

    Each clip is a stream, through which the network's state is carried, and so is each run of pictures
    whose names count up: say with --sequence-step by how much if they were taken at different rates.
    """
    if reset_every_frame and compare_reset:
        raise ConfigError("--reset-every-frame and --compare-reset exclude each other: give one")
    modes = ("carried", "reset") if compare_reset else ("reset",) if reset_every_frame else None
    _expect_place_for(json_to, report)
    from models.errors import DataError
    from models.evaluation import eval_command
    from models.spec import SpecError

    try:
        eval_command.main(
            model, dataset, include=include, exclude=exclude, sequence_step=sequence_step,
            modes=modes or ("carried",), steadiness=steadiness, robustness=robustness,
            bursts=bursts, scales=scales, flip=flip, precision=precision, seed=seed,
            json_to=json_to, report=report, quiet=quiet,
        )  # fmt: skip
    except (DataError, SpecError) as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise OutputError(str(error)) from error
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def _expect_place_for(json_to: str | None, report: Path | None) -> None:
    """An evaluation takes minutes: say before it, not after, that its result has no place."""
    for option, place in (("--json", json_to), ("--report", report)):
        if place is None or place == "-":
            continue
        path = Path(place)
        if not path.parent.is_dir():
            raise OutputError(f"{option} {path}: there is no folder {path.parent}")
        if path.exists() and path.is_dir() != (option == "--report"):
            raise OutputError(f"{option} {path}: it is {'a folder' if path.is_dir() else 'a file'}")
