"""Capacity planning: the simulation against queueing theory, the arithmetic by hand, the command itself."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.bench import compare
from pipeline.cli import app
from pipeline.errors import ConfigError
from pipeline.plan import Ask, Costs, Node, check, load_costs, make_plan, parse_node
from pipeline.plan.costs import fit_steps
from pipeline.plan.simulate import Stay, decode_queue, label_queue, place_cameras, run_node
from pipeline.plan.sizing import SPLIT_COST, Engines
from tests import media

CPU = Costs(
    machine="a machine", cores=8, engine="OpenVINO", model="roadnet", size_hw=(720, 1280),
    model_hw=(360, 640), decode_ms=4.0, draw_ms=1.0, encode_ms=3.0, out_bytes=25_000,
    on_device=False, step_ms=(0.0, 8.0), engine_cores=1.0,
)  # fmt: skip
GPU = replace(CPU, engine="CUDA graphs", on_device=True, step_ms=(2.0, 0.5), engine_cores=0.0)


# The simulation against queueing theory.


def poisson(rate: float, frames: int, seed: int = 1) -> list[float]:
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, frames)).tolist()


@pytest.mark.parametrize("load", [0.3, 0.6, 0.85])
def test_waiting_for_a_decoder_is_as_pollaczek_and_khinchine_say(load: float) -> None:
    """M/D/1: a mean wait of load / (2 (1 - load)) times the service."""
    arrivals = poisson(load, 400_000)
    waits = np.array(decode_queue(arrivals, 1, 1.0)) - arrivals - 1.0
    assert waits.mean() == pytest.approx(load / (2 * (1 - load)), rel=0.06)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.85])
def test_waiting_for_the_engine_is_as_pollaczek_and_khinchine_say(load: float) -> None:
    """Cameras of one frame each: nothing is overtaken, and the engine is an M/D/1 queue as well."""
    arrivals = poisson(load, 200_000, seed=2)
    served = label_queue(arrivals, arrivals, range(len(arrivals)), step_seconds=lambda streams: 1.0)
    assert served.dropped == 0
    assert np.mean(served.latencies) - 1 == pytest.approx(load / (2 * (1 - load)), rel=0.06)


def test_several_decoders_wait_as_erlang_says() -> None:
    """M/D/4 at load 0.8, by the approximation of Cosmetatos for Erlang's C (Kimura 1983): within 5 %."""
    servers, load = 4, 0.8
    offered = servers * load
    blocked = offered**servers / math.factorial(servers) / (1 - load)
    idle = sum(offered**k / math.factorial(k) for k in range(servers))
    wait_exponential = blocked / (idle + blocked) / (servers * (1 - load))
    bend = 1 + (1 - load) * (servers - 1) * (math.sqrt(4 + 5 * servers) - 2) / (16 * load * servers)
    arrivals = poisson(offered, 400_000, seed=3)
    waits = np.array(decode_queue(arrivals, servers, 1.0)) - arrivals - 1.0
    assert waits.mean() == pytest.approx(wait_exponential * bend / 2, rel=0.05)


@pytest.mark.parametrize("load", [0.5, 1.0, 2.0])
def test_one_camera_loses_what_a_queue_of_two_loses(load: float) -> None:
    """The newest frame takes the waiting one's place: as many are lost as by M/D/1/2, which turns them
    away: 1 - 1 / (exp(-load) + load) by its embedded chain."""
    arrivals = poisson(load, 300_000, seed=4)
    served = label_queue(arrivals, arrivals, [0] * len(arrivals), step_seconds=lambda streams: 1.0)
    assert served.frames == len(arrivals)
    assert served.dropped == pytest.approx(1 - 1 / (math.exp(-load) + load), abs=0.005)
    assert max(served.latencies) <= 2.0 + 1e-9  # what is labelled never waited for more than a step


def test_steady_frames_that_fit_never_wait() -> None:
    """D/D/1."""
    arrivals = (np.arange(1000) * 1.0).tolist()
    assert decode_queue(arrivals, 1, 0.9) == pytest.approx([at + 0.9 for at in arrivals])
    served = label_queue(arrivals, arrivals, [0] * 1000, step_seconds=lambda streams: 0.9)
    assert served.latencies == pytest.approx([0.9] * 1000)


