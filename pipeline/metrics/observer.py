"""Who looks on while a run goes: its metrics, its traces and its status."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from pipeline.metrics.measure import RunMeter
from pipeline.metrics.meters import PrometheusMeters
from pipeline.metrics.server import MetricsServer, parse_place
from pipeline.metrics.status import StatusKeeper
from pipeline.metrics.trace import Tracer
from pipeline.stages import RunEvent


class Observer:
    """A context manager that is told every event of a run, and how it ended.

    Args:
        count: how many sources the run has, None while nobody knows.
        out: folder for the status; None for none.
        metrics: "[HOST:]PORT" to serve metrics and status at.
        trace: file or URL for spans.
        say: is told where the metrics are.

    Raises ConfigError or OutputError for what cannot be had.
    """

    def __init__(
        self,
        count: Callable[[], int | None],
        out: Path | None,
        metrics: str | None = None,
        trace: str | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._stack = ExitStack()
        self._listeners: list[Callable[[RunEvent], None]] = []
        self._count = count
        self._keeper = StatusKeeper(out)
        self._meter: RunMeter | None = None
        with ExitStack() as begun:  # what has begun ends again if the next cannot begin
            if trace is not None:
                tracer = Tracer(trace)
                begun.callback(tracer.close)
                self._listeners.append(tracer.update)
            if metrics is not None:
                host, port = parse_place(metrics)
                meters = PrometheusMeters()
                server = MetricsServer(host, port, meters.text, self._keeper.as_json)
                begun.callback(server.close)
                self._meter = RunMeter(meters)
                self._listeners.append(self._meter.update)
                self._keeper.metrics_url = server.url
                say(f"metrics: {server.url}/metrics")
            self._listeners.append(self._keeper.update)
            self._stack = begun.pop_all()

    def update(self, event: RunEvent) -> None:
        """Something happened."""
        if self._keeper.sources is None:
            self._count_sources()
        for tell in self._listeners:
            tell(event)

    def _count_sources(self) -> None:
        sources = self._keeper.sources = self._count()
        if sources is not None and self._meter is not None:
            self._meter.begin(sources)

    def ended(self, interrupted: bool) -> None:
        """The run has come to its end, or was stopped."""
        failed = self._keeper.status().failed
        self._keeper.end("interrupted" if interrupted else "failed" if failed else "done")

    def __enter__(self) -> Self:
        self._count_sources()
        self._keeper.write()
        return self

    def __exit__(self, *_: object) -> None:
        if self._keeper.state == "running":
            self._keeper.end("interrupted")
        self._stack.close()
