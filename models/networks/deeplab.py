"""DeepLabV3+ (Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image
Segmentation", ECCV 2018): a pyramid of dilated convolutions, and a decoder that adds fine detail."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks.blocks import ConvBNReLU, conv_stack, enlarge
from models.networks.recurrent import EncoderDecoder


class DeepLabV3Plus(EncoderDecoder):
    """A residual encoder that dilates instead of striding past 1/16, the pyramid, a decoder at 1/4.

    Unlike the paper's, convolutions are whole, not depthwise separable: matrix units like them better.

    Args:
        outputs: maps of logits.
        width: channels at 1/4; they double at 1/8 and 1/16.
        bottleneck: channels the pyramid ends in.
        rates: dilation of the pyramid's 3x3 convolutions, in cells of 1/16. Smaller than the paper's
            6, 12 and 18, which at 480x360 would hardly touch anything but padding.
    """

    stride, logits_stride = 16, 4

    def __init__(
        self,
        in_channels: int,
        outputs: int,
        width: int = 32,
        bottleneck: int = 128,
        rates: tuple[int, ...] = (3, 6, 9),
    ) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        self.stem = conv_stack(in_channels, width // 2, 1, stride=2)
        self.quarter = _residual_stage(width // 2, width, stride=2)
        self.eighth = _residual_stage(width, 2 * width, stride=2)
        self.sixteenth = nn.Sequential(
            _residual_stage(2 * width, 4 * width, stride=2),
            _residual_stage(4 * width, 4 * width, dilation=2),
        )
        self.pyramid = AtrousPyramid(4 * width, bottleneck, rates)
        self.low_level = ConvBNReLU(width, width // 2, kernel=1)
        self.refine = conv_stack(bottleneck + width // 2, 2 * width, 2)
        self.head = nn.Conv2d(2 * width, outputs, 1)

    def encode(self, frames: Tensor) -> tuple[Tensor, list[Tensor]]:
        quarter = self.quarter(self.stem(frames))
        return self.pyramid(self.sixteenth(self.eighth(quarter))), [quarter]

    def decode(self, bottleneck: Tensor, skips: list[Tensor]) -> Tensor:
        fine = torch.cat([enlarge(bottleneck, 4), self.low_level(skips[0])], 1)
        return self.head(self.refine(fine))


class AtrousPyramid(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al., "Rethinking Atrous Convolution", 2017): a 1x1
    convolution, dilated 3x3 ones and the mean of the whole frame, side by side."""

    def __init__(self, inputs: int, outputs: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        self.point = ConvBNReLU(inputs, outputs, kernel=1)
        self.dilated = nn.ModuleList(ConvBNReLU(inputs, outputs, dilation=rate) for rate in rates)
        # No batch norm here: one value a channel and frame is too few for statistics.
        self.whole = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(inputs, outputs, 1), nn.ReLU(inplace=True)
        )
        self.project = ConvBNReLU((2 + len(rates)) * outputs, outputs, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: [M, inputs, H, W] -> [M, outputs, H, W]."""
        near = self.point(x)
        around = [branch(x) for branch in self.dilated]
        branches = [near, *around, self.whole(x).expand_as(near)]
        return self.project(torch.cat(branches, 1))


class Residual(nn.Module):
    """Two 3x3 convolutions around which the input passes (He et al., CVPR 2016), the first of which may
    stride; then the input is projected to match."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.first = ConvBNReLU(inputs, outputs, stride=stride, dilation=dilation)
        self.second = nn.Sequential(
            nn.Conv2d(outputs, outputs, 3, 1, dilation, dilation, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.shortcut(x) + self.second(self.first(x)))


def _residual_stage(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        Residual(inputs, outputs, stride, dilation), Residual(outputs, outputs, dilation=dilation)
    )
