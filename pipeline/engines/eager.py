"""Plain PyTorch in float32: the CPU's engine where OpenVINO is not installed, and what others are held to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from models.registry import load
from models.spec import ModelFiles, SpecError
from models.step import StreamStep
from pipeline.engines import EngineChoice
from pipeline.errors import ModelError
from pipeline.frames import StreamsPixels


class EagerEngine:
    """The step as PyTorch runs it, channels last."""

    def __init__(
        self, choice: EngineChoice, files: ModelFiles, model_hw: tuple[int, int], slots: int
    ) -> None:
        self.slots = slots
        self.device = torch.device(choice.name)
        self.batches = self.device.type == "cuda"
        if choice.threads and not self.batches:
            torch.set_num_threads(choice.threads)
        try:
            network, _ = load(str(files.folder))
        except SpecError as error:
            raise ModelError(str(error)) from error
        shape = network.state_shape(model_hw)
        step = StreamStep(network).eval().to(self.device)
        self._step = step.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # One spare row, for padding a batch without touching a live stream's state.
        self.bank = torch.zeros(slots + 1, *shape, device=self.device)

    @torch.inference_mode()
    def step(
        self, frames: StreamsPixels, slots: Sequence[int], reset: Sequence[bool]
    ) -> np.ndarray:
        rows = torch.as_tensor(list(slots), device=self.device)
        fresh = torch.as_tensor(list(reset), device=self.device, dtype=torch.bool)
        state = torch.where(fresh[:, None, None, None], 0.0, self.bank[rows])
        pixels = torch.from_numpy(np.stack([*frames])).to(self.device, non_blocking=True)
        labels = []
        for time in range(pixels.shape[1]):
            found, state = self._step(pixels[:, time], state)
            labels.append(found.to(torch.uint8))
        self.bank[rows] = state
        return torch.stack(labels, 1).cpu().numpy()

    def read_state(self, slot: int) -> np.ndarray:
        return self.bank[slot].cpu().numpy().copy()

    def write_state(self, slot: int, state: np.ndarray) -> None:
        self.bank[slot] = torch.from_numpy(state).to(self.device)
