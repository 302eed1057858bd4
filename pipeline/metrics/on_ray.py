"""The same figures by Ray's own export, for clusters whose nodes Prometheus scrapes through Ray.

Ray puts `ray_` before each name and adds labels for the node and the process; `deploy/prometheus` takes the
prefix off again.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from threading import Lock
from typing import Any, TypeVar

from ray.util import metrics

from pipeline.metrics.catalog import CATALOG, Instrument
from pipeline.metrics.measure import RunMeter
from pipeline.stages import Progress

Event = TypeVar("Event")
_TELLING = Lock()  # sources side by side in a process share its meter


class RayMeters:
    """Meters of this process, exported by its node; only where Ray knows of the process."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}
        self._lock = Lock()

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        if amount > 0:  # Ray refuses 0
            self._metric(name).inc(amount, labels)

    def set(self, name: str, value: float, **labels: str) -> None:
        self._metric(name).set(value, labels)

    def observe(self, name: str, value: float, times: int = 1, **labels: str) -> None:
        for _ in range(times):
            self._metric(name).observe(value, labels)

    def _metric(self, name: str) -> Any:
        with self._lock:
            if name not in self._made:
                self._made[name] = _make(CATALOG[name])
        return self._made[name]


def _make(instrument: Instrument) -> Any:
    what, labels = f"{instrument.what}.", instrument.labels
    if instrument.kind == "counter":
        return metrics.Counter(f"{instrument.full_name}_total", what, labels)
    if instrument.kind == "gauge":
        return metrics.Gauge(instrument.full_name, what, labels)
    return metrics.Histogram(instrument.full_name, what, list(instrument.buckets), labels)


@cache
def _meter() -> RunMeter:
    """The one of this process: it bounds how many streams have a name."""
    return RunMeter(RayMeters())


def told(events: Iterator[Event], wanted: bool = True) -> Iterator[Event]:
    """The events of a source, each one told to Ray's metrics as it passes, if that is wanted."""
    for event in events:
        if wanted and isinstance(event, Progress):
            with _TELLING:
                _meter().update(event)
        yield event
