"""An MP4 that grows by fragments and ends as an ordinary one, in place.

While it grows, what is flushed can be played, and a crash costs what was not. In the end all fragments
become the content of one `mdat`, by writing sixteen bytes, and the tables of a `moov` behind them say where
the samples are: nothing is copied. What OBS calls a hybrid MP4 and FFmpeg `hybrid_fragmented`; made here
because neither can go on with a file that another process began.
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass, field

from pipeline.boxes import (
    Run,
    Samples,
    TrackHead,
    box,
    fragment,
    growing_movie,
    movie,
    read_fragment,
    walk,
)
from pipeline.errors import OutputError
from pipeline.parts import PartFile

_FTYP = box(b"ftyp", b"isom", struct.pack(">I", 512), b"isom", b"iso2", b"avc1", b"mp41", b"iso6")
_ENVELOPE_BYTES = 16
_OPEN = struct.pack(">I4sQ", _ENVELOPE_BYTES, b"free", 0)
_LARGEST_FRAGMENT_BYTES = 4 << 20


@dataclass
class _Pending:
    """Samples of a track that are in no fragment yet."""

    times: array[int] = field(default_factory=lambda: array("q"))
    ticks: list[int] = field(default_factory=list)
    data: list[bytes] = field(default_factory=list)
    keys: list[bool] = field(default_factory=list)


class Movie:
    """Samples of several tracks on their way into a file.

    Args:
        part: an empty file, or one that a `Movie` of these tracks wrote, cut behind a fragment.
        heads: the tracks.
        origins: where each track's time begins, as `origins` was of that `Movie`; None for an empty file.

    Attributes:
        samples: of each track, all that are in fragments.
        origins: zero, or the first sample's time where that is before zero.
    """

    def __init__(
        self, part: PartFile, heads: list[TrackHead], scale: int, origins: list[int] | None = None
    ) -> None:
        self._part, self._heads, self._scale = part, heads, scale
        self.samples = [Samples() for _ in heads]
        self.origins = origins or []
        self._pending = [_Pending() for _ in heads]
        self._bytes = self._fragments = 0
        self._end = 0
        if origins is not None:
            self._read()

    def add(self, track: int, time: int, ticks: int, data: bytes, key: bool = True) -> None:
        """Append a sample, `ticks` long as far as is known by now, to the track of that place in `heads`.

        A track's times increase. Nothing is written before a `flush`, or before there are four
        megabytes or a second.
        """
        shown = self._pending[0].times
        a_second = track == 0 and shown and time - shown[0] >= self._heads[0].scale
        if a_second or self._bytes > _LARGEST_FRAGMENT_BYTES:
            self.flush()
        pending = self._pending[track]
        if pending.times:  # now it is known
            pending.ticks[-1] = time - pending.times[-1]
        pending.times.append(time)
        pending.ticks.append(ticks)
        pending.data.append(data)
        pending.keys.append(key)
        self._bytes += len(data)

    def flush(self) -> None:
        """Write what there is as a fragment."""
        file, taken = self._part.file, [p for p in self._pending if p.times]
        if not taken:
            return
        if not self.origins:
            self.origins = [min(0, *p.times[:1], 0) for p in self._pending]
            moov = growing_movie(list(zip(self._heads, self.origins, strict=True)), self._scale)
            file.write(_FTYP + _OPEN + moov)
            self._end = len(_FTYP) + len(_OPEN) + len(moov)
        runs = [
            Run(number, max(0, p.times[0] - origin), tuple(p.ticks), tuple(map(len, p.data)),
                tuple(p.keys))
            for number, (p, origin) in enumerate(zip(self._pending, self.origins, strict=True), 1)
            if p.times
        ]  # fmt: skip
        self._fragments += 1
        head = fragment(self._fragments, runs)
        file.write(head)
        self._end += len(head)
        for run, pending in zip(runs, taken, strict=True):
            self._note(run, pending.times)
            file.write(b"".join(pending.data))
        self._pending, self._bytes = [_Pending() for _ in self._heads], 0

    def finish(self, heads: list[TrackHead], samples: list[Samples], scale: int) -> None:
        """Make the flushed file an ordinary one.

        Args:
            heads, samples: of the tracks, in other scales perhaps than those it grew with.
            scale: ticks a second of the movie's own times.
        """
        used = [(h, s) for h, s in zip(heads, samples, strict=True) if s.times]
        file = self._part.file
        file.write(movie(used, scale))
        file.flush()  # all of it is there before anything points to it
        file.seek(len(_FTYP))
        file.write(struct.pack(">I4sQ", 1, b"mdat", self._end - len(_FTYP)))

    def _note(self, run: Run, times: array[int]) -> None:
        samples = self.samples[run.track - 1]
        count = len(samples.times)
        samples.keys.extend(count + i for i, key in enumerate(run.keys, 1) if key)
        samples.times.extend(times)
        samples.sizes.extend(run.sizes)
        samples.chunk_places.append(self._end)
        samples.chunk_lengths.append(len(times))
        samples.last_ticks = run.ticks[-1]
        self._end += sum(run.sizes)

    def _read(self) -> None:
        """Take over the fragments that are in the file."""
        file = self._part.file
        end = file.seek(0, 2)
        start = len(_FTYP)
        file.seek(start)
        file.write(_OPEN)  # it may have been finished once
        try:
            for name, at, size in walk(file, start + _ENVELOPE_BYTES, end):
                if name == b"moof":
                    file.seek(at)
                    self._take_over(file.read(size), at)
        except (ValueError, KeyError, struct.error) as error:
            raise OutputError(
                f"cannot go on with {self._part.part}: it is damaged ({error}); begin anew"
            ) from error
        self._end = file.seek(0, 2)

    def _take_over(self, moof: bytes, at: int) -> None:
        self._fragments += 1
        for run, place in read_fragment(moof):
            time, times = run.start + self.origins[run.track - 1], array("q")
            for ticks in run.ticks:
                times.append(time)
                time += ticks
            self._end = at + place
            self._note(run, times)
