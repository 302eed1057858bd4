"""The page on real streams: RTSP cameras through `roadmask live` and the shipped network, seen in Chromium;
then the session that was recorded meanwhile, played and steered from the page.

One run serves all tests, in their order; the replay's tests stop it.
"""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.live.command import run_live
from pipeline.live.config import LiveConfig, prepare_live
from pipeline.live.console import Console
from pipeline.live.live import LiveHub
from pipeline.session.labels import all_entries
from pipeline.session.reader import Session
from pipeline.session.replay import Replay, ReplayConfig
from pipeline.view import ViewConfig, start_view
from pipeline.view.server import View
from tests import pages
from tests.cameras import RtspServer, mount, until
from tests.fake_hub import street
from tests.pages import PHONE, tile, wait_for_pictures
from tests.test_live_cameras import needs_rtsp

Page, expect = pages.Page, pages.expect
browser, open_page = pages.browser, pages.open_page  # fixtures
pytestmark = needs_rtsp

SIZE_HW = (176, 320)
FPS = 8
NAMES = ("front", "rear")
RECORDED_SECONDS = 12.0


class LiveRun:
    """`roadmask live` on two cameras of a real server, recorded and viewed, in a thread of its own."""

    def __init__(
        self,
        folder: Path,
        names: Sequence[str] = NAMES,
        size_hw: tuple[int, int] = SIZE_HW,
        fps: int = FPS,
        max_latency_ms: float | None = 5000.0,
    ) -> None:
        self.session = folder / "drive"
        self.names, self.size_hw, self.max_latency_ms = names, size_hw, max_latency_ms
        self.labels: dict[int, np.ndarray] = {}  # of the first camera, by frame
        self.interrupted = False
        frames = [planes for planes, _ in street(60, 5, size_hw)]
        apart = len(frames) // len(names)
        self.server = RtspServer(
            [
                mount(
                    f"/{name}",
                    size_hw[::-1],
                    fps,
                    frames=_footage(folder, name, frames, apart * at),
                )
                for at, name in enumerate(names)
            ]
        )
        self._stop = threading.Event()
        self._hub: LiveHub | None = None
        self._view: View | None = None
        self._labelled = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._error: BaseException | None = None

    def start(self) -> None:
        self.server.start()
        self._thread.start()
        until(lambda: self._view or self._error, 300)
        until(lambda: all(camera.frames for camera in self.hub.cameras()), 300)
        self._labelled = time.monotonic()  # before that the network was made, and frames dropped
        threading.Thread(target=self._collect, daemon=True).start()

    @property
    def hub(self) -> LiveHub:
        assert self._hub is not None, self._error
        return self._hub

    @property
    def url(self) -> str:
        assert self._view is not None
        return self._view.url

    def states(self) -> set[str]:
        return {camera.state for camera in self.hub.cameras()}

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)
        self.server.kill()
        assert not self._thread.is_alive()
        assert self._error is None

    def end_recording(self) -> Path:
        """Stops the run; its session has labels of some seconds, and has lost its cameras once."""
        if not self._stop.is_set():
            if not self.interrupted:
                time.sleep(max(0.0, 3.0 - (time.monotonic() - self._labelled)))
                self.server.kill()
                until(lambda: self.states() == {"reconnecting"})
                self.server.start()
            until(lambda: self.states() == {"live"})
            time.sleep(max(2.0, RECORDED_SECONDS - (time.monotonic() - self._labelled)))
            self.stop()
        return self.session

    def _run(self) -> None:
        config = LiveConfig(
            tuple(f"{name}={self.server.url(f'/{name}', 'me:secret99@')}" for name in self.names),
            size_hw=self.size_hw, max_latency_ms=self.max_latency_ms,
            silence_seconds=20, open_seconds=30, inline=True,
            record=self.session,
        )  # fmt: skip
        try:
            run_live(prepare_live(config), Console(quiet=True), self._stop.is_set, self._show)
        except BaseException as error:
            self._error = error

    def _show(self, hub: LiveHub) -> View:
        self._hub, self._view = hub, start_view(hub, ViewConfig(port=0))
        return self._view

    def _collect(self) -> None:
        feed = self.hub.subscribe(self.names[0], 100)
        while not feed.over:
            if (shown := feed.take(0.5)) is not None:
                self.labels[shown.frame_index] = shown.labels
                self.labels.pop(shown.frame_index - 400, None)


