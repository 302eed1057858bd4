"""The sources of a job and how far each is: on disk, so that their number does not matter.

It is made anew for each run, from what is found and from the ledger; nothing depends on it afterwards.
"""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.closing import Closing
from pipeline.cluster.listing import Listed
from pipeline.sources import Source

LEFT, RUNNING, DONE, QUARANTINED = "left", "running", "done", "quarantined"
_SCHEMA = """
CREATE TABLE sources (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL, key TEXT NOT NULL, uri TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL, files TEXT NOT NULL, root TEXT NOT NULL, size INTEGER NOT NULL,
    version TEXT NOT NULL, state TEXT NOT NULL DEFAULT 'left', tries INTEGER NOT NULL DEFAULT 0,
    not_before REAL NOT NULL DEFAULT 0, frames INTEGER NOT NULL DEFAULT 0, earlier INTEGER NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT '');
CREATE INDEX by_key ON sources (key);
"""
_INDEX = "CREATE INDEX next ON sources (state, size DESC, seq)"


@dataclass(frozen=True)
class Task:
    """A source that is to be worked on.

    Attributes:
        source: the stream.
        size: bytes, 0 where unknown.
        version: of its content.
        tries: how often it has failed so far.
        root: what it was found under.
    """

    source: Source
    size: int
    version: str
    tries: int
    root: str


@dataclass(frozen=True)
class Counts:
    """How many sources are where.

    Attributes:
        left, running, done, quarantined: sources.
        bytes_done, bytes_all: of the sources, where they say it.
        frames: of the sources that are done.
    """

    left: int
    running: int
    done: int
    quarantined: int
    bytes_done: int
    bytes_all: int
    frames: int


