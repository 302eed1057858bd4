"""Evaluation: metrics by hand, steadiness along known motion, damage, bursts, and `roadmask eval` itself."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from models.errors import DataError
from models.evaluation.consistency import Steadiness
from models.evaluation.eval_command import frame_progress
from models.evaluation.evaluate import EvalConfig, evaluate, walk
from models.evaluation.metrics import BoundaryF1, ConfusionMatrix, MaskCounts, ProbabilityError
from models.evaluation.plots import Series, line_chart, ticks
from models.evaluation.robustness import BURSTS, CORRUPTIONS, STRENGTHS, BurstPlan, corrupt, hide
from models.evaluation.scorers import Scorer, WorstFrame, WorstFrames
from models.evaluation.streams import open_data_set
from models.footage import LabelledFrame, NameFilter, cut_into_streams
from models.labels import pack_masks, unpack_masks
from models.motion import Motion
from models.predictor import Prediction, Predictor
from models.registry import build, load, save
from models.spec import Spec
from pipeline.cli import app
from pipeline.errors import ConfigError, OutputError
from tests.drives import TINY_ROADNET

NAN = float("nan")
TINY = Spec(
    name="tiny", classes=("sky", "road", "car", "ghost"), short_side=64,
    palette_rgb=((0, 0, 255), (90, 90, 90), (255, 0, 0), (0, 255, 0)),
    options=TINY_ROADNET,
)  # fmt: skip
SIZE_HW = (64, 96)


def scene(at: int) -> tuple[np.ndarray, np.ndarray]:
    """Picture and labels: sky over road, a car that drives on by two pixels a frame. No ghost ever."""
    labels = np.full(SIZE_HW, 1, np.uint8)
    labels[:30] = 0
    labels[28:44, 10 + 2 * at : 40 + 2 * at] = 2
    labels[:2, :2] = 255
    colors = np.array([[120, 150, 200], [90, 90, 90], [200, 30, 30]], np.uint8)
    texture = np.random.default_rng(0).normal(0, 25, (*SIZE_HW, 3))
    smooth = cv2.GaussianBlur(texture, (0, 0), 2) * 4
    rgb = colors[np.where(labels == 255, 0, labels)] + smooth
    return np.clip(rgb, 0, 255).astype(np.uint8), labels


def write_stills(folder: Path, numbers: range, prefix: str = "a_") -> Path:
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for at, number in enumerate(numbers):
        rgb, labels = scene(at)
        cv2.imwrite(str(folder / "images" / f"{prefix}{number:04d}.png"), rgb[..., ::-1])
        cv2.imwrite(str(folder / "labels" / f"{prefix}{number:04d}.png"), labels)
    return folder


def write_model(folder: Path, spec: Spec = TINY) -> str:
    torch.manual_seed(1)
    network = build(spec)
    with torch.no_grad():
        network.get_parameter("head.bias").zero_()  # else it alone may decide on every label
    save(folder, network, spec)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def stills(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stills(tmp_path_factory.mktemp("stills"), range(10, 58, 2))


# Metrics


def test_class_scores_by_hand() -> None:
    score = ConfusionMatrix(4)
    #                   a  a  a  a  b  b  -    (c never occurs but is predicted, d neither)
    truth = np.array([0, 0, 0, 0, 1, 1, 255])
    score.add(truth, np.array([0, 0, 1, 2, 1, 255, 0]))
    assert score.counts.tolist() == [[2, 1, 1, 0], [0, 1, 0, 0], [0] * 4, [0] * 4]
    assert score.unclaimed.tolist() == [0, 1, 0, 0]
    counts = score.masks()
    np.testing.assert_allclose(counts.class_iou(), [2 / 4, 1 / 3, NAN, NAN])
    np.testing.assert_allclose(counts.class_precision(), [2 / 2, 1 / 2, NAN, NAN])
    np.testing.assert_allclose(counts.class_recall(), [2 / 4, 1 / 2, NAN, NAN])
    np.testing.assert_allclose(counts.class_f1(), [4 / 6, 2 / 4, NAN, NAN])
    assert score.mean_iou() == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert counts.mean_accuracy() == pytest.approx(1 / 2)
    assert score.pixel_accuracy() == pytest.approx(3 / 6)
    with pytest.raises(ValueError, match="must be 0-3, got 7"):
        score.add(np.array([0]), np.array([7]))
    with pytest.raises(ValueError, match="truth is"):
        score.add(np.zeros(2), np.zeros(3))


def test_a_class_that_is_never_found_has_precision_nought() -> None:
    score = ConfusionMatrix(2)
    score.add(np.array([0, 1]), np.array([0, 0]))
    np.testing.assert_allclose(score.masks().class_precision(), [1 / 2, 0])
    np.testing.assert_allclose(score.masks().class_f1(), [2 / 3, 0])


def test_masks_of_which_several_hold() -> None:
    truth = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], bool)
    found = np.array([[1, 0, 1, 1], [1, 1, 0, 1]], bool)
    counts = MaskCounts(2)
    counts.add(truth, found, labelled=np.array([1, 1, 1, 0], bool))
    np.testing.assert_allclose(counts.class_iou(), [1 / 3, 1 / 2])
    assert counts.pixels == 3
    bits = pack_masks(truth)
    assert bits.tolist() == [3, 1, 0, 0]
    np.testing.assert_array_equal(unpack_masks(bits, 2), truth)
    with pytest.raises(ValueError, match="truth is"):
        counts.add(truth, found[:, :2])


def test_probability_error_by_hand() -> None:
    error = ProbabilityError(2)
    probabilities = np.array([[[0.75, 0.5, 0.9]], [[0.25, 0.5, 0.1]]], np.float32)
    error.add(np.array([[0, 1, 255]], np.uint8), probabilities)
    np.testing.assert_allclose(error.class_errors(), [(0.25 + 0.5) / 2, (0.25 + 0.5) / 2])
    masks = ProbabilityError(2)
    masks.add_masks(np.ones((2, 1, 3), bool), probabilities, np.array([[1, 1, 0]], bool))
    np.testing.assert_allclose(masks.class_errors(), [(0.25 + 0.5) / 2, (0.75 + 0.5) / 2])
    assert masks.mean() == pytest.approx(0.5)


def halves(boundary: int, shifted_rows: int = 0, by: int = 0) -> np.ndarray:
    """20 x 20, class 0 left of a column, class 1 right of it; the first rows' boundary shifted."""
    labels = np.ones((20, 20), np.uint8)
    labels[:, :boundary] = 0
    labels[:shifted_rows, : boundary + by] = 0
    return labels


