"""`/metrics`: the cameras and the viewers as Prometheus reads them; the catalogue has the names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from pipeline.live.hub import CAMERA_STATES, CameraStatus
from pipeline.metrics.catalog import CATALOG
from pipeline.metrics.meters import PrometheusMeters

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
    cameras: Sequence[CameraStatus],
    classes: Sequence[str],
    viewers: ViewerCounts,
    meters: PrometheusMeters | None = None,
) -> bytes:
    """All metrics in Prometheus' text format, a camera being a `stream`; those of `meters` too."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Found([*_camera_metrics(cameras, classes), *_viewer_metrics(viewers)]))
    return generate_latest(registry) + (meters.text() if meters is not None else b"")


class _Found:
    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _camera_metrics(cameras: Sequence[CameraStatus], classes: Sequence[str]) -> Iterator[Metric]:
    frames, dropped = _family("frames"), _family("frames_dropped")
    reconnects, resets = _family("reconnects"), _family("state_resets")
    state, changes = _family("stream_state"), _family("stream_state_changes")
    fps, latency = _family("stream_fps"), _family("stream_latency_seconds")
    share = _family("class_share")
    for camera in cameras:
        frames.add_metric([camera.name, "network"], camera.frames)
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
    yield _family("viewers", viewers.connected)
    yield _family("view_encoded_streams", viewers.encoded_cameras)
    yield _family("view_frames_sent", viewers.frames_sent)
    yield _family("view_frames_skipped", viewers.frames_skipped)
    left = _family("viewers_left")
    for reason in ("closed", "stalled"):
        left.add_metric([reason], viewers.left.get(reason, 0))
    yield left


def _family(name: str, value: float | None = None) -> CounterMetricFamily | GaugeMetricFamily:
    """A metric of the catalogue: with its value, or to be given one for each of its labels' values."""
    found = CATALOG[name]
    kind = CounterMetricFamily if found.kind == "counter" else GaugeMetricFamily
    return kind(found.full_name, f"{found.what}.", value, found.labels or None)
