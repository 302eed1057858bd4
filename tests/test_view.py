"""The view's server: what it encodes and sends, to whom, and what it costs; without a browser."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import aiohttp
import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.live.hub import CameraStatus, Shown, StateChange
from pipeline.view import ViewConfig, start_view
from pipeline.view.channel import Message, Timeline
from pipeline.view.fmp4 import STRIP_ROWS, FragmentEncoder
from pipeline.view.metrics import ViewerCounts, metrics_text
from pipeline.view.server import View
from pipeline.view.viewers import Viewer
from pipeline.view.wire import (
    Picture,
    UnpackedFrame,
    pack_frame,
    pack_labels,
    unpack_frame,
    unpack_labels,
)
from tests.fake_hub import FakeHub, numbered, street

PATIENCE_SECONDS = 60.0


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    hub = FakeHub(numbered(), 25.0)
    hub.add("rtsp://viewer:tops3cret@camera.example/one?token=tops3cret", "front")
    yield hub
    hub.close()


@pytest.fixture
def view(hub: FakeHub) -> Iterator[View]:
    with start_view(hub, ViewConfig(port=0)) as view:
        yield view


def wait_for(holds: Callable[[], bool]) -> None:
    limit = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < limit, "it did not come about"
        time.sleep(0.02)


async def frames_of(url: str, kinds: dict[str, str], count: int) -> list[UnpackedFrame]:
    """The first frames that a viewer of these cameras gets."""
    found: list[UnpackedFrame] = []
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{url}ws") as ws:
        await ws.send_json({"type": "watch", "cameras": kinds})
        while len(found) < count:
            message = await ws.receive(PATIENCE_SECONDS)
            if message.type is aiohttp.WSMsgType.BINARY:
                found.append(unpack_frame(message.data))
            else:
                assert message.type is aiohttp.WSMsgType.TEXT
    return found


def watch(view: View, kinds: dict[str, str], count: int) -> list[UnpackedFrame]:
    return asyncio.run(frames_of(view.url, kinds, count))


def decoded(fragments: list[bytes]) -> list[tuple[int, np.ndarray]]:
    """Time and limited-range luma of each frame, by FFmpeg's own demuxer and decoder."""
    with av.open(io.BytesIO(b"".join(fragments))) as file:
        time_base = file.streams.video[0].time_base
        assert time_base is not None
        return [
            # As "gray" it comes in full range, whatever it was.
            (
                round((frame.pts or 0) * time_base * 1000),
                16 + frame.to_ndarray(format="gray") * (219 / 255),
            )
            for frame in file.decode(video=0)
        ]


# What is sent


@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
    classes=st.integers(1, 256),
)
@settings(max_examples=50, deadline=None)
def test_labels_survive_packing(rows: int, columns: int, seed: int, classes: int) -> None:
    labels = np.random.default_rng(seed).integers(0, classes, (rows, columns), np.uint8)
    assert np.array_equal(unpack_labels(pack_labels(labels), labels.shape), labels)


def test_packed_labels_of_a_street_are_small() -> None:
    _, labels = street(1)[0]
    assert len(pack_labels(labels)) < labels.size / 30


def test_frame_survives_packing() -> None:
    planes, labels = numbered()[3]
    shown = Shown("hinten-ü", 3, 1.5, 1.75, planes, labels)
    picture = Picture("h264", True, "avc1.42c01e", b"header", b"data")
    found = unpack_frame(pack_frame(shown, 1234, picture, pack_labels(labels)))
    assert (found.camera, found.frame_index, found.pts_ms) == ("hinten-ü", 3, 1234)
    assert (found.captured_at, found.labelled_at) == (1.5, 1.75)
    assert found.picture == picture
    assert np.array_equal(found.labels, labels)


def test_cut_frame_is_refused() -> None:
    planes, labels = numbered()[0]
    picture = Picture("jpeg", True, "", b"", b"data")
    message = pack_frame(Shown("a", 0, 0, 0, planes, labels), 0, picture, pack_labels(labels))
    with pytest.raises(ValueError, match="a frame must have"):
        unpack_frame(message[:-1])
    with pytest.raises(ValueError, match="protocol 1"):
        unpack_frame(b"\x02" + message[1:])


