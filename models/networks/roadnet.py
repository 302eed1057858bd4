"""RoadNet, the default network: a small convolutional encoder, memory at three scales, a light decoder.

State is one tensor at a sixteenth of the input's size. Its first `memory` channels are the state of a
ConvGRU at that scale; the next, unfolded 2x2, are the state of a second one at an eighth, which keeps thin
things steady; those after them, unfolded 4x4, of a third at a quarter, which steadies edges. As in
RobustVideoMatting (Lin et al., WACV 2022) each GRU runs on a part of its scale's channels, and the others
pass by it; the third's part is added to the logits. Then come, unfolded 4x4 too, the logits of the frame
before and its small grey picture: they are moved along with the picture and mixed into those of the frame.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks.alignment import LARGEST, CarriedLogits, FrameMotion
from models.networks.blocks import (
    ConvBNReLU,
    ConvGRU,
    ScaleContext,
    SelfAttention,
    ShortTermDense,
    resize_like,
)
from models.networks.recurrent import NO_STATE, Network, remember

STATE_STRIDE = 16
LOGITS_STRIDE = 2
PASSING8 = 64  # channels at an eighth that bypass the memory
# What brings the last two parts of a state within -1 to 1, as the GRUs' are.
SAID_SCALE, PICTURE_SCALE = 1 / LARGEST, 1 / 4


class RoadNet(Network):
    """Frames and a state in, class logits at half the size and the next state out.

    Args:
        width: channels at 1/4; 2, 4 and 6 times as many at 1/8, 1/16 and 1/32.
        memory: channels of the memory at 1/16; as many bypass it.
        fine_memory: channels of the memory at 1/8.
        finest_memory: channels of the memory at 1/4; 0 for none.
        motion: what was said of the frame before is carried along the motion between the frames; needs
            `recurrent`.
        blocks: modules at each of the four scales.
        attention: self-attention over the cells at 1/32. It earned nothing that could be measured.
        others: as `Network` says.
    """

    smoothing: Tensor

    def __init__(
        self,
        classes: int = 11,
        in_channels: int = 3,
        boundary: bool = False,
        recurrent: bool = True,
        multi_label: bool = False,
        width: int = 64,
        memory: int = 64,
        fine_memory: int = 32,
        finest_memory: int = 16,
        motion: bool = True,
        blocks: tuple[int, int, int, int] = (1, 3, 4, 4),
        attention: bool = False,
    ) -> None:
        super().__init__(classes, in_channels, boundary, recurrent, multi_label)
        self.memory, self.fine_memory, self.finest_memory = memory, fine_memory, finest_memory
        widths = [width, 2 * width, 4 * width, 6 * width]
        self.stem = nn.Sequential(
            ConvBNReLU(in_channels, width // 2, stride=2), ConvBNReLU(width // 2, width, stride=2)
        )
        self.quarter = _stage(width, width, blocks[0], stride=1)
        self.eighth = _stage(width, widths[1], blocks[1])
        self.sixteenth = _stage(widths[1], widths[2], blocks[2])
        self.thirtysecond = _stage(widths[2], widths[3], blocks[3])
        self.attention = SelfAttention(widths[3]) if attention else nn.Identity()
        self.context = ScaleContext(widths[3], 2 * memory)
        self.lateral16 = ConvBNReLU(widths[2], 2 * memory, 1)
        self.gru = ConvGRU(memory) if recurrent else None
        self.lateral8 = ConvBNReLU(widths[1], width, 1)
        self.decode8 = ConvBNReLU(2 * memory + width, PASSING8 + fine_memory)
        self.fine_gru = ConvGRU(fine_memory) if recurrent else None
        self.lateral4 = ConvBNReLU(width, 48, 1)
        self.decode4 = ConvBNReLU(PASSING8 + fine_memory + 48, width)
        # Four logits a class and cell, laid out 2x2: half-size logits at the cost of a quarter's.
        self.head = nn.Conv2d(width, 4 * classes, 1)
        # In a buffer: what is made of numbers at each call comes from the host, which no CUDA graph records.
        line = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("smoothing", line[:, None] * line, persistent=False)
        self.lateral_finest = ConvBNReLU(width, finest_memory, 1) if finest_memory else None
        self.finest_gru = ConvGRU(finest_memory) if finest_memory and recurrent else None
        self.recall = _silent(nn.Conv2d(finest_memory, 4 * classes, 1)) if finest_memory else None
        moves = motion and recurrent
        self.motion = FrameMotion() if moves else None
        self.carried = CarriedLogits(finest_memory, classes) if moves else None
        # Supervision in training only.
        self.auxiliary = nn.Conv2d(PASSING8 + fine_memory, classes, 1)
        self.boundary_head = nn.Conv2d(width, 4, 1) if boundary else None

    def state_shape(self, size_hw: tuple[int, int]) -> tuple[int, int, int]:
        if not self.recurrent:
            return NO_STATE
        height, width = size_hw
        return sum(self._parts()), -(-height // STATE_STRIDE), -(-width // STATE_STRIDE)

    def _parts(self) -> list[int]:
        """Channels of a state's parts, as they are folded; 0 for one that the network lacks."""
        said = self.carried.channels if self.carried else 0
        at_quarter = self.finest_memory, said, int(self.motion is not None)
        return [self.memory, 4 * self.fine_memory, *[16 * channels for channels in at_quarter]]

    def memory_readers(self) -> list[nn.Module]:
        readers: list[nn.Module] = [self.decode8[0], self.auxiliary]
        return [*readers, self.recall] if self.recall else readers

    def encode(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """frames: float [M, C, H, W], normalised -> features at 1/4, 1/8 and 1/16."""
        quarter = self.quarter(self.stem(frames))
        eighth = self.eighth(quarter)
        sixteenth = self.sixteenth(eighth)
        context = self.context(self.attention(self.thirtysecond(sixteenth)))
        features = self.lateral16(sixteenth) + resize_like(context, sixteenth)
        return quarter, self.lateral8(eighth), features

    def clip(
        self, frames: Tensor, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        state = self.first_state(frames) if state is None else state
        batch, time = frames.shape[:2]
        quarter, eighth, features = self.encode(self.normalized(frames))
        coarse, fine, finest, said, picture = self._unfold(state, eighth, quarter)
        if self.gru:
            features, coarse = remember(self.gru, features, coarse, time)
        eighth = self.decode8(torch.cat([resize_like(features, eighth), eighth], 1))
        if self.fine_gru:
            eighth, fine = remember(self.fine_gru, eighth, fine, time)
        quarter = torch.cat([resize_like(eighth, quarter), self.lateral4(quarter)], 1)
        decoded = self.decode4(quarter)
        phases = self.head(decoded)
        edges = decoded[:, :0]
        if self.lateral_finest and self.recall:
            edges = self.lateral_finest(decoded)
            if self.finest_gru:
                edges, finest = remember(self.finest_gru, edges, finest, time)
            phases = phases + self.recall(edges)

        def by_frame(maps: Tensor) -> Tensor:
            return maps.unflatten(0, (batch, time))

        auxiliary = {"classes": by_frame(self.auxiliary(eighth))}
        if self.boundary_head:
            boundary = functional.pixel_shuffle(self.boundary_head(decoded), 2)
            auxiliary["boundary"] = by_frame(boundary)
        if self.motion and self.carried:
            small = by_frame(self.motion.picture(frames.flatten(0, 1), self.std).to(phases.dtype))
            before = torch.cat([picture[:, None] / PICTURE_SCALE, small[:, :-1]], 1)
            motion = by_frame(self.motion(small.flatten(0, 1), before.flatten(0, 1)))
            # Of a class the mean of its four phases, by a convolution that engines are fast at.
            mean = torch.eye(self.classes, dtype=phases.dtype, device=phases.device) / 4
            mean = mean.repeat_interleave(4, 1)[..., None, None]
            logits = by_frame(functional.conv2d(phases, mean))
            change, said = self.carried(by_frame(edges), logits, said / SAID_SCALE, motion)
            phases = phases + change.flatten(0, 1).repeat_interleave(4, 1)
            said, picture = said * SAID_SCALE, small[:, -1] * PICTURE_SCALE
            auxiliary["motion"] = motion
        logits = by_frame(smoothed(functional.pixel_shuffle(phases, 2), self.smoothing))
        return logits, self._fold(_Memory(coarse, fine, finest, said, picture)), auxiliary

    def _unfold(self, state: Tensor, eighth: Tensor, quarter: Tensor) -> _Memory:
        """The memory from the one tensor, its parts as large as `eighth` and `quarter`."""
        if not self.recurrent:
            return _Memory(*[state] * 5)
        channels = self._parts()
        there = iter(state.split([part for part in channels if part], 1))
        # A part that the network lacks is empty, and nothing reads it.
        coarse, fine, *at_quarter = (next(there) if part else state[:, :0] for part in channels)
        spread = (
            _spread(part, 4, quarter) if size else part
            for part, size in zip(at_quarter, channels[2:], strict=True)
        )
        return _Memory(coarse, _spread(fine, 2, eighth), *spread)

    def _fold(self, memory: _Memory) -> Tensor:
        coarse, fine, *at_quarter = memory
        if not self.recurrent:
            return coarse
        folded = [
            _gathered(part, 4, coarse)
            for part, size in zip(at_quarter, self._parts()[2:], strict=True)
            if size
        ]
        return torch.cat([coarse, _gathered(fine, 2, coarse), *folded], 1)


class _Memory(NamedTuple):
    """What is remembered: of the GRUs at 1/16, 1/8 and 1/4, what was said of the frame before, and its
    picture, both at 1/4. Without recurrence each is the state as it came."""

    coarse: Tensor
    fine: Tensor
    finest: Tensor
    said: Tensor
    picture: Tensor


def _spread(folded: Tensor, times: int, reference: Tensor) -> Tensor:
    """[N, C times^2, h, w] -> [N, C, h', w'], the height and width of `reference`."""
    spread = functional.pixel_shuffle(folded, times)
    return spread[:, :, : reference.shape[-2], : reference.shape[-1]]


def _gathered(spread: Tensor, times: int, coarse: Tensor) -> Tensor:
    """The way back, to the height and width of `coarse`; what it has no cell for is zero."""
    height, width = times * coarse.shape[-2], times * coarse.shape[-1]
    missing = [0, width - spread.shape[-1], 0, height - spread.shape[-2]]
    return functional.pixel_unshuffle(functional.pad(spread, missing), times)


def _silent(layer: nn.Conv2d) -> nn.Conv2d:
    """A layer that begins as nothing: what is added by it grows only if it helps."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def smoothed(logits: Tensor, kernel: Tensor) -> Tensor:
    """[M, K, h, w] filtered by a kernel [3, 3], 1 2 1 each way.

    The four phases of a pixel shuffle are learnt apart and differ by a little, which dots every edge
    (Odena et al., "Deconvolution and Checkerboard Artifacts", 2016). This filter is zero at just that period.
    """
    padded = functional.pad(logits, (1, 1, 1, 1), mode="replicate")
    classes = logits.shape[1]
    weights = kernel.to(logits.dtype).expand(classes, 1, 3, 3)
    return functional.conv2d(padded, weights, groups=classes)


def _stage(inputs: int, outputs: int, blocks: int, stride: int = 2) -> nn.Sequential:
    rest = [ShortTermDense(outputs, outputs) for _ in range(blocks - 1)]
    return nn.Sequential(ShortTermDense(inputs, outputs, stride), *rest)
