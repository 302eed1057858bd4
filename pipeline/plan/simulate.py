"""A discrete-event simulation of a plan: cameras, decoders, engines that take the newest frame of each
camera, and nodes that die.

A node's decoders are one queue, first come first served. Before its engine a camera has one frame waiting: a
newer one takes its place, and the older one is dropped, as `pipeline.live` does; an engine that is free takes
the cameras that have waited longest, up to its batch; a frame that would come too late is dropped. Nodes meet
only where a dead one's cameras are spread over the others, so they are simulated one by one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.errors import ConfigError
from pipeline.plan.sizing import Engines, Plan

JITTER_SECONDS = 0.004  # mean lateness of a frame on its way; exponential
MOST_DROPPED = 0.001  # share of frames with which a plan still holds
_SHORTEST_SECONDS = 0.5


@dataclass
class Served:
    """What became of frames.

    Attributes:
        latencies: seconds from arrival to labels, of those that were labelled.
        overtaken: dropped because a newer one came.
        stale: dropped because they would have been too late.
    """

    latencies: list[float] = field(default_factory=list)
    overtaken: int = 0
    stale: int = 0

    def add(self, other: Served) -> None:
        self.latencies += other.latencies
        self.overtaken += other.overtaken
        self.stale += other.stale

    @property
    def frames(self) -> int:
        return len(self.latencies) + self.overtaken + self.stale

    @property
    def dropped(self) -> float:
        """Share of all frames."""
        return (self.overtaken + self.stale) / self.frames if self.frames else 0.0

    def latency_ms(self, quantile: float) -> float:
        return 1000 * float(np.quantile(self.latencies, quantile)) if self.latencies else math.nan


def decode_queue(arrivals: Sequence[float], servers: int, seconds: float) -> list[float]:
    """When each frame is decoded, first come first served, each taking equally long.

    The k-th frame begins when it is there and the one `servers` before it is done.
    """
    done: list[float] = []
    for place, arrival in enumerate(arrivals):
        begins = max(arrival, done[place - servers]) if place >= servers else arrival
        done.append(begins + seconds)
    return done


def label_queue(
    ready: Sequence[float],
    captured: Sequence[float],
    cameras: Sequence[int],
    *,
    step_seconds: Callable[[int], float],
    largest: int = 1,
    limit_seconds: float = math.inf,
) -> Served:
    """The newest frame of each camera, labelled by one engine, in turn.

    Args:
        ready: when each frame is decoded, increasing, seconds.
        captured: when it arrived, seconds.
        cameras: whose it is.
        step_seconds: of a step of so many cameras.
        largest: cameras a step takes at most.
        limit_seconds: after its arrival, within which a frame must be labelled.
    """
    served, waiting, turn = Served(), dict[int, float](), deque[int]()
    oldest, free_at = limit_seconds - step_seconds(1), -math.inf
    place, count = 0, len(ready)
    while place < count or turn:
        if place < count and (not turn or ready[place] <= free_at):
            now, camera = ready[place], cameras[place]
            if camera in waiting:
                served.overtaken += 1
            else:
                turn.append(camera)
            waiting[camera] = captured[place]
            place += 1
        else:
            now = free_at
        if now < free_at:
            continue
        batch: list[float] = []
        while turn and len(batch) < largest:
            arrived = waiting.pop(turn.popleft())
            if now - arrived > oldest:
                served.stale += 1
            else:
                batch.append(arrived)
        if batch:
            free_at = now + step_seconds(len(batch))
            served.latencies += [free_at - arrived for arrived in batch]
    return served


@dataclass(frozen=True)
class Stay:
    """A camera's time on a node.

    Attributes:
        phase: of its frames, as a share of their period.
        camera: which one.
        since, until: seconds.
    """

    phase: float
    camera: int
    since: float
    until: float


def run_node(
    stays: Sequence[Stay],
    engines: Engines,
    fps: float,
    limit_seconds: float,
    rng: np.random.Generator,
) -> Served:
    """A node with the cameras that were on it, each for its time."""
    stamps, owners = [np.empty(0)], [np.empty(0, np.int64)]
    for stay in stays:
        first = math.ceil(stay.since * fps - stay.phase)
        times = (np.arange(first, math.ceil(stay.until * fps - stay.phase)) + stay.phase) / fps
        stamps.append(times + rng.exponential(JITTER_SECONDS, len(times)))
        owners.append(np.full(len(times), stay.camera))
    arrivals, cameras = np.concatenate(stamps), np.concatenate(owners)
    order = np.argsort(arrivals, kind="stable")
    captured, cameras = arrivals[order], cameras[order]
    ready = np.array(
        decode_queue(captured.tolist(), engines.decode_servers, engines.decode_ms / 1000)
    )
    served = Served()
    for engine in range(engines.count):
        own = np.isin(cameras, [stay.camera for stay in stays[engine :: engines.count]])
        served.add(
            label_queue(
                ready[own].tolist(), captured[own].tolist(), cameras[own].tolist(),
                step_seconds=engines.step_seconds, largest=engines.largest,
                limit_seconds=limit_seconds,
            )
        )  # fmt: skip
    return served


@dataclass(frozen=True)
class Check:
    """What a simulation found.

    Attributes:
        seconds: how long it was.
        steady: all nodes at work.
        after: once as many nodes as there are spare ones have died, on those that are left.
        moved: cameras of the dead nodes.
        lost_frames: of these until others served them.
        limit_ms: of the latency.
    """

    seconds: float
    steady: Served
    after: Served
    moved: int
    lost_frames: int
    limit_ms: float

    @property
    def holds(self) -> bool:
        """Whether hardly a frame is dropped, before and after."""
        return all(
            found.dropped <= MOST_DROPPED and not found.latency_ms(0.99) > self.limit_ms
            for found in (self.steady, self.after)
        )


def place_cameras(streams: int, nodes: int) -> list[list[int]]:
    """Cameras of each node, as many on each as on any other, or one fewer."""
    return [list(range(node, streams, nodes)) for node in range(nodes)]


def check(plan: Plan, seconds: float = 3.0, seed: int = 1) -> Check:
    """Simulate a plan: half of the time with all nodes, then with the spare ones' number of them dead.

    The time until others take over is not simulated: what is lost in it is counted.

    Raises ConfigError for less than half a second.
    """
    if not _SHORTEST_SECONDS <= seconds < math.inf:
        raise ConfigError(f"--simulate must be {_SHORTEST_SECONDS} s at least, got {seconds:g}")
    ask, rng = plan.ask, np.random.default_rng(seed)
    phases = rng.random(ask.streams)
    before = place_cameras(ask.streams, plan.nodes)
    dead = before[: ask.spare]
    homeless = [camera for cameras in dead for camera in cameras]
    left = [list(cameras) for cameras in before[ask.spare :]]
    for camera in homeless:  # to whoever has the fewest, as `pipeline.live` places by load
        min(left, key=len).append(camera)
    half = seconds / 2

    def run(nodes: list[list[int]], since: float) -> Served:
        whole = Served()
        for cameras in nodes:
            stays = [Stay(phases[camera], camera, since, since + half) for camera in cameras]
            limit_seconds = ask.max_latency_ms / 1000
            whole.add(run_node(stays, plan.engines, ask.fps, limit_seconds, rng))
        return whole

    lost = round(len(homeless) * ask.fps * ask.takeover_seconds)
    steady = run(before, 0.0)
    after = run(left, half) if homeless else steady
    return Check(seconds, steady, after, len(homeless), lost, ask.max_latency_ms)