def test_fragments_decode_with_their_own_times_and_numbers() -> None:
    encoder = FragmentEncoder((96, 128))
    frames = [planes for planes, _ in numbered()[:12]]
    times = [1000, 1040, 1081, 1119, 1160, 1201, 1240, 1280, 1320, 1360, 1400, 1440]
    made = [
        encoder.encode(planes, 40_000 + index, pts_ms, keyframe=index == 5)
        for index, (planes, pts_ms) in enumerate(zip(frames, times, strict=True))
    ]
    encoder.close()
    assert [index for index, fragment in enumerate(made) if fragment.keyframe] == [0, 5]
    assert all(bool(fragment.init) == fragment.keyframe for fragment in made)
    assert made[0].codec.startswith("avc1.42")
    found = decoded([made[0].init, *(fragment.data for fragment in made)])
    assert [pts for pts, _ in found] == times
    for index, (_, luma) in enumerate(found):
        assert luma.shape == (96 + STRIP_ROWS, 128)
        assert abs(float(luma[:96].mean()) - float(frames[index][:96].mean())) < 4
        bits = luma[96 + STRIP_ROWS // 2, 4::8] > 127
        assert sum(int(bit) << place for place, bit in enumerate(bits)) == 40_000 + index


def test_viewer_can_start_at_any_keyframe() -> None:
    encoder = FragmentEncoder((96, 128))
    frames = [planes for planes, _ in numbered()[:8]]
    made = [encoder.encode(p, i, 40 * i, keyframe=i == 4) for i, p in enumerate(frames)]
    encoder.close()
    found = decoded([made[4].init, *(fragment.data for fragment in made[4:])])
    assert [pts for pts, _ in found] == [160, 200, 240, 280]


def test_keyframes_come_by_the_clock_and_after_pauses() -> None:
    encoder = FragmentEncoder((96, 128))
    planes, _ = numbered()[0]
    steady = [encoder.encode(planes, i, 100 * i).keyframe for i in range(41)]
    assert [i for i, keyframe in enumerate(steady) if keyframe] == [0, 20, 40]
    assert not encoder.encode(planes, 41, 4250).keyframe  # an uneven step is no pause
    assert encoder.encode(planes, 42, 5200).keyframe
    encoder.close()


def test_times_always_increase_whatever_the_clock_does() -> None:
    timeline = Timeline(100.0)
    assert [timeline.pts_ms(at) for at in (100.5, 100.54, 100.54, 100.53)] == [500, 540, 541, 542]
    assert timeline.pts_ms(50.0) == 582  # set back by 50 s: goes on as if nothing had happened
    assert timeline.pts_ms(50.04) == 622


def test_each_frame_comes_with_its_own_labels(view: View) -> None:
    for kind in ("h264", "jpeg"):
        found = watch(view, {"front": kind}, 15)
        for frame in found:
            assert np.all(frame.labels == frame.frame_index % 11)
            assert frame.labels.shape == (96, 128)
            assert frame.captured_at <= frame.labelled_at
        lumas = (
            [luma for _, luma in decoded([found[0].picture.init, *(f.picture.data for f in found)])]
            if kind == "h264"
            else [decoded([frame.picture.data])[0][1] for frame in found]
        )
        for frame, luma in zip(found, lumas, strict=True):
            assert abs(float(luma[:96].mean()) - (40 + 16 * (frame.frame_index % 11))) < 4


def test_change_of_size_starts_a_new_header(view: View, hub: FakeHub) -> None:
    async def sizes() -> list[tuple[tuple[int, ...], bytes]]:
        found: list[tuple[tuple[int, ...], bytes]] = []
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{view.url}ws") as ws:
            await ws.send_json({"type": "watch", "cameras": {"front": "h264"}})
            while len({size for size, _ in found}) < 2:
                message = await ws.receive(PATIENCE_SECONDS)
                if message.type is not aiohttp.WSMsgType.BINARY:
                    continue
                frame = unpack_frame(message.data)
                found.append((frame.labels.shape, frame.picture.init))
                hub.by_name["front"].frames = numbered(size_hw=(64, 160))
        return found

    found = asyncio.run(sizes())
    assert found[-1][0] == (64, 160)
    assert found[-1][1]
    assert found[-1][1] != found[0][1]


# Who gets it, and what it costs


def test_nothing_is_encoded_unless_somebody_watches(view: View, hub: FakeHub) -> None:
    assert hub.listeners("front") == 0
    watch(view, {"front": "h264"}, 3)
    wait_for(lambda: hub.listeners("front") == 0)


def test_all_viewers_share_one_encoder(view: View, hub: FakeHub) -> None:
    most = 0

    async def together() -> list[list[UnpackedFrame]]:
        nonlocal most
        viewers = [
            asyncio.create_task(frames_of(view.url, {"front": "h264"}, 60)) for _ in range(5)
        ]
        while not all(task.done() for task in viewers):
            most = max(most, hub.listeners("front"))
            await asyncio.sleep(0.05)
        return [task.result() for task in viewers]

    by_viewer = asyncio.run(together())
    assert most == 1
    for found in by_viewer:
        assert found[0].picture.keyframe
    common = set.intersection(*({f.frame_index for f in found} for found in by_viewer))
    assert common
    data = [{f.frame_index: f.picture.data for f in found} for found in by_viewer]
    assert all(len({by_index[i] for by_index in data}) == 1 for i in common)


def test_viewer_that_stops_reading_is_dropped_and_harms_nobody(hub: FakeHub) -> None:
    hub.by_name["front"].frames = street(20)
    with start_view(hub, ViewConfig(port=0, stall_seconds=1.5)) as view:
        deaf = deaf_viewer(view.url)
        wait_for(lambda: metric(view, "roadmask_viewers") == 1)
        hub.by_name["front"].fps = 8.0  # of more, a busy machine skips some for this viewer too
        found = watch(view, {"front": "h264"}, 50)
        indices = [frame.frame_index for frame in found]
        assert np.median(np.diff(indices)) == 1
        wait_for(lambda: metric(view, 'roadmask_viewers_left_total{reason="stalled"}') == 1)
        assert metric(view, "roadmask_viewers") == 0
        deaf.close()


def deaf_viewer(url: str) -> socket.socket:
    """A viewer that asks for a camera and then never reads."""
    host, port = url.removeprefix("http://").rstrip("/").split(":")
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect((host, int(port)))
    key = base64.b64encode(os.urandom(16)).decode()
    request = (
        f"GET /ws HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    deaf.sendall(request.encode())
    text = json.dumps({"type": "watch", "cameras": {"front": "h264"}}).encode()
    mask = b"\x01\x02\x03\x04"
    masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(text))
    deaf.sendall(bytes((0x81, 0x80 | len(text))) + mask + masked)
    return deaf


def metric(view: View, name: str) -> float:
    async def read() -> str:
        async with aiohttp.ClientSession() as session, session.get(f"{view.url}metrics") as answer:
            return await answer.text()

    lines = asyncio.run(read()).splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))


