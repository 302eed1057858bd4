"""A plan for people, and for scripts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from pipeline.plan.simulate import Check, Served
from pipeline.plan.sizing import Plan

_WIDTH = 22


def text(plan: Plan, found: Check | None) -> str:
    """The plan, what binds, and what the simulation found, as lines."""
    return "\n".join([*_plan(plan), *(_check(plan, found) if found is not None else ())])


def _plan(plan: Plan) -> Iterator[str]:
    ask, costs, node = plan.ask, plan.costs, plan.node
    height, width = ask.size_hw
    yield (
        f"{ask.streams} cameras, {width}x{height} at {ask.fps:g} frames a second:"
        f" {ask.frames_a_second:.0f} frames a second"
    )
    yield f"costs: {costs.engine} on {costs.machine}, measured with {costs.cores} cores"
    gpus = f", {node.gpus} GPUs" if node.gpus else ""
    yield f"a node: {node.cores} cores{gpus}, {node.nic_gbps:g} Gbit/s, {node.disk_mb_s:g} MB/s"
    yield ""
    yield f"{'':{_WIDTH}}{'needed':>10}{'a node':>10}{'used':>8}"
    for resource in plan.resources:
        if resource.needed:
            binds = "  binds" if resource is plan.binds else ""
            yield (
                f"{resource.name:{_WIDTH}}{resource.needed:10.1f}{resource.a_node:10.1f}"
                f"{100 * plan.used(resource):7.0f}%{binds}"
            )
    yield ""
    spare = f", {ask.spare} of them may fail" if ask.spare else ""
    engines = plan.engines
    kind = f"{engines.cores:.0f} cores" if engines.cores else "a GPU"
    yield (
        f"{plan.nodes} nodes{spare}: {ask.streams / plan.nodes:.1f} cameras each, of"
        f" {plan.cameras_a_node} that fit at {100 * ask.load:.0f} % load, by {engines.count} engines of"
        f" {kind}"
    )


def _check(plan: Plan, found: Check) -> Iterator[str]:
    yield ""
    yield f"simulated, {found.seconds:g} s:"
    yield _line("all nodes", found.steady)
    if found.moved:
        yield _line(f"{plan.ask.spare} dead", found.after)
        yield (
            f"  {found.moved} cameras change node: {found.lost_frames} frames are lost if that takes"
            f" {plan.ask.takeover_seconds:g} s"
        )
    yield f"the plan {'holds' if found.holds else 'DOES NOT HOLD'}"


def _line(name: str, served: Served) -> str:
    return (
        f"  {name}: {served.frames} frames, {100 * served.dropped:.2f} % dropped, latency"
        f" {served.latency_ms(0.5):.0f} ms, 99 of 100 within {served.latency_ms(0.99):.0f} ms"
    )


def as_json(plan: Plan, found: Check | None) -> dict[str, Any]:
    """The same for a script."""
    told: dict[str, Any] = {
        "ask": asdict(plan.ask),
        "node": asdict(plan.node),
        "costs": asdict(plan.costs),
        "resources": [
            {**asdict(resource), "used": round(plan.used(resource), 4)}
            for resource in plan.resources
        ],
        "binds": plan.binds.name,
        "nodes": plan.nodes,
        "working": plan.working,
        "engines": asdict(plan.engines),
    }
    if found is not None:
        told["simulated"] = {
            "seconds": found.seconds,
            "steady": _figures(found.steady),
            "after_failures": _figures(found.after),
            "moved": found.moved,
            "lost_frames": found.lost_frames,
            "holds": found.holds,
        }
    return told


def _figures(served: Served) -> dict[str, float]:
    return {
        "frames": served.frames,
        "dropped": round(served.dropped, 6),
        "latency_ms": round(served.latency_ms(0.5), 2),
        "latency_p99_ms": round(served.latency_ms(0.99), 2),
    }
