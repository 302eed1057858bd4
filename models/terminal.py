"""What a person sees of a command that takes its time: lines, and on a terminal a bar below them."""

from __future__ import annotations

import sys
from typing import Any, Self, TextIO


class Terminal:
    """Lines of progress, and while it is entered a bar with the time left, if the stream is a terminal.

    Args:
        stream: standard error by default.
        columns: what stands after the bar, as `rich.progress.TextColumn` takes it.
        bar: False shows none, on a terminal either.
        transient: the bar goes when it is done.
        speed_seconds: the time left is estimated from this last stretch.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        columns: tuple[str, ...] = ("{task.completed}/{task.total}",),
        bar: bool = True,
        transient: bool = False,
        speed_seconds: float = 30.0,
    ) -> None:
        self.stream = stream or sys.stderr
        self._wanted = bar and self.stream.isatty()
        self._columns, self._transient, self._speed_seconds = columns, transient, speed_seconds
        self._bar: Any = None
        self._task: Any = None

    @property
    def has_bar(self) -> bool:
        return self._bar is not None

    def __enter__(self) -> Self:
        if self._wanted:
            self._bar = self._make_bar()
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def line(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._bar is None:
            print(text, file=self.stream, flush=True)
        else:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def tick(self, done: int, total: int | None, what: str = "", **fields: str) -> None:
        """`done` of `total` are done, None for a total that is not known; `fields` are for the columns."""
        if self._bar is None:
            return
        if self._task is None:  # the speed is that from here on, not of what was done before
            self._task = self._bar.add_task(what, total=total, completed=done, **fields)
        self._bar.update(self._task, completed=done, total=total, description=what, **fields)

    def _make_bar(self) -> Any:
        # rich takes a tenth of a second to import.
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            *(TextColumn(column) for column in self._columns),
            TimeRemainingColumn(),
            console=Console(file=self.stream),
            transient=self._transient,
            speed_estimate_period=self._speed_seconds,
        )
