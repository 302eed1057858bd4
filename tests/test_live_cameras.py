"""Cameras that come, go, hang and send rubbish: real servers, and everything that FFmpeg can be asked for."""

from __future__ import annotations

import contextlib
import errno
import gc
import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
import pytest

from pipeline.engines.counting import MODULUS, CountingEngine
from pipeline.live.address import Address, parse_address
from pipeline.live.camera import Camera
from pipeline.live.connection import CameraError, Connection, has_protocol
from pipeline.live.delivery import CameraConfig, Delivery, Frame
from pipeline.live.hub import CameraStatus, Shown
from pipeline.live.lane import Feed
from pipeline.live.live import LiveHub, MakeCamera
from pipeline.live.waiting import Backoff
from tests.cameras import (
    RtspServer,
    camera_config,
    certificate,
    free_port,
    has_rtsp_server,
    mount,
    number_of,
    steps_of,
    tcp_server,
    tls_in_front_of,
    until,
)
from tests.media import ffmpeg, has_ffmpeg

needs_rtsp = pytest.mark.skipif(
    not has_rtsp_server(), reason="GStreamer's RTSP server is not installed"
)
needs_ffmpeg = pytest.mark.skipif(not has_ffmpeg(), reason="the ffmpeg command is not installed")
RECONNECTS = 30  # 200 by hand: python -m tests.bench.live --reconnects 200


def counting(model_hw: tuple[int, int]) -> CountingEngine:
    return CountingEngine(model_hw, 16)


def inline(name: str, address: Address, config: CameraConfig) -> Camera:
    return Camera(address, config)


@contextlib.contextmanager
def watching(url: str, **changes: Any) -> Iterator[tuple[Camera, Callable[[float], Delivery]]]:
    """A camera of its own, and what takes its deliveries until one has a frame or news."""
    address = parse_address(url, files=True)
    camera = Camera(address, camera_config(**changes))
    camera.start()

    def take(seconds: float = 60.0) -> Delivery:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            delivery = camera.take(True, 1.0)
            if delivery.frame is not None or delivery.changes:
                return delivery
        raise AssertionError("nothing came from the camera")

    try:
        yield camera, take
    finally:
        camera.stop()
        camera.join(15.0)


def state_after(take: Callable[[float], Delivery], wanted: str) -> str:
    """Waits for a state; the reason that was given for it."""
    while True:
        for change in take(60.0).changes:
            if change.state == wanted:
                return change.reason


def frames_of(take: Callable[[float], Delivery], count: int) -> list[Frame]:
    frames: list[Frame] = []
    while len(frames) < count:
        frame = take(60.0).frame
        frames += [frame] if frame is not None else []
    return frames


class Collector:
    """Takes every frame of a camera."""

    def __init__(self, feed: Feed) -> None:
        self.frames: list[Shown] = []
        self._feed = feed
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while not self._feed.over:
            shown = self._feed.take(0.5)
            self.frames += [shown] if shown is not None else []


def status_of(hub: LiveHub, name: str) -> CameraStatus:
    return next(status for status in hub.cameras() if status.name == name)


@contextlib.contextmanager
def cameras_of(where: str) -> Iterator[MakeCamera]:
    """Makes cameras in threads of this process or in processes of their own."""
    if where == "threads":
        yield inline
        return
    from pipeline.live.actors import remote_cameras

    with remote_cameras(None) as make_camera:
        yield make_camera


