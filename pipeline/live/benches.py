"""The network's engines, one for each input size that cameras have, made beside the work."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Set
from dataclasses import dataclass
from threading import Lock, Thread

import numpy as np

from pipeline.batch import Company
from pipeline.engines import Engine, MakeEngine
from pipeline.segmenter import KEPT_IDLE_ENGINES
from pipeline.state import StateTable

WINDOW_SECONDS = 0.005  # that a batch waits for other cameras, where batches are faster at all
Size = tuple[int, int]


@dataclass
class Bench:
    """The engine of one input size, and the states of the cameras it serves.

    Attributes:
        company: the cameras that a batch waits for; None where batches are no faster.
        waits_since: `time.monotonic()` since when frames have waited for company, seconds; None if none do.
        step_seconds: what a step takes, on average.
    """

    engine: Engine
    states: StateTable
    company: Company | None
    waits_since: float | None = None
    step_seconds: float = 0.0

    @property
    def most(self) -> int:
        """Cameras that a step takes at once."""
        return self.engine.slots if self.engine.batches else 1

    def window_left(self, here: Set[str]) -> float:
        """How long a batch of the cameras that are here may still wait for others, seconds."""
        if self.company is None:
            return 0.0
        now = time.monotonic()
        self.waits_since = self.waits_since or now
        full = len(here) >= self.most
        left = 0.0 if full else self.company.due_at(self.waits_since, here) - now
        if left <= 0:
            self.waits_since = None
            if not full:
                self.company.close(here)
        return left

    def served(self, name: str) -> None:
        """A camera has given a frame: batches wait for it."""
        if self.company is not None:
            self.company.join(name)

    def release(self, name: str) -> None:
        """A camera is gone, and its memory with it."""
        self.states.release(name)
        if self.company is not None:
            self.company.leave(name)


class Benches:
    """The benches of all sizes. They are used by one thread, and made in others.

    Args:
        make_engine: makes the engine for an input size.
        longest_gap_seconds: a gap in a camera's frames up to this long keeps its memory.
        made: called when one is there, or with what went wrong.
        stopped: whether to make no more.
    """

    def __init__(
        self,
        make_engine: MakeEngine,
        longest_gap_seconds: float,
        made: Callable[[BaseException | None], None],
        stopped: Callable[[], bool],
    ) -> None:
        self._make_engine, self._longest_gap = make_engine, longest_gap_seconds
        self._made, self._stopped = made, stopped
        self._benches: dict[Size, Bench | None] = {}  # None while it is made
        self._lock = Lock()

    def get(self, model_hw: Size) -> Bench | None:
        """The bench of a size, None if there is none yet."""
        with self._lock:
            return self._benches.get(model_hw)

    def want(self, model_hw: Size) -> Bench | None:
        """The bench of a size; if there is none yet it is made, and None."""
        with self._lock:
            if model_hw not in self._benches and not self._stopped():
                self._benches[model_hw] = None
                Thread(target=self._make, args=(model_hw,), name="make-engine").start()
            return self._benches.get(model_hw)

    def there(self) -> dict[Size, Bench]:
        """Those that have been made."""
        with self._lock:
            return {size: bench for size, bench in self._benches.items() if bench is not None}

    @property
    def making(self) -> bool:
        """Whether one is being made just now; that cannot be interrupted."""
        with self._lock:
            return None in self._benches.values()

    def tidy(self, used: Collection[Size]) -> None:
        """Give up engines that nobody has needed lately."""
        with self._lock:
            idle = [size for size, bench in self._benches.items() if bench and size not in used]
            for size in idle[: max(0, len(idle) - KEPT_IDLE_ENGINES)]:
                del self._benches[size]

    def _make(self, model_hw: Size) -> None:
        failure: BaseException | None = None
        try:
            engine = self._make_engine(model_hw)
            height, width = model_hw
            # The first step is the slowest: let it not be a camera's. Its state is reset again.
            blank = np.full((1, 1, height * 3 // 2, width), 128, np.uint8)
            if not self._stopped():
                engine.step(blank, [0], [True])
        except Exception as error:
            failure = error
        else:
            company = Company(WINDOW_SECONDS) if engine.batches else None
            with self._lock:
                self._benches[model_hw] = Bench(
                    engine, StateTable(engine, self._longest_gap), company
                )
        self._made(failure)
