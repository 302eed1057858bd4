"""SegNet (Badrinarayanan, Kendall and Cipolla, "SegNet: A Deep Convolutional Encoder-Decoder Architecture for
Image Segmentation", PAMI 2017): each pooling remembers where its maxima were, and the decoder puts what it
has back in those places."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks.blocks import ConvBNReLU, conv_stack
from models.networks.recurrent import EncoderDecoder


class SegNet(EncoderDecoder):
    """A stack of convolutions and a pooling at each of four scales, and the mirror image of that.

    Unlike the paper's, the first convolution strides, in place of the first pooling, and the logits
    have half of the frame's size: thin channels at full size would cost more than all the rest.

    Args:
        outputs: maps of logits.
        width: channels at 1/2; they double at 1/4, 1/8 and 1/16.
        depth: convolutions a stack.
    """

    stride, logits_stride = 32, 2

    def __init__(self, in_channels: int, outputs: int, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.bottleneck = widths[-1]
        self.encoders = nn.ModuleList(
            conv_stack(inputs, channels, depth, stride=2 if number == 0 else 1)
            for number, (inputs, channels) in enumerate(
                zip([in_channels, *widths[:-1]], widths, strict=True)
            )
        )
        self.decoders = nn.ModuleList(
            nn.Sequential(
                *(ConvBNReLU(channels, channels) for _ in range(depth - 1)),
                ConvBNReLU(channels, narrower),
            )
            for channels, narrower in zip(widths[::-1], [*widths[-2::-1], width], strict=True)
        )
        self.head = nn.Conv2d(width, outputs, 1)

    def encode(self, frames: Tensor) -> tuple[Tensor, list[Tensor]]:
        x, places = frames, []
        for encoder in self.encoders:
            x, place = max_pool(encoder(x))
            places.append(place)
        return x, places

    def decode(self, bottleneck: Tensor, skips: list[Tensor]) -> Tensor:
        x = bottleneck
        for decoder, place in zip(self.decoders, reversed(skips), strict=True):
            x = decoder(max_unpool(x, place))
        return self.head(x)


def max_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """2x2 maxima, and where they were.

    `nn.MaxPool2d` gives places as indices, and neither OpenVINO nor TensorRT has the `nn.MaxUnpool2d` that
    takes them. Here they are masks, found by comparing the pixels of a window with each other and not with
    the maximum, so that exactly one is set however the numbers were rounded. Of equal pixels the first in
    reading order counts, as in `nn.MaxPool2d`.

    Args:
        x: [M, C, H, W], H and W even.

    Returns:
        maxima [M, C, H / 2, W / 2] and places [M, C, 4, H / 2, W / 2], 1 for the window's pixel that holds
        the maximum and 0 for the others, in reading order.
    """
    top_left, top_right = x[..., 0::2, 0::2], x[..., 0::2, 1::2]
    low_left, low_right = x[..., 1::2, 0::2], x[..., 1::2, 1::2]
    top = torch.maximum(top_left, top_right) >= torch.maximum(low_left, low_right)
    left_of_top, left_of_low = top_left >= top_right, low_left >= low_right
    places = [top & left_of_top, top & ~left_of_top, ~top & left_of_low, ~top & ~left_of_low]
    return functional.max_pool2d(x, 2), torch.stack(places, 2).to(x.dtype)


def max_unpool(x: Tensor, places: Tensor) -> Tensor:
    """x [M, C, h, w] in the places [M, C, 4, h, w] of maxima, zeros elsewhere: [M, C, 2 h, 2 w]."""
    return functional.pixel_shuffle((x[:, :, None] * places).flatten(1, 2), 2)
