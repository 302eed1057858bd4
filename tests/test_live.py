"""Addresses, queues, and the network's service of cameras: newest first, fair shares, gaps and counts."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.packet import Packet
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engines import MakeEngine
from pipeline.engines.counting import CountingEngine
from pipeline.errors import ConfigError, PipelineError
from pipeline.frames import StreamsPixels
from pipeline.live.address import parse_address, split_name, usual_name
from pipeline.live.delivery import CameraConfig
from pipeline.live.hub import Shown
from pipeline.live.labeller import Labelled, class_shares
from pipeline.live.lane import Feed
from pipeline.live.live import Listener, LiveHub
from pipeline.live.waiting import Backoff, FrameQueue, PacketQueue, WaitingFrame
from pipeline.secrecy import mask
from tests.cameras import MODEL_HW, FakeCamera, SlowEngine, camera_config, steps_of, until

URL = "rtsp://somewhere/x"
ROOT = Path(__file__).resolve().parents[1]
# Nothing is too old: for tests that say themselves when a frame was captured.
PATIENT = camera_config(max_latency_seconds=600.0)


def counting(model_hw: tuple[int, int]) -> CountingEngine:
    return CountingEngine(model_hw, 16)


@contextmanager
def hub_of(
    cameras: Sequence[FakeCamera],
    make_engine: MakeEngine = counting,
    listeners: tuple[Listener, ...] = (),
    config: CameraConfig | None = None,
) -> Iterator[LiveHub]:
    """A hub whose cameras are made up; their names are `0`, `1`, ..."""
    waiting = list(cameras)
    hub = LiveHub(
        config or camera_config(), make_engine, lambda *_: waiting.pop(0), listeners=listeners
    )
    with hub:
        for place in range(len(cameras)):
            hub.add(URL, str(place))
        yield hub


def label(hub: LiveHub, camera: FakeCamera, feed: Feed, **frame: object) -> Shown:
    """One frame, labelled; given again only if it was dropped, as while the network is being made."""

    def refused() -> int:
        drops = [status.dropped for status in hub.cameras()]
        return sum(dropped.get(why, 0) for dropped in drops for why in ("preparing", "stale"))

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        before = refused()
        camera.give(**frame)  # type: ignore[arg-type]
        while refused() == before and time.monotonic() < deadline:
            shown = feed.take(0.05)
            if shown is not None:
                return shown
    raise AssertionError("no frame was labelled")


# Addresses.


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://cam/1", "rtsp://cam/1"),
        ("rtsp://user:pass@cam:554/1", "rtsp://user:***@cam:554/1"),
        ("rtsp://user:pa@ss@cam/1", "rtsp://user:***@cam/1"),
        ("rtsp://user:pa/ss@cam/1", "rtsp://user:***@cam/1"),
        ("rtsp://token@cam/1", "rtsp://***@cam/1"),
        ("http://cam:80/a@2x.jpg", "http://cam:80/a@2x.jpg"),
        ("http://cam/v?user=me&password=secret&x=1", "http://cam/v?user=me&password=***&x=1"),
        ("srt://cam:9000?passphrase=secret123", "srt://cam:9000?passphrase=***"),
        ("rtsp://[::1]:554/x", "rtsp://[::1]:554/x"),
        (
            "rtsp://cam/user=me&password=secret123&channel=1",
            "rtsp://cam/user=me&password=***&channel=1",
        ),
        ("rtsp://cam/user=me_password=secret123_channel=1", "rtsp://cam/user=me_password=***"),
        ("rtmp://cam/live/secret123", "rtmp://cam/live/***"),
        ("rtmp://cam/live", "rtmp://cam/live"),
    ],
)
def test_what_is_shown_of_a_url_holds_no_secret(url: str, shown: str) -> None:
    assert mask(url) == shown
    address = parse_address(url)
    assert address.shown == shown
    for text in (repr(address), usual_name(address), address.scrub(f"cannot open {url} (secret)")):
        assert not any(secret in text for secret in ("pass@", "pa@ss", "pa/ss", "secret123"))


@given(
    st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=6),
    st.sampled_from(
        [
            "rtsp://me:{}@cam/1",
            "https://cam/1?token={}",
            "rtsp://{}@cam/1",
            "rtsp://cam/a_pwd={}&b=1",
            "rtmp://cam/live/{}",
        ]
    ),
)
def test_no_secret_is_ever_shown(secret: str, pattern: str) -> None:
    secret = f"Q{secret}Z"
    address = parse_address(pattern.format(secret))
    message = address.scrub(f"401 for {address.url}: {secret} is wrong")
    assert secret not in address.shown + repr(address) + usual_name(address) + message


def test_kinds_of_cameras() -> None:
    kinds = {
        "rtsp://a/b": ("rtsp", False), "rtspu://a/b": ("rtsp", True), "rtspt://a/b": ("rtsp", False),
        "rtsps://a/b": ("rtsp", False), "rtmp://a/live/k": ("rtmp", False),
        "HTTP://a/m.mjpg": ("http", False), "https://a/x.m3u8": ("http", False),
        "srt://a:9": ("srt", False), "udp://:5000": ("udp", False), "/dev/video3": ("device", False),
    }  # fmt: skip
    for url, (kind, over_udp) in kinds.items():
        address = parse_address(url)
        assert (address.kind, address.over_udp) == (kind, over_udp)
    assert parse_address("rtspu://a/b").url == "rtsp://a/b"


@pytest.mark.parametrize(
    "text",
    [
        "ftp://a/b",
        "file:///etc/passwd",
        "/etc/passwd",
        "concat:a|b",
        "rtsp://",
        "rtsp:///x",
        "http://a\n/b",
        "/dev/video",
        "subfile,,start,0,,:x",
        "rtsp://[cam/1",
        "rtsp://cam:port/1",
        "rtsp://me:secret@cam:123456/1",
    ],
)
def test_what_is_no_camera_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_address(text)
    assert "secret" not in str(refused.value)


def test_names() -> None:
    assert split_name("front=rtsp://a/b?c=d") == ("front", "rtsp://a/b?c=d")
    assert split_name("rtsp://a/b?c=d") == (None, "rtsp://a/b?c=d")
    assert split_name("usb=/dev/video0") == ("usb", "/dev/video0")
    assert usual_name(parse_address("rtsp://u:p@10.0.0.5:554/stream/1")) == "10.0.0.5_stream_1"
    assert usual_name(parse_address("/dev/video2")) == "video2"
    assert usual_name(parse_address("rtmp://host/live/KEY")) == "host"


# Queues.


def waiting(index: int, captured_at: float) -> WaitingFrame:
    return WaitingFrame(av.VideoFrame(16, 16, "yuv420p"), index, captured_at, 0, index, None)


def test_a_burst_is_kept_while_it_is_young() -> None:
    queue = FrameQueue(longest=4, patience_seconds=1.0)
    assert [queue.put(waiting(index, 100.0)) for index in range(5)] == [0, 0, 0, 0, 1]
    assert [taken(queue, 100.5) for _ in range(5)] == [(1, 0), (2, 0), (3, 0), (4, 0), (None, 0)]


def test_the_newest_wins_once_frames_had_to_wait() -> None:
    queue = FrameQueue(longest=4, patience_seconds=1.0)
    for index in range(3):
        queue.put(waiting(index, 100.0 + index))
    assert taken(queue, 110.0) == (2, 2)
    for index in range(3, 6):
        queue.put(waiting(index, 110.0))
    assert taken(queue, 110.1) == (5, 2)  # it has not caught up yet
    queue.put(waiting(6, 110.2))
    assert taken(queue, 110.2) == (6, 0)
    for index in range(7, 9):
        queue.put(waiting(index, 110.3))
    assert taken(queue, 110.3) == (7, 0)  # now it has


def taken(queue: FrameQueue, now: float) -> tuple[int | None, int]:
    frame, dropped = queue.take(now)
    return (frame.index if frame is not None else None), dropped


def packet(keyframe: bool) -> Packet:
    made = Packet(b"x" * 10)
    made.is_keyframe = keyframe
    return made


def test_a_decoder_that_is_behind_goes_on_with_a_keyframe() -> None:
    queue = PacketQueue(patience_seconds=0.5)
    for place in range(5):
        assert queue.put(packet(place == 0), 100 + 0.1 * place) == 0
    assert queue.put(packet(False), 101.0) == 0  # no keyframe to go on with: catching up is better
    assert queue.put(packet(True), 101.1) == 6
    taken = queue.take()
    assert taken is not None
    assert taken[1] == 101.1


def test_a_decoder_that_is_hopelessly_behind_waits_for_the_next_keyframe() -> None:
    queue = PacketQueue(patience_seconds=0.5)
    assert queue.put(packet(True), 100.0) == 0
    assert queue.put(packet(False), 103.0) == 2
    assert queue.put(packet(False), 103.1) == 1
    assert queue.put(packet(True), 103.2) == 0
    queue.close()
    assert [taken[1] if taken else None for taken in (queue.take(), queue.take())] == [103.2, None]


def test_a_flood_takes_no_more_memory_than_allowed() -> None:
    queue, dropped = PacketQueue(patience_seconds=5), 0
    megabyte = Packet(bytes(1 << 20))
    for place in range(200):
        dropped += queue.put(megabyte, 100 + place / 1000)
    queue.close()
    held = 0
    while queue.take() is not None:
        held += 1
    assert held + dropped == 200
    assert held <= 33


def test_waits_grow_to_a_limit_and_differ() -> None:
    backoff = Backoff(0.25, 3.0, 60.0)
    waits = [backoff.next_seconds(refused=False) for _ in range(40)]
    for attempt, wait in enumerate(waits):
        longest = min(3.0, 0.25 * 2**attempt)
        assert longest / 2 <= wait <= longest
    assert len(set(waits)) == len(waits)
    assert 30 <= backoff.next_seconds(refused=True) <= 60
    backoff.succeeded()
    assert backoff.next_seconds(refused=False) <= 0.25


# The network's service.


def test_a_frame_comes_out_as_it_went_in() -> None:
    camera = FakeCamera()
    with hub_of([camera]) as hub:
        feed = hub.subscribe("0")
        shown = label(hub, camera, feed, level=7)
        assert (shown.camera, shown.planes[0, 0]) == ("0", 7)
        assert shown.labels.shape == MODEL_HW
        assert shown.labelled_at >= shown.captured_at
        (status,) = hub.cameras()
        assert status.size_hw == (72, 128)
        assert (status.state, status.frames) == ("live", 1)
        assert status.latency_ms is not None
        assert status.shares is not None
        assert status.shares.shape == (len(hub.spec.classes),)


def test_every_frame_is_labelled_or_counted_and_shares_are_fair_under_overload() -> None:
    cameras = [FakeCamera(fps=fps) for fps in (200, 200, 100, 400)]
    with hub_of(cameras, lambda hw: SlowEngine(hw, 16, 0.02)) as hub:
        until(lambda: min(status.frames for status in hub.cameras()) >= 25)
        for camera in cameras:
            camera.fps = 0
        counted = lambda: [s.frames + sum(s.dropped.values()) for s in hub.cameras()]  # noqa: E731
        until(lambda: counted() == [camera.indices for camera in cameras])
        frames = [status.frames for status in hub.cameras()]
    assert all(camera.indices > 2 * count for camera, count in zip(cameras, frames, strict=True))
    # What was offered differs by a factor of four. A camera whose turn this machine held up has lost it.
    assert max(frames) - min(frames) <= 0.25 * max(frames) + 1, frames


def test_a_silent_camera_takes_nothing_from_the_others() -> None:
    cameras = [FakeCamera(), FakeCamera(fps=200), FakeCamera(fps=200)]
    with hub_of(cameras, lambda hw: SlowEngine(hw, 16, 0.002)) as hub:
        until(lambda: min(status.frames for status in hub.cameras()[1:]) >= 50)
        assert hub.cameras()[0].frames == 0


def test_a_frame_that_is_too_old_is_not_labelled() -> None:
    camera = FakeCamera()
    with hub_of([camera], config=camera_config(max_latency_seconds=1.0)) as hub:
        feed = hub.subscribe("0")
        label(hub, camera, feed)
        before = hub.cameras()[0]
        camera.give(age_seconds=5)
        until(lambda: hub.cameras()[0].dropped.get("stale", 0) > before.dropped.get("stale", 0))
        assert hub.cameras()[0].frames == before.frames
        label(hub, camera, feed)


def test_short_gaps_keep_the_memory_and_long_ones_reset_it_once() -> None:
    camera, now = FakeCamera(), time.time()
    with hub_of([camera], config=PATIENT) as hub:
        feed = hub.subscribe("0")
        first = steps_of(label(hub, camera, feed, captured_at=now - 4.0))
        camera.lose(3)
        assert steps_of(label(hub, camera, feed, captured_at=now - 3.5)) == first + 1  # 0.5 s
        assert hub.cameras()[0].resets == 0
        camera.lose(3)
        assert steps_of(label(hub, camera, feed, captured_at=now - 0.1)) == 1  # 3.4 s
        assert steps_of(label(hub, camera, feed, captured_at=now)) == 2
        assert hub.cameras()[0].resets == 1


@pytest.mark.parametrize(("stamps", "kept"), [((1.0, 1.1, 1.2), True), ((None,) * 3, False)])
def test_a_pause_is_a_gap_unless_the_cameras_clock_says_otherwise(
    stamps: tuple[float | None, ...], kept: bool
) -> None:
    camera, now = FakeCamera(), time.time()
    with hub_of([camera], config=PATIENT) as hub:
        feed = hub.subscribe("0")
        label(hub, camera, feed, captured_at=now - 4.0, stamp_seconds=0.9)
        for age, stamp in zip((3.9, 3.8, 0.1), stamps, strict=True):
            newest = label(hub, camera, feed, captured_at=now - age, stamp_seconds=stamp)
        assert (steps_of(newest) == 1) is not kept
        assert hub.cameras()[0].resets == (not kept)


def test_a_reconnect_within_a_second_keeps_the_memory() -> None:
    camera, now = FakeCamera(), time.time()
    with hub_of([camera], config=PATIENT) as hub:
        feed = hub.subscribe("0")
        first = steps_of(label(hub, camera, feed, captured_at=now - 0.5))
        camera.reconnect()
        assert steps_of(label(hub, camera, feed, captured_at=now)) == first + 1
        until(lambda: hub.cameras()[0].reconnects == 1)


def test_another_size_resets_the_memory_even_if_the_network_sees_the_same() -> None:
    camera = FakeCamera()
    with hub_of([camera]) as hub:
        feed = hub.subscribe("0")
        label(hub, camera, feed)
        label(hub, camera, feed)
        assert steps_of(label(hub, camera, feed, size_hw=(144, 256))) == 1
        assert hub.cameras()[0].resets == 1


def test_cameras_of_other_sizes_get_networks_of_their_own_and_hold_nobody() -> None:
    slow: list[float] = []

    def make(model_hw: tuple[int, int]) -> CountingEngine:
        if model_hw != MODEL_HW:
            slow.append(time.monotonic())
            until(lambda: len(done) >= 20)  # the other camera must go on meanwhile
        return CountingEngine(model_hw, 16)

    done: list[Shown] = []
    cameras = [FakeCamera(fps=100), FakeCamera()]
    cameras[1].model_hw = (128, 96)
    with hub_of(cameras, make) as hub:
        feeds = [hub.subscribe("0"), hub.subscribe("1")]
        until(lambda: feeds[0].take(1))
        cameras[1].give()
        until(lambda: slow)
        while len(done) < 20:
            shown = feeds[0].take(1)
            done.extend([shown] if shown else [])
        assert label(hub, cameras[1], feeds[1]).labels.shape == (128, 96)
        assert hub.cameras()[1].dropped["preparing"] >= 1


def test_a_batching_engine_gets_all_cameras_that_have_a_frame() -> None:
    sizes: list[int] = []

    class Recording(CountingEngine):
        def step(
            self, frames: np.ndarray, slots: Sequence[int], reset: Sequence[bool]
        ) -> np.ndarray:
            sizes.append(len(frames))
            time.sleep(0.02)
            return super().step(frames, slots, reset)

    cameras = [FakeCamera(fps=100) for _ in range(5)]
    with hub_of(cameras, lambda hw: Recording(hw, 3)) as hub:
        until(lambda: min(status.frames for status in hub.cameras()) >= 10)
    assert max(sizes) == 3


class Batches(CountingEngine):
    """Remembers how many cameras each step had."""

    def __init__(self, model_hw: tuple[int, int], slots: int) -> None:
        super().__init__(model_hw, slots)
        self.sizes: list[int] = []

    def step(
        self, frames: StreamsPixels, slots: Sequence[int], reset: Sequence[bool]
    ) -> np.ndarray:
        self.sizes.append(len(frames))
        return super().step(frames, slots, reset)


def meet(engine: Batches, cameras: Sequence[FakeCamera]) -> None:
    """Have all cameras in one batch, so that each is waited for from then on."""

    def together() -> bool:
        labelled = sum(engine.sizes) + len(cameras)
        for camera in cameras:
            camera.give()
        until(lambda: sum(engine.sizes) >= labelled)
        return engine.sizes[-1] == len(cameras)

    until(together)
    engine.sizes.clear()


def test_a_batch_waits_a_little_for_the_cameras_that_gave_frames_of_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.live.benches.WINDOW_SECONDS", 3.0)
    engine, cameras = Batches(MODEL_HW, 16), [FakeCamera() for _ in range(3)]
    with hub_of(cameras, lambda hw: engine, config=PATIENT) as hub:
        label(hub, cameras[0], hub.subscribe("0"))
        meet(engine, cameras)
        for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
            for place in order:
                time.sleep(0.05)
                assert engine.sizes == []  # nothing goes before the last of them has come
                cameras[place].give()
            until(lambda: engine.sizes)
            assert engine.sizes == [3]
            engine.sizes.clear()


def test_a_camera_that_is_silent_costs_the_others_one_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.live.benches.WINDOW_SECONDS", 1.0)
    engine, cameras = Batches(MODEL_HW, 16), [FakeCamera() for _ in range(2)]
    with hub_of(cameras, lambda hw: engine, config=PATIENT) as hub:
        label(hub, cameras[0], hub.subscribe("0"))
        meet(engine, cameras)
        feed, waits = hub.subscribe("0"), []
        for _ in range(4):
            began = time.monotonic()
            label(hub, cameras[0], feed)
            waits.append(time.monotonic() - began)
        assert waits[0] >= 0.9
        assert max(waits[1:]) < 0.9
        assert engine.sizes == [1, 1, 1, 1]
        cameras[1].give()  # it is back, and nobody waited for it
        until(lambda: engine.sizes == [1, 1, 1, 1, 1])


def test_frames_that_nobody_will_label_open_no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a camera that another network still serves, here; and its partners are waited for after it."""
    monkeypatch.setattr("pipeline.live.benches.WINDOW_SECONDS", 3.0)
    engine, cameras = Batches(MODEL_HW, 16), [FakeCamera() for _ in range(3)]
    with hub_of(cameras, lambda hw: engine, config=PATIENT) as hub:
        label(hub, cameras[0], hub.subscribe("0"))
        meet(engine, cameras)
        held = next(lane for lane in hub.lanes() if lane.name == "2")
        held.held = True
        cameras[2].give()
        until(lambda: held.rehearsed)
        cameras[0].give()
        time.sleep(0.05)
        assert engine.sizes == []
        cameras[1].give()
        held.held = False
        cameras[2].give()
        until(lambda: engine.sizes == [3])


