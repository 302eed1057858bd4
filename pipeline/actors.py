"""The stages as Ray actors, and nothing else: how many there are is decided in `pipeline.cluster.crew`.

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
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from threading import Event
from typing import Any, cast

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it writes to the terminal and the network
os.environ.setdefault("RAY_worker_niceness", "0")  # the workers are what the user waits for
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.exceptions import ObjectStoreFullError, OutOfDiskError, RayError, RayTaskError

from pipeline.cluster.errands import FarEvent, FarJob, Part, Span, bundled, settled
from pipeline.cluster.joining import Errand
from pipeline.cluster.spans import make_span_decoder
from pipeline.errors import ConfigError, EngineError, OutputError, StageError
from pipeline.frames import FrameBatch, FrameItem, LabelBatch, LabelItem, Mark, StreamState
from pipeline.metrics.on_ray import told
from pipeline.segmenter import Segmenter
from pipeline.sources import Source
from pipeline.stages import (
    BATCHES_ON_THE_WAY,
    SHARED_MEMORY_BYTES,
    UNREAD_BATCHES,
    Job,
    RunEvent,
    ahead,
    drain,
    guarded,
    make_decoder,
    make_segmenter,
    one_line,
    open_journal,
    process,
    root_cause,
    timed,
)

UNREAD_EVENTS = 64  # progress events the driver may be behind
CONTROL = {"control": 1}  # threads apart, so that `stop` is heard while a generator runs


_DIED = "a process that worked on it died"
_LAST_WORDS_SECONDS = 1.0  # for what the streams of a process that ends are told
_LONGEST_END_SECONDS = 30.0


class MortalSegmenter(Segmenter):
    """A segmenter whose process ends with its device: Ray starts another, with a context of its own, in which
    what was under way goes on."""

    def labels(
        self,
        frames: Iterable[FrameItem],
        stream_id: str = "",
        state: StreamState | None = None,
    ) -> Generator[LabelItem, None, None]:
        """As of `Segmenter`. Raises StageError instead of an EngineError of a device that is lost."""
        self.live_on()
        try:
            yield from super().labels(frames, stream_id, state)
        except EngineError as error:
            if not self.device_lost:
                raise
            timer = threading.Timer(_LAST_WORDS_SECONDS, os._exit, (1,))
            timer.daemon = True
            timer.start()
            raise StageError(str(error)) from error

    def live_on(self) -> None:
        """Return if this process goes on. One that ends does not answer: its sources would fail, and be
        begun, again and again meanwhile. Raises StageError if it does not come to its end."""
        if self.device_lost:
            time.sleep(_LONGEST_END_SECONDS)
            raise StageError(_DIED)


class FusedActor:
    """All three stages of a source, as threads; of several sources at once, by one segmenter."""

    def __init__(self, job: Job) -> None:
        self.job = settled(job)
        self.segmenter = cast(MortalSegmenter, make_segmenter(job, MortalSegmenter))
        self.stopping = Event()

    def up(self) -> None:
        """Answers once it can work."""
        self.segmenter.live_on()

    def run(
        self, source: Source, resume: bool, part: Part | None = None
    ) -> Iterator[tuple[FarEvent, ...]]:
        errand = Errand(self._whole, self._span)
        events = errand.events(self.job, source, resume, part)
        yield from bundled(self.job, told(events, isinstance(self.job, FarJob)))

    def _whole(self, job: Job, source: Source, resume: bool) -> Iterator[RunEvent]:
        return process(
            job, source, self.segmenter, stop=self.stopping.is_set, threads=True, resume=resume
        )

    def _span(self, job: Job, source: Source, span: Span) -> Generator[LabelItem, None, None]:
        with (
            make_span_decoder(job, source, span, self.stopping.is_set, True) as decoder,
            closing(ahead(timed(decoder), 2)) as frames,
            closing(ahead(self.segmenter.labels(frames), 2)) as items,
        ):
            yield from items

    def stop(self) -> None:
        self.stopping.set()


class DecoderActor:
    """Decodes one source at a time."""

    def __init__(self, job: Job) -> None:
        self.job = settled(job)
        self.stopping = Event()
        # Ray loses count of a reference that goes on inside a streamed item: the owner keeps its own.
        self.on_the_way: deque[Any] = deque(maxlen=BATCHES_ON_THE_WAY)

    def up(self) -> None:
        """Answers once it can work."""

    def frames(self, source: Source, start: Mark | Span | None) -> Iterator[FrameItem]:
        self.on_the_way.clear()  # the source before this one has been written
        stop = self.stopping.is_set
        with (
            make_span_decoder(self.job, source, start, stop)
            if isinstance(start, Span)
            else make_decoder(self.job, source, stop, start) as decoder,
            closing(timed(decoder)) as items,
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
        self.segmenter = cast(MortalSegmenter, make_segmenter(job, MortalSegmenter))

    def up(self) -> None:
        """Answers once it can work."""
        self.segmenter.live_on()

    def labels(
        self, source: Source, decoder: Any, start: Mark | Span | None
    ) -> Iterator[LabelItem]:
        state: StreamState | None = None
        begin = start
        if isinstance(start, Mark):  # the decoder has no use for the memory
            state, begin = start.state, replace(start, state=None)
        with closing(_pull(decoder.frames, UNREAD_BATCHES, source, begin)) as frames:
            yield from self.segmenter.labels(frames, source.stream_id, state)


class SinkActor:
    """Writes one source's files at a time."""

    def __init__(self, job: Job) -> None:
        self.job = settled(job)

    def up(self) -> None:
        """Answers once it can work."""

    def run(
        self, source: Source, resume: bool, part: Part | None, decoder: Any, segmenter: Any
    ) -> Iterator[tuple[FarEvent, ...]]:
        def whole(job: Job, source: Source, resume: bool) -> Iterator[RunEvent]:
            return guarded(job, source, _events(job, source, resume, decoder, segmenter))

        def span(job: Job, source: Source, span: Span) -> Generator[LabelItem, None, None]:
            with closing(_pull(segmenter.labels, UNREAD_BATCHES, source, decoder, span)) as items:
                yield from items

        errand = Errand(whole, span)
        events = errand.events(self.job, source, resume, part)
        yield from bundled(self.job, told(events, isinstance(self.job, FarJob)))


