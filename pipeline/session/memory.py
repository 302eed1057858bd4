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

    def restore(self, stream_id: str, state: np.ndarray, steps: int) -> None:
        """Set a stream's memory. Called by whoever gives its frames, so that none is under way.

        Args:
            state: float32 [C, h, w], as `read_state` gave it.
            steps: frames it has seen.
        """
        memory = Memory(saved=state, fresh=False, steps=steps)
        lane = self._held.get(stream_id)
        if lane is None:
            self._restored[stream_id] = memory
        else:
            _put(lane, stream_id, memory)

    def forget(self, stream_id: str) -> None:
        """The stream ends: nothing is put back when one of its name begins."""
        self._restored.pop(stream_id, None)
        self._held.pop(stream_id, None)

    def _join(self, model_hw: tuple[int, int], stream_id: str) -> Any:
        lane = super()._join(model_hw, stream_id)
        self._held[stream_id] = lane
        memory = self._restored.pop(stream_id, None)
        if memory is not None:
            _put(lane, stream_id, memory)
        return lane


def _put(lane: Any, stream_id: str, memory: Memory) -> None:
    with lane.states_lock:
        lane.states.release(stream_id)
        lane.states.memories[stream_id] = memory
