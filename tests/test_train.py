"""Training data, losses and the loop itself."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from models.augment import IGNORE, Window, occlude, warp
from models.data import Clip, ClipSampler, DataError, class_weights, clean_ids, read_stills
from models.losses import lovasz_softmax, segmentation_loss
from models.metrics import ConfusionMatrix
from models.registry import load
from models.train import Phase, TrainConfig, Trainer, learning_rate


def write_camvid(folder: Path, stills: int = 4) -> Path:
    """A tiny data set in CamVid's layout: sky above, road below, a car between."""
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / part / kind).mkdir(parents=True)
        for number in range(stills):
            labels = np.full((64, 96), 3, np.uint8)
            labels[:30], labels[28:44, 20 + number : 50] = 0, 8
            labels[0, 0] = 11
            picture = np.array([[200, 150, 120], [90, 90, 90], [30, 30, 200]], np.uint8)
            bgr = picture[np.select([labels == 0, labels == 8], [0, 2], 1)]
            bgr = np.clip(bgr + rng.normal(0, 8, bgr.shape), 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / part / "images" / f"{number:02d}.png"), bgr)
            cv2.imwrite(str(folder / part / "labels" / f"{number:02d}.png"), labels)
    return folder


def tiny_config(camvid: Path, steps: int = 6, **changes: object) -> TrainConfig:
    phase = {"batch": 2, "crop_hw": [64, 64], "scale_range": [0.8, 1.2], "peak_rate": 0.003,
             "final_rate": 0.0003, "warmup_steps": 2}  # fmt: skip
    raw = {
        "camvid": str(camvid), "options": {"width": 16, "memory": 16}, "threads": 1, "bf16": False,
        "checkpoint_every": 3, "validate_every": 100, "rare": ["car"],
        "phases": [{**phase, "steps": steps, "frames": 1},
                   {**phase, "steps": steps, "frames": 2, "lovasz_share": 0.5}],
        **changes,
    }  # fmt: skip
    return TrainConfig.model_validate(raw)


def test_training_learns_and_leaves_a_model_that_runs(tmp_path: Path) -> None:
    config = tiny_config(write_camvid(tmp_path / "camvid"), steps=25)
    trainer = Trainer(config, tmp_path / "out", say=lambda line: None)
    before = trainer.validate().mean_iou()
    folder = trainer.run()
    after = trainer.validate()
    assert after.mean_iou() > before + 0.2
    assert after.pixel_accuracy() > 0.7
    network, spec = load(str(folder))
    assert spec.training["steps"] == 50
    assert spec.training["config"]["phases"][1]["frames"] == 2
    assert sum(p.numel() for p in network.parameters()) > 0


def test_an_interrupted_training_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    camvid = write_camvid(tmp_path / "camvid")

    def quiet(line: str) -> None:
        pass

    whole = Trainer(tiny_config(camvid), tmp_path / "whole", quiet)
    whole.run()
    # Stopped in the second phase, two steps after the last checkpoint.
    config = tiny_config(camvid)
    first = Trainer(config, tmp_path / "parts", quiet)

    class Stop(Exception):
        pass

    update = first._update

    def stop_at_11(*arguments: object) -> float:
        if first.step == 11:
            raise Stop
        return update(*arguments)  # type: ignore[arg-type]

    first._update = stop_at_11  # type: ignore[method-assign]
    with pytest.raises(Stop):
        first.run()
    second = Trainer(config, tmp_path / "parts", quiet)
    second.resume()
    assert second.step == 9
    second.run()
    for name, tensor in whole.average.state_dict().items():
        torch.testing.assert_close(second.average.state_dict()[name], tensor, rtol=0, atol=0)


def test_a_loss_that_is_not_finite_stops_and_says_where(tmp_path: Path) -> None:
    trainer = Trainer(
        tiny_config(write_camvid(tmp_path / "camvid")), tmp_path / "out", lambda line: None
    )
    trainer.network.head.bias.data[:] = torch.nan
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 0.*last\.pt"):
        trainer.run()


def test_the_batch_of_a_step_depends_on_seed_and_step_alone(tmp_path: Path) -> None:
    stills = read_stills(write_camvid(tmp_path / "camvid") / "train", 11)

    def sampler(seed: int) -> ClipSampler:
        return ClipSampler(
            stills, [], seed=seed, crop_hw=(48, 64), scale_range=(0.7, 1.5), rendered_share=0.0,
            rare=[8],
        )  # fmt: skip

    one, other = sampler(1), sampler(1)
    one.batch(0, 3, 2)
    for left, right in zip(one.batch(7, 3, 2), other.batch(7, 3, 2), strict=True):
        np.testing.assert_array_equal(left, right)
    assert (sampler(2).batch(7, 3, 2)[0] != other.batch(7, 3, 2)[0]).any()
    rgb, labels = one.batch(7, 3, 2)
    assert (rgb.shape, rgb.dtype) == ((3, 2, 48, 64, 3), np.uint8)
    assert (labels.shape, labels.dtype) == ((3, 2, 48, 64), np.uint8)


def test_labels_move_with_the_picture() -> None:
    labels = np.zeros((60, 80), np.uint8)
    labels[20:30, 40:55] = 8
    rgb = np.repeat(labels[..., None] * 20, 3, 2)
    for window in (Window((40, 30), 1.0, 0.0, False), Window((45, 25), 1.7, 12.0, True)):
        picture, moved = warp(rgb, labels, window, (60, 80))
        inside = moved != IGNORE
        agree = ((picture[..., 0] > 80) == (moved == 8))[inside].mean()
        assert agree > 0.98
        assert (moved == 8).any()
    _, outside = warp(rgb, labels, Window((0, 0), 1.0, 0.0, False), (60, 80))
    assert (outside == IGNORE).mean() > 0.5


