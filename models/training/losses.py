"""Losses of a segmentation network, each a function of logits and truth.

Truth comes in two forms, as the network has one of two heads:
    softmax  labels int64 [M, H, W], `NO_CLASS` where unlabelled
    sigmoid  masks int32 [M, H, W], bit k = class k holds; `UNLABELLED_MASK` where unlabelled
`Truth` says for both which pixels count and what is true of each class there. Logits of any size are
resized to the truth's: the loss is taken where the labels are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from models.labels import NO_CLASS, UNLABELLED_MASK
from models.networks.alignment import MOTION_STRIDE

THINNING = 4  # Lovász sorts: all pixels would cost more than the network


@dataclass(frozen=True)
class Truth:
    """What is true of each pixel, for a softmax or a sigmoid head.

    Attributes:
        ids: labels int64 or masks int32 [M, H, W].
        classes: K.
        multi_label: ids are masks.
    """

    ids: Tensor
    classes: int
    multi_label: bool

    def labelled(self) -> Tensor:
        """bool [M, H, W]."""
        return self.ids != (UNLABELLED_MASK if self.multi_label else NO_CLASS)

    def of_class(self, index: int) -> Tensor:
        """bool [M, H, W]: whether class `index` holds; meaningless where unlabelled."""
        return (self.ids >> index & 1).bool() if self.multi_label else self.ids == index

    def targets(self) -> Tensor:
        """float [M, K, H, W], 0 or 1."""
        return torch.stack([self.of_class(index) for index in range(self.classes)], 1).float()

    def thinned(self) -> Truth:
        """Every `THINNING`-th pixel each way, as `thin` takes them from logits."""
        return Truth(thin(self.ids), self.classes, self.multi_label)

    def middles(self, size_hw: tuple[int, int]) -> Truth:
        """The pixels in the middles of the cells of a grid of `size_hw`."""
        rows, columns = (
            (2 * torch.arange(cells, device=self.ids.device) + 1) * pixels // (2 * cells)
            for cells, pixels in zip(size_hw, self.ids.shape[-2:], strict=True)
        )
        return Truth(self.ids[:, rows[:, None], columns], self.classes, self.multi_label)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of logits [M, K, ...]: a softmax over classes, or a sigmoid of each."""
        return logits.sigmoid() if self.multi_label else logits.softmax(1)


