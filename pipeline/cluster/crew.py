"""Who works on what: every lane that is free gets the next source, and one that fails gets it back.

The driver hands out one source at a time, so a long one never holds those behind it, and what is in flight is
bounded by the lanes. It sleeps until something happens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import ray
from ray.exceptions import RayError

from pipeline.cluster.errands import Cut
from pipeline.cluster.feed import Feed, Fixed, Work
from pipeline.cluster.lanes import Lane, Site
from pipeline.errors import StageError
from pipeline.sources import Source
from pipeline.stages import Job, Progress, RunEvent, SourceReport

_MOST_OPENINGS = 3  # of a lane whose processes do not come up on a node that lives
# For another node, once the last one that sees the sources left has died; longer than any pause.
NODE_PATIENCE_SECONDS = 180.0


class Crew:
    """Lanes at work.

    Args:
        feed: what they work on.
        stop: asked a few times a second; True finishes what is decoded, starts nothing more and ends.
        tell: is told what the user should know, a line each.
        newcomers: gives sites that have come to the cluster since it was asked last.
    """

    def __init__(
        self,
        feed: Feed,
        stop: Callable[[], bool],
        tell: Callable[[str], None] = lambda line: None,
        newcomers: Callable[[], list[Site]] = list,
    ) -> None:
        self._feed, self._stop, self._tell, self._newcomers = feed, stop, tell, newcomers
        self._sites: list[Site] = []
        self._opening: list[Lane] = []
        self._idle: list[Lane] = []
        self._pausing: list[Lane] = []
        self._working: dict[Any, Lane] = {}
        self._stopped = False
        self._stack = ExitStack()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def add(self, sites: Sequence[Site]) -> None:
        """Take new sites in."""
        for site in sites:
            self._stack.callback(site.close)
        self._sites += sites
        if sites:
            self._widen()

    def _widen(self) -> None:
        """Open lanes, at one site after the other, as many as there are sources for."""
        wanted = self._feed.pending() - len(self._opening) - len(self._idle)
        while wanted > 0 and (roomy := [site for site in self._sites if site.room]):
            for site in roomy[:wanted]:
                lane = site.open_lane()
                self._stack.callback(lane.close)
                self._opening.append(lane)
            wanted -= len(roomy)

    def events(self) -> Generator[RunEvent, None, None]:
        """Work until there is nothing left to do.

        Raises StageError if there is nobody left to do it.
        """
        alone_since: float | None = None
        while self._busy or self._feed.pending():
            if not self._stopped and self._stop():
                yield from self._stop_all()
            self.add(self._newcomers())
            yield from self._open()
            yield from self._go_on()
            self._give_out()
            for generator in self._ready():
                yield from self._take(generator)
            if self._busy or self._opening or self._stopped:
                alone_since = None
                continue
            alone_since = alone_since or time.monotonic()
            if time.monotonic() - alone_since > NODE_PATIENCE_SECONDS:
                raise StageError(
                    f"no node is left that could work on the {self._feed.pending()} sources left:"
                    " start some, and --resume goes on"
                )

    @property
    def _busy(self) -> bool:
        """Whether a lane has something to work on."""
        return bool(self._working or self._pausing or any(lane.work for lane in self._opening))

    def _stop_all(self) -> Iterator[RunEvent]:
        self._stopped = True
        self._feed.stop()
        for lane in self._working.values():
            lane.stop()
        for lane in (*self._pausing, *self._opening):
            if lane.work is not None:
                yield self._given_up(lane)
        self._pausing.clear()
        self._opening.clear()

    def _given_up(self, lane: Lane) -> SourceReport:
        """The report of a source that waits after a death while the user stops the run."""
        assert lane.work is not None
        lane.close()
        report = lane.died(StageError("it was stopped"))
        text = f"{lane.work.source.uri}: a process died, and then the run was stopped"
        return lane.work.restarts.give_up(SourceReport(report.stream_id, report.source, error=text))

    def _open(self) -> Iterator[RunEvent]:
        for lane in list(self._opening):
            try:
                if not lane.opened():
                    continue
            except RayError as error:
                self._opening.remove(lane)
                yield from self._not_opened(lane, error)
                continue
            self._opening.remove(lane)
            lane.failed_openings = 0
            if lane.work is None:
                self._idle.append(lane)
            else:
                self._pausing.append(lane)

    def _not_opened(self, lane: Lane, error: RayError) -> Iterator[RunEvent]:
        lane.failed_openings += 1
        if lane.site.lives and lane.failed_openings < _MOST_OPENINGS:
            lane.remake()
            self._opening.append(lane)
            return
        self._tell(f"{lane.site.name}: its processes do not start: {str(error).splitlines()[0]}")
        yield from self._leave(lane)

    def _go_on(self) -> Iterator[RunEvent]:
        """Start sources again whose pause is over."""
        now = time.monotonic()
        for lane in [lane for lane in self._pausing if lane.begins_at <= now]:
            self._pausing.remove(lane)
            assert lane.work is not None
            self._start(lane, lane.work)
        yield from ()

    def _give_out(self) -> None:
        """Give the next sources to lanes that are free."""
        for lane in list(self._idle):
            work = self._feed.take(lane.site.unseen)
            if work is not None:
                self._idle.remove(lane)
                self._start(lane, work)

    def _start(self, lane: Lane, work: Work) -> None:
        lane.begins_at = 0.0
        lane.start(work)
        self._working[lane.generator] = lane

    def _ready(self) -> list[Any]:
        """Generators that have events, after a fifth of a second at most."""
        waited = [*self._working, *(ref for lane in self._opening for ref in lane.opening[:1])]
        if not waited:
            time.sleep(0.05)
            return []
        ready = ray.wait(waited, num_returns=1, timeout=0.2)[0]
        if ready and len(self._working) > 1:
            ready = ray.wait(list(self._working), num_returns=len(self._working), timeout=0)[0]
        return [generator for generator in ready if generator in self._working]

    def _take(self, generator: Any) -> Iterator[RunEvent]:
        lane = self._working[generator]
        events = lane.take()
        assert lane.work is not None
        for event in events:
            if isinstance(event, Progress):
                yield event
                continue
            del self._working[generator]
            if isinstance(event, SourceReport) and event.process_died:
                yield from self._after_death(lane, event)
                return
            work, lane.work = lane.work, None
            self._idle.append(lane)
            if isinstance(event, Cut):
                self._feed.cut(work, event)
                self._widen()
            else:
                yield from self._feed.reported(work, event)
            return

    def _after_death(self, lane: Lane, report: SourceReport) -> Iterator[RunEvent]:
        assert lane.work is not None
        if not lane.site.lives:
            yield from self._leave(lane)
            return
        pause = lane.work.restarts.count()
        lane.remake()
        self._opening.append(lane)
        if pause is None:
            again = SourceReport(
                report.stream_id, report.source, error=f"{report.error} again and again",
                details=report.details, process_died=True,
            )  # fmt: skip
            yield from self._feed.reported(lane.work, lane.work.restarts.give_up(again))
            lane.work = None
        elif self._stopped:
            self._opening.remove(lane)
            yield self._given_up(lane)
        else:
            lane.pause(pause)

    def _leave(self, lane: Lane) -> Iterator[RunEvent]:
        """Give up a lane whose node is gone; what it worked on goes to another."""
        lane.close()
        if lane.site in self._sites:
            self._sites.remove(lane.site)
        work, lane.work = lane.work, None
        if work is not None:
            yield from self._feed.lost(work)
        elsewhere = [other for other in self._idle if other.site is lane.site]
        for other in elsewhere:
            self._idle.remove(other)
        self._widen()  # others may have had no lane so far


def run_on_ray(
    job: Job,
    sources: Sequence[Source],
    *,
    fused: bool,
    lanes: int,
    together: int,
    stop: Callable[[], bool],
) -> Iterator[RunEvent]:
    """Run every source by a Ray of our own on this machine, and give its events, its report last.

    Args:
        lanes: sources worked on at once.
        together: how many of them share a process, where they are fused.
        stop: asked a few times a second; True finishes what is decoded, starts nothing more and ends.
    """
    from pipeline.actors import cluster

    site = Site(job, min(lanes, len(sources)), fused, together if fused else 1)
    with cluster(None), Crew(Fixed(job, sources), stop) as crew:
        crew.add([site])
        yield from crew.events()
