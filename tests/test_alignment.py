"""The memory that moves along with the picture, on motions that are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks.alignment import LARGEST, CarriedLogits, FrameMotion, moved
from models.registry import build
from tests.networks import SIZE, TINY, footage, made, spec_of

ONE = torch.ones(1, 3, 1, 1)
GRID = (48, 64)  # cells of 4 pixels


def texture(seed: int = 0) -> Tensor:
    """A normalised frame [1, 3, H, W] with detail everywhere."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 1, *GRID, generator=generator)
    whole = functional.interpolate(coarse, scale_factor=4.0, mode="bilinear")
    return whole.expand(1, 3, -1, -1)


def constant(x: float, y: float) -> Tensor:
    """The same motion everywhere, in cells of 16 pixels."""
    return torch.tensor([x, y]).view(1, 2, 1, 1).expand(1, 2, GRID[0] // 4, GRID[1] // 4)


@pytest.mark.parametrize("pixels_xy", [(0, 0), (8, 0), (-16, 8), (0, -24)])
def test_motion_is_found_before_anything_is_learnt(pixels_xy: tuple[int, int]) -> None:
    """A place was where the frame before, rolled by so much the other way, has it."""
    x, y = pixels_xy
    frame = texture()
    before = frame.roll((y, x), (2, 3))
    torch.manual_seed(0)
    network = FrameMotion()
    with torch.no_grad():
        motion = network(*(network.picture(each, ONE) for each in (frame, before)))
    inside = motion[0, :, 3:-3, 3:-3].flatten(1)
    # A soft maximum over all offsets falls short by what the wrong ones weigh.
    expected = 0.86 * torch.tensor([[x / 16], [y / 16]]).expand_as(inside)
    torch.testing.assert_close(inside, expected, atol=0.1, rtol=0)


@torch.no_grad()
def test_no_motion_is_found_in_what_has_no_contrast() -> None:
    network = FrameMotion()
    grey = network.picture(torch.full((1, 3, 192, 256), 0.7), ONE)
    assert network(grey, grey).abs().max() < 1e-3
    noise = 0.01 * texture()
    assert (
        network(network.picture(noise, ONE), network.picture(noise.roll(16, 3), ONE)).abs().max()
        < 0.1
    )


def test_the_picture_does_not_see_how_bright_it_is() -> None:
    frame = texture()
    mine, brighter = (FrameMotion.picture(each, ONE) for each in (frame, frame + 1.3))
    torch.testing.assert_close(brighter, mine, atol=1e-5, rtol=0)
    scaled = FrameMotion.picture(60 * frame, 60 * ONE)
    torch.testing.assert_close(scaled, mine, atol=1e-5, rtol=0)


def test_what_was_said_moves_by_cells_and_parts_of_cells() -> None:
    maps = torch.randn(1, 3, *GRID, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(moved(maps, constant(0, 0)), maps)
    right = moved(maps, constant(0.5, 0))  # it was two cells of 4 pixels further right
    torch.testing.assert_close(right[..., :-2], maps[..., 2:])
    assert not right[..., -2:].any()
    between = moved(maps, constant(0, -0.125))
    torch.testing.assert_close(between[..., 1:, :], (maps[..., 1:, :] + maps[..., :-1, :]) / 2)
    torch.testing.assert_close(between[..., 0, :], maps[..., 0, :] / 2)


def test_motion_has_a_gradient() -> None:
    motion = constant(0.2, 0.1).clone().requires_grad_()
    moved(texture()[:, :1, ::4, ::4], motion).square().sum().backward()
    assert motion.grad is not None
    assert motion.grad.abs().max() > 0


def carried(gate: float) -> CarriedLogits:
    """Whose gate is open by a sigmoid of `gate` everywhere."""
    carrier = CarriedLogits(2, 3)
    last = carrier.gate[-1]
    assert isinstance(last, nn.Conv2d)
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, gate)  # type: ignore[arg-type]
    return carrier


@torch.no_grad()
def test_an_open_gate_says_what_was_said_and_a_shut_one_what_is_seen() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(1, 2, 3, *GRID, generator=generator)
    looks = torch.randn(1, 2, 2, *GRID, generator=generator)
    nothing = torch.zeros(1, 4, *GRID)
    still = constant(0, 0)[:, None].expand(-1, 2, -1, -1, -1)
    change, said = carried(30.0)(looks, logits, nothing, still)
    assert not change[:, 0].any()  # nothing was said before
    torch.testing.assert_close(logits[:, 1] + change[:, 1], logits[:, 0])
    torch.testing.assert_close(said[:, :-1], logits[:, 0])
    assert (said[:, -1] == 1).all()
    change, said = carried(-30.0)(looks, logits, said, still)
    assert change.abs().max() < 1e-6
    torch.testing.assert_close(said[:, :-1], logits[:, 1])
    moving = constant(0.5, 0)[:, None].expand(-1, 2, -1, -1, -1)
    change, _ = carried(30.0)(looks, logits, said, moving)
    assert not change[:, 0, ..., -2:].any()  # it came into the picture only now
    _, said = carried(0.0)(looks, logits * 1000, said, still)
    assert said.abs().max() == LARGEST


def test_a_network_without_it_is_what_it_was_until_something_was_said() -> None:
    torch.manual_seed(1)
    without = build(spec_of("RoadNet", options={**TINY["RoadNet"], "motion": False})).eval()
    network = build(spec_of("RoadNet")).eval()
    network.load_state_dict(without.state_dict(), strict=False)
    torch.nn.init.zeros_(network.get_parameter("carried.gate.1.bias"))  # half open
    clip = footage(1, 3)
    with torch.no_grad():
        mine, others = network.clip(clip)[0], without.clip(clip)[0]
    torch.testing.assert_close(mine[:, 0], others[:, 0])
    assert (mine[:, 1:] - others[:, 1:]).abs().max() > 1e-3
    (channels, *cells), (fewer, *same) = network.state_shape(SIZE), without.state_shape(SIZE)
    assert (channels, cells) == (fewer + 16 * (11 + 1) + 16, same)


@torch.no_grad()
def test_each_part_of_the_state_is_heard() -> None:
    network = made("RoadNet")
    state = network.clip(footage(1, 3))[1]
    again = footage(1, 1)
    expected = network.clip(again, state)[0]
    for part in (slice(-16, None), slice(-16 * 13, -16)):  # the picture, what was said
        forgotten = state.clone()
        forgotten[:, part] = 0
        assert (network.clip(again, forgotten)[0] - expected).abs().max() > 1e-3
