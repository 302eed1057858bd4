"""One source's way from decoder to sink. Plain code: it runs the same in one process and in actors."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from queue import Empty, Queue
from threading import Event, Thread
from typing import Any, TypeVar

import cv2
import numpy as np

from models.spec import Spec, find_model
from pipeline.decode import Decoder
from pipeline.engines import EngineChoice, engine_factory
from pipeline.errors import PipelineError, StageError
from pipeline.frames import EndOfStream, FrameBatch, FrameItem, Gap, LabelBatch, LabelItem, Mark
from pipeline.journal import Journal, ResumeError, frames_kept, identity_of
from pipeline.palette import Palette
from pipeline.secrecy import mask, scrub
from pipeline.segmenter import Segmenter
from pipeline.sinks import OutputOptions, Sink
from pipeline.sources import Source
from pipeline.work import Stretch, Work, stopwatch

SHARED_MEMORY_BYTES = 512 * 2**20  # Ray's object store; what does not fit is spilled to disk
UNREAD_BATCHES = 2  # batches a producer may be ahead of its consumer in another process
# Batches between a decoder and its sink: unread ones on both hops, and one in each stage's hands.
BATCHES_ON_THE_WAY = 2 * UNREAD_BATCHES + 4

Item = TypeVar("Item")


@dataclass(frozen=True)
class Job:
    """What all sources of a run have in common; it crosses to other processes.

    Attributes:
        out: folder that gets one folder a source.
        options: which files to write.
        model: folder of the model.
        choice: the engine.
        size_hw: input size of the network, None for what the model's specification says.
        chunk: frames a batch.
        slots: streams whose states an engine holds at once.
        engines: engines of one input size that a segmenter may have, each with its own streams.
        batch_bytes: a batch has fewer frames where they would take more than this; None for no bound.
        facts: what the manifest says of model, engine, placement and versions.
        resume: go on with what an earlier run began.
        checkpoint_seconds: how often what is written is brought to the disk, with the journal; None
            for never.
        hwaccel: kind of device that decodes, None for the cores.
    """

    out: Path
    options: OutputOptions
    model: str
    choice: EngineChoice
    size_hw: tuple[int, int] | None = None
    chunk: int = 8
    slots: int = 8
    engines: int = 1
    batch_bytes: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    resume: bool = False
    checkpoint_seconds: float | None = 5.0
    hwaccel: str | None = None

    def spec(self) -> Spec:
        return find_model(self.model).spec()

    def folder(self, source: Source) -> Path:
        return self.out / source.stream_id

    def identity(self, source: Source) -> dict[str, Any]:
        """What the source's results will depend on."""
        options = asdict(self.options)
        del options["encoder_threads"]
        return identity_of(source, self.facts, options)


@dataclass(frozen=True)
class Progress:
    """How far a source is.

    Attributes:
        stream_id: which one.
        frames: frames written so far.
        frame_count: what the container promises, None if it doesn't say.
        work: what was done since the last time; None where nothing was, as when a run goes on.
    """

    stream_id: str
    frames: int
    frame_count: int | None
    work: Work | None = None


@dataclass(frozen=True)
class SourceReport:
    """How a source ended.

    Attributes:
        stream_id, source: which one; the address without its secrets, here and in what is told.
        frames: frames written.
        error: one line for the user, None if all went well.
        notes: what else the user should know, a line each.
        folder: where its files are, None if there are none.
        interrupted: it was stopped before its end.
        details: the traceback of an error nobody foresaw.
        process_died: a process that worked on it was lost, and what it had begun with it.
    """

    stream_id: str
    source: str
    frames: int = 0
    error: str | None = None
    notes: tuple[str, ...] = ()
    folder: str | None = None
    interrupted: bool = False
    details: str | None = None
    process_died: bool = False

    def __post_init__(self) -> None:
        # A password or a signed query in a web address stays in this process.
        shown = mask(self.source)
        if shown != self.source:
            told = {
                "source": shown,
                "notes": tuple(scrub(n, self.source, shown) for n in self.notes),
            }
            for name in ("error", "details"):
                text = getattr(self, name)
                told[name] = text and scrub(text, self.source, shown)
            for name, value in told.items():
                object.__setattr__(self, name, value)


RunEvent = Progress | SourceReport


def open_journal(job: Job, source: Source, resume: bool) -> Journal:
    """The journal of a source. Raises OutputError, or ResumeError if it is of something else."""
    return Journal(job.folder(source), job.identity(source), resume)