@pytest.mark.parametrize(("tolerance_px", "expected"), [(0.5, 0.5), (1.0, 1.0)])
def test_boundary_f1_by_hand(tolerance_px: float, expected: float) -> None:
    score = BoundaryF1(3, tolerance_px / np.hypot(20, 20))
    # Half of the boundary is one pixel off: 10 of 20 pixels match exactly, in both directions.
    score.add(halves(10), halves(10, shifted_rows=10, by=1))
    np.testing.assert_allclose(score.class_scores(), [expected, expected, NAN], atol=1e-6)
    score.add(halves(10), np.zeros((20, 20), np.uint8))  # no boundary found at all
    np.testing.assert_allclose(score.class_scores(), [expected / 2, expected / 2, NAN], atol=1e-6)


def test_boundaries_are_not_judged_where_nothing_is_labelled() -> None:
    truth, found = halves(10), halves(10, shifted_rows=10, by=4)
    truth[:11] = 255
    score = BoundaryF1(2)
    score.add(truth, found)
    np.testing.assert_allclose(score.class_scores(), [1, 1])
    masks = BoundaryF1(2)
    masks.add_masks(
        np.stack([halves(10) == 0, halves(10) == 1]), np.stack([found == 0, found == 1]),
        truth != 255,
    )  # fmt: skip
    np.testing.assert_allclose(masks.class_scores(), [1, 1])


# Steadiness


def flows(height: int, width: int, by_x: float) -> Motion:
    """Everything moves to the right by `by_x` pixels."""
    back, forth = np.zeros((2, height, width, 2), np.float32)
    back[..., 0], forth[..., 0] = -by_x, by_x
    return Motion.from_flows(back, forth)


def stripes(at: int) -> np.ndarray:
    """[6, 12] labels that move to the right by two pixels a frame."""
    columns = (np.arange(12) - 2 * at) // 4 % 2
    return np.tile(columns.astype(np.uint8), (6, 1))


def test_what_moves_with_the_flow_is_steady() -> None:
    motion = flows(6, 12, 2)
    assert motion.seen.tolist() == [[False] * 2 + [True] * 10] * 6
    score = Steadiness(2)
    for at in range(4):
        score.add(stripes(at), stripes(at), motion if at else None)
    assert score.tc() == score.tc_of_truth() == 1
    assert score.flicker() == score.truth_change() == 0
    assert score.pairs == 3


def test_flicker_lowers_tc_by_what_it_changes() -> None:
    motion = flows(6, 12, 2)
    score = Steadiness(2)
    flickering = stripes(1)
    flickering[0] = 1 - flickering[0]
    score.add(stripes(0), stripes(0), None)
    score.add(stripes(1), flickering, motion)
    # Of the 60 pixels seen in both, the 10 of the first row changed.
    assert score.flicker() == pytest.approx(10 / 60)
    assert score.truth_change() == 0
    here, there = stripes(1)[1:, 2:] == 0, flickering[0, 2:] == 0
    zeros, wrong = np.count_nonzero(here), np.count_nonzero(there)
    ones = 50 - zeros
    iou = [zeros / (zeros + 10), ones / (ones + 10)]  # the changed row joins both unions whole
    np.testing.assert_allclose(score.class_tc(), iou)
    assert 0 < wrong < 10
    assert score.tc_of_truth() == 1


