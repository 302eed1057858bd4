"""Which stream's memory lies where, and when it starts anew. Decided here and nowhere else."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from pipeline.engines import Engine
from pipeline.frames import Gap, StreamState


@dataclass
class Memory:
    """One stream's memory.

    Attributes:
        slot: its row in the engine's bank; None while it is swapped out.
        saved: its state while it is swapped out, float32 [C, h, w].
        fresh: the next frame starts from zeros.
        steps: frames seen since the last reset.
        resets: how often it was reset after its start.
        longest_gap_seconds: a gap up to this long before its next frame keeps it; None for what holds
            for all streams.
    """

    slot: int | None = None
    saved: np.ndarray | None = None
    fresh: bool = True
    steps: int = 0
    resets: int = 0
    longest_gap_seconds: float | None = None


class StateTable:
    """The slots of one engine's bank and the streams that own them.

    More streams than slots are served by swapping: the stream that was idle for longest gives its slot
    up, and its state comes back with its next frame.

    Args:
        engine: whose bank this is.
        longest_gap_seconds: a gap up to this long keeps the memory, a longer one resets it.
    """

    def __init__(self, engine: Engine, longest_gap_seconds: float = 1.0) -> None:
        if engine.slots < 1:
            raise ValueError(f"an engine needs at least 1 slot, got {engine.slots}")
        self.engine = engine
        self.longest_gap_seconds = longest_gap_seconds
        self.free = list(range(engine.slots - 1, -1, -1))
        self.memories: OrderedDict[str, Memory] = OrderedDict()  # least recently used first
        self.swaps = 0

    def acquire(self, stream_ids: list[str]) -> tuple[list[int], list[bool]]:
        """Slots and reset flags for one batch of different streams.

        Raises ValueError if a stream is named twice or the batch is larger than the bank.
        """
        if len(set(stream_ids)) < len(stream_ids) or len(stream_ids) > self.engine.slots:
            raise ValueError(
                f"a batch holds up to {self.engine.slots} different streams, got {stream_ids}"
            )
        for stream_id in stream_ids:  # first all, so that none of the batch is swapped out
            self.memories.setdefault(stream_id, Memory())
            self.memories.move_to_end(stream_id)
        slots, reset = [], []
        for stream_id in stream_ids:
            memory = self.memories[stream_id]
            slots.append(self._slot(memory))
            reset.append(memory.fresh)
            memory.fresh = False
        return slots, reset

    def _slot(self, memory: Memory) -> int:
        if memory.slot is None:
            memory.slot = self.free.pop() if self.free else self._swap_out()
            if memory.saved is not None:
                self.engine.write_state(memory.slot, memory.saved)
                memory.saved = None
        return memory.slot

    def _swap_out(self) -> int:
        idle = next(m for m in self.memories.values() if m.slot is not None)
        assert idle.slot is not None
        if not idle.fresh:
            idle.saved = self.engine.read_state(idle.slot)
        slot, idle.slot = idle.slot, None
        self.swaps += 1
        return slot

    def advance(self, stream_id: str, frames: int) -> np.ndarray:
        """Count frames that a stream has taken; int64 [frames], its steps after each of them."""
        memory = self.memories[stream_id]
        memory.longest_gap_seconds = None
        steps = np.arange(memory.steps + 1, memory.steps + frames + 1)
        memory.steps += frames
        return steps

    def snapshot(self, stream_id: str, model_hw: tuple[int, int]) -> StreamState:
        """A stream's memory as it is now; `model_hw` is the engine's input size."""
        memory = self.memories[stream_id]
        values = memory.saved
        if memory.slot is not None:
            values = self.engine.read_state(memory.slot)
        if memory.fresh:
            values = None
        return StreamState(model_hw, values, memory.steps, memory.resets)

    def restore(
        self, stream_id: str, state: StreamState, longest_gap_seconds: float | None = None
    ) -> None:
        """Begin a stream with the memory that a snapshot of it has.

        Args:
            longest_gap_seconds: a gap between the snapshot and the next frame up to this long keeps
                the memory; None for what holds for all gaps.
        """
        self.release(stream_id)
        self.memories[stream_id] = Memory(
            saved=state.values, fresh=state.values is None, steps=state.steps, resets=state.resets,
            longest_gap_seconds=longest_gap_seconds,
        )  # fmt: skip

    def moved_to(self, engine: Engine, model_hw: tuple[int, int]) -> StateTable:
        """A table for another engine of the same input size `model_hw`, with the memories of this one."""
        table = StateTable(engine, self.longest_gap_seconds)
        for stream_id, memory in self.memories.items():
            state = self.snapshot(stream_id, model_hw)
            table.restore(stream_id, state, memory.longest_gap_seconds)
        return table

    def pass_gap(self, gap: Gap) -> bool:
        """Decide whether the stream's memory survives a gap; returns whether it was reset."""
        memory = self.memories.get(gap.stream.stream_id)
        if memory is None:
            return False
        longest_seconds = memory.longest_gap_seconds
        if longest_seconds is None:
            longest_seconds = self.longest_gap_seconds
        if gap.seconds is not None and gap.seconds <= longest_seconds:
            return False
        memory.fresh, memory.steps, memory.saved = True, 0, None
        memory.longest_gap_seconds = None
        memory.resets += 1
        return True

    def release(self, stream_id: str) -> None:
        """A stream has ended: its slot is free. Unknown streams are ignored."""
        memory = self.memories.pop(stream_id, None)
        if memory is not None and memory.slot is not None:
            self.free.append(memory.slot)
