"""What a cluster's nodes become: so many lanes each, beside the devices that they have."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace

from pipeline.cluster.crew import Crew
from pipeline.cluster.feed import Feed
from pipeline.cluster.lanes import Site
from pipeline.cluster.nodes import Node, Question, Scout
from pipeline.cluster.plan import STAY, FarPlan, Hands, Scene, Teller
from pipeline.engines import EngineChoice
from pipeline.errors import ConfigError
from pipeline.stages import Job, RunEvent, frames_can_stay
from pipeline.versions import versions

TOGETHER = 4  # fused sources in a process: they share its libraries, engines and interpreter
DEVICE_LANES = 8  # sources that share a segmenter
_SPREAD_CPUS = 0.5  # a decoder's, a sink's, a segmenter's
_EVENTS_A_SECOND = 200.0  # that a driver takes from all lanes together, without being held up by it


def far_hands(scene: Scene) -> tuple[Job, Callable[[Feed], Iterator[RunEvent]]]:
    """The job for the nodes that can be used, and what works on it there.

    Raises ConfigError if there is no such node.
    """
    plan = scene.plan
    question = Question(
        plan.model, plan.engine, plan.precision, plan.weights_sha256, versions(), scene.token,
        scene.roots,
    )  # fmt: skip
    scout = Scout(question, scene.teller.warn, scene.left_out)
    nodes = scout.all()
    _check_seen(nodes)
    scene.nodes += [node.name for node in nodes]
    builder = Builder(plan, scene.sources)
    sites = builder.sites(nodes)
    _tell(scene.teller, nodes, sites)

    def newcomers() -> list[Site]:
        found = scout.new()
        try:
            new_sites = builder.sites(found)
        except ConfigError:
            new_sites = []  # too few cores: those that work go on without
        taken = {site.node_id for site in new_sites}
        for node in found:
            if node.node_id in taken:
                scene.nodes.append(node.name)
                scene.teller.warn(f"node {node.name} has come: it takes part")
            else:
                line = f"node {node.name} is left out: its {node.cores:g} cores are too few"
                scene.left_out.append(line)
                scene.teller.warn(line)
        return new_sites

    def work(feed: Feed) -> Iterator[RunEvent]:
        with Crew(feed, scene.stop, scene.teller.warn, newcomers) as crew:
            crew.add(sites)
            with closing(crew.events()) as events:
                yield from events

    return sites[0].job, work


def _check_seen(nodes: Sequence[Node]) -> None:
    """Raises ConfigError if there are sources that no node sees."""
    nowhere = set.intersection(*(set(node.answer.unseen) for node in nodes))
    if nowhere:
        raise ConfigError(
            f"no node of the cluster sees {min(nowhere)}: put the sources on a disk that the nodes share,"
            " or in a bucket"
        )


def _tell(teller: Teller, nodes: Sequence[Node], sites: Sequence[Site]) -> None:
    choice = sites[0].job.choice
    teller.say(f"engine {choice.name} ({choice.runtime}): {choice.reason}")
    lanes = sum(site.lanes for site in sites)
    kind = "fused" if sites[0].fused else "spread"
    names = ", ".join(node.name for node in nodes[:8]) + (", ..." if len(nodes) > 8 else "")
    teller.say(f"placement {kind}, {lanes} at once on {len(nodes)} nodes: {names}")


class Builder:
    """Makes sites of nodes.

    Args:
        plan: what the user asked.
        sources: how many there are to work on.
    """

    def __init__(self, plan: FarPlan, sources: int) -> None:
        self._plan, self._sources = plan, sources

    def sites(self, nodes: Sequence[Node]) -> list[Site]:
        """The sites of nodes of one engine. Raises ConfigError if they have too few cores."""
        found: list[Site] = []
        for node in nodes:
            found += self._of(node, len(nodes))
        if nodes and not found:
            cores = sum(node.cores for node in nodes)
            raise ConfigError(f"the Ray cluster has {cores:g} cores: at least 2 are needed")
        lanes = sum(site.lanes for site in found)
        seconds = lanes / _EVENTS_A_SECOND if lanes > 4 else 0.0
        for site in found:
            site.job = replace(site.job, bundle_seconds=seconds)  # type: ignore[call-arg]
        return found

    def _of(self, node: Node, nodes: int) -> list[Site]:
        choice = _choice(node)
        fused = self._plan.placement == "fused" or (
            self._plan.placement == "auto"
            and (self._frames_stay(choice) or not (choice.on_gpu and self._sources > 1))
        )
        if choice.on_gpu and node.gpus:
            return self._devices(node, fused)
        share = math.ceil(self._sources / nodes)
        return self._cores(node, share) if fused else self._spread(node, node.cores, 0.0, 1)

    def _cores(self, node: Node, share: int) -> list[Site]:
        """A source a core: the CPU engine gains nothing by batching streams."""
        choice = _choice(node)
        lanes = max(1, min(int(node.cores), share))
        together = min(lanes, TOGETHER)
        if choice.name == "cpu":
            choice = replace(choice, threads=max(1, int(node.cores) // lanes))
        reason = self._reason("the CPU engine gains nothing by batching streams")
        hands = Hands(choice, "fused", reason, lanes, together,
                            together if choice.name == "cpu" else 1, node.answer.form_sha256)  # fmt: skip
        job = self._plan.make_job(hands)
        return [self._site(node, job, lanes, True, together, cpus=min(1.0, node.cores))]

    def _devices(self, node: Node, fused: bool) -> list[Site]:
        """A segmenter, or several, a GPU, each with decoders and sinks of its own beside it."""
        count = max(1, int(node.gpus)) * self._plan.segmenters
        gpus = 1.0 / self._plan.segmenters if node.gpus >= 1 else node.gpus / self._plan.segmenters
        if not fused:
            return self._spread(node, node.cores / count, gpus, count)
        lanes, reason = 1, self._reason("one stream")
        if self._frames_stay(_choice(node)):
            lanes, reason = max(1, min(DEVICE_LANES, int(node.cores / count))), self._reason(STAY)
        hands = Hands(_choice(node), "fused", reason, lanes, lanes,
                            form_sha256=node.answer.form_sha256)  # fmt: skip
        job = self._plan.make_job(hands)
        return [
            self._site(node, job, lanes, True, lanes, cpus=1.0, gpus=gpus) for _ in range(count)
        ]

    def _frames_stay(self, choice: EngineChoice) -> bool:
        return frames_can_stay(self._plan.hwaccel, choice)

    def _spread(self, node: Node, cores: float, gpus: float, count: int) -> list[Site]:
        lanes = min(DEVICE_LANES, int((cores - _SPREAD_CPUS) // (2 * _SPREAD_CPUS)))
        if lanes < 1:
            return []
        reason = self._reason("one GPU serves several streams in a batch")
        hands = Hands(_choice(node), "spread", reason, lanes,
                            form_sha256=node.answer.form_sha256)  # fmt: skip
        job = self._plan.make_job(hands)
        return [
            self._site(node, job, lanes, False, cpus=_SPREAD_CPUS, gpus=gpus) for _ in range(count)
        ]

    def _reason(self, otherwise: str) -> str:
        return "asked for" if self._plan.placement in ("fused", "spread") else otherwise

    def _site(
        self,
        node: Node,
        job: Job,
        lanes: int,
        fused: bool,
        together: int = 1,
        *,
        cpus: float,
        gpus: float = 0.0,
    ) -> Site:
        return Site(job, lanes, fused, together, cpus, gpus, node.node_id, f"node {node.name}",
                    node.answer.unseen)  # fmt: skip


def _choice(node: Node) -> EngineChoice:
    assert node.answer.choice is not None  # else it would have been left out
    return node.answer.choice
