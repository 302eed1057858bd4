"""The main job from end to end, through the command line as a user meets it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.actors import FusedActor, SegmenterActor
from pipeline.engines import EngineChoice
from pipeline.engines.counting import CountingEngine
from pipeline.errors import ConfigError, EngineError, ModelError, OutputError, PipelineError
from pipeline.metrics.status import FILE_NAME as STATUS_FILE
from pipeline.run import RunConfig, place, prepare, run, segment
from pipeline.sinks import OutputOptions
from pipeline.stages import Job, SourceReport
from tests import media
from tests.bench.memory import family

FRAMES = 21


def roadmask(*arguments: str | Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def read_labels(path: Path) -> np.ndarray:
    """uint8 [T, H, W] of a label video."""
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="gray") for f in container.decode(video=0)])


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of eight videos of different lengths and contents."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(8):
        media.write_moving_clip(folder / f"clip{number}.mp4", FRAMES + number, seed=number)
    return folder


def labels_of_run(tmp: Path, sources: list[Path], **settings: object) -> dict[str, np.ndarray]:
    config = RunConfig(
        tuple(map(str, sources)),
        tmp,
        OutputOptions(labels="mkv", color=False),
        **settings,  # type: ignore[arg-type]
    )
    for event in run(prepare(config)):
        if isinstance(event, SourceReport):
            assert event.error is None, event.error
    return {path.parent.name: read_labels(path) for path in tmp.glob("*/labels.mkv")}


@pytest.fixture(scope="module")
def counted_alone(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The counting engine's labels of each clip run alone, inline, a frame at a time."""
    found: dict[str, np.ndarray] = {}
    for clip in sorted(clips.iterdir()):
        out = tmp_path_factory.mktemp("alone")
        found |= labels_of_run(out, [clip], engine="counting", placement="inline", chunk=1)
    return found


@pytest.mark.parametrize("chunk", [1, 8])
@pytest.mark.parametrize("placement", ["inline", "fused", "spread"])
def test_state_is_carried_alike_everywhere(
    clips: Path, tmp_path: Path, counted_alone: dict[str, np.ndarray], placement: str, chunk: int
) -> None:
    """Eight streams at once, in chunks of 1 and 8, in one process and through Ray: each frame's count
    (its stream's steps) and checksum (of all frames before it) equal those of the stream alone."""
    found = labels_of_run(
        tmp_path, sorted(clips.iterdir()), engine="counting", placement=placement, chunk=chunk
    )
    assert found.keys() == counted_alone.keys()
    for name, labels in counted_alone.items():
        np.testing.assert_array_equal(found[name], labels, err_msg=name)
        np.testing.assert_array_equal(labels[:, -1, -1], np.arange(1, len(labels) + 1))


def test_the_real_network_labels_alike_everywhere(clips: Path, tmp_path: Path) -> None:
    """At least 99.99 % of pixels equal, of every stream; on a CPU all of them are."""
    sources, size = sorted(clips.iterdir()), (96, 128)
    alone = labels_of_run(
        tmp_path / "alone", sources[:1], placement="inline", chunk=1, size_hw=size
    )
    for placement, chunk, among in [("inline", 8, 1), ("fused", 8, 1), ("spread", 1, 8)]:
        found = labels_of_run(
            tmp_path / f"{placement}{chunk}", sources[:among],
            placement=placement, chunk=chunk, size_hw=size,
        )  # fmt: skip
        same = (found["clip0"] == alone["clip0"]).mean()
        assert same >= 0.9999, f"{placement}, chunks of {chunk}, among {among}: {same:.6f}"
    assert len(np.unique(alone["clip0"])) > 1


def test_memory_of_a_stream_shows_in_its_labels(clips: Path, tmp_path: Path) -> None:
    """The network does use its state: a frame's labels depend on the frames before it."""
    batches = list(segment(clips / "clip0.mp4", chunk=4))
    steps = np.concatenate([batch.steps for batch in batches])
    assert steps.tolist() == list(range(1, FRAMES + 1))
    tail = tmp_path / "tail.mp4"
    media.write_moving_clip(tail, FRAMES, seed=0, first=10)
    without = next(iter(segment(tail, chunk=1)))
    whole = np.concatenate([batch.labels for batch in batches])
    assert (whole[10] != without.labels[0]).any()


