"""What happened to the cameras of a session, and when: their states, their gaps, and the frames dropped."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from threading import Event, Lock, Thread

from pipeline.session.moments import began_at
from pipeline.session.reader import CameraFiles, Session
from pipeline.session.records import EventRecord

_MOST_SPANS = 500  # of each kind and camera: nobody can see more on one line


@dataclass(frozen=True)
class Span:
    """A part of a session, in seconds from its beginning.

    Attributes:
        text: what was the case.
        reason: why.
        frames: dropped in it.
    """

    start: float
    end: float
    text: str
    reason: str
    frames: int = 0


@dataclass
class CameraTimeline:
    """One camera's events by session seconds, in order.

    Attributes:
        states: when it came into which state, and why.
        connected: when it was opened.
        gaps: silences, as they were noticed at their end: when, how long (0 if unknown), and why.
        drops: frames not labelled: when, how many, and why.
    """

    states: list[tuple[float, str, str]] = field(default_factory=list)
    connected: list[float] = field(default_factory=list)
    gaps: list[tuple[float, float, str]] = field(default_factory=list)
    drops: list[tuple[float, int, str]] = field(default_factory=list)

    def states_until(self, seconds: float, most: int) -> list[tuple[float, str, str]]:
        """The latest states up to a moment, at most so many."""
        end = bisect_right(self.states, seconds, key=lambda state: state[0])
        return self.states[max(0, end - most) : end]

    def dropped_until(self, seconds: float) -> dict[str, int]:
        """Frames dropped up to a moment, by reason."""
        found = {}
        for reason, (times, sums) in self._drop_sums.items():
            if count := bisect_right(times, seconds):
                found[reason] = sums[count - 1]
        return found

    @cached_property
    def _drop_sums(self) -> dict[str, tuple[list[float], list[int]]]:
        """Of each reason: when frames were dropped, and how many until then."""
        found: dict[str, tuple[list[float], list[int]]] = {}
        for at, frames, reason in self.drops:
            times, sums = found.setdefault(reason, ([], []))
            times.append(at)
            sums.append(frames + (sums[-1] if sums else 0))
        return found

    def reconnects_until(self, seconds: float) -> int:
        """How often it was opened again up to a moment."""
        return max(0, bisect_right(self.connected, seconds) - 1)

    def state_spans(self, end: float) -> list[Span]:
        """How long it was in each state."""
        latest = self.states[-_MOST_SPANS:]
        ends = [*(at for at, _, _ in latest[1:]), end]
        return [
            Span(at, max(at, until), state, reason)
            for (at, state, reason), until in zip(latest, ends, strict=False)  # none has no end
        ]

    def gap_spans(self) -> list[Span]:
        """Its silences, the longest if there are too many."""
        longest = sorted(self.gaps, key=lambda gap: gap[1])[-_MOST_SPANS:]
        return [
            Span(min(at, max(0.0, at - length)), at, "gap", why)
            for at, length, why in sorted(longest)
        ]

    def drop_spans(self, duration: float) -> list[Span]:
        """Where frames were dropped, what is near to each other together."""
        near, found = duration / _MOST_SPANS, list[Span]()
        for at, frames, reason in self.drops:
            last = found[-1] if found else None
            if last is not None and at - last.start <= near:
                told = last.reason.split(", ")
                why = ", ".join(told if reason in told else [*told, reason])
                found[-1] = Span(last.start, at, "dropped", why, last.frames + frames)
            else:
                found.append(Span(at, at, "dropped", reason, frames))
        return found


class Timeline:
    """What happened to each camera; what of it has been read can be asked for.

    A thread reads it, because a long session has many logs.

    Attributes:
        began_at: `time.time()` at the session's beginning.
        complete: all of it has been read.
        cameras: by name.
    """

    def __init__(self, session: Session) -> None:
        self.began_at = began_at(session)
        self.complete = False
        self.cameras = {name: CameraTimeline() for name in session.cameras}
        self._session, self._stop = session, Event()
        self._thread = Thread(target=self._read, name="timeline", daemon=True)
        self._lock = Lock()

    def start(self) -> None:
        """Begin to read, unless that has begun, or been closed, before."""
        with self._lock:
            if self._thread.ident is None and not self._stop.is_set():
                self._thread.start()

    def close(self) -> None:
        """Read no further."""
        with self._lock:
            self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _read(self) -> None:
        for name, camera in self._session.cameras.items():
            found = read_camera(self._session, camera, self._stop.is_set)
            if self._stop.is_set():
                return
            self.cameras[name] = found
        self.complete = True


def read_camera(
    session: Session, camera: CameraFiles, stopped: Callable[[], bool] = lambda: False
) -> CameraTimeline:
    """What a camera's logs tell, as far as they are whole, or until it is `stopped`."""
    found = CameraTimeline()
    for segment in (*camera.packets, *camera.labels):
        if stopped():
            break
        for event in segment.events():
            _add(found, session.seconds(segment, event.mono), event)
    found.states.sort()
    found.connected.sort()
    found.gaps.sort()
    found.drops.sort()
    return found


def _add(found: CameraTimeline, at: float, event: EventRecord) -> None:
    if event.kind == "state":
        found.states.append((at, event.text, event.reason))
    elif event.kind == "connected":
        found.connected.append(at)
    elif event.kind == "gap":
        found.gaps.append((at, max(0.0, event.seconds or 0.0), event.reason))
    elif event.kind == "dropped" and event.frames:
        found.drops.append((at, event.frames, event.reason))
