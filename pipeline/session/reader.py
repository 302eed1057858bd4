"""Reading a session: what is there, in order, and each piece only if its checksum holds.

Paths are made of numbers and names that were checked; nothing is opened through a link, and no path that
stands in a file is ever followed.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np

from pipeline.errors import SourceNotFoundError
from pipeline.session.checks import FormatError, expect
from pipeline.session.errors import SessionError, UnknownVersionError
from pipeline.session.format import (
    FORMAT_VERSION,
    LABELS,
    MOST_JSON_BYTES,
    MOST_LINE_BYTES,
    PACKETS,
    TRACKS,
    Configuration,
    decode_line,
    parse_object,
    segment_name,
)
from pipeline.session.manifest import open_plain, read_manifest, read_plain
from pipeline.session.records import (
    CheckpointRecord,
    EventRecord,
    Head,
    Place,
    Record,
    parse_record,
)
from pipeline.session.track import segment_numbers
from pipeline.sources import LOG_SUFFIX, MEDIA_SUFFIX, SEAL_SUFFIX, SESSION_FILE

_MOST_NOTES = 50
_MOST_LABEL_PIXELS = 8192 * 8192
# How lines begin of which there is one a frame, as `encode_line` writes them.
_MANY_LINES = (b'{"kind":"packet"', b'{"kind":"labels"', b'{"kind":"checkpoint"')
_PNG_HEADER = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"


@dataclass
class Notes:
    """What was wrong with a session, a line each; beyond fifty they are only counted."""

    lines: list[str] = field(default_factory=list)
    more: int = 0

    def add(self, line: str) -> None:
        """Adds a line once; what cannot be printed, as in names from outside, is a question mark."""
        line = "".join(c if c.isprintable() else "?" for c in line)
        if line in self.lines:
            return
        if len(self.lines) < _MOST_NOTES:
            self.lines.append(line)
        else:
            self.more += 1

    def all(self) -> list[str]:
        """The lines, the last of which counts those left out."""
        return [*self.lines, *([f"and {self.more} more such notes"] if self.more else [])]


@dataclass(frozen=True)
class Segment:
    """One segment that has a readable head.

    Attributes:
        folder, number: where it is.
        head: the first line of its log.
        sealed: it was closed.
    """

    folder: Path
    number: int
    head: Head
    sealed: bool

    @property
    def name(self) -> str:
        """For messages: camera, track and number."""
        return f"{self.folder.parent.name}/{self.folder.name}/{segment_name(self.number)}"

    def path(self, suffix: str) -> Path:
        return self.folder / f"{segment_name(self.number)}{suffix}"

    def records(self, notes: Notes) -> Iterator[Record | None]:
        """The lines after the head, in order; None in place of one or more that are damaged."""
        try:
            with open_plain(self.path(LOG_SUFFIX)) as file:
                yield from self._lines(file, notes)
        except OSError as error:
            notes.add(f"{self.name}: cannot be read on: {error.strerror or error}")
            yield None

    def events(self) -> Iterator[EventRecord]:
        """The lines that tell of events, as far as they are whole; the others are not even parsed."""
        try:
            with open_plain(self.path(LOG_SUFFIX)) as file:
                while line := file.readline(MOST_LINE_BYTES):
                    if not line[9:].startswith(_MANY_LINES):
                        with suppress(FormatError):
                            if isinstance(record := parse_record(decode_line(line)), EventRecord):
                                yield record
        except OSError:
            return

    def _lines(self, file: BinaryIO, notes: Notes) -> Iterator[Record | None]:
        first = True
        while line := file.readline(MOST_LINE_BYTES):
            try:
                record = parse_record(decode_line(line))
            except FormatError as error:
                if self.sealed or line.endswith(b"\n"):  # else the last words of a crash
                    notes.add(f"{self.name}: a line of the log is left out: {error}")
                record = None
                yield None
            if not first and record is not None and not isinstance(record, Head):
                yield record
            first = False

    @contextmanager
    def media(self) -> Iterator[Media]:
        """Its media file, opened. Raises OSError."""
        with open_plain(self.path(MEDIA_SUFFIX)) as file:
            yield Media(file)


class Media:
    """The media file of a segment: bytes by their places."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size

    def read(self, place: Place) -> bytes:
        """Raises FormatError if they are not there as they were written."""
        expect(place.at + place.bytes <= self._size, "the media file ends before it")
        try:
            data = os.pread(self._file.fileno(), place.bytes, place.at)
        except OSError as error:
            raise FormatError(str(error.strerror)) from error
        expect(len(data) == place.bytes and zlib.crc32(data) == place.crc, "its checksum is wrong")
        return data

    def labels(self, place: Place) -> np.ndarray:
        """A label map, uint8 [h, w]. Raises FormatError."""
        return decode_labels(self.read(place))

    def state(self, record: CheckpointRecord) -> np.ndarray:
        """A state, float32 [C, h, w]. Raises FormatError."""
        wanted = 4 * int(np.prod(record.shape))
        inflate = zlib.decompressobj()
        try:
            data = inflate.decompress(self.read(record.place), wanted + 1)
        except zlib.error as error:
            raise FormatError("a state cannot be inflated") from error
        expect(len(data) == wanted, "a state has another size than it says")
        return np.frombuffer(data, "<f4").reshape(record.shape).astype(np.float32)