@needs_rtsp
@pytest.mark.parametrize("where", ["threads", "processes"])
def test_eight_cameras_of_which_four_misbehave(where: str) -> None:
    good = ("a", "b", "c", "d")
    steady = RtspServer(
        [*(mount(f"/{name}") for name in good), mount("/switching", (1280, 720)),
         mount("/garbage", kind="garbage")]
    )  # fmt: skip
    with (
        steady,
        RtspServer([mount("/killed")]) as killed,
        RtspServer([mount("/frozen")]) as frozen,
        cameras_of(where) as make_camera,
        # With these a machine that stands still for seconds costs no frame and looks like no lost camera.
        LiveHub(
            camera_config(
                silence_seconds=12.0, quiet_seconds=5.0, queue_frames=60, max_latency_seconds=20.0
            ),
            counting, make_camera, longest_gap_seconds=6.0,
        ) as hub,
    ):  # fmt: skip
        for name in (*good, "switching", "garbage"):
            hub.add(steady.url(f"/{name}"), name)
        hub.add(killed.url("/killed"), "killed")
        hub.add(frozen.url("/frozen"), "frozen")
        alive = (*good, "switching", "killed", "frozen")
        until(lambda: all(status_of(hub, name).frames >= 5 for name in alive), 180)
        before = {name: status_of(hub, name) for name in (*alive, "garbage")}
        collectors = {name: Collector(hub.subscribe(name, depth=1000)) for name in good}

        killed.kill()
        frozen.freeze()
        steady.resize("/switching", 848, 480)
        until(lambda: status_of(hub, "killed").state == "reconnecting")
        until(lambda: status_of(hub, "frozen").changes.get("silent"))
        until(lambda: status_of(hub, "frozen").state == "reconnecting")
        until(lambda: status_of(hub, "switching").size_hw == (480, 848))
        until(lambda: status_of(hub, "garbage").dropped.get("damaged", 0) > 0)
        gone_until = time.time()
        killed.start()
        back_at = time.time()
        until(lambda: status_of(hub, "killed").state == "live")
        frozen.thaw()
        until(lambda: status_of(hub, "frozen").state == "live")
        frames = {name: len(collectors[name].frames) for name in good}
        until(lambda: all(len(collectors[name].frames) > frames[name] + 5 for name in good))

        for name in good:  # lost nothing, whatever the others did
            shown = list(collectors[name].frames)
            assert len(shown) > 20
            indices = [frame.frame_index for frame in shown]
            numbers = [number_of(frame.planes) for frame in shown]
            assert indices == list(range(indices[0], indices[0] + len(shown)))
            assert numbers == list(range(numbers[0], numbers[0] + len(shown)))
            after = status_of(hub, name)
            assert after.dropped == before[name].dropped
            assert after.resets == before[name].resets
            assert after.reconnects == before[name].reconnects
            steps = [steps_of(frame) for frame in shown]
            assert steps == [(steps[0] + place) % MODULUS for place in range(len(shown))]
        was_killed = status_of(hub, "killed")
        came = Counter(was_killed.changes) - Counter(before["killed"].changes)
        assert came["reconnecting"] == 1
        live_at = [change.at for change in was_killed.history if change.state == "live"]
        again_at = next(at for at in live_at if at >= gone_until)
        assert again_at - back_at < 5.0 + 10.0  # the last for a loaded machine
        until(lambda: status_of(hub, "killed").frames > was_killed.frames)
        for name in ("killed", "switching"):
            assert status_of(hub, name).resets == before[name].resets + 1
        assert status_of(hub, "garbage").frames == 0


@needs_rtsp
def test_a_camera_process_that_dies_is_replaced_and_its_counts_go_on() -> None:
    import ray

    from pipeline.live.actors import RemoteCamera, remote_cameras

    made: list[RemoteCamera] = []
    with (
        RtspServer([mount("/a")]) as server,
        remote_cameras(None) as make_camera,
    ):

        def make(name: str, address: Address, config: CameraConfig) -> RemoteCamera:
            made.append(make_camera(name, address, config))  # type: ignore[arg-type]
            return made[-1]

        with LiveHub(camera_config(), counting, make) as hub:
            hub.add(server.url("/a"), "a")
            feed = hub.subscribe("a")
            until(lambda: status_of(hub, "a").frames >= 5, 120)
            last = until(lambda: feed.take(1))
            ray.kill(made[0]._actor)
            until(lambda: status_of(hub, "a").state == "reconnecting")
            assert any("process" in change.reason for change in status_of(hub, "a").history)
            before = status_of(hub, "a")
            until(lambda: status_of(hub, "a").frames > before.frames + 3, 120)
            after = status_of(hub, "a")
            assert after.reconnects == 1
            newest = until(lambda: feed.take(1))
            assert newest.frame_index > last.frame_index


@needs_rtsp
def test_a_camera_over_udp() -> None:
    with RtspServer([mount("/a")]) as server:
        url = server.url("/a").replace("rtsp://", "rtspu://")
        with watching(url) as (_, take):
            numbers = [number_of(frame.planes) for frame in frames_of(take, 8)]
            assert numbers == sorted(set(numbers))


@needs_rtsp
def test_a_frozen_server_is_silent_then_opened_again_and_no_password_is_told() -> None:
    with (
        RtspServer([mount("/a")]) as server,
        watching(server.url("/a", "user:secret99@"), silence_seconds=8.0, open_seconds=8.0) as (
            _,
            take,
        ),
    ):
        changes = []
        frames_of(take, 3)
        server.freeze()
        while "reconnecting" not in (states := [change.state for change in changes]):
            changes += take(60.0).changes
        assert states[-2:] == ["silent", "reconnecting"]
        assert changes[-1].reason == "nothing came for 8 s"
        server.thaw()
        state_after(take, "live")
        assert "secret99" not in repr(changes)


