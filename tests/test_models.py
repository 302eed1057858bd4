"""Networks, specifications and weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.labels import NO_CLASS
from models.networks.roadnet import RoadNet
from models.registry import build, load, save
from models.spec import Spec, SpecError, find_model
from models.step import FrameStep, PhasedStep, StreamStep
from tests.drives import TINY_ROADNET


@pytest.fixture(scope="module")
def network() -> RoadNet:
    torch.manual_seed(0)
    return RoadNet(**TINY_ROADNET).eval()


@torch.inference_mode()
def test_frame_path_and_clip_path_agree(network: RoadNet) -> None:
    frames = torch.rand(2, 5, 3, 72, 104) * 255
    clip_logits, clip_state, _ = network.clip(frames)
    state = torch.zeros(2, *network.state_shape((72, 104)))
    for time in range(5):
        logits, state = network(frames[:, time], state)
        torch.testing.assert_close(logits, clip_logits[:, time], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(state, clip_state, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_the_state_matters_and_is_bounded(network: RoadNet) -> None:
    frame = torch.rand(1, 3, 64, 96) * 255
    zeros = torch.zeros(1, *network.state_shape((64, 96)))
    first, state = network(frame, zeros)
    second, _ = network(frame, state)
    assert not torch.allclose(first, second)
    for _ in range(8):
        _, state = network(torch.rand(1, 3, 64, 96) * 255, state)
    assert state.abs().max() <= 1


@pytest.mark.parametrize("size_hw", [(360, 480), (360, 640), (40, 72), (864, 360)])
def test_state_shape_is_what_the_network_gives(network: RoadNet, size_hw: tuple[int, int]) -> None:
    state = torch.zeros(1, *network.state_shape(size_hw))
    with torch.inference_mode():
        logits, after = network(torch.zeros(1, 3, *size_hw), state)
    assert after.shape == state.shape
    assert logits.shape[-2:] == (size_hw[0] // 2, size_hw[1] // 2)


def test_the_step_sees_colours_as_they_are(network: RoadNet) -> None:
    step = StreamStep(network)
    # 75 % colour bars by ITU-R BT.601: white, yellow, red, blue.
    for yuv, rgb in [((180, 128, 128), (191, 191, 191)), ((162, 44, 142), (191, 191, 0)),
                     ((65, 100, 212), (191, 0, 0)), ((35, 212, 114), (0, 0, 191))]:  # fmt: skip
        planes = np.empty((1, 24, 16), np.uint8)
        planes[:, :16], planes[:, 16:20], planes[:, 20:] = yuv
        found = step.to_rgb(torch.from_numpy(planes))
        assert found.shape == (1, 3, 16, 16)
        np.testing.assert_allclose(found[0, :, 5, 5], rgb, atol=1.5)


def test_chroma_lands_on_its_pixels(network: RoadNet) -> None:
    planes = np.full((1, 24, 16), 128, np.uint8)
    planes[0, 16 + 1, 3] = 240  # row 1 of the array is rows 2 and 3 of U: row 2, column 3
    blue = StreamStep(network).to_rgb(torch.from_numpy(planes))[0, 2]
    hot = torch.nonzero(blue > 200).tolist()
    assert hot == [[4, 6], [4, 7], [5, 6], [5, 7]]


def test_the_step_labels_every_pixel(network: RoadNet) -> None:
    state = torch.zeros(1, *network.state_shape((64, 96)))
    step = StreamStep(network)
    with torch.inference_mode():
        planes = torch.randint(0, 256, (1, 96, 96), dtype=torch.uint8)
        labels, after = step(planes, state)
        logits, expected = network(step.to_rgb(planes), state)
    assert labels.dtype == torch.int32
    full = torch.nn.functional.interpolate(logits, (64, 96), mode="bilinear", align_corners=False)
    torch.testing.assert_close(labels, full.argmax(1).int())
    torch.testing.assert_close(after, expected)


@torch.inference_mode()
@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("times", [1, 2, 4])
def test_enlarging_by_convolutions_is_bilinear(times: int, multi_label: bool) -> None:
    network = RoadNet(**{**TINY_ROADNET, "multi_label": multi_label})
    logits = torch.randn(3, 11, 5, 7) - 1
    size_hw = (times * 5, times * 7)
    found = PhasedStep(network, times).labels(logits, size_hw)
    expected = FrameStep(network).labels(logits, size_hw)
    assert found.dtype == expected.dtype == torch.int32
    # But for rounding, where two classes are as likely.
    assert (found == expected).double().mean() > 0.998
    assert bool((found == NO_CLASS).any()) == multi_label


@pytest.mark.parametrize(
    ("source_hw", "expected"),
    [((720, 1280), (360, 640)), ((360, 480), (360, 480)), ((540, 960), (360, 640)),
     ((1280, 720), (640, 360)), ((1, 4000), (360, 864)), ((64, 64), (360, 360)),
     ((721, 1281), (360, 640))],
)  # fmt: skip
def test_model_size_keeps_the_aspect(source_hw: tuple[int, int], expected: tuple[int, int]) -> None:
    assert Spec("x").model_hw(source_hw) == expected


def test_shipped_weights_load_and_fit() -> None:
    network, spec = load("roadnet")
    assert spec.classes[3] == "road"
    assert not network.training
    folder = find_model("roadnet").folder
    assert sum(path.stat().st_size for path in folder.iterdir()) < 15e6


def test_saved_models_come_back(tmp_path: Path, network: RoadNet) -> None:
    spec = Spec("tiny", options=TINY_ROADNET)
    save(tmp_path / "tiny", network, spec)
    again, spec_again = load(str(tmp_path / "tiny"))
    assert spec_again == spec
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, atol=1e-3, rtol=1e-3)


def tiny_model(folder: Path) -> Path:
    spec = Spec("tiny", options=TINY_ROADNET)
    save(folder, build(spec), spec)
    return folder


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "m")
    weights = load_file(folder / "weights.safetensors")
    wrong = {**weights, "head.weight": torch.zeros(12, 16, 1, 1)}
    save_file(wrong, folder / "weights.safetensors")
    with pytest.raises(
        SpecError, match=r"head.weight must be \[44, 16, 1, 1\], got \[12, 16, 1, 1"
    ):
        load(str(folder))
    del wrong["head.weight"]
    save_file(wrong, folder / "weights.safetensors")
    with pytest.raises(SpecError, match=r"lacks 'head.weight'"):
        load(str(folder))
    save_file({**weights, "stray": torch.zeros(1)}, folder / "weights.safetensors")
    with pytest.raises(SpecError, match="holds unknown 'stray'"):
        load(str(folder))
    (folder / "weights.safetensors").write_bytes(b"not weights at all")
    with pytest.raises(SpecError, match="is not a safetensors file"):
        load(str(folder))


def test_models_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"unknown model 'nonesuch': give a shipped model .roadnet"):
        find_model("nonesuch")
    with pytest.raises(SpecError, match=r"has no spec.json"):
        find_model(str(tmp_path))


def test_specifications_that_contradict_themselves_are_refused(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "m")
    raw = json.loads((folder / "spec.json").read_text())
    for change, message in [
        ({"palette_rgb": raw["palette_rgb"][:3]}, "must have 11 colours"),
        ({"network": "Nonesuch"}, "unknown network 'Nonesuch'"),
        ({"options": {"depth": 3}}, "does not take"),
        ({"surprise": 1}, "not a model specification"),
        ({"head": "hydra"}, "head must be one of softmax, sigmoid, got 'hydra'"),
        ({"in_channels": 1}, "in_channels must be a whole number of at least 3, got 1"),
        ({"in_channels": "3"}, "in_channels must be a whole number of at least 3, got '3'"),
        ({"boundary": 1}, "boundary must be true or false, got 1"),
        ({"recurrent": None}, "recurrent must be true or false, got None"),
        ({"options": {**TINY_ROADNET, "width": 24}}, "does not fit"),
        ({"options": None}, "does not take"),
    ]:
        (folder / "spec.json").write_text(json.dumps({**raw, **change}))
        with pytest.raises(SpecError, match=message):
            load(str(folder))


def test_specifications_from_before_there_were_heads_still_load(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "m")
    raw = json.loads((folder / "spec.json").read_text())
    for key in ("head", "in_channels", "boundary", "recurrent"):
        del raw[key]
    (folder / "spec.json").write_text(json.dumps(raw))
    network, spec = load(str(folder))
    assert (spec.head, spec.in_channels, spec.boundary, spec.recurrent) == (
        "softmax",
        3,
        False,
        True,
    )
    assert (network.multi_label, network.in_channels, network.boundary) == (False, 3, False)
