"""What a training minimises: the weighted terms that its configuration chose, from one batch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from models.training.config import Losses
from models.training.losses import (
    Truth,
    boundary_loss,
    coarse_cross_entropy,
    cross_entropy,
    dice_loss,
    distillation_loss,
    flow_steadiness_loss,
    hard_pixel_loss,
    lovasz_loss,
    motion_loss,
    steadiness_loss,
    thin,
)
from models.training.sampling import Batch


@dataclass(frozen=True)
class Objective:
    """The loss of one phase.

    Attributes:
        losses: weights of the terms.
        class_weights: float [K], of the classes in the cross-entropies.
        multi_label: the network has a sigmoid head.
    """

    losses: Losses
    class_weights: Tensor
    multi_label: bool

    def terms(
        self, logits: Tensor, auxiliary: dict[str, Tensor], batch: Batch, teacher: Tensor | None
    ) -> dict[str, Tensor]:
        """The terms over 0, weighted: what is minimised is their sum.

        Args:
            logits: float [N, T, K, h, w]; auxiliary: as a network's `clip` gives it.
            batch: on the device of the logits.
            teacher: the teacher's logits [N, T, K, h', w'], if there is one.
        """
        losses, every = self.losses, logits.flatten(0, 1).float()
        truth = self._truth(batch)
        terms = self._pixel_terms(_resized(every, truth), truth)
        if losses.auxiliary and "classes" in auxiliary:
            coarse = auxiliary["classes"].flatten(0, 1).float()
            terms["auxiliary"] = coarse_cross_entropy(coarse, truth, self.class_weights)
        if losses.boundary:
            edges = auxiliary["boundary"].flatten(0, 1).float()
            terms["boundary"] = boundary_loss(_resized(edges, truth), truth)
        if losses.steadiness:
            terms["steadiness"] = steadiness_loss(logits.float(), batch.motions, self.multi_label)
        if losses.flow_steadiness and batch.flow is not None:
            terms["flow_steadiness"] = flow_steadiness_loss(
                logits.float(), batch.flow, self.multi_label
            )
        if losses.motion:
            size_hw = (batch.labels.shape[-2], batch.labels.shape[-1])
            found = auxiliary["motion"].float()
            terms["motion"] = motion_loss(found, batch.motions, batch.flow, size_hw)
        if losses.distillation and teacher is not None:
            terms["distillation"] = distillation_loss(
                every, teacher.flatten(0, 1).float(), losses.temperature, self.multi_label
            )
        return {name: getattr(losses, name) * term for name, term in terms.items()}

    def _pixel_terms(self, scaled: Tensor, truth: Truth) -> dict[str, Tensor]:
        """Terms of logits [M, K, H, W] that have the truth's size."""
        losses, weights, terms = self.losses, self.class_weights, {}
        if losses.cross_entropy:
            terms["cross_entropy"] = cross_entropy(scaled, truth, weights)
        if losses.hard_pixels:
            terms["hard_pixels"] = hard_pixel_loss(scaled, truth, weights, losses.hard_share)
        if losses.lovasz:
            terms["lovasz"] = lovasz_loss(thin(scaled), truth.thinned())
        if losses.dice:
            terms["dice"] = dice_loss(scaled, truth)
        return terms

    def _truth(self, batch: Batch) -> Truth:
        classes = len(self.class_weights)
        if self.multi_label:
            assert batch.masks is not None
            return Truth(batch.masks.flatten(0, 1), classes, True)
        return Truth(batch.labels.long().flatten(0, 1), classes, False)


def _resized(logits: Tensor, truth: Truth) -> Tensor:
    """Logits [M, K, h, w] at the truth's size."""
    size = truth.ids.shape[-2:]
    if logits.shape[-2:] == size:
        return logits
    return functional.interpolate(logits, size, mode="bilinear", align_corners=False)


def total(terms: dict[str, Tensor]) -> Tensor:
    """The sum of the terms, in their order."""
    first, *others = terms.values()
    for term in others:
        first = first + term
    return first
