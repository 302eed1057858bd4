"""The stages as Ray actors, and nothing else: how many there are and who talks to whom is decided here.

Fused: the three stages of a source run as threads of one actor, and full-size frames never leave it; a
few sources share an actor, its engines and their weights.
Spread: decoders and sinks have actors of their own, and one segmenter serves all streams. Either way each
consumer pulls from a streaming generator with a bounded number of unread items: a slow sink slows its
decoder, memory stays bounded, and nothing polls. A source whose process died goes on from its journal.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
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
from ray.exceptions import ObjectStoreFullError, OutOfDiskError, RayError, RayTaskError

from pipeline.errors import ConfigError, OutputError, StageError
from pipeline.frames import FrameBatch, FrameItem, LabelBatch, LabelItem, Mark
from pipeline.restarts import Restarts
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
    open_journal,
    process,
    root_cause,
)

UNREAD_EVENTS = 64  # progress events the driver may be behind
CONTROL = {"control": 1}  # threads apart, so that `stop` is heard while a generator runs


class FusedActor:
    """All three stages of a source, as threads; of several sources at once, by one segmenter."""

    def __init__(self, job: Job) -> None:
        self.job, self.segmenter = job, make_segmenter(job)
        self.stopping = Event()

    def run(self, source: Source, resume: bool) -> Iterator[RunEvent]:
        yield from process(
            self.job, source, self.segmenter, stop=self.stopping.is_set, threads=True, resume=resume
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

    def frames(self, source: Source, start: Mark | None) -> Iterator[FrameItem]:
        self.on_the_way.clear()  # the source before this one has been written
        with (
            make_decoder(self.job, source, self.stopping.is_set, start) as decoder,
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

    def labels(self, source: Source, decoder: Any, start: Mark | None) -> Iterator[LabelItem]:
        state, begin = (start.state, replace(start, state=None)) if start else (None, None)
        with closing(_pull(decoder.frames, UNREAD_BATCHES, source, begin)) as frames:
            yield from self.segmenter.labels(frames, source.stream_id, state)


class SinkActor:
    """Writes one source's files at a time."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def run(self, source: Source, resume: bool, decoder: Any, segmenter: Any) -> Iterator[RunEvent]:
        yield from guarded(self.job, source, self._events(source, resume, decoder, segmenter))

    def _events(
        self, source: Source, resume: bool, decoder: Any, segmenter: Any
    ) -> Iterator[RunEvent]:
        with open_journal(self.job, source, resume) as journal:
            start = journal.record.mark if journal.record else None
            pulled = _pull(segmenter.labels, UNREAD_BATCHES, source, decoder, start)
            with closing(pulled) as items:
                yield from drain(self.job, source, _with_pictures(items, source), journal)


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
        cause = root_cause(error)
        raise _no_room(source) if isinstance(cause, _NO_ROOM) else cause from error
    except _NO_ROOM as error:
        raise _no_room(source) from error
    except RayError as error:
        raise StageError(f"{source.uri}: a process that worked on it died") from error
    finally:
        if not finished:
            with suppress(Exception):
                ray.cancel(items)


_NO_ROOM = (ObjectStoreFullError, OutOfDiskError)