def frames_can_stay(hwaccel: str | None, choice: EngineChoice) -> bool:
    """Whether frames are decoded where the network runs, and need not leave."""
    return hwaccel == "cuda" and choice.on_gpu


def make_decoder(
    job: Job,
    source: Source,
    stop: Callable[[], bool] | None = None,
    start: Mark | None = None,
    with_network: bool = False,
) -> Decoder:
    """The decoder of a source, at the size the job's network wants.

    Args:
        with_network: the job's network runs in this process too: frames may stay on its device.
    """
    return Decoder(source, start=start, **decoder_options(job, stop, with_network))


def decoder_options(
    job: Job, stop: Callable[[], bool] | None = None, with_network: bool = False
) -> dict[str, Any]:
    """How the job's decoders decode, whatever they begin with."""
    cv2.setNumThreads(1)  # the stages run side by side: more threads would only get in their way
    size_hw, spec = job.size_hw, job.spec()
    return {
        "model_hw": spec.model_hw if size_hw is None else lambda _: size_hw,
        "chunk": job.chunk, "pictures": job.options.overlay, "batch_bytes": job.batch_bytes,
        "stop": stop, "mark_seconds": job.checkpoint_seconds, "hwaccel": job.hwaccel,
        "keep_on_device": with_network and frames_can_stay(job.hwaccel, job.choice),
    }  # fmt: skip


def make_segmenter(job: Job, kind: type[Segmenter] = Segmenter) -> Segmenter:
    """A segmenter with the job's engine; the network is compiled when the first frame comes."""
    files = find_model(job.model)
    spec = files.spec()
    make_engine = engine_factory(job.choice, files, spec, job.slots)
    make_wide = None
    if job.engines > 1:  # the last of several sources need not do with the threads of one engine
        all_threads = replace(job.choice, threads=job.choice.threads * job.engines)
        make_wide = engine_factory(all_threads, files, spec, job.slots)
    return kind(make_engine, engines=job.engines, make_wide=make_wide)


def drain(
    job: Job, source: Source, items: Iterable[LabelItem], journal: Journal | None = None
) -> Iterator[RunEvent]:
    """Write a source's label items to its files; the last event is the report, if nothing failed.

    An error leaves no file under a final name.

    Args:
        journal: of the source; `items` begin where its record says. None for no way to go on later.
    """
    cv2.setNumThreads(1)
    spec = job.spec()
    palette = Palette(spec.classes, np.array(spec.palette_rgb, np.uint8))
    folder = job.folder(source)
    record = journal.record if journal else None
    frames = record.mark.frame_index if record else 0
    with Sink(folder, palette, job.options, dict(job.facts), journal) as sink:
        if record:
            yield Progress(source.stream_id, frames, record.sink["stream"]["frame_count"])
        for item in items:
            if isinstance(item, Gap):
                sink.note_gap(item)
            elif isinstance(item, EndOfStream):
                report = _report(source, item, sink.finish(item), folder)
                notes = journal.notes if journal else ()
                yield replace(report, notes=(*notes, *report.notes))
            else:
                clock = stopwatch()
                sink.write(item)
                frames += len(item)
                work = _work(source, item, clock())
                yield Progress(source.stream_id, frames, item.stream.frame_count, work)


def _work(source: Source, item: LabelBatch, write: Stretch) -> Work:
    begun = (item.steps == 1) & (np.arange(len(item)) + item.frame_index > 0)
    return Work(
        source.stream_id, item.frame_index, len(item), item.decode, item.step, write,
        tuple(item.labelled_at - decoded_at for decoded_at in item.decoded_at),
        int(np.count_nonzero(begun)),
    )  # fmt: skip


def _report(
    source: Source, end: EndOfStream, manifest: dict[str, Any], folder: Path
) -> SourceReport:
    notes = list(manifest["notes"])
    if again := manifest["resumed_at"]:
        times = "once" if len(again) == 1 else f"{len(again)} times"
        notes.append(f"gone on {times} where a run had stopped, last from frame {again[-1]}")
    if end.corrupt_frames:
        notes.append(f"{end.corrupt_frames} frames are damaged")
    if end.undecodable_packets:
        notes.append(f"{end.undecodable_packets} packets could not be decoded")
    return SourceReport(
        source.stream_id, source.uri, manifest["frames_out"], None, tuple(notes),
        str(folder) if manifest["outputs"] else None,
        end.interrupted,
    )  # fmt: skip