def decode_labels(data: bytes) -> np.ndarray:
    """A label map, uint8 [h, w], of an 8-bit grey PNG. Raises FormatError."""
    expect(data[:16] == _PNG_HEADER and len(data) > 33, "labels are no PNG")
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    expect(depth == 8 and colour == 0, "labels must be 8-bit grey")
    expect(0 < width * height <= _MOST_LABEL_PIXELS, "labels have an impossible size")
    try:
        found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise FormatError("labels cannot be decoded") from error
    expect(found is not None and found.shape == (height, width), "labels cannot be decoded")
    assert found is not None
    return np.asarray(found, np.uint8)


@dataclass(frozen=True)
class CameraFiles:
    """One camera of a session: its segments in order."""

    name: str
    packets: tuple[Segment, ...]
    labels: tuple[Segment, ...]


@dataclass(frozen=True)
class Session:
    """A session as it lies on the disk.

    Attributes:
        folder: the session's.
        configuration: what labelled its frames; None if nothing did.
        cameras: by name.
        notes: what was wrong with it so far.
        clock: seconds of the session at monotonic 0 of each run, by its id.
    """

    folder: Path
    configuration: Configuration | None
    cameras: dict[str, CameraFiles]
    notes: Notes
    clock: dict[str, float]

    @classmethod
    def open(cls, folder: Path) -> Session:
        """Find what is there, by the segments themselves.

        Raises:
            SourceNotFoundError: there is no session.
            SessionError: it cannot be read, or nothing of it is good.
        """
        notes, configuration = Notes(), None
        missing: SourceNotFoundError | None = None
        try:
            configuration = read_manifest(folder / SESSION_FILE).configuration
        except SourceNotFoundError as error:
            if not folder.is_dir():
                raise
            missing = error
            notes.add(f"{folder / SESSION_FILE} is missing: what the segments say is used instead")
        except UnknownVersionError:
            raise
        except SessionError as error:
            notes.add(f"{error}: what the segments say is used instead")
        cameras = {camera.name: camera for camera in _cameras(folder, notes)}
        segments = [s for c in cameras.values() for s in (*c.packets, *c.labels)]
        if not segments and missing is not None:
            raise missing
        if not segments:
            why = "; ".join(notes.all()[:1]) or "it holds no segment"
            raise SessionError(f"{folder}: nothing in it can be replayed: {why}")
        if configuration is None:
            held = [s.head.configuration for s in segments if s.head.configuration]
            configuration = held[0] if held else None
        return cls(folder, configuration, cameras, notes, _clocks(segments))

    def seconds(self, segment: Segment, monotonic: float) -> float:
        """A recorded moment on the session's clock, which begins with its first run."""
        return self.clock[segment.head.run[0]] + monotonic

    def check(self) -> list[str]:
        """Read every file that was closed whole and compare its SHA-256; what is wrong, a line each."""
        found = Notes()
        for name in _folders(self.folder, Notes()):
            for track in TRACKS:
                folder = self.folder / name / track
                if folder.is_dir() and not folder.is_symlink():
                    for number in _numbers(folder, found):
                        _check_seal(folder, number, found)
        return found.all()


def _cameras(folder: Path, notes: Notes) -> Iterator[CameraFiles]:
    seen: set[str] = set()
    for name in _folders(folder, notes):
        packets = tuple(_segments(folder / name / PACKETS, PACKETS, notes))
        labels = tuple(_segments(folder / name / LABELS, LABELS, notes))
        if not packets:
            if labels:
                notes.add(f"{name}: has labels, but no packets: it is left out")
            continue
        shown = packets[0].head.camera
        if shown in seen:
            notes.add(f"{name}: says it is camera {shown[:40]!r} too: it is left out")
            continue
        seen.add(shown)
        yield CameraFiles(shown, packets, labels)


def _folders(folder: Path, notes: Notes) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise SessionError(f"{folder} cannot be listed: {error.strerror}") from error
    for entry in found:
        if entry.is_symlink():
            notes.add(f"{entry.name[:60]}: is a link: it is left out")
    return [entry.name for entry in found if entry.is_dir(follow_symlinks=False)]


