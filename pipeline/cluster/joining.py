"""Labels of spans, and a file's results made of them.

Where two spans do not agree on LEAST_AGREEMENT of the pixels of the frames that both have labelled, the
network remembers for longer than the warm-up, and the file is labelled whole instead. The spans' labels are
written once more by the usual sink, so all else about the results is as ever.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pipeline.cluster import storage
from pipeline.cluster.errands import (
    JOB_FOLDER,
    FarEvent,
    FarJob,
    Join,
    NotAgainError,
    Part,
    Span,
    attended,
)
from pipeline.cluster.spans import cut, span_source
from pipeline.cluster.storage import is_remote, joined
from pipeline.errors import SourceNotFoundError
from pipeline.frames import EndOfStream, FrameBatch, Gap, LabelBatch, LabelItem, StreamInfo
from pipeline.journal import stream_from_json, stream_to_json
from pipeline.parts import PartFile, output_errors
from pipeline.sources import Source
from pipeline.stages import Job, RunEvent, SourceReport, drain, make_decoder, open_journal

LEAST_AGREEMENT = 0.999  # of the pixels, where two spans meet


@dataclass(frozen=True)
class Errand:
    """How a worker does what it is given.

    Attributes:
        whole: gives the events of a whole source, its report last; told whether to go on with it.
        span: gives a span's labels, its warm-up's too.
    """

    whole: Callable[[Job, Source, bool], Iterator[RunEvent]]
    span: Callable[[Job, Source, Span], Generator[LabelItem, None, None]]

    def events(
        self, job: Job, source: Source, resume: bool, part: Part | None
    ) -> Iterator[FarEvent]:
        """The events of a source, or of a part of it; the last is a report, or says how to cut it."""
        begin = partial(self._begin, resume=resume, part=part)
        return attended(
            job, source, resume and part is None, begin, deliver=not isinstance(part, Span)
        )

    def _begin(
        self, job: Job, source: Source, resume: bool, part: Part | None
    ) -> Iterator[FarEvent]:
        if isinstance(job, FarJob) and part is None and (found := cut(job, source)) is not None:
            yield found
        elif isinstance(job, FarJob) and isinstance(part, Span):
            with closing(self.span(job, span_source(source, part), part)) as items:
                yield from write_span(job, source, part, items)
        elif isinstance(job, FarJob) and isinstance(part, Join):
            yield from join(job, source, part)
        else:
            yield from self.whole(job, source, resume)


def write_span(
    job: FarJob, source: Source, span: Span, items: Iterable[LabelItem]
) -> Iterator[RunEvent]:
    """Write a span's labels where whoever joins them finds them; gives the report.

    Raises NotAgainError if the source is none that can be split.
    """
    place = _folder(job, source) / f"{span.number:06d}"
    with output_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
    part = PartFile(place)
    try:
        end = _write_items(part, place, span, items)
        part.close()
        if end is None:
            part.discard()
            yield SourceReport(source.stream_id, source.uri, interrupted=True)
            return
        part.publish()
    except BaseException:
        part.discard()
        raise
    if job.remote_out is not None:
        storage.put(place, joined(_remote_folder(job, source), place.name))
        place.unlink()
    yield SourceReport(source.stream_id, source.uri, len(span.stamps) - span.warm - span.beyond)


def _write_items(
    part: PartFile, place: Path, span: Span, items: Iterable[LabelItem]
) -> EndOfStream | None:
    """Write a span's labels behind its warm-up; None if it was stopped before its end."""
    for item in items:
        if isinstance(item, Gap):
            raise NotAgainError(f"{item.stream.source}: cannot be split: {item.reason}")
        if isinstance(item, EndOfStream):
            if item.interrupted:
                return None
            facts = {"corrupt_frames": item.corrupt_frames, "notes": item.notes}
            _write_record(part.file, place, {"end": facts, "stream": stream_to_json(item.stream)})
            return item
        skip = max(0, span.begin - item.frame_index)
        if skip < len(item):
            latency = [item.labelled_at - at for at in item.decoded_at[skip:]]
            head = {
                "frame_index": item.frame_index + skip, "pts": item.pts[skip:],
                "latency_seconds": latency, "shape": item.labels[skip:].shape,
                "stream": stream_to_json(item.stream),
            }  # fmt: skip
            _write_record(part.file, place, head, zlib.compress(item.labels[skip:].tobytes(), 1))
    return None


def _write_record(file: BinaryIO, place: Path, head: dict[str, Any], data: bytes = b"") -> None:
    with output_errors(place):
        file.write(json.dumps({**head, "bytes": len(data)}).encode() + b"\n" + data)


def join(job: FarJob, source: Source, spans: Join) -> Iterator[RunEvent]:
    """Write a source's results from its spans' labels; always ends in a report.

    Raises NotAgainError where spans do not agree, StorageError or OutputError.
    """
    folder = _folder(job, source)
    files = [folder / f"{number:06d}" for number in range(len(spans.begins))]
    if job.remote_out is not None:
        for file in files:
            storage.fetch(joined(_remote_folder(job, source), file.name), file)
    try:
        _check_seams(source, files, spans.begins)
    except NotAgainError:
        _remove(job, source, files)
        raise
    with open_journal(job, source, resume=False) as journal:
        items = _joined(job, source, files, spans.begins)
        if job.options.overlay:
            items = _with_pictures(job, source, items)
        with closing(items):
            yield from drain(job, source, items, journal)
    _remove(job, source, files)


