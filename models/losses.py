"""Losses of a segmentation network."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from models.augment import IGNORE


def segmentation_loss(
    logits: Tensor, labels: Tensor, weights: Tensor, lovasz_share: float
) -> Tensor:
    """Weighted cross-entropy at the labels' size plus a share of Lovász-softmax at the logits' size.

    Args:
        logits: float [M, K, h, w], any size; labels: int64 [M, H, W], `IGNORE` where unlabelled.
        weights: float [K], of the classes in the cross-entropy.
        lovasz_share: 0 leaves the Lovász term out.
    """
    scaled = functional.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
    entropy = functional.cross_entropy(scaled, labels, weights, ignore_index=IGNORE)
    if not lovasz_share:
        return entropy
    step = labels.shape[-1] // logits.shape[-1]
    # The middle of each logit's cell: its corner would lie 1.5 pixels off, as far as a pole is wide.
    centers = labels[:, step // 2 :: step, step // 2 :: step]
    return entropy + lovasz_share * lovasz_softmax(logits, centers)


def lovasz_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """Lovász-softmax (Berman et al., CVPR 2018), mean over the classes present.

    A convex surrogate of 1 - IoU of each class, over the batch's labelled pixels.
    """
    probabilities = logits.softmax(1).movedim(1, -1).flatten(0, -2)
    flat = labels.flatten()
    labelled = flat != IGNORE
    probabilities, flat = probabilities[labelled], flat[labelled]
    losses = []
    for index in flat.unique().tolist():
        truth = (flat == index).float()
        errors, order = (truth - probabilities[:, index]).abs().sort(descending=True)
        losses.append(torch.dot(errors, _jaccard_slope(truth[order])))
    return torch.stack(losses).mean() if losses else logits.sum() * 0


def _jaccard_slope(truth: Tensor) -> Tensor:
    """How much the Jaccard loss grows with each error, the errors sorted by falling size."""
    total = truth.sum()
    intersection = total - truth.cumsum(0)
    union = total + (1 - truth).cumsum(0)
    jaccard = 1 - intersection / union
    jaccard[1:] = jaccard[1:] - jaccard[:-1].clone()
    return jaccard
