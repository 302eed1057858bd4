"""What a worker does around a source's way through the stages: fetch it, see whether it is done already, and
bring the results where they belong. Plain code: it runs the same in one process and in actors."""

from __future__ import annotations

import hashlib
import os
import posixpath
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pipeline.cluster import storage
from pipeline.cluster.storage import CredentialsError, is_remote, joined
from pipeline.errors import PipelineError
from pipeline.journal import JOURNAL
from pipeline.parts import lock_folder, output_errors
from pipeline.resume import survey
from pipeline.seek import KeyPacket
from pipeline.settings import scratch_folder
from pipeline.sinks import MANIFEST
from pipeline.sources import Source
from pipeline.stages import Job, Progress, RunEvent, SourceReport, failure, root_cause

JOB_FOLDER = ".roadmask"  # in a job's output folder: what is the job's own


class NotAgainError(PipelineError):
    """Something that another try would not make better."""


@dataclass(frozen=True)
class Span:
    """A part of a source that is labelled by itself.

    Attributes:
        number: its place among the spans.
        begin: index of its first frame in the source.
        warm: frames before that which are labelled too, and thrown away.
        beyond: frames at its end that belong to the next span: labelled here too, to be compared.
        stamps: time stamps in ticks of all its frames.
        key: the packet that decoding begins with, None for the source's first.
    """

    number: int
    begin: int
    warm: int
    beyond: int
    stamps: tuple[int, ...]
    key: KeyPacket | None


@dataclass(frozen=True)
class Join:
    """All spans are labelled: the results can be written.

    Attributes:
        begins: index of each span's first frame.
    """

    begins: tuple[int, ...]


@dataclass(frozen=True)
class Whole:
    """Not to be cut, however long it is."""


@dataclass(frozen=True)
class Cut:
    """What a worker says of a source that is to be labelled in spans; it comes instead of a report."""

    stream_id: str
    spans: tuple[Span, ...]


Part = Span | Join | Whole
FarEvent = RunEvent | Cut
Begin = Callable[[Job, Source], Iterator[FarEvent]]


@dataclass(frozen=True)
class FarJob(Job):
    """A job whose workers may be anywhere.

    Attributes:
        remote_out: where the results go in the end; `out` is a folder of the worker's then. None for `out`.
        bundle_seconds: events of a source travel together, those of this long.
        split_seconds: sources of twice this are labelled in spans about so long; None for no such.
    """

    remote_out: str | None = None
    bundle_seconds: float = 0.0
    split_seconds: float | None = None

    def identity(self, source: Source) -> dict[str, Any]:
        found = super().identity(source)
        return found if self.split_seconds is None else {**found, "the split": self.split_seconds}


@dataclass(frozen=True)
class FarReport(SourceReport):
    """A report, and what it means for the job.

    Attributes:
        again: whether another try may go better.
        fatal: nothing of the job will work before somebody has done something.
    """

    again: bool = True
    fatal: bool = False

    def plain(self) -> SourceReport:
        return SourceReport(**{f.name: getattr(self, f.name) for f in fields(SourceReport)})


def settled(job: Job) -> Job:
    """The job as this machine's workers do it."""
    if isinstance(job, FarJob) and job.remote_out is not None:
        return replace(job, out=scratch_folder() / f"out-{_short(job.remote_out)}")
    return job


def attended(
    job: Job, source: Source, resume: bool, begin: Begin, deliver: bool = True
) -> Iterator[FarEvent]:
    """A source's events, with all that is to be done before and after; always ends in a report, or a `Cut`.

    Args:
        resume: see first whether it is done already.
        begin: gives the events of the source as it lies here.
        deliver: whether what it leaves are the source's results.
    """
    if not isinstance(job, FarJob):
        yield from begin(job, source)
        return
    try:
        yield from _attended(job, source, resume, begin, deliver)
    except Exception as error:
        found = failure(source, error)
        cause = root_cause(error)
        yield FarReport(
            **vars(found), again=not isinstance(cause, NotAgainError),
            fatal=isinstance(cause, CredentialsError),
        )  # fmt: skip


def _attended(
    job: FarJob, source: Source, resume: bool, begin: Begin, deliver: bool
) -> Iterator[FarEvent]:
    with local_copy(source) as here:
        as_named = replace(job, facts={**job.facts, "source": source.uri})
        if resume and (report := _looked_up(as_named, here)) is not None:
            yield replace(report, source=source.uri)
            return
        for event in begin(as_named, here):
            if not isinstance(event, SourceReport):
                yield event
                continue
            report = _renamed(event, here, source)
            if deliver and job.remote_out is not None and report.error is None:
                report = _delivered(job, source, report)
            yield report


