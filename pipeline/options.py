"""What several commands of the command line have in common: options, exit statuses, and how they stop."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import ConfigError

FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130

MODEL_HELP = "A shipped model's name or a model's folder."

ModelName = Annotated[str, typer.Option(help=MODEL_HELP)]
ModelArgument = Annotated[str, typer.Argument(help=MODEL_HELP)]
EngineName = Annotated[
    str, typer.Option(metavar="auto|cpu|cuda|tensorrt", help="What runs the network.")
]
NetworkSize = Annotated[
    str | None,
    typer.Option(metavar="HxW", help="Input size of the network; by default from the model."),
]
HardwareDecoding = Annotated[
    str | None,
    typer.Option(
        metavar="cuda|...",
        help="Decode videos on a device (cuda: NVDEC, beside a GPU engine without leaving the GPU); on the"
        " cores, with a note, where it cannot.",
    ),
]
TlsCert = Annotated[
    Path | None, typer.Option(help="Certificate (PEM) of the view; its key may be in it.")
]
TlsKey = Annotated[Path | None, typer.Option(help="Key of --tls-cert.")]
ViewToken = Annotated[
    str | None,
    typer.Option(
        envvar="ROADMASK_VIEW_TOKEN",
        help="What viewers must know; needed where others than this machine can see the view.",
    ),
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Show errors only.")]


class Stopper:
    """The first Ctrl-C (or SIGTERM) asks to finish what is under way; the second gives up at once."""

    def __init__(self) -> None:
        self.pressed = False

    def __call__(self) -> bool:
        return self.pressed

    @contextmanager
    def listening(self, say: Callable[[str], None] = lambda line: None) -> Iterator[None]:
        def press(signum: int, frame: object) -> None:
            if self.pressed:
                raise KeyboardInterrupt
            self.pressed = True
            say("stopping: finishing what is decoded (Ctrl-C again gives up at once)")

        before = {
            number: signal.signal(number, press) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def parse_size(text: str | None) -> tuple[int, int] | None:
    """HEIGHTxWIDTH in pixels, None for None. Raises ConfigError."""
    if text is None:
        return None
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdecimal() and width.isdecimal()):
        raise ConfigError(f"--size must be HEIGHTxWIDTH in pixels, such as 360x640, got {text!r}")
    return int(height), int(width)


def most_kept(hours: float | None, gigabytes: float | None) -> tuple[float | None, int | None]:
    """Seconds and bytes of --keep-hours and --keep-gb; None for no limit. Raises ConfigError."""
    for name, value in (("--keep-hours", hours), ("--keep-gb", gigabytes)):
        if value is not None and not math.isfinite(value):
            raise ConfigError(f"{name} must be a number, got {value}; leave it out for no limit")
    return (
        None if hours is None else 3600 * hours,
        None if gigabytes is None else int(gigabytes * 10**9),
    )
