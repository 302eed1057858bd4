"""The benchmark's arithmetic, and that it runs; its figures are nobody's test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from models.registry import build, load, save
from models.spec import Spec
from models.step import FrameStep
from pipeline.bench import compare, sweeps, table
from pipeline.bench.clips import copies, cut, scaled
from pipeline.bench.loops import export_onnx, onnx_loop, plain_loop, reader_model_writer_loop
from pipeline.bench.measure import Contender, Cost, Track, cpu_seconds, family, measure, rate
from pipeline.bench.stages import bound_fps, keep, stage_shares, stages_alone, transfers
from pipeline.engines.counting import CountingEngine
from pipeline.errors import ConfigError, MediaError, PipelineError
from pipeline.run import Plan, RunConfig, prepare
from pipeline.sinks import OutputOptions
from tests import media
from tests.bench import gpu, plot, streams
from tests.drives import TINY_ROADNET

FRAMES = 48


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "clip.mp4"
    media.write_moving_clip(path, FRAMES, seed=1)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(1)
    spec = Spec("tiny", short_side=96, options=TINY_ROADNET)
    return str(save(tmp_path_factory.mktemp("model"), build(spec).eval(), spec).folder)


@pytest.fixture(autouse=True)
def _one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests run beside others: loops on all cores would wait for each other's threads."""
    for module in ("loops", "sweeps"):
        monkeypatch.setattr(f"pipeline.bench.{module}.available_cores", lambda: 1)


@pytest.fixture
def plan(clip: Path, tmp_path: Path) -> Plan:
    return prepare(
        RunConfig((str(clip),), tmp_path, OutputOptions(), engine="counting", size_hw=(96, 128))
    )


# The arithmetic.


def test_rate_leaves_the_warm_up_out() -> None:
    slow_start = [(0.0, 8), (9.0, 16), (10.0, 24), (10.5, 32), (11.0, 40), (12.0, 60)]
    assert rate(slow_start, warm_up=20) == pytest.approx((60 - 24) / 2)
    with pytest.raises(ConfigError, match="too short: give one of at least 48 frames"):
        rate([(0.0, 8), (1.0, 16)], warm_up=24)


def track(fps: float, cpu_ms: float | None = None) -> Track:
    costs = [] if cpu_ms is None else [(10, 5.0), (110, 5.0 + cpu_ms / 10)]
    return Track(warm_up=0, stamps=[(0.0, 10), (1.0, 10 + round(fps))], costs=costs)


def test_rows_are_medians_of_ratios_within_a_round() -> None:
    speeds = {"a": iter([10, 40, 20]), "b": iter([30, 80, 80])}
    order: list[str] = []

    def runner(name: str) -> Callable[[], Track]:
        def run() -> Track:
            order.append(name)
            return track(next(speeds[name]), cpu_ms=7.0 if name == "b" else None)

        return run

    rows = measure([Contender("a", runner("a")), Contender("b", runner("b"), x=2)], rounds=3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert rows[0] == {
        "name": "a", "x": None, "fps": 20, "against": "a", "times": 1.0, "cpu_ms": None,
    }  # fmt: skip
    assert rows[1] == {
        "name": "b", "x": 2, "fps": 80, "against": "a", "times": 3.0, "cpu_ms": 7.0,
    }  # fmt: skip


def test_cpu_time_is_that_of_children_too() -> None:
    before = cpu_seconds(family(os.getpid()))
    burn = "import time\nwhile time.process_time() < 0.3: pass\ninput()"
    child = subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE)
    try:
        assert child.pid in family(os.getpid())
        while cpu_seconds([child.pid]) < 0.1:
            assert child.poll() is None
        assert cpu_seconds(family(os.getpid())) >= before + 0.1
    finally:
        child.communicate(b"\n")


def test_the_bound_is_the_cores_over_the_stages() -> None:
    alone = {stage: {"ms": 10.0, "cpu_ms": cpu} for stage, cpu in
             (("decode", 3.0), ("network", 14.0), ("draw", 1.0), ("encode", 2.0))}  # fmt: skip
    cores = len(os.sched_getaffinity(0))
    assert bound_fps(alone, on_device=False) == pytest.approx(cores * 1000 / 20)
    alone["network"]["cpu_ms"] = 0.0
    assert bound_fps(alone, on_device=True) == pytest.approx(min(cores * 1000 / 6, 100))


