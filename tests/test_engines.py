"""The engines: chosen for a reason, equal however frames come, cached, and silent."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from models.export import FIXED_KERNELS, core, int8_path
from models.registry import build, load, save
from models.spec import ModelFiles, Spec
from models.step import StreamStep
from pipeline.compile import make_int8, thinned
from pipeline.engines import Engine, EngineChoice, check_fit, choose_engine, engine_factory
from pipeline.errors import ConfigError, EngineError
from pipeline.run import segment
from pipeline.settings import available_cores
from tests.drives import TINY_ROADNET
from tests.media import write_images

SIZE = (64, 96)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    torch.manual_seed(1)
    # With attention, which the default lacks: engines must take it too.
    spec = Spec("tiny", options={**TINY_ROADNET, "attention": True})
    network = build(spec).train()
    for _ in range(20):  # batch norm learns its scale, so that every layer has a say in the labels
        network.clip(torch.rand(2, 2, 3, *SIZE) * 255)
    return save(tmp_path_factory.mktemp("model"), network.eval(), spec)


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
        "from models.export import convert;"
        f"convert(ModelFiles(Path({str(files.folder)!r})));"
        "import openvino.tools.ovc.telemetry_utils as t; print(t.tm.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split()[-1:] == ["openvino.tools.ovc.telemetry_stub"], done.stderr


SIDE_BY_SIDE = """
import re, sys, time
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
import numpy as np
from models.spec import ModelFiles
from pipeline.engines import EngineChoice, engine_factory

files = ModelFiles(Path(sys.argv[1]))
make = engine_factory(EngineChoice("cpu", "OpenVINO f32", "test", threads=1), files, files.spec(), 1)
engines = [make((96, 160)) for _ in range(2)]
pixels, over, seen = np.zeros((1, 1, 144, 160), np.uint8), Event(), set()

def work(engine):
    while not over.is_set():
        engine.step(pixels, [0], [False])

threads = [Thread(target=work, args=(engine,)) for engine in engines]
for thread in threads:
    thread.start()
for _ in range(100):
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has just ended
            seen.add(re.findall("Cpus_allowed:\\t(.*)", (task / "status").read_text())[0])
    time.sleep(0.01)