def _events(
    job: Job, source: Source, resume: bool, decoder: Any, segmenter: Any
) -> Iterator[RunEvent]:
    with open_journal(job, source, resume) as journal:
        start = journal.record.mark if journal.record else None
        pulled = _pull(segmenter.labels, UNREAD_BATCHES, source, decoder, start)
        with closing(pulled) as items:
            yield from drain(job, source, _with_pictures(items, source), journal)


def _with_pictures(items: Iterator[LabelItem], source: Source) -> Iterator[LabelItem]:
    for item in items:
        if isinstance(item, LabelBatch) and item.pictures is not None:
            try:
                pictures = ray.get(item.pictures)
            except RayError as error:  # they went with the decoder that owned them
                raise StageError(f"{source.uri}: {_DIED}") from error
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
        raise StageError(f"{source.uri}: {_DIED}") from error
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
    except (OSError, OverflowError, UnicodeError) as error:
        raise ConfigError(f"no Ray cluster at {address!r}: {one_line(error)}") from error


def kill(*actors: Any) -> None:
    """End actors, whatever they do; those that are gone are ignored."""
    for actor in actors:
        with suppress(Exception):
            ray.kill(actor)


def start_actor(
    kind: type,
    job: Job,
    cpus: float,
    groups: dict[str, int] | None = None,
    threads: int = 1,
    **options: Any,
) -> Any:
    """An actor of one of the stages.

    Args:
        cpus: cores that Ray sets aside for it.
        groups: threads apart from the others, by name.
        threads: calls at once.
        options: what else Ray takes.
    """
    # A shared segmenter that dies fails what it was working on, and serves the next sources again.
    options |= {"num_cpus": cpus, "max_concurrency": threads, "max_restarts": -1}
    if groups:
        options["concurrency_groups"] = groups
    return ray.remote(**options)(kind).remote(job)
