"""The recorded labels of a camera in order, where labelling can start exactly, and which frame is whose."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from itertools import islice, zip_longest

import numpy as np

from pipeline.session.checks import FormatError
from pipeline.session.packets import DecodedFrame
from pipeline.session.reader import CameraFiles, Segment, Session
from pipeline.session.records import CheckpointRecord, LabelRecord

_WINDOW = 256  # labels looked through for a frame: so many may be missing from the recording


@dataclass(frozen=True)
class LabelEntry:
    """One recorded label map.

    Attributes:
        record: its line.
        segment: where it lies.
        seconds: session time at which its frame came.
        checkpoint: the state after it, if it was recorded.
        follows_damage: lines of the log before it are missing.
    """

    record: LabelRecord
    segment: Segment
    seconds: float
    checkpoint: CheckpointRecord | None = None
    follows_damage: bool = False

    def labels(self) -> np.ndarray:
        """uint8 [h, w]. Raises FormatError or OSError."""
        with self.segment.media() as media:
            return media.labels(self.record.place)

    def state(self) -> np.ndarray | None:
        """The state after it, float32 [C, h, w]; None if there is none that is whole."""
        if self.checkpoint is None:
            return None
        try:
            with self.segment.media() as media:
                return media.state(self.checkpoint)
        except (FormatError, OSError):
            return None


@dataclass(frozen=True)
class Start:
    """Where labelling starts.

    Attributes:
        entry: the first to be labelled.
        state: the memory it starts from; None for zeros.
        steps: frames that the state has seen.
        exact: what follows is as it was recorded.
    """

    entry: LabelEntry
    state: np.ndarray | None
    steps: int
    exact: bool


def entries_of(
    session: Session, segment: Segment, damaged: bool = False
) -> Generator[LabelEntry, None, bool]:
    """The label maps of one segment, each with the state recorded after it.

    Args:
        damaged: something is missing before it.

    Returns:
        whether something is missing after the last one.
    """
    held: LabelEntry | None = None
    for record in segment.records(session.notes):
        if record is None:
            damaged = True
        elif isinstance(record, CheckpointRecord) and held is not None and not damaged:
            held = replace(held, checkpoint=record)
        elif isinstance(record, LabelRecord):
            if held is not None:
                yield held
            seconds = session.seconds(segment, record.captured)
            held = LabelEntry(record, segment, seconds, None, damaged or record.after_loss)
            damaged = False
    if held is not None:
        yield held
    return damaged or not segment.sealed


def all_entries(session: Session, camera: CameraFiles, start: Start | None) -> Iterator[LabelEntry]:
    """The label maps from `start` on, or all."""
    first = start.entry.segment.number if start else 0
    before: Segment | None = None
    damaged = False
    for segment in camera.labels:
        if segment.number < first:
            continue
        # A whole segment that is missing is damage too.
        damaged |= before is not None and segment.number != before.number + 1
        entries = entries_of(session, segment, damaged)
        if start is not None and segment.number == first:
            damaged = yield from _after(entries, start.entry.record.place.at)
        else:
            damaged = yield from entries
        before = segment


def _after(
    entries: Generator[LabelEntry, None, bool], at: int
) -> Generator[LabelEntry, None, bool]:
    """The entries from a place in the media file on."""
    while True:
        try:
            entry = next(entries)
        except StopIteration as end:
            return bool(end.value)
        if entry.record.place.at >= at:
            yield entry


def find_start(session: Session, camera: CameraFiles, seconds: float) -> Start | None:
    """The last place up to `seconds` from which labels are as they were recorded.

    None if the camera has no labels. Where there is no such place before, the first one after; where there
    is none at all, the first label, which then is not exact.
    """
    began = [session.seconds(segment, segment.head.began) for segment in camera.labels]
    for place in range(len(began) - 1, -1, -1):
        if began[place] <= seconds:
            here = [start for due, start in _starts(session, camera, place) if due <= seconds]
            if here:
                return here[-1]
    for place in range(len(began)):
        for _, start in _starts(session, camera, place):
            return start
    for entry in all_entries(session, camera, None):
        return Start(entry, None, 0, exact=False)
    return None


def warm_start(session: Session, camera: CameraFiles, seconds: float) -> Start | None:
    """The last label map up to `seconds`, or else the first, to start from zeros: nothing is exact then.

    None if the camera has no labels.
    """
    began = [session.seconds(segment, segment.head.began) for segment in camera.labels]
    place = max((place for place, at in enumerate(began) if at <= seconds), default=0)
    found: LabelEntry | None = None
    for entry in all_entries(session, replace(camera, labels=camera.labels[place:]), None):
        if found is not None and entry.seconds > seconds:
            break
        found = entry
    return Start(found, None, 0, exact=False) if found is not None else None


def _starts(session: Session, camera: CameraFiles, place: int) -> Iterator[tuple[float, Start]]:
    """The places in one segment from which labels are exact; also the one right after its end.

    With each the latest time of a frame up to it: codecs give frames in another order than they came in.
    """
    own = camera.labels[place]
    both = replace(camera, labels=camera.labels[place : place + 2])
    entries = []
    for entry in all_entries(session, both, None):
        entries.append(entry)
        if entry.segment is not own:
            break
    due = -math.inf
    for entry, after in zip_longest(entries, entries[1:]):
        due = max(due, entry.seconds)
        if entry.record.reset and entry.segment is own:
            yield due, Start(entry, None, 0, exact=True)
        if after is None or after.record.reset or after.follows_damage:
            continue
        state = entry.state()
        if state is not None and entry.checkpoint is not None:
            yield max(due, after.seconds), Start(after, state, entry.checkpoint.steps, exact=True)


class Matcher:
    """Finds each decoded frame's label map; both come in order.

    Attributes:
        lost: label maps whose frames did not come.
    """

    def __init__(self, entries: Iterator[LabelEntry]) -> None:
        self._entries = entries
        self._window: deque[LabelEntry] = deque()
        self.lost = 0

    @property
    def over(self) -> bool:
        """Whether no label map is left."""
        self._fill()
        return not self._window

    def match(self, frame: DecodedFrame) -> LabelEntry | None:
        """The label map of a frame, None if it was not labelled; `lost` counts those it passes over."""
        connection = frame.segment.head.connection
        self._fill()
        while self._window and self._window[0].record.connection < connection:
            self._window.popleft()
            self.lost += 1
            self._fill()
        found = self._find(frame, connection)
        if found is None:
            return None
        for _ in range(found):
            self._window.popleft()
        self.lost += found
        return self._window.popleft()

    def finish(self) -> int:
        """No frame follows; returns `lost`, with all that is left."""
        self.lost += len(self._window) + sum(1 for _ in self._entries)
        self._window.clear()
        return self.lost

    def _fill(self) -> None:
        self._window.extend(islice(self._entries, _WINDOW - len(self._window)))

    def _find(self, frame: DecodedFrame, connection: int) -> int | None:
        first: int | None = None
        pts = frame.frame.pts
        for place, entry in enumerate(self._window):
            record = entry.record
            if record.connection != connection:
                break
            counted = frame.from_start and record.decoded_index == frame.ordinal
            if pts is None or record.pts is None:
                if counted and record.pts == pts:
                    return place
            elif record.pts == pts:
                if counted:
                    return place
                first = place if first is None else first
        return first