def test_truth_that_changes_is_no_flicker_and_nothing_spans_streams() -> None:
    score = Steadiness(3)
    still = flows(2, 4, 0)
    first, second = np.zeros((2, 4), np.uint8), np.zeros((2, 4), np.uint8)
    second[0] = 1
    unlabelled = second.copy()
    unlabelled[1, 3] = 255
    score.add(first, first, None)
    score.add(unlabelled, second, still)  # the prediction changes with the truth
    assert score.flicker() == 0
    assert score.truth_change() == pytest.approx(4 / 7)
    score.start()
    score.add(first, first, None)
    assert score.pairs == 1


def test_pixels_that_are_not_seen_in_both_frames_are_left_out() -> None:
    back, forth = np.zeros((2, 4, 8, 2), np.float32)
    back[:, :3, 0] = 4.0  # comes from a place whose own motion leads elsewhere
    motion = Motion.from_flows(back, forth)
    assert motion.seen.tolist() == [[False] * 3 + [True] * 5] * 4
    score = Steadiness(2)
    now = np.zeros((4, 8), np.uint8)
    now[:, :3] = 1
    score.add(np.zeros((4, 8), np.uint8), np.zeros((4, 8), np.uint8), None)
    score.add(now, now, motion)
    assert score.tc() == 1
    assert score.truth_change() == 0


def test_motion_is_found_on_pictures() -> None:
    texture = np.random.default_rng(0).uniform(0, 255, (80, 130, 3)).astype(np.float32)
    wide = cv2.GaussianBlur(texture, (0, 0), 2)
    wide = ((wide - wide.min()) / np.ptp(wide) * 255).astype(np.uint8)
    before, now = wide[:72, 8:120], wide[:72, 4:116]  # all moves four pixels to the right
    motion = Motion.between(before, now)
    rows, columns = np.mgrid[:72, :112]
    right = (motion.source_yx[0] == rows) & (motion.source_yx[1] == columns - 4)
    assert motion.seen[:, 8:].mean() > 0.95
    assert right[:, 8:][motion.seen[:, 8:]].mean() > 0.95


def test_video_consistency_by_hand() -> None:
    score = Steadiness(3)
    truth = np.zeros((1, 5), np.uint8)
    for at in range(10):
        true, found = truth.copy(), truth.copy()
        true[0, 4] = at >= 6  # changes within each window of 8: out of all of them
        found[0, 3] = 1  # steadily wrong
        found[0, 0] = at == 5  # flickers within each window
        found[0, 1] = at == 9  # and this one in the last of the three
        score.add(true, found, None)
    assert score.vc(8) == pytest.approx((3 / 4 + 3 / 4 + 2 / 4) / 3)
    assert score.vc_right(8) == pytest.approx((2 / 4 + 2 / 4 + 1 / 4) / 3)
    assert np.isnan(score.vc(16))


def test_windows_end_with_their_stream() -> None:
    score = Steadiness(2)
    labels = np.zeros((1, 2), np.uint8)
    for _ in range(2):
        score.start()
        for _ in range(7):
            score.add(labels, labels, None)
    assert np.isnan(score.vc(8))
    score.add(labels, labels, None)
    assert score.vc(8) == 1


def test_steadiness_of_masks() -> None:
    score = Steadiness(2, multi_label=True)
    both = np.full((1, 4), 3, np.uint16)
    one = both.copy()
    one[0, :2] = 1
    score.add(both, both, None)
    score.add(both, one, flows(1, 4, 0))
    np.testing.assert_allclose(score.class_tc(), [1, 2 / 4])
    assert score.flicker() == pytest.approx(2 / 4)
    assert score.truth_change() == 0


# Damage


def test_each_kind_of_damage_grows_with_its_strength_and_repeats() -> None:
    rgb, _ = scene(3)
    rgb = cv2.resize(rgb, (240, 160))
    for kind in CORRUPTIONS:
        damaged = [corrupt(rgb, kind, strength, 5, 2) for strength in STRENGTHS]
        off = [np.square(d.astype(float) - rgb).mean() for d in damaged]
        assert off[0] > 0, kind
        assert off == sorted(off), kind
        assert len(set(off)) == 5, kind
        assert all(d.dtype == np.uint8 and d.shape == rgb.shape for d in damaged)
        np.testing.assert_array_equal(damaged[2], corrupt(rgb, kind, 3, 5, 2))
    for kind in ("noise", "rain"):
        assert (corrupt(rgb, kind, 3, 5, 2) != corrupt(rgb, kind, 3, 5, 3)).any()
        assert (corrupt(rgb, kind, 3, 5, 2) != corrupt(rgb, kind, 3, 6, 2)).any()
    with pytest.raises(ValueError, match="known are darkness"):
        corrupt(rgb, "hail", 1, 0, 0)
    with pytest.raises(ValueError, match="1 to 5, got 6"):
        corrupt(rgb, "rain", 6, 0, 0)


