"""How much of a session is kept: the oldest segments go first, of all cameras and both tracks together."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.retention import Piece, Retention
from pipeline.session.format import (
    SEGMENT_NAME,
    TRACKS,
    Limits,
)
from pipeline.sources import LOG_SUFFIX, MEDIA_SUFFIX, SEAL_SUFFIX


@dataclass
class _Segment(Piece):
    """One segment; `sealed` if its seal is there."""

    sealed: bool = False


class SessionRetention(Retention):
    """Removes segments beyond the limits. Only sealed ones, or those that others came after."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        super().__init__(limits.max_age_seconds, limits.max_bytes, limits.segment_seconds)
        self._folder = folder

    def find(self) -> tuple[list[Piece], int]:
        found: list[Piece] = []
        total = 0
        with os.scandir(self._folder) as cameras:
            folders = [Path(c.path) for c in cameras if c.is_dir(follow_symlinks=False)]
        for camera in folders:
            for track in TRACKS:
                with contextlib.suppress(OSError):
                    segments = _of_track(camera / track)
                    total += sum(segment.bytes for segment in segments.values())
                    newest = max(segments, key=int, default="")
                    found += [s for stem, s in segments.items() if s.sealed or stem != newest]
        return found, total


def _of_track(folder: Path) -> dict[str, _Segment]:
    """The segments of a track by the stems of their names."""
    segments: dict[str, _Segment] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            stem, _, suffix = entry.name.partition(".")
            if not SEGMENT_NAME.fullmatch(stem):
                continue
            try:
                stat = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            names = [folder / f"{stem}{s}" for s in (MEDIA_SUFFIX, LOG_SUFFIX, SEAL_SUFFIX)]
            segment = segments.setdefault(stem, _Segment(names))
            segment.bytes += stat.st_size
            segment.written_at = max(segment.written_at, stat.st_mtime)
            segment.sealed |= f".{suffix}" == SEAL_SUFFIX
    return segments
