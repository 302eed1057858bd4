"""How much of what is written for ever is kept: the oldest pieces go first, whole, by age and by size."""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

_SECONDS_BETWEEN = 30.0


@dataclass
class Piece:
    """One piece as the disk has it.

    Attributes:
        paths: its files in the order in which they are removed: what says that it is whole comes last,
            so that a piece half removed by a crash is found, and removed, again.
        folder: it is alone in, to be removed with it; None if it is not.
        written_at: `time.time()` of its last change.
        bytes: on the disk.
    """

    paths: list[Path] = field(default_factory=list)
    folder: Path | None = None
    written_at: float = 0.0
    bytes: int = 0

    def remove(self) -> None:
        """Raises OSError."""
        for path in self.paths:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        if self.folder is not None:
            with contextlib.suppress(OSError):  # something else is in it: that stays
                self.folder.rmdir()


class Retention(ABC):
    """Removes pieces beyond the limits. May be used from any thread, and pickled.

    Args:
        max_age_seconds: older pieces go; None for never.
        max_bytes: of all pieces; the oldest beyond it go. None for no limit.
        seconds_between: `tidy` looks at the disk at most so often, and every half minute at least.
    """

    def __init__(
        self, max_age_seconds: float | None, max_bytes: int | None, seconds_between: float
    ) -> None:
        self._max_age_seconds, self._max_bytes = max_age_seconds, max_bytes
        self._seconds_between = min(_SECONDS_BETWEEN, seconds_between)
        self._due = 0.0
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=Lock())

    @abstractmethod
    def find(self) -> tuple[list[Piece], int]:
        """The pieces that may be removed, and the bytes of all there are. Raises OSError."""

    def tidy(self, now: bool = False) -> int:
        """Remove what is too much, if it is time, or `now`; returns how many pieces. Raises OSError."""
        if self._max_age_seconds is None and self._max_bytes is None:
            return 0
        with self._lock:
            if time.monotonic() < self._due and not now:
                return 0
            self._due = time.monotonic() + self._seconds_between
            return self._remove(*self.find())

    def _remove(self, found: list[Piece], total: int) -> int:
        removed, most = 0, self._max_bytes
        oldest_kept = time.time() - (self._max_age_seconds or float("inf"))
        for old in sorted(found, key=lambda piece: piece.written_at):
            if old.written_at >= oldest_kept and (most is None or total <= most):
                break
            old.remove()
            total -= old.bytes
            removed += 1
        return removed
