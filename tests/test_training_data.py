"""What a training reads, draws and changes."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional

from models.errors import DataError
from models.labels import NO_CLASS, UNLABELLED_MASK, clean_ids, masks_of
from models.motion import Motion
from models.step import NO_CLASS as PREDICTED_AS_NOTHING
from models.training.augment import (
    Burst,
    Look,
    Window,
    draw_windows,
    warp_ids,
    warp_picture,
)
from models.training.config import Augment, Phase, Sampling, Source
from models.training.data import Clip, class_counts, class_weights, read_source
from models.training.losses import flow_steadiness_loss, steadiness_loss
from models.training.sampling import Batch, ClipSampler, Needs, _to_and_fro, ahead
from models.training.weather import Glare, Rain, Weather
from tests.drives import phase, scene, write_pictures, write_rendered

STILL = {
    "flip": 0, "roll_degrees": 0, "moving": 0, "contrast": 0, "brightness": 0, "gamma": 0,
    "saturation": 0, "tint": 0, "noise": 0, "blur": 0, "occlusion": 0,
}  # fmt: skip


def sampler(
    pictures: list[Clip], rendered: list[Clip] | None = None, *, seed: int = 1,
    augment: dict[str, Any] | None = None, sampling: dict[str, Any] | None = None,
    needs: Needs | None = None, **changes: Any,
) -> ClipSampler:  # fmt: skip
    return ClipSampler(
        pictures, rendered or [], seed=[seed], phase=Phase(**phase(**changes)),
        augment=Augment(**(augment or {})), sampling=Sampling(**(sampling or {})), rare=[2],
        needs=needs or Needs(),
    )  # fmt: skip


def clip_of(frames: int) -> Clip:
    scenes = [scene(number) for number in range(frames)]
    rgb = np.stack([bgr[..., ::-1] for bgr, _ in scenes])
    labels = np.stack([np.where(labels == 3, NO_CLASS, labels) for _, labels in scenes])
    return Clip("street", rgb, labels.astype(np.uint8))


def read(folder: Path, classes: int, **options: Any) -> list[Clip]:
    return read_source(Source(folder=folder), classes, **options)


def same(one: Batch, other: Batch) -> bool:
    return all(
        left is right or torch.equal(left.nan_to_num(), right.nan_to_num())  # type: ignore[union-attr]
        for left, right in zip(one, other, strict=True)
    )


def test_the_batch_of_a_step_depends_on_seed_and_step_alone(tmp_path: Path) -> None:
    stills = read(write_pictures(tmp_path / "camvid"), 3)
    weather = {"rain": 0.5, "glare": 0.5, "jpeg": 0.5}
    one, other = sampler(stills, augment=weather), sampler(stills, augment=weather)
    one.batch(0, 3, 2)
    assert same(one.batch(7, 3, 2), other.batch(7, 3, 2))
    assert not same(one.batch(8, 3, 2), other.batch(7, 3, 2))
    assert not same(sampler(stills, seed=2, augment=weather).batch(7, 3, 2), other.batch(7, 3, 2))
    batch = one.batch(7, 3, 2)
    assert (batch.rgb.shape, batch.rgb.dtype) == ((3, 2, 64, 64, 3), torch.uint8)
    assert (batch.labels.shape, batch.labels.dtype) == ((3, 2, 64, 64), torch.uint8)
    assert batch.motions.shape == (3, 1, 2, 3)
    assert (batch.masks, batch.planes, batch.flow) == (None, None, None)


@pytest.mark.parametrize("workers", [0, 2])
def test_whoever_makes_batches_makes_the_same_in_order(workers: int) -> None:
    one = sampler([clip_of(1), clip_of(3)])
    with closing(
        ahead(lambda step: one.batch(step, 2, 2), range(5, 12), workers=workers)
    ) as batches:
        made = list(batches)
    assert len(made) == 7
    assert all(same(batch, one.batch(5 + at, 2, 2)) for at, batch in enumerate(made))


def test_making_ahead_stops_when_closed_and_tells_what_went_wrong() -> None:
    one = sampler([clip_of(1)])
    batches = ahead(lambda step: one.batch(step, 1, 1), range(1000))
    next(batches)
    assert any(thread.name == "batches" for thread in threading.enumerate())
    batches.close()
    assert not any(thread.name == "batches" for thread in threading.enumerate())

    def broken(step: int) -> Batch:
        raise DataError(f"no step {step}")

    with pytest.raises(DataError, match="no step 3"):
        next(ahead(broken, range(3, 5)))


def test_labels_move_with_the_picture() -> None:
    labels = np.zeros((60, 80), np.uint8)
    labels[20:30, 40:55] = 8
    rgb = np.repeat(labels[..., None] * 20, 3, 2)
    for window in (Window((40, 30), 1.0, 0.0, False), Window((45, 25), 1.7, 12.0, True)):
        picture = warp_picture(rgb, window, (60, 80))
        moved = warp_ids(labels, window, (60, 80), NO_CLASS)
        inside = moved != NO_CLASS
        agree = ((picture[..., 0] > 80) == (moved == 8))[inside].mean()
        assert agree > 0.98
        assert (moved == 8).any()
    outside = warp_ids(labels, Window((0, 0), 1.0, 0.0, False), (60, 80), NO_CLASS)
    assert (outside == NO_CLASS).mean() > 0.5


def test_masks_and_planes_move_with_the_labels() -> None:
    plain = clip_of(1)
    planes = np.stack([plain.labels * 50, plain.labels * 20], -1).astype(np.float32)
    planes[plain.labels == NO_CLASS] = 0
    clip = Clip("x", plain.rgb, plain.labels, masks_of(plain.labels), planes)
    batch = sampler([clip], needs=Needs(masks=True)).batch(3, 4, 2)
    assert batch.masks is not None
    assert batch.planes is not None
    assert batch.frames().shape == (4, 2, 5, 64, 64)
    expected = torch.where(
        batch.labels == NO_CLASS, UNLABELLED_MASK, 1 << batch.labels.int().clamp(max=15)
    )
    assert torch.equal(batch.masks, expected)
    certain = (batch.planes[..., 0] == 100) & (batch.labels != NO_CLASS)
    assert certain.any()
    assert (batch.labels[certain] == 2).float().mean() > 0.98
    torch.testing.assert_close(batch.planes[..., 1], batch.planes[..., 0] * 0.4, atol=0.1, rtol=0)


def test_switched_off_augmentation_leaves_the_crop_as_it_is() -> None:
    clip = clip_of(1)
    batch = sampler([clip], augment=STILL, scale_range=[1, 1], crop_hw=[64, 96]).batch(0, 1, 2)
    np.testing.assert_array_equal(batch.rgb[0, 0].numpy(), clip.rgb[0])
    np.testing.assert_array_equal(batch.rgb[0, 1].numpy(), clip.rgb[0])
    np.testing.assert_array_equal(batch.labels[0, 0].numpy(), clip.labels[0])


@pytest.mark.parametrize(
    "change",
    [
        {"flip": 1}, {"roll_degrees": 5}, {"contrast": 0.3}, {"brightness": 20}, {"gamma": 0.3},
        {"saturation": 0.5}, {"tint": 0.2}, {"noise": 1}, {"blur": 1}, {"rain": 1}, {"glare": 1},
        {"jpeg": 1}, {"occlusion": 1},
    ],
)  # fmt: skip
def test_each_augmentation_does_something_and_never_to_the_labels_alone(
    change: dict[str, float],
) -> None:
    size = {"scale_range": [1, 1], "crop_hw": [64, 96]}
    before = sampler([clip_of(1)], augment=STILL, **size).batch(0, 2, 3)
    after = sampler([clip_of(1)], augment=STILL | change, **size).batch(0, 2, 3)
    assert not torch.equal(before.rgb, after.rgb)
    moves = bool({"flip", "roll_degrees"} & change.keys())
    assert torch.equal(before.labels, after.labels) != moves


def test_all_frames_of_a_clip_are_changed_alike() -> None:
    alike = {"noise": 0, "moving": 0, "occlusion": 0, "jpeg": 1, "blur": 1, "strong": 1}
    batch = sampler([clip_of(1)], augment=alike).batch(5, 3, 4)
    for frame in range(1, 4):
        assert torch.equal(batch.rgb[:, frame], batch.rgb[:, 0])
        assert torch.equal(batch.labels[:, frame], batch.labels[:, 0])


def test_rain_falls_and_glare_blinds() -> None:
    rng = np.random.default_rng(0)
    grey = np.full((120, 160, 3), 90, np.uint8)
    rain, glare = Rain.draw(rng, (300, 300)), Glare((0.5, 0.3), 0.2, 0.8, (0.0, 0.0))
    first, second = rain.apply(grey, 0), rain.apply(grey, 1)
    assert (first != second).any()
    np.testing.assert_array_equal(first, rain.apply(grey, 0))
    assert first.max() > first.min()  # streaks, and not the veil alone
    lit = glare.apply(grey, 0)
    assert lit[36, 80].min() > 200
    assert lit[110, 5].max() < 130
    assert (grey == 90).all()


@pytest.mark.parametrize("slant", [-0.4, 0.4])
def test_rain_falls_everywhere_in_long_clips_too(slant: float) -> None:
    rain = Rain(density=400, length=0.05, slant=slant, strength=0.5, speed=0.5, seed=3)
    black = np.zeros((120, 160, 3), np.uint8)
    streaks = [rain.apply(black, frame)[..., 0] for frame in (0, 40, 400, 4000)]
    wet = np.array([[part.std() for part in np.split(one, 4, 1)] for one in streaks])
    np.testing.assert_allclose(wet, wet[0].mean(), rtol=0.25)  # in each quarter, always


def test_jpeg_keeps_colours_and_loses_detail() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    rgb[32:] = (200, 40, 90)
    out = Weather(None, None, 20).after_sensor(rgb)
    assert np.abs(out[48].astype(int) - (200, 40, 90)).max() < 12
    assert np.abs(out[:30].astype(int) - rgb[:30]).mean() > 10


def test_weather_that_is_off_draws_no_numbers() -> None:
    rng, untouched = np.random.default_rng(1), np.random.default_rng(1)
    assert Weather.draw(rng, Augment()) == Weather(None, None, None)
    assert rng.random() == untouched.random()


def test_bursts_hide_some_frames_and_leave_the_first_clear() -> None:
    rng = np.random.default_rng(3)
    rgb = np.full((60, 80, 3), 90, np.uint8)
    for _ in range(20):
        burst = Burst.draw(rng, 5)
        hidden = [bool((burst.apply(rgb, frame) != rgb).any()) for frame in range(5)]
        assert not hidden[0]
        assert [frame for frame in range(5) if hidden[frame]] == [
            f for f in burst.frames if hidden[f]
        ]
        assert len(burst.frames) >= 1
    assert (rgb == 90).all()


def test_bursts_reach_what_is_trained_on_or_end_just_before_it() -> None:
    rng = np.random.default_rng(3)
    bursts = [Burst.draw(rng, 34, 30).frames for _ in range(200)]
    assert {burst[-1] for burst in bursts} == set(range(28, 34))
    assert {len(burst) for burst in bursts} == set(range(1, 17))


def test_looks_differ_from_clip_to_clip() -> None:
    rng = np.random.default_rng(0)
    rgb = np.full((8, 8, 3), 120, np.uint8)
    means = [Look.draw(rng, Augment()).apply(rgb, rng).mean() for _ in range(40)]
    assert np.std(means) > 8


def test_the_motion_of_a_still_is_where_its_pixels_were() -> None:
    """A network that says what it sees is steady along the motion it is told."""
    clip = clip_of(1)
    batch = sampler([clip], augment=STILL | {"moving": 1, "drift": 3.0}, crop_hw=[64, 96]).batch(
        0, 4, 3
    )
    logits = (torch.nn.functional.one_hot(batch.labels.long().clamp(max=3), 4) * 20.0).movedim(
        -1, 2
    )
    along = steadiness_loss(logits, batch.motions)
    still = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).expand_as(batch.motions)
    assert along < 0.5 * steadiness_loss(logits, still)
    assert sampler([clip_of(4)]).batch(0, 1, 3).motions.isnan().all()


def test_flow_is_found_where_frames_really_move() -> None:
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.integers(0, 256, (96, 160, 3)).astype(np.uint8), (0, 0), 2)
    frames = np.stack([texture[:, 8 * at : 96 + 8 * at] for at in range(3)])
    labels = np.repeat(np.arange(96, dtype=np.uint8)[:, None] // 48, 96, 1)[None].repeat(3, 0)
    clip = Clip("pan", frames, labels)
    flow = sampler([clip], augment=STILL, needs=Needs(flow=True), scale_range=[1, 1],
                   crop_hw=[96, 96]).batch(0, 1, 3).flow  # fmt: skip
    assert flow is not None
    assert flow.shape == (1, 2, 24, 24, 2)
    moved = flow[..., 0] * 48
    known = ~moved.isnan()
    assert 0.6 < known.float().mean() < 1
    assert moved[known].median() == pytest.approx(8, abs=0.05)
    for stride in (1, 2, 4):  # of the logits
        field = torch.from_numpy(texture[..., 0]).float()[None, None] / 40
        seen = [functional.avg_pool2d(field[..., 8 * at : 96 + 8 * at], stride) for at in range(3)]
        logits = torch.stack([torch.cat([one, -one], 1) for one in seen], 1)
        still = flow_steadiness_loss(logits, torch.zeros_like(flow))
        assert flow_steadiness_loss(logits, flow) < 0.002 * still
    still = sampler([clip_of(1)], needs=Needs(flow=True)).batch(0, 1, 3).flow
    assert still is not None
    assert still.isnan().all()
    assert flow_steadiness_loss(torch.randn(1, 3, 2, 24, 24), still).item() == 0


def test_flow_is_that_of_the_middles_of_its_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a zoom each place has a flow of its own: in proportion to its distance from the centre."""
    y, x = (np.arange(64) + 0.5 - side / 2 for side in (64, 64))
    back = -0.125 * np.stack(np.meshgrid(x, y), -1).astype(np.float32)
    where = np.stack(np.mgrid[:64, :64])
    zoom = Motion(back, where, np.ones((64, 64), bool))
    monkeypatch.setattr(Motion, "between", lambda before, now: zoom)
    clip = clip_of(2)
    even = Clip("even", clip.rgb, np.ones_like(clip.labels))
    flow = sampler([even], needs=Needs(flow=True), augment=STILL).batch(0, 1, 2).flow
    assert flow is not None
    middles = (2 * torch.arange(16) + 1) / 16 - 1
    torch.testing.assert_close(flow[0, 0, 5, :, 0], -0.125 * middles)
    torch.testing.assert_close(flow[0, 0, :, 5, 1], -0.125 * middles)