def test_bursts_lie_where_there_is_room() -> None:
    assert BurstPlan.of(101).starts == (10, 40, 70)
    assert BurstPlan.of(30).starts == (10,)
    assert BurstPlan.of(22).starts == (10,)  # two clear frames after it
    assert BurstPlan.of(16).starts == (6,)
    assert BurstPlan.of(10).starts == ()
    plan = BurstPlan.of(101)
    assert [plan.burst(frame) for frame in (9, 10, 19, 20, 40, 79, 80)] == [
        None, 0, 0, None, 1, 2, None,
    ]  # fmt: skip
    assert [plan.offset(frame) for frame in (0, 10, 29, 30, 89, 90)] == [-10, 0, 19, -10, 19, None]


@pytest.mark.parametrize("kind", BURSTS)
def test_a_burst_hides_a_good_part_of_a_frame(kind: str) -> None:
    rgb, _ = scene(0)
    damaged, hidden = hide(rgb, kind, 0, 1, 4)
    assert 0.2 < hidden.mean() < 0.5
    off = np.abs(damaged.astype(int) - rgb).mean(2)
    assert off[hidden].mean() > 3 * off[~hidden].mean()
    np.testing.assert_array_equal(damaged, hide(rgb, kind, 0, 1, 4)[0])
    assert (damaged != hide(rgb, kind, 0, 2, 4)[0]).any()
    with pytest.raises(ValueError, match="known are occlusion, glare"):
        hide(rgb, "fog", 0, 0, 0)


# Streams


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6)]),
        (1, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6)]),
        (2, [(0, 3), (3, 4), (4, 5), (5, 6)]),
        (30, [(0, 1), (1, 2), (2, 4), (4, 5), (5, 6)]),
    ],
)
def test_a_step_says_which_names_follow_each_other(
    step: int, expected: list[tuple[int, int]]
) -> None:
    names = ["a1", "a3", "a5", "a35", "b37", "c"]
    parts = cut_into_streams(names, step)
    assert [(part.start, part.stop) for part in parts] == expected
    assert cut_into_streams([], step) == []


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a1", "a3", "a5"], [(0, 3)]),
        (["a1", "a2", "a3", "a9", "a10"], [(0, 3), (3, 5)]),
        (["a1", "a31", "a32", "a33"], [(0, 1), (1, 4)]),
        (["a1", "a2", "b3", "b4", "b6"], [(0, 2), (2, 4), (4, 5)]),
        (["left", "right"], [(0, 1), (1, 2)]),
        (["a7"], [(0, 1)]),
        ([], []),
    ],
)
def test_names_that_count_up_evenly_are_a_stream(
    names: list[str], expected: list[tuple[int, int]]
) -> None:
    assert [(part.start, part.stop) for part in cut_into_streams(names)] == expected


def test_numbers_without_leading_zeros_are_in_order(tmp_path: Path) -> None:
    folder = write_stills(tmp_path, range(8, 12))
    for path in sorted(folder.glob("*/*.png")):
        path.rename(path.with_name(f"f{int(path.stem[2:])}.png"))
    (stream,) = open_data_set(folder, TINY).streams
    assert [frame.name for frame in stream.frames()] == ["f8", "f9", "f10", "f11"]
    assert stream.step == 1


def write_video(path: Path, frames: list[np.ndarray], codec: str, pixel_format: str) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=15)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixel_format
        for array in frames:
            kind = "rgb24" if array.ndim == 3 else "gray"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format=kind)))
        container.mux(stream.encode(None))