def thin(x: Tensor) -> Tensor:
    """Every `THINNING`-th pixel each way of x [..., H, W]."""
    return x[..., THINNING // 2 :: THINNING, THINNING // 2 :: THINNING]


def cross_entropy(logits: Tensor, truth: Truth, weights: Tensor) -> Tensor:
    """Mean over labelled pixels of the weighted cross-entropy, of a sigmoid head a class at a time.

    Args:
        logits: float [M, K, H, W]; weights: float [K], of the classes.
    """
    labelled = truth.labelled()
    if not labelled.any():  # else the mean of nothing, which is NaN
        return logits.sum() * 0
    if truth.multi_label:
        return _binary_entropy(logits, truth, weights)[labelled].mean()
    return functional.cross_entropy(logits, truth.ids, weights, ignore_index=NO_CLASS)


def _binary_entropy(logits: Tensor, truth: Truth, weights: Tensor) -> Tensor:
    """float [M, H, W]: mean over the classes of their weighted binary cross-entropy."""
    losses = functional.binary_cross_entropy_with_logits(logits, truth.targets(), reduction="none")
    return (losses * (weights / weights.mean()).view(1, -1, 1, 1)).mean(1)


def hard_pixel_loss(logits: Tensor, truth: Truth, weights: Tensor, share: float) -> Tensor:
    """Cross-entropy of the `share` of labelled pixels where it is largest, weighted as the whole one is.

    Online hard example mining (Shrivastava et al., CVPR 2016), with pixels for regions.
    """
    labelled = truth.labelled()
    if truth.multi_label:
        losses, scale = _binary_entropy(logits, truth, weights), torch.ones_like(logits[:, 0])
    else:
        losses = functional.cross_entropy(
            logits, truth.ids, weights, ignore_index=NO_CLASS, reduction="none"
        )
        scale = weights[truth.ids.clamp(max=truth.classes - 1)]
    losses, scale = losses[labelled], scale[labelled]
    if not losses.numel():
        return logits.sum() * 0
    hardest, where = losses.topk(max(1, round(share * losses.numel())), sorted=False)
    return hardest.sum() / scale[where].sum()


def coarse_cross_entropy(logits: Tensor, truth: Truth, weights: Tensor) -> Tensor:
    """Cross-entropy of coarse logits [M, K, h, w] against the truth in each cell's middle."""
    # The middle: the cell's corner would lie 3.5 pixels off, further than a pole is wide.
    return cross_entropy(logits, truth.middles((logits.shape[-2], logits.shape[-1])), weights)


def dice_loss(logits: Tensor, truth: Truth) -> Tensor:
    """1 - Dice coefficient (Milletari et al., "V-Net", 3DV 2016), mean over the classes present.

    Squares in the denominator, as there; over all labelled pixels of the batch.
    """
    labelled = truth.labelled()[:, None]
    probabilities = truth.probabilities(logits) * labelled
    targets = truth.targets() * labelled
    axes = (0, 2, 3)
    common = (probabilities * targets).sum(axes)
    total = probabilities.square().sum(axes) + targets.sum(axes)
    present = targets.sum(axes) > 0
    if not present.any():
        return logits.sum() * 0
    return (1 - 2 * common / total.clamp(min=1e-6))[present].mean()


def lovasz_loss(logits: Tensor, truth: Truth) -> Tensor:
    """Lovász-softmax (Berman et al., CVPR 2018), mean over the classes present.

    A convex surrogate of 1 - IoU of each class, over the batch's labelled pixels. Of a sigmoid head the
    same, with its own probabilities.
    """
    labelled = truth.labelled()
    probabilities = truth.probabilities(logits).movedim(1, -1)[labelled]
    here = torch.stack([truth.of_class(index)[labelled] for index in range(truth.classes)])
    losses = []
    for index, present in enumerate(here.any(1).tolist()):
        if present:
            hits = here[index].float()
            errors, order = (hits - probabilities[:, index]).abs().sort(descending=True)
            losses.append(torch.dot(errors, _jaccard_slope(hits[order])))
    return torch.stack(losses).mean() if losses else logits.sum() * 0


def _jaccard_slope(truth: Tensor) -> Tensor:
    """How much the Jaccard loss grows with each error, the errors sorted by falling size."""
    total = truth.sum()
    intersection = total - truth.cumsum(0)
    union = total + (1 - truth).cumsum(0)
    jaccard = 1 - intersection / union
    jaccard[1:] = jaccard[1:] - jaccard[:-1].clone()
    return jaccard


def boundaries(truth: Truth) -> tuple[Tensor, Tensor]:
    """Where another class lies next to a pixel, and where that can be said.

    Returns:
        bool [M, H, W]: pixels with another class among their eight neighbours (lines two pixels wide).
        bool [M, H, W]: pixels that are labelled, with all their neighbours.
    """
    ids = truth.ids.float()[:, None]
    highest = functional.max_pool2d(ids, 3, 1, 1)
    lowest = -functional.max_pool2d(-ids, 3, 1, 1)
    unlabelled = (~truth.labelled()).float()[:, None]
    known = functional.max_pool2d(unlabelled, 3, 1, 1) == 0
    return (highest != lowest)[:, 0] & known[:, 0], known[:, 0]


def boundary_loss(logits: Tensor, truth: Truth) -> Tensor:
    """Binary cross-entropy of a boundary head, boundaries and the rest weighing the same in total.

    The balance is that of holistically-nested edge detection (Xie and Tu, ICCV 2015).

    Args:
        logits: float [M, 1, H, W].
    """
    edges, known = boundaries(truth)
    targets = edges[known].float()
    if not targets.numel():
        return logits.sum() * 0
    share = targets.mean().clamp(1e-3, 1 - 1e-3)
    weights = torch.where(targets > 0, 0.5 / share, 0.5 / (1 - share))
    return functional.binary_cross_entropy_with_logits(logits[:, 0][known], targets, weights)


def distillation_loss(
    logits: Tensor, teacher: Tensor, temperature: float, multi_label: bool
) -> Tensor:
    """Divergence of a student's probabilities from its teacher's, both softened, mean over all pixels.

    Kullback-Leibler, times the temperature's square so that its gradient does not fade (Hinton et al.,
    "Distilling the knowledge in a neural network", 2015). Unlabelled pixels teach too.

    Args:
        logits, teacher: float [M, K, h, w]; the teacher's are resized to the student's size.
    """
    if teacher.shape[-2:] != logits.shape[-2:]:
        teacher = functional.interpolate(
            teacher, logits.shape[-2:], mode="bilinear", align_corners=False
        )
    student, soft = logits / temperature, teacher / temperature
    if multi_label:
        target = soft.sigmoid()
        least = functional.binary_cross_entropy_with_logits(soft, target)
        divergence = functional.binary_cross_entropy_with_logits(student, target) - least
        return divergence * logits.shape[1] * temperature**2
    divergence = functional.kl_div(
        student.log_softmax(1), soft.log_softmax(1), log_target=True, reduction="sum"
    )
    return divergence / logits[:, 0].numel() * temperature**2


def steadiness_loss(logits: Tensor, motions: Tensor, multi_label: bool = False) -> Tensor:
    """How much class probabilities change from frame to frame along a known motion.

    Args:
        logits: float [N, T, K, h, w].
        motions: float [N, T - 1, 2, 3]: the affine map from frame t + 1 to frame t in normalised
            coordinates (-1 to 1 each way); NaN where the motion is not known.

    Returns:
        Mean over pixels seen in both frames of the squared change, summed over classes (0 to 2).
    """
    known = ~motions.flatten(2).isnan().any(2)
    if not known.any():
        return logits.sum() * 0
    return _change(logits, known, _before(_places(logits), motions[known]), multi_label)


def flow_steadiness_loss(logits: Tensor, flow: Tensor, multi_label: bool = False) -> Tensor:
    """The same along optical flow, a motion of its own for each pixel.

    Args:
        logits: float [N, T, K, h, w].
        flow: float [N, T - 1, hf, wf, 2]: how far from its place a pixel of frame t + 1 was in frame t, x
            and y in normalised coordinates; NaN where it was not seen there.
    """
    known = ~flow.flatten(2).isnan().all(2)
    if not known.any():
        return logits.sum() * 0
    here = _places(logits)
    return _change(logits, known, here + _flow_at(here, flow[known]), multi_label)


def motion_loss(
    motion: Tensor, motions: Tensor, flow: Tensor | None, size_hw: tuple[int, int]
) -> Tensor:
    """How far the motion that a network found is off, mean over what is seen in both frames, in its cells.

    Args:
        motion: float [N, T, 2, h, w], in cells, x and y; the first frame's is not judged.
        motions, flow: as `steadiness_loss` and `flow_steadiness_loss` want them.
        size_hw: of the frames; the last row and column of cells may reach beyond.
    """
    # The middles of the cells, and how many of them half a picture has.
    halves = [side / 2 / MOTION_STRIDE for side in size_hw]
    y, x = (
        (torch.arange(count, device=motion.device) + 0.5) / half - 1
        for count, half in zip(motion.shape[-2:], halves, strict=True)
    )
    here = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    source = _before(here, motions)
    if flow is not None:
        source = torch.where(source.isnan(), here + _flow_at(here, flow), source)
    seen = (source.abs() <= 1).all(-1) & (here.abs() <= 1).all(-1)
    if not seen.any():
        return motion.sum() * 0
    cells = motion.new_tensor(halves[::-1])
    miss = (motion[:, 1:].movedim(2, -1) - (source - here) * cells)[seen]
    return miss.abs().sum(-1).mean()


def _before(here: Tensor, motions: Tensor) -> Tensor:
    """Where places [h, w, 2] were in the frame before, by affine maps [..., 2, 3]: [..., h, w, 2]."""
    return here @ motions[..., None, :, :2].mT + motions[..., None, None, :, 2]


def _flow_at(here: Tensor, flow: Tensor) -> Tensor:
    """The flow [..., hf, wf, 2] of the cells in which places [h, w, 2] lie: [..., h, w, 2].

    Of a place beyond the right or lower edge that of the last cell.
    """
    rows, columns = (
        ((place + 1) * cells / 2).long().clamp(max=cells - 1)
        for place, cells in ((here[:, 0, 1], flow.shape[-3]), (here[0, :, 0], flow.shape[-2]))
    )
    return flow[..., rows[:, None], columns, :]


def _places(logits: Tensor) -> Tensor:
    """float [h', w', 2]: where the logits lie that are compared, every second one each way.

    The middles of their cells, x and y in normalised coordinates: -1 to 1 from edge to edge of the picture.
    """
    y, x = (
        (2 * torch.arange(0, cells, 2, device=logits.device) + 1) / cells - 1
        for cells in logits.shape[-2:]
    )
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


def _change(logits: Tensor, known: Tensor, source: Tensor, multi_label: bool) -> Tensor:
    """Mean squared change of the pairs of frames that are `known`, bool [N, T - 1].

    Args:
        source: float [M, h', w', 2], where the pixels at `_places` were in the frame before, normalised;
            NaN or outside -1 to 1 where they were not seen.
    """
    few = logits[..., ::2, ::2]
    probabilities = few.sigmoid() if multi_label else few.softmax(2)
    now, before = probabilities[:, 1:][known], probabilities[:, :-1][known]
    seen = (source.abs() <= 1).all(-1)  # not where it is NaN
    # `grid_sample` takes the thinned logits for a picture of their own: its cells are twice as wide, and
    # their middles lie half of a cell of the logits further on.
    cells = source.new_tensor([logits.shape[-1], logits.shape[-2]])
    thinned = source.new_tensor([few.shape[-1], few.shape[-2]])
    grid = ((source + 1) * cells / 2 + 0.5) / thinned - 1
    moved = functional.grid_sample(
        before, grid.nan_to_num(), padding_mode="border", align_corners=False
    )
    return ((now - moved).square().sum(1) * seen).sum() / seen.sum().clamp(min=1)