def test_more_cameras_than_slots_keep_their_memories_apart() -> None:
    cameras = [FakeCamera() for _ in range(4)]
    with hub_of(cameras, lambda hw: CountingEngine(hw, 2)) as hub:
        feeds = [hub.subscribe(str(place)) for place in range(4)]
        for place in range(4):
            label(hub, cameras[place], feeds[place])
        for place in range(4):
            before = hub.cameras()[place].frames
            assert steps_of(label(hub, cameras[place], feeds[place])) == before + 1


def test_a_network_that_fails_ends_the_run_and_says_why() -> None:
    def broken(model_hw: tuple[int, int]) -> CountingEngine:
        raise PipelineError("no such device")

    camera = FakeCamera(fps=50)
    with hub_of([camera], broken) as hub:
        assert str(until(lambda: hub.failure)) == "no such device"


def test_the_interpreter_does_not_end_under_a_network_that_is_being_made(tmp_path: Path) -> None:
    made = tmp_path / "made"
    script = f"""
import sys, time
import torch
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from pipeline.engines.counting import CountingEngine
from pipeline.live.live import LiveHub
from tests.cameras import camera_config

def make(model_hw):
    ends_at = time.monotonic() + 1.5
    while time.monotonic() < ends_at:  # as a compiler does: in and out of C++, with Python in between
        torch.vmap(lambda row: row.sort().values)(torch.rand(200, 2000))
    Path({str(made)!r}).touch()
    return CountingEngine(model_hw, 1)

with LiveHub(camera_config(), make, None) as hub:
    hub.prepare([(64, 96)])
    assert hub.preparing
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert made.exists()


def test_networks_are_made_before_they_are_needed_and_kept() -> None:
    sizes: list[tuple[int, int]] = []

    def make(model_hw: tuple[int, int]) -> CountingEngine:
        sizes.append(model_hw)
        return counting(model_hw)

    wanted = [(64, 96), (64, 128), (32, 32), (32, 64)]
    with hub_of([FakeCamera(fps=50)], make) as hub:
        hub.prepare(wanted)
        until(lambda: not hub.preparing and hub.cameras()[0].frames > 10)
        hub.prepare(wanted)
        assert sorted(sizes) == sorted(wanted)
        assert set(hub.step_ms()) == set(wanted)


def test_a_listener_that_fails_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    class Bad(Listener):
        def labelled(self, labelled: Labelled) -> None:
            raise ValueError("bad listener")

    with hub_of([FakeCamera(fps=100)], listeners=(Bad(),)) as hub:
        until(lambda: hub.cameras()[0].frames > 5)
    assert "bad listener" in caplog.text


# Listening, adding and removing.


def test_a_slow_listener_skips_to_the_newest_and_a_deep_one_keeps_all() -> None:
    camera = FakeCamera()
    with hub_of([camera]) as hub:
        slow, deep, quick = hub.subscribe("0"), hub.subscribe("0", depth=8), hub.subscribe("0")
        for level in range(5):
            label(hub, camera, quick, level=level)
        newest = slow.take(1)
        assert newest is not None
        assert newest.planes[0, 0] == 4
        assert slow.take(0) is None
        assert slow.missed == 4
        kept = [shown.planes[0, 0] for shown in iter(lambda: deep.take(0), None) if shown]
        assert kept == [0, 1, 2, 3, 4]


def test_cameras_come_and_go() -> None:
    cameras = [FakeCamera(fps=50), FakeCamera(fps=50)]
    with hub_of(cameras) as hub:
        with pytest.raises(ConfigError, match="already"):
            hub.add(URL, "0")
        with pytest.raises(ConfigError, match="name"):
            hub.add(URL, "../x")
        with pytest.raises(ConfigError):
            hub.add("/etc/hostname")
        feed = hub.subscribe("0")
        until(lambda: feed.take(1))
        hub.remove("0")
        until(lambda: feed.over)
        assert cameras[0].stopped.is_set()
        assert not cameras[1].stopped.is_set()
        assert [status.name for status in hub.cameras()] == ["1"]
        for forgotten in (hub.remove, hub.subscribe):
            with pytest.raises(KeyError):
                forgotten("0")


def test_a_camera_that_ends_is_over_after_its_last_frame() -> None:
    camera = FakeCamera()
    with hub_of([camera]) as hub:
        feed = hub.subscribe("0", depth=10)
        label(hub, camera, feed)
        camera.give(level=9)
        camera.change("ended", "the stream ended")
        until(lambda: feed.over)
        last = feed.take(0)
        assert last is not None
        assert last.planes[0, 0] == 9
        assert hub.over
        assert hub.cameras()[0].changes == {"live": 1, "ended": 1}


def test_closing_ends_all_listeners() -> None:
    with hub_of([FakeCamera(fps=50)]) as hub:
        feed = hub.subscribe("0")
        until(lambda: feed.take(1))
    assert feed.over


def test_shares_add_up() -> None:
    labels = np.array([[0, 0, 1, 255]], np.uint8)
    np.testing.assert_allclose(class_shares(labels, 3), [0.5, 0.25, 0])
    assert Fraction(1, 2) == class_shares(labels, 3)[0]
