"""FCN-8s (Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015):
a classification network whose class scores at three scales are summed, each onto the finer one."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from models.networks.blocks import ConvBNReLU, conv_stack, enlarge
from models.networks.recurrent import EncoderDecoder


class FCN(EncoderDecoder):
    """Convolutions in the manner of VGG, then scores at 1/32, 1/16 and 1/8.

    Unlike the paper's, its first convolution strides and all have batch norm, in place of dropout.
    Upsampling is bilinear, without kernels of its own: the paper's learned ones start from it, and its
    authors' later implementation keeps them fixed.

    Args:
        outputs: maps of scores.
        width: channels at 1/2; they double at 1/4, 1/8 and 1/16.
        bottleneck: channels at 1/32.
    """

    stride, logits_stride = 32, 4

    def __init__(
        self, in_channels: int, outputs: int, width: int = 32, bottleneck: int = 256
    ) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        self.first = conv_stack(in_channels, width, 2, stride=2)
        self.quarter = conv_stack(width, 2 * width, 2)
        self.eighth = conv_stack(2 * width, 4 * width, 3)
        self.sixteenth = conv_stack(4 * width, 8 * width, 3)
        self.thirtysecond = nn.Sequential(
            ConvBNReLU(8 * width, bottleneck), ConvBNReLU(bottleneck, bottleneck, kernel=1)
        )
        self.score8 = nn.Conv2d(4 * width, outputs, 1)
        self.score16 = nn.Conv2d(8 * width, outputs, 1)
        self.score32 = nn.Conv2d(bottleneck, outputs, 1)

    def encode(self, frames: Tensor) -> tuple[Tensor, list[Tensor]]:
        quarter = self.quarter(functional.max_pool2d(self.first(frames), 2))
        eighth = self.eighth(functional.max_pool2d(quarter, 2))
        sixteenth = self.sixteenth(functional.max_pool2d(eighth, 2))
        return self.thirtysecond(functional.max_pool2d(sixteenth, 2)), [eighth, sixteenth]

    def decode(self, bottleneck: Tensor, skips: list[Tensor]) -> Tensor:
        eighth, sixteenth = skips
        scores = enlarge(self.score32(bottleneck), 2) + self.score16(sixteenth)
        scores = enlarge(scores, 2) + self.score8(eighth)
        return enlarge(scores, 2)