def _looked_up(job: FarJob, source: Source) -> SourceReport | None:
    """The report of a source that is done, or of something else; None if there is something to do."""
    folder = job.folder(source)
    if job.remote_out is not None and not (folder / MANIFEST).exists():
        there = storage.read(joined(job.remote_out, source.stream_id, MANIFEST))
        if there is not None:
            with output_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / MANIFEST).write_bytes(there)
    found = survey(job, [source])
    for report in found.refused:
        if job.resume:
            return FarReport(**vars(report), again=False)
        _forget(job, folder)
    for report in found.done:
        if job.remote_out is not None:  # it may have died between the results and their delivery
            return _delivered(job, source, report)
        return report
    return None


def _forget(job: FarJob, folder: Path) -> None:
    """Nobody asked to go on with what another job has left: not its journal, nor a manifest fetched here."""
    with output_errors(folder):
        (folder / JOURNAL).unlink(missing_ok=True)
        if job.remote_out is not None:
            (folder / MANIFEST).unlink(missing_ok=True)


def _delivered(job: FarJob, source: Source, report: SourceReport) -> SourceReport:
    """Send a source's results; the manifest, which vouches for the others, goes last and comes off first.

    Raises StorageError; then what is here stays here.
    """
    assert job.remote_out is not None
    folder, there = job.folder(source), joined(job.remote_out, source.stream_id)
    if report.interrupted:
        return replace(report, folder=None)
    files = [
        path for path in sorted(folder.rglob("*")) if path.is_file() and _is_result(folder, path)
    ]
    results = [path for path in files if path != folder / MANIFEST]
    if results:
        storage.remove(joined(there, MANIFEST))
        for path in results:
            storage.put(path, joined(there, *path.relative_to(folder).parts))
        storage.put(folder / MANIFEST, joined(there, MANIFEST))
    shutil.rmtree(folder, ignore_errors=True)
    return replace(report, folder=there)


def _is_result(folder: Path, path: Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(folder).parts)


@contextmanager
def local_copy(source: Source) -> Iterator[Source]:
    """The source as a file of this machine; what was fetched is removed by whoever needs it last.

    Raises StorageError, SourceNotFoundError or OutputError.
    """
    files = source.files or (source.uri,)
    if not any(map(is_remote, files)):
        yield source
        return
    folder = scratch_folder() / f"in-{_short(source.uri)}"
    users = folder / "users"
    me = users / f"{os.getpid()}-{time.monotonic_ns()}"
    with _alone(), output_errors(folder):
        users.mkdir(parents=True, exist_ok=True)
        me.touch()
    try:
        local = [folder / _file_name(file) for file in files]
        for file, target in zip(files, local, strict=True):
            storage.fetch(file, target)
        names = tuple(map(str, local))
        yield replace(source, uri=str(folder) if source.files else names[0],
                      files=names if source.files else ())  # fmt: skip
    finally:
        with _alone():
            me.unlink(missing_ok=True)
            if not any(_is_alive(user) for user in users.iterdir()):
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _alone() -> Iterator[None]:
    """Nobody else of this machine comes or goes meanwhile."""
    folder = scratch_folder()
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    unlock = lock_folder(folder, patience_seconds=60.0)
    try:
        yield
    finally:
        unlock()


def _file_name(uri: str) -> str:
    web = uri.partition("://")[0].lower() in ("http", "https")
    return posixpath.basename(unquote(urlsplit(uri).path) if web else uri) or "source"


def _is_alive(user: Path) -> bool:
    with suppress(OSError, ValueError):
        os.kill(int(user.name.partition("-")[0]), 0)
        return True
    return False


def _renamed(report: SourceReport, here: Source, source: Source) -> SourceReport:
    """The report in the user's words: of the source as it was named, not of its copy."""

    def said(text: str) -> str:
        return text.replace(here.uri, source.uri)

    return replace(
        report, source=source.uri, error=None if report.error is None else said(report.error),
        notes=tuple(map(said, report.notes)),
    )  # fmt: skip


def bundled(job: Job, events: Iterator[FarEvent]) -> Iterator[tuple[FarEvent, ...]]:
    """The events in bundles, so that many workers do not wear their driver out."""
    seconds = job.bundle_seconds if isinstance(job, FarJob) else 0.0
    waiting: list[FarEvent] = []
    last = time.monotonic()
    for event in events:
        waiting.append(event)
        if not isinstance(event, Progress) or time.monotonic() - last >= seconds:
            yield tuple(waiting)
            waiting, last = [], time.monotonic()
    if waiting:
        yield tuple(waiting)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