def _remove(job: FarJob, source: Source, files: list[Path]) -> None:
    """Remove what was kept of a source's spans."""
    shutil.rmtree(_folder(job, source), ignore_errors=True)
    if job.remote_out is not None:
        for file in files:
            storage.remove(joined(_remote_folder(job, source), file.name))


def _check_seams(source: Source, files: list[Path], begins: tuple[int, ...]) -> None:
    """Raises NotAgainError where two spans that meet do not agree."""
    for before, after, begin in zip(files, files[1:], begins[1:], strict=False):
        one = _labels_from(before, begin, None)
        other = _labels_from(after, begin, begin + len(one))
        if len(one) == 0:
            continue  # a network without memory
        agreement = float((one == other).mean()) if one.shape == other.shape else 0.0
        if agreement < LEAST_AGREEMENT:
            raise NotAgainError(
                f"{source.uri}: labelled in spans, it differs too much: at frame {begin} two of them agree"
                f" on {100 * agreement:.2f} % of the pixels, expected {100 * LEAST_AGREEMENT:g} %"
            )


def _labels_from(path: Path, begin: int, end: int | None) -> np.ndarray:
    """A span's labels of the frames from `begin` to before `end`, uint8 [T, h, w]."""
    found = [np.empty((0, 0, 0), np.uint8)]
    with path.open("rb") as file:
        while line := file.readline():
            head = json.loads(line)
            if "end" in head or (end is not None and head["frame_index"] >= end):
                break
            first, frames = head["frame_index"], head["shape"][0]
            if first + frames <= begin:
                file.seek(head["bytes"], 1)
                continue
            labels = _unpacked(head, file.read(head["bytes"]))
            found.append(labels[max(0, begin - first) : None if end is None else end - first])
    return np.concatenate(found[1:] or found)


def _joined(
    job: Job, source: Source, files: list[Path], begins: tuple[int, ...]
) -> Generator[LabelItem, None, None]:
    corrupt, frames, stream = 0, 0, None
    notes = [f"labelled in {len(files)} spans"]
    for path, end in zip(files, [*begins[1:], None], strict=True):
        with path.open("rb") as file:
            while line := file.readline():
                head = json.loads(line)
                stream = _named(source, head["stream"])
                if "end" in head:
                    corrupt += head["end"]["corrupt_frames"]
                    notes += [note for note in head["end"]["notes"] if note not in notes]
                    break
                labels = _unpacked(head, file.read(head["bytes"]))
                kept = len(labels) if end is None else min(len(labels), end - head["frame_index"])
                if kept > 0:
                    frames += kept
                    yield _batch(stream, head, labels[:kept])
    assert stream is not None
    yield EndOfStream(stream, frames, corrupt_frames=corrupt, notes=tuple(notes))


def _unpacked(head: dict[str, Any], data: bytes) -> np.ndarray:
    return np.frombuffer(zlib.decompress(data), np.uint8).reshape(head["shape"])


def _batch(stream: StreamInfo, head: dict[str, Any], labels: np.ndarray) -> LabelBatch:
    begin, frames = head["frame_index"], len(labels)
    latency = tuple(-seconds for seconds in head["latency_seconds"][:frames])
    return LabelBatch(
        stream, begin, tuple(head["pts"][:frames]), labels, latency, 0.0,
        np.arange(begin + 1, begin + 1 + frames),
    )  # fmt: skip


def _named(source: Source, stream: dict[str, Any]) -> StreamInfo:
    return replace(stream_from_json(stream), stream_id=source.stream_id, source=source.uri)


def _with_pictures(
    job: Job, source: Source, items: Iterator[LabelItem]
) -> Generator[LabelItem, None, None]:
    """The same labels in the batches of a decoder that gives the pictures too."""
    labels, end = _by_frame(items)
    with make_decoder(job, source) as decoder:
        for frames in decoder:
            if not isinstance(frames, FrameBatch):
                continue
            taken = [next(labels) for _ in frames.pts]
            yield LabelBatch(
                frames.stream, frames.frame_index, frames.pts,
                np.stack([label for label, _ in taken]), tuple(at for _, at in taken), 0.0,
                np.arange(len(taken)) + frames.frame_index + 1, frames.pictures,
            )  # fmt: skip
    assert next(labels, None) is None
    yield end[0]


def _by_frame(
    items: Iterator[LabelItem],
) -> tuple[Iterator[tuple[np.ndarray, float]], list[EndOfStream]]:
    """Each frame's labels and minus their latency, and where the end will be."""
    end: list[EndOfStream] = []

    def frames() -> Iterator[tuple[np.ndarray, float]]:
        for item in items:
            if isinstance(item, LabelBatch):
                yield from zip(item.labels, item.decoded_at, strict=True)
            elif isinstance(item, EndOfStream):
                end.append(item)

    return frames(), end


def clear_spans(out: str) -> None:
    """Remove what a job that was cut off has left of spans. Raises StorageError."""
    place = joined(out, JOB_FOLDER, "spans")
    if not is_remote(out):
        shutil.rmtree(place, ignore_errors=True)
        return
    store, path = storage.open_store(place)
    with suppress(SourceNotFoundError):
        storage.again(place, lambda: store.rm(path, recursive=True))


def _folder(job: Job, source: Source) -> Path:
    return job.out / JOB_FOLDER / "spans" / _short(source.stream_id)


def _remote_folder(job: FarJob, source: Source) -> str:
    assert job.remote_out is not None
    return joined(job.remote_out, JOB_FOLDER, "spans", _short(source.stream_id))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
