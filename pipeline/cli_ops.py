"""`roadmask status` and `roadmask plan` as the command line sees them, and who looks on while a run goes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.errors import ConfigError
from pipeline.options import FAILED

if TYPE_CHECKING:
    from pipeline.metrics.observer import Observer
    from pipeline.progress import Display
    from pipeline.run import FarPlan, Plan


def observing(
    plan: Plan | FarPlan, display: Display, metrics: str | None, trace: str | None
) -> Observer:
    """Looks on while a plan runs; a context manager. Raises ConfigError or OutputError."""
    from pipeline.metrics.observer import Observer

    def count() -> int | None:  # a job on a cluster lists its sources on its way
        return plan.count if plan.count is not None else display.sources or None

    return Observer(count, plan.status_folder, metrics, trace, display.warn)


def show_status(
    place: Annotated[
        str,
        typer.Argument(
            metavar="DIR|URL",
            help="A run's --out folder, or the address of its --metrics or of a live view.",
        ),
    ],
    token: Annotated[
        str | None, typer.Option(envvar="ROADMASK_VIEW_TOKEN", help="Of a live view that has one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """How a run stands: what is done, what failed, how fast, and how long it will take.

    Exit status: 0 it runs or is done, 1 it failed, was interrupted or has fallen silent, 2 there is none.
    """
    import json

    from pipeline.metrics.show import ask

    found = ask(place, token)
    print(json.dumps(found.as_json()) if as_json else "\n".join(found.lines()))
    raise typer.Exit(0 if found.well else FAILED)


def plan_capacity(
    streams: Annotated[int, typer.Option(min=1, help="Cameras.")] = 100,
    fps: Annotated[float, typer.Option(help="Frames a second of each.")] = 30.0,
    size: Annotated[
        str, typer.Option(metavar="WxH", help="Of their pictures, width first.")
    ] = "1280x720",
    mbps: Annotated[float, typer.Option(help="Megabit a second of each camera's video.")] = 4.0,
    costs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What `roadmask bench --sweep stages` printed on a machine of the kind planned for;"
            " by default the costs that were measured for this version.",
        ),
    ] = None,
    node: Annotated[
        str | None,
        typer.Option(
            metavar="KEY=N,...",
            help="A node: cores=, gpus=, nvdec= (engines), nvdec_fps= (1080p frames a second of one),"
            " nic_gbps=, disk_mb_s=; by default the machine of the costs, with 10 Gbit/s and 500 MB/s.",
        ),
    ] = None,
    write: Annotated[
        str,
        typer.Option(metavar="none|record|out", help="What is kept on the nodes' disks."),
    ] = "none",
    load: Annotated[float, typer.Option(help="Share of a node's capacity to plan with.")] = 0.7,
    spare: Annotated[int, typer.Option(min=0, help="Nodes that may fail at once.")] = 1,
    max_latency: Annotated[
        float, typer.Option(metavar="MS", help="Frames that would be later are dropped.")
    ] = 200.0,
    simulate: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", help="Check the plan by a simulation of so long; 0 for none."
        ),
    ] = 3.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """How many nodes a number of cameras needs, what binds, and a simulation of it with nodes that fail.

    Exit status: 0 the simulated plan holds, 1 it doesn't.
    """
    import json

    from pipeline.plan import Ask, check, load_costs, make_plan, parse_node, report

    measured = load_costs(costs)
    ask = Ask(
        streams=streams, fps=fps, size_hw=_width_height(size), mbps=mbps, write=write, load=load,
        spare=spare, max_latency_ms=max_latency,
    )  # fmt: skip
    plan = make_plan(ask, measured, parse_node(node, measured))
    found = check(plan, simulate) if simulate > 0 else None
    print(json.dumps(report.as_json(plan, found)) if as_json else report.text(plan, found))
    raise typer.Exit(FAILED if found is not None and not found.holds else 0)


def _width_height(text: str) -> tuple[int, int]:
    width, cross, height = text.lower().partition("x")
    if not (cross and height.isdecimal() and width.isdecimal() and int(width) and int(height)):
        raise ConfigError(f"--size must be WIDTHxHEIGHT in pixels, such as 1280x720, got {text!r}")
    return int(height), int(width)
