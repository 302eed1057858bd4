"""The engines: chosen for a reason, equal however frames come, cached, and silent."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from models.registry import build, save
from models.spec import ModelFiles, Spec
from pipeline.engines import Engine, EngineChoice, choose_engine, engine_factory
from pipeline.errors import EngineError

SIZE = (64, 96)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    torch.manual_seed(1)
    spec = Spec("tiny", options={"width": 16, "memory": 16})
    return save(tmp_path_factory.mktemp("model"), build(spec).eval(), spec)


def engine(files: ModelFiles, runtime: str, slots: int = 3) -> Engine:
    choice = EngineChoice("cpu", runtime, "test", 1)
    return engine_factory(choice, files, files.spec(), slots)(SIZE)


def frames(streams: int, times: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(16, 235, (streams, times, SIZE[0] * 3 // 2, SIZE[1]), dtype=np.uint8)


@pytest.mark.parametrize("runtime", ["OpenVINO f32", "torch float32"])
def test_batches_and_chunks_do_not_change_labels(files: ModelFiles, runtime: str) -> None:
    pixels = frames(2, 6)
    together, apart = engine(files, runtime), engine(files, runtime)
    whole = together.step(pixels, [2, 0], [True, True])
    assert whole.shape == (2, 6, *SIZE)
    assert whole.dtype == np.uint8
    for stream, slot in enumerate((1, 2)):
        for time in range(6):
            one = apart.step(pixels[stream : stream + 1, time : time + 1], [slot], [time == 0])
            agree = (one[0, 0] == whole[stream, time]).mean()
            assert agree >= 0.9999


@pytest.mark.parametrize("runtime", ["OpenVINO f32", "torch float32"])
def test_states_can_be_read_written_and_reset(files: ModelFiles, runtime: str) -> None:
    pixels, one = frames(1, 3), engine(files, runtime)
    first = one.step(pixels, [0], [True])
    saved = one.read_state(0)
    assert saved.dtype == np.float32
    after = one.step(pixels, [0], [False])
    assert (after != first).any(), "the state must matter"
    one.write_state(1, saved)
    np.testing.assert_array_equal(one.step(pixels, [1], [False]), after)
    np.testing.assert_array_equal(one.step(pixels, [1], [True]), first)
    untouched = one.read_state(2)
    assert not untouched.any()


def test_the_engines_agree(files: ModelFiles) -> None:
    pixels = frames(1, 4)
    found = [engine(files, runtime).step(pixels, [0], [True])
             for runtime in ("OpenVINO f32", "torch float32")]  # fmt: skip
    assert (found[0] == found[1]).mean() > 0.999


def test_a_converted_network_is_kept_and_a_damaged_one_made_anew(
    files: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROADMASK_CACHE", str(tmp_path / "cache"))
    pixels = frames(1, 2)
    first = engine(files, "OpenVINO f32").step(pixels, [0], [True])
    kept = list((tmp_path / "cache").iterdir())
    assert sorted(path.suffix for path in kept) == [".bin", ".xml"]
    kept[0].with_suffix(".xml").write_text("damaged")
    np.testing.assert_array_equal(engine(files, "OpenVINO f32").step(pixels, [0], [True]), first)
    monkeypatch.setenv("ROADMASK_CACHE", "/proc/nowhere")
    np.testing.assert_array_equal(engine(files, "OpenVINO f32").step(pixels, [0], [True]), first)


def test_converting_loads_no_telemetry(files: ModelFiles) -> None:
    code = (
        "import sys; from pathlib import Path; from models.spec import ModelFiles;"
        "from pipeline.engines.cpu import _convert;"
        f"_convert(ModelFiles(Path({str(files.folder)!r})), (64, 96));"
        "import openvino.tools.ovc.telemetry_utils as t; print(t.tm.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split()[-1:] == ["openvino.tools.ovc.telemetry_stub"], done.stderr


def test_the_choice_says_why() -> None:
    choice = choose_engine("auto")
    assert choice.name in ("cpu", "cuda")
    assert choice.reason
    json.dumps(choice.__dict__)
    with pytest.raises(EngineError, match="choose one of auto, cpu, cuda, tensorrt"):
        choose_engine("abacus")
    if not torch.cuda.is_available():
        with pytest.raises(
            EngineError, match=r"engine 'cuda' cannot run here: .*; use --engine cpu"
        ):
            choose_engine("cuda")


def test_without_openvino_torch_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.engines.cpu.find_spec", lambda name: None)
    choice = choose_engine("cpu")
    assert choice.runtime == "torch float32"
    assert "OpenVINO is not installed" in choice.reason
