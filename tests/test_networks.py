"""What holds for every network of the family: memory, sizes, heads, export, training, cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.cost import cost
from models.export import convert, core, fix_size
from models.networks import segnet
from models.networks.blocks import ConvGRU
from models.networks.recurrent import NO_STATE, EncoderDecoder, Network, Recurrent
from models.networks.segnet import max_pool, max_unpool
from models.registry import NETWORKS, build, load, save
from models.spec import Spec, SpecError
from models.step import NO_CLASS, StreamStep, label_map
from tests.networks import SIZE, TINY, footage, i420, made, spec_of


@pytest.fixture(scope="module", params=list(NETWORKS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def network(name: str) -> Network:
    return made(name)


def test_every_network_is_tested() -> None:
    assert list(TINY) == list(NETWORKS)


@torch.inference_mode()
def test_frame_path_and_clip_path_agree(network: Network) -> None:
    frames = footage(2, 4)
    clip_logits, clip_state, _ = network.clip(frames)
    state = torch.zeros(2, *network.state_shape(SIZE))
    for time in range(4):
        logits, state = network(frames[:, time], state)
        torch.testing.assert_close(logits, clip_logits[:, time], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(state, clip_state, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_clip_in_two_parts_is_the_clip(network: Network) -> None:
    frames = footage(1, 5)
    whole, _, _ = network.clip(frames)
    first, state, _ = network.clip(frames[:, :2])
    second, _, _ = network.clip(frames[:, 2:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_the_state_matters_and_is_bounded(network: Network) -> None:
    frame = footage(1, 1)[:, 0]
    first, state = network(frame, torch.zeros(1, *network.state_shape(SIZE)))
    second, _ = network(frame, state)
    assert (first - second).abs().max() > 1e-3 * first.abs().max()
    for at in range(8):
        _, state = network(footage(1, 8)[:, at], state)
    assert state.abs().max() <= 1


@torch.inference_mode()
def test_without_memory_the_state_does_not_matter(name: str) -> None:
    network = made(name, recurrent=False)
    assert network.state_shape(SIZE) == NO_STATE
    assert not any(isinstance(module, ConvGRU) for module in network.modules())
    frames = footage(2, 3)
    state = torch.full((2, *NO_STATE), 7.0)
    torch.testing.assert_close(network.clip(frames, state)[0], network.clip(frames)[0])
    logits, after = network(frames[:, 1], state)
    torch.testing.assert_close(logits, network.clip(frames)[0][:, 1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after, state)


@pytest.mark.parametrize("size_hw", [(360, 480), (360, 640), (40, 72), (8, 16)])
@pytest.mark.parametrize("recurrent", [True, False])
def test_shapes_are_as_announced(name: str, size_hw: tuple[int, int], recurrent: bool) -> None:
    network = build(spec_of(name, recurrent=recurrent)).eval().to("meta")
    state = torch.zeros(2, *network.state_shape(size_hw), device="meta")
    logits, after, auxiliary = network.clip(torch.zeros(2, 3, 3, *size_hw, device="meta"), state)
    assert after.shape == state.shape
    stride = size_hw[0] // logits.shape[-2]
    assert stride in (1, 2, 4)
    assert logits.shape == (2, 3, 11, size_hw[0] // stride, size_hw[1] // stride)
    wanted = {"classes", "motion"} if name == "RoadNet" and recurrent else {"classes"}
    assert auxiliary.keys() == wanted
    if "motion" in wanted:
        assert auxiliary["motion"].shape == (2, 3, 2, -(-size_hw[0] // 16), -(-size_hw[1] // 16))
    assert auxiliary["classes"].shape == (2, 3, 11, size_hw[0] // 8, size_hw[1] // 8)


@torch.inference_mode()
def test_a_stream_does_not_depend_on_its_neighbours(network: Network) -> None:
    frames = footage(3, 2)
    together, _, _ = network.clip(frames)
    alone, _, _ = network.clip(frames[1:2])
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=1e-4)


def test_the_finest_memory_begins_as_nothing_and_is_then_heard() -> None:
    """So that a network trained without it is what it was, and gains by being trained on."""
    torch.manual_seed(1)
    options = {**TINY["RoadNet"], "motion": False}
    without = build(spec_of("RoadNet", options={**options, "finest_memory": 0})).eval()
    network = build(spec_of("RoadNet", options=options)).eval()
    network.load_state_dict(without.state_dict(), strict=False)
    clip, memory = footage(1, 3), 16 * 4
    with torch.no_grad():
        assert torch.equal(network.clip(clip)[0], without.clip(clip)[0])
        grown = made("RoadNet")
        state = grown.clip(clip)[1]
        forgotten = state.clone()
        end = forgotten.shape[1] - 16 * 13  # after it: what was said, and the picture
        forgotten[:, end - memory : end] = 0
        again = footage(1, 1)
        heard = grown.clip(again, state)[0] - grown.clip(again, forgotten)[0]
    (channels, *cells), (fewer, *same) = network.state_shape(SIZE), without.state_shape(SIZE)
    assert (channels, cells) == (fewer + memory, same)
    assert heard.abs().max() > 1e-3


def test_a_boundary_head_is_a_second_task(name: str) -> None:
    network = build(spec_of(name, boundary=True))
    logits, _, auxiliary = network.clip(footage(1, 2))
    assert logits.shape[2] == 11
    assert auxiliary["boundary"].shape == (1, 2, 1, *logits.shape[-2:])
    auxiliary["boundary"].sum().backward()
    first = next(parameter for parameter in network.parameters() if parameter.ndim == 4)
    assert first.grad is not None
    assert first.grad.abs().max() > 0


@torch.inference_mode()
def test_further_planes_are_seen(name: str) -> None:
    network = made(name, in_channels=5)
    assert network.in_channels == 5
    frames = footage(1, 1, planes=5)
    logits, _, _ = network.clip(frames)
    frames[:, :, 4] = 255 - frames[:, :, 4]
    changed, _, _ = network.clip(frames)
    assert (logits - changed).abs().max() > 1e-3 * logits.abs().max()
    with pytest.raises(SpecError, match="takes frames of 5 planes, video has 3"):
        StreamStep(network)


def test_planes_are_brought_to_about_zero() -> None:
    network = build(spec_of("FCN", in_channels=4))
    even = torch.arange(256.0).view(1, 1, 1, 16, 16).expand(1, 1, 4, 16, 16)
    plane = network.normalized(even)[0, 3]
    assert plane.mean().item() == pytest.approx(0, abs=0.01)
    assert plane.std().item() == pytest.approx(1, abs=0.01)


def test_saved_models_come_back(name: str, tmp_path: Path) -> None:
    spec = spec_of(name, head="sigmoid", in_channels=4, boundary=True, recurrent=False)
    network = made(name, head="sigmoid", in_channels=4, boundary=True, recurrent=False)
    save(tmp_path, network, spec)
    again, spec_again = load(str(tmp_path))
    assert spec_again == spec
    assert (again.multi_label, again.recurrent, again.training) == (True, False, False)
    frames = footage(1, 2, planes=4)
    with torch.inference_mode():
        expected, found = network.half().float().clip(frames)[0], again.clip(frames)[0]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("change", "missing"),
    [({"recurrent": False}, "lacks 'MEMORY"), ({"boundary": True}, "unknown|must be"),
     ({"in_channels": 4}, "must be"), ({"classes": ("a",), "palette_rgb": ((0, 0, 0),)}, "must be")],
)  # fmt: skip
def test_a_specification_must_fit_its_weights(
    name: str, change: dict[str, object], missing: str, tmp_path: Path
) -> None:
    files = save(tmp_path, build(spec_of(name, **change)), spec_of(name))
    # The first of what is missing, by the alphabet.
    missing = missing.replace("MEMORY", r"carried\.gate" if name == "RoadNet" else ".*gru")
    with pytest.raises(SpecError, match=rf"does not fit spec\.json: .*({missing})"):
        load(str(files.folder))


def loss_of(network: Network, frames: Tensor, labels: Tensor) -> Tensor:
    logits, _, auxiliary = network.clip(frames)
    total = frames.new_zeros(())
    for found in (logits, auxiliary["classes"]):
        scaled = functional.interpolate(found.flatten(0, 1), labels.shape[-2:], mode="bilinear")
        total = total + functional.cross_entropy(scaled, labels)
    edges = auxiliary["boundary"].flatten(0, 1)
    truth = (functional.interpolate(labels[:, None].float(), edges.shape[-2:]) == 1).float()
    return total + functional.binary_cross_entropy_with_logits(edges, truth)


def test_each_trains(name: str) -> None:
    torch.manual_seed(0)
    two = {"classes": ("dark", "bright"), "palette_rgb": ((0, 0, 0), (9, 9, 9))}
    network = build(spec_of(name, boundary=True, **two)).train()
    frames = footage(2, 2, size_hw=(64, 64))
    labels = (frames.flatten(0, 1).mean(1) > 128).long()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    losses = []
    for _ in range(16):
        loss = loss_of(network, frames, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]
    unused = [key for key, tensor in network.named_parameters() if tensor.grad is None]
    assert not unused


@pytest.mark.parametrize("recurrent", [True, False])
def test_openvino_gives_the_labels_that_torch_gives(
    name: str, recurrent: bool, tmp_path: Path
) -> None:
    check_openvino(name, tmp_path, recurrent=recurrent, head="softmax" if recurrent else "sigmoid")


def test_openvino_takes_a_moving_memory_without_the_finest(tmp_path: Path) -> None:
    check_openvino("RoadNet", tmp_path, options={**TINY["RoadNet"], "finest_memory": 0})


def check_openvino(name: str, tmp_path: Path, **changes: object) -> None:
    """That its labels and states are those of torch, frame after frame."""
    files = save(tmp_path, made(name, **changes), spec_of(name, **changes))
    model = convert(files)
    network, _ = load(str(tmp_path))
    assert fix_size(model, SIZE) == network.state_shape(SIZE)
    compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    step = StreamStep(network).eval()
    state = torch.zeros(1, *network.state_shape(SIZE))
    mine = state.numpy()
    for planes in i420(frames=3):
        labels, state = step(planes, state)
        found = compiled([planes.numpy()[..., None], mine])
        mine = found[1]
        assert len(np.unique(found[0])) > 1
        assert (found[0] == labels.numpy()).mean() > 0.999
        np.testing.assert_allclose(mine, state.detach().numpy(), atol=1e-3)


def test_a_mask_a_class_gives_the_most_probable_that_holds() -> None:
    logits = torch.tensor([[3.0, -1.0, 0.0, -0.1], [2.0, -2.0, -1.0, -0.2]]).view(1, 2, 2, 2)
    labels = label_map(logits, multi_label=True)
    assert labels.tolist() == [[[0, NO_CLASS], [0, NO_CLASS]]]
    assert labels.dtype == torch.int32
    assert (label_map(logits, multi_label=False) == 0).all()


@torch.inference_mode()
def test_the_step_labels_masks(name: str) -> None:
    network = made(name, head="sigmoid")
    state = torch.zeros(1, *network.state_shape(SIZE))
    planes = i420(1)[0]
    step = StreamStep(network)
    labels, _ = step(planes, state)
    logits, _ = network(step.to_rgb(planes), state)
    best, ids = functional.interpolate(logits, SIZE, mode="bilinear").sigmoid().max(1)
    torch.testing.assert_close(labels, torch.where(best >= 0.5, ids, NO_CLASS).int())


def test_the_family_is_small(name: str) -> None:
    found = cost(build(Spec(name, network=name)), (360, 480))
    assert 0.5e6 <= found.parameters <= 6e6
    assert 4 <= found.gflops <= 15


class OneConvolution(EncoderDecoder):
    stride, logits_stride, bottleneck = 8, 4, 6

    def __init__(self, in_channels: int, outputs: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(in_channels, 6, 8, stride=8, bias=False)
        self.up = nn.ConvTranspose2d(6, outputs, 2, stride=2, bias=False)

    def encode(self, frames: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self.down(frames), []

    def decode(self, bottleneck: Tensor, skips: list[Tensor]) -> Tensor:
        return self.up(bottleneck)


def test_cost_by_hand() -> None:
    network = Recurrent(OneConvolution, classes=5, recurrent=True)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    cells = 5 * 9
    down, up, auxiliary = 3 * 6 * 64, 6 * 5 * 4, 6 * 5
    gru = (6 * 6 + 6 * 3) * 9
    found = cost(network, SIZE)
    assert found.gflops == pytest.approx(2 * cells * (down + up + auxiliary + gru) / 1e9)
    assert found.parameters == down + up + auxiliary + 5 + gru + 6 + 3
    assert network.training
    for key, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, before[key])


def test_attention_counts_as_two_products() -> None:
    options = {"widths": [8, 8, 8, 8], "depths": [1] * 4, "heads": [1] * 4}
    spec = Spec("x", network="SegFormer", options=options)
    deeper = Spec("x", network="SegFormer", options={**options, "depths": [1, 1, 1, 2]})
    more = cost(build(deeper), (64, 96)).gflops - cost(build(spec), (64, 96)).gflops
    tokens, channels = 2 * 3, 8
    linear = tokens * channels * channels * (4 + 8) + tokens * 4 * channels * 9
    assert more == pytest.approx(2 * (linear + 2 * tokens * tokens * channels) / 1e9)


def ties(shape: tuple[int, ...]) -> Tensor:
    """Few different values, many of them zero, as after a ReLU."""
    return torch.randint(-2, 4, shape, generator=torch.Generator().manual_seed(5)).float().relu()


@pytest.mark.parametrize("make", [ties, torch.randn, torch.zeros])
def test_unpooling_is_that_of_torch(make: object) -> None:
    x = make((2, 3, 12, 16))  # type: ignore[operator]
    expected, indices = functional.max_pool2d(x, 2, return_indices=True)
    maxima, places = max_pool(x)
    torch.testing.assert_close(maxima, expected, rtol=0, atol=0)
    torch.testing.assert_close(places.sum(2), torch.ones_like(maxima), rtol=0, atol=0)
    values = torch.randn(maxima.shape)
    torch.testing.assert_close(
        max_unpool(values, places), functional.max_unpool2d(values, indices, 2), rtol=0, atol=0
    )


@torch.inference_mode()
def test_labels_of_segnet_are_those_with_the_unpooling_of_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = made("SegNet")
    frames = footage(2, 3)
    found = network.clip(frames)[0]
    monkeypatch.setattr(segnet, "max_pool", nn.MaxPool2d(2, return_indices=True))
    monkeypatch.setattr(segnet, "max_unpool", nn.MaxUnpool2d(2))
    expected = network.clip(frames)[0]
    assert len(expected.argmax(2).unique()) > 2
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [("SegFormer", {"heads": [3, 2, 5, 8]}, "32 channels cannot be shared among 3 heads"),
     ("SegFormer", {"widths": [32, 64]}, r"widths must be 4 numbers, one a scale, got \[32, 64\]"),
     ("UNet", {"width": -8}, "negative"), ("FCN", {"width": "wide"}, "FCN"),
     ("SegNet", {"dept": 3}, "unexpected keyword argument 'dept'"),
     ("RoadNet", {"blocks": [1, 1]}, "RoadNet"), ("DeepLabV3Plus", {"classes": 3}, "multiple values")],
)  # fmt: skip
def test_wrong_options_are_one_line(network: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        build(Spec("x", network=network, options=options))
    assert "\n" not in str(caught.value)
