"""How much of what is written for ever is kept: the oldest pieces go first, whole, by age and by size."""

from __future__ import annotations

import contextlib
import logging
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

_SECONDS_BETWEEN = 30.0
_log = logging.getLogger(__name__)


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
        self._told = False
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=Lock())

    @abstractmethod
    def find(self) -> tuple[list[Piece], int]:
        """The pieces that may be removed, and the bytes of all there are. Raises OSError.

        Others write and remove meanwhile: what is gone once it is looked at is no error.
        """

    def try_to_tidy(self) -> None:
        """`tidy` for whoever writes, which what cannot be removed must not keep from writing."""
        try:
            self.tidy()
        except OSError as error:
            if not self._told:  # once, however often it is tried again
                self._told = True
                _log.warning("what is too old or too much cannot all be removed: %s", error)

    def tidy(self, now: bool = False) -> int:
        """Remove what is too much, if it is time, or `now`; returns how many pieces.

        Raises OSError if something cannot be removed, once all that can be is.
        """
        if self._max_age_seconds is None and self._max_bytes is None:
            return 0
        with self._lock:
            if time.monotonic() < self._due and not now:
                return 0
            self._due = time.monotonic() + self._seconds_between
            return self._remove(*self.find())

    def _remove(self, found: list[Piece], total: int) -> int:
        removed, most = 0, self._max_bytes
        failed: OSError | None = None
        oldest_kept = time.time() - (self._max_age_seconds or float("inf"))
        for old in sorted(found, key=lambda piece: piece.written_at):
            if old.written_at >= oldest_kept and (most is None or total <= most):
                break
            try:
                old.remove()
            except OSError as error:
                failed = failed or error
                continue
            total -= old.bytes
            removed += 1
        if failed is not None:
            raise failed
        return removed
