"""A segmenter into which a stream's recorded memory can be put back."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.segmenter import Segmenter
from pipeline.state import Memory


class ReplaySegmenter(Segmenter):
    """Labels as any segmenter does; `restore` sets what a stream remembers before its next frame."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._restored: dict[str, Memory] = {}
        self._held: dict[str, Any] = {}
        self._refused: set[str] = set()

    def restore(self, stream_id: str, state: np.ndarray, steps: int) -> None:
        """Set a stream's memory. Called by whoever gives its frames, so that none is under way.

        One of another shape than the network's is refused: the stream goes on with what it has.

        Args:
            state: float32 [C, h, w], as `read_state` gave it.
            steps: frames it has seen.
        """
        memory = Memory(saved=state, fresh=False, steps=steps)
        lane = self._held.get(stream_id)
        if lane is None:
            self._restored[stream_id] = memory
        else:
            self._put(lane, stream_id, memory)

    def refused(self, stream_id: str) -> bool:
        """Whether a memory was refused since the stream began."""
        return stream_id in self._refused

    def forget(self, stream_id: str) -> None:
        """The stream ends: nothing is put back when one of its name begins."""
        self._restored.pop(stream_id, None)
        self._held.pop(stream_id, None)
        self._refused.discard(stream_id)

    def _join(self, model_hw: tuple[int, int], stream_id: str) -> Any:
        lane = super()._join(model_hw, stream_id)
        self._held[stream_id] = lane
        memory = self._restored.pop(stream_id, None)
        if memory is not None:
            self._put(lane, stream_id, memory)
        return lane

    def _put(self, lane: Any, stream_id: str, memory: Memory) -> None:
        assert memory.saved is not None
        with lane.states_lock:
            if lane.engine.read_state(0).shape != memory.saved.shape:
                self._refused.add(stream_id)
                return
            lane.states.release(stream_id)
            lane.states.memories[stream_id] = memory
