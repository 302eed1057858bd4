"""An engine that counts: it makes leaked, lost, repeated or reordered state visible in the labels."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from pipeline.frames import StreamsPixels
from pipeline.settings import counting_seconds

MODULUS = 251


class CountingEngine:
    """Labels every pixel with the number of frames its stream has seen, modulo 251, from 1.

    The top left pixel holds a checksum instead, of the frame and of all frames before it, so that a frame
    that came in another order, or to another stream's state, shows for ever after. It can be made to take
    its time, without a core's, for measurements of what is around it.
    """

    batches = True

    def __init__(self, model_hw: tuple[int, int], slots: int) -> None:
        self.model_hw, self.slots = model_hw, slots
        self.bank = np.zeros((slots + 1, 2, 1, 1), np.float32)  # count, checksum
        self.frame_seconds = counting_seconds()

    def step(
        self, frames: StreamsPixels, slots: Sequence[int], reset: Sequence[bool]
    ) -> np.ndarray:
        labels = np.empty((len(frames), len(frames[0]), *self.model_hw), np.uint8)
        for row, (slot, fresh) in enumerate(zip(slots, reset, strict=True)):
            if fresh:
                self.bank[slot] = 0
            for at, frame in enumerate(frames[row]):
                count, checksum = self.bank[slot, :, 0, 0]
                checksum = (checksum * 31 + int(frame.sum(dtype=np.int64))) % MODULUS
                self.bank[slot, :, 0, 0] = count + 1, checksum
                labels[row, at] = (count + 1) % MODULUS
                labels[row, at, 0, 0] = checksum
        time.sleep(len(frames[0]) * self.frame_seconds)
        return labels

    def read_state(self, slot: int) -> np.ndarray:
        return self.bank[slot].copy()

    def write_state(self, slot: int, state: np.ndarray) -> None:
        self.bank[slot] = state