over.set()
print(len(seen))
"""


@pytest.mark.skipif(
    not Path("/proc/self/task").is_dir() or available_cores() < 2,
    reason="sees by /proc which of several cores a thread may use",
)
def test_engines_side_by_side_do_not_share_a_core(files: ModelFiles) -> None:
    """OpenVINO binds the threads of each engine to the first cores, unless it is told not to."""
    command = [sys.executable, "-c", SIDE_BY_SIDE, str(files.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "1", "a thread is bound to fewer cores than the process"


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


def test_a_converted_network_serves_every_size(files: ModelFiles, tmp_path: Path) -> None:
    torch_step = StreamStep(load(str(files.folder))[0])
    for height, width in ((64, 96), (40, 72), (96, 64)):
        choice = EngineChoice("cpu", "OpenVINO f32", "test", 1)
        found = engine_factory(choice, files, files.spec(), 1)((height, width))
        planes = np.random.default_rng(2).integers(
            16, 235, (1, 1, height * 3 // 2, width), np.uint8
        )
        state = torch.zeros(1, *found.read_state(0).shape)
        with torch.inference_mode():
            expected, after = torch_step(torch.from_numpy(planes[0]), state)
        labels = found.step(planes, [0], [True])[0]
        assert (labels == expected.numpy()).mean() > 0.999
        np.testing.assert_allclose(found.read_state(0), after[0].numpy(), atol=1e-4)


@pytest.fixture(scope="module")
def with_int8(files: ModelFiles) -> ModelFiles:
    pytest.importorskip("nncf", reason="making an INT8 model needs the extra int8")
    folder = files.folder.parent / "frames"
    write_images(folder, ["a", "b", "c"])
    made = make_int8(str(files.folder), (str(folder),), frames=2, size_hw=SIZE)
    assert made == int8_path(files)
    return files


def test_an_int8_network_is_made_and_is_nearly_the_float_one(with_int8: ModelFiles) -> None:
    pixels = np.full((1, 1, SIZE[0] * 3 // 2, SIZE[1]), 90, np.uint8)  # as it was calibrated with
    states = []
    for precision in ("int8", "f32"):
        one = engine(with_int8, f"OpenVINO {precision}")
        one.step(pixels, [0], [True])
        states.append(one.read_state(0).ravel())
    assert 0.9 < np.corrcoef(states)[0, 1] < 0.999999
    operators = core().read_model(int8_path(with_int8)).get_ops()
    kinds = [op.get_type_name() for op in operators]
    assert kinds.count("FakeQuantize") > 20
    averages = [
        op for op, kind in zip(operators, kinds, strict=True)
        if kind == "AvgPool"
        or ("Convolution" in kind and re.fullmatch(FIXED_KERNELS, op.get_friendly_name()))
    ]  # fmt: skip
    assert len(averages) > 8  # four of the step's, the network's, its motion's
    quantized = [
        op for op in averages if op.input_value(0).get_node().get_type_name() == "FakeQuantize"
    ]
    assert quantized == []
    facts = json.loads(int8_path(with_int8).with_suffix(".json").read_text())
    assert facts["calibrated_with"].startswith("2 frames of")


def test_int8_of_other_weights_is_refused(with_int8: ModelFiles, tmp_path: Path) -> None:
    choice = choose_engine("cpu", "int8")
    check_fit(choice, with_int8)
    other = shutil.copytree(with_int8.folder, tmp_path / "other")
    spec = with_int8.spec()
    save(other, build(spec), spec)
    made = "int8.xml was made of other weights or by another version: make it with `roadmask"
    with pytest.raises(EngineError, match=made):
        check_fit(choice, ModelFiles(other))
    again = shutil.copytree(with_int8.folder, tmp_path / "again")
    with (again / "int8.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(EngineError, match=r"int8.xml or its .bin is damaged: make it with"):
        check_fit(choice, ModelFiles(again))
    int8_path(ModelFiles(other)).unlink()
    with pytest.raises(EngineError, match=r"holds no int8.xml: make it with `roadmask compile"):
        check_fit(choice, ModelFiles(other))


def test_the_shipped_int8_network_gives_nearly_the_float_labels() -> None:
    """Of these weights and this code: at another size than it was calibrated at."""
    clip = Path(__file__).parents[1] / "sample_videos" / "city_drive.mp4"
    found = []
    for precision in ("int8", "f32"):
        with closing(segment(clip, precision=precision, chunk=4)) as batches:
            found.append(next(batches).labels)
    agree = (found[0] == found[1]).mean()
    assert 0.93 < agree < 1


def test_precisions_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="choose one of auto, f32, f16, bf16, int8"):
        choose_engine("cpu", "f12")
    assert choose_engine("cpu", "f32").runtime.endswith("32")
    monkeypatch.setattr("pipeline.engines.cpu._has_bf16", lambda: False)
    with pytest.raises(EngineError, match="'bf16' cannot be had"):
        choose_engine("cpu", "bf16")
    assert choose_engine("cpu").precision == "f32"
    monkeypatch.setattr("pipeline.engines.cpu.find_spec", lambda name: None)
    with pytest.raises(EngineError, match="needs OpenVINO, which is not installed"):
        choose_engine("cpu", "int8")


def test_calibration_frames_are_spread_evenly(files: ModelFiles, tmp_path: Path) -> None:
    numbers = [np.array(n) for n in range(1000)]
    kept = [int(n) for n in thinned(iter(numbers), 7)]
    assert len(kept) == 7
    steps = np.diff(kept)
    assert kept[0] == 0
    assert 100 < steps.min() <= steps.max() < 300
    assert len(thinned(iter(numbers[:5]), 7)) == 5
    # Many come in runs of eight that were filmed in a row.
    runs = np.array([int(n) for n in thinned(iter(numbers), 80)]).reshape(10, 8)
    np.testing.assert_array_equal(runs - runs[:, :1], np.tile(np.arange(8), (10, 1)))
    gaps = np.diff(runs[:, 0])
    assert runs[0, 0] == 0
    assert 48 < gaps.min() <= gaps.max() < 152


def test_without_nncf_one_line_says_what_to_install(
    files: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.export.find_spec", lambda name: None if name == "nncf" else name)
    write_images(tmp_path / "frames", ["a", "b"])
    with pytest.raises(ConfigError, match=r"pip install 'roadmask\[int8\]'"):
        make_int8(str(files.folder), (str(tmp_path / "frames"),), frames=2)


def test_first_inferences_of_many_threads_at_once() -> None:
    """In a process of its own, for only the first ones of a process ever wait for each other."""
    program = """
import faulthandler, sys, threading
faulthandler.dump_traceback_later(60, exit=True)
sys.setswitchinterval(1e-6)  # nearly each time, instead of once in many thousand runs
import numpy as np
from models.export import core, openvino
ops, requests = openvino().opset13, []
for _ in range(4):
    values = ops.parameter([1, 64, 64], np.float32)
    model = openvino().Model([ops.relu(values)], [values])
    requests.append(core().compile_model(model, "CPU").create_infer_request())
at_once = threading.Barrier(4)
def infer(request):
    at_once.wait()
    request.infer([np.zeros((1, 64, 64), np.float32)], share_inputs=True, share_outputs=True)
threads = [threading.Thread(target=infer, args=(request,)) for request in requests]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
