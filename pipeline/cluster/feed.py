"""Which source is next, and what becomes of one that failed. Knows no workers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from pipeline.cluster.catalogue import Catalogue, Task
from pipeline.cluster.errands import Cut, FarReport, Join, Part, Span, Whole
from pipeline.cluster.ledger import Ledger
from pipeline.restarts import Restarts
from pipeline.sources import Source
from pipeline.stages import Job, SourceReport

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 2.0, 60.0  # of a source that failed; it doubles
_ANOTHER = "another run is writing to"  # as `lock_folder` says it


@dataclass(frozen=True)
class Work:
    """A source on its way through the job.

    Attributes:
        source: the stream.
        restarts: the deaths of its processes so far.
        part: which part of it; None for all, or to see whether it is to be cut.
        root: what it was found under; who sees that, sees it.
    """

    source: Source
    restarts: Restarts
    part: Part | None = None
    root: str = ""

    @classmethod
    def on(cls, job: Job, source: Source) -> Work:
        return cls(source, Restarts(job, source))


class Feed(Protocol):
    """Where sources come from, and where they go back to."""

    def take(self, unseen: Sequence[str]) -> Work | None:
        """The next source to work on, None if there is none just now."""
        ...

    def pending(self) -> int:
        """Sources that wait, now or until a pause is over; none once it is stopped."""
        ...

    def reported(self, work: Work, report: SourceReport) -> Iterator[SourceReport]:
        """A source has ended, well or not: what the user is told."""
        ...

    def cut(self, work: Work, cut: Cut) -> None:
        """A source is to be labelled in spans."""
        ...

    def lost(self, work: Work) -> Iterator[SourceReport]:
        """A source's node is gone: it is to be gone on with elsewhere."""
        ...

    def stop(self) -> None:
        """Give nothing out any more."""
        ...


class Fixed:
    """The sources of a plain run: each is worked on once, in order."""

    def __init__(self, job: Job, sources: Sequence[Source]) -> None:
        self._job, self._waiting = job, list(reversed(sources))
        self._stopped = False

    def take(self, unseen: Sequence[str]) -> Work | None:
        return Work.on(self._job, self._waiting.pop()) if self.pending() else None

    def pending(self) -> int:
        return 0 if self._stopped else len(self._waiting)

    def reported(self, work: Work, report: SourceReport) -> Iterator[SourceReport]:
        yield report

    def cut(self, work: Work, cut: Cut) -> None:
        raise AssertionError("a plain run cuts nothing")

    def lost(self, work: Work) -> Iterator[SourceReport]:
        self._waiting.append(work.source)
        yield from ()

    def stop(self) -> None:
        self._stopped = True


@dataclass
class Parts:
    """A source that is labelled in spans.

    Attributes:
        left: spans that are not labelled yet.
        begins: index of each span's first frame.
        given_up: one of them has failed for good, or the source cannot be cut after all.
    """

    left: set[int]
    begins: tuple[int, ...]
    given_up: bool = False