def _footage(folder: Path, name: str, frames: list[np.ndarray], first: int) -> str:
    """A file of I420 frames for the server: the sample clip from one of its frames on, and around."""
    path = folder / f"{name}.i420"
    path.write_bytes(np.stack(frames[first:] + frames[:first]).tobytes())
    return str(path)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRun]:
    run = LiveRun(tmp_path_factory.mktemp("live"))
    run.start()
    yield run
    run.stop()


def pixel(page: Page, x: int, y: int) -> list[int]:
    """Of the front camera's canvas as it is drawn."""
    canvas = tile(page, "front").locator("canvas")
    return canvas.evaluate(
        "(canvas, [x, y]) => [...canvas.getContext('2d').getImageData(x, y, 1, 1).data].slice(0, 3)",
        [x, y],
    )


def frozen(page: Page, run: LiveRun) -> np.ndarray:
    """Stops the pictures; the labels that belong to the front camera's."""
    page.locator("#freeze").click()
    expect(page.locator("#freeze")).to_have_attribute("aria-pressed", "true")
    index = int(tile(page, "front").get_attribute("data-frame"))
    until(lambda: index in run.labels)  # which another thread collects
    return run.labels[index]


def inside(labels: np.ndarray) -> list[tuple[int, int]]:
    """Places, x and y, in the midst of areas of one class, of different classes."""
    found = []
    for label in np.unique(labels):
        area = cv2.erode((labels == label).astype(np.uint8), np.ones((9, 9), np.uint8))
        rows, columns = np.nonzero(area[4:-4, 4:-4])
        if len(rows):
            found.append((int(columns[0]) + 4, int(rows[0]) + 4))
    return found


def test_the_grid_shows_real_cameras_with_their_figures(
    live: LiveRun, open_page: Callable[..., Page]
) -> None:
    page = open_page(live.url)
    wait_for_pictures(page, *NAMES)
    expect(page.locator(".tile")).to_have_count(len(NAMES))
    for name in NAMES:
        expect(tile(page, name).locator(".chip")).to_have_text("Live")
        expect(tile(page, name).locator(".figures")).to_have_text(
            re.compile(r"[\d.]+ fps  ·  \d+ ms  ·  \d+ dropped")
        )
        before = tile(page, name).get_attribute("data-frame")
        expect(tile(page, name)).not_to_have_attribute("data-frame", before)
    shares = [float(text.split()[0]) for text in page.locator("#legend .share").all_inner_texts()]
    assert sum(shares) == pytest.approx(100, abs=1)
    expect(page.locator("#history")).to_contain_text("live 320x176")
    assert "secret99" not in page.content()


def test_the_class_under_the_cursor_is_the_networks(
    live: LiveRun, open_page: Callable[..., Page]
) -> None:
    page = open_page(f"{live.url}#camera=front")
    wait_for_pictures(page, "front")
    labels = frozen(page, live)
    box = tile(page, "front").locator("canvas").bounding_box()
    places = inside(labels)
    assert len(places) >= 3
    for x, y in places:
        page.mouse.move(
            box["x"] + (x + 0.5) / SIZE_HW[1] * box["width"],
            box["y"] + (y + 0.5) / SIZE_HW[0] * box["height"],
        )
        name = live.hub.spec.classes[labels[y, x]]
        expect(tile(page, "front").locator(".probe")).to_have_text(name)
        expect(page.locator("#legend .pointed")).to_contain_text(name)


def test_classes_and_opacity_change_what_lies_over_the_picture(
    live: LiveRun, open_page: Callable[..., Page]
) -> None:
    page = open_page(f"{live.url}#camera=front")
    wait_for_pictures(page, "front")
    labels = frozen(page, live)
    for x, y in inside(labels)[:3]:
        label = int(labels[y, x])
        colour = list(live.hub.spec.palette_rgb[label])
        found = {}
        for percent in (0, 50, 100):
            page.get_by_role("slider", name="Opacity").fill(str(percent))
            expect(page.locator("#opacity-value")).to_have_text(f"{percent} %")
            found[percent] = pixel(page, x, y)
        assert found[100] == colour
        middle = [(a + b) / 2 for a, b in zip(found[0], colour, strict=True)]
        assert np.abs(np.subtract(found[50], middle)).max() <= 2
        switch = page.get_by_role("switch", name=live.hub.spec.classes[label])
        switch.click()
        expect(switch).to_have_attribute("aria-checked", "false")
        assert pixel(page, x, y) == found[0]
        switch.click()
        assert pixel(page, x, y) == colour


