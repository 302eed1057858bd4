"""`--out`: colours, labels and overlays of each camera in files of some minutes each, closed whole."""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import numpy as np

from pipeline.errors import OutputError
from pipeline.frames import EndOfStream, Gap, LabelBatch, Pictures, StreamInfo
from pipeline.live.hub import Shown, Subscription
from pipeline.live.labeller import LIVE_TIME_BASE
from pipeline.live.live import Listener, LiveHub
from pipeline.palette import Palette
from pipeline.retention import Piece, Retention
from pipeline.sinks import MANIFEST, OutputOptions, Sink
from pipeline.sources import safe_name

_WAITING_FRAMES = 32  # a disk that is slow for a second costs no frame
_RETRY_SECONDS = 10.0
_SEGMENT_NAME = re.compile(r"[0-9]{8}T[0-9]{6}Z(_[0-9]+)?")
_FILES = ("color.mp4", "overlay.mp4", "labels.mkv", "stats.jsonl", MANIFEST)


@dataclass(frozen=True)
class SegmentOptions:
    """How segments are written, and how many are kept.

    Attributes:
        seconds: length of a segment.
        overlay: write the colours over the pictures too.
        max_age_seconds: older segments are removed; None for never.
        max_bytes: of all cameras together; the oldest segments are removed. None for no limit.
    """

    seconds: float = 600.0
    overlay: bool = False
    max_age_seconds: float | None = None
    max_bytes: int | None = None


class SegmentFiles(Listener):
    """Writes `OUT/CAMERA/20260131T235959Z/` with the files of a run, a new folder every so often.

    They are at the network's size: a camera's own picture is what `--record` keeps.

    Args:
        out: the folder.
        palette: names and colours of the classes.
        facts: what the manifests say of model and engine.
        options: how they are written, and how many are kept.

    Attributes:
        problems: what could not be written, a line for each camera and kind of error.
    """

    def __init__(
        self, out: Path, palette: Palette, facts: dict[str, Any], options: SegmentOptions
    ) -> None:
        self._out, self._palette, self._facts = out, palette, facts
        self._options = options
        self._retention = SegmentRetention(out, options)
        self._threads: list[Thread] = []
        self._lock = Lock()
        self._told: set[tuple[str, int | None]] = set()
        self.problems: list[str] = []

    def camera_added(self, hub: LiveHub, name: str, shown_url: str) -> None:
        feed = hub.subscribe(name, _WAITING_FRAMES)
        thread = Thread(
            target=self._write, args=(feed, name, shown_url), name=f"out-{name}", daemon=True
        )
        with self._lock:
            self._threads = [old for old in self._threads if old.is_alive()]
            self._threads.append(thread)
        thread.start()

    def close(self, timeout_seconds: float = 30.0) -> None:
        """Wait until the last segments are closed; the hub has ended its cameras before."""
        deadline = time.monotonic() + timeout_seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _write(self, feed: Subscription, name: str, shown_url: str) -> None:
        segment: _Segment | None = None
        retry_at = 0.0
        while True:
            shown = feed.take(0.5)
            try:
                if segment is not None and self._is_to_end(segment, shown):
                    ended, segment = segment, None
                    self._finish(ended)
                if shown is not None and time.monotonic() >= retry_at:
                    segment = segment or self._begin(name, shown_url, shown)
                    segment.write(shown)
                if shown is None and feed.over:
                    if segment is not None:
                        self._finish(segment)
                    return
                if shown is None:  # segments grow old while their camera is away
                    self._retention.try_to_tidy()
            except OutputError as error:
                segment, retry_at = None, time.monotonic() + _RETRY_SECONDS
                self._note(name, error)
                self._retention.try_to_tidy()  # the disk may be full

    def _note(self, name: str, error: OutputError) -> None:
        """Keep a problem the first time: each try names another folder, for as long as the disk is full."""
        kind = name, getattr(error.__cause__, "errno", None)
        if kind not in self._told:
            self._told.add(kind)
            self.problems.append(str(error))

    def _begin(self, name: str, shown_url: str, first: Shown) -> _Segment:
        options = OutputOptions(overlay=self._options.overlay)
        folder = self._out / safe_name(name)
        return _Segment(folder, self._palette, options, self._facts, name, shown_url, first)

    def _finish(self, segment: _Segment) -> None:
        segment.finish()
        self._retention.try_to_tidy()

    def _is_to_end(self, segment: _Segment, shown: Shown | None) -> bool:
        if shown is not None and shown.labels.shape != segment.stream.size_hw:
            return True
        now = shown.captured_at if shown is not None else time.time()
        return now - segment.began_at >= self._options.seconds


