"""Writes the dashboard that Grafana is provisioned with.

    python deploy/grafana/dashboard.py > deploy/grafana/dashboards/roadmask.json

needs the extra `deploy`: Grafana's own builders know every field of its schema.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableRefresh

SOURCE = DataSourceRef(type_val="prometheus", uid="prometheus")
PICKED = 'job=~"$job", instance=~"$instance"'
STREAMS = PICKED + ', stream=~"$stream"'

Made = TypeVar("Made", timeseries.Panel, stat.Panel)
Query = tuple[str, str]
"""An expression, and what its lines are called."""


def panel(
    title: str, unit: str, *queries: Query, width: int = 8, what: str = ""
) -> timeseries.Panel:
    """Lines over time."""
    legend = (
        common.VizLegendOptions()
        .display_mode(LegendDisplayMode.LIST)
        .placement(LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    made = (
        timeseries.Panel().title(title).description(what).unit(unit).min(0).datasource(SOURCE)
        .fill_opacity(8).legend(legend).height(8).span(width)
    )  # fmt: skip
    return with_queries(made, queries)


def number(title: str, unit: str, query: Query, width: int = 4) -> stat.Panel:
    """One figure."""
    made = stat.Panel().title(title).unit(unit).datasource(SOURCE).height(4).span(width)
    return with_queries(made, [query])


def with_queries(made: Made, queries: Sequence[Query]) -> Made:
    for place, (expression, legend) in enumerate(queries):
        query = prometheus.Dataquery().expr(expression).legend_format(legend)
        made = made.with_target(query.ref_id(chr(ord("A") + place)).datasource(SOURCE))
    return made


def quantile(share: float, metric: str, picked: str, by: str = "") -> str:
    of = f"sum by (le{by}) (rate({metric}_bucket{{{picked}}}[$__rate_interval]))"
    return f"histogram_quantile({share}, {of})"


def rate(metric: str, picked: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}{{{picked}}}[$__rate_interval]))"


def variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name).label(label).query(query).datasource(SOURCE)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).include_all(True).all_value(".*").multi(True)
    )  # fmt: skip


def overview() -> list[stat.Panel]:
    live = f'roadmask_stream_state{{{STREAMS}, state="live"}}'
    dropped = f"sum(rate(roadmask_frames_dropped_total{{{STREAMS}}}[$__rate_interval]))"
    labelled = f'sum(rate(roadmask_frames_total{{{STREAMS}, stage="network"}}[$__rate_interval]))'
    steps = f"avg(rate(roadmask_engine_step_seconds_sum{{{PICKED}}}[$__rate_interval]))"
    return [
        number("Frames a second", "none", (labelled, "")),
        number("Cameras live", "none", (f"sum({live})", "")),
        number("Frames dropped", "percentunit",
               (f"({dropped} or vector(0)) / ({labelled} + ({dropped} or vector(0)))", "")),
        number("95 of 100 within", "s", (quantile(0.95, "roadmask_latency_seconds", STREAMS), "")),
        number("Engine at work", "percentunit", (steps, "")),
        number("Sources left", "none", (f"sum(roadmask_sources_left{{{PICKED}}})", "")),
    ]  # fmt: skip


def streams() -> list[timeseries.Panel]:
    return [
        panel("Frames a second", "none",
              (rate("roadmask_frames_total", STREAMS + ', stage="network"', "stream"), "{{stream}}")),
        panel("Latency", "s",
              (quantile(0.5, "roadmask_latency_seconds", STREAMS), "half"),
              (quantile(0.95, "roadmask_latency_seconds", STREAMS), "95 of 100"),
              (quantile(0.99, "roadmask_latency_seconds", STREAMS), "99 of 100"),
              what="From a frame's arrival, or decoding in a run over files, to its labels."),
        panel("Frames dropped a second", "none",
              (rate("roadmask_frames_dropped_total", STREAMS, "stream, reason"),
               "{{stream}}: {{reason}}")),
        panel("Cameras by state", "none",
              (f"sum by (state) (roadmask_stream_state{{{STREAMS}}})", "{{state}}")),
        panel("Opened again, in 5 minutes", "none",
              (f"increase(roadmask_reconnects_total{{{STREAMS}}}[5m])", "{{stream}}")),
        panel("Memory began anew, in 5 minutes", "none",
              (f"increase(roadmask_state_resets_total{{{STREAMS}}}[5m])", "{{stream}}")),
    ]  # fmt: skip


def stages() -> list[timeseries.Panel]:
    of = "roadmask_stage_seconds"
    mean = f"{rate(of + '_sum', PICKED, 'stage')} / {rate(of + '_count', PICKED, 'stage')}"
    steps = "roadmask_engine_step_seconds"
    together = (
        f"{rate('roadmask_engine_step_streams_sum', PICKED, 'instance')}"
        f" / {rate('roadmask_engine_step_streams_count', PICKED, 'instance')}"
    )
    return [
        panel("Time of a stage for a frame, mean", "s", (mean, "{{stage}}")),
        panel("The same, 95 of 100", "s", (quantile(0.95, of, PICKED, ", stage"), "{{stage}}")),
        panel("Seconds of a stage each second", "none", (rate(of + "_sum", PICKED, "stage"), "{{stage}}"),
              what="How many of its kind are kept busy."),
        panel("A step of the engine", "s",
              (quantile(0.5, steps, PICKED), "half"), (quantile(0.99, steps, PICKED), "99 of 100")),
        panel("Streams a step", "none", (together, "{{instance}}")),
        panel("Waiting for the engine", "none",
              (f"sum by (instance) (roadmask_queue_depth{{{PICKED}}})", "{{instance}}")),
    ]  # fmt: skip


def machines() -> list[timeseries.Panel]:
    written = rate("roadmask_frames_total", PICKED + ', stage="write"', "instance")
    return [
        panel("Sources ended", "none",
              (f"sum by (outcome) (roadmask_sources_total{{{PICKED}}})", "{{outcome}}")),
        panel("Frames written a second", "none", (written, "{{instance}}")),
        panel("Memory of the device", "bytes",
              (f"roadmask_device_memory_bytes{{{PICKED}}}", "{{instance}}: {{kind}}")),
        panel("Cores at work, by Ray", "percent",
              ("ray_node_cpu_utilization", "{{instance}}"), width=12),
        panel("Viewers", "none", (f"sum(roadmask_viewers{{{PICKED}}})", "connected"),
              (f"sum(roadmask_view_encoded_streams{{{PICKED}}})", "streams encoded"), width=12),
    ]  # fmt: skip


def make() -> str:
    """The dashboard as JSON."""
    made = (
        dashboard.Dashboard("Roadmask").uid("roadmask").tags(["roadmask"]).readonly()
        .refresh("10s").time("now-30m", "now").timezone("browser")
        .with_variable(variable("job", "Job", "label_values(roadmask_frames_total, job)"))
        .with_variable(
            variable("instance", "Instance", 'label_values(roadmask_frames_total{job=~"$job"}, instance)')
        )
        .with_variable(
            variable("stream", "Stream", f"label_values(roadmask_frames_total{{{PICKED}}}, stream)")
        )
    )  # fmt: skip
    rows = {
        "Now": overview(),
        "Streams": streams(),
        "Stages": stages(),
        "Run and machines": machines(),
    }
    for title, panels in rows.items():
        made = made.with_row(dashboard.Row(title))
        for one in panels:
            made = made.with_panel(one)
    return JSONEncoder(sort_keys=True, indent=1).encode(made.build()) + "\n"


if __name__ == "__main__":
    print(make(), end="")
