"""Where figures go: `Meters` is what the pipeline sees, `PrometheusMeters` keeps them in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import Lock
from typing import Any, Protocol

from pipeline.errors import ConfigError
from pipeline.metrics.catalog import CATALOG, Instrument


class Meters(Protocol):
    """Takes figures by the names of the catalogue; every method may be called from any thread.

    Raises KeyError for a name that the catalogue doesn't have.
    """

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Count something."""

    def set(self, name: str, value: float, **labels: str) -> None:
        """Say how much there is of something now."""

    def observe(self, name: str, value: float, times: int = 1, **labels: str) -> None:
        """One more value, or several equal ones, for a histogram."""


class PrometheusMeters:
    """Meters that Prometheus can read; those that nothing was told to are left out of the text.

    Raises ConfigError if the package of the extra "metrics" is missing.
    """

    def __init__(self) -> None:
        try:
            from prometheus_client import CollectorRegistry, disable_created_metrics
        except ModuleNotFoundError as error:
            raise ConfigError(
                "metrics need the package prometheus-client: pip install 'roadmask[metrics]'"
            ) from error
        disable_created_metrics()  # a series more for each one, which nobody asks for
        self.registry = CollectorRegistry(auto_describe=False)
        self._made: dict[str, Any] = {}
        self._lock = Lock()

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        self._child(name, labels).inc(amount)

    def set(self, name: str, value: float, **labels: str) -> None:
        self._child(name, labels).set(value)

    def observe(self, name: str, value: float, times: int = 1, **labels: str) -> None:
        observe: Callable[[float], None] = self._child(name, labels).observe
        for _ in range(times):
            observe(value)

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)

    def families(self) -> Iterable[Any]:
        """All figures as prometheus_client's `Metric`s."""
        return self.registry.collect()

    def _child(self, name: str, labels: dict[str, str]) -> Any:
        with self._lock:
            if name not in self._made:
                self._made[name] = _make(CATALOG[name], self.registry)
        made = self._made[name]
        return made.labels(**labels) if labels else made


def _make(instrument: Instrument, registry: Any) -> Any:
    import prometheus_client as client

    arguments: dict[str, Any] = {"registry": registry}
    if instrument.buckets:
        arguments["buckets"] = instrument.buckets
    kind = {"counter": client.Counter, "gauge": client.Gauge, "histogram": client.Histogram}
    made: Any = kind[instrument.kind](
        instrument.full_name, f"{instrument.what}.", instrument.labels, **arguments
    )
    return made