def test_a_cost_adds_up() -> None:
    cost = Cost()
    assert cost.run(lambda: sum(range(10)), 2) == 45
    assert cost.frames == 2
    assert cost.wall_s > 0


# The stages.


def test_stage_shares_add_up(plan: Plan) -> None:
    stages = stage_shares(plan)
    assert stages.keys() == {"decode", "segment", "write"}
    assert all(cost["ms"] > 0 for cost in stages.values())
    assert sum(cost["share"] for cost in stages.values()) == pytest.approx(1, abs=0.01)


def test_stages_alone_are_measured_on_real_frames(plan: Plan) -> None:
    kept = keep(plan)
    assert sum(map(len, kept.batches)) == FRAMES
    assert kept.decoding.frames == FRAMES - len(kept.batches[0])
    costs = stages_alone(plan, kept)
    assert costs.keys() == {"decode", "network", "draw", "encode"}
    # Encoding is what writing took beyond drawing, which was measured apart: noise may make it negative.
    assert all(costs[stage]["ms"] > 0 for stage in ("decode", "network", "draw"))
    assert costs["draw"]["ms"] + costs["encode"]["ms"] > 0
    assert costs["encode"]["bytes"] > 0
    assert bound_fps(costs, on_device=False) > 0


def test_a_clip_of_one_batch_is_refused(tmp_path: Path) -> None:
    media.write_moving_clip(tmp_path / "short.mp4", 8, seed=1)
    config = RunConfig((str(tmp_path / "short.mp4"),), tmp_path, OutputOptions(), engine="counting")
    for measured in (keep, stage_shares):
        with pytest.raises(ConfigError, match="the clip is too short"):
            measured(prepare(config))


def test_transfers_are_measured_both_ways() -> None:
    costs = transfers("cpu", np.zeros((4, 96, 64), np.uint8), np.zeros((4, 64, 64), np.uint8))
    assert costs.keys() == {"upload", "download"}
    assert all(cost["ms"] > 0 for cost in costs.values())


# The loops people use: they do what they are said to do.


