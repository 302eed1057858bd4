"""`roadmask record` and `roadmask replay` as the command line sees them."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.errors import ConfigError
from pipeline.options import (
    FAILED,
    INTERRUPTED,
    Quiet,
    Stopper,
    TlsCert,
    TlsKey,
    ViewToken,
    most_kept,
)

if TYPE_CHECKING:
    from pipeline.live.hub import Hub

Say = Callable[[str], None]


def record_session(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]SOURCE...",
            help="rtsp:// (rtspu:// for UDP), rtmp://, http(s)://, srt://, udp://, /dev/videoN,"
            " or a file played at its pace.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the session; one that is there goes on.")],
    seconds: Annotated[
        float | None, typer.Option(metavar="S", help="Stop after so long; by default on Ctrl-C.")
    ] = None,
    segment: Annotated[
        float, typer.Option(metavar="S", help="Close a segment, at a key frame, after so long.")
    ] = 10.0,
    keep_hours: Annotated[
        float | None, typer.Option(metavar="H", help="Remove segments older than this.")
    ] = None,
    keep_gb: Annotated[
        float | None,
        typer.Option(metavar="GB", help="Remove the oldest segments beyond this size."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Record cameras as they come, without labelling and without encoding again.

    Exit status: 0 all done, 1 some camera or the disk failed, 2 wrong use, 130 interrupted.
    """
    from pipeline.session.capture import record_cameras
    from pipeline.session.format import Limits

    max_age_seconds, max_bytes = most_kept(keep_hours, keep_gb)
    limits = Limits(segment_seconds=segment, max_age_seconds=max_age_seconds, max_bytes=max_bytes)
    if seconds is not None and not seconds > 0:
        raise ConfigError(f"--seconds must be above 0, got {seconds}")
    stop = Stopper()
    with stop.listening():
        failed = record_cameras(sources, out, limits, seconds, stop, _say(quiet))
        if stop():
            raise typer.Exit(INTERRUPTED)
    if failed:
        raise typer.Exit(FAILED)


def replay_session(
    session: Annotated[Path, typer.Argument(metavar="SESSION", help="Folder of a session.")],
    speed: Annotated[
        str, typer.Option(metavar="X|max", help="Times the recorded speed, or max.")
    ] = "1",
    start: Annotated[
        float, typer.Option(metavar="SECONDS", help="Start here; the memory is as it was then.")
    ] = 0.0,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare the labels with those recorded.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="OTHER", help="Another network: writes a report of the two side by side."
        ),
    ] = None,
    report: Annotated[
        Path, typer.Option(help="Folder of the side-by-side report of --model.")
    ] = Path("replay-report"),
    engine: Annotated[
        str | None,
        typer.Option(metavar="auto|cpu|cuda|tensorrt", help="By default as recorded."),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(metavar="auto|f32|f16|bf16|int8|fp8", help="By default as recorded."),
    ] = None,
    view: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Serve the live view of the replay (extra `view`)."),
    ] = None,
    paused: Annotated[
        bool, typer.Option("--paused", help="With --view: wait there for play or step.")
    ] = False,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token: ViewToken = None,
    quiet: Quiet = False,
) -> None:
    """Play a recorded session through the same stages as when it was live.

    No frame is dropped, whatever the speed. With --verify and the recorded network and engine, all labels
    are identical. With --view the page has play, pause, steps, seeking and speed, and it stays at its end.

    --verify also reads every closed file whole and compares its checksum.

    Exit status: 0 all done (with --verify: what can be compared is identical, and no file damaged), 1 labels
    differ or a file is damaged, 2 wrong use, 130 interrupted.
    """
    from pipeline.session.replay import Replay, ReplayConfig

    config = ReplayConfig(
        session, speed=_parse_speed(speed), start_seconds=start, verify=verify, model=model,
        engine=engine, precision=precision, report=report if model and not verify else None, paused=paused,
    )  # fmt: skip
    if paused and view is None:
        raise ConfigError("--paused needs --view: nobody else could let it go on")
    say = _say(quiet)
    show = _shown_at(view, tls_cert, tls_key, token, say) if view is not None else None
    replay = Replay(config)
    for note in replay.notes:
        say(f"note: {note}")
    damaged = replay.session.check() if verify else []
    for line in damaged:
        say(f"damaged: {line}")
    stop = Stopper()
    with stop.listening():
        for line in replay.play(stop, show):
            say(line)
        if stop():
            raise typer.Exit(INTERRUPTED)
    if damaged or (replay.verification is not None and not replay.verification.identical):
        raise typer.Exit(FAILED)


def _shown_at(
    address: str, tls_cert: Path | None, tls_key: Path | None, token: str | None, say: Say
) -> Callable[[Hub], AbstractContextManager[object]]:
    """Checks the view's options; what it returns serves the view of a hub, and tells where it is."""
    from pipeline.view import ViewConfig, start_view

    config = ViewConfig.at(address, token, tls_cert, tls_key)

    def show(hub: Hub) -> AbstractContextManager[object]:
        view = start_view(hub, config)
        for line in (*(f"note: {note}" for note in view.notes), f"view: {view.url}"):
            say(line)
        return view

    return show


def _parse_speed(text: str) -> float:
    if text == "max":
        return math.inf
    try:
        value = float(text.removesuffix("x"))
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"--speed must be a number above 0, or max, got {text!r}")
    return value


def _say(quiet: bool) -> Say:
    def say(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr, flush=True)

    return say