def write_clip(folder: Path, name: str, frames: int, labelled: int | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    scenes = [scene(at) for at in range(frames)]
    write_video(folder / f"{name}.mp4", [rgb for rgb, _ in scenes], "mpeg4", "yuv420p")
    labels = [labels for _, labels in scenes[:labelled]]
    write_video(folder / f"{name}_labels.mkv", labels, "ffv1", "gray")
    return folder


def test_rendered_clips_are_streams(tmp_path: Path) -> None:
    write_clip(tmp_path, "one", 5)
    data = open_data_set(write_clip(tmp_path, "two", 3), TINY)
    steps = list(walk(data.streams))
    assert [(step.stream.name, step.number, step.first) for step in steps] == [
        ("one", 0, True), ("one", 1, False), ("one", 2, False), ("one", 3, False),
        ("one", 4, False), ("two", 0, True), ("two", 1, False), ("two", 2, False),
    ]  # fmt: skip
    np.testing.assert_array_equal(steps[3].frame.labels, scene(3)[1])
    assert np.abs(steps[3].frame.rgb.astype(int) - scene(3)[0]).mean() < 12  # lossy
    write_clip(tmp_path, "three", 4, labelled=3)
    with pytest.raises(DataError, match=r"three\.mp4 has 4 frames, three_labels\.mkv 3"):
        open_data_set(tmp_path, TINY)


def test_a_stream_begins_anew_where_the_size_changes(tmp_path: Path) -> None:
    folder = write_stills(tmp_path, range(4))
    for kind in ("images", "labels"):
        path = str(folder / kind / "a_0002.png")
        cv2.imwrite(path, cv2.imread(path, cv2.IMREAD_UNCHANGED)[:48])
    steps = walk(open_data_set(folder, TINY).streams)
    assert [step.first for step in steps] == [True, False, True, True]


# Predictions


def test_lanes_run_as_the_network_would_alone(model: str) -> None:
    network, spec = load(model)
    frames = [scene(at)[0] for at in range(3)]
    predictor = Predictor(network, spec, [True, False])
    state = fresh = torch.zeros(1, *network.state_shape(SIZE_HW))
    differs = False
    for rgb in frames:
        carried, reset = predictor.predict([rgb, rgb])
        batch = torch.from_numpy(rgb).movedim(-1, 0)[None].float()
        with torch.inference_mode():
            logits, state = network(batch, state)
            alone, _ = network(batch, fresh)
        for found, expected in ((carried, logits), (reset, alone)):
            full = torch.nn.functional.interpolate(expected, SIZE_HW, mode="bilinear")
            np.testing.assert_allclose(found.probabilities, full.softmax(1)[0].numpy(), atol=1e-4)
            assert found.labels.dtype == np.uint8
            assert found.labels.shape == SIZE_HW
        differs |= bool(np.abs(carried.probabilities - reset.probabilities).max() > 1e-4)
    assert differs  # else the test could not tell the modes apart
    predictor.start()
    again = next(predictor.predict([frames[0], frames[0]]))
    first = next(Predictor(network, spec, [True, False]).predict([frames[0], frames[0]]))
    np.testing.assert_array_equal(again.probabilities, first.probabilities)


def test_views_are_averaged_and_keep_a_state_each(model: str) -> None:
    network, spec = load(model)
    frames = [scene(at)[0] for at in range(2)]
    both = Predictor(network, spec, [True], flip=True)
    straight, mirrored = Predictor(network, spec, [True]), Predictor(network, spec, [True])
    for rgb in frames:
        (found,) = both.predict([rgb])
        (one,) = straight.predict([rgb])
        (other,) = mirrored.predict([np.ascontiguousarray(rgb[:, ::-1])])
        mean = (one.probabilities + other.probabilities[..., ::-1]) / 2
        np.testing.assert_allclose(found.probabilities, mean, atol=1e-5)
    scaled = Predictor(network, spec, [True], scales=(0.5, 1.0), flip=True)
    (found,) = scaled.predict([frames[0]])
    assert found.probabilities.shape == (4, *SIZE_HW)
    assert len(scaled.states) == 4
    assert len({state.shape for state in scaled.states.values()}) == 2


def test_frames_are_scaled_to_the_network_and_labels_back(model: str) -> None:
    network, spec = load(model)
    rgb = cv2.resize(scene(0)[0], (200, 133))
    (found,) = Predictor(network, spec, [True]).predict([rgb])
    assert found.labels.shape == (133, 200)
    np.testing.assert_allclose(found.probabilities.sum(0), 1, atol=1e-5)


# The whole


def test_an_evaluation_of_both_modes(model: str, stills: Path) -> None:
    config = EvalConfig(
        model, stills, modes=("carried", "reset"), corruptions=("jpeg",), bursts=True
    )
    seen: list[tuple[str, int, int]] = []
    evaluation, worst = evaluate(config, lambda *at: seen.append(at))
    assert seen[0] == ("clear", 1, 72)
    assert seen[-1] == ("bursts", 72, 72)
    assert evaluation.frames == 24
    assert evaluation.streams == 1
    carried, reset = (evaluation.modes[mode] for mode in ("carried", "reset"))
    assert carried.quality.confusion != reset.quality.confusion
    assert carried.steadiness is not None
    assert carried.steadiness.pairs == 23
    assert carried.steadiness.tc != reset.steadiness.tc  # type: ignore[union-attr]
    assert carried.steadiness.tc_of_truth == reset.steadiness.tc_of_truth  # type: ignore[union-attr]
    assert carried.steadiness.tc_of_truth > 0.9
    assert carried.steadiness.vc16 is not None
    assert carried.quality.classes[3].iou is None  # no ghost in the truth
    assert [len(curve.miou) for curve in evaluation.robustness] == [5, 5]
    assert {(score.kind, score.mode) for score in evaluation.bursts} == {
        (kind, mode) for kind in BURSTS for mode in ("carried", "reset")
    }
    score = evaluation.bursts[0]
    assert score.bursts == 1
    assert [offset for offset, _ in score.over_time] == list(range(-10, 14))
    assert all(worst[0].miou <= frame.miou for frame in worst)
    assert abs(worst[0].number - worst[1].number) >= 8
    only = EvalConfig(model, stills, modes=("reset",), steadiness=False)
    alone, _ = evaluate(only)
    assert alone.modes["reset"].quality == reset.quality
    assert alone.modes["reset"].steadiness is None


def test_a_perfect_prediction_scores_perfectly() -> None:
    scorer = Scorer(TINY, multi_label=False, worst=2)
    motion = None
    frames = []
    for at in range(9):
        rgb, truth = scene(at)
        found = np.where(truth == 255, 0, truth)
        probabilities = (found == np.arange(4)[:, None, None]).astype(np.float32)
        frames.append(rgb)
        motion = Motion.between(frames[-2], rgb) if at else None
        frame = LabelledFrame("x", rgb, None, truth)
        scorer.add("s", at, frame, Prediction(probabilities, found.astype(np.uint8)), motion)
    result = scorer.result(steadiness=True)
    quality, steady = result.quality, result.steadiness
    assert quality.miou == quality.pixel_accuracy == quality.boundary_f1 == quality.mean_f1 == 1
    assert quality.probability_error == 0
    assert steady is not None
    assert steady.vc8 == steady.vc8_right == 1
    assert steady.flicker == 0  # it changes where the truth does alone
    assert steady.tc == pytest.approx(steady.tc_of_truth, abs=0.002)  # the corner is unlabelled


def test_worst_frames_are_few_and_apart() -> None:
    kept = WorstFrames(most=3, apart=4)
    empty = np.zeros((1, 1), np.uint8)
    mious = [0.9, 0.5, 0.4, 0.45, 0.42, 0.8, 0.7, 0.7, 0.3, NAN, 0.6, 0.7, 0.9, 0.9, 0.8, 0.9]
    for number, miou in enumerate(mious):
        kept.offer(WorstFrame("s", number, "x", miou, empty, empty, empty))
    # 4 is the worst of its stretch, but a neighbour of 2.
    assert [(frame.number, frame.miou) for frame in kept.frames] == [(8, 0.3), (2, 0.4), (14, 0.8)]
    for number in range(100):  # a stream that gets ever worse
        kept.offer(WorstFrame("t", number, "x", 0.2 - number / 1000, empty, empty, empty))
    assert [frame.number for frame in kept.frames] == [99, 95, 91]


def test_masks_of_a_sigmoid_network(tmp_path: Path) -> None:
    model = write_model(tmp_path / "masks", replace(TINY, head="sigmoid"))
    folder = write_stills(tmp_path / "data", range(12))
    on_labels, _ = evaluate(EvalConfig(model, folder))
    quality = on_labels.modes["carried"].quality
    assert quality.mask_miou is not None
    assert quality.confusion is not None
    assert sum(map(sum, quality.confusion)) == 12 * (64 * 96 - 4)
    (folder / "masks").mkdir()
    for path in (folder / "labels").glob("*.png"):
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        bits = (1 << np.minimum(labels, 3)).astype(np.uint16)
        bits[labels == 2] |= 2  # the road goes on under the car
        bits[labels == 255] = 65535
        cv2.imwrite(str(folder / "masks" / path.name), bits)
    on_masks, worst = evaluate(EvalConfig(model, folder, bursts=True))
    quality = on_masks.modes["carried"].quality
    assert quality.confusion is None
    assert quality.mask_miou == quality.miou
    assert on_masks.modes["carried"].steadiness is not None
    assert worst[0].truth.dtype == np.uint16
    road = quality.classes[1].share
    assert road > on_labels.modes["carried"].quality.classes[1].share
    (tmp_path / "softmax").mkdir()
    for path in (folder / "labels").glob("*.png"):
        path.unlink()
    (folder / "labels").rmdir()
    with pytest.raises(DataError, match="needs labels/, one class a pixel"):
        evaluate(EvalConfig(write_model(tmp_path / "softmax"), folder))


def test_further_channels_come_from_planes(tmp_path: Path) -> None:
    model = write_model(tmp_path / "depth", replace(TINY, in_channels=4))
    folder = write_stills(tmp_path / "data", range(2))
    with pytest.raises(DataError, match="planes"):
        evaluate(EvalConfig(model, folder))
    (folder / "planes").mkdir()
    scores = []
    for depth in (10, 250):
        for path in (folder / "images").glob("*.png"):
            cv2.imwrite(str(folder / "planes" / path.name), np.full(SIZE_HW, depth, np.uint8))
        scores.append(evaluate(EvalConfig(model, folder))[0].modes["carried"].quality)
    assert scores[0] != scores[1]
    with pytest.raises(DataError, match="the network wants 4"):
        evaluate(EvalConfig(model, write_clip(tmp_path / "clips", "one", 2)))


# The command


class Page(HTMLParser):
    """Every tag opened is closed, and nothing is fetched."""

    VOID = frozenset({"meta", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href"):
                assert value is not None
                assert value.startswith("data:image/")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass  # closes itself: lines and dots of a chart

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def no_constants(name: str) -> float:
    raise AssertionError(f"{name} is no JSON")


def test_the_command_writes_tables_json_and_report(
    model: str, stills: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report"
    result = CliRunner().invoke(
        app,
        ["eval", model, str(stills), "--compare-reset", "--robustness", "darkness,noise",
         "--bursts", "--json", str(tmp_path / "figures.json"), "--report", str(report)],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for wanted in ("mIoU", "VC16", "flicker", "difference", "darkness, reset", "glare, carried",
                   "never in the data, so n/a and left out of all means: ghost"):  # fmt: skip
        assert wanted in result.output
    assert re.search(r"ghost *│ *0\.00 │ *n/a", result.output)
    text = (tmp_path / "figures.json").read_text()
    figures = json.loads(text, parse_constant=no_constants)
    assert figures["modes"]["carried"]["quality"]["classes"][3]["iou"] is None
    assert len(figures["modes"]["reset"]["over_time"]) == 24
    assert [curve["kind"] for curve in figures["robustness"]] == ["darkness"] * 2 + ["noise"] * 2
    assert set(figures["definitions"]) >= {"tc", "vc", "flicker", "boundary_f1"}
    assert json.loads((report / "evaluation.json").read_text()) == figures
    page = Page()
    page.feed((report / "index.html").read_text())
    assert not page.open
    assert page.counts["svg"] == 4  # over time, robustness, two kinds of burst
    worst = page.counts["figure"] // 4
    assert 1 <= worst <= 6
    assert page.counts["img"] == 4 * worst


def test_json_on_standard_output_stands_alone(model: str, stills: Path) -> None:
    result = CliRunner().invoke(app, ["eval", model, str(stills), "--json", "-", "--no-steadiness",
                                      "--reset-every-frame", "--precision", "bf16"])  # fmt: skip
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert list(figures["modes"]) == ["reset"]
    assert figures["modes"]["reset"]["steadiness"] is None
    assert figures["settings"]["precision"] == "bf16"
    assert "mIoU" in result.stderr


def test_single_stills_are_measured_but_not_for_steadiness(model: str, tmp_path: Path) -> None:
    folder = str(write_stills(tmp_path, range(1), "a") and write_stills(tmp_path, range(1), "b"))
    result = CliRunner().invoke(app, ["eval", model, folder])
    assert result.exit_code == 0, result.output
    assert "steadiness is not measured: no frames are consecutive" in result.output
    assert "2 of 2 streams are single frames" in result.output
    assert "TC" not in result.output


def test_what_was_taken_for_a_stream_is_said_and_can_be_chosen(model: str, tmp_path: Path) -> None:
    """A drive's pictures a second apart, and a stretch of it at 15 frames a second."""
    folder = write_stills(tmp_path, range(0, 90, 30), "drive_")
    write_stills(tmp_path, range(100, 108, 2), "other_")

    def figures(*options: str) -> dict[str, Any]:
        result = CliRunner().invoke(app, ["eval", model, str(folder), "--json", "-", *options])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    guessed = figures()
    assert guessed["streams"] == 2
    assert guessed["modes"]["carried"]["steadiness"]["pairs"] == 5
    taken = "4 pictures numbered 2 apart (1 stream), 3 pictures numbered 30 apart (1 stream)"
    assert sum(taken in note for note in guessed["notes"]) == 1
    told = figures("--sequence-step", "2")
    assert (told["streams"], told["settings"]["sequence_step"]) == (4, 2)
    assert told["modes"]["carried"]["steadiness"]["pairs"] == 3
    assert not any("numbered" in note for note in told["notes"])
    single = figures("--sequence-step", "0")
    assert (single["streams"], single["modes"]["carried"]["steadiness"]) == (7, None)
    # Without memory from frame to frame it is another network.
    assert single["modes"]["carried"]["quality"] != guessed["modes"]["carried"]["quality"]
    some = figures("--include", "^other", "--exclude", "4$", "--sequence-step", "2")
    points = some["modes"]["carried"]["over_time"]
    assert [point["frame"] for point in points] == ["other_0100", "other_0102", "other_0106"]
    assert some["streams"] == 2
    assert (some["settings"]["include"], some["settings"]["exclude"]) == ("^other", "4$")
    assert "numbers that rise by 7" in complaint(
        model, str(folder), "--steadiness", "--sequence-step", "7"
    )
    assert "sequence_step 0 makes each picture a stream" in complaint(
        model, str(folder), "--compare-reset", "--sequence-step", "0"
    )


def test_names_choose_clips_too(tmp_path: Path) -> None:
    write_clip(tmp_path, "one", 2)
    data = open_data_set(write_clip(tmp_path, "two", 2), TINY, NameFilter(exclude="w"))
    assert [stream.name for stream in data.streams] == ["one"]


def test_a_bar_on_a_terminal_lines_elsewhere_and_silence_on_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("models.evaluation.eval_command.LINE_EVERY_SECONDS", 0.0)
    for stream, quiet, expected in (
        (Screen(), False, r"bursts .*7/9 frames"), (Screen(), True, r"^$"),
        (io.StringIO(), False, r"^bursts: 7/9 frames\n$"), (io.StringIO(), True, r"^$"),
    ):  # fmt: skip
        with frame_progress(stream, quiet) as progress:
            progress("bursts", 7, 9)
        assert re.search(expected, stream.getvalue())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--include", "("], r"'\(' is no regular expression"),
        (["--exclude", "a"], r"no name in .* passes include None, exclude 'a'"),
        (["--steadiness"], "steadiness needs consecutive frames"),
        (["--compare-reset"], "comparing carried with reset state needs consecutive frames"),
        (["--bursts"], "bursts need a stream of over 10 frames, the longest in .* has 1"),
        (["--compare-reset", "--reset-every-frame"], "exclude each other"),
        (["--robustness", "hail"], "unknown damage 'hail': known are darkness, noise"),
        (["--scales", "1,big"], "scales must be numbers such as .*, got '1,big'"),
        (["--scales", "1,9"], "scales must be 0.25 to 4"),
        (["--scales", "1,1"], "scales must differ"),
        (["--precision", "f8"], "precision must be one of f32, bf16, got 'f8'"),
    ],
)
def test_options_that_do_not_fit_are_one_line(
    model: str, tmp_path: Path, options: list[str], message: str
) -> None:
    folder = write_stills(tmp_path, range(1))
    result = CliRunner().invoke(app, ["eval", model, str(folder), *options])
    assert isinstance(result.exception, ConfigError), result.output
    assert re.search(message, str(result.exception))
    assert "\n" not in str(result.exception)


def complaint(*arguments: str) -> str:
    """The error of a command that must fail with wrong use."""
    result = CliRunner().invoke(app, ["eval", *arguments])
    assert isinstance(result.exception, (ConfigError, OutputError)), result.output
    return str(result.exception)


def test_wrong_data_is_named(model: str, tmp_path: Path) -> None:
    folder = write_stills(tmp_path / "data" / "val", range(3))
    assert "unknown model 'nothing'" in complaint("nothing", str(folder))
    assert "there is no data set folder" in complaint(model, str(tmp_path / "none"))
    assert "give one of its parts: val" in complaint(model, str(folder.parent))
    assert "is no data set" in complaint(model, str(folder / "images"))
    labels = folder / "labels" / "a_0001.png"
    good = cv2.imread(str(labels), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(labels), good[:, :90])
    said = complaint(model, str(folder))
    assert "a_0001: labels are [64, 90], the picture [64, 96]" in said
    cv2.imwrite(str(labels), np.full_like(good, 9))
    assert "class ids must be 0-3, or 4 or 255 for unlabelled, got [9]" in complaint(
        model, str(folder)
    )
    labels.unlink()
    assert re.search(r"a_0001\.png is missing", complaint(model, str(folder)))
    assert "there is no folder" in complaint(
        model, str(folder), "--json", str(tmp_path / "x" / "y")
    )
    assert "it is a folder" in complaint(model, str(folder), "--json", str(tmp_path))
    place = tmp_path / "file"
    place.touch()
    assert "it is a file" in complaint(model, str(folder), "--report", str(place))


def test_help_needs_nothing_heavy() -> None:
    code = "import sys, pipeline.cli; print({'torch', 'cv2', 'av', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    helped = CliRunner().invoke(app, ["eval", "--help"])
    assert helped.exit_code == 0
    assert "--compare-reset" in helped.output


def test_charts_keep_to_their_data() -> None:
    assert ticks(0.2, 0.9) == (0.2, 0.4, 0.6, 0.8, 1.0)
    assert ticks(48, 62)[0] <= 48
    assert ticks(48, 62)[-1] >= 62
    assert ticks(5, 5)[0] < ticks(5, 5)[-1]
    line = Series("a < b", [(0, 1.0), (1, None), (2, 3.0), (3, 4.0)], "#000")
    chart = line_chart("t", [line], "x", "y", bands=[(1, 2, "hidden")])
    assert "a &lt; b" in chart
    assert chart.count("<polyline") == 1  # the lone point before the break is a dot
    assert chart.count("<circle") == 3
    assert line_chart("t", [Series("none", [(0, None)], "#000")], "x", "y") == ""