def _segments(folder: Path, track: str, notes: Notes) -> Iterator[Segment]:
    if folder.is_symlink():
        notes.add(f"{folder.parent.name}/{track}: is a link: it is left out")
        return
    for number in _numbers(folder, notes):
        name = f"{folder.parent.name}/{track}/{segment_name(number)}"
        try:
            head = _head(folder / f"{segment_name(number)}{LOG_SUFFIX}")
            expect(head.track == track and head.segment == number, "it is another segment's")
            yield Segment(folder, number, head, _sealed(folder, number, notes, name))
        except FormatError as error:
            notes.add(f"{name}: is left out: {error}")
        except OSError as error:
            notes.add(f"{name}: is left out: {error.strerror or error}")


def _numbers(folder: Path, notes: Notes) -> list[int]:
    try:
        return segment_numbers(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        notes.add(f"{folder.parent.name}/{folder.name}: cannot be listed: {error.strerror}")
        return []


def _head(path: Path) -> Head:
    with open_plain(path) as file:
        return Head.from_json(decode_line(file.readline(MOST_LINE_BYTES)))


def _sealed(folder: Path, number: int, notes: Notes, name: str) -> bool:
    path = folder / f"{segment_name(number)}{SEAL_SUFFIX}"
    if not os.path.lexists(path):
        return False
    try:
        files = read_seal(path, number)
        for file, facts in files.items():
            size = os.lstat(folder / file).st_size
            expect(size == facts["bytes"], f"{file} has {size} bytes, sealed were {facts['bytes']}")
        return True
    except FormatError as error:
        notes.add(f"{name}: its seal does not hold: {error}; it is read as far as it is good")
    except OSError as error:
        notes.add(f"{name}: its seal does not hold: {error.strerror or error}")
    return False


def read_seal(path: Path, number: int) -> dict[str, dict[str, Any]]:
    """Sizes and SHA-256 of a segment's files by name. Raises FormatError or OSError."""
    raw = parse_object(read_plain(path, MOST_JSON_BYTES))
    expect(raw.get("version") == FORMAT_VERSION, "the seal's version is not known")
    files = raw.get("files")
    expect(isinstance(files, dict) and 1 <= len(files) <= 2, "the seal names no files")
    assert isinstance(files, dict)
    own = {f"{segment_name(number)}{suffix}" for suffix in (LOG_SUFFIX, MEDIA_SUFFIX)}
    expect(set(files) <= own, "the seal names files that are not the segment's")
    for facts in files.values():
        expect(isinstance(facts, dict), "the seal is damaged")
        expect(type(facts.get("bytes")) is int, "the seal states no size")
        expect(isinstance(facts.get("sha256"), str), "the seal states no checksum")
        expect(0 <= facts["bytes"] < 2**60 and len(facts["sha256"]) == 64, "the seal is damaged")
    return files


def _check_seal(folder: Path, number: int, notes: Notes) -> None:
    """Compare a segment with its seal, if it has one."""
    shown = f"{folder.parent.name}/{folder.name}/{segment_name(number)}"
    seal = folder / f"{segment_name(number)}{SEAL_SUFFIX}"
    if not os.path.lexists(seal):
        return  # it was not closed: a crash, or it is being written
    try:
        for name, facts in read_seal(seal, number).items():
            with open_plain(folder / name) as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
            if found != facts["sha256"]:
                notes.add(f"{shown}: {name} is not what was sealed (SHA-256)")
    except (FormatError, OSError) as error:
        notes.add(f"{shown}: {getattr(error, 'strerror', None) or error}")


def _clocks(segments: list[Segment]) -> dict[str, float]:
    """Seconds of the session at monotonic 0 of each run: as their wall clocks say, but one after another.

    A machine that starts without a clock, or whose clock was set back, must not mix its runs.
    """
    spans: dict[str, tuple[int, float, float, float, float]] = {}
    for segment in segments:
        identity, wall, monotonic = segment.head.run
        began = segment.head.began
        order, wall, monotonic, first, last = spans.get(
            identity, (segment.number, wall, monotonic, began, began)
        )
        spans[identity] = (min(order, segment.number), wall, monotonic, min(first, began),
                           max(last, began))  # fmt: skip
    clocks: dict[str, float] = {}
    zero, end = 0.0, -np.inf
    for identity, (_, wall, monotonic, first, last) in sorted(
        spans.items(), key=lambda item: (item[1][0], item[1][1])
    ):
        if not clocks:
            zero = wall - monotonic + first
        offset = wall - monotonic - zero
        if offset + first <= end:
            offset = end + 1.0 - first
        clocks[identity], end = offset, offset + last
    return clocks
