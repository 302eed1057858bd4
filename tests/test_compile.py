"""`roadmask compile`: what it builds is read back and held against float32."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from models.registry import save
from models.spec import ModelFiles
from pipeline import engines
from pipeline.cli import main
from pipeline.engines import EngineChoice, choose_engine, inductor, with_kernels
from pipeline.engines.check import Findings, check, ensure, latencies_ms, seeded_frames
from pipeline.engines.counting import CountingEngine
from pipeline.engines.cuda import cuda_engine
from pipeline.engines.eager import EagerEngine
from pipeline.errors import EngineError
from tests.devices import FakeDevice
from tests.networks import SIZE, made, spec_of

PLAIN = EngineChoice("cpu", "torch float32", "test", 1)
CUDA = EngineChoice("cuda", "CUDA graphs f32", "test")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return save(tmp_path_factory.mktemp("model"), made("RoadNet"), spec_of("RoadNet"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROADMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pipeline.engines.check.LATENCY_SECONDS", 0.0)
    return tmp_path / "cache"


def roadmask(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["roadmask", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_cpu_engine_is_converted_kept_and_checked(
    files: ModelFiles, cache: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    status = roadmask(monkeypatch, "compile", files.folder, "--precision", "f32", "--engine", "cpu",
                      "--size", "40x72")  # fmt: skip
    shown = capsys.readouterr()
    assert status == 0, shown.err
    assert Path(shown.out.strip()).parent == cache
    lines = shown.err.splitlines()
    assert lines[0].startswith("engine cpu (OpenVINO f32): asked for")
    taken, operators = (int(word) for word in lines[1].split()[1::2][:2])
    assert taken == operators > 100
    assert "100.0%" in lines[1]
    assert "MB, 40x72" in lines[2]
    assert "labels differ on 0." in lines[3]
    assert "at most 0.50%" in lines[3]
    assert "frames of another seed" in lines[4]
    assert lines[5].startswith("latency, ms a step of 1 frame: 1: ")


def test_int8_is_made_first_where_there_is_footage_and_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_from = []
    monkeypatch.setattr("pipeline.compile.make_int8", lambda *given: made_from.append(given))
    status = roadmask(monkeypatch, "compile", "roadnet", "--calibrate", "a", "--calibrate", "b",
                      "--frames", 20, "--size", "96x160")  # fmt: skip
    shown = capsys.readouterr()
    assert status == 0, shown.err
    assert made_from == [("roadnet", ("a", "b"), 20, (96, 160))]
    assert shown.out.strip().endswith("roadnet/int8.xml")
    assert "engine cpu (OpenVINO int8): asked for" in shown.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--calibrate", "x", "--engine", "cuda"], "--calibrate makes int8 for --engine cpu, int8 or fp8"),
     (["--calibrate", "x", "--precision", "fp8"], "--calibrate makes int8 for --engine cpu, int8 or"),
     (["--calibrate", "x", "--engine", "tensorrt", "--precision", "f16"], "int8 or fp8 for --engine ten"),
     (["--engine", "cpu", "--precision", "f16"], "'f16' is for GPUs: a CPU takes auto, f32, bf16, int8"),
     (["--size", "41x72"], "size must be multiples of 8"), (["--precision", "f12"], "choose one of"),
     (["--precision", "int8", "--engine", "cpu"], "holds no int8.xml: make it with `roadmask compile")],
)  # fmt: skip
def test_what_cannot_be_compiled_is_one_line(
    arguments: list[str], words: str, files: ModelFiles, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert roadmask(monkeypatch, "compile", files.folder, *arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert words in shown.err
    assert shown.err.count("\n") == 1


class Leaking(EagerEngine):
    """Lets the streams of a batch see each other's memory."""

    def step(self, frames, slots, reset):  # type: ignore[no-untyped-def]
        apart = [
            super(Leaking, self).step(frames[at : at + 1], [0], [reset[0] and at == 0])
            for at in range(len(slots))
        ]
        return np.concatenate(apart)


class Constant(CountingEngine):
    """Does not look."""

    def step(self, frames, slots, reset):  # type: ignore[no-untyped-def]
        return np.zeros((*frames.shape[:2], *self.model_hw), np.uint8)


