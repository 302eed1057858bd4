"""Cameras on the nodes of a real Ray cluster: several raylets of this machine, which can be killed."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import __version__
from pipeline.errors import ConfigError, ModelError
from pipeline.live.config import LiveConfig, prepare_live
from pipeline.live.fleet import Fleet
from pipeline.live.site import Expected
from pipeline.live.sites import FleetConfig
from tests.cameras import MODEL_HW, RtspServer, has_rtsp_server, mount, until
from tests.test_fleet import Steps, counts, served

pytestmark = pytest.mark.skipif(
    not has_rtsp_server(), reason="GStreamer's RTSP server is not installed"
)
# On a loaded machine processes take long to start, and to answer; what is measured there moves no camera.
PACE = FleetConfig(
    lost_seconds=20.0, longest_loss_seconds=120.0, ready_seconds=60.0, gather_seconds=120.0,
    settled_seconds=600.0,
)  # fmt: skip
NAMES = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that labels nothing, and two nodes."""
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 100 * 2**20, "include_dashboard": False}
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    for _ in range(2):
        found.add_node(num_cpus=1, **small)
    try:
        yield found
    finally:
        found.shutdown()


@pytest.fixture(scope="module")
def server() -> Iterator[RtspServer]:
    with RtspServer([mount(f"/{name}", fps=10) for name in NAMES]) as server:
        yield server


def expected(config: LiveConfig) -> Expected:
    return Expected(__version__, prepare_live(config).files.weights_sha256())


@contextmanager
def fleet_on(cluster: Any, **changes: Any) -> Iterator[tuple[Fleet, list[str]]]:
    """A fleet on the cluster's nodes with an engine that counts, and what it says."""
    from pipeline.live.actors import nodes

    config = LiveConfig(
        (), engine="counting", size_hw=MODEL_HW, address=cluster.address, longest_gap_seconds=60.0
    )
    said: list[str] = []
    with (
        nodes(config, replace(expected(config), **changes)) as places,
        Fleet(prepare_live(config).camera_config, places, say=said.append, pace=PACE) as fleet,
    ):
        yield fleet, said