class _Wire:
    """Stands for a WebSocket: keeps what is sent, and holds it up on demand."""

    def __init__(self) -> None:
        self.closed = False
        self.sent: list[bytes | str] = []
        self.open = asyncio.Event()
        self.open.set()

    async def send_bytes(self, data: bytes) -> None:
        await self.open.wait()
        self.sent.append(data)

    send_str = send_bytes


def test_slow_viewer_skips_to_the_newest_frames_and_starts_at_a_keyframe() -> None:
    async def scenario() -> tuple[list[bytes | str], int]:
        wire = _Wire()
        viewer = Viewer(wire)  # type: ignore[arg-type]
        viewer.watch({"front": "h264", "rear": "jpeg"})
        serving = asyncio.create_task(viewer.serve())
        viewer.offer(Message("front", "h264", False, b"too early"))
        viewer.offer(Message("front", "h264", True, b"k0"))
        await asyncio.sleep(0.05)
        wire.open.clear()
        for index in range(1, 40):
            viewer.offer(Message("front", "h264", index == 35, f"f{index}".encode()))
            viewer.offer(Message("rear", "jpeg", True, f"r{index}".encode()))
            await asyncio.sleep(0)
        assert viewer.stalled_seconds() > 0
        wire.open.set()
        await asyncio.sleep(0.05)
        assert viewer.stalled_seconds() == 0
        serving.cancel()
        return wire.sent, viewer.skipped

    sent, skipped = asyncio.run(scenario())
    front = [data for data in sent if data[:1] in (b"k", b"f")]
    rear = [data for data in sent if data[:1] == b"r"]
    # What was already being sent goes on; then everything from the newest keyframe.
    assert front == [b"k0", b"f1", b"f35", b"f36", b"f37", b"f38", b"f39"]
    assert rear[-1] == b"r39"
    assert len(rear) <= 2
    assert skipped >= 33 + 36