def test_rare_classes_are_looked_for() -> None:
    clip = clip_of(1)
    bare = Clip("bare", clip.rgb, np.where(clip.labels == 2, 1, clip.labels))
    crop = {"crop_hw": [16, 16], "scale_range": [1, 1]}

    def share(**sampling: float) -> float:
        one = sampler([bare, bare, bare, clip], sampling=sampling, augment=STILL, **crop)
        return float((one.batch(0, 200, 1).labels == 2).flatten(1).any(1).float().mean())

    assert share(focus=0) < share(focus=1) < share(focus=1, rare_frames=0.9)
    assert share(focus=1, rare_frames=1) > 0.95


def test_rare_classes_are_found_in_masks_under_other_classes() -> None:
    """A car stands on the road: the lowest class that holds there is the road."""
    plain = clip_of(1)
    masks = np.where(plain.labels == 2, 0b110, masks_of(plain.labels)).astype(np.uint16)
    labels = np.where(plain.labels == 2, 1, plain.labels)
    bare = np.where(masks == 0b110, 0b010, masks).astype(np.uint16)
    clips = [Clip("bare", plain.rgb, labels, bare)] * 3 + [Clip("car", plain.rgb, labels, masks)]
    for sampling, least in (({"focus": 1, "rare_frames": 1}, 0.95), ({"focus": 0}, 0)):
        one = sampler(clips, sampling=sampling, augment=STILL, needs=Needs(masks=True),
                      crop_hw=[16, 16], scale_range=[1, 1])  # fmt: skip
        made = one.batch(0, 60, 1).masks
        assert made is not None
        share = ((made == 0b110).flatten(1).any(1)).float().mean()
        assert least <= share < (1.1 if least else 0.5)