class Catalogue(Closing):
    """The list. Not for several threads. As a context manager it is removed at the end."""

    def __init__(self) -> None:
        handle, name = tempfile.mkstemp(prefix="roadmask-", suffix=".sqlite")
        os.close(handle)
        self._path = Path(name)
        self._base = sqlite3.connect(name, isolation_level=None)
        self._base.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -2000;"
            + _SCHEMA
        )

    def close(self) -> None:
        """Remove it. May be called again."""
        self._base.close()
        self._path.unlink(missing_ok=True)

    def fill(self, found: Iterable[Listed]) -> None:
        """Take what was found, each file once, under names that differ by more than case."""
        self._base.execute("BEGIN")
        for item in found:
            source = item.source
            self._base.execute(
                "INSERT OR IGNORE INTO sources (id, key, uri, kind, files, root, size, version)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (source.stream_id, source.stream_id.casefold(), source.uri, source.kind,
                 json.dumps(source.files), item.root, item.size, item.version),
            )  # fmt: skip
        self._tell_apart()
        self._base.execute("COMMIT")
        self._base.execute(_INDEX)

    def _tell_apart(self) -> None:
        """Names that several have get their extension, then a number."""
        several = "SELECT key FROM sources GROUP BY key HAVING count(*) > 1"
        for (key,) in self._base.execute(several).fetchall():
            rivals = self._base.execute(
                "SELECT seq, id, uri FROM sources WHERE key = ? ORDER BY uri", (key,)
            ).fetchall()
            for number, (seq, name, uri) in enumerate(rivals, 1):
                extension = PurePosixPath(uri).suffix.lstrip(".")
                names = [f"{name}_{extension}"] if extension else []
                names += [f"{name}_{n}" for n in range(number, number + len(rivals) + 1)]
                self._rename(seq, next(n for n in names if not self._taken(n)))

    def _taken(self, name: str) -> bool:
        query = "SELECT 1 FROM sources WHERE key = ? LIMIT 1"
        return self._base.execute(query, (name.casefold(),)).fetchone() is not None

    def _rename(self, seq: int, name: str) -> None:
        query = "UPDATE sources SET id = ?, key = ? WHERE seq = ?"
        self._base.execute(query, (name, name.casefold(), seq))

    def recall(self, records: Iterable[dict[str, Any]], tries: int) -> None:
        """Apply what a ledger says of an earlier run, to sources that are still what they were.

        Args:
            tries: failures after which a source is not tried again.
        """
        self._base.execute("BEGIN")
        for record in records:
            self._base.execute(
                "UPDATE sources SET state = ?, tries = ?, frames = ?, error = ?, earlier = 1"
                " WHERE key = ? AND version = ?",
                (DONE if record["state"] == DONE else LEFT, record.get("tries", 0),
                 record.get("frames", 0), record.get("error", ""), record["id"].casefold(),
                 record.get("version", "")),
            )  # fmt: skip
        self._base.execute(
            "UPDATE sources SET state = ? WHERE state = ? AND tries >= ?",
            (QUARANTINED, LEFT, tries),
        )
        self._base.execute("COMMIT")

    def earlier(self, state: str) -> Iterator[tuple[str, str, int, str]]:
        """Id, address, frames and error of the sources that an earlier run has left so."""
        query = (
            "SELECT seq, id, uri, frames, error FROM sources WHERE state = ? AND earlier AND seq > ?"
            " ORDER BY seq LIMIT 500"
        )
        last = -1
        while rows := self._base.execute(query, (state, last)).fetchall():
            for last, name, uri, frames, error in rows:  # noqa: B007
                yield name, uri, frames, error

    def all_sources(self) -> Iterator[tuple[str, str]]:
        """Id and address of each, or of the first of its files; change nothing meanwhile."""
        query = "SELECT id, coalesce(json_extract(files, '$[0]'), uri) FROM sources ORDER BY seq"
        yield from self._base.execute(query)

    def leave_out(self, name: str) -> None:
        """A source is no part of the job."""
        self._base.execute("DELETE FROM sources WHERE key = ?", (name.casefold(),))

    def forget(self, name: str) -> None:
        """A source that the ledger calls done is to be done after all."""
        self._set(name, state=LEFT, frames=0, earlier=0)

    def take(self, now: float, unseen: Sequence[str] = ()) -> Task | None:
        """The largest source that may begin by now, which is then running; None if there is none.

        The largest first: so none is left over for the end that everybody waits for.

        Args:
            now: seconds, of the clock that `put_back` was given.
            unseen: roots whose sources it must not be.
        """
        holes = ", ".join("?" * len(unseen))
        row = self._base.execute(
            "SELECT id, uri, kind, files, size, version, tries, root FROM sources WHERE state = 'left' AND"
            f" not_before <= ? AND root NOT IN ({holes}) ORDER BY size DESC, seq LIMIT 1",
            (now, *unseen),
        ).fetchone()
        if row is None:
            return None
        name, uri, kind, files, size, version, tries, root = row
        self._set(name, state=RUNNING)
        return Task(Source(name, uri, kind, tuple(json.loads(files))), size, version, tries, root)

    def put_back(self, name: str, tries: int, not_before: float) -> None:
        """A source is to be tried again, at that time at the earliest."""
        self._set(name, state=LEFT, tries=tries, not_before=not_before)

    def finish(self, name: str, frames: int) -> None:
        """A source is done."""
        self._set(name, state=DONE, frames=frames)

    def quarantine(self, name: str, tries: int, error: str) -> None:
        """A source will not be tried again."""
        self._set(name, state=QUARANTINED, tries=tries, error=error)

    def roots(self) -> list[str]:
        """What sources were found under."""
        return [root for (root,) in self._base.execute("SELECT DISTINCT root FROM sources")]

    def counts(self) -> Counts:
        """How many sources are where, now."""
        rows = self._base.execute(
            "SELECT state, count(*), sum(size), sum(frames) FROM sources GROUP BY state"
        ).fetchall()
        number = {state: count for state, count, _, _ in rows}
        held = {state: size for state, _, size, _ in rows}
        over = held.get(DONE, 0) + held.get(QUARANTINED, 0)
        return Counts(
            number.get(LEFT, 0), number.get(RUNNING, 0), number.get(DONE, 0),
            number.get(QUARANTINED, 0), over, sum(held.values()), sum(row[3] for row in rows),
        )  # fmt: skip

    def failures(self, most: int) -> list[dict[str, Any]]:
        """Up to so many of the sources that are quarantined."""
        query = "SELECT id, uri, tries, error FROM sources WHERE state = 'quarantined' ORDER BY seq LIMIT ?"
        rows = self._base.execute(query, (most,))
        return [dict(zip(("id", "source", "tries", "error"), row, strict=True)) for row in rows]

    def _set(self, name: str, **values: object) -> None:
        fields = ", ".join(f"{field} = ?" for field in values)
        query = f"UPDATE sources SET {fields} WHERE key = ?"
        self._base.execute(query, (*values.values(), name.casefold()))