def test_occlusion_changes_the_picture_only_in_part() -> None:
    rng = np.random.default_rng(3)
    rgb = np.full((60, 80, 3), 90, np.uint8)
    shares = [(occlude(rgb, rng) != rgb).any(-1).mean() for _ in range(20)]
    assert min(shares) > 0
    assert np.mean(shares) < 0.9
    assert (rgb == 90).all()


def test_lovasz_is_zero_when_right_one_when_wrong() -> None:
    labels = torch.tensor([[[0, 1], [1, IGNORE]]])
    right = torch.full((1, 3, 2, 2), -30.0)
    right[0, 0, 0, 0] = right[0, 1, 0, 1] = right[0, 1, 1, 0] = 30.0
    wrong = right.roll(1, 1)
    assert lovasz_softmax(right, labels).item() == pytest.approx(0, abs=1e-5)
    assert lovasz_softmax(wrong, labels).item() == pytest.approx(1, abs=1e-5)
    nothing = torch.full_like(labels, IGNORE)
    assert lovasz_softmax(wrong, nothing).item() == 0


def test_lovasz_of_a_hard_guess_is_one_minus_iou() -> None:
    """For 0/1 probabilities the extension equals the Jaccard loss itself (Berman et al., eq. 8)."""
    truth = torch.tensor([[[0, 0, 0, 1, 1, 1]]])
    guess = torch.tensor([0, 0, 1, 1, 1, 0])
    logits = torch.nn.functional.one_hot(guess, 2).T[None, :, None].float() * 60 - 30
    # Both classes: 2 hits, union of 4.
    assert lovasz_softmax(logits, truth).item() == pytest.approx(0.5, abs=1e-5)


def test_loss_ignores_what_is_unlabelled() -> None:
    logits = torch.randn(2, 3, 8, 8)
    labels = torch.randint(0, 3, (2, 32, 32))
    weights = torch.ones(3)
    labels[:, 16:] = IGNORE
    changed = logits.clone()
    changed[:, :, 6:] += 5  # far enough below row 16 of 32 that interpolation doesn't reach it
    before = segmentation_loss(logits, labels, weights, 0.5)
    torch.testing.assert_close(segmentation_loss(changed, labels, weights, 0.5), before)


def test_learning_rate_warms_up_and_falls() -> None:
    phase = Phase(steps=100, batch=1, frames=1, crop_hw=(8, 8), scale_range=(1, 1), peak_rate=1.0,
                  final_rate=0.1, warmup_steps=10)  # fmt: skip
    rates = [learning_rate(phase, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_confusion_matrix_by_hand() -> None:
    score = ConfusionMatrix(3)
    score.add(np.array([0, 0, 1, 1, 255]), np.array([0, 1, 1, 1, 2]))
    np.testing.assert_allclose(score.class_iou(), [1 / 2, 2 / 3, np.nan])
    assert score.mean_iou() == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert score.pixel_accuracy() == pytest.approx(3 / 4)
    with pytest.raises(ValueError, match="must be 0-2, got 3"):
        score.add(np.array([0]), np.array([3]))
    with pytest.raises(ValueError, match="truth is"):
        score.add(np.zeros(2), np.zeros(3))


def test_rare_classes_weigh_more() -> None:
    labels = np.zeros((1, 50, 50), np.uint8)
    labels[0, :5, :5] = 1
    weights = class_weights([Clip("x", np.zeros((1, 50, 50, 3), np.uint8), labels)], 2)
    assert weights[1] > weights[0]
    assert weights.mean() == pytest.approx(1)


def test_wrong_data_is_named(tmp_path: Path) -> None:
    camvid = write_camvid(tmp_path / "camvid")
    label = camvid / "train" / "labels" / "01.png"
    good = label.read_bytes()
    cv2.imwrite(str(label), np.full((64, 96), 17, np.uint8))
    with pytest.raises(DataError, match=r"01\.png: class ids must be 0-10.*got \[17\]"):
        read_stills(camvid / "train", 11)
    cv2.imwrite(str(label), np.zeros((32, 96), np.uint8))
    with pytest.raises(DataError, match=r"01: labels are .1, 32, 96., pictures .1, 64, 96."):
        read_stills(camvid / "train", 11)
    label.unlink()
    with pytest.raises(DataError, match=r"01\.png is missing or cannot be read"):
        read_stills(camvid / "train", 11)
    label.write_bytes(good)
    assert len(read_stills(camvid / "train", 11)) == 4
    with pytest.raises(DataError, match="holds no images"):
        read_stills(tmp_path, 11)
    with pytest.raises(DataError, match=r"got \[12\]"):
        clean_ids(np.array([[12, 255, 11, 3]], np.uint8), 11, Path("x"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"phases": []}, "phases"),
        ({"ema": 1.5}, "ema: Input should be less than 1"),
        ({"camvid": None}, "camvid"),
    ],
)
def test_wrong_configuration_is_one_line(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    raw = json.loads(tiny_config(tmp_path).model_dump_json()) | change
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(DataError, match=message) as caught:
        TrainConfig.read(path)
    assert "\n" not in str(caught.value)
    assert "config.yaml" in str(caught.value)


def test_shipped_configuration_is_valid() -> None:
    config = TrainConfig.read(Path(__file__).parents[1] / "models" / "configs" / "roadnet.yaml")
    assert config.model == "roadnet"
