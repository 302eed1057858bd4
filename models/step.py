"""The compiled step: raw pixels and states in, label maps and next states out.

What every engine runs. Colour conversion, normalisation, the network, upsampling and argmax are all in it,
so that nothing wider than a byte a pixel enters or leaves.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.roadnet import LOGITS_STRIDE, RoadNet


class StreamStep(nn.Module):
    """One frame of N streams.

    Args:
        network: the network to wrap.
        scale: label maps have the input's size divided by this (1, 2 or 4).
    """

    def __init__(self, network: RoadNet, scale: int = 1) -> None:
        super().__init__()
        if scale not in (1, 2, LOGITS_STRIDE):
            raise ValueError(f"scale must be 1, 2 or {LOGITS_STRIDE}, got {scale}")
        self.network = network
        self.scale = scale
        # BT.601 limited range (ITU-R BT.601-7): R'G'B' 0-255 from Y'CbCr.
        matrix = [[1.164384, 0.0, 1.596027], [1.164384, -0.391762, -0.812968],
                  [1.164384, 2.017232, 0.0]]  # fmt: skip
        self.register_buffer("matrix", torch.tensor(matrix).view(3, 3, 1, 1))
        self.register_buffer("offset", torch.tensor([16.0, 128.0, 128.0]).view(1, 3, 1, 1))

    matrix: Tensor
    offset: Tensor

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
        """
        Args:
            planes: uint8 [N, h * 3 // 2, w], planar YUV 4:2:0, BT.601 limited range.
            state: float [N, C, hs, ws], zeros for a stream that starts.

        Returns:
            labels int32 [N, h / scale, w / scale] (TensorRT has no uint8 output: narrow it outside) and
            the next state.
        """
        frames = self.to_rgb(planes)
        logits, state = self.network(frames, state)
        height, width = frames.shape[-2] // self.scale, frames.shape[-1] // self.scale
        if self.scale != LOGITS_STRIDE:
            logits = functional.interpolate(
                logits, (height, width), mode="bilinear", align_corners=False
            )
        return logits.argmax(1).to(torch.int32), state
