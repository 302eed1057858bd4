"""When things happened in a session, by its logs alone: its length, and the frames around a moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate

from pipeline.session.reader import CameraFiles, Segment, Session
from pipeline.session.records import EventRecord, LabelRecord, PacketRecord, Record


def duration_of(session: Session) -> float:
    """Seconds from the session's beginning to the last record of its last segments."""
    end = 0.0
    for camera in session.cameras.values():
        for segment in (*camera.packets[-1:], *camera.labels[-1:]):
            end = max(end, session.seconds(segment, segment.head.began))
            for record in segment.records(session.notes):
                if (at := _moment(record)) is not None:
                    end = max(end, session.seconds(segment, at))
    return end


def frame_before(session: Session, seconds: float) -> float | None:
    """When the frame came that was seen before the one that is seen at a moment, of all cameras.

    Returns:
        session seconds; None if no frame came before that one.
    """
    seen = _last(session, lambda at: at <= seconds)
    return None if seen is None else _last(session, lambda at: at < seen)


def began_at(session: Session) -> float:
    """`time.time()` at the session's beginning, by the clock of its first run."""
    segments = [s for c in session.cameras.values() for s in (*c.packets, *c.labels)]
    first = min(segments, key=lambda segment: session.seconds(segment, segment.head.began))
    identity, wall, monotonic = first.head.run
    return wall - monotonic - session.clock[identity]


def _last(session: Session, fits: Callable[[float], bool]) -> float | None:
    found = [_last_of(session, camera, fits) for camera in session.cameras.values()]
    return max((at for at in found if at is not None), default=None)


def _last_of(session: Session, camera: CameraFiles, fits: Callable[[float], bool]) -> float | None:
    """The last frame of a camera whose time fits; where labels were recorded, of those labelled."""
    segments = camera.labels or camera.packets
    for place in range(len(segments) - 1, -1, -1):
        if fits(session.seconds(segments[place], segments[place].head.began)):
            before = max(_frames(session, segments[place - 1]), default=0.0) if place else 0.0
            # In the frames' order: one that came before the last is let go right after it.
            dues = accumulate(_frames(session, segments[place]), max, initial=before)
            times = [at for at in list(dues)[1:] if fits(at)]
            if times:
                return max(times)
    return None


def _frames(session: Session, segment: Segment) -> Iterator[float]:
    for record in segment.records(session.notes):
        at = None if isinstance(record, EventRecord) else _moment(record)
        if at is not None:
            yield session.seconds(segment, at)


def _moment(record: Record | None) -> float | None:
    """Monotonic time of what happened, None where a record tells of nothing that did."""
    if isinstance(record, LabelRecord):
        return record.captured
    if isinstance(record, PacketRecord):
        return record.arrived
    return record.mono if isinstance(record, EventRecord) else None