def test_unknown_cameras_start_nothing(view: View) -> None:
    async def ask() -> int:
        before = threading.active_count()
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{view.url}ws") as ws:
            await ws.receive(PATIENCE_SECONDS)
            for round_ in range(50):
                names = {f"nobody-{round_}-{i}": "h264" for i in range(60)}
                await ws.send_json({"type": "watch", "cameras": names})
            await ws.send_json({"type": "ping", "sent_ms": 1.0})
            while json.loads((await ws.receive(PATIENCE_SECONDS)).data)["type"] != "pong":
                pass
            return threading.active_count() - before

    assert asyncio.run(ask()) < 20


def test_camera_that_is_removed_and_added_again_is_seen_again(view: View, hub: FakeHub) -> None:
    async def seen() -> None:
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{view.url}ws") as ws:
            await ws.send_json({"type": "watch", "cameras": {"front": "jpeg"}})
            for replace in (True, False):
                while (await ws.receive(PATIENCE_SECONDS)).type is not aiohttp.WSMsgType.BINARY:
                    pass
                if replace:
                    await asyncio.to_thread(hub.remove, "front")
                    await asyncio.to_thread(hub.add, "rtsp://camera.example/two", "front")

    asyncio.run(seen())


def test_too_many_viewers_are_turned_away(hub: FakeHub) -> None:
    async def second(url: str) -> int:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{url}ws"),
            session.get(f"{url}ws", headers={"Connection": "upgrade"}) as answer,
        ):
            return answer.status

    with start_view(hub, ViewConfig(port=0, max_viewers=1)) as view:
        assert asyncio.run(second(view.url)) == 429


def test_closing_leaves_no_thread_and_no_listener(hub: FakeHub) -> None:
    before = set(threading.enumerate())
    view = start_view(hub, ViewConfig(port=0))

    async def watch_then_close() -> int | None:
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{view.url}ws") as ws:
            await ws.send_json({"type": "watch", "cameras": {"front": "h264"}})
            while (await ws.receive(PATIENCE_SECONDS)).type is not aiohttp.WSMsgType.BINARY:
                pass
            closing = asyncio.get_running_loop().run_in_executor(None, view.close)
            async for _ in ws:
                pass
            await closing
            return ws.close_code

    assert asyncio.run(watch_then_close()) == aiohttp.WSCloseCode.GOING_AWAY
    view.close()  # twice is once
    assert hub.listeners("front") == 0
    left = [t for t in threading.enumerate() if t not in before and t.name.startswith("view")]
    assert left == []


# API and metrics


async def _call(view: View, method: str, path: str, **options: object) -> tuple[int, object]:
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, view.url + path, **options) as answer,  # type: ignore[arg-type]
    ):
        text = await answer.text()
        return answer.status, json.loads(text) if text else None


def call(view: View, method: str, path: str, **options: object) -> tuple[int, object]:
    return asyncio.run(_call(view, method, path, **options))


def test_cameras_are_listed_added_and_removed(view: View, hub: FakeHub) -> None:
    status, added = call(
        view, "POST", "api/streams", json={"url": "rtsp://me:hunter22@h.example/x", "name": "rear"}
    )
    assert (status, added["name"]) == (201, "rear")  # type: ignore[index]
    assert "hunter22" not in json.dumps(added)
    status, listed = call(view, "GET", "api/streams")
    assert [stream["name"] for stream in listed["streams"]] == ["front", "rear"]  # type: ignore[index]
    assert listed["classes"] == list(hub.spec.classes)  # type: ignore[index]
    assert call(view, "GET", "api/streams/rear")[0] == 200
    assert call(view, "DELETE", "api/streams/rear") == (204, None)
    assert call(view, "DELETE", "api/streams/rear")[0] == 404
    assert call(view, "GET", "api/streams/rear")[0] == 404


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"url": "file:///etc/passwd"}, "must begin with rtsp"),
        ({"url": "/etc/passwd"}, "must begin with rtsp"),
        ({"url": "FILE:///etc/passwd"}, "must begin with rtsp"),
        ({"url": "/dev/video0"}, "must begin with rtsp"),
        ({"url": "concat:a|b"}, "must begin with rtsp"),
        ({"url": "subfile,,start,0,end,9,,:///etc/passwd"}, "must begin with rtsp"),
        ({"url": "front=rtsp://h/x"}, "must begin with rtsp"),
        ({"url": "rtsp://"}, "names no host"),
        ({"url": "rtsp://h/x\n-f lavfi"}, "names no host"),
        ({"url": "rtsp://h/x", "name": "../../etc"}, "name"),
        ({"url": "rtsp://h/x", "name": ""}, "name"),
        ({"url": "rtsp://h/x", "file": "/etc/passwd"}, "file"),
        ({"url": 7}, "url"),
        ({}, "url"),
        ([], ""),
    ],
)
def test_wrong_cameras_are_refused_in_one_line(
    view: View, hub: FakeHub, body: object, said: str
) -> None:
    status, answer = call(view, "POST", "api/streams", json=body)
    assert status == 422
    error = answer["error"]  # type: ignore[index]
    assert said in error
    assert "\n" not in error
    assert len(hub.cameras()) == 1