def test_an_overloaded_engine_gives_all_it_can_and_the_same_to_each() -> None:
    """Eight cameras want twice what the engine does: half of the frames go, of every camera the same."""
    rng, cameras, fps = np.random.default_rng(5), 8, 30.0
    engines = Engines(1, (0.0, 1000 / (cameras * fps) * 2), 1, 8, 1.0)
    stays = [Stay(rng.random(), camera, 0.0, 20.0) for camera in range(cameras)]
    served = run_node(stays, engines, fps, math.inf, rng)
    assert served.frames == cameras * fps * 20
    assert served.dropped == pytest.approx(0.5, abs=0.01)


def test_late_frames_are_dropped_and_a_batch_takes_several() -> None:
    arrivals = [0.0, 0.0, 0.0, 0.0]
    found = label_queue(
        arrivals, arrivals, [0, 1, 2, 3], step_seconds=lambda streams: 1.0 + streams, largest=2,
        limit_seconds=4.0,
    )  # fmt: skip
    # The first at once, in two seconds; then two together, in three; then it is too late for the last.
    assert (found.latencies, found.stale) == ([2.0, 5.0, 5.0], 1)


def test_cameras_are_spread_evenly() -> None:
    placed = place_cameras(10, 4)
    assert sorted(camera for node in placed for camera in node) == list(range(10))
    assert [len(node) for node in placed] == [3, 3, 2, 2]


# The arithmetic.


def test_a_plan_on_cores_by_hand() -> None:
    """Twenty cameras a second each: 4 ms decoding and 8 ms of network a frame, on nodes of 3 cores.

    Decoding gets a core of the three, the network an engine on each of the two others: 20 frames a second of
    8 ms are 16 % of it, so at 70 % four cameras fit on each, eight on a node (decoding: 64 %)."""
    plan = make_plan(Ask(20, fps=20.0, spare=1), CPU, Node(3))
    assert (plan.engines.count, plan.engines.decode_servers, plan.engines.cores) == (2, 1, 1)
    assert plan.cameras_a_node == 8
    assert (plan.working, plan.nodes) == (3, 4)
    assert plan.binds.name == "CPU cores"
    assert plan.binds.needed == pytest.approx(400 * 0.012)
    assert plan.used(plan.binds) == pytest.approx(4.8 / 3 / 4)


def test_a_network_too_slow_for_one_core_is_split_among_several() -> None:
    slow = replace(CPU, step_ms=(0.0, 40.0))  # 25 frames a second of a core
    plan = make_plan(Ask(10, fps=30.0), slow, Node(8))
    assert plan.engines.cores > 1
    assert plan.engines.step_ms[1] == pytest.approx(40 * SPLIT_COST / plan.engines.cores)
    assert plan.engines.step_seconds(1) * 30 < 0.7


def test_a_plan_on_a_gpu_by_hand() -> None:
    """A step of 16 streams takes 2 + 16 / 2 = 10 ms, 1600 frames a second; at 70 % that is 37 cameras of 30
    frames a second, which need 37 * 30 * 4 ms = 4.4 of 16 cores."""
    plan = make_plan(Ask(1000), GPU, Node(16, gpus=1))
    assert plan.cameras_a_node == 37
    assert plan.working == math.ceil(1000 / 37)
    assert plan.binds.name == "GPUs"
    few_cores = make_plan(Ask(1000), GPU, Node(2, gpus=1))
    assert few_cores.binds.name == "CPU cores"
    assert few_cores.cameras_a_node == math.floor(0.7 * 2 * 1000 / 4 / 30)


def test_decoding_engines_take_decoding_off_the_cores() -> None:
    on_cores = make_plan(Ask(1000), GPU, Node(2, gpus=1))
    node = Node(2, gpus=1, nvdec=7, nvdec_fps=1000.0)
    plan = make_plan(Ask(1000), GPU, node)
    assert plan.nodes < on_cores.nodes
    decoders = next(found for found in plan.resources if found.name == "NVDEC engines")
    assert decoders.needed == pytest.approx(30_000 * (1280 * 720) / (1920 * 1080) / 1000)
    with pytest.raises(ConfigError, match="needs nvdec_fps="):
        Node(2, gpus=1, nvdec=7)


