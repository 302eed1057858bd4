"""Building blocks shared by the networks: plain convolutions that every compiler takes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class ConvBNReLU(nn.Sequential):
    """Convolution, batch norm, ReLU; `same` padding for odd kernels."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1
    ) -> None:
        padding = kernel // 2 * dilation
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


def conv_stack(inputs: int, outputs: int, count: int, stride: int = 1) -> nn.Sequential:
    """`count` 3x3 convolutions, the first of which widens and may stride."""
    rest = [ConvBNReLU(outputs, outputs) for _ in range(count - 1)]
    return nn.Sequential(ConvBNReLU(inputs, outputs, stride=stride), *rest)


class ShortTermDense(nn.Module):
    """STDC module (Fan et al., "Rethinking BiSeNet", CVPR 2021): four convolutions whose widths halve,
    their outputs concatenated, so that one block sees 1 to 7 pixels at an eighth of a 3x3's cost.

    With stride 2 the second convolution strides, and the first one's output is pooled to match.
    With stride 1 and equal widths the input is added to the output.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        half, quarter, eighth = outputs // 2, outputs // 4, outputs // 8
        self.first = ConvBNReLU(inputs, half, kernel=1)
        self.second = ConvBNReLU(half, quarter, stride=stride)
        self.third = ConvBNReLU(quarter, eighth)
        self.fourth = ConvBNReLU(eighth, outputs - half - quarter - eighth)
        self.pool = nn.AvgPool2d(3, 2, 1) if stride == 2 else nn.Identity()
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        second = self.second(first)
        third = self.third(second)
        fourth = self.fourth(third)
        out = torch.cat([self.pool(first), second, third, fourth], 1)
        return out + x if self.residual else out


class ConvGRU(nn.Module):
    """Convolutional gated recurrent unit (Ballas et al., ICLR 2016) with 3x3 kernels.

    State is explicit: it goes in and comes out; zeros start a stream. `forward` takes one frame,
    `clip` a time series; both give the same result.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.gates = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1)
        self.candidate = nn.Conv2d(2 * channels, channels, 3, padding=1)
        # The update gate starts mostly open, so that an untrained memory does not blur the present.
        nn.init.constant_(self.gates.bias[channels:], 1.0)  # type: ignore[index,arg-type]

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """x, state: [N, C, H, W] -> the new state, which is also the output, [N, C, H, W]."""
        gates = torch.sigmoid(self.gates(torch.cat([x, state], 1)))
        reset, update = gates.chunk(2, 1)
        candidate = torch.tanh(self.candidate(torch.cat([x, reset * state], 1)))
        return state + update * (candidate - state)

    def clip(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """x: [N, T, C, H, W], state: [N, C, H, W] -> outputs [N, T, C, H, W] and the last state."""
        outputs = []
        for frame in x.unbind(1):
            state = self(frame, state)
            outputs.append(state)
        return torch.stack(outputs, 1), state


class ScaleContext(nn.Module):
    """Context from the whole frame: channel attention by the global mean (Hu et al., CVPR 2018)
    around a 3x3 convolution at the coarsest scale."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.project = ConvBNReLU(inputs, outputs)
        self.attend = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(outputs, outputs, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(x)
        return x * self.attend(x)


def enlarge(x: Tensor, times: int) -> Tensor:
    """Bilinear resize of x to `times` its height and width."""
    if times == 1:
        return x
    return functional.interpolate(
        x, scale_factor=float(times), mode="bilinear", align_corners=False
    )


def resize_like(x: Tensor, reference: Tensor) -> Tensor:
    """Bilinear resize of x to the height and width of `reference`."""
    return functional.interpolate(x, reference.shape[-2:], mode="bilinear", align_corners=False)


class SelfAttention(nn.Module):
    """Multi-head self-attention over all positions (Vaswani et al., 2017; Wang et al., "Non-local Neural
    Networks", CVPR 2018), added to its input by a scale per channel that starts at zero, so that it
    begins as nothing and grows only if it helps. No positional code: any frame size will do.
    """

    def __init__(self, channels: int, width: int = 96, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.BatchNorm2d(channels)
        self.query_key_value = nn.Conv2d(channels, 3 * width, 1)
        self.project = nn.Conv2d(width, channels, 1)
        self.scale = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, C, H, W] -> the same shape."""
        height, width = x.shape[-2:]
        tokens = self.query_key_value(self.norm(x)).flatten(2)  # [N, 3 D, H W]
        tokens = tokens.unflatten(1, (3, self.heads, -1)).transpose(-1, -2)
        query, key, value = tokens.unbind(1)  # [N, heads, H W, D / heads]
        mixed = functional.scaled_dot_product_attention(query, key, value)
        mixed = mixed.transpose(-1, -2).flatten(1, 2).unflatten(-1, (height, width))
        return x + self.scale * self.project(mixed)