class Retried:
    """The sources of a job: one that fails is tried again, and after some tries put aside.

    Args:
        job: what all sources have in common.
        catalogue: the sources, and how far they are.
        ledger: where it is noted for good.
        tries: after so many failures a source is put aside.
        tell: is told of failures that will be tried again.

    Attributes:
        fatal: why nothing will work before somebody has done something; None if nothing is wrong.
        retries: tries beyond each source's first.
        began: `time.monotonic()` when the first source was given out, None before.
    """

    def __init__(
        self,
        job: Job,
        catalogue: Catalogue,
        ledger: Ledger,
        tries: int,
        tell: Callable[[str], None],
    ) -> None:
        self._job, self._catalogue, self._ledger = job, catalogue, ledger
        self._tries, self._tell = tries, tell
        self._left = catalogue.counts().left
        self._running: dict[str, Task] = {}
        self._lost: dict[str, Restarts] = {}
        self._orphaned: set[str] = set()  # a node that was cut off may work on them still
        self._parts: dict[str, Parts] = {}
        self._ready: deque[Work] = deque()  # parts of sources that have begun
        self._stopped = False
        self.fatal: str | None = None
        self.retries = 0
        self.began: float | None = None

    def take(self, unseen: Sequence[str]) -> Work | None:
        if self.began is None:
            self.began = time.monotonic()
        if not self.pending():
            return None
        for place, work in enumerate(self._ready):
            if work.root not in unseen:
                del self._ready[place]
                return work
        task = self._catalogue.take(time.monotonic(), unseen) if self._left else None
        if task is None:
            return None
        self._left -= 1
        name = task.source.stream_id
        self._running[name] = task
        # What a try has made stays if only its delivery failed.
        job = replace(self._job, resume=True) if task.tries else self._job
        restarts = self._lost.pop(name, None) or Restarts(job, task.source)
        return Work(task.source, restarts, root=task.root)

    def pending(self) -> int:
        return 0 if self._stopped else self._left + len(self._ready)

    def cut(self, work: Work, cut: Cut) -> None:
        begins = tuple(span.begin for span in cut.spans)
        self._parts[cut.stream_id] = Parts(set(range(len(begins))), begins)
        for span in cut.spans:
            self._ready.append(self._anew(work, span))

    def reported(self, work: Work, report: SourceReport) -> Iterator[SourceReport]:
        name = work.source.stream_id
        if isinstance(work.part, Span):
            yield from self._span_reported(work, work.part, report)
            return
        self._parts.pop(name, None)
        if isinstance(work.part, Join) and isinstance(report, FarReport) and not report.again:
            self._label_whole(work, report)
            return
        task = self._running.pop(name)
        if report.error is None and not report.interrupted:
            self._catalogue.finish(name, report.frames)
            self._note(task, "done", frames=report.frames)
        elif report.error is not None:
            report = self._failed(task, report)
            if report.error is None:
                return
        yield _plain(report)

    def _span_reported(
        self, work: Work, span: Span, report: SourceReport
    ) -> Iterator[SourceReport]:
        """When the last span is labelled, they are joined; if one is not, the source is labelled whole."""
        parts = self._parts.get(work.source.stream_id)
        if parts is None or parts.given_up:
            return
        if report.interrupted:
            yield _plain(report)
            parts.given_up = True
        elif report.error is None:
            parts.left.discard(span.number)
            if not parts.left:
                self._ready.append(self._anew(work, Join(parts.begins)))
        else:
            parts.given_up = True
            if isinstance(report, FarReport) and report.fatal:
                yield from self.reported(replace(work, part=None), report)
                return
            self._label_whole(work, report)

    def _label_whole(self, work: Work, report: SourceReport) -> None:
        self._tell(f"{report.error}; labelled whole instead")
        self._ready.append(self._anew(work, Whole()))

    def _anew(self, work: Work, part: Part) -> Work:
        return replace(work, restarts=Restarts(self._job, work.source), part=part)

    def lost(self, work: Work) -> Iterator[SourceReport]:
        """Its node is gone; after too many nodes the source is what ends them."""
        name = work.source.stream_id
        if work.restarts.count() is None:
            error = f"{work.source.uri}: each node that worked on it died"
            died = SourceReport(name, work.source.uri, error=error, process_died=True)
            yield from self.reported(replace(work, part=None), died)
        elif work.part is not None:
            self._ready.appendleft(work)
        else:
            self._orphaned.add(name)
            self._lost[name] = work.restarts
            task = self._running.pop(name)
            self._put_back(task, task.tries, 0.0)

    def stop(self) -> None:
        self._stopped = True  # what comes back later stays for --resume

    def _failed(self, task: Task, report: SourceReport) -> SourceReport:
        """What becomes of a source that failed: its last report, or one without error if it is not over."""
        name, error = task.source.stream_id, report.error or ""
        if isinstance(report, FarReport) and report.fatal:
            self.fatal = error
            self._put_back(task, task.tries, 0.0)
            self.stop()
            return replace(report, error=None)
        if name in self._orphaned and _ANOTHER in error:  # it ends when it finds itself cut off
            self._put_back(task, task.tries, time.monotonic() + FIRST_PAUSE_SECONDS)
            return replace(report, error=None)
        tries = task.tries + 1
        hopeless = isinstance(report, FarReport) and not report.again
        if hopeless or report.process_died or tries >= self._tries:
            self._catalogue.quarantine(name, tries, error)
            self._note(task, "failed", tries=max(tries, self._tries), error=error)
            often = f"; put aside after {tries} tries" if tries > 1 else ""
            return replace(report, error=error + often)
        pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** (tries - 1))
        self._note(task, "failed", tries=tries, error=error)
        self._put_back(task, tries, time.monotonic() + pause)
        when = "with --resume" if self._stopped else f"in {pause:.0f} s"
        self._tell(f"{error}; trying again {when} ({tries + 1} of {self._tries})")
        self.retries += not self._stopped
        return replace(report, error=None)

    def _put_back(self, task: Task, tries: int, not_before: float) -> None:
        self._catalogue.put_back(task.source.stream_id, tries, not_before)
        self._left += 1

    def _note(self, task: Task, state: str, **facts: object) -> None:
        self._ledger.note(
            {"id": task.source.stream_id, "version": task.version, "state": state, **facts}
        )


def _plain(report: SourceReport) -> SourceReport:
    return report.plain() if isinstance(report, FarReport) else report
