"""`/metrics`: the cameras and the viewers as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from pipeline.live.hub import CAMERA_STATES, CameraStatus

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class ViewerCounts:
    """The viewers, for the metrics.

    Attributes:
        connected: viewers now.
        encoded_cameras: cameras being encoded for them.
        frames_sent, frames_skipped: to, and for want of speed of, all viewers so far.
        left: viewers that have left, by why.
    """

    connected: int = 0
    encoded_cameras: int = 0
    frames_sent: int = 0
    frames_skipped: int = 0
    left: dict[str, int] = field(default_factory=dict)


def metrics_text(
    cameras: Sequence[CameraStatus], classes: Sequence[str], viewers: ViewerCounts
) -> bytes:
    """All metrics in Prometheus' text format, named `roadmask_...`, a camera being a `stream`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Found([*_camera_metrics(cameras, classes), *_viewer_metrics(viewers)]))
    return generate_latest(registry)


class _Found:
    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _camera_metrics(cameras: Sequence[CameraStatus], classes: Sequence[str]) -> Iterator[Metric]:
    frames = _counter("frames", "Frames labelled", "stream")
    dropped = _counter("frames_dropped", "Frames not labelled, by reason", "stream", "reason")
    reconnects = _counter("reconnects", "Times a stream was opened again", "stream")
    resets = _counter("state_resets", "Times a stream's memory was reset", "stream")
    state = _gauge("stream_state", "1 for the state that a stream is in", "stream", "state")
    fps = _gauge("stream_fps", "Labelled frames a second, last seconds", "stream")
    latency = _gauge(
        "latency_seconds", "Capture to labels, over the last seconds", "stream", "quantile"
    )
    changes = _counter("stream_state_changes", "Times it came into a state", "stream", "state")
    share = _gauge("class_share", "Share of a class in the newest frame", "stream", "class")
    for camera in cameras:
        frames.add_metric([camera.name], camera.frames)
        reconnects.add_metric([camera.name], camera.reconnects)
        resets.add_metric([camera.name], camera.resets)
        fps.add_metric([camera.name], camera.fps)
        for reason, count in camera.dropped.items():
            dropped.add_metric([camera.name, reason], count)
        for name in CAMERA_STATES:
            state.add_metric([camera.name, name], float(camera.state == name))
        for name, count in camera.changes.items():
            changes.add_metric([camera.name, name], count)
        for quantile, value in (("0.5", camera.latency_ms), ("0.95", camera.latency_p95_ms)):
            if value is not None:
                latency.add_metric([camera.name, quantile], value / 1000)
        for name, value in zip(classes, () if camera.shares is None else camera.shares):  # noqa: B905
            share.add_metric([camera.name, name], float(value))
    yield from (frames, dropped, reconnects, resets, state, changes, fps, latency, share)


def _viewer_metrics(viewers: ViewerCounts) -> Iterator[Metric]:
    yield _gauge("viewers", "Viewers connected", value=viewers.connected)
    yield _gauge("view_encoded_streams", "Streams encoded for them", value=viewers.encoded_cameras)
    yield _counter("view_frames_sent", "Frames sent to viewers", value=viewers.frames_sent)
    yield _counter(
        "view_frames_skipped", "Frames that viewers were too slow for", value=viewers.frames_skipped
    )
    left = _counter("viewers_left", "Viewers that left, by why", "reason")
    for reason in ("closed", "stalled"):
        left.add_metric([reason], viewers.left.get(reason, 0))
    yield left


def _counter(name: str, what: str, *labels: str, value: float | None = None) -> CounterMetricFamily:
    return CounterMetricFamily(f"roadmask_{name}", f"{what}.", value, labels or None)


def _gauge(name: str, what: str, *labels: str, value: float | None = None) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"roadmask_{name}", f"{what}.", value, labels or None)
