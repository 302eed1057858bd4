"""Writing one track of one camera: segment after segment, each a log, a media file and at last a seal.

What a segment holds is on the disk, whole, once its seal is. Before that it is as far as the log's lines are
whole and the bytes they point to have the checksums they state.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import zlib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, cast

from pipeline.errors import OutputError
from pipeline.parts import PartFile, output_errors, sync
from pipeline.session.format import (
    FORMAT_VERSION,
    SEGMENT_NAME,
    encode_line,
    segment_name,
)
from pipeline.session.matroska import MediaFile, Track
from pipeline.sources import LOG_SUFFIX, MEDIA_SUFFIX, SEAL_SUFFIX

LOCK_FILE = ".lock"


@dataclass(frozen=True)
class Payload:
    """Bytes for the media file: a packet, a label map, or a state that players do not see.

    Attributes:
        data: as they came.
        ticks: time stamp in the media's time base, None for right after the one before.
        key: decoding can start here.
        hidden: players pass over it.
    """

    data: bytes
    ticks: int | None = None
    key: bool = True
    hidden: bool = False


class TrackWriter:
    """The segments of one track of one camera, in a folder that no other process writes.

    Segments that an earlier process left unsealed stay as they are: they are read as far as they go.
    """

    def __init__(self, folder: Path) -> None:
        """Raises OutputError if the folder cannot be made, or is being written by somebody else."""
        self.folder = folder
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(folder / LOCK_FILE, "wb")  # noqa: SIM115
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._lock.close()
                raise OutputError(
                    f"{folder} is being written by another recording: give another folder"
                ) from None
            self.number = max(segment_numbers(folder), default=0)
        self._segment: _Segment | None = None

    @property
    def open(self) -> bool:
        """Whether there is a segment to append to."""
        return self._segment is not None

    @property
    def payloads(self) -> int:
        """How many the open segment holds."""
        return self._segment.payloads if self._segment else 0

    def begin(
        self, head: dict[str, Any], track: Track | None, time_base: Fraction, least: int = 1
    ) -> int:
        """Close the open segment and begin another; returns its number.

        Args:
            head: the first line of its log, beside the version and the number.
            track: of its media file; None for a segment that has none.
            time_base: seconds a tick of the payloads' time stamps.
            least: its number is at least this.

        Raises OutputError; then nothing of it is left.
        """
        self.seal()
        self.number = max(self.number + 1, least)
        with output_errors(self.folder):
            segment = _Segment(self.folder, self.number)
            try:
                segment.begin({"kind": "head", "version": FORMAT_VERSION, "segment": self.number,
                               **head}, track, time_base)  # fmt: skip
            except BaseException:
                segment.discard()
                raise
        self._segment = segment
        return self.number

    def append(self, record: dict[str, Any], payload: Payload | None = None) -> None:
        """Append a line, and the bytes it speaks of. Raises OutputError."""
        assert self._segment is not None
        with output_errors(self.folder):
            self._segment.append(record, payload)

    def sync(self) -> None:
        """Bring what is written to the disk. Raises OutputError."""
        if self._segment is not None:
            with output_errors(self.folder):
                self._segment.sync()

    def seal(self) -> None:
        """Close the open segment, if there is one: on the disk, whole, and its seal after it."""
        segment, self._segment = self._segment, None
        if segment is not None:
            with output_errors(self.folder):
                segment.seal()

    def abandon(self) -> None:
        """Let the open segment go as it is, after an error; nothing is raised."""
        segment, self._segment = self._segment, None
        if segment is not None:
            with contextlib.suppress(OSError):
                segment.close()

    def close(self) -> None:
        """Seal, and let others write here. Raises OutputError."""
        try:
            self.seal()
        finally:
            self._lock.close()


def segment_numbers(folder: Path) -> list[int]:
    """Of all segments in a track's folder, in order, whatever is left of them."""
    numbers = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            stem, _, suffix = entry.name.partition(".")
            if SEGMENT_NAME.fullmatch(stem) and f".{suffix}" in (
                LOG_SUFFIX, MEDIA_SUFFIX, SEAL_SUFFIX,
            ):  # fmt: skip
                numbers.add(int(stem))
    return sorted(numbers)


class _Segment:
    """One open segment. Unbuffered: what is written survives the end of the process."""

    def __init__(self, folder: Path, number: int) -> None:
        self._folder, self._stem = folder, segment_name(number)
        self._log = _create(folder / f"{self._stem}{LOG_SUFFIX}")
        self._file: BinaryIO | None = None
        self._media: MediaFile | None = None
        self.payloads = 0

    def begin(self, head: dict[str, Any], track: Track | None, time_base: Fraction) -> None:
        if track is not None:
            self._file = _create(self._folder / f"{self._stem}{MEDIA_SUFFIX}")
            self._media = MediaFile(self._file, track, time_base)
        self.log(head)

    def discard(self) -> None:
        """Remove it, of which not even the head could be written; no error, whatever the state."""
        made = [LOG_SUFFIX, *([MEDIA_SUFFIX] if self._file is not None else [])]
        with contextlib.suppress(OSError):
            self.close()
        for suffix in made:
            with contextlib.suppress(OSError):
                (self._folder / f"{self._stem}{suffix}").unlink()

    def log(self, record: dict[str, Any]) -> None:
        view = memoryview(encode_line(record))
        while view:
            view = view[self._log.write(view) :]

    def append(self, record: dict[str, Any], payload: Payload | None) -> None:
        if payload is not None:
            assert self._media is not None
            data = payload.data
            if payload.hidden:
                at = self._media.hide(data)
            else:
                at = self._media.write(payload.ticks, data, payload.key)
            record = {**record, "at": at, "bytes": len(data), "crc": zlib.crc32(data)}
            self.payloads += 1
        self.log(record)

    def sync(self) -> None:
        for file in (self._file, self._log):
            if file is not None:
                os.fsync(file.fileno())

    def seal(self) -> None:
        if self._media is not None:
            self._media.finish()
        self.sync()
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            for path in (self._folder / f"{self._stem}{s}" for s in (LOG_SUFFIX, MEDIA_SUFFIX))
            if path.exists()
        }
        self.close()
        part = PartFile(self._folder / f"{self._stem}{SEAL_SUFFIX}")
        try:
            part.file.write(
                json.dumps({"version": FORMAT_VERSION, "files": files}).encode() + b"\n"
            )
            part.close()
            part.publish()
        except BaseException:
            part.discard()
            raise
        sync(self._folder)

    def close(self) -> None:
        for file in (self._file, self._log):
            if file is not None:
                file.close()


def _create(path: Path) -> BinaryIO:
    """A new file: never one that is there, nor where a link leads."""
    return cast(BinaryIO, open(path, "xb+", buffering=0))


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