def process(
    job: Job,
    source: Source,
    segmenter: Segmenter,
    *,
    stop: Callable[[], bool],
    threads: bool,
    resume: bool = False,
) -> Iterator[RunEvent]:
    """All three stages of a source in this process; always ends in a `SourceReport`.

    Args:
        stop: asked after each packet; True finishes what is decoded and closes the files.
        threads: decode, label and write side by side instead of in turn.
        resume: go on from the source's journal.
    """

    def events() -> Iterator[RunEvent]:
        with ExitStack() as stack:  # closed last to first: each stage stops the one before it
            journal = stack.enter_context(open_journal(job, source, resume))
            start = journal.record.mark if journal.record else None
            decoder = stack.enter_context(make_decoder(job, source, stop, start, with_network=True))
            decoded = timed(decoder)
            frames = stack.enter_context(closing(ahead(decoded, 2) if threads else decoded))
            items = stack.enter_context(
                closing(segmenter.labels(frames, source.stream_id, start.state if start else None))
            )
            if threads:
                items = stack.enter_context(closing(ahead(items, 2)))
            yield from drain(job, source, items, journal)

    return guarded(job, source, events())


def guarded(job: Job, source: Source, events: Iterator[RunEvent]) -> Iterator[RunEvent]:
    """Turn whatever goes wrong into a report, so that no source harms another."""
    try:
        yield from events
    except Exception as error:
        report = failure(source, error)
        refused = isinstance(root_cause(error), ResumeError)
        # After a death the run itself may go on.
        yield report if refused or report.process_died else with_way_on(job, source, report)


def with_way_on(job: Job, source: Source, report: SourceReport) -> SourceReport:
    """The report of a source that failed, with what can be gone on with, if there is something."""
    frames = frames_kept(job.folder(source))
    if not frames:
        return report
    return replace(report, error=f"{report.error}; --resume goes on behind frame {frames - 1}")


def failure(source: Source, error: BaseException) -> SourceReport:
    """The report of a source that failed; errors nobody foresaw bring their traceback."""
    cause = root_cause(error)
    if isinstance(cause, PipelineError):
        died = isinstance(cause, StageError)
        return SourceReport(source.stream_id, source.uri, error=one_line(cause), process_died=died)
    details = "".join(traceback.format_exception(cause))
    message = f"{source.uri}: internal error, please report it: {type(cause).__name__}: "
    return SourceReport(
        source.stream_id, source.uri, error=message + one_line(cause), details=details
    )


def root_cause(error: BaseException) -> BaseException:
    """The error itself, out of the wrappers that other processes put around it."""
    while isinstance(getattr(error, "cause", None), BaseException):
        error = error.cause  # type: ignore[attr-defined]
    return error


def one_line(error: BaseException) -> str:
    """An error's message without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def timed(frames: Iterable[FrameItem]) -> Generator[FrameItem, None, None]:
    """A decoder's items, each batch with what decoding it took."""
    iterator = iter(frames)
    try:
        while True:
            clock = stopwatch()
            item = next(iterator, None)
            if item is None:
                return
            yield replace(item, decode=clock()) if isinstance(item, FrameBatch) else item
    finally:
        if hasattr(iterator, "close"):
            iterator.close()


@dataclass(frozen=True)
class _Failed:
    error: BaseException


_END = object()


def ahead(items: Iterable[Item], depth: int) -> Generator[Item, None, None]:
    """Run an iterable in a thread of its own, at most `depth` items ahead of the consumer.

    Errors come out where the item would have. Closing the generator stops the thread and closes the
    iterable, so no stage outlives its consumer, even if that failed while the queue was full.
    """
    queue: Queue[Any] = Queue(maxsize=depth)
    stopped = Event()

    def produce() -> None:
        iterator = iter(items)
        try:
            for item in iterator:
                queue.put(item)
                if stopped.is_set():
                    return
            queue.put(_END)
        except BaseException as error:
            queue.put(_Failed(error))
        finally:
            if hasattr(iterator, "close"):
                iterator.close()

    thread = Thread(target=produce, name=f"ahead-{depth}", daemon=True)
    thread.start()
    try:
        while (item := queue.get()) is not _END:
            if isinstance(item, _Failed):
                raise item.error
            yield item
    finally:
        stopped.set()
        while thread.is_alive():
            try:  # make room, so that a producer waiting for it sees the flag
                queue.get_nowait()
            except Empty:
                thread.join(0.01)