def test_taken_name_is_a_conflict_and_hides_the_password(view: View) -> None:
    body = {"url": "rtsp://me:hunter22@h.example/x", "name": "front"}
    status, answer = call(view, "POST", "api/streams", json=body)
    assert status == 409
    assert "hunter22" not in json.dumps(answer)


def test_errors_of_the_hub_hide_the_password(
    view: View, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add(url: str, name: str | None = None) -> str:
        raise ConfigError(f"cannot add {url}: hunter22 is refused")

    monkeypatch.setattr(hub, "add", add)
    body = {"url": "rtsp://me:hunter22@h.example/x"}
    status, answer = call(view, "POST", "api/streams", json=body)
    assert status == 422
    assert "hunter22" not in json.dumps(answer)


def test_unexpected_errors_show_nothing(
    view: View, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cameras() -> list[CameraStatus]:
        raise RuntimeError("inside /home/somebody")

    monkeypatch.setattr(hub, "cameras", cameras)
    assert call(view, "GET", "api/streams") == (500, {"error": "Internal Server Error"})


def test_health_says_nothing_but_that_it_lives(view: View) -> None:
    assert call(view, "GET", "healthz") == (200, {"status": "ok"})


def test_metrics_name_every_figure_of_a_camera() -> None:
    camera = CameraStatus(
        'fr"ont', "rtsp://h/x", "live", (StateChange(1.0, "live", "ok"),), (360, 640), 24.5, 31.0,
        120, {"stale": 3}, 2, 1, np.array([0.25, 0.75], np.float32), {"live": 3}, 47.0,
    )  # fmt: skip
    text = metrics_text([camera], ["sky", "road"], ViewerCounts(2, 1, 500, 20, {"stalled": 1}))
    lines = set(text.decode().splitlines())
    name = 'stream="fr\\"ont"'
    assert lines >= {
        f'roadmask_frames_total{{stage="network",{name}}} 120.0',
        f'roadmask_frames_dropped_total{{reason="stale",{name}}} 3.0',
        f"roadmask_reconnects_total{{{name}}} 2.0",
        f"roadmask_state_resets_total{{{name}}} 1.0",
        f'roadmask_stream_state{{state="live",{name}}} 1.0',
        f'roadmask_stream_state{{state="silent",{name}}} 0.0',
        f'roadmask_stream_state_changes_total{{state="live",{name}}} 3.0',
        f"roadmask_stream_fps{{{name}}} 24.5",
        f'roadmask_stream_latency_seconds{{quantile="0.5",{name}}} 0.031',
        f'roadmask_stream_latency_seconds{{quantile="0.95",{name}}} 0.047',
        f'roadmask_class_share{{class="road",{name}}} 0.75',
        "roadmask_viewers 2.0",
        "roadmask_view_frames_sent_total 500.0",
        'roadmask_viewers_left_total{reason="stalled"} 1.0',
    }


def test_no_password_anywhere(view: View, hub: FakeHub) -> None:
    async def everything() -> str:
        texts = []
        async with aiohttp.ClientSession() as session:
            for path in ("", "metrics", "api/streams", "api/streams/front", "api/openapi.json"):
                async with session.get(view.url + path) as answer:
                    assert answer.status == 200
                    texts.append(await answer.text() + str(answer.headers))
            async with session.ws_connect(f"{view.url}ws") as ws:
                texts += [(await ws.receive(PATIENCE_SECONDS)).data for _ in range(2)]
        return "\n".join(texts)

    text = asyncio.run(everything())
    assert "camera.example" in text
    assert "tops3cret" not in text
