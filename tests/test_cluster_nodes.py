"""A job over several Ray nodes, each in a network namespace with an address of its own."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.run import RunConfig, prepare, run
from pipeline.sinks import OutputOptions
from pipeline.stages import Progress
from tests import media
from tests.bench.chaos import contents
from tests.bench.cluster import Cluster, Node, has_namespaces
from tests.test_cluster import write_forgetful
from tests.test_run import roadmask

needs_namespaces = pytest.mark.skipif(
    not has_namespaces() and os.environ.get("REQUIRE_NETNS") != "1",
    reason="needs root and iproute2, for network namespaces (REQUIRE_NETNS=1 makes this a failure)",
)
pytestmark = needs_namespaces
CLIPS, FRAMES = 8, 90
OPTIONS = ("--engine", "counting", "--size", "96x128", "--overlay")
SLOW = {"ROADMASK_COUNTING_MS": "20"}  # a frame: a clip takes about two seconds


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fleet")
    for number in range(CLIPS):
        clip = folder / f"car{number % 2}" / f"clip{number}.mp4"
        clip.parent.mkdir(exist_ok=True)
        media.write_moving_clip(clip, FRAMES + number, seed=number)
    return folder


@pytest.fixture(scope="module")
def undisturbed(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process makes of the clips."""
    out = tmp_path_factory.mktemp("undisturbed")
    for folder in sorted(clips.iterdir()):
        config = RunConfig((str(folder),), out / folder.name, OutputOptions(overlay=True),
                           engine="counting", size_hw=(96, 128), placement="inline")  # fmt: skip
        for event in run(prepare(config)):
            assert isinstance(event, Progress) or event.error is None, event
    return contents(out)


def compared(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What is not the same; a source's name is another where it was found another way."""
    differing = []
    for name in sorted(found.keys() | wanted.keys()):
        one, other = found.get(name), wanted.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            one, other = ({**values, "stream_id": ""} for values in (one, other))
        if one != other:
            differing.append(name)
    return differing


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


def pull_the_plug(node: Node) -> None:
    node.kill()


def pull_the_cable(node: Node) -> None:
    node.cut_off()


@pytest.mark.parametrize(
    ("placement", "end"), [("fused", pull_the_plug), ("spread", pull_the_cable)]
)
def test_a_node_that_is_lost_costs_no_source(
    cluster: Cluster,
    clips: Path,
    undisturbed: dict[str, Any],
    tmp_path: Path,
    placement: str,
    end: Callable[[Node], None],
) -> None:
    """One of two nodes goes in the middle: the job ends complete, and byte for byte as if nothing had
    happened. A third one that comes meanwhile takes part."""
    nodes = [cluster.start(cpus=2, environment=SLOW) for _ in range(2)]
    try:
        job = cluster.begin(f"{clips}/**/*.mp4", "--out", tmp_path, "--placement", placement, "--json",
                            *OPTIONS)  # fmt: skip
        _await_first_result(tmp_path, job)
        end(nodes[1])
        nodes.append(cluster.start(cpus=2, environment=SLOW))
        stdout, stderr = job.communicate(timeout=300)
    finally:
        for node in nodes:
            node.kill()
    assert job.returncode == 0, stderr
    reports = [json.loads(line) for line in stdout.splitlines()]
    assert sorted(report["frames"] for report in reports) == [FRAMES + n for n in range(CLIPS)]
    assert compared(contents(tmp_path), undisturbed) == []
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["done"], report["failed"], report["left"]) == (CLIPS, 0, 0)
    assert set(report["nodes"]) >= {nodes[0].address, nodes[1].address}


