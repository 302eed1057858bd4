"""The stages as Ray actors, and nothing else: how many there are and who talks to whom is decided here.

Fused: the three stages of a source run as threads of one actor, and full-size frames never leave it.
Spread: decoders and sinks have actors of their own, and one segmenter serves all streams. Either way each
consumer pulls from a streaming generator with a bounded number of unread items: a slow sink slows its
decoder, memory stays bounded, and nothing polls.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from threading import Event
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it writes to the terminal and the network
os.environ.setdefault("RAY_worker_niceness", "0")  # the workers are what the user waits for
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.errors import ConfigError, StageError
from pipeline.frames import FrameBatch, FrameItem, LabelBatch, LabelItem
from pipeline.parts import clear_stale
from pipeline.sources import Source
from pipeline.stages import (
    BATCHES_ON_THE_WAY,
    SHARED_MEMORY_BYTES,
    UNREAD_BATCHES,
    Job,
    RunEvent,
    SourceReport,
    drain,
    failure,
    guarded,
    make_decoder,
    make_segmenter,
    one_line,
    process,
    root_cause,
)

UNREAD_EVENTS = 64  # progress events the driver may be behind


class FusedActor:
    """All three stages of a source, as threads."""

    def __init__(self, job: Job) -> None:
        self.job, self.segmenter = job, make_segmenter(job)
        self.stopping = Event()

    def run(self, source: Source) -> Iterator[RunEvent]:
        yield from process(
            self.job, source, self.segmenter, stop=self.stopping.is_set, threads=True
        )

    def stop(self) -> None:
        self.stopping.set()


class DecoderActor:
    """Decodes one source at a time."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.stopping = Event()
        # Ray loses count of a reference that goes on inside a streamed item: the owner keeps its own.
        self.on_the_way: deque[Any] = deque(maxlen=BATCHES_ON_THE_WAY)

    def frames(self, source: Source) -> Iterator[FrameItem]:
        self.on_the_way.clear()  # the source before this one has been written
        with (
            make_decoder(self.job, source, self.stopping.is_set) as decoder,
            closing(iter(decoder)) as items,
        ):
            for item in items:
                if isinstance(item, FrameBatch) and item.pictures is not None:
                    # A reference goes on with the batch; the segmenter never loads the pictures.
                    self.on_the_way.append(ray.put(item.pictures))
                    item = replace(item, pictures=self.on_the_way[-1])  # noqa: PLW2901
                yield item

    def stop(self) -> None:
        self.stopping.set()


class SegmenterActor:
    """Labels the frames of all streams; one thread a stream, one engine an input size."""

    def __init__(self, job: Job) -> None:
        self.segmenter = make_segmenter(job)

    def labels(self, source: Source, decoder: Any) -> Iterator[LabelItem]:
        with closing(_pull(decoder.frames, UNREAD_BATCHES, source)) as frames:
            yield from self.segmenter.labels(frames)


