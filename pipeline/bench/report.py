"""A benchmark's result for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

WIDTH = 40


def table(result: dict[str, Any]) -> str:
    """What `compare` returned, as lines of text."""
    device = result.get("decoded_on", "cores")
    decoded = "" if device == "cores" else f" decoded on {device},"
    lines = [f"{result['source']},{decoded} {result['engine']}, {result['cores']} cores,"
             f" medians of {result['rounds']} rounds"]  # fmt: skip
    if "fps" in result:
        lines += _plain(result)
    for name, swept in result.get("sweeps", {}).items():
        lines += _sweep(name, swept)
    return "\n".join(lines)


def _plain(result: dict[str, Any]) -> Iterator[str]:
    costs = result.get("cpu_ms_a_frame", {})
    yield ""
    yield f"{'':{WIDTH}}{'fps':>8}{'x plain':>10}{'CPU ms':>10}"
    for name, fps in result["fps"].items():
        times, cpu = result["times_the_plain_loop"][name], _number(costs.get(name))
        yield f"{name:{WIDTH}}{fps:8.1f}{times:10.2f}{cpu:>10}"
    yield ""
    yield f"{'stage, one after the other':{WIDTH}}{'ms':>8}{'share':>10}"
    for stage, cost in result["stage_ms_a_frame"].items():
        yield f"{stage:{WIDTH}}{cost['ms']:8.2f}{100 * cost['share']:9.1f}%"


def _sweep(name: str, swept: dict[str, Any]) -> Iterator[str]:
    yield ""
    yield f"{name:{WIDTH}}{'fps':>8}{'times':>10}{'CPU ms':>10}"
    first = None
    for row in swept["rows"]:
        if row["against"] != first:
            first = row["against"]
            yield f"  (times {first})"
        share = f"{100 * row['of_bound']:6.1f}% of the bound" if "of_bound" in row else ""
        equal = swept.get("labels_equal", {}).get(row["name"])
        share += f"{100 * equal:9.3f}% labels equal" if equal is not None else ""
        cpu = _number(row["cpu_ms"])
        yield f"{row['name']:{WIDTH}}{row['fps']:8.1f}{row['times']:10.2f}{cpu:>10}{share}"
    if "alone" in swept:
        yield from _alone(swept)


def _alone(swept: dict[str, Any]) -> Iterator[str]:
    yield f"{'stage, with nothing beside it':{WIDTH}}{'ms':>8}{'':>10}{'CPU ms':>10}"
    for stage, cost in swept["alone"].items():
        yield f"{stage:{WIDTH}}{cost['ms']:8.2f}{'':>10}{cost['cpu_ms']:10.2f}"
    yield f"{'bound by the stages’ CPU time':{WIDTH}}{swept['bound_fps']:8.1f}"
    for name, share in (swept["rays_share_of_cpu"] or {}).items():
        yield f"Ray's share of the CPU time, {name}: {100 * share:.1f}%"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
