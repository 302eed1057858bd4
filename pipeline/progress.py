"""What a person or a script sees of a run: a bar on a terminal, plain lines elsewhere, JSON on request."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import asdict
from typing import Self, TextIO

from models.terminal import Terminal
from pipeline.stages import Progress, RunEvent, SourceReport

LINE_EVERY_SECONDS = 5.0


class Meter:
    """Frames done, frames a second and time left, over all sources of a run."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.first: tuple[float, int] | None = None  # when the first frames were done, and how many
        self.frames: dict[str, int] = {}  # of those under way
        self.expected: dict[str, int | None] = {}
        self.finished = self.finished_frames = 0
        self.reports = 0
        self.share: float | None = None  # of the whole that is done, where somebody knows

    def update(self, event: RunEvent) -> None:
        if isinstance(event, Progress):
            self.first = self.first or (time.monotonic(), event.frames)
            self.expected[event.stream_id] = event.frame_count
            self.frames[event.stream_id] = event.frames
            return
        self.reports += 1
        self.expected.pop(event.stream_id, None)
        self.frames.pop(event.stream_id, None)
        if event.error is None:  # else it adds nothing to what is done or left
            self.finished += 1
            self.finished_frames += event.frames

    @property
    def done(self) -> int:
        return self.finished_frames + sum(self.frames.values())

    @property
    def fps(self) -> float:
        """Frames a second since the first batch was done; starting up is left out, 0 until then."""
        if self.first is None or self.done <= self.first[1]:
            return 0.0
        return (self.done - self.first[1]) / max(time.monotonic() - self.first[0], 1e-3)

    def total(self, sources: int) -> int | None:
        """Frames in all, None while a source that has begun has not said how many it holds.

        Sources that have not begun are taken to be as long as those that have.
        """
        known = self.finished + len(self.expected)
        if not known or any(count is None for count in self.expected.values()):
            return None
        begun = sum(max(count or 0, self.frames[name]) for name, count in self.expected.items())
        return round((self.finished_frames + begun) * max(sources, known) / known)

    def seconds_left(self, sources: int) -> float | None:
        """How long it will take at this speed, None while nobody can tell."""
        if self.share:
            return (time.monotonic() - self.began) * (1 - self.share) / self.share
        total = self.total(sources)
        return (total - self.done) / self.fps if total and self.fps else None


class Display(Terminal):
    """Shows a run on standard error, and with `as_json` a line a source on standard output.

    Args:
        quiet: show errors only.
        verbose: show decisions, and tracebacks of errors nobody foresaw.
        as_json: print each report as a line of JSON.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        verbose: bool = False,
        as_json: bool = False,
        stream: TextIO | None = None,
    ) -> None:
        columns = ("{task.completed}/{task.total}", "{task.fields[fps]}")
        super().__init__(stream, columns=columns, bar=not quiet)
        self.quiet, self.verbose, self.as_json = quiet, verbose, as_json
        self.sources = 0
        self.meter = Meter()
        self.failed = 0
        self._reasons: Counter[str] = Counter()
        self._shown = 0.0

    def __enter__(self) -> Self:
        super().__enter__()
        self.tick(0, None, "starting", fps="")
        return self

    def begin(self, sources: int) -> None:
        """How many sources there are; the run starts now."""
        self.sources = sources
        if not (self.has_bar or self.quiet):
            self.line(f"starting: {sources} source{'s' if sources != 1 else ''}")

    def warn(self, line: str) -> None:
        """What everybody should know who hasn't asked for quiet."""
        if not self.quiet:
            self.line(line)

    def say(self, line: str) -> None:
        """A decision, for those who asked with -v."""
        if self.verbose:
            self.line(line)

    def far(self, share: float) -> None:
        """How much of a whole job is done, 0 to 1; the time left is estimated from it."""
        self.meter.share = share

    def show(self, event: RunEvent) -> None:
        self.meter.update(event)
        if isinstance(event, SourceReport):
            self._show_report(event)
        total = self.meter.total(self.sources)
        if self.has_bar:
            failed = f", {self.failed} failed" if self.failed else ""
            what = f"{self.meter.reports}/{self.sources}{failed} {event.stream_id}"
            self.tick(self.meter.done, total, what, fps=f"{self.meter.fps:.1f} fps")
        elif not self.quiet and time.monotonic() - self._shown >= LINE_EVERY_SECONDS:
            self._shown = time.monotonic()
            self.line(self._summed_up(total))

    def summary(self) -> None:
        """One line at the end, and one for each reason why several sources failed."""
        for reason, times in self._reasons.items():
            if times > 1:
                more = f"{times - 1} more source{'s' if times > 2 else ''}"
                self.line(f"error: {more} failed for the same reason: {reason}")
        if not self.quiet:
            good = self.meter.reports - self.failed
            failed = f", {self.failed} failed" if self.failed else ""
            seconds = time.monotonic() - self.meter.began
            self.line(
                f"{good} of {self.sources} done{failed}: {self.meter.done} frames in"
                f" {seconds:.1f} s ({self.meter.fps:.1f} fps)"
            )

    def _summed_up(self, total: int | None) -> str:
        done, fps, seconds = self.meter.done, self.meter.fps, self.meter.seconds_left(self.sources)
        of = f"/{total}" if total and self.meter.share is None else ""
        left = f", {format_seconds(seconds)} left" if seconds is not None and fps else ""
        sources = ""
        if self.meter.share is not None:  # of a job, what counts are the sources
            failed = f", {self.failed} failed" if self.failed else ""
            sources = f"{self.meter.finished}/{self.sources} sources done{failed}, "
        return f"{sources}{done}{of} frames, {fps:.1f} fps{left}"

    def _show_report(self, report: SourceReport) -> None:
        if report.error is not None:
            self.failed += 1
            # One that names no source, such as an engine's, is everybody's, and said once.
            reason = report.error.partition("; --resume")[0]
            self._reasons[reason] += report.source not in reason
            if self._reasons[reason] <= 1:
                self.line(f"error: {report.error}")
            if report.details and self.verbose:
                self.line(report.details)
        if not self.quiet:
            for note in report.notes:
                self.line(f"note: {report.source}: {note}")
        if self.as_json:
            print(json.dumps(asdict(report)), flush=True)  # ASCII: names need not be UTF-8


def format_seconds(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
