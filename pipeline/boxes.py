"""Boxes of ISO base media files (ISO/IEC 14496-12): written, and found again."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import BinaryIO

import numpy as np

_UNITY = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
_U32 = 2**32 - 1
KEY_SAMPLE, OTHER_SAMPLE = 0x02000000, 0x01010000  # 8.8.3.1: needs no other; needs others, no sync


def box(name: bytes, *parts: bytes) -> bytes:
    """A box of up to 4 GB."""
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), name) + body


def full_box(name: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    """A box with version and flags."""
    return box(name, struct.pack(">I", version << 24 | flags), *parts)


def split(data: bytes) -> dict[bytes, bytes]:
    """The bodies of the boxes that lie one after another in `data`, the first of each name."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1:
            (size,), head = struct.unpack_from(">Q", data, at + 8), 16
        if size < head:
            raise ValueError(f"a box must have at least {head} bytes, got {size}")
        found.setdefault(name, data[at + head : at + size])
        at += size
    return found


def find(data: bytes, *path: bytes) -> bytes:
    """The body of a box by the names on the way to it. Raises KeyError if it is not there."""
    for name in path:
        data = split(data)[name]
    return data


def walk(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, place and size in bytes of the boxes between two places in a file.

    Raises ValueError if they do not end at `end`.
    """
    at = start
    while at < end:
        file.seek(at)
        head = file.read(8)
        size, name = struct.unpack(">I4s", head) if len(head) == 8 else (0, b"")
        if size < 8 or at + size > end:
            raise ValueError(f"no box at byte {at}")
        yield name, at, size
        at += size


@dataclass(frozen=True)
class TrackHead:
    """What a track is, as boxes and fields of another movie that holds such a track.

    Attributes:
        kind: b"vide" or b"soun".
        scale: ticks a second of the samples' times.
        size: width and height as shown, 16.16 fixed point, 8 bytes.
        language: packed as in `mdhd`.
        handler, media_header, data_information, descriptions: the bodies of `hdlr`, of `vmhd` or
            `smhd`, of `dinf` and of `stsd`.
    """

    kind: bytes
    scale: int
    size: bytes
    language: int
    handler: bytes
    media_header: bytes
    data_information: bytes
    descriptions: bytes

    @classmethod
    def of_movie(cls, movie: bytes) -> TrackHead:
        """Of the first track of a whole file. Raises KeyError if it has none."""
        track = find(movie, b"moov", b"trak")
        header, media = find(track, b"mdia", b"mdhd"), find(track, b"mdia", b"minf")
        scale_at = 20 if header[0] else 12
        handler = find(track, b"mdia", b"hdlr")
        kind = handler[8:12]
        return cls(
            kind=kind,
            scale=struct.unpack_from(">I", header, scale_at)[0],
            size=find(track, b"tkhd")[-8:],
            language=struct.unpack_from(">H", header, len(header) - 4)[0],
            handler=handler,
            media_header=find(media, b"vmhd" if kind == b"vide" else b"smhd"),
            data_information=find(media, b"dinf"),
            descriptions=find(media, b"stbl", b"stsd"),
        )


@dataclass
class Samples:
    """Where a track's samples lie and when they are shown; 12 bytes a sample.

    Attributes:
        times: of each sample, ticks of the track's scale.
        sizes: of each sample, bytes.
        keys: numbers, from 1, of those that need no other.
        chunk_places: where in the file each run of samples begins.
        chunk_lengths: how many samples each run has.
        last_ticks: how long the last one is shown.
    """

    times: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("I"))
    keys: array[int] = field(default_factory=lambda: array("I"))
    chunk_places: array[int] = field(default_factory=lambda: array("Q"))
    chunk_lengths: array[int] = field(default_factory=lambda: array("I"))
    last_ticks: int = 1

    def longest_ticks(self) -> int:
        """The longest time from one sample to the next."""
        return max((later - earlier for earlier, later in pairwise(self.times)), default=0)

    def with_scale(self, old: int, new: int) -> Samples:
        """The same with times of another scale, rounded but still increasing."""
        times = array("q")
        for time in self.times:
            rounded = (2 * time * new + old) // (2 * old)
            times.append(max(rounded, times[-1] + 1) if times else rounded)
        last = max(1, self.last_ticks * new // old)
        return Samples(
            times, self.sizes, self.keys, self.chunk_places, self.chunk_lengths, last
        )  # fmt: skip


def movie(tracks: list[tuple[TrackHead, Samples]], scale: int) -> bytes:
    """`moov` of a finished file. `scale`: ticks a second of the movie's own times."""
    longest, traks = 0, []
    for number, (head, samples) in enumerate(tracks, 1):
        start, length = samples.times[0], samples.times[-1] - samples.times[0] + samples.last_ticks
        shown = start + length  # what lies before zero is not shown
        end = shown * scale // head.scale
        longest = max(longest, end)
        traks.append(
            box(
                b"trak",
                _track_header(head, number, end),
                _edits(start * scale // head.scale, length, start, head.scale, scale),
                _media(head, length, _tables(head, samples)),
            )
        )
    return box(b"moov", _movie_header(scale, longest, len(tracks)), *traks)


def growing_movie(tracks: list[tuple[TrackHead, int]], scale: int) -> bytes:
    """`moov` of a file that grows by fragments.

    Args:
        tracks: what each is, and where its time begins: zero, or before zero where that is.
        scale: ticks a second of the movie's own times.
    """
    tables = [full_box(name, 0, 0, bytes(4)) for name in (b"stts", b"stsc", b"stco")]
    tables.append(full_box(b"stsz", 0, 0, bytes(8)))
    traks, extends = [], []
    for number, (head, origin) in enumerate(tracks, 1):
        edits = _edits(0, 0, origin, head.scale, scale) if origin else b""
        media = _media(head, 0, [box(b"stsd", head.descriptions), *tables])
        traks.append(box(b"trak", _track_header(head, number, 0), edits, media))
        extends.append(full_box(b"trex", 0, 0, struct.pack(">5I", number, 1, 0, 0, 0)))
    header = _movie_header(scale, 0, len(tracks))
    return box(b"moov", header, *traks, box(b"mvex", *extends))


@dataclass(frozen=True)
class Run:
    """Samples of one track in a fragment.

    Attributes:
        track: its number, from 1.
        start: time of the first in ticks, not below zero.
        ticks, sizes, keys: how long each is shown, its size in bytes, whether it needs no other.
    """

    track: int
    start: int
    ticks: tuple[int, ...]
    sizes: tuple[int, ...]
    keys: tuple[bool, ...]


def fragment(number: int, runs: list[Run]) -> bytes:
    """`moof` and the head of `mdat`, whose data are the runs' samples, one run after another."""
    # All fields have a fixed size, so the first making tells the length, and the second the places.
    length = len(_moof(number, runs, 0))
    body = sum(sum(run.sizes) for run in runs)
    return _moof(number, runs, length + 8) + struct.pack(">I4s", 8 + body, b"mdat")


def read_fragment(moof: bytes) -> Iterator[tuple[Run, int]]:
    """The runs of a `moof` that `fragment` made, and how far behind its start each one's data are."""
    at = 8
    while at < len(moof):
        size, name = struct.unpack_from(">I4s", moof, at)
        if name == b"traf":
            traf = split(moof[at + 8 : at + size])
            (track,) = struct.unpack_from(">I", traf[b"tfhd"], 4)
            (start,) = struct.unpack_from(">Q", traf[b"tfdt"], 4)
            count, place = struct.unpack_from(">II", traf[b"trun"], 4)
            rows = np.frombuffer(traf[b"trun"], ">u4", 3 * count, 12).reshape(count, 3).tolist()
            ticks, sizes, flags = zip(*rows, strict=True)
            yield Run(track, start, ticks, sizes, tuple(f == KEY_SAMPLE for f in flags)), place
        at += size


def _moof(number: int, runs: list[Run], data_at: int) -> bytes:
    trafs = []
    for run in runs:
        rows = np.empty((len(run.sizes), 3), ">u4")
        rows[:, 0], rows[:, 1] = run.ticks, run.sizes
        rows[:, 2] = np.where(run.keys, KEY_SAMPLE, OTHER_SAMPLE)
        trafs.append(
            box(
                b"traf",
                full_box(b"tfhd", 0, 0x020000, struct.pack(">I", run.track)),  # from this moof
                full_box(b"tfdt", 1, 0, struct.pack(">Q", run.start)),
                full_box(b"trun", 0, 0x701, struct.pack(">II", len(rows), data_at), rows.tobytes()),
            )
        )
        data_at += sum(run.sizes)
    return box(b"moof", full_box(b"mfhd", 0, 0, struct.pack(">I", number)), *trafs)


def _movie_header(scale: int, duration: int, tracks: int) -> bytes:
    times = struct.pack(">QQIQ", 0, 0, scale, duration)
    rest = struct.pack(">IH10x", 0x10000, 0x100) + _UNITY + bytes(24)
    return full_box(b"mvhd", 1, 0, times, rest, struct.pack(">I", tracks + 1))


def _track_header(head: TrackHead, number: int, duration: int) -> bytes:
    times = struct.pack(">QQIIQ", 0, 0, number, 0, duration)
    group, volume = (0, 0) if head.kind == b"vide" else (1, 0x100)
    rest = struct.pack(">8xHHHH", 0, group, volume, 0) + _UNITY
    enabled = number <= 2  # the video and the first audio: players show all that are
    return full_box(b"tkhd", 1, 2 + enabled, times, rest, head.size)


def _edits(late: int, length: int, start: int, media_scale: int, scale: int) -> bytes:
    """`edts` for samples that begin late (nothing is shown before), or before zero (they are cut)."""
    if start == 0:
        return b""
    entries = []
    if start > 0:
        entries.append(struct.pack(">QqI", late, -1, 0x10000))
    shown = -(-(length + min(0, start)) * scale // media_scale) if length else 0
    entries.append(struct.pack(">QqI", shown, max(0, -start), 0x10000))
    return box(
        b"edts", full_box(b"elst", 1, 0, struct.pack(">I", len(entries)), *entries)
    )  # fmt: skip


def _media(head: TrackHead, duration: int, tables: list[bytes]) -> bytes:
    times = struct.pack(">QQIQHH", 0, 0, head.scale, duration, head.language, 0)
    header = b"vmhd" if head.kind == b"vide" else b"smhd"
    information = box(
        b"minf", box(header, head.media_header), box(b"dinf", head.data_information),
        box(b"stbl", *tables),
    )  # fmt: skip
    return box(b"mdia", full_box(b"mdhd", 1, 0, times), box(b"hdlr", head.handler), information)


def _tables(head: TrackHead, samples: Samples) -> list[bytes]:
    ticks = np.diff(np.frombuffer(samples.times, np.int64), append=0)
    ticks[-1] = min(samples.last_ticks, _U32)
    tables = [
        box(b"stsd", head.descriptions),
        full_box(b"stts", 0, 0, *_counted(_runs(ticks)[:, ::-1])),
        full_box(b"stsz", 0, 0, bytes(4), *_counted(np.frombuffer(samples.sizes, np.uint32))),
        full_box(b"stsc", 0, 0, *_counted(_chunk_runs(samples))),
    ]
    if len(samples.keys) < len(samples.times):
        tables.append(
            full_box(b"stss", 0, 0, *_counted(np.frombuffer(samples.keys, np.uint32)))
        )  # fmt: skip
    places = np.frombuffer(samples.chunk_places, np.uint64)
    large = int(places[-1]) > _U32
    name, kind = (b"co64", ">u8") if large else (b"stco", ">u4")
    tables.append(
        full_box(name, 0, 0, struct.pack(">I", len(places)), places.astype(kind).tobytes())
    )
    return tables


def _runs(values: np.ndarray) -> np.ndarray:
    """int64 [N, 2]: value and number of each run of equal values."""
    starts = np.flatnonzero(np.diff(values, prepend=values[0] - 1))
    return np.stack([values[starts], np.diff(starts, append=len(values))], 1)


def _chunk_runs(samples: Samples) -> np.ndarray:
    lengths = np.frombuffer(samples.chunk_lengths, np.uint32).astype(np.int64)
    runs = _runs(lengths)
    first = 1 + np.cumsum(runs[:, 1]) - runs[:, 1]
    return np.stack([first, runs[:, 0], np.ones(len(runs), np.int64)], 1)


def _counted(rows: np.ndarray) -> tuple[bytes, bytes]:
    return struct.pack(">I", len(rows)), rows.astype(">u4").tobytes()
