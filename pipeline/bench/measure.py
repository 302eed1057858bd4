"""Measuring: contenders run in turn, round after round, and what counts are ratios within a round.

These machines are shared and noisy: each round runs every contender once, every other round in the reverse
order, and medians over the rounds are reported. Warm-up is left out: frames a second are
(n - 1) / (t[-1] - t[0]) over the frames after it.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError

WARM_UP_FRAMES = 24
CPU_EVERY_SECONDS = 1.0  # reading the CPU time of a whole family costs milliseconds


@dataclass
class Track:
    """How far a contender was, and what it and its children had cost by then.

    Attributes:
        warm_up: frames that don't count.
        stamps: (seconds since some start, frames done by then), in order.
        costs: (frames done, CPU seconds of this process and all that descend from it), after the
            warm-up; empty where the system doesn't tell.
    """

    warm_up: int = WARM_UP_FRAMES
    stamps: list[tuple[float, int]] = field(default_factory=list)
    costs: list[tuple[int, float]] = field(default_factory=list)
    _looked_at: float = 0.0

    def note(self, frames: int, last: bool = False) -> None:
        """So many frames are done by now. `last`: before what computed them is taken down."""
        now = time.monotonic()
        if not last:
            self.stamps.append((now, frames))
        if frames > self.warm_up and (last or now - self._looked_at > CPU_EVERY_SECONDS):
            self.costs.append((frames, cpu_seconds(family(os.getpid()))))
            self._looked_at = now

    @property
    def fps(self) -> float:
        """Raises ConfigError if the clip ended before the warm-up."""
        return rate(self.stamps, self.warm_up)

    @property
    def cpu_ms(self) -> float | None:
        """CPU milliseconds a frame after the warm-up, None if too short or unknown."""
        if len(self.costs) < 2 or not self.costs[-1][1]:
            return None
        frames, seconds = (b - a for a, b in zip(self.costs[0], self.costs[-1], strict=True))
        return 1e3 * seconds / frames if frames else None


def rate(stamps: Sequence[tuple[float, int]], warm_up: int = WARM_UP_FRAMES) -> float:
    """Frames a second after the warm-up.

    Raises ConfigError if the clip ended before it.
    """
    steady = [stamp for stamp in stamps if stamp[1] > warm_up]
    if len(steady) < 2:
        raise ConfigError(f"the clip is too short: give one of at least {2 * warm_up} frames")
    return (steady[-1][1] - steady[0][1]) / (steady[-1][0] - steady[0][0])


@dataclass(frozen=True)
class Contender:
    """One way of doing the work.

    Attributes:
        name: for the table; unique among those measured together.
        run: does it once.
        against: the contender whose rate is 1; None for the first of all.
        x: what is varied, for a plot: streams, frames a chunk, ...
    """

    name: str
    run: Callable[[], Track]
    against: str | None = None
    x: int | None = None


def measure(
    contenders: Sequence[Contender], rounds: int, say: Callable[[str], None] = lambda line: None
) -> list[dict[str, Any]]:
    """Run all contenders `rounds` times, in turn; a row a contender.

    Returns:
        name, x, fps (median), against, times (median of its rate over that of `against` in the same
        round) and cpu_ms (median CPU milliseconds a frame, None if unknown).
    """
    tracks: dict[str, list[Track]] = {contender.name: [] for contender in contenders}
    for number in range(rounds):
        for contender in contenders[:: -1 if number % 2 else 1]:
            track = contender.run()
            tracks[contender.name].append(track)
            say(f"round {number + 1}/{rounds}  {contender.name}: {track.fps:.1f} fps")
    return [_row(contender, contenders[0].name, tracks) for contender in contenders]


def _row(contender: Contender, first: str, tracks: dict[str, list[Track]]) -> dict[str, Any]:
    own, against = tracks[contender.name], contender.against or first
    pairs = zip(own, tracks[against], strict=True)
    costs = [track.cpu_ms for track in own if track.cpu_ms is not None]
    return {
        "name": contender.name,
        "x": contender.x,
        "fps": round(statistics.median(track.fps for track in own), 2),
        "against": against,
        "times": round(statistics.median(a.fps / b.fps for a, b in pairs), 3),
        "cpu_ms": round(statistics.median(costs), 2) if costs else None,
    }


def family(root: int) -> list[int]:
    """A process and all that descend from it; itself alone where there is no /proc."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, todo = [], [root]
    while todo:
        found.append(todo.pop())
        todo += parents.get(found[-1], [])
    return found


def processor_name() -> str:
    """The processor as it calls itself, for the record; the architecture where it doesn't say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.machine()


def cpu_seconds(pids: Sequence[int]) -> float:
    """CPU time that processes, and their children that have ended, have taken; 0 where unknown."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime; see proc(5)
    return ticks / os.sysconf("SC_CLK_TCK") if ticks else 0.0


@dataclass
class Cost:
    """What a stage took, in all.

    Attributes:
        frames: frames it worked on.
        wall_s, cpu_s: seconds, of the clock and of all threads of this process.
    """

    frames: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0

    def run(self, work: Callable[[], Any], frames: int) -> Any:
        """Do the work for so many frames; gives what it gives."""
        began, spent = time.perf_counter(), time.process_time()
        result = work()
        self.wall_s += time.perf_counter() - began
        self.cpu_s += time.process_time() - spent
        self.frames += frames
        return result

    @property
    def ms(self) -> dict[str, float]:
        """Milliseconds a frame."""
        frames = max(self.frames, 1)
        return {
            "ms": round(1e3 * self.wall_s / frames, 5),
            "cpu_ms": round(1e3 * self.cpu_s / frames, 5),
        }