def frames_in(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_the_plain_loop_labels_like_people_would(clip: Path, tmp_path: Path, model: str) -> None:
    out = tmp_path / "out.mp4"
    stamps = list(plain_loop(str(clip), model, str(out), 3))
    assert [count for _, count in stamps] == [1, 2, 3]
    assert len(frames_in(out)) == 3


def test_chunks_of_the_reader_model_writer_loop_show_what_frames_do(
    clip: Path, tmp_path: Path, model: str
) -> None:
    chunked, single = tmp_path / "chunked.mp4", tmp_path / "single.mp4"
    loop = reader_model_writer_loop
    assert [n for _, n in loop(str(clip), model, str(chunked), 10, chunk=4)] == [4, 8, 10]
    assert [n for _, n in loop(str(clip), model, str(single), 10, chunk=1)] == list(range(1, 11))
    for one, other in zip(frames_in(chunked), frames_in(single), strict=True):
        # Rounding decides where two classes are as likely: a few pixels, not a picture.
        assert np.mean(np.abs(one.astype(int) - other) > 16) < 0.01


def test_onnx_runtime_labels_as_the_network_does(clip: Path, tmp_path: Path, model: str) -> None:
    import onnxruntime

    onnx = tmp_path / "step.onnx"
    with av.open(str(clip)) as container:
        video = container.streams.video[0]
        source_hw = video.height, video.width
    export_onnx(model, source_hw, onnx)
    network, spec = load(model)
    frame = torch.rand(1, 3, *spec.model_hw(source_hw), generator=torch.Generator().manual_seed(1))
    state = torch.rand(1, *network.state_shape(spec.model_hw(source_hw))) - 0.5
    with torch.inference_mode():
        labels, following = FrameStep(network)(frame * 255, state)
    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    found = session.run(None, {"frames": (frame * 255).numpy(), "state": state.numpy()})
    assert (found[0] == labels.numpy()).mean() > 0.999
    np.testing.assert_allclose(found[1], following.numpy(), atol=1e-4)
    stamps = list(onnx_loop(str(clip), model, str(tmp_path / "out.mp4"), 3, onnx))
    assert [count for _, count in stamps] == [1, 2, 3]
    assert len(frames_in(tmp_path / "out.mp4")) == 3


# Clips.


def test_clips_are_cut_copied_and_scaled(clip: Path, tmp_path: Path) -> None:
    short = cut(str(clip), 20, tmp_path / "short.mp4")
    whole = frames_in(clip)
    for one, other in zip(frames_in(short), whole, strict=False):
        np.testing.assert_array_equal(one, other)
    assert len(frames_in(short)) == 20
    named = copies(short, 3)
    assert len({path.name for path in named}) == 3
    assert {path.read_bytes() for path in named} == {short.read_bytes()}
    small = frames_in(scaled(short, (48, 64), tmp_path / "small.mp4"))
    assert [frame.shape for frame in small] == [(48, 64, 3)] * 20
    (tmp_path / "no.mp4").write_text("not a video")
    for make in (lambda: cut(str(tmp_path / "no.mp4"), 1, tmp_path / "x.mp4"),
                 lambda: scaled(tmp_path / "no.mp4", (48, 64), tmp_path / "y.mp4")):  # fmt: skip
        with pytest.raises(MediaError, match="for the benchmark"):
            make()


# All together.


def course(clip: Path, out: Path, model: str) -> sweeps.Course:
    config = RunConfig(
        (str(clip),), out, OutputOptions(labels="none"), model=model, engine="cpu",
        placement="inline",
    )  # fmt: skip
    return sweeps.Course(clip, FRAMES, config, plain_frames=FRAMES)


@pytest.mark.parametrize(
    ("contenders", "least"),
    [
        (lambda c: sweeps.streams(c, (1, 3)), 3),
        (lambda c: sweeps.chunks(c, (1, 4)), 3),
        (lambda c: sweeps.sizes(c, ((96, 128), (100, 120))), 6),  # a network takes no 100 rows
        (sweeps.engines, 2),  # and bf16, where the processor has it
        (lambda c: sweeps.peers(c, lambda line: None), 3),
    ],
    ids=["streams", "chunks", "sizes", "engines", "peers"],
)
def test_every_sweep_runs(
    clip: Path,
    tmp_path: Path,
    model: str,
    contenders: Callable[[sweeps.Course], list[Contender]],
    least: int,
) -> None:
    found = contenders(course(clip, tmp_path, model))
    rows = measure(found, rounds=1)
    assert len({row["name"] for row in rows}) == len(rows) >= least
    assert all(row["fps"] > 0 for row in rows)
    assert {row["against"] for row in rows} <= {row["name"] for row in rows}
    assert all(row["times"] == 1 for row in rows if row["against"] == row["name"])


def test_engines_are_compared_by_their_labels(clip: Path, tmp_path: Path, model: str) -> None:
    shares = sweeps.agreement(course(clip, tmp_path, model), frames=8)
    first, *others = shares
    assert first == "cpu, torch float32 (eager)"
    assert shares[first] == 1
    assert others
    assert all(shares[name] > 0.9 for name in others)


def test_the_stages_sweep_says_how_near_the_bound_is_reached(
    clip: Path, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the command's own function; with threads and inline, Ray's part is in the run tests."""
    whole = sweeps.together

    def without_ray(given: sweeps.Course) -> list[Contender]:
        _, *others = whole(given)
        return [Contender("roadmask", others[0].run), *others]

    monkeypatch.setattr(sweeps, "together", without_ray)
    lines: list[str] = []
    result = compare(str(clip), model=model, engine="cpu", rounds=2, frames=40,
                     sweep=["stages"], say=lines.append)  # fmt: skip
    assert result["frames"] == 40
    swept = result["sweeps"]["stages"]
    assert swept["bound_fps"] > 0
    assert [row["name"] for row in swept["rows"]] == [
        "roadmask", "threads, no Ray", "roadmask --inline",
    ]  # fmt: skip
    assert all(row["of_bound"] > 0 for row in swept["rows"])
    shown = table(json.loads(json.dumps(result)))
    assert "of the bound" in shown
    assert "bound by the stages" in shown
    assert "round 2/2" in lines[-1]


def test_wrong_use_is_refused(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown sweep 'speed': choose of peers, streams"):
        compare(str(clip), sweep=["speed"])
    with pytest.raises(ConfigError, match="rounds must be at least 1"):
        compare(str(clip), rounds=0)
    with pytest.raises(PipelineError, match=r"missing\.mp4"):
        compare(str(tmp_path / "missing.mp4"), engine="counting")


def test_the_table_shows_every_figure() -> None:
    result = {
        "source": "clip.mp4", "engine": "OpenVINO bf16", "cores": 2, "rounds": 3,
        "fps": {"plain loop": 5.0, "roadmask": 30.1},
        "times_the_plain_loop": {"plain loop": 1.0, "roadmask": 6.02},
        "cpu_ms_a_frame": {"plain loop": None, "roadmask": 61.4},
        "stage_ms_a_frame": {"decode": {"ms": 3.1, "share": 0.25}},
        "sweeps": {
            "engines": {
                "rows": [{"name": "bf16", "x": None, "fps": 44.4, "against": "f32", "times": 1.75,
                          "cpu_ms": 12.3}],
                "labels_equal": {"bf16": 0.99712},
            }
        },
    }  # fmt: skip
    shown = table(result)
    for figure in ("30.1", "6.02", "61.4", "3.10", "25.0%", "OpenVINO bf16", "44.4", "1.75",
                   "12.3", "99.712%", "(times f32)"):  # fmt: skip
        assert figure in shown


# The plot, and many streams in one run.


def test_the_plot_has_a_line_for_each_thing_measured(tmp_path: Path) -> None:
    rows = [{"name": f"{who}, {n} streams", "x": n, "fps": 10.0 * n}
            for who in ("roadmask", "bare engine") for n in (1, 8)]  # fmt: skip
    assert plot.series(rows) == {
        "roadmask": [(1, 10.0), (8, 80.0)],
        "bare engine": [(1, 10.0), (8, 80.0)],
    }
    result = {"engine": "E", "cores": 2, "rounds": 1, "sweeps": {"streams": {"rows": rows}}}
    printed, empty = tmp_path / "printed.txt", tmp_path / "empty.txt"
    printed.write_text("a table\n" + json.dumps(result) + "\n")
    for out in (tmp_path / "plot.svg", tmp_path / "plot.png"):
        plot.draw(plot.read(printed), out)
    assert "<svg" in (tmp_path / "plot.svg").read_text()
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    empty.write_text("nothing\n")
    with pytest.raises(SystemExit, match="expected the output of `roadmask bench"):
        plot.read(empty)


def test_streams_in_one_run_and_apart_are_measured_and_their_labels_compared(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert streams.steady_fps(300, 10.0, 20.0) == 30
    with pytest.raises(RuntimeError, match="give lengths further apart"):
        streams.steady_fps(300, 10.0, 9.0)
    # So short a clip takes as long as half of it.
    monkeypatch.setattr(streams, "steady_fps", lambda frames, short_s, long_s: 1.0)
    result = streams.measure(
        2, (8, 40), 1, clip, ["--engine", "counting", "--inline", "--no-color"]
    )
    assert result["labels"] == "the same"
    times = result["times"]
    assert isinstance(times, dict)
    assert times.keys() == {"fps_with_start", "fps", "peak_mb"}
    for name in (streams.TOGETHER, streams.APART):
        found = result[name]
        assert isinstance(found, dict)
        assert found["peak_mb"] > 10
    a, b = tmp_path / "a" / "clip", tmp_path / "b" / "clip"
    for folder, seed in ((a, 1), (b, 2)):
        folder.mkdir(parents=True)
        media.write_moving_clip(folder / "labels.mkv", 5, seed=seed)
    assert streams.different_frames(a.parent, b.parent) == 5
    assert streams.different_frames(a.parent, a.parent) == 0


def test_what_is_measured_on_a_gpu_is_measured_of_any_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu, "SECONDS", 0.1)
    engine, size_hw = CountingEngine((32, 48), 8), (32, 48)
    times = gpu.latencies(engine, size_hw, [1, 8])
    assert all(0 < facts["p50"] <= facts["p99"] for facts in times.values())
    # Three steps of eight fit into a thirtieth of a second.
    assert gpu.held({1: {"p99": 5.0}, 8: {"p99": 10.0}}) == 24
    found = gpu.against_eager(engine, CountingEngine((32, 48), 8), size_hw, 8, rounds=3)
    assert found["times"] > 0
    assert gpu.memory_over(engine, size_hw, 8, 100) is None  # there is no device
    seen = iter([(4e6, 9e6), (5e6, 9e6), (6e6, 9e6), (5e6, 9e6)])
    monkeypatch.setattr(gpu, "device_bytes", lambda: next(seen))
    assert gpu.memory_over(engine, size_hw, 8, 130) == {"first": 4, "most": 6, "frames": 130}
