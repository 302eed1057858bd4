"""RoadNet, the default network: a small convolutional encoder, a ConvGRU that remembers, a light decoder.

About 3.8 GFLOPs at 480x360. State is one tensor at a sixteenth of the input's size; the GRU runs on half
of that scale's channels (as in RobustVideoMatting, Lin et al., WACV 2022), the other half passes by it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.blocks import ConvBNReLU, ConvGRU, ScaleContext, ShortTermDense, resize_like

STATE_STRIDE = 16
LOGITS_STRIDE = 4


class RoadNet(nn.Module):
    """RGB frames and a state in, class logits at a quarter of the size and the next state out."""

    mean: Tensor
    std: Tensor

    def __init__(self, classes: int = 11, width: int = 64, memory: int = 64) -> None:
        super().__init__()
        # Buffers of the model: every engine takes the same raw pixels.
        self.register_buffer("mean", torch.tensor([105.0, 108.0, 110.0]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([75.0, 77.0, 78.0]).view(1, 3, 1, 1))
        self.memory = memory
        self.stem = nn.Sequential(
            ConvBNReLU(3, width // 2, stride=2), ConvBNReLU(width // 2, width, stride=2)
        )
        self.eighth = nn.Sequential(
            ShortTermDense(width, 2 * width, 2), ShortTermDense(2 * width, 2 * width)
        )
        self.sixteenth = nn.Sequential(
            ShortTermDense(2 * width, 4 * width, 2),
            ShortTermDense(4 * width, 4 * width),
            ShortTermDense(4 * width, 4 * width),
        )
        self.thirtysecond = nn.Sequential(
            ShortTermDense(4 * width, 6 * width, 2),
            ShortTermDense(6 * width, 6 * width),
            ShortTermDense(6 * width, 6 * width),
        )
        self.context = ScaleContext(6 * width, 2 * memory)
        self.lateral16 = ConvBNReLU(4 * width, 2 * memory, 1)
        self.gru = ConvGRU(memory)
        self.lateral8 = ConvBNReLU(2 * width, width, 1)
        self.decode8 = ConvBNReLU(2 * memory + width, 96)
        self.lateral4 = ConvBNReLU(width, 32, 1)
        self.decode4 = ConvBNReLU(96 + 32, width)
        self.head = nn.Conv2d(width, classes, 1)
        self.auxiliary = nn.Conv2d(96, classes, 1)  # supervision in training only

    def state_shape(self, size_hw: tuple[int, int]) -> tuple[int, int, int]:
        """Shape [C, h, w] of one stream's state for frames of `size_hw`."""
        height, width = size_hw
        return self.memory, -(-height // STATE_STRIDE), -(-width // STATE_STRIDE)

    def encode(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """frames: float [N, 3, H, W], 0-255, RGB -> features at 1/4, 1/8 and 1/16."""
        quarter = self.stem((frames - self.mean) / self.std)
        eighth = self.eighth(quarter)
        sixteenth = self.sixteenth(eighth)
        context = self.context(self.thirtysecond(sixteenth))
        return quarter, eighth, self.lateral16(sixteenth) + resize_like(context, sixteenth)

    def decode(self, quarter: Tensor, eighth: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Features at the three scales -> logits at 1/4 and auxiliary logits at 1/8."""
        eighth = self.lateral8(eighth)
        eighth = self.decode8(torch.cat([resize_like(memory, eighth), eighth], 1))
        quarter = self.lateral4(quarter)
        quarter = self.decode4(torch.cat([resize_like(eighth, quarter), quarter], 1))
        return self.head(quarter), self.auxiliary(eighth)

    def forward(self, frames: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One frame a stream.

        Args:
            frames: float [N, 3, H, W], RGB, 0-255.
            state: float [N, C, h, w] as `state_shape` says; zeros start a stream.

        Returns:
            logits [N, classes, H / 4, W / 4] and the next state.
        """
        quarter, eighth, features = self.encode(frames)
        passing, remembered = features.chunk(2, 1)
        state = self.gru(remembered, state)
        logits, _ = self.decode(quarter, eighth, torch.cat([passing, state], 1))
        return logits, state

    def clip(self, frames: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """T frames a stream: all but the recurrence runs over the whole clip at once.

        Args:
            frames: float [N, T, 3, H, W]; state: as in `forward`, None for zeros.

        Returns:
            logits [N, T, classes, H / 4, W / 4], the last state, auxiliary logits at 1/8 of the size.
        """
        batch, time = frames.shape[:2]
        quarter, eighth, features = self.encode(frames.flatten(0, 1))
        passing, remembered = features.chunk(2, 1)
        remembered = remembered.unflatten(0, (batch, time))
        if state is None:
            state = torch.zeros_like(remembered[:, 0])
        remembered, state = self.gru.clip(remembered, state)
        memory = torch.cat([passing, remembered.flatten(0, 1)], 1)
        logits, auxiliary = self.decode(quarter, eighth, memory)
        return (
            logits.unflatten(0, (batch, time)),
            state,
            auxiliary.unflatten(0, (batch, time)),
        )
