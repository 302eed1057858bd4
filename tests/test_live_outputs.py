"""What a live run leaves behind: segments, overlays for players, events, recordings; and the command."""

from __future__ import annotations

import contextlib
import errno
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from models.spec import CAMVID_CLASSES
from pipeline.errors import ConfigError
from pipeline.live import segments as segments_module
from pipeline.live.address import parse_address
from pipeline.live.camera import Camera
from pipeline.live.delivery import Delivery, Frame
from pipeline.live.events import Events, parse_rule
from pipeline.live.hub import Shown
from pipeline.live.labeller import Labelled
from pipeline.live.live import LiveHub
from pipeline.live.publish import OverlayStream, Publisher, check_target
from pipeline.live.recording import LabelRecording
from pipeline.live.segments import SegmentFiles, SegmentOptions, SegmentRetention
from pipeline.palette import CAMVID, Palette
from pipeline.parts import output_errors
from pipeline.session import Recorder
from pipeline.session import writing as writing_module
from pipeline.session.labels import all_entries
from pipeline.session.reader import Session
from pipeline.session.records import PacketRecord
from tests.cameras import (
    MODEL_HW,
    FakeCamera,
    RtspServer,
    camera_config,
    mount,
    tcp_server,
    until,
)
from tests.media import ffmpeg
from tests.test_live import hub_of, label
from tests.test_live_cameras import free_port, needs_ffmpeg, needs_rtsp

PALETTE = Palette(CAMVID.classes, CAMVID.rgb)


# Segments.


def test_segments_hold_every_label_and_are_whole(tmp_path: Path) -> None:
    segments = SegmentFiles(tmp_path, PALETTE, {"model": "x"}, SegmentOptions(0.4))
    camera = FakeCamera()
    with hub_of([camera], listeners=(segments,)) as hub:
        shown = []
        feed = hub.subscribe("0")
        for _ in range(12):
            shown.append(label(hub, camera, feed))
            time.sleep(0.1)
        camera.lose(2)
        shown.append(label(hub, camera, feed))
    segments.close()
    assert not segments.problems
    folders = sorted((tmp_path / "0").iterdir())
    assert len(folders) >= 2
    assert not list(tmp_path.rglob("*.part"))
    found = [frame for folder in folders for frame in labels_in(folder / "labels.mkv")]
    np.testing.assert_array_equal(np.stack(found), np.stack([frame.labels for frame in shown]))
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in folders]
    assert sum(manifest["frames_out"] for manifest in manifests) == len(shown)
    assert manifests[0]["source"] == "rtsp://somewhere/x"
    assert sum(manifest["gap_count"] for manifest in manifests) <= 1 + len(folders)
    for folder in folders:
        with av.open(str(folder / "color.mp4")) as video:
            assert sum(1 for _ in video.decode(video=0)) > 0


