"""Batches drawn from many streams: whoever comes first leads, the others' frames ride along."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Condition

import numpy as np

from pipeline.frames import FrameBatch


@dataclass(eq=False)
class Request:
    """One stream's frames waiting for the engine, then its labels or what went wrong."""

    frames: FrameBatch
    labels: np.ndarray | None = None  # uint8 [T, h, w]
    steps: np.ndarray | None = None  # int64 [T]
    error: BaseException | None = None

    @property
    def done(self) -> bool:
        return self.labels is not None or self.error is not None


class Batcher:
    """Gathers the requests of several threads, one a stream, into calls of an engine.

    A batch closes when every live stream has given frames, when it is full, or when the window is over,
    so that a slow stream never holds the others. Each stream has at most one request waiting and batches
    take the oldest first: nobody starves. Requests of different lengths never share a batch, because
    padding one would advance its state.

    Args:
        step: runs a batch and fills in each request's labels and steps.
        largest: how many streams a batch may hold.
        window_seconds: how long the first of a batch waits for others; 0 for not at all.
    """

    def __init__(
        self, step: Callable[[list[Request]], None], largest: int, window_seconds: float
    ) -> None:
        if largest < 1 or window_seconds < 0:
            raise ValueError(
                f"largest must be at least 1 and window_seconds at least 0, got {largest} and"
                f" {window_seconds}"
            )
        self._step, self.largest, self.window_seconds = step, largest, window_seconds
        self._changed = Condition()
        self._waiting: list[Request] = []
        self._live: set[str] = set()
        self._leading = False

    def join(self, stream_id: str) -> None:
        """A stream has begun: batches wait for it, within the window."""
        with self._changed:
            self._live.add(stream_id)

    def leave(self, stream_id: str) -> None:
        """A stream has ended: nobody waits for it any more."""
        with self._changed:
            self._live.discard(stream_id)
            self._changed.notify_all()

    def submit(self, frames: FrameBatch) -> Request:
        """Blocks until the frames are labelled; raises what the engine raised for their batch."""
        request = Request(frames)
        if self._wait_to_lead(request):
            while not request.done:  # a batch of older requests may have to go first
                self._lead()
            with self._changed:
                self._leading = False
                self._changed.notify_all()
        if request.error is not None:
            raise request.error
        return request

    def _wait_to_lead(self, request: Request) -> bool:
        """Wait until another thread has served the request, or this one is to lead (True)."""
        with self._changed:
            self._waiting.append(request)
            self._changed.notify_all()
            while not request.done and self._leading:
                self._changed.wait()
            if request.done:
                return False
            self._leading = True
            return True

    def _lead(self) -> None:
        batch = self._take()
        try:
            self._step(batch)
        except BaseException as error:  # every thread of the batch must learn of it
            for request in batch:
                request.error = error
        with self._changed:
            self._changed.notify_all()

    def _take(self) -> list[Request]:
        deadline = time.monotonic() + self.window_seconds
        with self._changed:
            while True:
                batch = self._batchable()
                left = deadline - time.monotonic()
                if left <= 0 or len(batch) >= min(self.largest, len(self._live)):
                    break
                self._changed.wait(left)
            for request in batch:
                self._waiting.remove(request)
            return batch

    def _batchable(self) -> list[Request]:
        length = len(self._waiting[0].frames)
        return [r for r in self._waiting if len(r.frames) == length][: self.largest]
