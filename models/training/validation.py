"""The score by which a training is watched: IoU over validation clips, each with its state carried."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.evaluation.metrics import ConfusionMatrix, MaskCounts
from models.evaluation.scorers import unpack_masks
from models.networks.recurrent import Network
from models.step import label_map
from models.training.data import UNLABELLED_MASK, Clip
from models.training.place import Place

Watcher = Callable[[int, Clip, int, np.ndarray], None]


@torch.inference_mode()
def score_clips(
    network: Network, clips: Sequence[Clip], place: Place, precision: str,
    watch: Watcher = lambda *seen: None,
) -> ConfusionMatrix | MaskCounts:  # fmt: skip
    """Predictions of a network over clips against their labels, or their masks for a sigmoid head.

    Args:
        watch: called with clip number, clip, frame and prediction: class ids uint8 [H, W], 255 where
            no class is probable enough.
    """
    network.eval()
    score = (MaskCounts if network.multi_label else ConfusionMatrix)(network.classes)
    for number, clip in enumerate(clips):
        state: Tensor | None = None
        for frame in range(len(clip.labels)):
            pixels = _padded(_pixels(clip, frame).to(place.device))
            if state is None:
                size_hw = (pixels.shape[-2], pixels.shape[-1])
                state = torch.zeros(1, *network.state_shape(size_hw), device=place.device)
            with place.autocast(precision):
                logits, state = network(pixels, state)
            logits = functional.interpolate(
                logits.float(), pixels.shape[-2:], mode="bilinear", align_corners=False
            )
            height, width = clip.labels.shape[1:]
            logits = logits[:, :, :height, :width]
            if isinstance(score, MaskCounts):
                masks = clip.bits()[frame]
                predicted = (logits[0] > 0).cpu().numpy()
                score.add(unpack_masks(masks, network.classes), predicted, masks != UNLABELLED_MASK)
            labels = label_map(logits, network.multi_label)[0].to(torch.uint8).cpu().numpy()
            if isinstance(score, ConfusionMatrix):
                score.add(clip.labels[frame], labels)
            watch(number, clip, frame, labels)
    return score


def _pixels(clip: Clip, frame: int) -> Tensor:
    """float [1, C, H, W], 0-255."""
    pixels = torch.from_numpy(clip.rgb[frame]).movedim(-1, 0)[None].float()
    if clip.planes is None:
        return pixels
    return torch.cat([pixels, torch.from_numpy(clip.planes[frame]).movedim(-1, 0)[None]], 1)


def _padded(pixels: Tensor) -> Tensor:
    """With sides that are multiples of 8, extended at the right and the bottom."""
    missing = [0, -pixels.shape[-1] % 8, 0, -pixels.shape[-2] % 8]
    return functional.pad(pixels, missing, mode="replicate") if any(missing) else pixels