@pytest.mark.parametrize("burn_in", [0, 1])
def test_rare_classes_are_looked_for_in_the_first_frame_that_is_trained_on(burn_in: int) -> None:
    """A car jumps from side to side: where it is in another frame says nothing."""
    clip = clip_of(4)
    labels = np.ones_like(clip.labels)
    for frame in range(4):
        labels[frame, 28:44, 70 * (frame % 2) : 70 * (frame % 2) + 16] = 2
    jumping = Clip("jumping", clip.rgb, labels)
    once = np.where(np.arange(4)[:, None, None] == 2, labels, 1)
    passing = Clip("passing", clip.rgb, once.astype(np.uint8))
    size = {"crop_hw": [16, 16], "scale_range": [1, 1]}
    for pictures, rendered, rare_frames in (
        ([jumping], [], 0),
        ([], [jumping], 0),
        ([passing], [], 1),
    ):
        sampling = {"focus": 1, "rare_frames": rare_frames}
        one = sampler(pictures, rendered, sampling=sampling, augment=STILL, **size)
        batch = one.batch(0, 40, 1, burn_in).after(burn_in)
        assert (batch.labels == 2).flatten(1).any(1).all()


def test_every_frame_of_pictures_is_as_likely() -> None:
    clips = [clip_of(1), clip_of(3)]
    one, rng = sampler(clips, sampling={"focus": 0}), np.random.default_rng(0)
    drawn = [one._pick(rng, 1, 0) for _ in range(800)]
    assert np.mean([clip is clips[0] for clip, _ in drawn]) == pytest.approx(0.25, abs=0.05)
    assert {start for clip, start in drawn if clip is clips[1]} == {0, 1, 2}
    assert {one._pick(rng, 2, 0)[1] for _ in range(100)} == {0, 1}


