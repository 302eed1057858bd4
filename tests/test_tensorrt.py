"""TensorRT: real engines of the whole family by TensorRT-RTX's builder, which needs no GPU, and the engine's
own logic on a stand-in for its runtime."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import models.tensorrt
from models.program import make_step
from models.registry import NETWORKS, build, save
from models.spec import ModelFiles, Spec
from models.step import StreamStep
from models.tensorrt import BuiltEngine, ConversionError, Coverage
from pipeline import engines
from pipeline.cli import main
from pipeline.engines import EngineChoice, check_fit, choose_engine
from pipeline.engines import tensorrt as trt_engine
from pipeline.engines.device import Device
from pipeline.engines.eager import EagerEngine
from pipeline.errors import EngineError
from tests.devices import FakeDevice
from tests.networks import TINY

Facts = dict[str, Any]
SIZE = (64, 96)
TIME_OUT_SECONDS = 2400  # beside other load


@pytest.fixture(scope="session")
def engines_of_the_family() -> list[Facts]:
    """What `tests.rtx` says of each engine; two processes build side by side."""
    if find_spec("torch_tensorrt") is None or find_spec("tensorrt_rtx") is None:
        if os.environ.get("REQUIRE_TRT_RTX") == "1":
            pytest.fail("REQUIRE_TRT_RTX=1, but torch-tensorrt-rtx is not installed")
        pytest.skip("TensorRT-RTX is not installed: pip install -e '.[trt-rtx]'")
    names = [*NETWORKS, "INT8", "FP8"]
    running = [
        subprocess.Popen([sys.executable, "-m", "tests.rtx", *share], text=True, env=_one_thread(),
                         cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for share in (names[::2], names[1::2])
    ]  # fmt: skip
    facts = []
    for process in running:
        out, err = process.communicate(timeout=TIME_OUT_SECONDS)
        assert process.returncode == 0, err[-3000:]
        facts += [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return facts


def _one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def test_every_network_with_every_head_becomes_one_engine(
    engines_of_the_family: list[Facts], capsys: pytest.CaptureFixture[str]
) -> None:
    found = [facts for facts in engines_of_the_family if "network" in facts]
    failed = [facts for facts in found if "error" in facts]
    assert not failed
    kinds = [(f["network"], f["head"], f["boundary"], f["recurrent"]) for f in found]
    assert len(set(kinds)) == len(kinds) == 6 * len(NETWORKS)
    assert sorted(f["network"] for f in found if f["shipped"]) == sorted(NETWORKS)
    for facts in found:
        assert facts["converted"] == facts["operators"] > 50, facts
        assert facts["layers"] > 50
        assert facts["bytes"] > 100_000
        labels, state = facts["outputs"]
        assert labels == ["output0", "INT32", [-1, *facts["size_hw"]]]
        assert state == ["output1", "HALF", [-1, *facts["state"]]]
    with capsys.disabled():
        print("\nTensorRT-RTX, 360x640: operators, layers, MB, seconds to build, of which CPU")
        for f in found:
            if f["shipped"]:
                print(f"{f['network']:16}{f['operators']:6}{f['layers']:6}{f['bytes'] / 1e6:6.1f}"
                      f"{f['seconds']:7.1f}{f['cpu_seconds']:7.1f}")  # fmt: skip


def test_the_shipped_network_is_quantised_at_every_convolution(
    engines_of_the_family: list[Facts],
) -> None:
    found = {facts["precision"]: facts for facts in engines_of_the_family if "precision" in facts}
    assert set(found) == {"int8", "fp8"}
    for precision, facts in found.items():
        assert facts["converted"] == facts["operators"] > 300
        # Of its weights and of what it is given, which some convolutions share.
        assert list(facts["quantized"]) == [precision.upper()]
        count = facts["quantized"][precision.upper()]
        assert 100 < 0.95 * facts["quantizers"] < count <= facts["quantizers"]
        assert facts["smallest"] > 0  # a step of zero would be refused
        assert 0 < facts["differing"] < 0.05
        assert [kind for _, kind, _ in facts["outputs"]] == ["INT32", "HALF"]
    assert found["fp8"]["error"] is None
    # When TensorRT-RTX takes INT8, `tensorrt_problem` need not refuse it any more.
    assert "engine build failed" in found["int8"]["error"]


def test_what_it_does_not_take_is_named(engines_of_the_family: list[Facts]) -> None:
    refusals = [facts["refusal"] for facts in engines_of_the_family if "refusal" in facts]
    assert len(refusals) == 2
    assert all("TensorRT does not take" in text and "qr" in text for text in refusals)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    torch.manual_seed(1)
    spec = Spec("tiny", options=TINY["RoadNet"])
    network = build(spec).train()
    for _ in range(20):  # batch norm learns its scale, so that every layer has a say in the labels
        network.clip(torch.rand(2, 2, 3, *SIZE) * 255)
    return save(tmp_path_factory.mktemp("model"), network.eval(), spec)


def at(address: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """The memory at an address."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = (ctypes.c_uint8 * size).from_address(address)
    return torch.frombuffer(raw, dtype=dtype).view(shape)


