"""Each loss against its definition, by hand or by a case whose value is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.labels import NO_CLASS, UNLABELLED_MASK
from models.training.config import Losses
from models.training.losses import (
    Truth,
    boundaries,
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
)
from models.training.objective import Objective, total
from models.training.sampling import Batch

ONES = torch.ones(3)


def labels_of(*rows: list[int]) -> Truth:
    return Truth(torch.tensor([rows]), 3, multi_label=False)


def masks_of(*rows: list[int]) -> Truth:
    return Truth(torch.tensor([rows], dtype=torch.int32), 3, multi_label=True)


def sure_of(truth: Truth) -> Tensor:
    """Logits that say exactly what is true."""
    return truth.targets() * 60 - 30


def random_truth(multi_label: bool, size: int = 16) -> Truth:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 8 if multi_label else 3, (2, size, size), generator=generator)
    ids[:, size // 2 :] = UNLABELLED_MASK if multi_label else NO_CLASS
    return Truth(ids.int() if multi_label else ids, 3, multi_label)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize(
    "loss",
    [
        lambda logits, truth: cross_entropy(logits, truth, torch.tensor([1.0, 2.0, 3.0])),
        lambda logits, truth: hard_pixel_loss(logits, truth, torch.tensor([1.0, 2.0, 3.0]), 0.3),
        lovasz_loss,
        dice_loss,
    ],
)
def test_losses_ignore_what_is_unlabelled(loss, multi_label) -> None:  # type: ignore[no-untyped-def]
    truth = random_truth(multi_label)
    logits = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    changed = logits.clone()
    changed[:, :, 8:] += 5 * torch.randn(2, 3, 8, 16)
    torch.testing.assert_close(loss(changed, truth), loss(logits, truth))
    assert loss(logits, truth) > loss(sure_of(truth), truth)
    nothing = Truth(
        torch.full_like(truth.ids, UNLABELLED_MASK if multi_label else NO_CLASS), 3, multi_label
    )
    assert loss(logits, nothing).item() == 0


def test_lovasz_is_zero_when_right_one_when_wrong() -> None:
    truth = labels_of([0, 1], [1, NO_CLASS])
    right = sure_of(truth)
    assert lovasz_loss(right, truth).item() == pytest.approx(0, abs=1e-5)
    assert lovasz_loss(right.roll(1, 1), truth).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("multi_label", [False, True])
def test_lovasz_of_a_hard_guess_is_one_minus_iou(multi_label: bool) -> None:
    """For 0/1 probabilities the extension equals the Jaccard loss itself (Berman et al., eq. 8)."""
    ids = torch.tensor([[[0, 0, 0, 1, 1, 1]]])
    truth = Truth((1 << ids).int() if multi_label else ids, 2, multi_label)
    guess = torch.tensor([0, 0, 1, 1, 1, 0])
    logits = functional.one_hot(guess, 2).T[None, :, None].float() * 60 - 30
    # Both classes: 2 hits, union of 4.
    assert lovasz_loss(logits, truth).item() == pytest.approx(0.5, abs=1e-5)


def test_dice_of_a_hard_guess() -> None:
    truth = labels_of([0, 0, 0, 1, 1, 1])
    logits = (
        functional.one_hot(torch.tensor([0, 0, 1, 1, 1, 0]), 3).T[None, :, None].float() * 60 - 30
    )
    # Of each class 2 hits of 3 true and 3 guessed: 1 - 2 * 2 / (3 + 3).
    assert dice_loss(logits, truth).item() == pytest.approx(1 / 3, abs=1e-5)


def test_hard_pixels_are_the_worst_ones() -> None:
    truth = labels_of([0, 0, 0, 0])
    logits = torch.zeros(1, 3, 1, 4)
    logits[0, 0, 0] = torch.tensor([-2.0, 3.0, -1.0, 5.0])
    each = functional.cross_entropy(logits, truth.ids, reduction="none")[0, 0]
    expected = (each[0] + each[2]) / 2
    assert hard_pixel_loss(logits, truth, ONES, 0.5).item() == pytest.approx(expected.item())
    whole = cross_entropy(logits, truth, ONES)
    torch.testing.assert_close(hard_pixel_loss(logits, truth, ONES, 1.0), whole)


def test_hard_pixels_of_all_shares_equal_the_weighted_mean() -> None:
    truth, weights = random_truth(False), torch.tensor([0.5, 1.0, 3.0])
    logits = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(
        hard_pixel_loss(logits, truth, weights, 1.0), cross_entropy(logits, truth, weights)
    )


def test_binary_entropy_takes_each_mask_by_itself() -> None:
    truth = masks_of([0b011, 0b000, UNLABELLED_MASK])
    logits = torch.tensor([1.0, -2.0, 0.5]).view(1, 3, 1, 1).expand(1, 3, 1, 3)
    probability = torch.tensor([1.0, -2.0, 0.5]).sigmoid().tolist()
    first = (
        -(math.log(probability[0]) + math.log(probability[1]) + math.log(1 - probability[2])) / 3
    )
    second = -sum(math.log(1 - p) for p in probability) / 3
    assert cross_entropy(logits, truth, ONES).item() == pytest.approx(
        (first + second) / 2, rel=1e-5
    )
    heavy = cross_entropy(logits, truth, torch.tensor([4.0, 1.0, 1.0]))
    assert heavy.item() != pytest.approx((first + second) / 2, rel=1e-3)


def test_coarse_logits_meet_the_middle_of_their_cell() -> None:
    ids = torch.zeros(1, 16, 24, dtype=torch.int64)
    ids[0, 4::8, 4::8] = torch.tensor([[0, 1, 2], [2, 1, 0]])
    coarse = functional.one_hot(ids[:, 4::8, 4::8], 3).movedim(-1, 1).float() * 60
    assert coarse_cross_entropy(coarse, Truth(ids, 3, False), ONES).item() < 1e-5


def test_boundaries_lie_on_both_sides_and_never_beside_the_unlabelled() -> None:
    edges, known = boundaries(labels_of([0, 0, 0, 1, 1, 1, 1, NO_CLASS]))
    assert edges.int().tolist() == [[[0, 0, 1, 1, 0, 0, 0, 0]]]
    assert known.int().tolist() == [[[1, 1, 1, 1, 1, 1, 0, 0]]]


def test_boundary_loss_balances_and_rewards_the_truth() -> None:
    truth = labels_of(*[[0] * 8 + [1] * 8] * 16)
    edges = boundaries(truth)[0][:, None].float()
    assert boundary_loss(edges * 40 - 20, truth).item() == pytest.approx(0, abs=1e-4)
    # Saying "none" everywhere costs as much as saying "boundary" everywhere, though they are an eighth.
    none, everywhere = (
        boundary_loss(torch.full_like(edges, value), truth) for value in (-4.0, 4.0)
    )
    assert none.item() == pytest.approx(everywhere.item(), rel=1e-4)
    unknown = Truth(torch.full_like(truth.ids, NO_CLASS), 3, False)
    assert boundary_loss(edges, unknown).item() == 0


def moved_by(pixels: int, size: int = 16) -> Tensor:
    """Logits of two frames of random regions, the second one moved to the right."""
    generator = torch.Generator().manual_seed(2)
    before = torch.randn(1, 3, size, size, generator=generator) * 3
    return torch.stack([before, before.roll(pixels, -1)], 1)


def test_steadiness_is_free_along_the_motion() -> None:
    logits = moved_by(4)
    still = torch.tensor([[[[1.0, 0, 0], [0, 1, 0]]]])
    along = still.clone()
    along[..., 0, 2] = -4 * 2 / 16  # a pixel of the second frame was four columns to the left
    assert steadiness_loss(logits, along).item() == pytest.approx(0, abs=1e-6)
    assert steadiness_loss(logits, still).item() > 0.05
    assert steadiness_loss(logits, still * torch.nan).item() == 0


@pytest.mark.parametrize("multi_label", [False, True])
def test_flow_steadiness_is_free_along_the_flow_and_blind_where_it_is_unknown(
    multi_label: bool,
) -> None:
    logits = moved_by(4)
    still = torch.zeros(1, 1, 16, 16, 2)
    unseen = still.clone()
    unseen[..., 0] = -4 * 2 / 16
    unseen[..., :4, :] = torch.nan
    assert flow_steadiness_loss(logits, unseen, multi_label).item() == pytest.approx(0, abs=1e-6)
    assert flow_steadiness_loss(logits, still, multi_label).item() > 0.05
    assert flow_steadiness_loss(logits, still * torch.nan, multi_label).item() == 0
    logits.requires_grad_()
    flow_steadiness_loss(logits, unseen, multi_label).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def ramp(x: Tensor, y: Tensor) -> Tensor:
    """Logits of a probability that rises evenly, so that no interpolation is off."""
    return (0.5 + 0.25 * x + 0.15 * y).logit()


def middles(height: int, width: int) -> list[Tensor]:
    """x and y [height, width] of the middles of the cells of a grid, from -1 to 1."""
    y, x = ((2 * torch.arange(cells) + 1) / cells - 1 for cells in (height, width))
    return list(torch.meshgrid(x, y, indexing="xy"))


@pytest.mark.parametrize("size", [(16, 24), (15, 23)])
def test_steadiness_compares_the_same_places_under_a_zoom(size: tuple[int, int]) -> None:
    x, y = middles(*size)
    logits = torch.stack([ramp(x, y), ramp(0.8 * x, 0.8 * y)])[None, :, None]
    motion = torch.tensor([[[[0.8, 0, 0], [0, 0.8, 0]]]])
    assert steadiness_loss(logits, motion, multi_label=True).item() < 1e-10


def test_flow_steadiness_compares_the_same_places_under_a_zoom() -> None:
    """Logits of a quarter of the picture's size, as the flow has."""
    x, y = middles(16, 24)
    logits = torch.stack([ramp(x, y), ramp(0.8 * x, 0.8 * y)])[None, :, None]
    flow = -0.2 * torch.stack([x, y], -1)[None, None]
    assert flow_steadiness_loss(logits, flow, multi_label=True).item() < 1e-10


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_flow_steadiness_is_free_for_logits_of_any_size_that_move_with_it(stride: int) -> None:
    x, y = middles(64 // stride, 96 // stride)
    logits = torch.stack([ramp(x, y), ramp(x - 0.07, y)])[None, :, None]
    flow = torch.zeros(1, 1, 16, 24, 2)
    flow[..., 0] = -0.07
    flow[..., :2, :] = torch.nan  # came from outside
    assert flow_steadiness_loss(logits, flow, multi_label=True).item() < 1e-10
    assert flow_steadiness_loss(logits, flow * 0, multi_label=True).item() > 1e-4


def test_motion_is_judged_by_what_is_known_of_it() -> None:
    """Of two clips the first is a still under a zoom, the second has flow in half of its cells."""
    x, y = middles(4, 6)
    zoom, unknown = torch.tensor([[0.5, 0, 0], [0, 0.5, 0]]), torch.full((2, 3), torch.nan)
    motions = torch.stack([zoom, unknown])[:, None]
    flow = torch.full((2, 1, 16, 24, 2), torch.nan)
    flow[1, 0, :, 12:] = torch.tensor([-0.25, 0.125])
    right = torch.stack([-0.5 * torch.stack([x * 3, y * 2]), torch.zeros(2, 4, 6)])
    right[1, 0, :, 3:], right[1, 1, :, 3:] = -0.75, 0.25
    motion = torch.stack([torch.full_like(right, 7.0), right], 1)  # the first frame's is not judged
    size = (64, 96)
    assert motion_loss(motion, motions, flow, size).item() == pytest.approx(0, abs=1e-6)
    motion[1, 1, :, :, :3] = 5.0  # where nothing is known
    assert motion_loss(motion, motions, flow, size).item() == pytest.approx(0, abs=1e-6)
    assert motion_loss(motion + 0.25, motions, flow, size).item() == pytest.approx(0.5)
    assert motion_loss(motion[1:], motions[1:], None, size).item() == 0


def test_motion_is_in_whole_cells_where_the_last_ones_reach_beyond_the_picture() -> None:
    """A picture of 24x40 pixels has 1.5 cells by 2.5; all of it was 8 pixels further right, 4 further up."""
    shift = torch.tensor([[1, 0, 8 / 20], [0, 1, -4 / 12]]).expand(1, 1, 2, 3)
    motion = torch.tensor([0.5, -0.25]).view(1, 1, 2, 1, 1).expand(1, 2, 2, 2, 3)
    assert motion_loss(motion, shift, None, (24, 40)).item() == pytest.approx(0, abs=1e-6)
    flow = torch.tensor([8 / 20, -4 / 12]).expand(1, 1, 6, 10, 2)
    unknown = torch.full_like(shift, torch.nan)
    assert motion_loss(motion, unknown, flow, (24, 40)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("multi_label", [False, True])
def test_distillation_pulls_towards_the_teacher(multi_label: bool) -> None:
    teacher, student = torch.randn(2, 3, 8, 8), torch.zeros(2, 3, 4, 4, requires_grad=True)
    same = functional.interpolate(teacher, (4, 4), mode="bilinear", align_corners=False)
    assert distillation_loss(same, teacher, 2.0, multi_label).item() == pytest.approx(0, abs=1e-6)
    loss = distillation_loss(student, teacher, 2.0, multi_label)
    loss.backward()
    assert student.grad is not None
    closer = distillation_loss((student - student.grad).detach(), teacher, 2.0, multi_label)
    assert 0 < closer.item() < loss.item()


def test_distillation_by_hand() -> None:
    student, teacher = torch.tensor([0.0, 0.0]), torch.tensor([2.0 * math.log(3), 0.0])
    shaped = [logits.view(1, 2, 1, 1) for logits in (student, teacher)]
    # Softened by 2 the teacher says 3/4 and 1/4, the student 1/2 each.
    expected = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert distillation_loss(*shaped, 2.0, False).item() == pytest.approx(expected, rel=1e-5)


def test_the_objective_is_the_sum_of_what_was_chosen() -> None:
    labels = torch.randint(0, 3, (1, 2, 32, 32), dtype=torch.uint8)
    batch = Batch(
        torch.zeros(1, 2, 32, 32, 3, dtype=torch.uint8), labels, torch.full((1, 1, 2, 3), torch.nan),
        flow=torch.zeros(1, 1, 8, 8, 2),
    )  # fmt: skip
    logits, teacher = torch.randn(1, 2, 3, 16, 16), torch.randn(1, 2, 3, 32, 32)
    auxiliary = {
        "classes": torch.randn(1, 2, 3, 4, 4), "boundary": torch.randn(1, 2, 1, 16, 16),
        "motion": torch.randn(1, 2, 2, 2, 2),
    }  # fmt: skip
    names = ("cross_entropy", "hard_pixels", "lovasz", "dice", "auxiliary", "boundary", "steadiness",
             "flow_steadiness", "motion", "distillation")  # fmt: skip
    every = Losses(**dict.fromkeys(names, 2.0))
    terms = Objective(every, ONES, False).terms(logits, auxiliary, batch, teacher)
    assert set(terms) == set(names)
    assert total(terms).item() == pytest.approx(
        sum(term.item() for term in terms.values()), rel=1e-5
    )
    plain = Objective(Losses(auxiliary=0.0), ONES, False).terms(logits, auxiliary, batch, None)
    assert list(plain) == ["cross_entropy"]
    scaled = functional.interpolate(logits[0], (32, 32), mode="bilinear", align_corners=False)
    expected = functional.cross_entropy(scaled, labels[0].long())
    torch.testing.assert_close(total(plain), expected)
    torch.testing.assert_close(terms["cross_entropy"], 2 * expected)