def test_it_fits_a_phone(live: LiveRun, open_page: Callable[..., Page]) -> None:
    page = open_page(
        live.url, viewport=PHONE, device_scale_factor=2, is_mobile=True, has_touch=True
    )
    wait_for_pictures(page, "front")
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    box = tile(page, "front").bounding_box()
    assert box["width"] > 0.9 * PHONE["width"]
    tile(page, "front").locator("canvas").tap()
    expect(tile(page, "front").locator(".probe")).to_be_visible()


def test_a_screenshot_shows_street_and_colours(
    live: LiveRun, open_page: Callable[..., Page], tmp_path: Path
) -> None:
    """Both pictures are there, textured, and under them nothing is cut off."""
    page = open_page(live.url)
    wait_for_pictures(page, *NAMES)
    shot = page.screenshot()
    (tmp_path / "live.png").write_bytes(shot)
    picture = cv2.imdecode(np.frombuffer(shot, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (800, 1280, 3)
    for name in NAMES:
        box = tile(page, name).locator("canvas").bounding_box()
        left, top = int(box["x"]), int(box["y"])
        part = picture[top : top + int(box["height"]), left : left + int(box["width"])]
        assert part.std() > 20
        assert len(np.unique(part.reshape(-1, 3), axis=0)) > 1000
    overlong = page.evaluate(
        "[...document.querySelectorAll('.figures, .class-name, .share, button')]"
        ".filter((one) => one.offsetParent && one.scrollWidth > one.clientWidth + 1)"
        ".map((one) => one.textContent)"
    )
    assert overlong == []


def test_a_server_that_is_gone_shows_as_reconnecting_until_it_is_back(
    live: LiveRun, open_page: Callable[..., Page]
) -> None:
    page = open_page(live.url)
    wait_for_pictures(page, *NAMES)
    before = {camera.name: camera.reconnects for camera in live.hub.cameras()}
    live.server.kill()
    live.interrupted = True
    for name in NAMES:
        expect(tile(page, name).locator(".chip")).to_have_text("Reconnecting")
        expect(tile(page, name).locator(".cover")).to_be_visible()
    numbers = {name: int(tile(page, name).get_attribute("data-frame")) for name in NAMES}
    live.server.start()
    for name in NAMES:
        expect(tile(page, name).locator(".chip")).to_have_text("Live")
        expect(tile(page, name).locator(".cover")).to_be_hidden()
        until(lambda name=name: int(tile(page, name).get_attribute("data-frame")) > numbers[name])
    expect(page.locator("#history")).to_contain_text("reconnecting")
    assert all(camera.reconnects > before[camera.name] for camera in live.hub.cameras())


# The session that was recorded.


class ReplayRun:
    """`roadmask replay SESSION --view`, in a thread of its own."""

    def __init__(self, session: Path) -> None:
        self.replay = Replay(ReplayConfig(session, speed=1.0, paused=True))
        self.middle = labelled_from(session) + 1.5
        self._stop = threading.Event()
        self.view: View | None = None
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        until(lambda: self.view, 300)

    def _run(self) -> None:
        def show(hub: Any) -> View:
            self.view = start_view(hub, ViewConfig(port=0))
            return self.view

        self.lines = list(self.replay.play(self._stop.is_set, show))

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    @property
    def url(self) -> str:
        assert self.view is not None
        return self.view.url

    def ask(self, path: str = "", method: str = "GET", body: Any = None) -> tuple[int, Any]:
        request = urllib.request.Request(
            f"{self.url}api/playback{path}", method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def position(self) -> float:
        return self.ask()[1]["position_seconds"]

    def settled(self) -> dict[str, Any]:
        """Once no camera is on its way any more."""
        until(lambda: not self.ask()[1]["preparing"])
        return self.ask()[1]


def labelled_from(folder: Path) -> float:
    """Session seconds from which every camera has labels."""
    session = Session.open(folder)
    firsts = [next(all_entries(session, camera, None)) for camera in session.cameras.values()]
    return round(max(first.seconds for first in firsts), 1)


@pytest.fixture(scope="module")
def replayed(live: LiveRun) -> Iterator[ReplayRun]:
    run = ReplayRun(live.end_recording())
    yield run
    run.stop()


@pytest.fixture
def steered(replayed: ReplayRun) -> ReplayRun:
    """Paused in the midst of labelled frames, before the server was killed."""
    change = {"paused": True, "position_seconds": replayed.middle, "speed": 1.0}
    assert replayed.ask(method="PATCH", body=change)[0] == 200
    replayed.settled()
    return replayed


def drawing(page: Page, name: str = "front") -> str:
    """What is on a canvas, as text that is equal for equal pixels."""
    return tile(page, name).locator("canvas").evaluate("canvas => canvas.toDataURL()")


def drawn_anew(page: Page, before: int, name: str = "front") -> int:
    """Waits until another frame is drawn; its number."""
    until(lambda: int(tile(page, name).get_attribute("data-frame") or 0) > before)
    page.wait_for_timeout(300)
    return int(tile(page, name).get_attribute("data-frame"))


def test_a_replay_is_steered_by_the_api(steered: ReplayRun) -> None:
    status, at = steered.ask()
    assert status == 200
    assert at["paused"]
    assert at["position_seconds"] == steered.middle
    assert at["duration_seconds"] > RECORDED_SECONDS - 2
    assert abs(at["began_at"] - time.time()) < 3600
    moments = [steered.ask("/step", "POST", {"frames": 1})[1]["position_seconds"] for _ in range(4)]
    assert moments == sorted(moments)  # of two cameras, and rounded: some may be equal
    assert steered.middle <= moments[0] < moments[-1]
    back = [steered.ask("/step", "POST", {"frames": -1})[1]["position_seconds"] for _ in range(3)]
    assert back == moments[-2::-1]
    assert steered.ask(method="PATCH", body={"speed": "max"})[1]["speed"] == "max"
    assert steered.ask(method="PATCH", body={"paused": False})[1]["paused"] is False
    until(lambda: steered.ask()[1]["ended"], 300)  # all of it is labelled
    status, at = steered.ask(method="PATCH", body={"position_seconds": 1e9, "paused": True})
    assert at["position_seconds"] == at["duration_seconds"]
    last = steered.ask("/step", "POST", {"frames": -1})[1]["position_seconds"]
    assert last < at["duration_seconds"]
    for wrong in (
        {"speed": 0},
        {"position_seconds": -1},
        {"paused": "perhaps"},
        {"volume": 11},
        [],
    ):
        status, answer = steered.ask(method="PATCH", body=wrong)
        assert status == 422, answer
        assert "\n" not in answer["error"]
    assert steered.ask("/step", "POST", {"frames": 2})[0] == 422


def test_the_timeline_tells_of_states_and_drops(steered: ReplayRun) -> None:
    until(lambda: steered.ask("/timeline")[1]["complete"])
    _, timeline = steered.ask("/timeline")
    assert {camera["name"] for camera in timeline["cameras"]} == set(NAMES)
    for camera in timeline["cameras"]:
        states = [span["what"] for span in camera["states"]]
        assert states[:2] == ["connecting", "live"]
        away = [span for span in camera["states"] if span["what"] == "reconnecting"]
        assert away
        assert all(0 <= s["from_seconds"] <= s["to_seconds"] for s in camera["states"])
        assert all(span["frames"] > 0 for span in camera["drops"])
        # At a moment at which it was away, it is shown as away.
        middle = (away[0]["from_seconds"] + away[0]["to_seconds"]) / 2
        steered.ask(method="PATCH", body={"position_seconds": middle})
        steered.settled()
        (status,) = [c for c in steered.replay.hub.cameras() if c.name == camera["name"]]
        assert status.state == "reconnecting"
        assert status.history[-1].reason == away[0]["reason"]


def test_a_replay_is_steered_from_the_page(
    steered: ReplayRun, open_page: Callable[..., Page]
) -> None:
    page = open_page(steered.url)
    wait_for_pictures(page, *NAMES)
    expect(page.locator(".badge")).to_be_visible()
    expect(page.locator("#freeze")).to_be_hidden()
    expect(page.locator("#add")).to_be_hidden()
    expect(page.locator("#position")).to_have_text(as_time(steered.middle))
    lanes = page.get_by_role("img", name=re.compile("front: .* times reconnecting"))
    expect(lanes).to_be_visible()
    expect(page.locator(".lane .state[data-state=reconnecting]").first).to_be_attached()
    page.wait_for_timeout(500)
    # On and back again it is the same picture, pixel for pixel. A step may be the other camera's alone.
    number = int(tile(page, "front").get_attribute("data-frame"))
    seen = drawing(page)
    on, back = page.locator("#step-on"), page.locator("#step-back")
    moments = [stepped(page, lambda: page.keyboard.press(".")), stepped(page, on.click)]
    due, player = labelled_after(steered, "front"), steered.replay.hub.playback
    assert player is not None
    while player.position_seconds < due:
        moments.append(stepped(page, on.click))
    assert steered.middle <= moments[0]
    assert moments == sorted(moments)
    drawn_anew(page, number)
    assert drawing(page) != seen
    assert [stepped(page, back.click) for _ in moments[1:]] == moments[-2::-1]
    assert stepped(page, lambda: page.keyboard.press(",")) <= moments[0]
    until(lambda: drawing(page) == seen)


def as_time(seconds: float) -> str:
    return f"{int(seconds // 60)}:{seconds % 60:04.1f}"


def labelled_after(run: ReplayRun, name: str) -> float:
    """When the first frame of a camera with labels came that is not seen yet where `steered` stands."""
    session = run.replay.session
    entries = all_entries(session, session.cameras[name], None)
    return next(entry.seconds for entry in entries if entry.seconds > run.middle)


def stepped(page: Page, act: Callable[[], None]) -> float:
    """Does something that steps; the position then."""
    with page.expect_response("**/api/playback/step") as answered:
        act()
    return float(answered.value.json()["position_seconds"])


def test_space_arrows_slider_and_speed(steered: ReplayRun, open_page: Callable[..., Page]) -> None:
    page = open_page(f"{steered.url}#camera=front")
    wait_for_pictures(page, "front")
    play = page.get_by_role("button", name=re.compile("^(Play|Pause)$"))
    page.keyboard.press("Space")
    expect(play).to_have_attribute("aria-label", "Pause")
    until(lambda: steered.position() > steered.middle + 0.5)
    number = int(tile(page, "front").get_attribute("data-frame"))
    drawn_anew(page, number)
    page.keyboard.press("Space")
    expect(play).to_have_attribute("aria-label", "Play")
    until(lambda: steered.ask()[1]["paused"])
    here = steered.position()
    page.wait_for_timeout(500)
    assert steered.position() == here
    page.keyboard.press("ArrowRight")
    until(lambda: steered.position() == pytest.approx(here + 5, abs=0.2))
    page.keyboard.press("ArrowLeft")
    until(lambda: steered.position() == pytest.approx(here, abs=0.2))
    page.get_by_role("slider", name="Position").fill("1.5")
    until(lambda: steered.position() == pytest.approx(1.5, abs=0.01))
    expect(page.locator("#position")).to_have_text("0:01.5")
    page.locator("#speed").select_option("4")
    until(lambda: steered.ask()[1]["speed"] == 4)
    page.keyboard.press("Shift+<")
    until(lambda: steered.ask()[1]["speed"] == 2)
    # Arrows on the picture read classes and do not seek.
    tile(page, "front").locator("canvas").focus()
    page.keyboard.press("ArrowRight")
    expect(tile(page, "front").locator(".probe")).to_be_visible()
    page.wait_for_timeout(300)
    assert steered.position() == pytest.approx(1.5, abs=0.01)


def test_whoever_joins_while_it_is_paused_sees_the_picture(
    steered: ReplayRun, open_page: Callable[..., Page]
) -> None:
    first = open_page(f"{steered.url}#camera=front")
    wait_for_pictures(first, "front")
    second = open_page(f"{steered.url}#camera=front")
    wait_for_pictures(second, "front")
    first.wait_for_timeout(300)
    assert drawing(first) == drawing(second)
    phone = open_page(steered.url, viewport=PHONE, is_mobile=True, has_touch=True)
    wait_for_pictures(phone, "front")
    assert phone.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    box = phone.locator("#playback").bounding_box()
    assert box["y"] + box["height"] <= PHONE["height"] + 1
    phone.get_by_role("button", name="One frame on").tap()
    until(lambda: steered.position() > steered.middle)


def test_the_api_page_of_a_replay_lists_its_operations(
    steered: ReplayRun, open_page: Callable[..., Page]
) -> None:
    page = open_page(f"{steered.url}api")
    expect(page.locator("#operations section")).to_have_count(7)
    expect(page.locator("#operations")).to_contain_text("/api/playback/step")