WORK_BYTES = 4096


class Context:
    """Stands for TensorRT's: runs the step on addresses, in float32."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_device_memory(self, address: int, size: int) -> None:
        self.plan.memories.add((address, size))

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return self.plan.library.refuses != f"the shape of {name}"

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return self.plan.library.refuses != f"the memory of {name}"

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 77
        ((address, size),) = self.plan.memories  # of all contexts the same
        assert address
        assert size == WORK_BYTES
        planes, state = self.shapes["planes"], self.shapes["state"]
        labels, following = self.plan.step(
            at(self.addresses["planes"], planes, torch.uint8),
            at(self.addresses["state"], state, torch.float32),
        )
        at(self.addresses["output0"], (planes[0], *SIZE), torch.int32).copy_(labels)
        at(self.addresses["output1"], state, torch.float32).copy_(following)
        return not self.plan.library.breaks


class Plan:
    """Stands for an engine that TensorRT has read."""

    device_memory_size_v2 = WORK_BYTES

    def __init__(self, library: Library, folder: str) -> None:
        self.library = library
        self.memories: set[tuple[int, int]] = set()
        self.step = make_step(ModelFiles(Path(folder)), "f32")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        state = self.step.network.state_shape(SIZE)
        return {
            "planes": (-1, SIZE[0] * 3 // 2, SIZE[1]), "state": (-1, *state),
            "output0": (-1, *SIZE), "output1": (-1, *state),
        }[name]  # fmt: skip

    def create_execution_context(self, strategy: str) -> Context | None:
        assert strategy == "by the user"
        return Context(self)


class Library:
    """Stands for the `tensorrt` package; engines are names of folders."""

    __version__ = "11.0.0"
    _package_name = "tensorrt"
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="by the user")
    breaks = False
    refuses = ""  # an input, or an address

    class Logger:
        ERROR = 1

        def __init__(self, level: int) -> None:
            pass

    def Runtime(self, logger: object) -> Any:
        def read(data: bytes) -> Plan | None:
            return None if data.startswith(b"foreign") else Plan(self, data.decode())

        return SimpleNamespace(deserialize_cuda_engine=read)


@pytest.fixture
def library(
    files: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Library]:
    """A machine with a GPU and TensorRT on it, as far as anybody can tell."""
    found = Library()
    monkeypatch.setitem(sys.modules, "tensorrt", found)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", SimpleNamespace(__version__="2.13.0"))
    monkeypatch.setenv("ROADMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(engines, "has_nvidia_driver", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(trt_engine, "find_spec", lambda name: name)
    monkeypatch.setattr("pipeline.engines.tensorrt.CudaDevice", ReplayedDevice)
    monkeypatch.setattr("pipeline.engines.build.CudaDevice", ReplayedDevice)

    def build_engine(step: object, size_hw: object, largest: int, cache: object) -> BuiltEngine:
        data = str(files.folder).encode()
        return BuiltEngine(data, Coverage(240, 240, ()), 600, (), largest)

    monkeypatch.setattr(models.tensorrt, "build_engine", build_engine)
    return found


class ReplayedDevice(FakeDevice):
    """Its graphs run what was captured again: what is done behind addresses can't be recorded."""

    def capture(self, stream, body):  # type: ignore[no-untyped-def]
        stream.run(body)
        stream.record().synchronize()
        return body


CHOICE = EngineChoice("tensorrt", "TensorRT f32", "test")