class SinkActor:
    """Writes one source's files at a time."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def run(self, source: Source, decoder: Any, segmenter: Any) -> Iterator[RunEvent]:
        yield from guarded(source, self._events(source, decoder, segmenter))

    def _events(self, source: Source, decoder: Any, segmenter: Any) -> Iterator[RunEvent]:
        with closing(_pull(segmenter.labels, UNREAD_BATCHES, source, decoder)) as items:
            yield from drain(self.job, source, _with_pictures(items, source))


def _with_pictures(items: Iterator[LabelItem], source: Source) -> Iterator[LabelItem]:
    for item in items:
        if isinstance(item, LabelBatch) and item.pictures is not None:
            try:
                pictures = ray.get(item.pictures)
            except RayError as error:  # they went with the decoder that owned them
                raise StageError(f"{source.uri}: a process that worked on it died") from error
            yield replace(item, pictures=pictures)
        else:
            yield item


def _pull(method: Any, unread: int, source: Source, *args: Any) -> Generator[Any, None, None]:
    """Call an actor's generator method for a source and take its items one by one.

    Raises what the method raised, or StageError if its process died. Closing stops the producer: just
    letting go of the generator would leave it running.
    """
    items = method.options(
        num_returns="streaming", _generator_backpressure_num_objects=unread
    ).remote(source, *args)
    finished = False
    try:
        for reference in items:
            yield ray.get(reference)
        finished = True
    except RayTaskError as error:  # the method raised
        raise root_cause(error) from error
    except RayError as error:
        raise StageError(f"{source.uri}: a process that worked on it died") from error
    finally:
        if not finished:
            with suppress(Exception):
                ray.cancel(items)


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """A Ray of our own on this machine, or a running one at `address`; left again at the end.

    Raises ConfigError if there is no cluster at `address`, StageError if our own does not start.
    """
    arguments: dict[str, Any] = {"address": "local", "include_dashboard": False,
                                 "object_store_memory": SHARED_MEMORY_BYTES}  # fmt: skip
    if address is not None:
        _check_reachable(address)
        arguments = {"address": address}
    logging.getLogger("ray").setLevel(logging.ERROR)  # it tells of its own defaults at each start
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(log_to_driver=False, configure_logging=False, **arguments)
    except Exception as error:  # Ray raises a bare Exception when a start takes too long
        if address is not None:
            raise ConfigError(f"no Ray cluster at {address!r}: {one_line(error)}") from error
        raise StageError(
            f"Ray could not start on this machine: {one_line(error)}; --inline runs without it"
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)  # Ray put its own there, which just exits
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise ConfigError if nothing listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdecimal():
        return  # "auto" and the like: Ray knows at once
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"no Ray cluster at {address!r}: {one_line(error)}") from error


class Lane:
    """The actors that serve one source at a time.

    Args:
        job: what all sources have in common.
        segmenter: the shared segmenter's actor; None for a fused lane.
        cpus: cores Ray sets aside for each actor; 0 on a machine of our own, where the number of lanes
            is what keeps the load in bounds.
    """

    def __init__(self, job: Job, segmenter: Any, cpus: float) -> None:
        self.job, self.segmenter, self.cpus = job, segmenter, cpus
        self.generator: Any = None
        self.source: Source | None = None
        self._make()

    def _make(self) -> None:
        groups = {"control": 1}  # so that `stop` is heard while the generator runs
        if self.segmenter is None:
            self.decoder = self.writer = _actor(FusedActor, self.job, self.cpus, groups)
        else:
            self.decoder = _actor(DecoderActor, self.job, self.cpus, groups)
            self.writer = _actor(SinkActor, self.job, self.cpus)

    def start(self, source: Source) -> None:
        arguments = () if self.segmenter is None else (self.decoder, self.segmenter)
        self.source = source
        self.generator = self.writer.run.options(
            num_returns="streaming", _generator_backpressure_num_objects=UNREAD_EVENTS
        ).remote(source, *arguments)

    def take(self) -> RunEvent | None:
        """The next event, once `ray.wait` has said there is one; None at the generator's end.

        The death of a process gives a report, and new actors for the next source.
        """
        assert self.source is not None
        try:
            event: RunEvent = ray.get(next(self.generator))
        except StopIteration:
            return None
        except RayError as error:  # what the stages themselves raise comes as a report
            died = StageError(f"{self.source.uri}: the process that worked on it died")
            event = replace(failure(self.source, died), details=str(error))
        if isinstance(event, SourceReport) and event.process_died:
            self.close()
            # The dead could not tidy up: what they had begun is nobody's now.
            clear_stale(self.job.out / self.source.stream_id)
            self._make()
        return event

    def stop(self) -> None:
        self.decoder.stop.options(concurrency_group="control").remote()

    def close(self) -> None:
        for actor in {self.decoder, self.writer}:
            with suppress(Exception):
                ray.kill(actor)


def _actor(
    kind: type, job: Job, cpus: float, groups: dict[str, int] | None = None, threads: int = 1
) -> Any:
    # A shared segmenter that dies fails what it was working on, and serves the next sources again.
    options: dict[str, Any] = {"num_cpus": cpus, "max_concurrency": threads, "max_restarts": -1}
    if groups:
        options["concurrency_groups"] = groups
    return ray.remote(**options)(kind).remote(job)


def run_on_ray(
    job: Job,
    sources: Sequence[Source],
    *,
    fused: bool,
    lanes: int,
    address: str | None,
    stop: Callable[[], bool],
) -> Iterator[RunEvent]:
    """Run every source and give its events, its report last.

    Args:
        lanes: sources worked on at once.
        stop: asked a few times a second; True finishes what is decoded, starts nothing more and ends.
    """
    cpus = 0.0 if address is None else (1.0 if fused else 0.5)
    with cluster(address), ExitStack() as stack:
        if address is not None:
            lanes = min(lanes, _lanes_that_fit(cpus, fused))
        segmenter = None
        if not fused:
            segmenter = _actor(SegmenterActor, job, cpus, threads=lanes + 1)
        waiting = list(reversed(sources))
        working: dict[Any, Lane] = {}
        for _ in range(min(lanes, len(sources))):
            lane = Lane(job, segmenter, cpus)
            stack.callback(lane.close)
            lane.start(waiting.pop())
            working[lane.generator] = lane
        yield from _events(working, waiting, stop)


def _events(
    working: dict[Any, Lane], waiting: list[Source], stop: Callable[[], bool]
) -> Iterator[RunEvent]:
    stopped = False
    while working:
        if not stopped and stop():
            stopped = True
            waiting.clear()
            for lane in working.values():
                lane.stop()
        ready, _ = ray.wait(list(working), num_returns=1, timeout=0.2)
        for generator in ready:
            lane = working[generator]
            event = lane.take()
            if event is not None:
                yield event
            if event is None or isinstance(event, SourceReport):
                del working[generator]
                if waiting:
                    lane.start(waiting.pop())
                    working[lane.generator] = lane
                else:
                    lane.close()


def _lanes_that_fit(cpus: float, fused: bool) -> int:
    """Lanes the cluster's cores can hold, at least one. Raises ConfigError if not even one fits."""
    cores = ray.cluster_resources().get("CPU", 0.0)
    lanes = int(cores // cpus) if fused else int((cores - cpus) // (2 * cpus))
    if lanes < 1:
        raise ConfigError(f"the Ray cluster has {cores:g} cores: at least 2 are needed")
    return lanes