class SegmentRetention(Retention):
    """Removes segments beyond the limits: those that are whole, or that others came after."""

    def __init__(self, out: Path, options: SegmentOptions) -> None:
        super().__init__(options.max_age_seconds, options.max_bytes, options.seconds)
        self._out = out

    def find(self) -> tuple[list[Piece], int]:
        found: list[Piece] = []
        total = 0
        for camera in _folders(self._out):
            folders = sorted(f for f in _folders(camera) if _SEGMENT_NAME.fullmatch(f.name))
            pieces = [_piece(folder) for folder in folders]
            total += sum(piece.bytes for piece in pieces)
            found += [p for p in pieces[:-1] if p.paths]
            found += [p for p in pieces[-1:] if p.paths and p.paths[-1].name == MANIFEST]
        return found, total


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder; none if it is gone."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    return []


def _piece(folder: Path) -> Piece:
    """One segment's own files, whatever else is in its folder; what a crash left of them too."""
    piece = Piece(folder=folder)
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name.removeprefix(".").removesuffix(".part")
            if name in _FILES and entry.is_file(follow_symlinks=False):
                try:
                    stat = entry.stat(follow_symlinks=False)
                except FileNotFoundError:  # it just got its final name
                    continue
                piece.paths.append(Path(entry.path))
                piece.bytes += stat.st_size
                piece.written_at = max(piece.written_at, stat.st_mtime)
    piece.paths.sort(key=lambda path: path.name == MANIFEST)
    return piece


class _Segment:
    """One folder of files, from its first frame to its last."""

    def __init__(
        self,
        folder: Path,
        palette: Palette,
        options: OutputOptions,
        facts: dict[str, Any],
        name: str,
        shown_url: str,
        first: Shown,
    ) -> None:
        self.began_at = first.captured_at
        self.stream = StreamInfo(
            stream_id=safe_name(name),
            source=shown_url,
            size_hw=(first.labels.shape[0], first.labels.shape[1]),
            time_base=LIVE_TIME_BASE,
            matrix="bt601",
            details={"live": True, "began_at": self.began_at},
        )
        began = datetime.fromtimestamp(self.began_at, UTC)
        self._overlay = options.overlay
        self._sink = Sink(_free(folder, f"{began:%Y%m%dT%H%M%SZ}"), palette, options, facts)
        self._last_index: int | None = None
        self._pts = -1
        self._frames = 0

    def write(self, shown: Shown) -> None:
        """Raises OutputError; then nothing of the segment is left."""
        if self._last_index is not None and shown.frame_index != self._last_index + 1:
            missing = shown.frame_index - self._last_index - 1
            self._sink.note_gap(
                Gap(self.stream, shown.frame_index, None, f"{missing} frames were not labelled")
            )
        # Two frames may arrive within the same millisecond.
        self._pts = max(self._pts + 1, round((shown.captured_at - self.began_at) / LIVE_TIME_BASE))
        monotonic = time.monotonic()
        latency = shown.labelled_at - shown.captured_at
        try:
            self._sink.write(
                LabelBatch(
                    self.stream, shown.frame_index, (self._pts,), shown.labels[None],
                    (monotonic - latency,), monotonic, np.array([0]),
                    _pictures(shown.planes) if self._overlay else None,
                )
            )  # fmt: skip
        except BaseException:
            self._sink.abort()
            raise
        self._last_index, self._frames = shown.frame_index, self._frames + 1

    def finish(self) -> None:
        """Close the files and give them their names. Raises OutputError."""
        self._sink.finish(EndOfStream(self.stream, self._frames))


def _pictures(i420: np.ndarray) -> Pictures:
    height, width = i420.shape[0] // 3 * 2, i420.shape[1]
    u, v = i420[height:].reshape(2, 1, height // 2, width // 2)
    return Pictures(i420[None, :height], u, v)


def _free(folder: Path, name: str) -> Path:
    number, free = 2, folder / name
    while free.exists():
        free, number = folder / f"{name}_{number}", number + 1
    return free
