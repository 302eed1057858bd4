"""What a job has done so far, beside its results: written to the end only, a line of JSON a source.

A line says of one source that it is done, or how often it has failed. The last line counts; one that a
crash cut off does not. What is missing costs another look at the source's manifest and no more: that is what
says that results are whole. In a bucket, where nothing can be appended to, the lines of a few seconds are an
object.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.cluster import storage
from pipeline.cluster.errands import JOB_FOLDER
from pipeline.cluster.storage import is_remote, joined
from pipeline.errors import OutputError
from pipeline.parts import lock_folder, output_errors, write_whole

SYNC_SECONDS = 5.0
LEASE_SECONDS, RENEW_SECONDS = 60.0, 15.0
_LEDGER, _LOCK = "ledger.jsonl", "job.lock"


class Ledger:
    """The ledger of an output folder; the job must hold its lock.

    Args:
        out: the job's output folder, here or in a bucket.
        anew: forget what there is.

    Raises OutputError or StorageError if it cannot be written.
    """

    def __init__(self, out: str, anew: bool) -> None:
        self._remote = is_remote(out)
        self._folder = joined(out, JOB_FOLDER)
        self._lines: list[str] = []
        self._number = 0
        self._synced = time.monotonic()
        self._file: BinaryIO | None = None
        self._run = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
        if anew:
            self._forget()
        if not self._remote:
            self._file = self._open()

    def _open(self) -> BinaryIO:
        path = Path(self._folder) / _LEDGER
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+b")
            if size := file.seek(0, os.SEEK_END):
                file.seek(size - 1)
                if file.read(1) != b"\n":  # a crash cut the last line off
                    file.write(b"\n")
            return file

    def _forget(self) -> None:
        if not self._remote:
            with output_errors(Path(self._folder)):
                (Path(self._folder) / _LEDGER).unlink(missing_ok=True)
            return
        for uri in self._objects():
            storage.remove(uri)

    def records(self) -> Iterator[dict[str, Any]]:
        """What was noted so far, oldest first; lines that are damaged are left out."""
        for line in self._read():
            with suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict):
                    yield record

    def _read(self) -> Iterator[bytes]:
        if self._remote:
            for uri in self._objects():
                yield from (storage.read(uri) or b"").splitlines()
            return
        with suppress(FileNotFoundError), (Path(self._folder) / _LEDGER).open("rb") as file:
            yield from file

    def _objects(self) -> list[str]:
        store, path = storage.open_store(self._folder)
        pattern = f"{path.rstrip('/')}/ledger-*.jsonl"
        names: list[str] = storage.again(self._folder, lambda: store.glob(pattern))
        return [joined(self._folder, os.path.basename(name)) for name in sorted(names)]

    def note(self, record: dict[str, Any]) -> None:
        """Add a line. It survives this process at once, the machine after `SYNC_SECONDS`.

        Where the bucket does not answer, the lines wait for the next time.
        """
        line = json.dumps(record)
        if self._file is not None:
            with output_errors(Path(self._folder) / _LEDGER):
                self._file.write(line.encode() + b"\n")
                self._file.flush()
        else:
            self._lines.append(line)
        if time.monotonic() - self._synced >= SYNC_SECONDS:
            try:
                self.sync()
            except storage.StorageError as error:
                if not error.passing:
                    raise
                self._synced = time.monotonic()  # it has tried for seconds already

    def sync(self) -> None:
        """Make what was noted last, whatever dies."""
        self._synced = time.monotonic()
        if self._file is not None:
            with output_errors(Path(self._folder) / _LEDGER):
                os.fsync(self._file.fileno())
        elif self._lines:
            name = f"ledger-{self._run}-{self._number:06d}.jsonl"
            storage.write(joined(self._folder, name), "\n".join([*self._lines, ""]).encode())
            self._lines, self._number = [], self._number + 1

    def close(self) -> None:
        """May be called again."""
        self.sync()
        if self._file is not None:
            self._file.close()
            self._file = None


def write_report(out: str, report: dict[str, Any]) -> str:
    """Write `report.json` into the output folder, whole; returns where it is."""
    place = joined(out, "report.json")
    data = json.dumps(report, indent=2).encode() + b"\n"
    if is_remote(out):
        storage.write(place, data)
    else:
        write_whole(Path(place), data)
    return place


class Lock:
    """The right to write to an output folder, for one job at a time; as a context manager.

    Here it is the operating system's, and ends with the process. In a bucket it is an object that says when
    its job was last alive: one that was not for `LEASE_SECONDS` may be taken over.

    Raises OutputError on entering if another job has it.
    """

    def __init__(self, out: str) -> None:
        self._out = out
        self._folder = joined(out, JOB_FOLDER)
        self._me = {"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex,
                    "since": datetime.now(UTC).isoformat(timespec="seconds")}  # fmt: skip
        self._release: Callable[[], None] = lambda: None
        self.lost = threading.Event()  # another job has taken it over

    def __enter__(self) -> Lock:
        if is_remote(self._out):
            self._lease()
        else:
            self._lock()
        return self

    def __exit__(self, *error: object) -> None:
        self._release()

    def _lock(self) -> None:
        folder = Path(self._folder)
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            self._release = lock_folder(folder, patience_seconds=1.0)
        except OutputError as error:
            raise self._taken(_parsed(_read_file(folder / _LOCK))) from error
        write_whole(folder / _LOCK, json.dumps(self._me).encode())

    def _taken(self, holder: dict[str, Any], advice: str = "") -> OutputError:
        who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
        return OutputError(
            f"another job is writing to {self._out} ({who}, since {holder.get('since', '?')}): wait"
            f" for it, or give another --out{advice}"
        )

    def _lease(self) -> None:
        uri = joined(self._folder, _LOCK)
        holder = _parsed(storage.read(uri))
        silent = time.time() - holder.get("alive", 0.0)
        if holder and silent < LEASE_SECONDS:
            rest = f"; if it has crashed, its lock ends in {LEASE_SECONDS - silent:.0f} s"
            raise self._taken(holder, rest)
        if holder:
            storage.remove(uri)
        if not self._create(uri):
            raise self._taken(_parsed(storage.read(uri)))
        ended = threading.Event()
        thread = threading.Thread(target=self._renew, args=(uri, ended), daemon=True)
        thread.start()

        def release() -> None:
            ended.set()
            thread.join()
            if not self.lost.is_set():
                storage.remove(uri)

        self._release = release

    def _create(self, uri: str) -> bool:
        """Put the object there unless another job just did."""
        store, path = storage.open_store(uri)
        with storage.errors_of(uri):
            try:
                store.pipe_file(path, self._alive(), mode="create")
            except FileExistsError:
                return False
            except (NotImplementedError, TypeError, ValueError):  # a store without that
                store.pipe_file(path, self._alive())
        return self._mine(uri)

    def _mine(self, uri: str) -> bool:
        return _parsed(storage.read(uri)).get("token") == self._me["token"]

    def _renew(self, uri: str, ended: threading.Event) -> None:
        while not ended.wait(RENEW_SECONDS):
            with suppress(storage.StorageError):  # the next time may be better
                if not self._mine(uri):
                    self.lost.set()
                    return
                storage.write(uri, self._alive())

    def _alive(self) -> bytes:
        return json.dumps({**self._me, "alive": time.time()}).encode()


def _read_file(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _parsed(data: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(data or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