def labels_in(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as video:
        return [frame.to_ndarray() for frame in video.decode(video=0)]


def test_a_camera_that_changes_its_size_begins_a_segment(tmp_path: Path) -> None:
    segments = SegmentFiles(tmp_path, PALETTE, {}, SegmentOptions())
    camera = FakeCamera()
    with hub_of([camera], listeners=(segments,)) as hub:
        feed = hub.subscribe("0")
        label(hub, camera, feed)
        camera.model_hw = (96, 64)
        label(hub, camera, feed)
    segments.close()
    sizes = {labels_in(path)[0].shape for path in tmp_path.rglob("labels.mkv")}
    assert sizes == {MODEL_HW, (96, 64)}


def test_a_disk_that_cannot_be_written_is_told_of_and_holds_nobody(tmp_path: Path) -> None:
    (tmp_path / "0").write_text("a file is in the way")
    segments = SegmentFiles(tmp_path, PALETTE, {}, SegmentOptions())
    camera = FakeCamera(fps=50)
    with hub_of([camera], listeners=(segments,)) as hub:
        until(lambda: hub.cameras()[0].frames > 20)
    segments.close()
    assert len(segments.problems) == 1


def test_segments_may_show_the_overlay(tmp_path: Path) -> None:
    """The colours over the pictures that the network saw, as in a run."""
    segments = SegmentFiles(tmp_path, PALETTE, {}, SegmentOptions(overlay=True))
    camera = FakeCamera()
    with hub_of([camera], listeners=(segments,)) as hub:
        feed = hub.subscribe("0")
        shown = [label(hub, camera, feed) for _ in range(4)]
    segments.close()
    assert not segments.problems
    (path,) = tmp_path.rglob("overlay.mp4")
    with av.open(str(path)) as video:
        frames = [frame.to_ndarray(format="yuv420p") for frame in video.decode(video=0)]
    assert len(frames) == len(shown)
    for frame, one in zip(frames, shown, strict=True):
        y, u, v = one.planes[:64], one.planes[64:80], one.planes[80:]
        picture = (y, u.reshape(32, 48), v.reshape(32, 48))
        expected = PALETTE.overlay(picture, one.labels, 0.5, "bt601")[0]
        assert abs(int(frame[40, 50]) - int(expected[40, 50])) < 6
    manifest = json.loads(path.with_name("manifest.json").read_text())
    assert set(manifest["outputs"]) == {"color.mp4", "overlay.mp4", "labels.mkv", "stats.jsonl"}


def kept_segment(folder: Path, name: str, age_seconds: float, whole: bool = True) -> Path:
    """A segment of 300 bytes, or what a crash left of one; beside it something that is not ours."""
    segment = folder / name
    segment.mkdir(parents=True)
    for file in ("color.mp4", "labels.mkv", "manifest.json") if whole else (".color.mp4.part",):
        (segment / file).write_bytes(bytes(100))
        written_at = time.time() - age_seconds
        os.utime(segment / file, (written_at, written_at))
    return segment


def test_the_oldest_segments_go_by_age_and_by_size(tmp_path: Path) -> None:
    """Of all cameras together; never the one that is being written, nor anything that is not a segment."""
    old = [kept_segment(tmp_path / "a", f"2026013{n}T000000Z", 9000 - n) for n in range(3)]
    left = kept_segment(tmp_path / "a", "20260201T000000Z", 8000, whole=False)
    other = kept_segment(tmp_path / "b", "20260131T000001Z", 5000)
    new = kept_segment(tmp_path / "b", "20260202T000000Z_2", 9999, whole=False)
    mine = tmp_path / "a" / "notes"
    mine.mkdir()
    (mine / "manifest.json").write_text("mine")
    (old[1] / "mine.txt").write_text("mine")
    (tmp_path / "c").symlink_to(old[0].parent)
    assert SegmentRetention(tmp_path, SegmentOptions()).tidy(now=True) == 0
    by_size = SegmentRetention(tmp_path, SegmentOptions(max_bytes=1000))
    assert by_size.tidy(now=True) == 2
    assert not old[0].exists()
    assert [path.name for path in old[1].iterdir()] == ["mine.txt"]
    assert old[2].exists()
    by_age = SegmentRetention(tmp_path, SegmentOptions(max_age_seconds=7000))
    assert by_age.tidy(now=True) == 1  # the crash's is the newest of its camera
    assert not old[2].exists()
    assert left.exists()
    kept_segment(tmp_path / "a", "20260203T000000Z", 10)
    assert by_age.tidy(now=True) == 1
    assert not left.exists()
    assert other.exists()
    assert new.exists()
    assert (mine / "manifest.json").exists()


def test_a_running_output_stays_under_its_limit(tmp_path: Path) -> None:
    segments = SegmentFiles(tmp_path, PALETTE, {}, SegmentOptions(0.2, max_bytes=20_000))
    camera = FakeCamera()
    with hub_of([camera], listeners=(segments,)) as hub:
        feed = hub.subscribe("0")
        label(hub, camera, feed)
        first = until(lambda: next(tmp_path.glob("0/*"), None))  # by a thread of its own
        for _ in range(200):
            label(hub, camera, feed)
            time.sleep(0.05)
            if not first.exists():
                break
    segments.close()
    assert not segments.problems
    assert not first.exists()
    made = list((tmp_path / "0").iterdir())
    assert all((folder / "manifest.json").exists() for folder in made)
    sizes = [sum(path.stat().st_size for path in folder.iterdir()) for folder in made]
    # What was being written, and what a late writer ended in one go: they are looked at now and then.
    assert sum(sizes) <= 20_000 + 3 * max(sizes)


# Events.


def labelled(share: float, at: float, camera: str = "front", fresh: bool = False) -> Labelled:
    shares = np.zeros(len(CAMVID_CLASSES), np.float32)
    shares[CAMVID_CLASSES.index("pedestrian")] = share
    blank = np.zeros((4, 4), np.uint8)
    shown = Shown(camera, 7, at, at + 0.01, blank, blank)
    return Labelled(shown, Frame(7, at, 0, (4, 4), blank), shares, fresh, at, lambda: (blank, 1))


@contextlib.contextmanager
def webhook(statuses: list[int]) -> Iterator[tuple[str, list[tuple[dict, Any]]]]:
    """A server that answers with these, then with 200; its address and what it was told."""
    told: list[tuple[dict, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = statuses.pop(0) if statuses else 200
            if status == 200:
                told.append((dict(self.headers), json.loads(body)))
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}/hook", told
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("text", "share", "seconds"),
    [
        ("pedestrian>0.05 for 2s -> https://h/x", 0.05, 2.0),
        ("pedestrian > 5% for 0.5 s -> http://h", 0.05, 0.5),
        ("pedestrian>.2->http://h", 0.2, 0.0),
    ],
)
def test_rules(text: str, share: float, seconds: float) -> None:
    rule = parse_rule(text, CAMVID_CLASSES)
    assert (rule.class_name, rule.share, rule.seconds) == ("pedestrian", share, seconds)


@pytest.mark.parametrize(
    "text",
    ["", "pedestrian", "unicorn>0.1 -> http://h", "car>0.1 -> ftp://h", "car>2 -> http://h",
     "car>0.1 -> file:///etc/x", "car>0.1 -> mqtt://h", "car>0.1 for 2 minutes -> http://h"],
)  # fmt: skip
def test_wrong_rules(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_rule(text, CAMVID_CLASSES)
    assert "\n" not in str(error.value)


def test_a_webhook_is_told_once_an_occurrence() -> None:
    with webhook([]) as (address, told):
        rule = f"pedestrian>0.1 for 2s -> http://me:pw@{address}"
        events = Events((parse_rule(rule, CAMVID_CLASSES),))
        shares = [0.5, 0.5, 0.05, 0.5, 0.5, 0.5, 0.5, 0.09, 0.6, 0.6, 0.6]
        for second, share in enumerate(shares):
            events.labelled(labelled(share, 100.0 + second))
            events.labelled(labelled(0.0, 100.0 + second, camera="rear"))
        events.close()
    assert [message["at"][17:19] for _, message in told] == ["45", "50"]  # 105 and 110 s
    headers, message = told[0]
    assert headers["Authorization"] == "Basic bWU6cHc="
    assert (message["camera"], message["class"], message["share"]) == ("front", "pedestrian", 0.5)
    assert (message["threshold"], message["seconds"]) == (0.1, 2.0)
    assert events.sent == 2


def test_what_was_before_a_long_gap_does_not_count() -> None:
    with webhook([]) as (address, told):
        events = Events((parse_rule(f"pedestrian>0.1 for 2s -> http://{address}", CAMVID_CLASSES),))
        events.labelled(labelled(0.5, 100.0))
        events.labelled(labelled(0.5, 110.0, fresh=True))
        events.labelled(labelled(0.5, 111.0))
        events.close()
    assert told == []


def test_a_webhook_that_fails_is_tried_again() -> None:
    with webhook([500]) as (address, told):
        events = Events((parse_rule(f"pedestrian>0.1 -> http://{address}", CAMVID_CLASSES),))
        events.labelled(labelled(0.5, 100.0))
        until(lambda: told)
        events.close()
    assert (events.sent, events.lost) == (1, 0)


def test_a_webhook_that_is_away_costs_only_its_events(caplog: pytest.LogCaptureFixture) -> None:
    url = f"http://me:secret99@127.0.0.1:{free_port()}/hook"
    events = Events((parse_rule(f"pedestrian>0.1 -> {url}", CAMVID_CLASSES),))
    events.labelled(labelled(0.5, 100.0))
    events.close(timeout_seconds=20)
    assert (events.sent, events.lost) == (0, 1)
    assert "secret99" not in caplog.text
    assert "***" in caplog.text


def test_a_topic_is_told_by_mqtt() -> None:
    pytest.importorskip("paho.mqtt.client")
    got: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def broker() -> None:
        """As much of MQTT 3.1.1 as it takes: CONNECT and PUBLISH with quality 1."""
        client, _ = listener.accept()
        with client, client.makefile("rb") as stream:
            while head := stream.read(1):
                length = shift = 0
                while True:
                    byte = stream.read(1)[0]
                    length |= (byte & 127) << shift
                    shift += 7
                    if byte < 128:
                        break
                body = stream.read(length)
                if head[0] >> 4 == 1:
                    client.sendall(b"\x20\x02\x00\x00")
                elif head[0] >> 4 == 3:
                    topic = int.from_bytes(body[:2], "big")
                    got.append(body[2 : 2 + topic])
                    client.sendall(b"\x40\x02" + body[2 + topic : 4 + topic])
                    got.append(body[4 + topic :])

    threading.Thread(target=broker, daemon=True).start()
    target = f"mqtt://127.0.0.1:{listener.getsockname()[1]}/roads/front"
    events = Events((parse_rule(f"pedestrian>0.1 -> {target}", CAMVID_CLASSES),))
    events.labelled(labelled(0.5, 100.0))
    until(lambda: len(got) == 2)
    until(lambda: events.sent == 1)
    events.close()
    listener.close()
    assert got[0] == b"roads/front"
    assert json.loads(got[1])["class"] == "pedestrian"


# Overlays for players.


def test_hls_shows_the_overlay(tmp_path: Path) -> None:
    publisher = Publisher(f"{tmp_path}/{{camera}}/live.m3u8", PALETTE)
    with hub_of([FakeCamera(fps=25)], listeners=(publisher,)) as hub:
        playlist = tmp_path / "0" / "live.m3u8"
        until(playlist.exists)
        until(lambda: hub.cameras()[0].frames > 50)
    publisher.close()
    with av.open(str(playlist)) as played:
        frames = [frame.to_ndarray(format="yuv420p") for frame in played.decode(video=0)]
    assert len(frames) > 20
    assert frames[0].shape == (MODEL_HW[0] * 3 // 2, MODEL_HW[1])
    assert publisher.breaks == 0


@needs_ffmpeg
@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("rtsp://127.0.0.1:{}/x", "-rtsp_flags listen"),
        ("rtmp://127.0.0.1:{}/live/x", "-listen 1"),
    ],
)
def test_pushing_to_a_server_that_comes_later(url: str, server: str, tmp_path: Path) -> None:
    url = url.format(free_port())
    got = tmp_path / "got.mkv"
    publisher = Publisher(url, PALETTE)
    with hub_of([FakeCamera(fps=25)], listeners=(publisher,)) as hub:
        until(lambda: publisher.breaks >= 1)  # nobody is there yet
        command = ["ffmpeg", "-nostdin", "-v", "error", *server.split(), "-i", url, "-c", "copy"]
        receiver = subprocess.Popen([*command, "-t", "2", str(got)])
        try:
            assert receiver.wait(60) == 0
        finally:
            receiver.kill()
        assert hub.failure is None
    publisher.close()
    with av.open(str(got)) as video:
        assert sum(1 for _ in video.decode(video=0)) > 10


def test_an_overlay_blends_colours_with_the_picture(tmp_path: Path) -> None:
    planes = np.full((MODEL_HW[0] * 3 // 2, MODEL_HW[1]), 128, np.uint8)
    labels = np.zeros(MODEL_HW, np.uint8)
    labels[:, 48:] = 3
    shown = Shown("0", 0, 100.0, 100.0, planes, labels)
    stream = OverlayStream(str(tmp_path / "x.m3u8"), PALETTE, shown)
    for place in range(30):
        stream.write(replace(shown, captured_at=100 + place / 25))
    stream.close()
    with av.open(str(tmp_path / "x.m3u8")) as played:
        frame = next(played.decode(video=0)).to_ndarray(format="yuv420p")
    expected = PALETTE.overlay(
        (planes[:64], np.full((32, 48), 128, np.uint8), np.full((32, 48), 128, np.uint8)),
        labels, 0.5, "bt601",
    )  # fmt: skip
    assert abs(int(frame[30, 20]) - int(expected[0][30, 20])) < 6
    assert abs(int(frame[30, 80]) - int(expected[0][30, 80])) < 6


@pytest.mark.parametrize("target", ["x.mp4", "ftp://h/x", "http://h/x"])
def test_wrong_targets(target: str) -> None:
    with pytest.raises(ConfigError):
        check_target(target)


# The command.


def roadmask(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.cli", "live", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, **options
    )


TINY = ("--engine", "counting", "--size", "64x96", "--inline")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "no camera"),
        (("ftp://me:secret99@cam/x",), "ftp://"),
        (("clip.mp4",), "no such file"),
        (("/etc/hostname",), "--realtime"),
        (("rtsp://cam/x", "--max-latency", "0"), "max_latency_ms"),
        (("rtsp://cam/x", "--event", "x"), "event"),
        (("rtsp://cam/x", "--publish", "x.avi"), "--publish"),
        (("rtsp://cam/x", "--size", "64x97"), "multiples of 8"),
        (("rtsp://cam/x", "--view", "8000"), "HOST:PORT"),
        (("rtsp://cam/x", "--overlay"), "--out"),
        (("rtsp://cam/x", "--keep-hours", "1"), "--record"),
        (("rtsp://cam/x", "--record", "x", "--keep-gb", "0"), "keep_bytes"),
        (("rtsp://cam/x", "--record", "x", "--keep-gb", "inf"), "--keep-gb must be a number"),
        (
            ("rtsp://cam/x", "--event", "car>1% -> mqtt://me:secret99/word@broker/t"),
            "no valid address",
        ),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(arguments: tuple[str, ...], told: str) -> None:
    done = roadmask(*arguments, *("--engine", "counting"), "--inline")
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret99" not in done.stderr


@needs_ffmpeg
def test_a_file_is_played_written_and_recorded_to_its_end(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=160x96:rate=10:duration=3", "-c:v", "libx264",
           "-preset", "veryfast", "-g", "10", "-threads", "1", clip)  # fmt: skip
    done = roadmask(
        str(clip), "--realtime", *TINY, "--json",
        "--out", str(tmp_path / "out"), "--record", str(tmp_path / "session"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    states = [line["state"] for line in lines[:-1]]
    assert [state for state in dict.fromkeys(states) if state != "silent"] == [
        "connecting",
        "live",
        "ended",
    ]
    assert lines[-1]["name"] == "clip"
    assert lines[-1]["frames"] + sum(lines[-1]["dropped"].values()) == 30
    (manifest,) = (tmp_path / "out").rglob("manifest.json")
    assert json.loads(manifest.read_text())["frames_out"] == lines[-1]["frames"]
    assert (tmp_path / "session" / "session.json").exists()
    assert list((tmp_path / "session").rglob("*.mkv"))


def test_a_camera_that_never_came_is_a_failure() -> None:
    done = roadmask(f"rtsp://127.0.0.1:{free_port()}/x", *TINY, "--duration", "1")
    assert done.returncode == 1
    assert "error:" in done.stderr
    assert "gave no frame" in done.stderr


@needs_rtsp
@pytest.mark.parametrize("inline", [True, False])
def test_control_c_closes_everything(inline: bool, tmp_path: Path) -> None:
    arguments = TINY if inline else TINY[:-1]
    with RtspServer([mount("/a")]) as server:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "live", server.url("/a", "me:secret99@"), "-v",
             *arguments, "--out", str(tmp_path / "out"), "--record", str(tmp_path / "session")],
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert process.stderr is not None
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line)
            if ": live: " in line:
                break
        until(lambda: list((tmp_path / "session").glob("*/labels/*.log")), 120)
        time.sleep(1)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, the cameras' processes too
        rest = process.stderr.read()
        assert process.wait(60) == 130, rest
    text = "".join(lines) + rest
    assert "secret99" not in text
    assert "Traceback" not in text
    (manifest,) = (tmp_path / "out").rglob("manifest.json")
    assert json.loads(manifest.read_text())["frames_out"] > 0
    assert not list(tmp_path.rglob("*.part"))
    sealed = [path.parent.name for path in (tmp_path / "session").glob("*/*/*.json")]
    assert set(sealed) == {"packets", "labels"}


@needs_ffmpeg
def test_the_view_sees_the_cameras_and_outlives_them(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=160x96:rate=10:duration=1", "-threads", "1", clip)
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "live", str(clip), "--realtime", *TINY,
         "--view", f"127.0.0.1:{port}"], stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        ended = next((line for line in process.stderr if ": ended: " in line), "")
        assert ended
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/streams", timeout=30) as answer:
            (stream,) = json.load(answer)["streams"]
        assert (stream["name"], stream["state"]) == ("clip", "ended")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()


def test_hub_without_cameras_is_not_over() -> None:
    with hub_of([]) as hub:
        assert isinstance(hub, LiveHub)
        assert not hub.over


# What goes wrong with the disk, the clock and the network.


def test_what_is_too_old_goes_though_nothing_can_be_written(tmp_path: Path) -> None:
    """A full disk would stay full."""
    old = kept_segment(tmp_path / "a", "20260131T000000Z", 9000)
    (tmp_path / "0").write_text("a file is in the way")
    segments = SegmentFiles(tmp_path, PALETTE, {}, SegmentOptions(max_age_seconds=3600))
    with hub_of([FakeCamera(fps=50)], listeners=(segments,)) as hub:
        until(lambda: not old.exists())
        assert hub.failure is None
    segments.close()


def test_what_is_too_old_goes_while_a_camera_is_away(tmp_path: Path) -> None:
    old = kept_segment(tmp_path / "a", "20260131T000000Z", 9000)
    segments = SegmentFiles(tmp_path, PALETTE, {}, SegmentOptions(max_age_seconds=3600))
    with hub_of([FakeCamera()], listeners=(segments,)):
        until(lambda: not old.exists())
    segments.close()


def test_what_cannot_be_removed_costs_no_frame_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: SegmentRetention) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(SegmentRetention, "find", fail)
    segments = SegmentFiles(tmp_path, PALETTE, {}, SegmentOptions(0.2, max_bytes=1))
    camera = FakeCamera()
    with hub_of([camera], listeners=(segments,)) as hub:
        feed = hub.subscribe("0")
        for _ in range(8):
            label(hub, camera, feed)
            time.sleep(0.1)
    segments.close()
    assert segments.problems == []
    manifests = [json.loads(path.read_text()) for path in tmp_path.rglob("manifest.json")]
    assert len(manifests) > 1
    assert sum(manifest["frames_out"] for manifest in manifests) == 8


def test_segments_that_go_or_get_their_names_meanwhile_are_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another camera's thread closes its files while this one looks for what is too old."""
    whole = kept_segment(tmp_path / "a", "20260131T000000Z", 9000)
    half = kept_segment(tmp_path / "a", "20260131T000001Z", 9000)
    gone = kept_segment(tmp_path / "a", "20260131T000002Z", 9000)
    scandir = os.scandir

    class Renamed:
        def __init__(self, entry: os.DirEntry[str]) -> None:
            self.name, self.path = entry.name, entry.path

        def is_file(self, follow_symlinks: bool = True) -> bool:
            return True

        def stat(self, follow_symlinks: bool = True) -> os.stat_result:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.path)

    @contextlib.contextmanager
    def changing(path: Path) -> Iterator[list[os.DirEntry[str] | Renamed]]:
        if Path(path) == gone:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        with scandir(path) as entries:
            renamed = Path(path) == half
            yield [Renamed(e) if renamed and e.name == "color.mp4" else e for e in entries]

    retention = SegmentRetention(tmp_path, SegmentOptions(max_age_seconds=3600))
    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", changing)
        found, total = retention.find()
    assert {piece.folder for piece in found} == {whole, half}
    assert total == 500


