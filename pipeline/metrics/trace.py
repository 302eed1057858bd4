"""Traces: a span for each batch of frames, with one for each stage below it, by OpenTelemetry.

`--trace FILE` writes a line of JSON a span; `--trace http://HOST:4318` sends them to a collector by OTLP.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, OutputError
from pipeline.stages import Progress, RunEvent, SourceReport
from pipeline.work import Stretch, Work

_FLUSH_MS = 5000


class Tracer:
    """Makes spans of a run's events, until `close()`.

    Args:
        target: a file, or the http(s) URL of an OTLP collector.

    Raises ConfigError if the packages of the extra "trace" are missing, OutputError if the file cannot
    be written.
    """

    def __init__(self, target: str) -> None:
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            self._file: Any = None
            exporter = self._exporter(target)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"traces need the package {error.name}: pip install 'roadmask[trace]'"
            ) from error
        self._provider = TracerProvider(resource=Resource.create({"service.name": "roadmask"}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("roadmask")

    def _exporter(self, target: str) -> Any:
        if target.startswith(("http://", "https://")):
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            place = target.rstrip("/")
            path = "" if place.partition("://")[2].find("/") >= 0 else "/v1/traces"
            return OTLPSpanExporter(endpoint=place + path)
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        try:
            self._file = Path(target).open("w", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise OutputError(f"--trace {target}: {error.strerror or error}") from error
        return ConsoleSpanExporter(
            out=self._file, formatter=lambda s: s.to_json(indent=None) + "\n"
        )

    def update(self, event: RunEvent) -> None:
        if isinstance(event, Progress) and event.work is not None:
            self._batch(event.work)
        elif isinstance(event, SourceReport):
            now = time.time()
            self._span("source", Stretch(now, 0.0), None, stream=event.stream_id,
                       frames=event.frames, error=event.error or "")  # fmt: skip

    def close(self) -> None:
        """Send what is left."""
        self._provider.force_flush(_FLUSH_MS)
        self._provider.shutdown()
        if self._file is not None:
            self._file.close()

    def _batch(self, work: Work) -> None:
        known = work.stages()
        began_at = min(stretch.began_at for stretch in known.values())
        whole = Stretch(began_at, work.write.began_at + work.write.seconds - began_at)
        batch = self._span(
            "batch", whole, None, stream=work.stream_id, frame=work.frame_index, frames=work.frames
        )
        for name, stretch in known.items():
            more = {"streams": work.step.streams} if work.step and name == "network" else {}
            self._span(name, stretch, batch, stream=work.stream_id, frame=work.frame_index, **more)

    def _span(self, name: str, stretch: Stretch, parent: Any, **attributes: str | int) -> Any:
        from opentelemetry.trace import set_span_in_context

        span = self._tracer.start_span(
            name,
            context=set_span_in_context(parent) if parent is not None else None,
            attributes=attributes,
            start_time=round(stretch.began_at * 1e9),
        )
        span.end(round((stretch.began_at + stretch.seconds) * 1e9))
        return span