def test_the_network_or_the_disk_may_bind() -> None:
    thin = make_plan(Ask(1000, mbps=20.0), GPU, Node(64, gpus=8, nic_gbps=1.0))
    assert thin.binds.name == "network, Gbit/s in"
    assert thin.working == math.ceil(20 / 0.7)
    disk = make_plan(Ask(1000, write="record"), GPU, Node(64, gpus=8, disk_mb_s=10.0))
    assert disk.binds.name == "disk, MB/s"
    assert disk.binds.needed == pytest.approx(1000 * (0.5 + 30 * 0.011))
    out = make_plan(Ask(10, write="out"), GPU, Node(64, gpus=8))
    bytes_a_second = next(found for found in out.resources if found.name == "disk, MB/s").needed
    assert bytes_a_second == pytest.approx(10 * 30 * 0.025)


def test_larger_pictures_cost_more_decoding_and_no_more_network() -> None:
    small, large = (make_plan(Ask(100, size_hw=size), CPU, Node(16)) for size in
                    ((720, 1280), (1440, 2560)))  # fmt: skip
    assert large.binds.needed - small.binds.needed == pytest.approx(100 * 30 * 3 * 0.004)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"streams": 0}, "a camera at least"),
        ({"streams": 1, "load": 1.5}, "share of a node's capacity"),
        ({"streams": 1, "fps": 0}, "above 0"),
        ({"streams": 1, "fps": math.nan}, "above 0"),
        ({"streams": 1, "fps": 1e-9}, "fps must be at least"),
        ({"streams": 1, "mbps": math.inf}, "above 0"),
        ({"streams": 1, "write": "tape"}, "none, record, out"),
    ],
)
def test_what_makes_no_sense_is_one_line(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Ask(**wrong)  # type: ignore[arg-type]


def test_a_node_as_the_command_line_has_it() -> None:
    assert parse_node(None, CPU) == Node(8)
    assert parse_node("cores=16, gpus=2,nic_gbps=25", GPU) == Node(16, 2, nic_gbps=25.0)
    for wrong in ("cpus=3", "cores", "cores=many", "cores=inf", "nic_gbps=nan"):
        with pytest.raises(ConfigError, match="--node"):
            parse_node(wrong, CPU)
    with pytest.raises(ConfigError, match="gpus=1"):
        parse_node("gpus=0", GPU)
    with pytest.raises(ConfigError, match="cannot serve one camera of 30 frames a second"):
        make_plan(Ask(10), replace(CPU, step_ms=(0.0, 80.0)), Node(2))


# The plan, simulated.


@pytest.mark.parametrize(("costs", "node"), [(CPU, Node(16)), (GPU, Node(16, gpus=2))])
def test_a_plan_holds_for_ten_thousand_cameras_with_nodes_that_die(
    costs: Costs, node: Node
) -> None:
    plan = make_plan(Ask(10_000, fps=30.0, spare=3), costs, node)
    found = check(plan, seconds=1.0)
    assert found.holds
    assert found.steady.frames == found.after.frames == 150_000
    on_dead = sum(len(cameras) for cameras in place_cameras(10_000, plan.nodes)[:3])
    assert found.moved == on_dead
    assert found.lost_frames == on_dead * 30 * 10


def test_half_of_the_nodes_are_not_enough() -> None:
    plan = make_plan(Ask(1000, spare=0), GPU, Node(16, gpus=1))
    assert check(plan, 1.0).holds
    starved = check(replace(plan, working=plan.working // 2), 1.0)
    assert not starved.holds
    assert starved.steady.dropped > 0.2


def test_the_same_seed_gives_the_same_simulation() -> None:
    plan = make_plan(Ask(200), CPU, Node(8))
    first, again, other = check(plan, 1.0), check(plan, 1.0), check(plan, 1.0, seed=2)
    assert first.steady.latencies == again.steady.latencies
    assert first.steady.latencies != other.steady.latencies
    with pytest.raises(ConfigError, match=r"0\.5 s at least"):
        check(plan, 0.1)
    with pytest.raises(ConfigError, match=r"0\.5 s at least"):
        check(plan, math.inf)


# Costs, measured and read.


def test_a_step_is_fixed_and_a_share_of_each_stream() -> None:
    assert fit_steps([(n, 2.0 + 0.5 * n) for n in (1, 4, 16, 64)]) == pytest.approx((2.0, 0.5))
    assert fit_steps([(4, 10.0)]) == (0.0, 2.5)
    assert fit_steps([(1, 1.0), (2, 4.0)]) == (
        0.0,
        2.0,
    )  # worse than proportional: the worst of them


def test_costs_shipped_with_this_version() -> None:
    costs = load_costs(None)
    assert (costs.size_hw, costs.model_hw, costs.model) == ((720, 1280), (360, 640), "roadnet")
    assert costs.network_share((1080, 1920)) == 1.0  # the same shape: the same input size
    assert costs.pixels((1080, 1920)) == pytest.approx(2.25)
    assert costs.network_share((720, 720)) < 1


def test_what_a_benchmark_printed_is_read(tmp_path: Path) -> None:
    media.write_moving_clip(tmp_path / "clip.mp4", 96, seed=1)
    result = compare(str(tmp_path / "clip.mp4"), engine="counting", rounds=1, sweep=["stages"])
    (tmp_path / "printed.txt").write_text("a table\n  of lines\n" + json.dumps(result) + "\n")
    costs = load_costs(tmp_path / "printed.txt")
    alone = result["sweeps"]["stages"]["alone"]
    assert costs.decode_ms == alone["decode"]["cpu_ms"] > 0
    assert costs.step_ms == (0.0, alone["network"]["ms"])
    assert costs.out_bytes == alone["encode"]["bytes"] > 0
    assert costs.machine == result["machine"]


def test_costs_of_a_gpu_are_read_with_its_steps(tmp_path: Path) -> None:
    measured = {
        "machine": "m", "cores": 16, "engine": "CUDA graphs f16", "model": {"name": "roadnet"},
        "size_hw": [720, 1280], "model_hw": [360, 640],
        "sweeps": {
            "stages": {"alone": {"decode": {"cpu_ms": 3, "bytes": 1}, "draw": {"cpu_ms": 1},
                                 "network": {"ms": 1, "cpu_ms": 1}, "upload": {"ms": 0.1},
                                 "encode": {"cpu_ms": 3, "bytes": 100}}},
            "streams": {"rows": [
                {"name": "roadmask, 4 streams", "x": 4, "fps": 500.0},
                *({"name": f"bare engine, {n} streams", "x": n, "fps": 1000 * n / (2 + n / 2)}
                  for n in (1, 4, 16)),
            ]},
        },
    }  # fmt: skip
    (tmp_path / "costs.json").write_text(json.dumps(measured))
    costs = load_costs(tmp_path / "costs.json")
    assert costs.on_device
    assert costs.step_ms == pytest.approx((2.0, 0.5))


def test_a_file_of_something_else_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_costs(tmp_path / "none.json")
    for text in ("", "hello", "[]", '{"sweeps": {}}', "\x00"):
        (tmp_path / "costs.json").write_text(text)
        with pytest.raises(ConfigError, match="expected what `roadmask bench"):
            load_costs(tmp_path / "costs.json")


def test_the_command() -> None:
    command = ["plan", "--streams", "1000", "--fps", "30", "--size", "1280x720"]
    shown = CliRunner().invoke(app, [*command, "--node", "cores=16"])
    assert shown.exit_code == 0, shown.output
    assert "CPU cores" in shown.output
    assert shown.output.rstrip().endswith("the plan holds")
    told = CliRunner().invoke(app, [*command, "--node", "cores=16", "--json", "--simulate", "1"])
    found = json.loads(told.output)
    assert found["binds"] == "CPU cores"
    assert f"{found['nodes']} nodes" in shown.output
    assert found["simulated"]["holds"]
    for wrong in (["--size", "big"], ["--node", "x=1"], ["--write", "tape"]):
        assert isinstance(CliRunner().invoke(app, [*command, *wrong]).exception, ConfigError)