def test_windows_drift_only_when_asked() -> None:
    rng = np.random.default_rng(0)
    windows = draw_windows(rng, (64, 96), (32, 32), 4, (0.8, 1.2), Augment(), drift=0.0)
    assert len(set(windows)) == 1
    windows = draw_windows(rng, (64, 96), (32, 32), 4, (0.8, 1.2), Augment(), drift=1.0)
    assert len(set(windows)) == 4


def test_a_long_way_of_the_camera_over_a_still_turns_back() -> None:
    """Else the picture would be left behind; it holds what it was aimed at when training begins."""
    rng = np.random.default_rng(0)
    one = Augment(roll_degrees=0.0)
    for _ in range(20):
        windows = draw_windows(
            rng,
            (360, 480),
            (96, 96),
            60,
            (1, 1),
            one,
            drift=1.0,
            focus_yx=(180, 240),
            focus_step=50,
        )
        x = np.array([window.center_xy[0] for window in windows])
        pace = np.abs(np.diff(x)).mean()
        assert np.ptp(x) < pace * 16 + 4
        assert abs(x[50] - 240) < 48


def test_clips_shorter_than_a_burn_in_are_played_to_and_fro() -> None:
    assert [_to_and_fro(step, 4) for step in range(9)] == [0, 1, 2, 3, 2, 1, 0, 1, 2]
    assert {_to_and_fro(step, 1) for step in range(5)} == {0}
    clip = clip_of(3)
    batch = sampler([], [clip], augment=STILL, sampling={"focus": 0}).batch(0, 1, 2, 6)
    first, *rest = batch.rgb[0]
    assert len(rest) == 7
    assert (first == batch.rgb[0, 4]).all()
    assert not (first == batch.rgb[0, 1]).all()


