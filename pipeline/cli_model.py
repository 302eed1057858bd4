"""`roadmask compile`, `roadmask prune` and `roadmask average` as the command line sees them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import ConfigError, ModelError, OutputError
from pipeline.options import ModelArgument, NetworkSize, parse_size

# What is made by calibration for which engine.
CALIBRATED = {"auto": ("int8",), "cpu": ("int8",), "tensorrt": ("int8", "fp8")}


def compile_model(
    model: ModelArgument = "roadnet",
    engine: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda|tensorrt", help="What to build for.")
    ] = "auto",
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="auto|f32|f16|bf16|int8|fp8",
            help="What the network multiplies in; int8 where footage to calibrate with is given.",
        ),
    ] = None,
    streams: Annotated[
        int, typer.Option(min=1, max=64, help="Streams that a GPU takes at once.")
    ] = 8,
    size: NetworkSize = None,
    calibrate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE",
            help="Make INT8, or FP8 for TensorRT, from footage like what will be seen; repeatable. For a CPU"
            " it stays in the model's folder (needs the extra `int8`, for TensorRT `trt-quantize`).",
        ),
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="Frames to calibrate with.")] = 200,
) -> None:
    """Build an engine, read it back, check it against float32, and say how fast it is."""
    from pipeline.compile import compile_engine, make_int8

    size_hw = parse_size(size)
    sources = tuple(calibrate or ())
    if sources:
        made = CALIBRATED.get(engine, ())
        if precision not in (None, *made) or not made:
            raise ConfigError(
                "--calibrate makes int8 for --engine cpu, int8 or fp8 for --engine tensorrt:"
                " give no other engine or precision"
            )
        precision = precision or "int8"
        if engine != "tensorrt":
            engine = "cpu"
            make_int8(model, sources, frames, size_hw)
            sources = ()  # what follows reads what was made

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    print(
        compile_engine(model, engine, precision or "auto", streams, size_hw, say, sources, frames)
    )


def prune_model(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(help="Folder for the smaller model.")],
    ratio: Annotated[float, typer.Option(help="Share of the channels to take out.")] = 0.3,
) -> None:
    """Take a model's least important channels out; train it on afterwards (needs the extra `prune`)."""
    from models import prune as pruning

    with _writing_a_model(out):
        print(pruning.prune(model, out, ratio).folder)


def average_models(
    model: ModelArgument,
    other: Annotated[
        str,
        typer.Argument(metavar="OTHER", help="A model of the same network, trained on from it."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the averaged model.")],
    share: Annotated[float, typer.Option(help="Share of OTHER, over 0 and under 1.")] = 0.5,
) -> None:
    """Average the weights of a model and of one trained on from it: less of what that forgot."""
    from models import average as averaging

    with _writing_a_model(out):
        print(averaging.average(model, other, share, out).folder)


@contextmanager
def _writing_a_model(out: Path) -> Iterator[None]:
    """Errors of making one model from others, as the command line says them."""
    from models.spec import SpecError

    try:
        yield
    except SpecError as error:
        raise ModelError(str(error)) from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from error
