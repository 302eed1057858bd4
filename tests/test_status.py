"""`roadmask status`: how a run stands, by its folder or its address, and how cameras stand."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.errors import ConfigError, OutputError
from pipeline.metrics.observer import Observer
from pipeline.metrics.show import FoundRun, ask
from pipeline.metrics.status import FILE_NAME, STALE_SECONDS, RunStatus, StatusKeeper, read_status
from pipeline.stages import Progress, SourceReport
from pipeline.view import ViewConfig, start_view
from tests import media
from tests.fake_hub import FakeHub, numbered
from tests.test_run import roadmask


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [1000.0]
    monkeypatch.setattr("pipeline.metrics.status.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("pipeline.metrics.status.time.time", lambda: clock[0])
    return clock


def test_figures_of_a_run(now: list[float], tmp_path: Path) -> None:
    keeper = StatusKeeper(tmp_path)
    keeper.sources = 4
    assert keeper.status().frames_total is None
    keeper.update(Progress("a", 8, 100))
    now[0] = 1010.0
    keeper.update(Progress("a", 58, 100))
    status = keeper.status()
    assert (status.frames, status.fps) == (58, 5.0)
    assert status.frames_total == 400  # the others are taken to be as long
    assert status.left_seconds == pytest.approx((400 - 58) / 5)
    keeper.update(SourceReport("a", "a", 104))  # it was longer than its container said
    keeper.update(Progress("b", 10, 200))
    keeper.update(SourceReport("c", "c", error="c: gone"))
    status = keeper.status()
    assert (status.ended, status.failed, status.frames) == (2, 1, 114)
    assert dict(status.working) == {"b": (10, 200)}
    keeper.update(Progress("d", 10, None))
    assert keeper.status().frames_total is None  # one that doesn't say how long it is


def test_the_file_is_always_whole_and_says_how_it_ended(now: list[float], tmp_path: Path) -> None:
    keeper = StatusKeeper(tmp_path)
    keeper.write()
    assert read_status(tmp_path).state == "running"
    keeper.update(Progress("a", 8, 100))
    assert read_status(tmp_path).frames == 0  # not more often than every other second
    now[0] += 3.0
    keeper.update(Progress("a", 16, 100))
    assert read_status(tmp_path) == keeper.status()
    keeper.end("done")
    assert read_status(tmp_path).state == "done"
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_a_run_that_wrote_nothing_leaves_nothing(tmp_path: Path) -> None:
    with Observer(lambda: 1, tmp_path) as observer:
        assert read_status(tmp_path).sources == 1
        observer.update(SourceReport("a", "a", error="a: gone"))
        observer.ended(False)
    assert not list(tmp_path.iterdir())


def test_a_run_that_raised_was_interrupted(tmp_path: Path) -> None:
    def broken() -> None:
        with Observer(lambda: None, tmp_path) as observer:
            observer.update(Progress("a", 8, 100))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert read_status(tmp_path).state == "interrupted"


def test_a_full_disk_costs_the_status_and_nothing_else(tmp_path: Path) -> None:
    keeper = StatusKeeper(tmp_path / "none")
    keeper.update(Progress("a", 8, 100))
    assert keeper.status().frames == 8


def status_of(state: str, updated_at: float) -> RunStatus:
    return RunStatus(
        state, 10, 4, 1, 1000, 2500, 25.0, 60.0, 0.0, updated_at, {"drive": (120, 300)}, "node7", 42
    )


def test_silence_is_told_from_work() -> None:
    alive = FoundRun(status_of("running", 1000.0), 1001.0)
    assert alive.well
    assert alive.lines() == [
        "running: process 42 on node7, 16:40",
        "sources: 3 of 10 done, 1 failed",
        "frames: 1000/2500, 25.0 fps, 1:00 left",
        "  drive: 120/300",
    ]
    dead = FoundRun(status_of("running", 1000.0), 1001.0 + STALE_SECONDS)
    assert not dead.well
    assert dead.lines()[0].startswith("no word for 0:31 from process 42 on node7")
    assert FoundRun(status_of("done", 0.0), 10_000.0).well
    assert not FoundRun(status_of("failed", 0.0), 10_000.0).well


def test_by_folder(tmp_path: Path) -> None:
    media.write_moving_clip(tmp_path / "clip.mp4", 20, seed=1)
    out = tmp_path / "out"
    done = roadmask("run", tmp_path / "clip.mp4", "--out", out, "--engine", "counting", "--inline")
    assert done.returncode == 0, done.stderr
    shown = roadmask("status", out)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[1:] == ["sources: 1 of 1 done", shown.stdout.splitlines()[2]]
    assert shown.stdout.splitlines()[2].startswith("frames: 20/20, ")
    found = json.loads(roadmask("status", out, "--json").stdout)
    assert (found["state"], found["frames"], found["silent"]) == ("done", 20, False)
    none = roadmask("status", tmp_path)
    assert none.returncode == 2
    assert none.stderr.startswith(f"error: no run has written to {tmp_path}")


def test_a_file_that_is_no_status_is_one_line(tmp_path: Path) -> None:
    for text in ("", "[]", '{"state": "running"}', json.dumps(vars(status_of("done", 0.0)))[:-9]):
        (tmp_path / FILE_NAME).write_text(text)
        with pytest.raises(OutputError, match="cannot be read"):
            read_status(tmp_path)


def test_by_the_address_of_the_metrics() -> None:
    said: list[str] = []
    with Observer(lambda: 3, None, "127.0.0.1:0", say=said.append) as observer:
        observer.update(Progress("a", 8, 100))
        for place in (said[0].split()[-1], said[0].split()[-1].removesuffix("/metrics")):
            found = ask(place)
            assert isinstance(found, FoundRun)
            assert (found.status.sources, found.status.frames) == (3, 8)
            assert found.status.pid == os.getpid()
    for place in (said[0].split()[-1], "http://localhost:port", "http://[localhost"):
        with pytest.raises(ConfigError, match="nothing answers at"):
            ask(place)


def test_by_the_address_of_something_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        answering = threading.Thread(target=lambda: server.accept()[0].sendall(b"220 hello\r\n"))
        answering.start()
        with pytest.raises(ConfigError, match="nothing answers at"):
            ask(f"http://127.0.0.1:{server.getsockname()[1]}")
        answering.join()


def test_a_token_does_not_follow_a_redirect_elsewhere() -> None:
    asked: list[str | None] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["Authorization"])
            if len(asked) == 1:
                self.send_response(302)
                self.send_header("Location", "/moved")
            else:
                self.send_response(404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever).start()
        with pytest.raises(ConfigError):
            ask(f"http://127.0.0.1:{server.server_port}", "a token of some length")
        server.shutdown()
    assert asked[0] == "Bearer a token of some length"
    assert asked[1] is None


@pytest.fixture
def view_url() -> Iterator[str]:
    hub = FakeHub(numbered())
    hub.add("rtsp://me:secret@h.example/1", "front")
    with start_view(hub, ViewConfig(port=0, token="a token of some length")) as view:
        deadline = time.monotonic() + 60
        while hub.cameras()[0].state != "live" and time.monotonic() < deadline:
            time.sleep(0.02)
        yield view.url
    hub.close()


def test_by_the_address_of_a_view(view_url: str) -> None:
    shown = CliRunner().invoke(app, ["status", view_url, "--token", "a token of some length"])
    assert shown.exit_code == 0, shown.output
    first, camera = shown.output.splitlines()
    assert first == "live: 1 of 1 cameras"
    assert camera.startswith("  front: live, ")
    with pytest.raises(ConfigError, match="wants a token"):
        ask(view_url)
    with pytest.raises(ConfigError, match="wants a token"):
        ask(view_url, "another token of length")
