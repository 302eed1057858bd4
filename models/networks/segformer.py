"""SegFormer (Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with
Transformers", NeurIPS 2021): self-attention at four scales, and a decoder of 1x1 convolutions.

Maps are [M, H, W, C] inside the transformer, where all but the convolutions work along the channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks.blocks import ConvBNReLU, enlarge
from models.networks.recurrent import EncoderDecoder


class SegFormer(EncoderDecoder):
    """The mixed transformer at 1/4, 1/8, 1/16 and 1/32; all four scales go into the output at 1/4.

    It has no code of position, so that any frame size will do: the convolutions' padding gives it away.

    Args:
        outputs: maps of logits.
        widths: channels a scale. Defaults are those of the paper's smallest network, MiT-B0.
        depths: transformer blocks a scale.
        heads: attention heads a scale, which divide the channels.
        fused: channels of the decoder; 256 in the paper, where it costs most of the network.
    """

    stride, logits_stride = 32, 4

    def __init__(
        self,
        in_channels: int,
        outputs: int,
        widths: Sequence[int] = (32, 64, 160, 256),
        depths: Sequence[int] = (2, 2, 2, 2),
        heads: Sequence[int] = (1, 2, 5, 8),
        fused: int = 128,
    ) -> None:
        super().__init__()
        for name, values in (("widths", widths), ("depths", depths), ("heads", heads)):
            if len(values) != 4:
                raise ValueError(f"{name} must be 4 numbers, one a scale, got {list(values)}")
        self.bottleneck = widths[-1]
        # Keys and values are reduced to 1/32 at every scale.
        self.stages = nn.ModuleList(
            TransformerStage(*each)
            for each in zip(
                [in_channels, *widths[:-1]], widths, depths, heads, (4, 2, 2, 2), (8, 4, 2, 1),
                strict=True,
            )
        )  # fmt: skip
        self.unify = nn.ModuleList(nn.Conv2d(width, fused, 1) for width in widths)
        self.fuse = ConvBNReLU(4 * fused, fused, kernel=1)
        self.head = nn.Conv2d(fused, outputs, 1)

    def encode(self, frames: Tensor) -> tuple[Tensor, list[Tensor]]:
        maps = [frames]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[-1], maps[1:-1]

    def decode(self, bottleneck: Tensor, skips: list[Tensor]) -> Tensor:
        maps = [
            enlarge(unify(x), 2**number)
            for number, (unify, x) in enumerate(zip(self.unify, [*skips, bottleneck], strict=True))
        ]
        return self.head(self.fuse(torch.cat(maps, 1)))


class TransformerStage(nn.Module):
    """A strided convolution whose windows overlap, then transformer blocks."""

    def __init__(
        self, inputs: int, channels: int, depth: int, heads: int, stride: int, reduction: int
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(inputs, channels, 2 * stride - 1, stride, stride - 1)
        self.norm_before = nn.LayerNorm(channels)
        self.blocks = nn.Sequential(
            *(TransformerBlock(channels, heads, reduction) for _ in range(depth))
        )
        self.norm_after = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: [M, inputs, H, W] -> [M, channels, H / stride, W / stride]."""
        x = self.norm_before(_channels_last(self.embed(x)))
        return _channels_first(self.norm_after(self.blocks(x)))


class TransformerBlock(nn.Module):
    """Attention, then an MLP, each with a norm before it and the input passing by (pre-norm)."""

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attend = ReducedAttention(channels, heads, reduction)
        self.mix = MixFeedForward(channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: [M, H, W, C] -> the same shape."""
        x = x + self.attend(self.norm1(x))
        return x + self.mix(self.norm2(x))


class ReducedAttention(nn.Module):
    """Self-attention whose keys and values come from a map shrunk `reduction` times each way (Wang et al.,
    "Pyramid Vision Transformer", ICCV 2021): its cost falls by the square of that."""

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be shared among {heads} heads")
        self.heads, self.reduction = heads, reduction
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.project = nn.Linear(channels, channels)
        if reduction > 1:
            self.reduce = nn.Conv2d(channels, channels, reduction, reduction)
            self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: [M, H, W, C] -> the same shape."""
        height, width = x.shape[1:3]
        source = x
        if self.reduction > 1:
            source = self.norm(_channels_last(self.reduce(_channels_first(x))))
        query = self._by_head(self.query(x))
        key, value = (self._by_head(half) for half in self.key_value(source).chunk(2, -1))
        mixed = functional.scaled_dot_product_attention(query, key, value)
        mixed = mixed.transpose(1, 2).flatten(2).unflatten(1, (height, width))
        return self.project(mixed)

    def _by_head(self, x: Tensor) -> Tensor:
        """[M, H, W, C] -> [M, heads, H W, C / heads]."""
        return x.flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)


class MixFeedForward(nn.Module):
    """Widen four times, look around by a depthwise 3x3 convolution, narrow again."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 4 * channels
        self.widen = nn.Linear(channels, wide)
        self.around = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        self.narrow = nn.Linear(wide, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: [M, H, W, C] -> the same shape."""
        x = _channels_last(self.around(_channels_first(self.widen(x))))
        return self.narrow(functional.gelu(x))


def _channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)
