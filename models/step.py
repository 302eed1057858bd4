"""The compiled step: raw pixels and states in, label maps and next states out.

What every engine runs. Colour conversion, normalisation, the network, upsampling and argmax are all in it,
so that nothing wider than a byte a pixel enters or leaves.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.labels import NO_CLASS
from models.networks.recurrent import Network
from models.spec import SpecError


class FrameStep(nn.Module):
    """One frame of N streams, in RGB: for engines that convert colours themselves.

    Raises SpecError for a network that wants more planes than video has.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        if network.in_channels != 3:
            raise SpecError(
                f"the network takes frames of {network.in_channels} planes, video has 3: give a model"
                " whose in_channels is 3"
            )
        self.network = network

    def forward(self, frames: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            frames: float [N, 3, h, w], RGB, 0-255.
            state: float [N, C, hs, ws], zeros for a stream that starts.

        Returns:
            labels int32 [N, h, w] (TensorRT has no uint8 output: narrow it outside), as `label_map`
            gives them, and the next state.
        """
        logits, state = self.network(frames, state)
        return self.labels(logits, frames.shape[-2:]), state

    def labels(self, logits: Tensor, size_hw: tuple[int, ...]) -> Tensor:
        """Logits [N, K, h', w'] -> int32 [N, h, w], of the logits enlarged bilinearly."""
        full = functional.interpolate(logits, size_hw, mode="bilinear", align_corners=False)
        return label_map(full, self.network.multi_label)


class PhasedStep(FrameStep):
    """One frame of N streams, in RGB, its logits enlarged by convolutions.

    Bilinear enlarging by a whole number is a small convolution for each of the places that a pixel becomes,
    and labels can be put in their places more cheaply than logits. OpenVINO, whose interpolation, and whose
    turning of all logits from pixels to planes, takes a sixth of RoadNet's time, needs half as long for this.
    """

    weights: Tensor

    def __init__(self, network: Network, times: int) -> None:
        """times: the input's height and width over those of the network's logits."""
        super().__init__(network)
        self.times = times
        shift = (torch.arange(times) + 0.5) / times - 0.5  # of a place from the middle of its pixel
        line = torch.stack([(-shift).clamp(min=0), 1 - shift.abs(), shift.clamp(min=0)], 1)
        weights = line[:, None, :, None] * line[None, :, None, :]
        self.register_buffer("weights", weights.view(-1, 1, 1, 3, 3))

    def labels(self, logits: Tensor, size_hw: tuple[int, ...]) -> Tensor:
        streams, classes, height, width = logits.shape
        padded = functional.pad(logits, (1, 1, 1, 1), mode="replicate")
        phases = [
            label_map(
                functional.conv2d(padded, kernel.expand(classes, 1, 3, 3), groups=classes),
                self.network.multi_label,
            )
            for kernel in self.weights.unbind()
        ]
        places = torch.stack(phases, 1).view(streams, self.times, self.times, height, width)
        return places.permute(0, 3, 1, 4, 2).reshape(
            streams, self.times * height, self.times * width
        )


class StreamStep(FrameStep):
    """One frame of N streams, as the decoder gives it. Raises as `FrameStep`."""

    matrix: Tensor
    offset: Tensor

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        # BT.601 limited range (ITU-R BT.601-7): R'G'B' 0-255 from Y'CbCr. To three decimals, as OpenVINO has
        # it: engines must not differ for the fourth one.
        matrix = [[1.164, 0.0, 1.596], [1.164, -0.391, -0.813], [1.164, 2.018, 0.0]]
        self.register_buffer("matrix", torch.tensor(matrix).view(3, 3, 1, 1))
        self.register_buffer("offset", torch.tensor([16.0, 128.0, 128.0]).view(1, 3, 1, 1))

    def to_rgb(self, planes: Tensor) -> Tensor:
        """uint8 I420 [N, h * 3 // 2, w] -> float RGB [N, 3, h, w], 0-255."""
        rows, width = planes.shape[-2:]
        height = rows // 3 * 2
        values = planes.float()
        luma = values[:, None, :height]
        # The two chroma planes lie one after the other, each row of the array two rows of a plane.
        chroma = values[:, height:].reshape(-1, 2, height // 2, width // 2)
        chroma = functional.interpolate(chroma, scale_factor=2.0, mode="nearest")
        yuv = torch.cat([luma, chroma], 1) - self.offset
        return functional.conv2d(yuv, self.matrix).clamp(0, 255)

    def forward(self, planes: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """planes: uint8 [N, h * 3 // 2, w], planar YUV 4:2:0, BT.601 limited range; the rest as in RGB."""
        return super().forward(self.to_rgb(planes), state)


def label_map(logits: Tensor, multi_label: bool) -> Tensor:
    """One class a pixel: logits [N, K, h, w] -> int32 [N, h, w].

    Of a network with a mask a class, the most probable class where its probability is at least 0.5, and
    `NO_CLASS` elsewhere.
    """
    labels = logits.argmax(1).to(torch.int32)
    if not multi_label:
        return labels
    return torch.where(logits.amax(1) >= 0, labels, NO_CLASS)  # the sigmoid of 0 is 0.5
