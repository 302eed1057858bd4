"""The figures of a run over files, from its events."""

from __future__ import annotations

from pipeline.metrics.meters import Meters
from pipeline.stages import Progress, RunEvent, SourceReport
from pipeline.work import Step, Work

MOST_NAMED = 200
OTHERS = "(others)"
OUTCOMES = ("done", "failed", "interrupted")


class StreamNames:
    """The value of the label `stream`: a name for each of the first streams, one name for all after.

    A series lives in Prometheus' memory for hours: a hundred thousand clips must not make one each.
    """

    def __init__(self, most: int = MOST_NAMED) -> None:
        self._most, self._named = most, set[str]()

    def __call__(self, stream_id: str) -> str:
        if stream_id in self._named or len(self._named) < self._most:
            self._named.add(stream_id)
            return stream_id
        return OTHERS


class RunMeter:
    """Puts what the events of a run tell into meters.

    Args:
        meters: where it goes.
    """

    def __init__(self, meters: Meters) -> None:
        self._meters = meters
        self._sources: int | None = None
        self._ended = 0
        self._names = StreamNames()

    def begin(self, sources: int) -> None:
        """So many sources there are."""
        self._sources = sources
        for outcome in OUTCOMES:  # Prometheus counts from the value that it sees first
            self._meters.add("sources", 0, outcome=outcome)
        self._tell_left()

    def update(self, event: RunEvent) -> None:
        if isinstance(event, SourceReport):
            self._source_ended(event)
        elif isinstance(event, Progress) and event.work is not None:
            self.done(event.work)

    def done(self, work: Work) -> None:
        """A batch has been written."""
        meters, stream = self._meters, self._names(work.stream_id)
        for stage, stretch in work.stages().items():
            shared_by = work.step.streams if work.step and stage == "network" else 1
            a_frame = stretch.seconds / (work.frames * shared_by)
            meters.observe("stage_seconds", a_frame, work.frames, stage=stage)
        for stage in ("decode", "network", "write"):
            meters.add("frames", work.frames, stream=stream, stage=stage)
        for seconds in work.latency_seconds:
            meters.observe("latency_seconds", max(0.0, seconds), stream=stream)
        meters.add("state_resets", work.resets, stream=stream)
        if work.step is not None:
            self._stepped(work.step)

    def _stepped(self, step: Step) -> None:
        tell_of_step(self._meters, step.run.seconds, step.streams if step.leads else 0)
        self._meters.set("queue_depth", step.waiting, stage="network")
        tell_of_memory(self._meters, step.device_bytes)

    def _source_ended(self, report: SourceReport) -> None:
        outcome = "failed" if report.error else "interrupted" if report.interrupted else "done"
        self._meters.add("sources", outcome=outcome)
        self._ended += 1
        self._tell_left()

    def _tell_left(self) -> None:
        if self._sources is not None:
            self._meters.set("sources_left", max(0, self._sources - self._ended))


def tell_of_step(meters: Meters, seconds: float, streams: int) -> None:
    """A step of the engine; 0 streams for one that another of its streams tells of."""
    if streams:
        meters.observe("engine_step_seconds", seconds)
        meters.observe("engine_step_streams", streams)


def tell_of_memory(meters: Meters, device_bytes: tuple[int, int] | None) -> None:
    """Used and total memory of the engine's device, if it has any of its own."""
    for kind, value in zip(("used", "total"), device_bytes or (), strict=False):
        meters.set("device_memory_bytes", value, kind=kind)
