"""What a person or a script sees of a live run: changes of state as lines, and the cameras' figures."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from threading import Lock
from typing import Any, TextIO

from pipeline.live.delivery import Delivery
from pipeline.live.hub import CameraStatus
from pipeline.live.live import Listener

LINE_EVERY_SECONDS = 10.0


class Console(Listener):
    """Tells of a live run on standard error.

    Args:
        quiet: nothing but errors.
        as_json: changes of state as lines of JSON on standard output, and at the end a line a camera.
        stream: where lines go.
    """

    def __init__(
        self, *, quiet: bool = False, as_json: bool = False, stream: TextIO | None = None
    ) -> None:
        self._quiet, self._as_json = quiet, as_json
        self._stream = stream or sys.stderr
        self._lock = Lock()
        self._shown_at = time.monotonic()
        self._table: Any = None

    def __enter__(self) -> Console:
        if not self._quiet and self._stream.isatty():
            from rich.console import Console as Terminal
            from rich.live import Live

            self._table = Live(console=Terminal(file=self._stream), auto_refresh=False)
            self._table.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._table is not None:
            self._table.stop()

    def say(self, line: str, *, even_if_quiet: bool = False) -> None:
        """One line."""
        if self._quiet and not even_if_quiet:
            return
        with self._lock:
            if self._table is not None:
                self._table.console.print(line, markup=False, highlight=False, soft_wrap=True)
            else:
                print(line, file=self._stream, flush=True)

    def camera_news(self, name: str, delivery: Delivery) -> None:
        for change in delivery.changes:
            at = datetime.fromtimestamp(change.at).strftime("%H:%M:%S")
            self.say(f"{at} {name}: {change.state}: {change.reason}")
            if self._as_json:
                self._print_json({"camera": name, **asdict(change)})

    def show(self, cameras: Sequence[CameraStatus]) -> None:
        """The figures of all cameras; a table on a terminal, elsewhere a line now and then."""
        if self._table is not None:
            self._table.update(_table_of(cameras), refresh=True)
        elif not self._quiet and time.monotonic() - self._shown_at >= LINE_EVERY_SECONDS:
            self._shown_at = time.monotonic()
            for camera in cameras:
                self.say(_line_of(camera))

    def finish(self, cameras: Sequence[CameraStatus]) -> None:
        """The last figures, of the whole run."""
        for camera in cameras:
            if self._as_json:
                self._print_json(_plain(camera))
            self.say(
                f"{camera.name}: {camera.frames} frames labelled, {_drops(camera)},"
                f" opened again {camera.reconnects} times"
            )

    def _print_json(self, values: dict[str, Any]) -> None:
        with self._lock:
            print(json.dumps(values), flush=True)


def _plain(camera: CameraStatus) -> dict[str, Any]:
    plain = {**vars(camera), "history": [asdict(change) for change in camera.history]}
    plain["shares"] = None if camera.shares is None else [round(float(s), 5) for s in camera.shares]
    return plain


def _drops(camera: CameraStatus) -> str:
    if not camera.dropped:
        return "none dropped"
    return "dropped " + ", ".join(f"{count} {why}" for why, count in sorted(camera.dropped.items()))


def _latency(camera: CameraStatus) -> str:
    return "-" if camera.latency_ms is None else f"{camera.latency_ms:.0f} ms"


def _line_of(camera: CameraStatus) -> str:
    return (
        f"{camera.name}: {camera.state}, {camera.fps:.1f} fps, latency {_latency(camera)},"
        f" {camera.frames} frames, {_drops(camera)}"
    )


def _table_of(cameras: Sequence[CameraStatus]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("camera", "state", "fps", "latency", "frames", "dropped", "reconnects"):
        table.add_column(title, justify="left" if title in ("camera", "state") else "right")
    for camera in cameras:
        table.add_row(
            escape(camera.name), camera.state, f"{camera.fps:.1f}", _latency(camera), str(camera.frames),
            str(sum(camera.dropped.values())), str(camera.reconnects),
        )  # fmt: skip
    return table
