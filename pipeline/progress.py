"""What a person or a script sees of a run: a bar on a terminal, plain lines elsewhere, JSON on request."""

from __future__ import annotations

import json
import time
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
        self.frames: dict[str, int] = {}
        self.expected: dict[str, int | None] = {}
        self.reports = 0

    def update(self, event: RunEvent) -> None:
        if isinstance(event, Progress):
            self.first = self.first or (time.monotonic(), event.frames)
            self.expected[event.stream_id] = event.frame_count
        else:
            self.reports += 1
            if event.error is not None:  # it adds nothing to what is done or left
                self.expected.pop(event.stream_id, None)
                self.frames.pop(event.stream_id, None)
                return
            self.expected[event.stream_id] = event.frames
        self.frames[event.stream_id] = event.frames

    @property
    def done(self) -> int:
        return sum(self.frames.values())

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
        known = list(self.expected.values())
        if not known or any(count is None for count in known):
            return None
        begun = sum(max(count or 0, self.frames[name]) for name, count in self.expected.items())
        return round(begun * max(sources, len(known)) / len(known))


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

    def show(self, event: RunEvent) -> None:
        self.meter.update(event)
        if isinstance(event, SourceReport):
            self._show_report(event)
        total = self.meter.total(self.sources)
        if self.has_bar:
            what = f"{self.meter.reports}/{self.sources} {event.stream_id}"
            self.tick(self.meter.done, total, what, fps=f"{self.meter.fps:.1f} fps")
        elif not self.quiet and time.monotonic() - self._shown >= LINE_EVERY_SECONDS:
            self._shown = time.monotonic()
            self.line(self._summed_up(total))

    def summary(self) -> None:
        """One line at the end."""
        if not self.quiet:
            good = self.meter.reports - self.failed
            failed = f", {self.failed} failed" if self.failed else ""
            seconds = time.monotonic() - self.meter.began
            self.line(
                f"{good} of {self.sources} done{failed}: {self.meter.done} frames in"
                f" {seconds:.1f} s ({self.meter.fps:.1f} fps)"
            )

    def _summed_up(self, total: int | None) -> str:
        done, fps = self.meter.done, self.meter.fps
        of = f"/{total}" if total else ""
        left = f", {format_seconds((total - done) / fps)} left" if total and fps else ""
        return f"{done}{of} frames, {fps:.1f} fps{left}"

    def _show_report(self, report: SourceReport) -> None:
        if report.error is not None:
            self.failed += 1
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
