"""How much of a session is kept: the oldest segments go first, whole, by age and by size."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from pipeline.session.format import (
    LOG_SUFFIX,
    MEDIA_SUFFIX,
    SEAL_SUFFIX,
    SEGMENT_NAME,
    TRACKS,
    Limits,
)

_SECONDS_BETWEEN = 30.0


@dataclass
class _Old:
    """One segment as the disk has it."""

    folder: Path
    stem: str
    written_at: float = 0.0
    bytes: int = 0
    sealed: bool = False


class Retention:
    """Removes segments beyond the limits. Only sealed ones, or those that others came after."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder, self._limits = folder, limits
        self._due = 0.0
        self._lock = Lock()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_lock": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _lock=Lock())

    def tidy(self, now: bool = False) -> int:
        """Remove what is too much; returns how many segments. At most every half minute, or `now`."""
        limits = self._limits
        if limits.max_age_seconds is None and limits.max_bytes is None:
            return 0
        with self._lock:
            if time.monotonic() < self._due and not now:
                return 0
            self._due = time.monotonic() + min(_SECONDS_BETWEEN, limits.segment_seconds)
            return self._remove(*_segments(self._folder))

    def _remove(self, found: list[_Old], total: int) -> int:
        removed, most = 0, self._limits.max_bytes
        oldest_kept = time.time() - (self._limits.max_age_seconds or float("inf"))
        for old in sorted(found, key=lambda segment: segment.written_at):
            if old.written_at >= oldest_kept and (most is None or total <= most):
                break
            # The seal last: a segment half removed by a crash is removed again.
            for suffix in (MEDIA_SUFFIX, LOG_SUFFIX, SEAL_SUFFIX):
                with contextlib.suppress(FileNotFoundError):
                    (old.folder / f"{old.stem}{suffix}").unlink()
            total -= old.bytes
            removed += 1
        return removed


def _segments(session: Path) -> tuple[list[_Old], int]:
    """Segments that may be removed, and the bytes of all there are."""
    found: list[_Old] = []
    total = 0
    with os.scandir(session) as cameras:
        folders = [Path(c.path) for c in cameras if c.is_dir(follow_symlinks=False)]
    for camera in folders:
        for track in TRACKS:
            with contextlib.suppress(OSError):
                segments = _of_track(camera / track)
                total += sum(segment.bytes for segment in segments)
                newest = max((s.stem for s in segments), key=int, default="")
                found += [s for s in segments if s.sealed or s.stem != newest]
    return found, total


def _of_track(folder: Path) -> list[_Old]:
    segments: dict[str, _Old] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            stem, _, suffix = entry.name.partition(".")
            if not SEGMENT_NAME.fullmatch(stem):
                continue
            stat = entry.stat(follow_symlinks=False)
            old = segments.setdefault(stem, _Old(folder, stem))
            old.bytes += stat.st_size
            old.written_at = max(old.written_at, stat.st_mtime)
            old.sealed |= f".{suffix}" == SEAL_SUFFIX
    return list(segments.values())