def test_a_disk_that_stays_full_is_told_of_once_a_camera(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each try names the folder that it could not write, which is another one each second."""
    tries = []

    def fail(self: SegmentFiles, name: str, *_: object) -> None:
        tries.append(name)
        with output_errors(tmp_path / str(len(tries))):
            raise OSError(errno.ENOSPC if len(tries) < 9 else errno.EIO, "full")

    monkeypatch.setattr(segments_module, "_RETRY_SECONDS", 0.0)
    monkeypatch.setattr(SegmentFiles, "_begin", fail)
    segments = SegmentFiles(tmp_path, PALETTE, {}, SegmentOptions())
    with hub_of([FakeCamera(fps=50)], listeners=(segments,)):
        until(lambda: len(tries) > 20)
    segments.close()
    assert [problem.partition(": ")[2][:8] for problem in segments.problems] == [
        "No space",
        "Input/ou",
    ]


@needs_ffmpeg
def test_a_clock_that_is_set_while_it_is_recorded_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packets and labels lie where they came by the monotonic clock, each label where its packet does."""
    clip = tmp_path / "clip.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=160x96:rate=20:duration=4", "-c:v", "libx264",
           "-preset", "veryfast", "-g", "10", "-threads", "1", clip)  # fmt: skip
    real, set_back = time.time, 0.0
    monkeypatch.setattr(time, "time", lambda: real() - set_back)
    with Recorder(tmp_path / "s") as recorder:
        recording = LabelRecording(recorder)
        camera = Camera(parse_address(str(clip), files=True), camera_config(),
                        recorder.camera("front"))  # fmt: skip
        recording.camera_added(None, "front", "")  # type: ignore[arg-type]
        camera.start()
        frames: list[Frame] = []
        states: list[str] = []
        while "ended" not in states:
            news = camera.take(True, 0.2)
            states += [change.state for change in news.changes]
            if news.frame is not None:
                frames.append(news.frame)
                set_back = 3600.0 if len(frames) > 8 else 0.0
                recording.labelled(seen(news.frame))
    session = Session.open(tmp_path / "s")
    files = session.cameras["front"]
    packets = [r for s in files.packets for r in s.records(session.notes)
               if isinstance(r, PacketRecord)]  # fmt: skip
    arrived = [packet.arrived for packet in packets]
    assert len(packets) == 80
    assert packets[-1].wall < packets[0].wall
    assert arrived == sorted(arrived)
    assert arrived[-1] - arrived[0] < 60
    labels = [entry.record for entry in all_entries(session, files, None)]
    assert len(labels) == len(frames) > 15
    came = {packet.pts: packet.arrived for packet in packets}
    assert all(label.captured == came[label.pts] for label in labels)


