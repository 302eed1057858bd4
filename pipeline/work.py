"""What a batch of frames costs on its way: it travels with the batch, so that whoever gets the results knows
of every stage, in whichever process that ran."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Stretch:
    """A stretch of time.

    Attributes:
        began_at: `time.time()` at its beginning, seconds.
        seconds: how long it was.
    """

    began_at: float
    seconds: float


def stopwatch() -> Callable[[], Stretch]:
    """Starts now; what is returned gives the stretch since then."""
    began_at, began = time.time(), time.perf_counter()
    return lambda: Stretch(began_at, time.perf_counter() - began)


@dataclass(frozen=True)
class Step:
    """A step of the engine, as one of the streams in it saw it.

    Attributes:
        wait: from the handing over of the frames to the step's beginning.
        run: the step.
        streams: how many streams it took.
        leads: of these the one that reports it; the others only ride along.
        waiting: batches that were left waiting for the next step.
        device_bytes: memory of the engine's device in use, and all of it; None for a CPU.
    """

    wait: Stretch
    run: Stretch
    streams: int = 1
    leads: bool = True
    waiting: int = 0
    device_bytes: tuple[int, int] | None = None


@dataclass(frozen=True)
class Work:
    """All that was done for a batch that has been written.

    Attributes:
        stream_id: the stream's.
        frame_index: of its first frame.
        frames: how many it holds.
        decode, step, write: what the stages took for all of them; None where it was not measured.
        latency_seconds: from decoder to labels, of each frame.
        resets: how often the stream's memory began anew within it, its first frame left out.
    """

    stream_id: str
    frame_index: int
    frames: int
    decode: Stretch | None
    step: Step | None
    write: Stretch
    latency_seconds: tuple[float, ...] = ()
    resets: int = 0

    def stages(self) -> dict[str, Stretch]:
        """The stages that were measured, in order: decode, wait, network, write."""
        step = self.step
        known = {
            "decode": self.decode,
            "wait": step.wait if step else None,
            "network": step.run if step else None,
            "write": self.write,
        }
        return {stage: stretch for stage, stretch in known.items() if stretch is not None}