def _await_first_result(out: Path, job: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not list(out.glob("*/*/manifest.json")):
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline, "the job never finished a source"
        time.sleep(0.1)


def test_nodes_that_do_not_fit_are_left_out_by_name(
    cluster: Cluster, clips: Path, tmp_path: Path
) -> None:
    """Other versions, other weights, no way to the output folder: a line each; alone they are an error."""
    weights = Path(__file__).parents[1] / "models" / "weights" / "roadnet"
    other, empty = tmp_path / "other", tmp_path / "empty"
    (other / "av-1.0.dist-info").mkdir(parents=True)
    (other / "av-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: av\nVersion: 1.0\n"
    )
    empty.mkdir()
    out = tmp_path / "out"
    out.mkdir()
    repository = str(Path(__file__).parents[1])
    bad = [
        cluster.start(environment={"PYTHONPATH": f"{other}:{repository}"}),
        cluster.start(before=f"mount --bind {empty} {weights}"),
        cluster.start(before=f"mount --bind {empty} {out}"),
    ]
    try:
        source = f"{clips}/car0/clip0.mp4"
        alone = cluster.run(source, "--out", out, *OPTIONS)
        assert alone.returncode == 2, alone.stderr
        assert "no node of the Ray cluster can be used" in alone.stderr
        good = cluster.start()
        bad.append(good)
        done = cluster.run(source, "--out", out, *OPTIONS)
    finally:
        for node in bad:
            node.kill()
    assert done.returncode == 0, done.stderr
    for node, text in zip(
        bad, ("labels might differ: it has av 1.0", "it has not the model", "does not see the output"),
        strict=False,
    ):  # fmt: skip
        lines = [
            line for line in done.stderr.splitlines() if f"node {node.address} is left out" in line
        ]
        assert len(lines) == 1, done.stderr
        assert text in lines[0]
    assert "Traceback" not in alone.stderr + done.stderr
    report = json.loads((out / "report.json").read_text())
    assert report["nodes"] == [good.address]
    assert len(report["nodes_left_out"]) == 3


def test_a_second_job_to_one_output_is_refused(
    cluster: Cluster, clips: Path, tmp_path: Path
) -> None:
    # Slow enough for the first job to be still at work when the second has started on a loaded machine.
    node = cluster.start(environment={"ROADMASK_COUNTING_MS": "100"})
    try:
        first = cluster.begin(f"{clips}/car0", "--out", tmp_path, "-q", *OPTIONS)
        deadline = time.monotonic() + 120
        while not (tmp_path / ".roadmask" / "job.lock").exists():
            assert first.poll() is None, first.communicate()
            assert time.monotonic() < deadline, "the first job never began"
            time.sleep(0.05)
        second = cluster.run(f"{clips}/car1", "--out", tmp_path, *OPTIONS)
        assert second.returncode == 2, second.stderr
        assert f"another job is writing to {tmp_path}" in second.stderr
        assert "Traceback" not in second.stderr
        first.terminate()
        first.communicate(timeout=120)
        assert first.returncode == 130
        again = cluster.run(f"{clips}/car0/clip0.mp4", "--out", tmp_path, "--resume", *OPTIONS)
        assert again.returncode == 0, again.stderr
    finally:
        node.kill()


def test_a_long_file_is_shared_by_nodes(cluster: Cluster, tmp_path: Path) -> None:
    """Labelled in spans on two nodes, by a network without memory: the same as in one go."""
    clip = tmp_path / "long.mp4"
    media.ffmpeg("-f", "lavfi", "-i", "testsrc2=size=128x96:rate=30", "-frames:v", 600, "-c:v",
                 "libx264", "-g", 30, "-pix_fmt", "yuv420p", clip)  # fmt: skip
    model = write_forgetful(tmp_path / "model")
    chosen = ("--size", "96x128", "--model", model, "--engine", "cpu", "--precision", "f32")
    nodes = [cluster.start() for _ in range(2)]
    try:
        done = cluster.run(clip, "--out", tmp_path / "out", "--split", 4, *chosen)
    finally:
        for node in nodes:
            node.kill()
    assert done.returncode == 0, done.stderr
    assert "labelled in 4 spans" in done.stderr
    alone = roadmask("run", clip, "--out", tmp_path / "alone", "--inline", *map(str, chosen))
    assert alone.returncode == 0, alone.stderr
    found, wanted = contents(tmp_path / "out"), contents(tmp_path / "alone")
    for name in ("labels.mkv", "color.mp4", "stats.jsonl"):
        assert found[f"long/{name}"] == wanted[f"long/{name}"]


def test_a_wrong_address_is_one_line(tmp_path: Path, clips: Path) -> None:
    done = roadmask("run", clips, "--out", tmp_path, "--address", "127.0.0.1:1")
    assert done.returncode == 2
    assert "no Ray cluster at '127.0.0.1:1'" in done.stderr