def _no_room(source: Source) -> OutputError:
    return OutputError(
        f"{source.uri}: Ray's shared memory and the disk behind it are full: free some space in"
        " /tmp/ray, or give --placement fused or --inline, which need none"
    )


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
    # It tells of dead workers on standard output, where `--json` has its lines; a report tells of them.
    vars(ray._private.worker)["print_to_stdstream"] = lambda *_, **__: None
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
        cpus: cores Ray sets aside for each actor; 0 on a machine of our own, where lanes bound the load.
        segmenter: the shared segmenter's actor; None for a fused lane.
        host: the actor a fused lane shares with others, None for one of its own.
    """

    def __init__(self, job: Job, cpus: float, segmenter: Any = None, host: Any = None) -> None:
        self.job, self.cpus, self.segmenter, self.host = job, cpus, segmenter, host
        self.generator: Any = None
        self.source: Any = None
        self.restarts: Restarts
        self.begins_at = 0.0  # `time.monotonic()`, while it pauses after a death
        self._make()

    def _make(self) -> None:
        if self.segmenter is None:
            self.decoder = self.writer = self.host or _actor(
                FusedActor, self.job, self.cpus, CONTROL
            )
        else:
            self.decoder = _actor(DecoderActor, self.job, self.cpus, CONTROL)
            self.writer = _actor(SinkActor, self.job, self.cpus)

    def start(self, source: Source) -> None:
        """Begin a source, or go on with it after a death."""
        if source != self.source:
            self.source, self.restarts = source, Restarts(self.job, source)
        arguments = () if self.segmenter is None else (self.decoder, self.segmenter)
        self.generator = self.writer.run.options(
            num_returns="streaming", _generator_backpressure_num_objects=UNREAD_EVENTS
        ).remote(source, self.restarts.resume, *arguments)

    def take(self) -> RunEvent | None:
        """The next event, once `ray.wait` has said there is one; None at the generator's end.

        After a death there are new processes, and `begins_at` says when to start again; after one too
        many there is a report. Any who shared the process may have been its death: each gets its own.
        """
        try:
            event: RunEvent = ray.get(next(self.generator))
        except StopIteration:
            return None
        except RayError as error:  # what the stages themselves raise comes as a report
            died = StageError(f"{self.source.uri}: the process that worked on it died")
            event = replace(failure(self.source, died), details=str(error))
        if isinstance(event, SourceReport) and event.process_died:
            self.host = None
            self.close()
            self._make()
            pause = self.restarts.count()
            if pause is None:
                return self.restarts.give_up(replace(event, error=f"{event.error} again and again"))
            self.begins_at = time.monotonic() + pause
            return None
        return event

    def give_up(self) -> SourceReport:
        """The report of a source that pauses after a death while the user stops the run."""
        self.close()
        died = StageError(f"{self.source.uri}: a process died, and then the run was stopped")
        return self.restarts.give_up(failure(self.source, died))

    def stop(self) -> None:
        self.decoder.stop.options(concurrency_group="control").remote()

    def close(self) -> None:
        if self.host is None:  # others may still work in a shared one
            _kill(self.decoder, self.writer)


def _kill(*actors: Any) -> None:
    for actor in actors:
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
    together: int,
    address: str | None,
    stop: Callable[[], bool],
) -> Iterator[RunEvent]:
    """Run every source and give its events, its report last.

    Args:
        lanes: sources worked on at once.
        together: how many of them share a process, where they are fused.
        stop: asked a few times a second; True finishes what is decoded, starts nothing more and ends.
    """
    cpus = 0.0 if address is None else (1.0 if fused else 0.5)
    with cluster(address), ExitStack() as stack:
        if address is not None:
            lanes = min(lanes, _lanes_that_fit(cpus, fused))
        lanes = min(lanes, len(sources))
        segmenter, host = None, None
        if not fused:
            segmenter = _actor(SegmenterActor, job, cpus, threads=lanes + 1)
        waiting = list(reversed(sources))
        working: dict[Any, Lane] = {}
        for number in range(lanes):
            if fused and together > 1 and number % together == 0:
                host = _actor(FusedActor, job, cpus, CONTROL, threads=together)
                stack.callback(_kill, host)
            lane = Lane(job, cpus, segmenter, host)
            stack.callback(lane.close)
            lane.start(waiting.pop())
            working[lane.generator] = lane
        yield from _events(working, waiting, stop)


def _events(
    working: dict[Any, Lane], waiting: list[Source], stop: Callable[[], bool]
) -> Iterator[RunEvent]:
    pausing: list[Lane] = []
    stopped = False
    while working or pausing:
        if not stopped and stop():
            stopped = True
            waiting.clear()
            for lane in working.values():
                lane.stop()
        for lane in [lane for lane in pausing if stopped or lane.begins_at <= time.monotonic()]:
            pausing.remove(lane)
            if stopped:
                yield lane.give_up()
            else:
                lane.start(lane.source)
                working[lane.generator] = lane
        for generator in _ready(working):
            lane = working[generator]
            lane.begins_at = 0.0
            event = lane.take()
            if event is not None:
                yield event
            if lane.begins_at:
                del working[generator]
                pausing.append(lane)
            elif event is None or isinstance(event, SourceReport):
                del working[generator]
                if waiting:
                    lane.start(waiting.pop())
                    working[lane.generator] = lane
                else:
                    lane.close()


def _ready(working: dict[Any, Lane]) -> list[Any]:
    """Generators that have an event, after a fifth of a second at most."""
    if not working:
        time.sleep(0.05)
        return []
    return ray.wait(list(working), num_returns=1, timeout=0.2)[0]


def _lanes_that_fit(cpus: float, fused: bool) -> int:
    """Lanes the cluster's cores can hold, at least one. Raises ConfigError if not even one fits."""
    cores = ray.cluster_resources().get("CPU", 0.0)
    lanes = int(cores // cpus) if fused else int((cores - cpus) // (2 * cpus))
    if lanes < 1:
        raise ConfigError(f"the Ray cluster has {cores:g} cores: at least 2 are needed")
    return lanes