def test_names_choose_what_is_read(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path, 5)

    def names(**filters: Any) -> list[str]:
        return [clip.name for clip in read_source(Source(folder=folder, **filters), 3)]

    assert names() == ["00", "01", "02", "03", "04"]
    assert names(exclude="^00") == ["01", "02", "03", "04"]
    assert names(include="[02]$", exclude="02") == ["00"]
    assert names(sequence_step=1) == ["00-04"]
    assert names(sequence_step=2) == ["00", "01", "02", "03", "04"]
    assert names(sequence_step=1, exclude="02") == ["00-01", "03-04"]
    with pytest.raises(DataError, match=r"no name in .* passes include 'Z', exclude None"):
        names(include="Z")
    with pytest.raises(DataError, match=r"neither images/.* nor NAME\.mp4"):
        read_source(Source(folder=tmp_path / "labels"), 3)


def test_sequences_keep_their_frames_in_order_and_end_where_the_size_changes(
    tmp_path: Path,
) -> None:
    folder = write_pictures(tmp_path, 4)
    for kind in ("images", "labels"):
        path = str(folder / kind / "03.png")
        cv2.imwrite(path, cv2.imread(path, cv2.IMREAD_UNCHANGED)[:48])
    joined, last = read_source(Source(folder=folder, sequence_step=1), 3)
    assert (joined.name, last.name) == ("00-02", "03")
    assert [path.name for path in joined.files] == ["00.png", "01.png", "02.png"]
    assert [path.name for path in last.files] == ["03.png"]
    for number in range(3):
        np.testing.assert_array_equal(joined.rgb[number], scene(number)[0][..., ::-1])
    assert last.labels.shape == (1, 48, 96)