def test_the_engine_labels_as_plain_torch_does(files: ModelFiles, library: Library) -> None:
    trt_engine.build(CHOICE, files, SIZE, 4, ReplayedDevice())
    found = trt_engine.tensorrt_engine(CHOICE, files, SIZE, 6)
    plain = EagerEngine(EngineChoice("cpu", "torch float32", "test"), files, SIZE, 6)
    rng = np.random.default_rng(4)
    for slots, reset in (([0, 3, 5], [True] * 3), ([5], [False]), (range(6), [False, True] * 3)):
        pixels = rng.integers(16, 235, (len(slots), 3, SIZE[0] * 3 // 2, SIZE[1]), np.uint8)
        labels = [engine.step(pixels, slots, reset) for engine in (found, plain)]
        assert (labels[0] == labels[1]).mean() > 0.999
    for slot in range(6):
        np.testing.assert_allclose(found.read_state(slot), plain.read_state(slot), atol=1e-3)


def test_what_contexts_work_in_lives_as_long_as_the_engine(
    files: ModelFiles, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT itself does not hold it."""
    memories: list[weakref.ref[torch.Tensor]] = []

    class Watched(trt_engine.Plan):
        def execution(self, streams: int, device: Device) -> trt_engine.Execution:
            found = super().execution(streams, device)
            assert self._memory is not None
            memories.append(weakref.ref(self._memory))
            return found

    monkeypatch.setattr(trt_engine, "Plan", Watched)
    trt_engine.build(CHOICE, files, SIZE, 4, ReplayedDevice())
    engine = trt_engine.tensorrt_engine(CHOICE, files, SIZE, 4)
    gc.collect()
    assert len(memories) == 3
    assert len({id(memory()) for memory in memories}) == 1
    assert memories[0]() is not None
    del engine
    gc.collect()
    assert memories[0]() is None


def test_engines_that_do_not_fit_are_refused_with_what_to_run(
    files: ModelFiles, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (
        rf"run `roadmask compile {files.folder} --engine tensorrt --precision f32 --size 64x96`"
    )

    def refused(words: str) -> None:
        with pytest.raises(
            EngineError, match=rf"tensorrt engine of \S+ at 64x96 {words}: {command}"
        ):
            trt_engine.tensorrt_engine(CHOICE, files, SIZE, 2)

    with pytest.raises(EngineError, match=rf"there is no tensorrt engine of .*: {command}"):
        trt_engine.tensorrt_engine(CHOICE, files, SIZE, 2)
    where, _ = trt_engine.build(CHOICE, files, SIZE, 2, ReplayedDevice())
    trt_engine.tensorrt_engine(CHOICE, files, SIZE, 2)
    with monkeypatch.context() as other:
        other.setattr(ReplayedDevice, "name", "another card")
        refused(r"was built for another GPU \(the fake GPU, here another card\)")
    with monkeypatch.context() as other:
        other.setattr(Library, "__version__", "11.1.0")
        refused(r"was built for another tensorrt \(11.0.0, here 11.1.0\)")
    with monkeypatch.context() as other:
        other.setattr(torch, "__version__", "2.12.0")
        refused(r"was built for another torch \(\S+, here 2.12.0\)")
    with monkeypatch.context() as other:
        other.setitem(models.tensorrt.OPTIONS, "optimization_level", 5)
        refused(r"was built for another optimization_level \(3, here 5\)")
    where.path.write_bytes(b"foreign")
    refused("is damaged")
    where.path.with_suffix(".json").write_text("{}")
    refused("cannot be read")


def test_what_tensorrt_itself_refuses_is_one_line(files: ModelFiles, library: Library) -> None:
    where, _ = trt_engine.build(CHOICE, files, SIZE, 2, ReplayedDevice())
    where.save(b"foreign", {"streams": 2})
    with pytest.raises(
        EngineError, match=r"TensorRT 11.0.0 does not take the engine: run `roadmask"
    ):
        trt_engine.tensorrt_engine(CHOICE, files, SIZE, 2)
    where.save(str(files.folder).encode(), {"streams": 2})
    engine = trt_engine.tensorrt_engine(CHOICE, files, SIZE, 2)
    library.breaks = True
    pixels = np.zeros((1, 1, SIZE[0] * 3 // 2, SIZE[1]), np.uint8)
    with pytest.raises(EngineError, match=r"failed \(TensorRT could not run the network\) .* try"):
        engine.step(pixels, [0], [True])
    for what in ("the shape of state", "the memory of output0"):
        library.breaks, library.refuses = False, what
        with pytest.raises(EngineError, match="TensorRT does not take"):
            trt_engine.tensorrt_engine(CHOICE, files, SIZE, 2)


def test_compiling_builds_reads_back_and_checks(
    files: ModelFiles, library: Library, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    arguments = ["roadmask", "compile", str(files.folder), "--engine", "tensorrt", "--precision",
                 "f32", "--size", "64x96", "--streams", "2"]  # fmt: skip
    monkeypatch.setattr("pipeline.engines.check.LATENCY_SECONDS", 0.0)
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    shown = capsys.readouterr()
    assert Path(shown.out.strip()).name.endswith("-64x96-f32.engine")
    for words in ("engine tensorrt (TensorRT f32): asked for", "operators 240 of 240 (100.0%)",
                  "labels differ on 0.0", "frames of another seed", "1: "):  # fmt: skip
        assert words in shown.err


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_int8_and_fp8_are_calibrated_with_footage(
    precision: str, files: ModelFiles, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = EngineChoice("tensorrt", f"TensorRT {precision}", "test")
    device = ReplayedDevice()
    command = f"compile {files.folder} --engine tensorrt --precision {precision} --size 64x96"
    with pytest.raises(
        EngineError, match=rf"{precision} wants footage .*`roadmask {command} --calibrate FOOTAGE`"
    ):
        trt_engine.build(choice, files, SIZE, 2, device)
    frames = [np.full((96, 96), 128, np.uint8)] * 3
    with monkeypatch.context() as without:
        without.setattr("models.quantization.find_spec", lambda name: None)
        with pytest.raises(EngineError, match=r"not installed, or not what it imports: pip"):
            trt_engine.build(choice, files, SIZE, 2, device, frames)
    calibrated: list[object] = []

    def calibrate(step: StreamStep, asked: str, footage: list[np.ndarray]) -> int:
        weights = next(step.network.parameters())
        calibrated.extend((asked, weights.dtype, len(footage)))
        return len(footage)

    monkeypatch.setattr("models.quantization.calibrate", calibrate)
    where, _ = trt_engine.build(choice, files, SIZE, 2, device, frames)
    assert calibrated == [precision, torch.float16, 3]
    assert where.path.name.endswith(f"-64x96-{precision}.engine")
    first = check_fit(choice, files)
    assert first is not None
    trt_engine.build(choice, files, SIZE, 2, device, frames)
    assert check_fit(choice, files) == first
    trt_engine.build(choice, files, SIZE, 2, device, [frame + 1 for frame in frames])
    assert check_fit(choice, files) not in (first, None)  # other footage, other labels
    assert check_fit(CHOICE, files) is None
    where.forget()
    with pytest.raises(EngineError, match="there is no"):
        where.read()
    assert check_fit(choice, files) is None


def test_a_network_that_cannot_be_converted_is_one_line(
    files: ModelFiles, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> BuiltEngine:
        raise ConversionError("TensorRT does not take aten.linalg_qr")

    monkeypatch.setattr(models.tensorrt, "build_engine", fail)
    with pytest.raises(EngineError, match=r"does not take aten.linalg_qr: use --engine cuda"):
        trt_engine.build(CHOICE, files, SIZE, 2, ReplayedDevice())


def test_without_it_one_line_says_what_it_needs(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose_engine("tensorrt").runtime == "TensorRT f16"
    assert choose_engine("auto").runtime == "CUDA graphs f16"
    assert choose_engine("tensorrt", "int8").runtime == "TensorRT int8"
    with pytest.raises(EngineError, match=r"takes precision auto, f32, f16, bf16, got 'int8'"):
        choose_engine("cuda", "int8")
    with monkeypatch.context() as rtx:
        rtx.setattr(library, "_package_name", "tensorrt_rtx", raising=False)
        with pytest.raises(
            EngineError, match=r"TensorRT-RTX \(1.5\) has no INT8 convolutions; --pre"
        ):
            choose_engine("tensorrt", "int8")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (8, 6))
    with pytest.raises(EngineError, match=r"FP8 wants .* capability 8.9 or more, this one has 8.6"):
        choose_engine("tensorrt", "fp8")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    assert choose_engine("tensorrt", "fp8").runtime == "TensorRT fp8"

    def missing(name: str) -> None:
        raise Exception("libnvinfer.so is not there\nat all")

    for change, value, words in (
        ("import_module", missing, r"does not load \(libnvinfer.so is not there\): pip install"),
        ("find_spec", lambda name: name if name == "torch_tensorrt" else None, "own libraries"),
        ("find_spec", lambda name: None, r"torch_tensorrt is not installed: pip install 'roadmask"),
    ):
        monkeypatch.setattr(trt_engine, change, value)
        with pytest.raises(EngineError, match=words):
            choose_engine("tensorrt")
    monkeypatch.setattr(engines, "has_nvidia_driver", lambda: False)
    with pytest.raises(
        EngineError, match=r"no NVIDIA driver is loaded \(it needs an NVIDIA GPU and pip"
    ):
        choose_engine("tensorrt")
    choice = choose_engine("auto")
    assert choice.name == "cpu"
    assert choice.reason.startswith("no NVIDIA driver is loaded")
