"""The actors that serve one source at a time, and the place that a few of them share."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.actors import (
    CONTROL,
    UNREAD_EVENTS,
    DecoderActor,
    FusedActor,
    SegmenterActor,
    SinkActor,
    kill,
    start_actor,
)
from pipeline.cluster.errands import FarEvent
from pipeline.cluster.feed import Work
from pipeline.errors import StageError
from pipeline.stages import Job, SourceReport, failure

LONGEST_START_SECONDS = 120.0  # of a process that has died and is started again


@dataclass(eq=False)
class Site:
    """Lanes that belong together: those of a node, or of one device of it.

    Attributes:
        job: what all sources have in common, with the engine as it is here.
        lanes: sources worked on at once.
        fused: whether an actor has all three stages of a source.
        together: how many sources share a process, where they are fused.
        cpus: cores Ray sets aside for each lane's actor; 0 on a machine of our own, where lanes bound the
            load.
        gpus: of a device, for the actor that has the engine.
        node_id: where the actors must be, None for anywhere.
        name: of the node, for the user.
        unseen: roots of sources that cannot be read here.
    """

    job: Job
    lanes: int
    fused: bool
    together: int = 1
    cpus: float = 0.0
    gpus: float = 0.0
    node_id: str | None = None
    name: str = "this machine"
    unseen: tuple[str, ...] = ()
    _segmenter: Any = None
    _hosts: list[Any] = field(default_factory=list)
    _opened: int = 0

    def open_lane(self) -> Lane:
        """The next lane, its processes starting."""
        host = None
        if not self.fused and self._segmenter is None:
            self._segmenter = self.actor(
                SegmenterActor, self.cpus, threads=self.lanes + 1, gpus=True
            )
        if self.fused and self.together > 1:
            if self._opened % self.together == 0:
                shared = min(self.together, self.lanes - self._opened)
                self._hosts.append(self.actor(
                    FusedActor, self.cpus * shared, CONTROL, threads=self.together, gpus=True
                ))  # fmt: skip
            host = self._hosts[-1]
        self._opened += 1
        return Lane(self, self._segmenter, host)

    def actor(
        self,
        kind: type,
        cpus: float,
        groups: dict[str, int] | None = None,
        threads: int = 1,
        gpus: bool = False,
    ) -> Any:
        """An actor at this place."""
        options: dict[str, Any] = {"num_gpus": self.gpus} if gpus and self.gpus else {}
        if self.node_id is not None:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(
                self.node_id, soft=False
            )
        return start_actor(kind, self.job, cpus, groups, threads, **options)

    @property
    def room(self) -> int:
        """Lanes that have not been opened yet."""
        return self.lanes - self._opened

    @property
    def lives(self) -> bool:
        """Whether its node does, as far as the cluster knows."""
        if self.node_id is None:
            return True
        return any(node["NodeID"] == self.node_id and node["Alive"] for node in ray.nodes())

    def close(self) -> None:
        """End what its lanes shared."""
        kill(self._segmenter, *self._hosts)


class Lane:
    """The actors that serve one source at a time.

    Args:
        site: where it is.
        segmenter: the shared segmenter's actor; None for a fused lane.
        host: the actor a fused lane shares with others, None for one of its own.

    Attributes:
        work: what it works on, None between two.
        begins_at: `time.monotonic()`, while it pauses after a death.
        opening: what is there once its processes are up.
    """

    def __init__(self, site: Site, segmenter: Any = None, host: Any = None) -> None:
        self.site, self.segmenter, self.host = site, segmenter, host
        self.generator: Any = None
        self.work: Work | None = None
        self.begins_at = 0.0
        self.failed_openings = 0
        self._make()

    def _make(self) -> None:
        site = self.site
        if self.segmenter is None:
            self.decoder = self.writer = self.host or site.actor(
                FusedActor, site.cpus, CONTROL, gpus=True
            )
        else:
            self.decoder = site.actor(DecoderActor, site.cpus, CONTROL)
            self.writer = site.actor(SinkActor, site.cpus)
        self._made_at = time.monotonic()
        self._ask()

    def _ask(self) -> None:
        """Ask its processes whether they are up."""
        actors = {
            id(actor): actor for actor in (self.decoder, self.segmenter, self.writer) if actor
        }
        self.opening: list[Any] = [actor.up.remote() for actor in actors.values()]

    def opened(self) -> bool:
        """Whether its processes are up, all of them. Raises RayError if one never will be."""
        if self.opening:
            up, self.opening = ray.wait(self.opening, num_returns=len(self.opening), timeout=0)
            try:
                ray.get(up)
            except ActorUnavailableError:  # it is being started again, which takes its time
                if time.monotonic() - self._made_at > LONGEST_START_SECONDS:
                    raise
                self._ask()
        return not self.opening

    def start(self, work: Work) -> None:
        """Begin a source, or go on with it after a death."""
        self.work = work
        arguments = () if self.segmenter is None else (self.decoder, self.segmenter)
        self.generator = self.writer.run.options(
            num_returns="streaming", _generator_backpressure_num_objects=UNREAD_EVENTS
        ).remote(work.source, work.restarts.resume, work.part, *arguments)

    def take(self) -> tuple[FarEvent, ...]:
        """The next events, once `ray.wait` has said there are some; a source's last is its report."""
        assert self.work is not None
        try:
            events: tuple[FarEvent, ...] = ray.get(next(self.generator))
        except (RayError, StopIteration) as error:  # what the stages raise comes as a report
            return (self.died(error),)
        return events

    def died(self, error: BaseException) -> SourceReport:
        """The report of what it worked on when its process died."""
        assert self.work is not None
        died = StageError(f"{self.work.source.uri}: the process that worked on it died")
        return replace(failure(self.work.source, died), details=str(error))

    def remake(self) -> None:
        """New processes after a death. Any who shared the process may have been its death: each gets its
        own. Of a device's Ray starts the same again first, for there is one device, and where it was set
        aside for that process, ever again."""
        again = self.work is not None and self.work.restarts.deaths > 1
        if not self.site.job.choice.on_gpu or (again and not self.site.gpus):
            self.host = None
        self.close()
        self._make()

    def pause(self, seconds: float) -> None:
        self.begins_at = time.monotonic() + seconds

    def stop(self) -> None:
        self.decoder.stop.options(concurrency_group="control").remote()

    def close(self) -> None:
        if self.host is None:  # others may still work in a shared one
            kill(self.decoder, self.writer)
