"""Batches drawn from many streams: whoever comes first leads, the others' frames ride along."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Set
from dataclasses import dataclass
from threading import Condition, Lock

import numpy as np

from pipeline.frames import FrameBatch
from pipeline.work import Step


@dataclass(eq=False)
class Request:
    """One stream's frames waiting for the engine, then its labels or what went wrong."""

    frames: FrameBatch
    submitted_at: float = 0.0  # `time.monotonic()`, seconds
    turn: Condition | None = None  # wakes the stream's own thread and no other
    labels: np.ndarray | None = None  # uint8 [T, h, w]
    steps: np.ndarray | None = None  # int64 [T]
    step: Step | None = None
    error: BaseException | None = None

    @property
    def done(self) -> bool:
        return self.labels is not None or self.error is not None

    @property
    def stream_id(self) -> str:
        return self.frames.stream.stream_id


class Company:
    """The streams that a batch waits for: those that gave frames of late. Knows no threads.

    One that let a window pass is not waited for again before it has given frames: a slow one costs the others
    at most one window for each batch of its own.

    Args:
        window_seconds: how long a batch waits for others once the engine is free; 0 for not at all.
    """

    def __init__(self, window_seconds: float) -> None:
        if window_seconds < 0:
            raise ValueError(f"window_seconds must be at least 0, got {window_seconds}")
        self.window_seconds = window_seconds
        self._awaited: set[str] = set()

    def join(self, stream_id: str) -> None:
        """A stream has begun, or has given frames: batches wait for it."""
        self._awaited.add(stream_id)

    def leave(self, stream_id: str) -> None:
        """A stream has ended: nobody waits for it any more."""
        self._awaited.discard(stream_id)

    def due_at(self, since: float, here: Set[str]) -> float:
        """When the batch is to go, seconds: minus infinity for at once.

        Args:
            since: since when there has been something for a free engine to do, seconds.
            here: the streams that it could have.
        """
        return since + self.window_seconds if self._awaited - here else -math.inf

    def close(self, here: Set[str]) -> None:
        """The window is over: who is not here is not waited for again."""
        self._awaited &= here


class Waiting:
    """The requests that wait, and the rules by which batches are made of them. Knows no threads.

    - A batch has the oldest request and, oldest first, those of the same number of frames: padding a
      shorter one would advance its state. So a request waits for at most as many batches as there are
      older requests, one fewer than there are streams (a stream has one waiting at most); and where all
      have the same number of frames, for those of ceil(streams / largest) batches, its own among them.
    - A batch is due when it is full, when every stream it waits for has a request, or when it has waited
      for the window: see `Company`.

    Args:
        largest: how many streams a batch may hold.
        window_seconds: how long a batch waits for others once the engine is free; 0 for not at all.
    """

    def __init__(self, largest: int, window_seconds: float) -> None:
        if largest < 1:
            raise ValueError(f"largest must be at least 1, got {largest}")
        self.largest, self.window_seconds = largest, window_seconds
        self._company = Company(window_seconds)
        self._requests: list[Request] = []  # oldest first

    def join(self, stream_id: str) -> None:
        """A stream has begun: batches wait for it, within the window."""
        self._company.join(stream_id)

    def leave(self, stream_id: str) -> None:
        """A stream has ended: nobody waits for it any more."""
        self._company.leave(stream_id)

    def add(self, request: Request) -> None:
        """Raises ValueError if the stream has a request waiting already."""
        if any(other.stream_id == request.stream_id for other in self._requests):
            raise ValueError(f"stream {request.stream_id!r} waits with a request already")
        self._requests.append(request)
        self._company.join(request.stream_id)

    def drop(self, request: Request) -> None:
        """Forget a request that nobody waits for any more; unknown ones are ignored."""
        if request in self._requests:
            self._requests.remove(request)

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def oldest(self) -> Request | None:
        return self._requests[0] if self._requests else None

    def due_at(self, free_since: float) -> float:
        """When the next batch is to go, seconds: minus infinity for at once, infinity if nothing waits.

        Args:
            free_since: since when the engine has had nothing to do, seconds.
        """
        if not self._requests:
            return math.inf
        if len(self._next()) >= self.largest:
            return -math.inf
        since = max(self._requests[0].submitted_at, free_since)
        return self._company.due_at(since, self._here())

    def take(self, window_over: bool) -> list[Request]:
        """The next batch; after its window, nobody is waited for again who is not here by now."""
        if window_over:
            self._company.close(self._here())
        batch = self._next()
        self._requests = [request for request in self._requests if request not in batch]
        return batch

    def _here(self) -> set[str]:
        return {request.stream_id for request in self._requests}

    def _next(self) -> list[Request]:
        length = len(self._requests[0].frames)
        return [r for r in self._requests if len(r.frames) == length][: self.largest]


class Batcher:
    """Gathers the requests of several threads, one a stream, into calls of an engine.

    The thread that finds nobody leading leads: it waits for company, as `Waiting` says, and runs batches
    until its own request is done; then the oldest that waits leads. Each thread has a condition of its
    own to sleep on, so that with many streams a batch wakes only those it served.

    Args:
        step: runs a batch and fills in each request's steps, then its labels.
        largest, window_seconds: as `Waiting` has them.
    """

    def __init__(
        self, step: Callable[[list[Request]], None], largest: int, window_seconds: float
    ) -> None:
        self._step = step
        self._waiting = Waiting(largest, window_seconds)
        self._lock = Lock()
        self._changed = Condition(self._lock)  # the leader alone waits for it
        self._leader: Request | None = None
        self._free_since = -math.inf

    @property
    def waiting(self) -> int:
        """Requests that wait for a batch of theirs."""
        return len(self._waiting)

    def join(self, stream_id: str) -> None:
        """A stream has begun: batches wait for it, within the window."""
        with self._lock:
            self._waiting.join(stream_id)

    def leave(self, stream_id: str) -> None:
        """A stream has ended: nobody waits for it any more."""
        with self._lock:
            self._waiting.leave(stream_id)
            self._changed.notify()

    def submit(self, frames: FrameBatch) -> Request:
        """Blocks until the frames are labelled; raises what the engine raised for their batch."""
        turn = Condition(self._lock)
        request = Request(frames, time.monotonic(), turn)
        try:
            with self._lock:
                self._waiting.add(request)
                self._changed.notify()
                self._leader = self._leader or request
                while not request.done and self._leader is not request:
                    turn.wait()
            while not request.done:  # it leads; a batch of older requests may have to go first
                self._run(self._close())
        finally:  # even if this thread was interrupted: the others need a leader
            self._retire(request)
        if request.error is not None:
            raise request.error
        return request

    def _retire(self, request: Request) -> None:
        with self._lock:
            self._waiting.drop(request)
            if self._leader is request:
                self._leader = self._waiting.oldest
                _wake(self._leader)

    def _close(self) -> list[Request]:
        """Wait until a batch is due, and take it."""
        with self._lock:
            while True:
                left = self._waiting.due_at(self._free_since) - time.monotonic()
                if left <= 0:
                    return self._waiting.take(window_over=left > -math.inf)
                self._changed.wait(left)

    def _run(self, batch: list[Request]) -> None:
        try:
            self._step(batch)
        except BaseException as error:  # every thread of the batch must learn of it
            for request in batch:
                request.error = error
        with self._lock:
            self._free_since = time.monotonic()
            for request in batch:
                _wake(request)


def _wake(request: Request | None) -> None:
    if request is not None and request.turn is not None:
        request.turn.notify()
