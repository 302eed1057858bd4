"""The step as GPUs run it: the same labels as plain float32, for any number of streams."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.program import DTYPES, example_inputs, export_program, fold_batch_norms, make_step
from models.registry import NETWORKS, save
from models.spec import ModelFiles, find_model
from models.step import StreamStep
from pipeline.engines.check import TOLERANCES, seeded_frames
from tests.networks import SIZE, footage, i420, made, spec_of


def inputs(step: StreamStep, streams: int) -> tuple[Tensor, Tensor]:
    _, state = example_inputs(step, SIZE, streams)
    planes = i420(streams)[:, 0]
    return planes, (torch.rand(state.shape, generator=torch.Generator().manual_seed(2)) - 0.5)


@pytest.fixture(scope="module", params=list(NETWORKS))
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    name = request.param
    return save(tmp_path_factory.mktemp("model"), made(name), spec_of(name))


@torch.inference_mode()
def test_folded_norms_change_nothing(files: ModelFiles) -> None:
    network = made(files.spec().network)
    before = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    frames, state = footage(1, 2)[0], torch.zeros(2, *network.state_shape(SIZE))
    expected = network(frames, state)
    fold_batch_norms(network)
    after = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert after < before
    for found, right in zip(network(frames, state), expected, strict=True):
        torch.testing.assert_close(found, right, atol=1e-3, rtol=1e-3)


@torch.inference_mode()
def test_half_precision_of_the_shipped_network_is_nearly_float32() -> None:
    files = find_model("roadnet")
    planes = torch.from_numpy(seeded_frames(1, (96, 160)))[0, :2]
    whole, half = make_step(files, "f32"), make_step(files, "f16")
    _, state = example_inputs(whole, (96, 160), 2)
    expected, following = whole(planes, state)
    found, after = half(planes, state.half())
    assert (found != expected).float().mean() < TOLERANCES["f16"].labels
    assert (after.float() - following).abs().mean() < TOLERANCES["f16"].state


# Untrained networks have many pixels between two classes, and SegNet's maxima change places by a bit.
@torch.inference_mode()
@pytest.mark.parametrize(
    ("precision", "labels", "states"), [("f16", 0.1, 0.01), ("bf16", 0.4, 0.05)]
)
def test_half_precision_is_nearly_float32(
    files: ModelFiles, precision: str, labels: float, states: float
) -> None:
    whole, half = make_step(files, "f32"), make_step(files, precision)
    planes, state = inputs(whole, 2)
    expected, following = whole(planes, state)
    dtype = DTYPES[precision]
    found, after = half(planes, state.to(dtype))
    assert after.dtype == dtype
    assert found.dtype == torch.int32
    assert half.network.mean.dtype == torch.float32
    assert len(expected.unique()) > 1
    assert (found != expected).float().mean() < labels
    assert (after.float() - following).abs().mean() < states


def test_the_exported_graph_takes_any_number_of_streams(files: ModelFiles) -> None:
    step = make_step(files, "f32")
    graph = export_program(step, SIZE, 6).module()
    for streams in (1, 2, 3, 6):
        planes, state = inputs(step, streams)
        labels, following = graph(planes, state)
        expected, after = step(planes, state)
        assert (labels == expected).float().mean() > 0.999
        torch.testing.assert_close(following, after, atol=1e-4, rtol=1e-4)
    with pytest.raises(Exception, match="6"):
        graph(*inputs(step, 7))


def test_without_memory_the_next_state_is_a_tensor_of_its_own(tmp_path: Path) -> None:
    """TensorRT has no output that is an input."""
    files = save(tmp_path, made("FCN", recurrent=False), spec_of("FCN", recurrent=False))
    step = make_step(files, "f32")
    planes, state = inputs(step, 2)
    labels, following = export_program(step, SIZE, 2).module()(planes, state)
    torch.testing.assert_close(following, state, rtol=0, atol=0)
    assert following.data_ptr() != state.data_ptr()
    assert (labels == step(planes, state)[0]).float().mean() > 0.999