def seen(frame: Frame, camera: str = "front") -> Labelled:
    """A frame as it was labelled."""
    labels = np.zeros(frame.model_hw, np.uint8)
    shown = Shown(camera, frame.index, frame.captured_at, time.time(), frame.planes, labels)
    state = np.zeros((1, 1, 1), np.float32)
    return Labelled(shown, frame, np.zeros(3, np.float32), False, time.time(), lambda: (state, 1))


def test_a_camera_that_was_removed_lets_go_of_its_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame that was under way then does not open it again."""
    monkeypatch.setattr(writing_module, "_LINGER_SECONDS", 0.05)
    frame = Frame(0, time.time(), 0, (64, 96), np.zeros((96, 96), np.uint8), 0, recording=1)
    with Recorder(tmp_path / "s") as recorder:
        recording = LabelRecording(recorder)
        with hub_of([FakeCamera()], listeners=(recording,)) as hub:
            recording.labelled(seen(frame, "0"))
            until(lambda: list(tmp_path.glob("s/0/labels/*.log")))
            hub.remove("0")
        until(lambda: list(tmp_path.glob("s/0/labels/*.json")))
        until(lambda: "record-0" not in {thread.name for thread in threading.enumerate()})
        recording.labelled(seen(frame, "0"))
        recording.camera_news("0", Delivery(dropped={"overload": 1}))
        assert "record-0" not in {thread.name for thread in threading.enumerate()}
    assert len(list(tmp_path.glob("s/0/labels/*.log"))) == 1


@needs_ffmpeg
@pytest.mark.parametrize("scheme", ["rtsp", "rtmp"])
def test_a_server_that_never_answers_holds_nothing_up(scheme: str, tmp_path: Path) -> None:
    """FFmpeg waits for it for ever, and with it the interpreter: it does so in a process of its own."""
    clip = tmp_path / "clip.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=160x96:rate=10:duration=1", "-threads", "1", clip)

    def hear(client: socket.socket) -> None:
        while client.recv(65536):
            pass

    with tcp_server(hear) as port:
        done = roadmask(str(clip), "--realtime", *TINY, "--json",
                        "--publish", f"{scheme}://127.0.0.1:{port}/live/x")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["frames"] > 0