@needs_rtsp
def test_a_server_that_is_away_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    server = RtspServer([mount("/a")])
    with server:
        pass  # it has a port now
    with watching(server.url("/a", "user:secret99@"), longest_wait_seconds=0.1) as (camera, take):
        assert "Connection refused" in state_after(take, "reconnecting")
        time.sleep(1.0)  # some ten attempts
        delivery = camera.take(True, 0.1)
        assert (delivery.changes, delivery.connections) == ((), 0)
        with server:
            state_after(take, "live")
    assert "secret99" not in caplog.text


@needs_rtsp
def test_reconnecting_leaks_nothing() -> None:
    """In a process of its own: its threads, files and memory are nobody else's."""
    done = subprocess.run(
        [sys.executable, "-c", "from tests.test_live_cameras import reconnect_often; reconnect_often()"],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def reconnect_often() -> None:
    """Raises AssertionError if threads, files or memory grow with the reconnects of a camera."""
    with (
        RtspServer([mount("/a", fps=20)]) as server,
        watching(server.url("/a"), longest_wait_seconds=0.02) as (camera, take),
    ):
        frames_of(take, 1)
        baseline: tuple[int, int, float] | None = None
        for count in range(1, RECONNECTS + 1):
            server.drop()
            until(lambda: camera.take(True, 0.2).connections > count)  # noqa: B023
            frames_of(take, 1)
            if count == RECONNECTS // 3:
                baseline = resources()
        assert baseline is not None
        threads, files, memory_mb = resources()
        assert threads <= baseline[0], f"{threads} threads, {baseline[0]} before"
        assert files <= baseline[1], f"{files} files, {baseline[1]} before"
        assert memory_mb - baseline[2] < 15, f"{memory_mb} MB, {baseline[2]} before"


def resources() -> tuple[int, int, float]:
    """Threads, open files and resident memory (MB) of this process."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    resident_kb = int(status.partition("VmRSS:")[2].split()[0])
    return threading.active_count(), len(os.listdir("/proc/self/fd")), resident_kb / 1024


# Servers that are none.


def rubbish(client: socket.socket) -> None:
    while True:
        client.sendall(os.urandom(4096))
        time.sleep(0.001)


def silence(client: socket.socket) -> None:
    while client.recv(4096):
        pass


def hang_up(client: socket.socket) -> None:
    client.recv(1)


@pytest.mark.parametrize("serve", [rubbish, silence, hang_up])
@pytest.mark.parametrize("scheme", ["rtsp", "http", "rtmp"])
def test_what_is_no_camera_never_stops_the_trying(
    scheme: str, serve: Callable[[socket.socket], None]
) -> None:
    with (
        tcp_server(serve) as port,
        watching(
            f"{scheme}://user:secret99@127.0.0.1:{port}/x", open_seconds=1.0, silence_seconds=2.0,
            longest_wait_seconds=0.1,
        ) as (camera, take),
    ):  # fmt: skip
        reason = state_after(take, "reconnecting")
        assert "secret99" not in reason
        assert len(reason.splitlines()) == 1
        assert camera._reader.is_alive()


def test_a_camera_that_is_given_up_says_why() -> None:
    with (
        tcp_server(hang_up) as port,
        watching(f"http://127.0.0.1:{port}/x", attempts=3, longest_wait_seconds=0.1) as (_, take),
    ):
        assert "cannot be opened" in state_after(take, "ended")


def test_a_wrong_password_is_tried_more_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Backoff, bool]] = []
    real = Backoff.next_seconds

    def next_seconds(self: Backoff, refused: bool) -> float:
        asked.append((self, refused))
        return real(self, refused)

    monkeypatch.setattr(Backoff, "next_seconds", next_seconds)

    def refuse(client: socket.socket) -> None:
        client.recv(4096)
        client.sendall(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")

    with (
        tcp_server(refuse) as port,
        watching(f"http://me:secret99@127.0.0.1:{port}/x") as (camera, take),
    ):
        reason = state_after(take, "reconnecting")
        assert "401" in reason or "authorization" in reason.lower()
        assert "secret99" not in reason
        assert {refused for backoff, refused in asked if backoff is camera._backoff} == {True}


@pytest.mark.skipif(has_protocol("srt"), reason="this FFmpeg has SRT")
def test_srt_without_srt_in_the_build_says_so_and_ends() -> None:
    with watching("srt://127.0.0.1:9000") as (_, take):
        assert "without srt://" in state_after(take, "ended")


def test_a_device_that_is_not_there_is_waited_for() -> None:
    with watching("/dev/video977", longest_wait_seconds=0.1) as (camera, take):
        assert "no such device" in state_after(take, "reconnecting")
        until(lambda: camera._backoff.attempts > 2)


@pytest.mark.parametrize("path", ["/dev/null", "/etc/hostname", "/tmp"])
def test_what_is_no_video_device_is_told(path: str) -> None:
    with pytest.raises(CameraError, match="cannot be opened: this is no video device"):
        Connection(Address(path, "device", path), 5.0, 5.0)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (av.error.OSError(errno.EBUSY, "busy", "/dev/video0"), "another program uses it"),
        (av.error.PermissionError(errno.EACCES, "denied", "/dev/video0"), "group `video`"),
        (av.error.OSError(errno.EIO, "Input/output error", "/dev/video0"), "Input/output error"),
        (ValueError("no container format 'v4l2'"), "built without v4l2"),
    ],
)
def test_a_device_that_cannot_be_opened_says_why(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(av, "open", refuse)
    with pytest.raises(CameraError, match=reason) as raised:
        Connection(parse_address("/dev/video0"), 5.0, 5.0)
    assert raised.value.hopeless == isinstance(error, ValueError)


def test_the_build_has_the_ways_in_that_are_promised() -> None:
    for scheme in ("rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "udp"):
        assert has_protocol(scheme), scheme
    with pytest.raises(av.error.FileNotFoundError):  # not ValueError: the format is known
        av.open("/dev/video977", format="v4l2")


# Other ways to send.


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("live") / "clip.ts"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=160x96:rate=10:duration=4", "-c:v", "libx264",
           "-preset", "veryfast", "-bf", "2", "-g", "10", "-threads", "1", path)  # fmt: skip
    return path


@contextlib.contextmanager
def sender(clip: Path, *output: str) -> Iterator[None]:
    """The `ffmpeg` command, sending a clip over and over at its own pace."""
    command = ["ffmpeg", "-nostdin", "-v", "error", "-re", "-stream_loop", "-1", "-i", str(clip)]
    process = subprocess.Popen([*command, *output])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@needs_ffmpeg
@pytest.mark.parametrize(
    ("url", "arguments"),
    [
        ("http://127.0.0.1:{}/x.ts", "-c copy -f mpegts -listen 1"),
        ("http://127.0.0.1:{}/x.mjpg", "-c:v mjpeg -f mpjpeg -listen 1"),
        ("rtmp://127.0.0.1:{}/live/x", "-c copy -f flv -listen 1"),
        ("udp://127.0.0.1:{}", "-c copy -f mpegts"),
    ],
)
def test_other_protocols(url: str, arguments: str, clip: Path) -> None:
    url = url.format(free_port())
    with (
        sender(clip, *arguments.split(), url),
        watching(url, longest_wait_seconds=0.2) as (_, take),
    ):
        frames = frames_of(take, 10)
        assert all(frame.size_hw == (96, 160) for frame in frames)
        indices = [frame.index for frame in frames]
        assert indices == sorted(set(indices))


@needs_rtsp
def test_rtsp_inside_tls(tmp_path: Path) -> None:
    with (
        RtspServer([mount("/a")]) as server,
        tls_in_front_of(server.port, certificate(tmp_path)) as port,
        watching(f"rtsps://user:secret99@127.0.0.1:{port}/a", longest_wait_seconds=0.2) as (
            _,
            take,
        ),
    ):
        numbers = [number_of(frame.planes) for frame in frames_of(take, 8)]
        assert numbers == sorted(set(numbers))
        server.drop()
        assert "secret99" not in state_after(take, "reconnecting")
        state_after(take, "live")


@needs_ffmpeg
def test_rtmp_inside_tls(clip: Path, tmp_path: Path) -> None:
    port = free_port()
    with (
        sender(
            clip, *["-c", "copy", "-f", "flv", "-listen", "1"], f"rtmp://127.0.0.1:{port}/live/x"
        ),
        tls_in_front_of(port, certificate(tmp_path)) as secure,
        watching(f"rtmps://127.0.0.1:{secure}/live/x", longest_wait_seconds=0.2) as (_, take),
    ):
        assert all(frame.size_hw == (96, 160) for frame in frames_of(take, 10))


def jpegs(clip: Path) -> list[bytes]:
    """Each frame of a clip as a picture."""
    with av.open(str(clip)) as container:
        pictures = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    return [cv2.imencode(".jpg", picture)[1].tobytes() for picture in pictures]


class CameraHandler(http.server.BaseHTTPRequestHandler):
    """A camera's web server: pictures or a transport stream for whoever knows the password, for as long
    as the server says, then it hangs up."""

    protocol_version = "HTTP/1.1"
    server: CameraServer

    def do_GET(self) -> None:
        self.server.requests += 1
        if self.headers["Authorization"] != "Basic bWU6c2VjcmV0OTk=":  # me:secret99
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="camera"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.close_connection = True
        with contextlib.suppress(OSError):
            self._pictures() if self.path.startswith("/x.mjpg") else self._stream()

    def _pictures(self) -> None:
        self._begin("multipart/x-mixed-replace; boundary=frame")
        for picture in self.server.pictures:
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
            self.wfile.write(head.encode() + picture + b"\r\n")
            time.sleep(0.05)

    def _stream(self) -> None:
        self._begin("video/mp2t")
        data = self.server.stream
        for begin in range(0, len(data), step := max(188, len(data) // 40)):
            self.wfile.write(data[begin : begin + step])
            time.sleep(0.05)

    def _begin(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


class CameraServer(http.server.ThreadingHTTPServer):
    daemon_threads = True
    requests = 0
    pictures: list[bytes]
    stream: bytes


@needs_ffmpeg
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("path", ["x.mjpg", "x.ts?token=secret77"])
def test_a_web_server_with_a_password_that_hangs_up_now_and_then(
    scheme: str, path: str, clip: Path, tmp_path: Path
) -> None:
    server = CameraServer(("127.0.0.1", 0), CameraHandler)
    server.pictures, server.stream = jpegs(clip), clip.read_bytes()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with contextlib.ExitStack() as stack:
        stack.callback(server.server_close)
        stack.callback(server.shutdown)
        port = server.server_port
        if scheme == "https":
            port = stack.enter_context(tls_in_front_of(port, certificate(tmp_path)))
        url = f"{scheme}://me:secret99@127.0.0.1:{port}/{path}"
        _, take = stack.enter_context(watching(url, longest_wait_seconds=0.2))
        frames = frames_of(take, 15)
        reason = state_after(take, "reconnecting")
        frames += frames_of(take, 5)
    assert all(frame.size_hw == (96, 160) for frame in frames)
    indices = [frame.index for frame in frames]
    assert indices == sorted(set(indices))
    assert frames[-1].connection > frames[0].connection
    assert not any(secret in reason for secret in ("secret99", "secret77"))
    assert server.requests >= 2


@needs_ffmpeg
def test_hls_is_played_at_its_own_pace(clip: Path, tmp_path: Path) -> None:
    ffmpeg("-i", clip, "-c", "copy", "-f", "hls", "-hls_time", "1", "-hls_list_size", "0",
           tmp_path / "x.m3u8")  # fmt: skip
    handler = partial(QuietHandler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with watching(f"http://127.0.0.1:{server.server_port}/x.m3u8") as (_, take):
            frames = frames_of(take, 15)
    finally:
        server.shutdown()
        server.server_close()
    span = frames[-1].captured_at - frames[0].captured_at
    assert span > 0.05 * (
        frames[-1].index - frames[0].index
    )  # ten a second; a segment comes at once


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_a_playlist_from_outside_reads_no_file_here(tmp_path: Path) -> None:
    (tmp_path / "x.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n")
    handler = partial(QuietHandler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/x.m3u8"
        with watching(url, longest_wait_seconds=0.1) as (_, take):
            assert state_after(take, "reconnecting")
    finally:
        server.shutdown()
        server.server_close()


@needs_ffmpeg
def test_a_file_is_played_once_at_its_own_pace_and_every_frame_is_accounted_for(clip: Path) -> None:
    hub = LiveHub(camera_config(queue_frames=40), counting, inline)
    with hub:
        hub.add_address(parse_address(str(clip), files=True), "clip")
        collector = Collector(hub.subscribe("clip", depth=100))
        until(lambda: hub.over)
        (status,) = hub.cameras()
    assert status.frames + sum(status.dropped.values()) == 40
    assert status.frames >= 30  # those that come while the network is made are dropped
    span = collector.frames[-1].captured_at - collector.frames[0].captured_at
    played = collector.frames[-1].frame_index - collector.frames[0].frame_index
    assert span > 0.05 * played  # ten a second
    assert status.history[-1].reason == "the stream ended"
