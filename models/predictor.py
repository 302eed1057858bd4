"""Predictions of a recurrent network, frame by frame, for several copies of a stream at once.

What a training is watched by and what evaluation measures: the frame as the product scales it for the
network, the state carried as the product carries it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.networks.recurrent import Network
from models.program import DTYPES
from models.spec import Spec
from models.step import label_map

MASK_THRESHOLD = 0.5


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Layers that gain from it compute in `precision` ("f32", "bf16" or "f16")."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "f32")


@dataclass(frozen=True)
class Prediction:
    """What the network says of one frame, at the frame's own size.

    Attributes:
        probabilities: float32 [K, H, W], 0-1; they add up to 1 unless the head is sigmoid.
        labels: uint8 [H, W], the most probable class; with a sigmoid head 255 where that one is below 0.5.
    """

    probabilities: np.ndarray
    labels: np.ndarray

    def masks(self) -> np.ndarray:
        """bool [K, H, W]: the classes that hold, each on its own."""
        return self.probabilities >= MASK_THRESHOLD


@dataclass(frozen=True)
class Variant:
    """One view of a frame at test time: its size as a share of the network's usual one, mirrored or not."""

    scale: float
    mirror: bool

    def size_hw(self, model_hw: tuple[int, int], stride: int) -> tuple[int, int]:
        height, width = (max(1, round(side * self.scale / stride)) * stride for side in model_hw)
        return height, width


class Predictor:
    """Runs lanes: copies of one stream, altered or not, in one batch, each with its own state.

    The network sees a frame at `spec.model_hw` of its size, as in the product; logits are brought to the
    frame's own size bilinearly and become probabilities there. With several scales or mirroring the
    probabilities of all variants are averaged, and each variant of each lane carries a state of its own.

    Args:
        network, spec: as `models.registry.load` gives them.
        carries: for each lane, whether its state is carried from frame to frame, or starts anew each time.
        scales: sizes at test time, as shares of the usual one.
        flip: also look at the mirrored frame.
        precision: "f32", or that of `autocast`.
    """

    def __init__(
        self,
        network: Network,
        spec: Spec,
        carries: Sequence[bool],
        *,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        precision: str = "f32",
    ) -> None:
        self.network, self.spec, self.precision = network.eval(), spec, precision
        self.device = network.mean.device
        carried = torch.tensor([float(carry) for carry in carries], device=self.device)
        self.carried = carried.view(-1, 1, 1, 1)
        mirrors = (False, True) if flip else (False,)
        self.variants = [Variant(scale, mirror) for scale in scales for mirror in mirrors]
        self.states: dict[Variant, Tensor] = {}

    def start(self) -> None:
        """A stream begins: all states are zero."""
        self.states.clear()

    @torch.inference_mode()
    def predict(
        self, frames: Sequence[np.ndarray], planes: np.ndarray | None = None
    ) -> Iterator[Prediction]:
        """The next frame of each lane; predictions are made as they are asked for, in the lanes' order.

        Args:
            frames: one a lane, uint8 [H, W, 3], all of one size.
            planes: further channels of all lanes, float32 [H, W, C - 3].
        """
        size_hw = frames[0].shape[:2]
        views = [self._step(variant, frames, planes) for variant in self.variants]
        for lane in range(len(frames)):
            mean = torch.stack([self._probabilities(v[lane], size_hw) for v in views]).mean(0)
            yield Prediction(mean.cpu().numpy(), self._labels(mean))

    def _step(
        self, variant: Variant, frames: Sequence[np.ndarray], planes: np.ndarray | None
    ) -> Tensor:
        """Logits [N, K, h, w] of a variant, the mirrored ones turned back."""
        size_hw = variant.size_hw(self.spec.model_hw(frames[0].shape[:2]), self.spec.stride)
        batch = _to_tensor(frames, planes, size_hw).to(self.device)
        state = self.states.get(variant)
        if state is None:
            state = batch.new_zeros(len(frames), *self.network.state_shape(size_hw))
        with autocast(self.device, self.precision):
            logits, state = self.network(batch.flip(-1) if variant.mirror else batch, state)
        self.states[variant] = state.float() * self.carried
        return logits.float().flip(-1) if variant.mirror else logits.float()

    def _probabilities(self, logits: Tensor, size_hw: tuple[int, ...]) -> Tensor:
        full = functional.interpolate(
            logits[None], size_hw, mode="bilinear", align_corners=False
        )[0]  # fmt: skip
        return full.sigmoid() if self.spec.head == "sigmoid" else full.softmax(0)

    def _labels(self, probabilities: Tensor) -> np.ndarray:
        masks = self.spec.head == "sigmoid"
        # The product asks whether logits are at least 0.
        scores = probabilities - MASK_THRESHOLD if masks else probabilities
        return label_map(scores[None], masks)[0].to(torch.uint8).cpu().numpy()


def _to_tensor(
    frames: Sequence[np.ndarray], planes: np.ndarray | None, size_hw: tuple[int, int]
) -> Tensor:
    """float32 [N, C, h, w], 0-255."""
    small = {id(frame): _resize(frame, size_hw) for frame in frames}  # lanes often share a frame
    batch = torch.from_numpy(np.stack([small[id(frame)] for frame in frames])).movedim(-1, 1)
    batch = batch.float().contiguous()
    if planes is None:
        return batch
    extra = [_resize(planes[..., index], size_hw) for index in range(planes.shape[2])]
    further = torch.from_numpy(np.stack(extra))[None].expand(len(frames), -1, -1, -1)
    return torch.cat([batch, further], 1)


def _resize(picture: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    height, width = size_hw
    if picture.shape[:2] == (height, width):
        return picture
    shrinks = height < picture.shape[0]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, (width, height), interpolation=how))
