"""What all networks share, and the wrapper that gives any encoder and decoder a memory between them.

State is explicit, one tensor [C, h, w] a stream: it goes in and comes out, and zeros start a stream. All
that has no memory runs over the frames of a clip at once, the recurrence alone frame by frame.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks.blocks import ConvGRU, enlarge

# Red, green and blue as in the training pictures; a further plane as if spread evenly over 0-255.
RGB_MEAN, PLANE_MEAN = (105.0, 108.0, 110.0), 127.5
RGB_STD, PLANE_STD = (75.0, 77.0, 78.0), 73.6
NO_STATE = (1, 1, 1)  # of a network without memory: an empty tensor is none that every engine takes
AUXILIARY_STRIDE = 8


class Network(nn.Module, ABC):
    """Frames and a state in, class logits and the next state out.

    Args:
        classes: how many.
        in_channels: planes of a frame: red, green, blue and then those of other sensors, all 0-255.
        boundary: a second task in training: the logit of "here one class meets another".
        recurrent: without it the labels do not depend on the state, which is handed on as it came.
        multi_label: each class has a mask of its own and several may hold; else a pixel has one class.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, classes: int, in_channels: int, boundary: bool, recurrent: bool, multi_label: bool
    ) -> None:
        super().__init__()
        if in_channels < 3:
            raise ValueError(f"in_channels must be at least 3, red to blue, got {in_channels}")
        self.classes, self.in_channels, self.boundary = classes, in_channels, boundary
        self.recurrent, self.multi_label = recurrent, multi_label
        # Buffers of the model: every engine takes the same raw pixels.
        further = in_channels - 3
        for name, values in (
            ("mean", (*RGB_MEAN, *[PLANE_MEAN] * further)),
            ("std", (*RGB_STD, *[PLANE_STD] * further)),
        ):
            self.register_buffer(name, torch.tensor(values).view(1, in_channels, 1, 1))

    @abstractmethod
    def state_shape(self, size_hw: tuple[int, int]) -> tuple[int, int, int]:
        """Shape [C, h, w] of one stream's state for frames of `size_hw`."""

    @abstractmethod
    def clip(
        self, frames: Tensor, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """T frames a stream.

        Args:
            frames: float [N, T, in_channels, H, W], 0-255; H and W are multiples of 8.
            state: float [N, C, h, w] as `state_shape` says; None for zeros.

        Returns:
            logits [N, T, classes, h', w'], at full, half or quarter size; the last state; and what only
            training wants: "classes", logits [N, T, classes, H / 8, W / 8] from within the network, and
            with a boundary head "boundary", logits [N, T, 1, h', w'], and of a network that finds motion
            "motion", [N, T, 2, h, w], as `FrameMotion` gives it.
        """

    def forward(self, frames: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One frame a stream: a clip of one.

        Args:
            frames: float [N, in_channels, H, W], 0-255.
            state: float [N, C, h, w] as `state_shape` says; zeros start a stream.

        Returns:
            logits [N, classes, h', w'] and the next state.
        """
        logits, state, _ = self.clip(frames[:, None], state)
        return logits[:, 0], state

    @abstractmethod
    def memory_readers(self) -> list[nn.Module]:
        """The layers that read what the memory gives: the channels before them are the memory's too."""

    def normalized(self, frames: Tensor) -> Tensor:
        """frames [N, T, C, H, W], 0-255 -> [N T, C, H, W], about zero, in the weights' precision."""
        values = (frames.flatten(0, 1) - self.mean) / self.std
        return values.to(next(self.parameters()).dtype)

    def first_state(self, frames: Tensor) -> Tensor:
        """Zeros for the streams of frames [N, T, C, H, W]."""
        size_hw = (frames.shape[-2], frames.shape[-1])
        return frames.new_zeros(len(frames), *self.state_shape(size_hw))


class EncoderDecoder(nn.Module, ABC):
    """A segmentation network in two halves, with a bottleneck between them.

    Attributes:
        stride: its frames are multiples of this each way; the bottleneck has 1 / `stride` of their size.
        logits_stride: its output has 1 / `logits_stride` of their size.
        bottleneck: channels between the halves.
    """

    stride: int
    logits_stride: int
    bottleneck: int

    @abstractmethod
    def encode(self, frames: Tensor) -> tuple[Tensor, list[Tensor]]:
        """frames [M, C, H, W] -> bottleneck [M, bottleneck, h, w], and what else the decoder needs."""

    @abstractmethod
    def decode(self, bottleneck: Tensor, skips: list[Tensor]) -> Tensor:
        """What `encode` gave, the bottleneck with memory -> output [M, outputs, h', w']."""


class Recurrent(Network):
    """Any encoder and decoder, with a ConvGRU on half of the bottleneck's channels.

    The other half passes by the memory, as in RobustVideoMatting (Lin et al., WACV 2022): what is seen now
    need not go through it. Frames are extended to the body's stride at the right and the bottom, by their
    last column and row.

    Args:
        body: makes the encoder and decoder from (in_channels, outputs, **options).
        options: the body's own.
        others: as `Network` says.
    """

    def __init__(
        self,
        body: Callable[..., EncoderDecoder],
        classes: int = 11,
        in_channels: int = 3,
        boundary: bool = False,
        recurrent: bool = True,
        multi_label: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(classes, in_channels, boundary, recurrent, multi_label)
        # The boundary's logit is one more output of the body, after those of the classes.
        self.body = body(in_channels, classes + boundary, **options)
        self.memory = self.body.bottleneck // 2
        self.gru = ConvGRU(self.memory) if recurrent else None
        self.auxiliary = nn.Conv2d(self.body.bottleneck, classes, 1)  # supervision in training only

    def state_shape(self, size_hw: tuple[int, int]) -> tuple[int, int, int]:
        height, width = size_hw
        stride = self.body.stride
        return (self.memory, -(-height // stride), -(-width // stride)) if self.gru else NO_STATE

    def memory_readers(self) -> list[nn.Module]:
        return [self.auxiliary]

    def clip(
        self, frames: Tensor, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        state = self.first_state(frames) if state is None else state
        batch, time, _, height, width = frames.shape
        stride = self.body.stride
        missing = [0, (stride - width % stride) % stride, 0, (stride - height % stride) % stride]
        whole = functional.pad(self.normalized(frames), missing, mode="replicate")
        bottleneck, skips = self.body.encode(whole)
        if self.gru:
            bottleneck, state = remember(self.gru, bottleneck, state, time)
        coarse = enlarge(self.auxiliary(bottleneck), stride // AUXILIARY_STRIDE)

        def clipped(maps: Tensor, scale: int) -> Tensor:
            return maps[..., : height // scale, : width // scale].unflatten(0, (batch, time))

        outputs = clipped(self.body.decode(bottleneck, skips), self.body.logits_stride)
        auxiliary = {"classes": clipped(coarse, AUXILIARY_STRIDE)}
        if self.boundary:
            auxiliary["boundary"] = outputs[:, :, self.classes :]
        return outputs[:, :, : self.classes], state, auxiliary


def remember(gru: ConvGRU, features: Tensor, state: Tensor, time: int) -> tuple[Tensor, Tensor]:
    """Features [N T, C, H, W] whose last channels, as many as the GRU has, went through it in order."""
    passing = features.shape[1] - gru.channels
    present, remembered = features[:, :passing], features[:, passing:]
    outputs, state = gru.clip(remembered.unflatten(0, (-1, time)), state)
    return torch.cat([present, outputs.flatten(0, 1)], 1), state
