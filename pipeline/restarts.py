"""How often a source is gone on with after a process that worked on it has died, and how soon."""

from __future__ import annotations

from pipeline.journal import frames_kept
from pipeline.parts import clear_stale
from pipeline.sources import Source
from pipeline.stages import Job, SourceReport, with_way_on

# A source whose processes die so often without a checkpoint in between is given up.
MOST_DEATHS = 5
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 8.0  # it doubles with each death


class Restarts:
    """The deaths of one source's processes."""

    def __init__(self, job: Job, source: Source) -> None:
        self._job, self._source = job, source
        self._deaths = self._kept = 0

    @property
    def deaths(self) -> int:
        """How many there were in a row without a checkpoint in between."""
        return self._deaths

    @property
    def resume(self) -> bool:
        """Whether the source is to be gone on with rather than begun anew."""
        return self._job.resume or self._deaths > 0

    def count(self) -> float | None:
        """Count a death; seconds to wait before going on, None to give up."""
        kept = frames_kept(self._job.folder(self._source))
        self._deaths = 1 if kept > self._kept else self._deaths + 1
        self._kept = kept
        if self._deaths > MOST_DEATHS:
            return None
        return min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** (self._deaths - 1))

    def give_up(self, report: SourceReport) -> SourceReport:
        """The source's last report; what nobody can go on with is removed."""
        folder = self._job.folder(self._source)
        if not frames_kept(folder):
            clear_stale(folder)  # the dead could not tidy up
        return with_way_on(self._job, self._source, report)
