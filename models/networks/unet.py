"""U-Net (Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation",
MICCAI 2015): what the encoder saw at each scale is laid beside what the decoder makes of the coarser ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks.blocks import conv_stack
from models.networks.recurrent import EncoderDecoder


class UNet(EncoderDecoder):
    """Two convolutions a scale from 1/2 to 1/32, max-pooling down, 2x2 transposed convolutions up.

    Unlike the paper's, the first convolution strides, convolutions keep the size and have batch norm, and
    the coarsest scale is no wider than the one before it.

    Args:
        outputs: maps of logits.
        width: channels at 1/2; they double at 1/4, 1/8 and 1/16.
    """

    stride, logits_stride = 32, 2

    def __init__(self, in_channels: int, outputs: int, width: int = 24) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.bottleneck = widths[-1]
        self.first = conv_stack(in_channels, width, 2, stride=2)
        self.down = nn.ModuleList(
            conv_stack(finer, coarser, 2)
            for finer, coarser in zip(widths, [*widths[1:], self.bottleneck], strict=True)
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(coarser, finer, 2, stride=2)
            for coarser, finer in zip([self.bottleneck, *widths[:0:-1]], widths[::-1], strict=True)
        )
        self.merge = nn.ModuleList(conv_stack(2 * finer, finer, 2) for finer in widths[::-1])
        self.head = nn.Conv2d(width, outputs, 1)

    def encode(self, frames: Tensor) -> tuple[Tensor, list[Tensor]]:
        skips = [self.first(frames)]
        for down in self.down:
            skips.append(down(functional.max_pool2d(skips[-1], 2)))
        return skips.pop(), skips

    def decode(self, bottleneck: Tensor, skips: list[Tensor]) -> Tensor:
        x = bottleneck
        for up, merge, skip in zip(self.up, self.merge, reversed(skips), strict=True):
            x = merge(torch.cat([skip, up(x)], 1))
        return self.head(x)
