"""The graph engine: slots, buckets, graphs and buffers, on a fake device, and on a GPU where there is one."""

from __future__ import annotations

import random
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from av.codec.hwaccel import HWAccel
from torch import Tensor

from models.registry import save
from models.spec import ModelFiles, find_model
from pipeline.engines import EngineChoice
from pipeline.engines.check import TOLERANCES, seeded_frames
from pipeline.engines.counting import MODULUS, CountingEngine
from pipeline.engines.cuda import GraphEngine, bucket_sizes, cuda_engine
from pipeline.engines.device import CudaDevice, Device
from pipeline.engines.eager import EagerEngine
from pipeline.errors import EngineError, ModelError
from pipeline.media import Tally, decode_packet
from pipeline.sinks import OutputOptions
from pipeline.sources import Source, expand
from pipeline.stages import Job, make_segmenter, process
from tests.devices import FakeDevice, needs_cuda
from tests.media import write_moving_clip
from tests.networks import made, spec_of
from tests.test_run import read_labels

SIZE = (16, 24)
NETWORK_SIZE = (40, 72)


def count(planes: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """What `CountingEngine` does, as a network would."""
    counts = state[:, 0, 0, 0] + 1
    checksums = (state[:, 1, 0, 0] * 31 + planes.float().sum((1, 2))) % MODULUS
    labels = (counts % MODULUS)[:, None, None].repeat(1, *SIZE)
    labels[:, 0, 0] = checksums
    return labels.int(), torch.stack([counts, checksums], 1)[..., None, None]


def counting(device: Device, slots: int, largest: int = 64) -> GraphEngine:
    return GraphEngine(
        device, lambda size: count, state_chw=(2, 1, 1), model_hw=SIZE, slots=slots,
        dtype=torch.float32, largest=largest,
    )  # fmt: skip


def frames(streams: int, times: int, seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (streams, times, size[0] * 3 // 2, size[1]), dtype=np.uint8)


@pytest.fixture(params=["fake", pytest.param("cuda", marks=needs_cuda)])
def device(request: pytest.FixtureRequest) -> Device:
    return FakeDevice() if request.param == "fake" else CudaDevice()


def test_buckets_double_up_to_the_slots() -> None:
    assert bucket_sizes(1) == [1]
    assert bucket_sizes(8) == [1, 2, 4, 8]
    assert bucket_sizes(12) == [1, 2, 4, 8, 12]
    assert bucket_sizes(100) == [1, 2, 4, 8, 16, 32, 64]
    assert bucket_sizes(100, largest=5) == [1, 2, 4, 5]


def follow_a_schedule(device: Device, seed: int) -> None:
    """Random batches, resets and swaps of states, against an engine without graphs or batches."""
    chance = random.Random(seed)
    slots = chance.randint(1, 11)
    found, expected = (
        counting(device, slots, largest=chance.choice([3, 64])),
        CountingEngine(SIZE, slots),
    )
    for turn in range(12):
        batch = chance.sample(range(slots), chance.randint(1, slots))
        reset = [chance.random() < 0.2 for _ in batch]
        pixels = frames(len(batch), chance.randint(1, 6), seed=1000 * seed + turn)
        there = chance.choice(
            [0.0, 0.5, 1.0]
        )  # share of the streams that are decoded on the device
        given = [
            torch.from_numpy(one).to(device.torch_device) if chance.random() < there else one
            for one in pixels
        ]
        np.testing.assert_array_equal(
            found.step(given, batch, reset), expected.step(pixels, batch, reset)
        )
        if chance.random() < 0.4:
            give, take = chance.randrange(slots), chance.randrange(slots)
            for engine in (found, expected):
                engine.write_state(take, engine.read_state(give))
    for slot in range(slots):
        np.testing.assert_array_equal(found.read_state(slot), expected.read_state(slot))


@pytest.mark.parametrize("seed", range(24))
def test_random_schedules_on_streams_in_any_order(seed: int) -> None:
    follow_a_schedule(FakeDevice(seed, eagerness=(0.0, 0.3, 0.7, 0.95)[seed % 4]), seed)


@needs_cuda
def test_random_schedules_on_a_gpu() -> None:
    for seed in range(6):
        follow_a_schedule(CudaDevice(), seed)


class Unwaited(FakeDevice):
    """A device whose streams do not wait for each other: what the events are for."""

    def stream(self):  # type: ignore[no-untyped-def]
        stream = super().stream()
        stream.wait = lambda event: None  # type: ignore[method-assign]
        return stream


def test_the_fake_device_shows_a_missing_wait() -> None:
    def wrong(seed: int) -> bool:
        try:
            follow_a_schedule(Unwaited(seed, eagerness=0.3), seed)
        except AssertionError:
            return True
        return False

    assert sum(map(wrong, range(8))) >= 6


def test_padding_and_warm_ups_touch_no_live_slot(device: Device) -> None:
    engine = counting(device, 8)
    assert not np.any([engine.read_state(slot) for slot in range(8)])
    for slot in range(8):
        engine.write_state(slot, np.full((2, 1, 1), slot + 0.5, np.float32))
    engine.step(frames(3, 4), [6, 1, 3], [False, True, False])  # a bucket of four
    for slot in (0, 2, 4, 5, 7):
        assert (engine.read_state(slot) == slot + 0.5).all()
    assert engine.read_state(6)[0] == 6.5 + 4
    assert engine.read_state(1)[0] == 4


def test_a_state_that_is_no_number_is_gone_after_a_reset(device: Device) -> None:
    engine = counting(device, 2)
    engine.write_state(1, np.full((2, 1, 1), np.nan, np.float32))
    labels = engine.step(frames(1, 1), [1], [True])
    assert (labels[0, 0, 1:] == 1).all()
    assert np.isfinite(engine.read_state(1)).all()


def test_the_smallest_bucket_that_holds_a_batch_runs(device: Device) -> None:
    sizes: list[int] = []
    ran: list[int] = []

    def make_runner(size: int):  # type: ignore[no-untyped-def]
        sizes.append(size)

        def run(planes: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            assert len(planes) == len(state) == size
            labels, following = count(planes, state)
            return torch.full_like(labels, size), following

        return run

    engine = GraphEngine(
        device, make_runner, state_chw=(2, 1, 1), model_hw=SIZE, slots=9, dtype=torch.float32,
        largest=6,
    )  # fmt: skip
    assert sizes == [6, 4, 2, 1], "the largest graph's memory must hold the others"
    for streams in range(1, 10):
        labels = engine.step(frames(streams, 1), range(streams), [False] * streams)
        ran.append([int(stream[0, 0, 0]) for stream in labels])  # type: ignore[arg-type]
    assert ran == [[1], [2] * 2, [4] * 3, [4] * 4, [6] * 5, [6] * 6,
                   [6] * 6 + [1], [6] * 6 + [2] * 2, [6] * 6 + [4] * 3]  # fmt: skip


@pytest.mark.parametrize(
    ("pixels", "slots", "reset"),
    [(frames(2, 1), [1, 1], [True, True]), (frames(2, 1), [0, 4], [True, True]),
     (frames(2, 1), [0], [True]), (frames(1, 1), [-1], [True]),
     (frames(1, 1).astype(np.float32), [0], [True]), (frames(1, 1, size=(8, 8)), [0], [True])],
)  # fmt: skip
def test_batches_that_contradict_themselves_are_refused(
    pixels: np.ndarray, slots: list[int], reset: list[bool]
) -> None:
    engine = counting(FakeDevice(), 4)
    with pytest.raises(ValueError, match=r"slots below 4|frames must be uint8"):
        engine.step(pixels, slots, reset)
    assert not engine.read_state(0).any()


@pytest.mark.parametrize(
    ("error", "words"),
    [(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"), "ran out of memory"),
     (RuntimeError("CUDA error: unspecified launch failure\nCompile with ..."),
      r"failed \(CUDA error: unspecified launch failure\)")],
)  # fmt: skip
def test_a_dead_device_is_one_line_with_what_to_try(error: RuntimeError, words: str) -> None:
    device = FakeDevice()

    def die(number: int) -> None:
        if number >= 3:
            raise error

    device.before_replay = die
    engine = counting(device, 4)
    engine.step(frames(1, 2), [0], [True])
    lines = []
    for attempt in (lambda: engine.step(frames(1, 2), [0], [False]), lambda: engine.read_state(0)):
        with pytest.raises(EngineError, match=rf"the fake GPU {words} with 4 streams") as caught:
            attempt()
        lines.append(str(caught.value))
        assert caught.value.device_lost is not isinstance(error, torch.OutOfMemoryError)
    assert lines[0] == lines[1]
    assert "try a smaller --size, fewer sources at once, or --engine cpu" in lines[0]
    assert "\n" not in lines[0]
    assert device.replays == 3, "a dead engine must not be tried again"


def test_a_device_too_small_says_so_at_the_start() -> None:
    def make_runner(size: int):  # type: ignore[no-untyped-def]
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(EngineError, match="ran out of memory with 2 streams of 16x24: try"):
        GraphEngine(FakeDevice(), make_runner, state_chw=(2, 1, 1), model_hw=SIZE, slots=2,
                    dtype=torch.float32)  # fmt: skip


def test_a_defect_of_ours_keeps_its_traceback() -> None:
    def make_runner(size: int):  # type: ignore[no-untyped-def]
        return lambda planes, state: (planes @ state, state)

    with pytest.raises(RuntimeError) as caught:
        GraphEngine(FakeDevice(), make_runner, state_chw=(2, 1, 1), model_hw=SIZE, slots=1,
                    dtype=torch.float32)  # fmt: skip
    assert not isinstance(caught.value, EngineError)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return save(tmp_path_factory.mktemp("model"), made("RoadNet"), spec_of("RoadNet"))


def follow_the_plain_engine(device: Device, files: ModelFiles, precision: str) -> None:
    """Streams of a network that come and go, against PyTorch in float32."""
    tolerance = TOLERANCES[precision]
    choice = EngineChoice("cuda", f"CUDA graphs {precision}", "test")
    found = cuda_engine(choice, files, NETWORK_SIZE, 5, device)
    plain = EngineChoice(device.torch_device.type, "torch float32", "test")
    expected = EagerEngine(plain, files, NETWORK_SIZE, 5)
    schedule = [([0, 2, 4], [True] * 3), ([2], [False]), ([4, 1], [False, True]),
                (range(5), [False, False, True, True, False])]  # fmt: skip
    for turn, (slots, reset) in enumerate(schedule):
        pixels = np.concatenate(
            [seeded_frames(10 * turn + at, NETWORK_SIZE)[:, :2] for at in range(len(slots))]
        )
        labels = [engine.step(pixels, slots, reset) for engine in (found, expected)]
        assert (labels[0] != labels[1]).mean() <= tolerance.labels
    for slot in range(5):
        distance = np.abs(found.read_state(slot) - expected.read_state(slot)).mean()
        assert distance <= tolerance.state


def test_a_network_in_graphs_labels_as_plain_torch_does(files: ModelFiles) -> None:
    follow_the_plain_engine(FakeDevice(5), files, "f32")


def test_a_run_whose_frames_stay_on_the_device_labels_as_others_do(
    files: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the file to the label video; on the way one stream's frames are in memory, as of a codec that the
    device does not know."""
    clips = [tmp_path / f"clip{seed}.mp4" for seed in range(3)]
    for seed, clip in enumerate(clips):
        write_moving_clip(clip, 20, seed=seed)
    there = {str(clips[0]), str(clips[1])}
    batches: list[set[type]] = []

    def decode(stream: Any, packet: Any, tally: Tally, on_device: bool = False) -> list[Any]:
        found = decode_packet(stream, packet, tally, on_device)
        kept = stream.container.name.removeprefix("file:") in there
        return [frame.reformat(format="nv12") if kept else frame for frame in found]

    class Watched(GraphEngine):
        def step(self, frames: Any, slots: Any, reset: Any) -> np.ndarray:
            batches.append({type(one) for one in frames})
            return super().step(frames, slots, reset)

    def labels_of(out: Path, hwaccel: str | None) -> list[np.ndarray]:
        job = Job(
            out, OutputOptions(labels="mkv", color=False), str(files.folder),
            EngineChoice("cuda", "CUDA graphs f32", "test"), NETWORK_SIZE, hwaccel=hwaccel,
            facts={"model": {"name": "m", "weights_sha256": "", "size_hw": NETWORK_SIZE},
                   "engine": {"name": "cuda", "runtime": "", "form_sha256": None}, "versions": {}},
        )  # fmt: skip
        segmenter, sources = make_segmenter(job), expand([str(clip) for clip in clips]).sources

        def go(source: Source) -> None:
            events = list(process(job, source, segmenter, stop=lambda: False, threads=True))
            assert events[-1].error is None  # type: ignore[union-attr]

        threads = [Thread(target=go, args=(source,)) for source in sources]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [read_labels(out / clip.stem / "labels.mkv") for clip in clips]

    def absent(kind: str, **options: Any) -> HWAccel:
        return HWAccel(kind, device="99", **options)  # on no machine, whatever it has

    monkeypatch.setattr("pipeline.media.HWAccel", absent)
    monkeypatch.setattr("pipeline.engines.cuda.CudaDevice", FakeDevice)
    monkeypatch.setattr("pipeline.engines.cuda.GraphEngine", Watched)
    expected = labels_of(tmp_path / "memory", None)
    assert set().union(*batches) == {np.ndarray}
    batches.clear()
    monkeypatch.setattr("pipeline.reader.decode_packet", decode)
    monkeypatch.setattr(
        "pipeline.decode.stays_on_device", lambda frame: frame.format.name == "nv12"
    )
    found = labels_of(tmp_path / "device", "cuda")
    assert set().union(*batches) == {np.ndarray, Tensor}
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one == other).mean() > 0.95  # a network that is in doubt nearly everywhere
    np.testing.assert_array_equal(found[2], expected[2])


@needs_cuda
@pytest.mark.parametrize("precision", ["f32", "f16", "bf16"])
def test_a_network_on_a_gpu_labels_as_plain_torch_does(precision: str) -> None:
    follow_the_plain_engine(CudaDevice(), find_model("roadnet"), precision)


def test_weights_that_do_not_fit_are_named(files: ModelFiles, tmp_path: Path) -> None:
    other = save(tmp_path, made("FCN"), spec_of("RoadNet"))
    with pytest.raises(ModelError, match="does not fit"):
        cuda_engine(
            EngineChoice("cuda", "CUDA graphs f16", "test"), other, NETWORK_SIZE, 1, FakeDevice()
        )