def test_a_run_leaves_what_the_design_says(clips: Path, tmp_path: Path) -> None:
    done = roadmask("run", clips / "clip3.mp4", "--out", tmp_path, "--overlay", "--inline", "--json",
                    "--size", "96x128")  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["frames"] == FRAMES + 3
    assert report["error"] is None
    folder = tmp_path / "clip3"
    assert sorted(path.name for path in folder.iterdir()) == [
        "color.mp4", "labels.mkv", "manifest.json", "overlay.mp4", "stats.jsonl",
    ]  # fmt: skip
    stats = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    assert [line["index"] for line in stats] == list(range(FRAMES + 3))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["engine"]["name"] == "cpu"
    assert manifest["engine"]["reason"]
    assert manifest["placement"]["name"] == "inline"
    assert len(manifest["model"]["weights_sha256"]) == 64
    assert f"{FRAMES + 3} frames in" in done.stderr


def test_many_kinds_of_sources_in_one_run(clips: Path, tmp_path: Path) -> None:
    """A folder, a glob, a file and a folder of images; labels as images by name."""
    images = tmp_path / "Bilder ä"
    media.write_images(images, ["eins", "zwei", "drei"])
    out = tmp_path / "out"
    done = roadmask("run", images, str(clips / "clip[12].mp4"), clips / "clip0.mp4", "--out", out,
                    "--engine", "counting", "--labels", "png", "--no-color", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    reports = {r["stream_id"]: r for r in map(json.loads, done.stdout.splitlines())}
    assert reports.keys() == {"Bilder ä", "clip0", "clip1", "clip2"}
    names = sorted(path.stem for path in (out / "Bilder ä" / "labels").iterdir())
    assert names == ["drei", "eins", "zwei"]
    assert len(list((out / "clip2" / "labels").iterdir())) == FRAMES + 2


def test_bad_sources_are_named_and_harm_no_other(clips: Path, tmp_path: Path) -> None:
    text, empty, out = tmp_path / "notes.mp4", tmp_path / "empty", tmp_path / "out"
    text.write_text("this is not a video\n" * 50)
    empty.mkdir()
    missing = tmp_path / "missing.mp4"
    done = roadmask("run", text, missing, clips / "clip0.mp4", empty, "--out", out, "--json",
                    "--engine", "counting")  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3
    for name in ("notes.mp4", "missing.mp4", "empty"):
        assert sum(name in line for line in errors) == 1, errors
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert [r["frames"] for r in reports if r["error"] is None] == [FRAMES]
    assert (out / "clip0" / "labels.mkv").exists()
    strays = [p for p in out.rglob("*") if p.is_file() and p.parent.name != "clip0"]
    assert strays == [out / STATUS_FILE]  # how the run stands, and how it ended


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nonesuch"], "unknown model 'nonesuch': give a shipped model (roadnet)"),
        (
            ["--engine", "abacus"],
            "unknown engine 'abacus': choose one of auto, cpu, cuda, tensorrt",
        ),
        (["--size", "360"], "--size must be HEIGHTxWIDTH in pixels, such as 360x640, got '360'"),
        (["--size", "100x100"], "size must be multiples of 8 from 32 up, height x width"),
        (["--labels", "gif"], "gif"),
        (["--placement", "nowhere"], "unknown placement 'nowhere'"),
        (["--hwaccel", "abacus"], "unknown --hwaccel 'abacus': this FFmpeg decodes on cuda"),
        (["--inline", "--address", "auto"], "cannot be combined with --address"),
        (["--split", "60"], "--split and --segmenters are for jobs over a cluster or buckets"),
        (
            ["--inline", "--placement", "spread"],
            "--inline and --placement spread exclude each other",
        ),
        (["--address", "127.0.0.1:1"], "no Ray cluster at '127.0.0.1:1'"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(
    clips: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = roadmask("run", clips / "clip0.mp4", "--out", tmp_path / "out", *arguments)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert message in errors[0]
    assert "Traceback" not in done.stderr


def test_output_that_cannot_be_written_is_one_line(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = roadmask("run", clips / "clip0.mp4", "--out", tmp_path / "file" / "out")
    assert done.returncode == 2
    assert f"cannot write to output folder {tmp_path / 'file' / 'out'}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_source_is_never_overwritten(clips: Path, tmp_path: Path) -> None:
    """The results of `color/color.mp4` would go to `color/` and replace it."""
    source = tmp_path / "color" / "color.mp4"
    source.parent.mkdir()
    source.write_bytes((clips / "clip0.mp4").read_bytes())
    before = source.read_bytes()
    done = roadmask("run", source, "--out", tmp_path, "--engine", "counting", "--inline")
    assert done.returncode == 1
    assert "where it lies itself: give another --out" in done.stderr
    assert source.read_bytes() == before
    assert list(source.parent.iterdir()) == [source]


def test_terminate_finishes_files_too(tmp_path: Path) -> None:
    """SIGTERM, as `docker stop` and `kill` send it, through Ray."""
    _interrupt(tmp_path, "fused", signal.SIGTERM)


def test_weights_that_do_not_fit_are_one_line(clips: Path, tmp_path: Path) -> None:
    from models.registry import build, save
    from models.spec import Spec

    spec = Spec("small", options={"width": 16, "memory": 16})
    save(tmp_path / "m", build(spec), Spec("small", options={"width": 32, "memory": 16}))
    done = roadmask(
        "run", clips / "clip0.mp4", "--out", tmp_path / "out", "--model", tmp_path / "m"
    )
    assert done.returncode in (1, 2)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert "weights.safetensors does not fit spec.json" in errors[0]
    assert "must be" in errors[0]
    assert "Traceback" not in done.stderr
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("placement", ["inline", "fused", "spread"])
def test_ctrl_c_finishes_what_is_decoded(tmp_path: Path, placement: str) -> None:
    _interrupt(tmp_path, placement, signal.SIGINT)


def _interrupt(tmp_path: Path, placement: str, how: signal.Signals) -> None:
    """Send a signal to a run that has begun to write: what it leaves is whole, as far as it goes."""
    clip, out = tmp_path / "long.mp4", tmp_path / "out"
    media.write_moving_clip(clip, 3000, seed=1)
    command = [sys.executable, "-m", "pipeline.cli", "run", str(clip),
               "--out", str(out), "--engine", "cpu", "--size", "96x128", "--json",
               *(["--inline"] if placement == "inline" else ["--placement", placement])]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    part = out / "long" / ".labels.mkv.part"
    deadline = time.monotonic() + 180  # for Ray, the network and the first group of frames
    while not (part.exists() and part.stat().st_size > 20_000):
        assert time.monotonic() < deadline, "the run never began to write"
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.kill(process.pid, how)
    stdout, stderr = process.communicate(timeout=180)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    report = json.loads(stdout)
    assert report["interrupted"]
    frames = report["frames"]
    assert 0 < frames < 3000
    assert len(read_labels(out / "long" / "labels.mkv")) == frames
    with av.open(str(out / "long" / "color.mp4")) as color:
        assert sum(1 for _ in color.decode(video=0)) == frames
    assert json.loads((out / "long" / "manifest.json").read_text())["interrupted"] is True
    assert not list(out.rglob("*.part"))


@pytest.mark.parametrize(
    ("engine", "sources", "cores", "found"),
    [("cpu", 100, 4, ("fused", 4)), ("cpu", 1, 4, ("fused", 1)), ("cuda", 1, 4, ("fused", 1)),
     ("cuda", 100, 4, ("spread", 8)), ("tensorrt", 100, 16, ("spread", 16)),
     ("cuda", 100, 96, ("spread", 32)), ("cuda", 3, 96, ("spread", 3))],
)  # fmt: skip
def test_streams_meet_on_a_gpu_as_many_as_cores_can_decode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, sources: int, cores: int,
    found: tuple[str, int],
) -> None:  # fmt: skip
    monkeypatch.setattr("pipeline.run.available_cores", lambda: cores)
    config = RunConfig(("a.mp4",), tmp_path, OutputOptions(), engine=engine)
    placement = place(config, EngineChoice(engine, "any", "asked for"), sources)
    assert (placement.name, placement.lanes) == found


def test_frames_that_stay_on_a_gpu_share_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.run.available_cores", lambda: 16)
    config = RunConfig(("a.mp4",), tmp_path, OutputOptions(), hwaccel="cuda")
    cuda, cpu = (EngineChoice(name, "any", "asked for") for name in ("cuda", "cpu"))
    placement = place(config, cuda, 100)
    assert (placement.name, placement.lanes, placement.together) == ("fused", 16, 16)
    assert "stay" in placement.reason
    assert place(replace(config, placement="spread"), cuda, 100).name == "spread"
    assert place(config, cpu, 100) == place(replace(config, hwaccel=None), cpu, 100)


class LosesItsDevice:
    """An actor whose first process loses its device in the first step."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)  # type: ignore[call-arg]
        (job.out / f"process-{os.getpid()}").touch()
        marker = job.out / "lost"
        if marker.exists():
            return
        marker.touch()

        def step(*_: object) -> np.ndarray:
            error = EngineError("the GPU failed (lost)")
            error.device_lost = True
            raise error

        CountingEngine.step = step  # type: ignore[assignment, method-assign]  # in that process


@pytest.mark.parametrize(
    ("placement", "actor", "lanes"),
    [("fused", FusedActor, 1), ("fused", FusedActor, 3), ("spread", SegmenterActor, 1)],
)
def test_after_a_lost_device_sources_go_on_in_a_new_process(
    clips: Path, tmp_path: Path, counted_alone: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch, placement: str, actor: type, lanes: int,
) -> None:  # fmt: skip
    """Those that shared it go on together, and none of them is begun again and again meanwhile."""
    monkeypatch.setattr("pipeline.run.SPREAD_LANES", 1)
    monkeypatch.setattr("pipeline.run.available_cores", lambda: lanes)
    monkeypatch.setattr(EngineChoice, "on_gpu", True)  # here, not in the actors
    monkeypatch.setattr("pipeline.restarts.MOST_DEATHS", 1)
    losing = type(actor.__name__, (LosesItsDevice, actor), {})
    monkeypatch.setattr(f"pipeline.cluster.lanes.{actor.__name__}", losing)
    names = [f"clip{number}" for number in range(4)]
    sources = tuple(str(clips / f"{name}.mp4") for name in names)
    config = RunConfig(sources, tmp_path, OutputOptions(), engine="counting", placement=placement)
    found = [event for event in run(prepare(config)) if isinstance(event, SourceReport)]
    errors = {report.stream_id: report.error for report in found}
    assert errors == dict.fromkeys(names)
    assert len(list(tmp_path.glob("process-*"))) == 2
    for name in names:
        labels = read_labels(tmp_path / name / "labels.mkv")
        np.testing.assert_array_equal(labels, counted_alone[name])


@pytest.mark.parametrize(
    ("placement", "actor"),
    [("fused", "FusedActor"), ("spread", "DecoderActor"), ("spread", "SegmenterActor"),
     ("spread", "SinkActor")],
)  # fmt: skip
def test_a_killed_process_costs_no_source(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, placement: str, actor: str
) -> None:
    """Its source goes on, and those after it are done, by what takes the dead one's place."""
    monkeypatch.setattr("pipeline.run.SPREAD_LANES", 1)
    monkeypatch.setattr("pipeline.run.available_cores", lambda: 1)  # one fused source at a time
    long = tmp_path / "long.mp4"
    media.write_moving_clip(long, 3000, seed=1)
    config = RunConfig(
        (str(long), str(clips / "clip0.mp4"), str(clips / "clip1.mp4")),
        tmp_path / "out", OutputOptions(), engine="cpu", size_hw=(96, 128), placement=placement,
    )  # fmt: skip
    reports, killed = {}, False
    for event in run(prepare(config)):
        if isinstance(event, SourceReport):
            reports[event.stream_id] = event
        elif event.stream_id == "long" and not killed:
            killed = _kill_worker(actor)
    assert killed
    for name, frames in (("long", 3000), ("clip0", FRAMES), ("clip1", FRAMES + 1)):
        assert reports[name].error is None
        assert len(read_labels(tmp_path / "out" / name / "labels.mkv")) == frames


def test_a_killed_process_that_sources_shared_fails_none_of_them(
    clips: Path,
    tmp_path: Path,
    counted_alone: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Any of them may have been its death: each is begun again, in a process of its own."""
    monkeypatch.setattr("pipeline.run.available_cores", lambda: 3)
    long = tmp_path / "long.mp4"
    media.write_moving_clip(long, 1500, seed=1)
    plan = prepare(
        RunConfig(
            (str(long), str(clips / "clip0.mp4"), str(clips / "clip1.mp4")),
            tmp_path / "out", OutputOptions(), engine="counting",
        )
    )  # fmt: skip
    assert (plan.placement.name, plan.placement.together) == ("fused", 3)
    reports, killed = {}, False
    for event in run(plan):
        if isinstance(event, SourceReport):
            assert event.stream_id not in reports
            reports[event.stream_id] = event
        elif event.stream_id == "long" and not killed:
            killed = _kill_worker("FusedActor")
    assert killed
    assert {name: report.error for name, report in reports.items()} == dict.fromkeys(reports)
    assert len(read_labels(tmp_path / "out" / "long" / "labels.mkv")) == 1500
    for name in ("clip0", "clip1"):
        found = read_labels(tmp_path / "out" / name / "labels.mkv")
        np.testing.assert_array_equal(found, counted_alone[name])


def test_nothing_but_json_is_on_standard_output_when_a_process_dies(tmp_path: Path) -> None:
    """Ray prints notices of dead workers there; scripts read it."""
    clip, out = tmp_path / "long.mp4", tmp_path / "out"
    media.write_moving_clip(clip, 3000, seed=1)
    command = [sys.executable, "-m", "pipeline.cli", "run", str(clip), "--out", str(out), "--json",
               "--size", "96x128", "--placement", "fused"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    part, deadline = out / "long" / ".labels.mkv.part", time.monotonic() + 180
    while not (part.exists() and part.stat().st_size > 20_000):
        assert time.monotonic() < deadline, "the run never began to write"
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    assert _kill_worker("FusedActor", process.pid)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    report = json.loads(stdout)
    assert (report["frames"], report["error"]) == (3000, None)


def _kill_worker(actor: str, root: int | None = None) -> bool:
    """Kill the processes of one kind of actor that a process (by default this one) has started."""
    found = False
    for pid in family(root or os.getpid()):
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if title.startswith(f"ray::{actor}".encode()):
            os.kill(pid, signal.SIGKILL)
            found = True
    return found


def test_python_gets_labels_in_three_lines(clips: Path) -> None:
    total = sum(len(batch) for batch in segment(clips / "clip1.mp4", engine="counting"))
    assert total == FRAMES + 1
    with pytest.raises(PipelineError, match=r"missing\.mp4"):
        next(iter(segment("missing.mp4")))


def test_what_is_asked_is_checked_before_anything_runs(tmp_path: Path) -> None:
    for error, settings in [
        (ConfigError, {"chunk": 0}),
        (ModelError, {"model": "nonesuch"}),
        (EngineError, {"engine": "tensorrt"}),
        (EngineError, {"engine": "abacus"}),
    ]:
        with pytest.raises(error):
            prepare(RunConfig(("x.mp4",), tmp_path, OutputOptions(), **settings))  # type: ignore[arg-type]
    with pytest.raises(OutputError):
        prepare(RunConfig(("x.mp4",), Path("/proc/nowhere"), OutputOptions()))


def test_help_imports_nothing_heavy() -> None:
    code = ("import sys; from typer.testing import CliRunner; from pipeline.cli import app;"
            "assert CliRunner().invoke(app, ['--help']).exit_code == 0;"
            "heavy = {'torch', 'ray', 'cv2', 'av', 'openvino', 'numpy'} & set(sys.modules);"
            "assert not heavy, heavy")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_run_does_not_import_torch_or_ray_before_it_must(clips: Path, tmp_path: Path) -> None:
    code = ("import sys; from pathlib import Path; from pipeline.run import *;"
            f"prepare(RunConfig(({str(clips / 'clip0.mp4')!r},), Path({str(tmp_path)!r}),"
            "OutputOptions()));"
            "heavy = {'torch', 'ray'} & set(sys.modules); assert not heavy, heavy")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_readme_s_three_lines_work_in_a_fresh_interpreter() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
    snippet = re.search(r"```python\n(from pipeline import segment.*?)```", readme, re.DOTALL)
    assert snippet
    code = snippet[1] + "    break\n"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.stdout.split()[:1] == ["0"], done.stderr
