"""`roadmask live` as the command line sees it: its options, and its errors in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.errors import ConfigError
from pipeline.options import (
    FAILED,
    INTERRUPTED,
    EngineName,
    ModelName,
    NetworkSize,
    Quiet,
    Stopper,
    TlsCert,
    TlsKey,
    ViewToken,
    most_kept,
    parse_size,
)

if TYPE_CHECKING:
    from pipeline.live.console import Console
    from pipeline.live.live import LiveHub


def watch_live(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=]SOURCE...",
            help="rtsp:// (rtspu:// for UDP), rtmp://, http(s)://, srt://, udp://, /dev/videoN,"
            " or a file, with --realtime.",
        ),
    ] = None,
    view: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Serve the live view, such as 127.0.0.1:8000 (extra `view`)."
        ),
    ] = None,
    record: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Record cameras and labels, for replay.")
    ] = None,
    max_latency: Annotated[
        float | None,
        typer.Option(
            metavar="MS",
            help="Drop frames that would be labelled later than this after their arrival;"
            " by default 200 on a GPU, 500 on a CPU.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write colours and labels of each camera, in segments."),
    ] = None,
    segment: Annotated[
        float, typer.Option(metavar="SECONDS", help="Length of a segment of --out.")
    ] = 600.0,
    overlay: Annotated[
        bool, typer.Option("--overlay", help="With --out: overlay.mp4 in each segment too.")
    ] = False,
    keep_hours: Annotated[
        float | None,
        typer.Option(metavar="H", help="Remove segments of --out and --record older than this."),
    ] = None,
    keep_gb: Annotated[
        float | None,
        typer.Option(
            metavar="GB",
            help="Remove the oldest segments beyond this size, of --out and --record each.",
        ),
    ] = None,
    publish: Annotated[
        str | None,
        typer.Option(
            metavar="URL|FILE.m3u8",
            help="Send the overlay to an RTSP or RTMP server, or as HLS; {camera} is the name.",
        ),
    ] = None,
    event: Annotated[
        list[str] | None,
        typer.Option(
            metavar="'CLASS>SHARE for SECONDSs -> URL'",
            help="Tell a webhook (http) or topic (mqtt) when a class takes more than a share; repeatable.",
        ),
    ] = None,
    model: ModelName = "roadnet",
    engine: EngineName = "auto",
    precision: Annotated[
        str,
        typer.Option(metavar="auto|f32|f16|bf16|int8|fp8", help="What the network multiplies in."),
    ] = "auto",
    size: NetworkSize = None,
    silence: Annotated[
        float, typer.Option(metavar="SECONDS", help="Without a frame for so long, open anew.")
    ] = 10.0,
    attempts: Annotated[
        int | None,
        typer.Option(metavar="N", help="Give a camera up after so many failures in a row."),
    ] = None,
    realtime: Annotated[
        bool, typer.Option("--realtime", help="Take files too, each played at its own pace.")
    ] = False,
    duration: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Stop after so long.")
    ] = None,
    inline: Annotated[
        bool, typer.Option("--inline", help="Cameras are threads, not processes; for debugging.")
    ] = False,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="auto|URL",
            help="Share the cameras among the nodes of a running Ray cluster.",
        ),
    ] = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token: ViewToken = None,
    quiet: Quiet = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show decisions.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Changes of state and final figures as JSON lines.")
    ] = False,
) -> None:
    """Label cameras as they come: newest frame first, opening again for ever what breaks.

    Exit status: 0 all done, 1 some camera or output failed, 2 wrong use, 130 interrupted.
    """
    if not sources and view is None:
        raise ConfigError("no camera given: name one, or give --view to add some there")
    viewed = _view_starter(view, tls_cert, tls_key, token) if view is not None else None
    from pipeline.live.config import LiveConfig, prepare_live
    from pipeline.live.console import Console

    keep_seconds, keep_bytes = most_kept(keep_hours, keep_gb)
    plan = prepare_live(
        LiveConfig(
            tuple(sources or ()), model=model, engine=engine, precision=precision,
            size_hw=parse_size(size), max_latency_ms=max_latency, silence_seconds=silence,
            attempts=attempts, realtime=realtime, inline=inline, duration_seconds=duration,
            out=out, segment_seconds=segment, overlay=overlay, record=record, publish=publish,
            keep_seconds=keep_seconds, keep_bytes=keep_bytes, events=tuple(event or ()),
            address=address,
        )
    )  # fmt: skip
    with Console(quiet=quiet, as_json=as_json) as console:
        for decision in plan.decisions() if verbose else ():
            console.say(decision)
        status = _run(plan, console, viewed)
    raise typer.Exit(status)


def _run(
    plan: Any, console: Console, viewed: Callable[[Console], Callable[[LiveHub], Any]] | None
) -> int:
    from pipeline.live.command import run_live

    stopper = Stopper()
    try:
        with stopper.listening(console.say):
            report = run_live(plan, console, stopper, viewed(console) if viewed else None)
    except KeyboardInterrupt:
        return INTERRUPTED
    console.finish(report.cameras)
    for problem in report.problems:
        console.say(f"error: {problem}", even_if_quiet=True)
    if stopper.pressed:
        return INTERRUPTED
    return FAILED if report.problems else 0


def _view_starter(
    view: str, tls_cert: Path | None, tls_key: Path | None, token: str | None
) -> Callable[[Console], Callable[[LiveHub], Any]]:
    """Checks the view's options; what it returns starts the view of a hub, and tells where it is."""
    from pipeline.live.live import LiveHub
    from pipeline.live.metering import LiveMeter
    from pipeline.metrics.meters import PrometheusMeters
    from pipeline.view import ViewConfig, start_view

    config = ViewConfig.at(view, token, tls_cert, tls_key)

    def starter(console: Console) -> Callable[[LiveHub], Any]:
        def start(hub: LiveHub) -> Any:
            for note in config.notes:
                console.say(f"note: {note}")
            meters = PrometheusMeters()
            if isinstance(hub, LiveHub):  # on several machines each tells of its own stages
                hub.listen(LiveMeter(meters))
            server = start_view(hub, config, meters)
            console.say(f"view: {server.url}")
            return server

        return start

    return starter
