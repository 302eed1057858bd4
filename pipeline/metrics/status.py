"""How a run stands: what `roadmask status` reads, from a small file in the output folder or over HTTP.

The file is replaced as a whole every other second; a run that was killed leaves its last one behind, and
its age tells.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import OutputError
from pipeline.stages import Progress, RunEvent, SourceReport

FILE_NAME = ".roadmask-status.json"
EVERY_SECONDS = 2.0
STALE_SECONDS = 30.0  # without a word for so long, a run is thought dead
STATES = ("running", "done", "failed", "interrupted")
_MOST_SHOWN = 20


@dataclass(frozen=True)
class RunStatus:
    """A run as it is.

    Attributes:
        state: one of `STATES`; "failed" once it has ended and some source failed.
        sources, ended, failed: how many there are, have ended, and failed of these; `sources` is None
            where nobody knows.
        frames, frames_total: written so far, and in all as far as is known.
        fps: frames a second since the first.
        left_seconds: until the end at that rate, None if unknown.
        began_at, updated_at: `time.time()`, seconds.
        working: frames done, and in all, of the sources worked on now.
        host, pid: where the run is led from.
        metrics_url: where its metrics are, None if nowhere.
    """

    state: str
    sources: int | None
    ended: int
    failed: int
    frames: int
    frames_total: int | None
    fps: float
    left_seconds: float | None
    began_at: float
    updated_at: float
    working: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    host: str = ""
    pid: int = 0
    metrics_url: str | None = None

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"state must be one of {', '.join(STATES)}, got {self.state!r}")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> RunStatus:
        """From JSON. Raises ValueError for what is no status."""
        try:
            known = {name: given[name] for name in cls.__dataclass_fields__ if name in given}
            working = {k: (v[0], v[1]) for k, v in known.pop("working", {}).items()}
            return cls(**known, working=working)
        except (TypeError, KeyError, IndexError, AttributeError) as error:
            raise ValueError(f"no status of a run: {error}") from error

    def silent_seconds(self, now: float) -> float:
        """For how long a run that should be running has said nothing; 0 if it has no reason to."""
        return max(0.0, now - self.updated_at) if self.state == "running" else 0.0


class StatusKeeper:
    """Keeps a run's status, and with a folder the file in it.

    Args:
        folder: of the outputs; None for no file.

    Attributes:
        sources: how many the run has; None while nobody knows.
        state: one of `STATES`.
        metrics_url: where its metrics are, None if nowhere.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.sources: int | None = None
        self.metrics_url: str | None = None
        self._file = folder / FILE_NAME if folder is not None else None
        self._began_at = time.time()
        self._first: tuple[float, int] | None = None
        self._frames = self._ended = self._failed = 0
        self._promised = 0  # frames of the sources that have begun, as their containers say
        self._begun = 0
        self._working: dict[str, tuple[int, int | None]] = {}
        self._written_at = 0.0
        self.state = "running"

    def update(self, event: RunEvent) -> None:
        if isinstance(event, Progress):
            self._progress(event)
        elif isinstance(event, SourceReport):
            self._ended += 1
            self._failed += event.error is not None
            before, promised = self._working.pop(event.stream_id, (0, event.frames))
            if event.error is None:
                self._frames += event.frames - before
                self._promised += event.frames - (promised or 0)
        if time.monotonic() - self._written_at > EVERY_SECONDS:
            self.write()

    def _progress(self, event: Progress) -> None:
        name = event.stream_id
        if name not in self._working:
            self._begun += 1
            self._promised += event.frame_count or 0
            self._working[name] = (0, event.frame_count)
        self._frames += event.frames - self._working[name][0]
        self._working[name] = (event.frames, self._working[name][1])
        self._first = self._first or (time.monotonic(), self._frames)

    def end(self, state: str) -> None:
        """The run has ended, and how; one that wrote nothing leaves no status either."""
        self.state = state
        if self._frames or self._file is None:
            self.write()
        else:
            self._file.unlink(missing_ok=True)

    def status(self) -> RunStatus:
        fps, total = self._fps(), self._total()
        left = (total - self._frames) / fps if total is not None and fps else None
        shown = dict(list(self._working.items())[:_MOST_SHOWN])
        return RunStatus(
            self.state, self.sources, self._ended, self._failed, self._frames, total,
            round(fps, 2), None if left is None else round(max(0.0, left), 1),
            self._began_at, time.time(), shown, socket.gethostname(), os.getpid(), self.metrics_url,
        )  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        return asdict(self.status())

    def write(self) -> None:
        """Replace the file; a disk that is full is the outputs' matter, and is told of there."""
        if self._file is None:
            return
        self._written_at = time.monotonic()
        part = self._file.with_name(f"{FILE_NAME}.part")
        try:
            part.write_text(json.dumps(self.as_json()))
            part.replace(self._file)
        except OSError:
            part.unlink(missing_ok=True)

    def _fps(self) -> float:
        if self._first is None or self._frames <= self._first[1]:
            return 0.0
        return (self._frames - self._first[1]) / max(time.monotonic() - self._first[0], 1e-3)

    def _total(self) -> int | None:
        """Frames in all, the sources that have not begun taken to be as long as those that have."""
        # Asked for by the thread of /status too, while the run's own changes it.
        unknown = any(count is None for _, count in list(self._working.values()))
        if unknown or not self._begun or self.sources is None:
            return None
        ahead = max(0, self.sources - self._ended - len(self._working))
        return round(self._promised * (1 + ahead / self._begun))


def read_status(folder: Path) -> RunStatus:
    """The status that a run left in its output folder. Raises OutputError if there is none."""
    try:
        return RunStatus.of(json.loads((folder / FILE_NAME).read_text()))
    except FileNotFoundError:
        raise OutputError(
            f"no run has written to {folder}: expected the --out of a `roadmask run`"
        ) from None
    except (OSError, ValueError) as error:
        raise OutputError(f"{folder / FILE_NAME} cannot be read: {error}") from error