def test_engines_that_are_not_right_are_found_out(files: ModelFiles) -> None:
    plain = EagerEngine(PLAIN, files, SIZE, 2)
    ensure(check(EagerEngine(PLAIN, files, SIZE, 2), plain, SIZE), "f32")
    leaking = Leaking(PLAIN, files, SIZE, 2)
    leaking.batches = True
    with pytest.raises(EngineError, match="labels of the same frames differ between two slots on"):
        ensure(check(leaking, plain, SIZE), "f32")
    other = check(CountingEngine(SIZE, 2), Constant(SIZE, 2), SIZE)
    with pytest.raises(
        EngineError, match=r"labels differ from float32's on \d+\.\d+% of the pixels"
    ):
        ensure(other, "f32")
    same = check(Constant(SIZE, 2), Constant(SIZE, 2), SIZE)
    with pytest.raises(EngineError, match="same labels and states for frames of another seed"):
        ensure(same, "f32")
    with pytest.raises(
        EngineError, match=r"states are 0.5000 off float32's, at most 0.002 is right"
    ):
        ensure(Findings(0, 0.5, 0, 1, 1), "f32")
    with pytest.raises(EngineError, match="states are nan off"):
        ensure(Findings(0, float("nan"), 0, 1, 1), "f32")


def test_frames_of_a_seed_are_the_same_and_of_another_are_not() -> None:
    first = seeded_frames(1, SIZE)
    assert first.shape == (1, 4, SIZE[0] * 3 // 2, SIZE[1])
    np.testing.assert_array_equal(first, seeded_frames(1, SIZE))
    assert (first != seeded_frames(2, SIZE)).mean() > 0.5


def test_latency_is_given_for_each_number_of_streams() -> None:
    found = latencies_ms(CountingEngine(SIZE, 4), SIZE, [1, 4])
    assert list(found) == [1, 4]
    assert min(found.values()) > 0


class ReplayedDevice(FakeDevice):
    """Its graphs run what was captured again: what compiled code does can't be recorded."""

    def capture(self, stream, body):  # type: ignore[no-untyped-def]
        stream.run(body)
        stream.record().synchronize()
        return body


def test_kernels_for_the_cuda_engine_are_compiled_loaded_and_checked(
    files: ModelFiles, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the same compiler, for the CPU."""
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler")
    monkeypatch.setattr(engines, "_gpu_problem", lambda name, precision: "")
    monkeypatch.setattr("pipeline.engines.cuda.CudaDevice", ReplayedDevice)
    monkeypatch.setattr("pipeline.engines.build.CudaDevice", ReplayedDevice)
    assert choose_engine("cuda").runtime == "CUDA graphs f16"
    assert inductor.load(CUDA, files, SIZE, FakeDevice()) is None
    assert with_kernels(CUDA, files).reason.endswith(
        "`roadmask compile --engine cuda` has made none"
    )
    status = roadmask(monkeypatch, "compile", files.folder, "--engine", "cuda", "--precision", "f32",
                      "--size", "40x72", "--streams", "3")  # fmt: skip
    shown = capsys.readouterr()
    assert status == 0, shown.err
    for words in ("engine cuda (CUDA graphs f32): asked for", "(100.0%)", "labels differ on 0.0",
                  "1: ", "2: ", "3: "):  # fmt: skip
        assert words in shown.err
    found = inductor.load(CUDA, files, SIZE, FakeDevice())
    assert found is not None
    assert found[1] == 3
    assert with_kernels(CUDA, files).reason.endswith("; kernels were compiled for 40x72")
    # Those of another GPU are passed over for ready-made ones.
    monkeypatch.setattr(FakeDevice, "name", "another card")
    assert inductor.load(CUDA, files, SIZE, FakeDevice()) is None
    cuda_engine(CUDA, files, SIZE, 2).step(seeded_frames(1, SIZE), [0], [True])


def test_a_compiler_that_fails_is_one_line(
    files: ModelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no such compiler\nand much more")

    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", fail)
    with pytest.raises(
        EngineError, match=r"compiler failed \(no such compiler\); it needs a C\+\+"
    ) as caught:
        inductor.build(CUDA, files, SIZE, 2, FakeDevice())
    assert "\n" not in str(caught.value)
