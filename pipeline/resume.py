"""What `--resume` finds: which sources are done, which can be gone on with, and which must not be."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.journal import (
    JOURNAL,
    PATIENCE_SECONDS,
    ResumeError,
    check_identity,
    frames_kept,
    read,
)
from pipeline.parts import tidy_finished
from pipeline.secrecy import mask
from pipeline.sinks import MANIFEST
from pipeline.sources import Source
from pipeline.stages import Job, SourceReport, one_line


@dataclass(frozen=True)
class Survey:
    """The sources of a run, by what an earlier run has left of them.

    Attributes:
        left: to be begun or gone on with, in order.
        done: reports of those that are finished.
        refused: reports of those whose results are of something else.
    """

    left: tuple[Source, ...]
    done: tuple[SourceReport, ...]
    refused: tuple[SourceReport, ...]


def survey(job: Job, sources: Sequence[Source]) -> Survey:
    """Look at what lies in the output folder."""
    left, done, refused = [], [], []
    for source in sources:
        try:
            report = _finished(job, source)
        except ResumeError as error:
            refused.append(SourceReport(source.stream_id, source.uri, error=one_line(error)))
            continue
        if report is None:
            left.append(source)
        else:
            done.append(report)
    return Survey(tuple(left), tuple(done), tuple(refused))


def unfinished(job: Job, sources: Sequence[Source]) -> Iterator[str]:
    """A line for each source that was left unfinished and is about to be begun anew."""
    for source in sources:
        frames = frames_kept(job.folder(source))
        if frames:
            yield (
                f"{mask(source.uri)}: begun anew; --resume would go on with the {frames} frames of an"
                " unfinished run"
            )


def _finished(job: Job, source: Source) -> SourceReport | None:
    """The report of a source that is done, None if it is not.

    Raises ResumeError if its results, finished or not, are of something else.
    """
    folder = job.folder(source)
    manifest = _manifest(folder)
    try:
        record = read(folder)
    except ResumeError:
        return None  # its sink will say so
    # A crash may leave the record of a run whose manifest stands already.
    same_run = record is not None and record.started_at == manifest.get("started_at")
    if record is not None and not (same_run and not manifest.get("interrupted")):
        check_identity(folder, record.identity, job.identity(source))
        return None
    with suppress(OSError):
        (folder / JOURNAL).unlink(missing_ok=True)
    if not manifest or manifest.get("interrupted"):
        return None
    other = check_identity(folder, manifest.get("identity") or {}, job.identity(source))
    # An actor that outlived its driver for a moment may have finished what the next run had begun anew.
    tidy_finished(folder, PATIENCE_SECONDS)
    return SourceReport(
        source.stream_id, source.uri, manifest["frames_out"],
        notes=("an earlier run has finished it" + (f": {other}" if other else ""),),
        folder=str(folder),
    )  # fmt: skip


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and "frames_out" in found else {}
