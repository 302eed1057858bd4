"""A job over many machines, from the addresses of its sources to its report.

What is done stands in the ledger beside the results, so the same command with --resume does the rest. A
source that fails is tried again after a pause, wherever a lane is free; after some tries it is put aside.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.cluster import storage
from pipeline.cluster.catalogue import DONE, QUARANTINED, Catalogue
from pipeline.cluster.errands import JOB_FOLDER, Cut, Span, settled
from pipeline.cluster.feed import Retried
from pipeline.cluster.joining import Errand, clear_spans
from pipeline.cluster.ledger import Ledger, Lock, write_report
from pipeline.cluster.listing import Listed, listed
from pipeline.cluster.plan import FarPlan, Hands, Scene, Silent, Teller
from pipeline.cluster.spans import make_span_decoder
from pipeline.cluster.storage import CredentialsError, is_remote, joined
from pipeline.engines import EngineChoice, check_fit, choose_engine
from pipeline.errors import ConfigError, OutputError
from pipeline.frames import LabelItem
from pipeline.journal import ResumeError, check_identity
from pipeline.parts import write_whole
from pipeline.sinks import MANIFEST
from pipeline.sources import Source, inside_its_output
from pipeline.stages import Job, RunEvent, SourceReport, make_segmenter, one_line, process
from pipeline.versions import versions

_MOST_FAILURES = 1000  # that the report names; the ledger has all
_TOKEN = "seen-by-all"


class FarRun:
    """One run of a job. Its `events` end in the report."""

    def __init__(self, plan: FarPlan, stop: Callable[[], bool], teller: Teller | None) -> None:
        self.plan, self._stop, self.teller = plan, stop, teller or Silent()
        self._stack = ExitStack()
        self._began, self._started_at = time.monotonic(), _now()
        self.failed: list[SourceReport] = []
        self._scene: Scene | None = None
        self._frames = 0
        self._told = 0.0

    def events(self) -> Iterator[RunEvent]:
        """Raises ConfigError, OutputError, StorageError or StageError where nothing can be done at all."""
        with self._stack as stack:
            if self.plan.placement != "inline":
                from pipeline.actors import cluster  # Ray takes a second to import

                stack.enter_context(cluster(self.plan.address))
            self.lock = stack.enter_context(Lock(self.plan.out))
            self.catalogue = stack.enter_context(Catalogue())
            yield from self._list()
            yield from self._work()

    def _list(self) -> Iterator[RunEvent]:
        """Fill the catalogue; reports of what cannot be used."""

        def usable() -> Iterator[Listed]:
            for item in listed(self.plan.sources):
                if isinstance(item, Listed):
                    yield item
                else:
                    text, error = item
                    self.failed.append(SourceReport(text, text, error=one_line(error)))

        self.catalogue.fill(usable())
        self._refuse_overwriting()
        self.teller.begin(self.catalogue.counts().left + len(self.failed))
        yield from self.failed

    def _refuse_overwriting(self) -> None:
        """Sources that would be replaced by their own results are left out."""
        if is_remote(self.plan.out):
            return
        out = Path(self.plan.out)
        held = (os.path.abspath(out), os.path.realpath(out))
        refused = [
            (name, uri) for name, uri in self.catalogue.all_sources()
            if not is_remote(uri)
            and (uri.startswith(held) or os.path.realpath(uri).startswith(held))
            and inside_its_output(Source(name, uri), out)
        ]  # fmt: skip
        for name, uri in refused:
            error = f"{uri}: its results would go to {out / name}, where it lies itself: give another --out"
            self.failed.append(SourceReport(name, uri, error=error))
            self.catalogue.leave_out(name)

    def _work(self) -> Iterator[RunEvent]:
        job, crew = self._hands()
        ledger = Ledger(self.plan.out, anew=not self.plan.resume)
        self._stack.callback(ledger.close)
        clear_spans(self.plan.out)
        yield from self._recalled(job, ledger)
        feed = Retried(job, self.catalogue, ledger, self.plan.tries, self.teller.warn)
        try:
            yield from self._watched(crew(feed))
        finally:
            try:
                ledger.sync()
            finally:
                self._report(job, feed)
        if feed.fatal is not None:
            raise CredentialsError(f"{feed.fatal}; --resume goes on")

    def _watched(self, events: Iterator[RunEvent]) -> Iterator[RunEvent]:
        for event in events:
            self._tell_share()
            if isinstance(event, SourceReport):
                self._frames += event.frames
            if self.lock.lost.is_set():
                raise OutputError(
                    f"another job has taken over {self.plan.out}: this one gave no sign of life for too"
                    " long"
                )
            yield event
        self._tell_share(every_seconds=0.0)

    def _tell_share(self, every_seconds: float = 1.0) -> None:
        """Tell how much is done, now and then: to count a hundred thousand sources takes its time."""
        if time.monotonic() - self._told >= every_seconds:
            self._told = time.monotonic()
            counts = self.catalogue.counts()
            self.teller.far(counts.bytes_done / max(1, counts.bytes_all))

    def _recalled(self, job: Job, ledger: Ledger) -> Iterator[RunEvent]:
        """Apply the ledger of an earlier run: reports of what it has finished, or given up.

        Raises ConfigError if that was another job.
        """
        identity = _identity(job)
        before = [r for r in ledger.records() if "job" in r]
        if before:
            try:
                check_identity(Path(self.plan.out), before[-1]["job"], identity)
            except ResumeError as changed:
                raise ConfigError(str(changed)) from changed
        else:
            ledger.note({"job": identity, "began": self._started_at})
        self.catalogue.recall((r for r in ledger.records() if "id" in r), self.plan.tries)
        for name, uri, frames, _ in self.catalogue.earlier(DONE):
            folder = joined(self.plan.out, name)
            if not is_remote(folder) and not (Path(folder) / MANIFEST).exists():
                self.catalogue.forget(name)  # somebody has removed the results
                continue
            yield SourceReport(name, uri, frames, folder=folder)
        for name, uri, _, error in self.catalogue.earlier(QUARANTINED):
            more = f"{error}; put aside by an earlier run: --tries {self.plan.tries + 1} tries it again"
            yield SourceReport(name, uri, error=more)

    def _hands(self) -> tuple[Job, Callable[[Retried], Iterator[RunEvent]]]:
        """The job, and what works on it."""
        if self.plan.placement != "inline":
            from pipeline.cluster.hands import far_hands

            self._scene = Scene(
                self.plan, self.teller, self._stop, self._token(),
                tuple(self.catalogue.roots()), self.catalogue.counts().left,
            )  # fmt: skip
            return far_hands(self._scene)
        choice, form = self._choose_here()
        job = self.plan.make_job(Hands(choice, "inline", "asked for", 1, form_sha256=form))
        return job, lambda feed: _inline(settled(job), feed, self._stop)

    def _choose_here(self) -> tuple[EngineChoice, str | None]:
        from models.spec import find_model

        choice = choose_engine(self.plan.engine, self.plan.precision)
        return choice, check_fit(choice, find_model(self.plan.model))

    def _token(self) -> tuple[str, bytes]:
        """A small file in the output folder that all nodes must see."""
        place, content = joined(self.plan.out, JOB_FOLDER, _TOKEN), self._started_at.encode()
        if is_remote(place):
            storage.write(place, content)
        else:
            write_whole(Path(place), content)
        return place, content

    def _report(self, job: Job, feed: Retried) -> None:
        counts, seconds = self.catalogue.counts(), time.monotonic() - self._began
        with suppress(OutputError, storage.StorageError):  # the results are there, and the ledger
            write_report(self.plan.out, {
                "sources": counts.left + counts.running + counts.done + counts.quarantined
                + len(self.failed),
                "done": counts.done, "failed": counts.quarantined + len(self.failed),
                "left": counts.left + counts.running, "retries": feed.retries,
                "frames": counts.frames, "seconds": round(seconds, 1),
                    "working_seconds": round(time.monotonic() - (feed.began or time.monotonic()), 2),
                "fps": round(self._frames / max(seconds, 1e-3), 1),
                "nodes": self._scene.nodes if self._scene else [],
                "nodes_left_out": self._scene.left_out if self._scene else [],
                "engine": job.facts["engine"], "model": job.facts["model"],
                "placement": job.facts["placement"], "versions": versions(),
                "failures": [
                    *({"id": r.stream_id, "source": r.source, "tries": 1, "error": r.error}
                      for r in self.failed),
                    *self.catalogue.failures(_MOST_FAILURES),
                ],
                "stopped": self._stop(), "fatal": feed.fatal,
                "started_at": self._started_at, "finished_at": _now(),
            })  # fmt: skip


def _inline(job: Job, feed: Retried, stop: Callable[[], bool]) -> Iterator[RunEvent]:
    """Work in this process, one source after the other."""
    segmenter = make_segmenter(job)

    def whole(job: Job, source: Source, resume: bool) -> Iterator[RunEvent]:
        return process(job, source, segmenter, stop=stop, threads=False, resume=resume)

    def span(job: Job, source: Source, span: Span) -> Generator[LabelItem, None, None]:
        with (
            make_span_decoder(job, source, span, stop) as decoder,
            closing(segmenter.labels(decoder)) as items,
        ):
            yield from items

    errand = Errand(whole, span)
    while feed.pending() and not stop():
        work = feed.take(())
        if work is None:
            time.sleep(0.1)  # all that is left is in a pause
            continue
        for event in errand.events(job, work.source, work.restarts.resume, work.part):
            if isinstance(event, Cut):
                feed.cut(work, event)
            elif isinstance(event, SourceReport):
                yield from feed.reported(work, event)
            else:
                yield event


def _identity(job: Job) -> dict[str, Any]:
    """What all results of the job depend on, whatever the source."""
    identity = job.identity(Source("any", "any://"))
    return {name: value for name, value in identity.items() if name != "the source"}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