def test_rendered_clips_are_read_exactly(tmp_path: Path) -> None:
    (clip,) = read(write_rendered(tmp_path / "rendered"), 3)
    assert clip.rgb.shape == (4, 64, 96, 3)
    for number in range(4):
        expected = scene(number)[1]
        np.testing.assert_array_equal(
            clip.labels[number], np.where(expected == 3, NO_CLASS, expected)
        )


def test_masks_are_read_and_give_labels_where_there_are_none(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path, 2)
    (folder / "masks").mkdir()
    masks = np.zeros((64, 96), np.uint16)
    masks[:10], masks[10:20], masks[20:30] = 0b001, 0b110, UNLABELLED_MASK
    for name in ("00", "01"):
        cv2.imwrite(str(folder / "masks" / f"{name}.png"), masks)
    (folder / "labels" / "01.png").unlink()
    both, alone = read(folder, 3, masks=True)
    np.testing.assert_array_equal(both.labels[0, 1:], np.minimum(scene(0)[1], 2)[1:])
    np.testing.assert_array_equal(alone.truth()[0], masks)
    assert alone.labels[0, ::10, 0].tolist() == [0, 1, NO_CLASS, *[NO_CLASS] * 4]
    assert class_counts([alone], 3).tolist() == [960, 960, 960]
    cv2.imwrite(str(folder / "masks" / "00.png"), masks | 0b1000)
    with pytest.raises(DataError, match=r"00\.png: bits must be 0-2, one a class, got \[3\]"):
        read(folder, 3, masks=True)
    cv2.imwrite(str(folder / "masks" / "00.png"), masks.astype(np.uint8))
    with pytest.raises(DataError, match="masks must be uint16"):
        read(folder, 3, masks=True)


def test_planes_are_read_on_the_scale_of_pixels(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path, 2)
    (folder / "planes").mkdir()
    thermal = np.full((64, 96), 65535, np.uint16)
    cv2.imwrite(str(folder / "planes" / "00.png"), thermal)
    np.save(folder / "planes" / "01.npy", np.full((64, 96, 1), 12.5))
    first, second = read(folder, 3, in_channels=4)
    assert first.planes is not None
    assert second.planes is not None
    assert (first.planes.shape, first.planes.max()) == ((1, 64, 96, 1), 255)
    assert (second.planes == 12.5).all()
    with pytest.raises(
        DataError, match=r"must be \[H, W, 2\] for in_channels 5, got \[64, 96, 1\]"
    ):
        read(folder, 3, in_channels=5)
    np.save(folder / "planes" / "01.npy", np.full((64, 96, 1), np.nan))
    with pytest.raises(DataError, match="values must be 0-255, got nan"):
        read(folder, 3, in_channels=4)
    np.save(folder / "planes" / "01.npy", np.zeros((32, 96, 1)))
    with pytest.raises(DataError, match=r"01: planes are \[32, 96\], the picture \[64, 96\]"):
        read(folder, 3, in_channels=4)


def test_what_has_no_class_is_one_number_in_truth_and_predictions() -> None:
    assert PREDICTED_AS_NOTHING == NO_CLASS


def test_wrong_data_is_named(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path)
    label = folder / "labels" / "01.png"
    good = label.read_bytes()
    cv2.imwrite(str(label), np.full((64, 96), 17, np.uint8))
    with pytest.raises(DataError, match=r"01\.png: class ids must be 0-2.*got \[17\]"):
        read(folder, 3)
    cv2.imwrite(str(label), np.zeros((32, 96), np.uint8))
    with pytest.raises(DataError, match=r"01: labels are .32, 96., the picture .64, 96."):
        read(folder, 3)
    cv2.imwrite(str(label), np.zeros((64, 96, 3), np.uint8))
    with pytest.raises(DataError, match=r"01\.png: labels must be grey.*got \[64, 96, 3\]"):
        read(folder, 3)
    label.unlink()
    with pytest.raises(DataError, match=r"01\.png is missing: a softmax head needs labels/"):
        read(folder, 3)
    label.write_bytes(good)
    assert len(read(folder, 3)) == 4
    with pytest.raises(DataError, match="holds neither images/"):
        read(tmp_path / "labels", 3)
    with pytest.raises(DataError, match=r"got \[12\]"):
        clean_ids(np.array([[12, 255, 11, 3]], np.uint8), 11, Path("x"))


def test_rare_classes_weigh_more() -> None:
    weights = class_weights(np.array([2475, 25]))
    assert weights[1] > weights[0]
    assert weights.mean() == pytest.approx(1)
