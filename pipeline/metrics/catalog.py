"""Every metric there is: its name, its labels and what it means.

`roadmask run --metrics`, `roadmask live --view`, Ray's export, the dashboard and the alert rules all take
their names from here. Prometheus adds `_total` to counters; times are seconds, memory is bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "roadmask_"
STAGES = ("decode", "wait", "network", "write")
"""Decoding and scaling; waiting for the engine; the engine; drawing, encoding and writing."""

# A frame's share of a stage: from a GPU's tenth of a millisecond to a heavy encoder's second.
_STAGE_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
# From a frame's arrival to its labels: limits that people set are 50 ms to 1 s.
_LATENCY_SECONDS = (0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 10.0)
_STREAMS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


@dataclass(frozen=True)
class Instrument:
    """One metric.

    Attributes:
        name: without `PREFIX`, and for a counter without `_total`.
        kind: of Prometheus.
        what: one line.
        labels: in order.
        buckets: upper bounds of a histogram, in its unit.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    what: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.buckets) != (self.kind == "histogram"):
            raise ValueError(f"{self.name}: buckets are for histograms, and those need them")

    @property
    def full_name(self) -> str:
        return PREFIX + self.name

    @property
    def series_names(self) -> tuple[str, ...]:
        """As queries name it."""
        if self.kind == "counter":
            return (f"{self.full_name}_total",)
        if self.kind == "histogram":
            return tuple(f"{self.full_name}_{part}" for part in ("bucket", "sum", "count"))
        return (self.full_name,)


def _list(*instruments: Instrument) -> dict[str, Instrument]:
    return {instrument.name: instrument for instrument in instruments}


CATALOG = _list(
    # Streams: cameras, and the sources of a run.
    Instrument(
        "frames", "counter", "Frames that a stage has done: decode, network or write",
        ("stream", "stage"),
    ),
    Instrument(
        "frames_dropped", "counter", "Frames that got no labels, by reason", ("stream", "reason")
    ),
    Instrument("state_resets", "counter", "Times a stream's memory began anew", ("stream",)),
    Instrument(
        "latency_seconds", "histogram", "From a frame's decoding, or arrival if live, to its labels",
        ("stream",), _LATENCY_SECONDS,
    ),
    # Stages.
    Instrument(
        "stage_seconds", "histogram", "Time of a stage for a frame", ("stage",), _STAGE_SECONDS
    ),
    Instrument(
        "engine_step_seconds", "histogram", "Time of a step of the engine, all its streams together",
        (), _STAGE_SECONDS,
    ),
    Instrument("engine_step_streams", "histogram", "Streams in a step", (), _STREAMS),
    Instrument("queue_depth", "gauge", "What waits for a stage: batches, frames if live", ("stage",)),
    Instrument(
        "device_memory_bytes", "gauge", "Memory of the engine's device: used, total", ("kind",)
    ),
    # A run over files.
    Instrument("sources", "counter", "Sources that have ended: done, failed, interrupted", ("outcome",)),
    Instrument("sources_left", "gauge", "Sources that have not ended"),
    # Cameras.
    Instrument("reconnects", "counter", "Times a stream was opened again", ("stream",)),
    Instrument("stream_state", "gauge", "1 for the state that a stream is in", ("stream", "state")),
    Instrument(
        "stream_state_changes", "counter", "Times it came into a state", ("stream", "state")
    ),
    Instrument("stream_fps", "gauge", "Labelled frames a second, last seconds", ("stream",)),
    Instrument(
        "stream_latency_seconds", "gauge", "Arrival to labels, over the last seconds",
        ("stream", "quantile"),
    ),
    Instrument("class_share", "gauge", "Share of a class in the newest frame", ("stream", "class")),
    # The live view.
    Instrument("viewers", "gauge", "Viewers connected"),
    Instrument("viewers_left", "counter", "Viewers that left, by why", ("reason",)),
    Instrument("view_encoded_streams", "gauge", "Streams encoded for them"),
    Instrument("view_frames_sent", "counter", "Frames sent to viewers"),
    Instrument("view_frames_skipped", "counter", "Frames that viewers were too slow for"),
)  # fmt: skip
