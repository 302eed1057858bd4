"""The thread that writes a camera's tracks, so that no disk ever holds up whoever records."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Lock, Thread

from pipeline.errors import OutputError
from pipeline.session.camera import CameraTracks

_RETRY_SECONDS = 5.0
_TIDY_SECONDS = 30.0  # segments grow old while nothing comes
_LINGER_SECONDS = 20.0  # so late may come what a camera that was removed still had


@dataclass(frozen=True)
class _Item:
    """Something to write.

    Attributes:
        size: bytes it holds meanwhile.
        always: tried right after an error too.
    """

    size: int
    write: Callable[[], None]
    always: bool


class WritingThread:
    """Writes what it is given, in order. There is a thread while there is, or may come, something.

    After an error what comes is left out for some seconds.

    Args:
        name: the camera's.
        tracks: closed at the end.
        tidy: removes what is too old or too much; called now and then.

    Attributes:
        problem: why nothing is being written just now, one line; None if all is well.
        waiting_bytes: of what is not written yet.
    """

    def __init__(self, name: str, tracks: CameraTracks, tidy: Callable[[], None]) -> None:
        self.problem: str | None = None
        self.waiting_bytes = 0
        self._name, self._tracks, self._tidy = name, tracks, tidy
        self._queue: SimpleQueue[_Item | None] = SimpleQueue()
        self._lock = Lock()
        self._thread: Thread | None = None
        self._leaving = self._closing = False

    def put(self, size: int, write: Callable[[], None], *, always: bool = False) -> None:
        """Have it written; returns at once. Nothing more is taken after `ask_to_close`."""
        with self._lock:
            if self._closing:
                return
            self.waiting_bytes += size
            self._queue.put(_Item(size, write, always))
            if self._thread is None:
                self._thread = Thread(target=self._run, name=f"record-{self._name}", daemon=True)
                self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be written."""
        return self._queue.empty() and self.waiting_bytes == 0

    def stay(self) -> None:
        """More will come, however long it takes."""
        self._leaving = False

    def leave(self) -> None:
        """Close the tracks, and end, once nothing has come for some seconds; what comes later begins anew."""
        self._leaving = True
        self.put(0, lambda: None)  # who waits for the next is to wait no longer than that

    def ask_to_close(self) -> None:
        """Close the tracks once all is written."""
        with self._lock:
            self._closing = True
            self._queue.put(None)

    def wait_closed(self, seconds: float) -> bool:
        """Wait for that, no longer than so; returns whether it is done."""
        thread = self._thread
        if thread is None:
            return True
        thread.join(seconds)
        return not thread.is_alive()

    def _run(self) -> None:
        while True:
            self._write_all()
            try:
                self._tracks.close()
            except OutputError as error:
                self._fail(str(error))
            with self._lock:
                if self._queue.empty():
                    self._thread = None
                    return

    def _write_all(self) -> None:
        """Write until nothing more comes."""
        retry_at = 0.0
        while (item := self._next()) is not None:
            try:
                if item.always or time.monotonic() >= retry_at:
                    item.write()
                    retry_at = 0.0  # the disk works again
                    if self._tracks.take_sealed():
                        self._tidy()
                    self.problem = None if self._tracks.writing else self.problem
            except OutputError as error:
                retry_at = time.monotonic() + _RETRY_SECONDS
                self._fail(str(error))
            except Exception as error:
                retry_at = time.monotonic() + _RETRY_SECONDS
                self._fail(f"recording {self._name}: {type(error).__name__}: {error}")
            finally:
                with self._lock:
                    self.waiting_bytes -= item.size

    def _next(self) -> _Item | None:
        """What is to be written next; None if nothing more will come."""
        while True:
            leaving = self._leaving
            try:
                return self._queue.get(timeout=_LINGER_SECONDS if leaving else _TIDY_SECONDS)
            except Empty:
                if leaving:
                    return None
                self._tidy()

    def _fail(self, problem: str) -> None:
        self.problem = problem
        self._tracks.abandon()
        self._tidy()  # the disk may be full