def test_the_command_shares_cameras_among_the_nodes(
    cluster: Any, server: RtspServer, tmp_path: Path
) -> None:
    """Ended by Ctrl-C when both nodes and both cameras have shown themselves, however long that takes."""
    command = [
        sys.executable, "-m", "pipeline.cli", "live", f"a={server.url('/a')}", f"b={server.url('/b')}",
        "--address", cluster.address, "--engine", "counting", "--json",
    ]  # fmt: skip
    said, told = tmp_path / "stderr", tmp_path / "stdout"
    with said.open("wb") as stderr, told.open("wb") as stdout:
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr)
    try:
        until(lambda: process.poll() is not None or all_work(said.read_text()), 300)
        process.send_signal(signal.SIGINT)
        process.wait(120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, said.read_text()
    assert "Traceback" not in said.read_text()
    lines = [json.loads(line) for line in told.read_text().splitlines()]
    frames = {line["name"]: line["frames"] for line in lines if "frames" in line}
    assert set(frames) == {"a", "b"}
    assert min(frames.values()) > 10
    states = {line["state"] for line in lines if "camera" in line}
    # Where the machine stands still for some seconds, a node is lost or a camera silent, and comes back.
    assert states - {"silent", "reconnecting"} == {"connecting", "live"}


def all_work(said: str) -> bool:
    """Whether two nodes are ready and two cameras have more than ten frames, by what a run has said."""
    nodes = set(re.findall(r"^(node .*) is ready$", said, re.MULTILINE))
    figures = re.findall(r"^(\w+): \w+, .* (\d+) frames, ", said, re.MULTILINE)
    return len(nodes) == 2 == len({name for name, frames in figures if int(frames) > 10})


def test_other_weights_on_a_node_are_an_error(cluster: Any) -> None:
    with fleet_on(cluster, weights_sha256="0" * 64) as (fleet, said):
        failure = until(lambda: fleet.failure, 120)
    assert isinstance(failure, ModelError)
    assert "other weights" in str(failure)
    assert any("other weights" in line for line in said)


def test_an_older_version_on_a_node_is_an_error(cluster: Any) -> None:
    with fleet_on(cluster, version="0.0.1") as (fleet, _):
        assert "install the same" in str(until(lambda: fleet.failure, 120))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inline": True}, "--inline"),
        ({"record": "x"}, "--record"),
        ({"engine": "quantum"}, "quantum"),
        ({"sources": ("/dev/video0",)}, "every node can reach"),
    ],
)
def test_what_makes_no_sense_on_a_cluster_is_refused(changes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare_live(LiveConfig(**{"sources": (), "address": "auto", **changes}))


@pytest.mark.parametrize(
    ("gpus", "engine", "places"),
    [
        ((0, 0), "auto", ["n0/0", "n1/0"]),
        ((0, 2), "auto", ["n1/0", "n1/1"]),
        ((0, 2), "tensorrt", ["n1/0", "n1/1"]),
        ((0, 2), "cpu", ["n0/0", "n1/0"]),
    ],
)
def test_each_gpu_is_a_place_or_each_node_where_there_is_none(
    gpus: tuple[int, ...], engine: str, places: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from pipeline.live.actors import Nodes

    alive = [
        {"NodeID": f"n{number}", "NodeManagerAddress": f"10.0.0.{number}", "Alive": True,
         "Resources": {"CPU": 4.0} | ({"GPU": float(count)} if count else {})}
        for number, count in enumerate(gpus)
    ]  # fmt: skip
    dead = {**alive[0], "NodeID": "dead", "Alive": False}
    without = {**alive[0], "NodeID": "head", "Resources": {"memory": 1.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [*alive, dead, without])
    monkeypatch.setattr(ray._private.state.state, "get_draining_nodes", lambda: {"n1": 0})
    config = LiveConfig((), engine=engine, address="auto")
    found = Nodes(config, Expected("", "")).current()
    assert [place.name for place in found] == places
    assert [place.going for place in found] == [name.startswith("n1") for name in places]


def test_cameras_of_a_node_that_drains_and_of_one_that_is_killed_are_served_by_others(
    cluster: Any, server: RtspServer
) -> None:
    with fleet_on(cluster) as (fleet, said):
        for name in NAMES:
            fleet.add(server.url(f"/{name}"), name)
        until(served(fleet, 20), 180)
        assert sorted(counts(fleet).values()) == [2, 2]
        followed = {name: Steps(fleet, name) for name in NAMES}
        for steps in followed.values():
            steps.follow(10)

        drained, *_ = set(fleet.where().values())
        assert drained is not None
        drain(cluster, drained.partition("/")[0])
        until(lambda: list(counts(fleet).values()) == [4], 180)
        until(served(fleet), 120)
        for steps in followed.values():
            steps.follow(10)
            assert steps.went_on()
        assert [status.resets for status in fleet.cameras()] == [0] * 4
        assert any("its cameras move" in line for line in said)

        (last,) = set(fleet.where().values())
        cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
        until(lambda: len({line for line in said if line.endswith(" is ready")}) == 3, 180)
        frames = {status.name: status.frames for status in fleet.cameras()}
        killed = next(n for n in cluster.worker_nodes if n.node_id == str(last).partition("/")[0])
        cluster.remove_node(killed, allow_graceful=False)
        until(lambda: set(fleet.where().values()).isdisjoint({last, None}), 180)
        until(served(fleet), 120)
        for status in fleet.cameras():
            assert status.resets == 0  # the memory that was fetched last went on
            assert status.frames > frames[status.name]
            assert status.changes["reconnecting"] == 1
        for steps in followed.values():
            steps.follow(5)
            assert steps.indices == sorted(set(steps.indices))


def drain(cluster: Any, node_id: str) -> None:
    """Tell Ray that a node is to be taken away, as an autoscaler does before it does so."""
    from ray._raylet import GcsClient

    accepted, why = GcsClient(address=cluster.address).drain_node(
        node_id,
        2,
        "to be taken away",
        0,  # 2: preemption
    )
    assert accepted, why
