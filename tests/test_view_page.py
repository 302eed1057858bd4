"""The view's page in headless Chromium, driven by Playwright.

Pixels are read back from the page's own canvas, so what is compared is what a person sees. The cameras show
frames of one grey and one class each, both known from the frame's number (`tests.fake_hub.numbered`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from pipeline.view import ViewConfig, start_view
from pipeline.view.server import View
from tests import pages
from tests.fake_hub import FakeHub, numbered, street
from tests.pages import PATIENCE_MS, PHONE, tile, wait_for_pictures

Page, expect = pages.Page, pages.expect
browser, open_page = pages.browser, pages.open_page  # fixtures

CLASSES = 11
TOKEN = "correct horse battery staple"
NO_SOURCE = "delete window.MediaSource; delete window.ManagedMediaSource;"  # then JPEG frames come

_SAMPLE = """async ([name, count, patience]) => {
  // The number of each frame that is drawn, and the pixels at a quarter of the canvas from left and right.
  const tile = document.querySelector(`[data-name=${name}]`);
  const canvas = tile.querySelector("canvas");
  const context = canvas.getContext("2d");
  const found = [];
  const until = performance.now() + patience;
  let last = Number(tile.dataset.frame);
  while (found.length < count && performance.now() < until) {
    await new Promise(requestAnimationFrame);
    const frame = Number(tile.dataset.frame);
    if (frame === last) continue;
    last = frame;
    const data = (x) => context.getImageData(x * canvas.width, canvas.height / 4, 1, 1).data;
    const pixel = (x) => [...data(x)].slice(0, 3);
    found.push([frame, pixel(0.25), pixel(0.75)]);
  }
  return found;
}"""


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    hub = FakeHub(numbered(), 12.0)
    for name in ("front", "rear"):
        hub.add(f"rtsp://viewer:tops3cret@{name}.example/x", name)
    yield hub
    hub.close()


@pytest.fixture
def view(hub: FakeHub) -> Iterator[View]:
    with start_view(hub, ViewConfig(port=0)) as view:
        yield view


def sample(page: Page, name: str = "front", count: int = 12) -> list[Any]:
    """The next frames drawn: number, and two pixels' red, green and blue."""
    found = page.evaluate(_SAMPLE, [name, count, PATIENCE_MS])
    assert len(found) == count
    return found


def grey(number: int) -> float:
    """What a frame's luma is in full range."""
    return (40 + 16 * (number % CLASSES) - 16) * 255 / 219


def near(pixel: list[int], wanted: list[float], by: float = 7.0) -> bool:
    return all(abs(a - b) <= by for a, b in zip(pixel, wanted, strict=True))


def test_grid_shows_every_camera_with_its_figures(
    view: View, open_page: Callable[..., Page]
) -> None:
    page = open_page(view.url)
    wait_for_pictures(page, "front", "rear")
    expect(page.locator(".tile")).to_have_count(2)
    expect(page.locator("#link")).to_contain_text("Connected")
    for name in ("front", "rear"):
        expect(tile(page, name).locator(".chip")).to_have_text("Live")
        expect(tile(page, name).locator(".figures")).to_have_text(
            re.compile(r"[\d.]+ fps  ·  \d+ ms  ·  \d+ dropped")
        )
    expect(page.locator("#legend li")).to_have_count(CLASSES)
    expect(page.locator("#history li")).to_have_count(4)
    expect(page.locator("#history")).to_contain_text("first frame")
    expect(page.get_by_role("img", name=re.compile("last . minutes: .*live"))).to_have_count(2)
    assert "tops3cret" not in page.content()


@pytest.mark.parametrize(
    ("init", "kind"),
    [
        ("", "h264"),
        ("delete window.VideoFrame;", "h264"),  # then the number in the picture is what tells
        (NO_SOURCE, "jpeg"),
        ("delete HTMLVideoElement.prototype.requestVideoFrameCallback;", "jpeg"),
        ("MediaSource.prototype.addSourceBuffer = () => { throw new Error('broken') };", "jpeg"),
        ("SourceBuffer.prototype.appendBuffer = () => {};", "jpeg"),  # takes all, shows nothing
    ],
    ids=["mse", "no-video-frame", "no-mse", "no-callback", "mse-throws", "mse-mute"],
)
def test_mask_is_drawn_with_the_frame_it_belongs_to(
    view: View, hub: FakeHub, open_page: Callable[..., Page], init: str, kind: str
) -> None:
    page = open_page(f"{view.url}#camera=front&mode=side", init)
    wait_for_pictures(page, "front", kind=kind)
    for number, picture, mask in sample(page, count=30):
        assert near(picture, [grey(number)] * 3), (number, picture)
        assert mask == list(hub.spec.palette_rgb[number % CLASSES]), number


def test_classes_are_switched_without_asking_the_server(
    view: View, hub: FakeHub, open_page: Callable[..., Page]
) -> None:
    page = open_page(f"{view.url}#camera=front&mode=side")
    wait_for_pictures(page, "front")
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    road = page.get_by_role("switch", name="road")
    expect(road).to_have_attribute("aria-checked", "true")
    road.click()
    expect(road).to_have_attribute("aria-checked", "false")
    for number, _, mask in sample(page):
        off = hub.spec.classes[number % CLASSES] == "road"
        assert mask == ([0, 0, 0] if off else list(hub.spec.palette_rgb[number % CLASSES]))
    page.locator("#all-off").click()
    assert all(mask == [0, 0, 0] for _, _, mask in sample(page))
    page.locator("#all-on").click()
    expect(road).to_have_attribute("aria-checked", "true")
    page.get_by_role("switch", name="sky").dblclick()
    expect(page.locator("#legend [aria-checked=true]")).to_have_count(1)
    assert sent == []
    page.reload()
    wait_for_pictures(page, "front")
    expect(page.locator("#legend [aria-checked=true]")).to_have_count(1)


def test_opacity_blends_mask_and_picture(
    view: View, hub: FakeHub, open_page: Callable[..., Page]
) -> None:
    page = open_page(f"{view.url}#camera=front")
    wait_for_pictures(page, "front")
    for percent in (0, 40, 100):
        page.get_by_role("slider", name="Opacity").fill(str(percent))
        expect(page.locator("#opacity-value")).to_have_text(f"{percent} %")
        for number, picture, _ in sample(page):
            colour = hub.spec.palette_rgb[number % CLASSES]
            part = percent / 100
            assert near(picture, [part * c + (1 - part) * grey(number) for c in colour])


def test_modes(view: View, hub: FakeHub, open_page: Callable[..., Page]) -> None:
    page = open_page(f"{view.url}#camera=front")
    wait_for_pictures(page, "front")
    page.get_by_role("radio", name="Mask", exact=True).click()
    for number, left, right in sample(page):
        assert left == right == list(hub.spec.palette_rgb[number % CLASSES])
    assert "mode=mask" in page.url
    page.get_by_role("radio", name="Video", exact=True).click()
    for number, left, right in sample(page):
        assert near(left, [grey(number)] * 3)
        assert near(right, [grey(number)] * 3)
    expect(page.locator("#opacity")).to_be_disabled()
    page.get_by_role("radio", name="Side by side", exact=True).click()
    box = tile(page, "front").locator("canvas").evaluate("canvas => canvas.width / canvas.height")
    assert box == pytest.approx(2 * 128 / 96)


def test_class_under_the_cursor(hub: FakeHub, view: View, open_page: Callable[..., Page]) -> None:
    frames = street(1)
    for camera in hub.by_name.values():
        camera.frames = frames
    page = open_page(f"{view.url}#camera=front")
    wait_for_pictures(page, "front")
    labels = frames[0][1]
    canvas = tile(page, "front").locator("canvas")
    expect(canvas).to_have_attribute("width", "640")
    box = canvas.bounding_box()
    assert box is not None
    for x, y in ((0.5, 0.85), (0.08, 0.3), (0.5, 0.02)):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        name = hub.spec.classes[labels[int(y * 360), int(x * 640)]]
        expect(tile(page, "front").locator(".probe")).to_have_text(name)
        expect(page.locator("#legend .pointed")).to_contain_text(name)
    page.mouse.move(5, 5)
    expect(tile(page, "front").locator(".probe")).to_be_hidden()
    canvas.focus()
    page.keyboard.press("ArrowDown")
    name = hub.spec.classes[labels[int(0.52 * 360), 320]]
    expect(tile(page, "front").locator(".probe")).to_have_text(name)
    expect(page.locator("#said")).to_have_text(name)


def test_keyboard_does_everything(view: View, hub: FakeHub, open_page: Callable[..., Page]) -> None:
    page = open_page(view.url)
    wait_for_pictures(page, "front", "rear")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the cameras")).to_be_focused()
    page.keyboard.press("n")
    expect(page.locator("body")).to_have_class(re.compile("single"))
    expect(tile(page, "front")).to_be_visible()
    expect(tile(page, "rear")).to_be_hidden()
    page.keyboard.press("n")
    expect(tile(page, "rear")).to_be_visible()
    expect(page.locator("#tabs [aria-current=true]")).to_have_text("rear")
    page.keyboard.press("g")
    expect(tile(page, "front")).to_be_visible()
    page.keyboard.press("m")
    expect(page.locator("[name=mode][value=side]")).to_be_checked()
    page.keyboard.press("4")
    expect(page.get_by_role("switch", name="road")).to_have_attribute("aria-checked", "false")
    page.keyboard.press("a")
    expect(page.locator("#legend [aria-checked=false]")).to_have_count(0)
    page.keyboard.press("]")
    expect(page.locator("#opacity-value")).to_have_text("60 %")
    page.keyboard.press("t")
    theme = page.locator("html").get_attribute("data-theme")
    page.keyboard.press("t")
    expect(page.locator("html")).not_to_have_attribute("data-theme", theme or "")
    page.keyboard.press("Space")
    expect(page.locator("#freeze")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Space")
    tile(page, "rear").locator("canvas").focus()
    page.keyboard.press("Enter")
    expect(tile(page, "front")).to_be_hidden()
    page.keyboard.press("Escape")
    expect(tile(page, "front")).to_be_visible()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.get_by_label("Single keys work").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("n")
    expect(tile(page, "rear")).to_be_visible()


_FREEZE = """() => {
  // In one go: a frame on its way through the decoder must not be drawn after it.
  document.querySelector("#freeze").click();
  return document.querySelector("[data-name=front]").dataset.frame;
}"""


@pytest.mark.parametrize("init", ["", NO_SOURCE], ids=["mse", "no-mse"])
def test_frozen_pictures_stay(view: View, open_page: Callable[..., Page], init: str) -> None:
    page = open_page(f"{view.url}#camera=front", init)
    wait_for_pictures(page, "front")
    for _ in range(3):
        number = page.evaluate(_FREEZE)
        page.wait_for_timeout(700)
        assert tile(page, "front").get_attribute("data-frame") == number
        page.locator("#freeze").click()
        expect(tile(page, "front")).not_to_have_attribute("data-frame", number)


def test_server_that_comes_back_is_found(hub: FakeHub, open_page: Callable[..., Page]) -> None:
    view = start_view(hub, ViewConfig(port=0))
    port = urlsplit(view.url).port or 0
    page = open_page(view.url)
    wait_for_pictures(page, "front", "rear")
    view.close()
    expect(page.locator("#link")).to_contain_text("Connection lost")
    expect(tile(page, "front").locator(".chip")).to_have_text("No server")
    number = tile(page, "front").get_attribute("data-frame")
    with start_view(hub, ViewConfig(port=port)):
        expect(page.locator("#link")).to_contain_text("Connected")
        expect(tile(page, "front")).not_to_have_attribute("data-frame", number or "")
        expect(tile(page, "front").locator(".chip")).to_have_text("Live")
        sample(page)


def test_silent_camera_says_so_and_comes_back(
    view: View, hub: FakeHub, open_page: Callable[..., Page]
) -> None:
    page = open_page(view.url)
    wait_for_pictures(page, "front", "rear")
    hub.by_name["rear"].paused.set()
    expect(tile(page, "rear").locator(".chip")).to_have_text("Silent")
    expect(tile(page, "rear").locator(".cover")).to_have_text("no frame for 2 s")
    expect(page.locator("#history li").first).to_contain_text("rear silent")
    sample(page, "front")
    number = tile(page, "rear").get_attribute("data-frame")
    hub.by_name["rear"].paused.clear()
    expect(tile(page, "rear")).not_to_have_attribute("data-frame", number or "")
    expect(tile(page, "rear").locator(".cover")).to_be_hidden()


def test_change_of_size_is_followed(
    view: View, hub: FakeHub, open_page: Callable[..., Page]
) -> None:
    page = open_page(f"{view.url}#camera=front&mode=side")
    wait_for_pictures(page, "front")
    hub.by_name["front"].frames = numbered(size_hw=(64, 160))
    expect(tile(page, "front").locator("canvas")).to_have_attribute("width", "320")
    for number, picture, mask in sample(page):
        assert near(picture, [grey(number)] * 3)
        assert mask == list(hub.spec.palette_rgb[number % CLASSES])


def test_cameras_are_added_and_removed(
    view: View, hub: FakeHub, open_page: Callable[..., Page]
) -> None:
    page = open_page(view.url)
    wait_for_pictures(page, "front", "rear")
    page.get_by_role("button", name="Add camera").click()
    page.get_by_label("Address").fill("ftp://camera.example/x")
    page.get_by_label("Name").fill("left")
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.locator("#add-error")).to_contain_text("must begin with rtsp")
    page.get_by_label("Address").fill("rtsp://me:hunter22@camera.example/x")
    page.get_by_role("button", name="Add", exact=True).click()
    wait_for_pictures(page, "left")
    assert "hunter22" not in page.content()
    tile(page, "left").locator(".name").click()
    expect(page.locator("#facts")).to_contain_text("rtsp://me:***@camera.example/x")
    page.get_by_role("button", name="Remove").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    expect(tile(page, "left")).to_have_count(0)
    expect(tile(page, "front")).to_be_visible()
    assert set(hub.by_name) == {"front", "rear"}


def test_only_what_is_seen_is_sent(
    view: View, hub: FakeHub, open_page: Callable[..., Page]
) -> None:
    page = open_page(view.url)
    wait_for_pictures(page, "front", "rear")
    assert hub.listeners("rear") == 1
    page.locator("#tabs [data-camera=front]").click()
    for _ in range(100):
        if hub.listeners("rear") == 0:
            break
        page.wait_for_timeout(100)
    assert hub.listeners("rear") == 0
    assert hub.listeners("front") == 1


def test_phone(view: View, hub: FakeHub, open_page: Callable[..., Page]) -> None:
    for camera in hub.by_name.values():
        camera.frames = street(1)
    page = open_page(
        view.url, viewport=PHONE, device_scale_factor=2, is_mobile=True, has_touch=True
    )
    wait_for_pictures(page, "front")
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    box = tile(page, "front").bounding_box()
    assert box is not None
    assert box["width"] > 0.9 * PHONE["width"]
    small = page.evaluate(
        """() => [...document.querySelectorAll("button, input")]
          .filter((one) => one.offsetParent && one.type !== "radio" && one.type !== "range")
          .filter((one) => one.getBoundingClientRect().height < 28).length"""
    )
    assert small == 0
    tile(page, "front").locator("canvas").tap()
    expect(tile(page, "front").locator(".probe")).to_be_visible()
    tile(page, "front").locator(".name").tap()
    expect(tile(page, "rear")).to_be_hidden()
    page.get_by_role("radio", name="Side by side", exact=True).tap()
    page.wait_for_timeout(500)
    shape = tile(page, "front").locator("canvas").evaluate("canvas => canvas.height / canvas.width")
    assert shape > 1  # one above the other
    page.get_by_role("switch", name="road").tap()
    expect(page.get_by_role("switch", name="road")).to_have_attribute("aria-checked", "false")


def test_screen_readers_get_names_for_everything(
    view: View, open_page: Callable[..., Page]
) -> None:
    page = open_page(f"{view.url}#camera=front")
    wait_for_pictures(page, "front")
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, input, canvas, dialog, section, nav, aside, img")]
          .filter((one) => !(one.textContent.trim() || one.getAttribute("aria-label") || one.labels?.length
            || one.getAttribute("aria-labelledby") || one.hasAttribute("alt")))
          .map((one) => one.outerHTML)"""
    )
    assert unnamed == []
    expect(page.get_by_role("img", name=re.compile(r"front, Live, [\d.]+ fps"))).to_be_visible()
    assert page.locator("h1").count() == 1
    assert page.locator("html").get_attribute("lang") == "en"


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_theme_follows_the_system_and_is_legible(
    view: View, open_page: Callable[..., Page], scheme: str
) -> None:
    page = open_page(view.url, color_scheme=scheme, reduced_motion="reduce")
    wait_for_pictures(page, "front")
    contrasts = page.evaluate(
        """() => {
          const light = (text) => {
            const [r, g, b] = text.match(/[\\d.]+/g).map((part) => part / 255)
              .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const behind = (one) => {
            const colour = getComputedStyle(one).backgroundColor;
            return /rgba\\(.*, 0\\)|color\\(/.test(colour) ? behind(one.parentElement) : colour;
          };
          return [".figures", ".name", "#share-of", ".class-name", ".share", ".history time", ".mark",
            ".segments span", ".pill", ".tabs button"].map((selector) => {
            const one = document.querySelector(selector);
            const pair = [light(getComputedStyle(one).color), light(behind(one))].sort((a, b) => b - a);
            return [selector, (pair[0] + 0.05) / (pair[1] + 0.05)];
          });
        }"""
    )
    # WCAG 2.2, 1.4.3: 4.5 to 1 for text.
    assert [pair for pair in contrasts if pair[1] < 4.5] == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(11, 15, 20)") == (scheme == "dark")
    moving = page.evaluate("getComputedStyle(document.querySelector('.fill')).transitionDuration")
    assert moving == "0s"


def test_login(hub: FakeHub, open_page: Callable[..., Page]) -> None:
    with start_view(hub, ViewConfig(port=0, token=TOKEN)) as view:
        page = open_page(view.url)
        expect(page).to_have_url(re.compile("/login$"))
        page.get_by_label("Token").fill("not the token at all")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_have_text("That is not the token.")
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_role("button", name="Log in").click()
        wait_for_pictures(page, "front")
        assert page.evaluate("document.cookie") == ""
        page.get_by_role("button", name="Log out").click()
        expect(page).to_have_url(re.compile("/login$"))
        page.goto(view.url)
        expect(page).to_have_url(re.compile("/login$"))


def test_api_page_shows_the_document(view: View, open_page: Callable[..., Page]) -> None:
    page = open_page(f"{view.url}api")
    expect(page.get_by_role("heading", name="Roadmask live view")).to_be_visible()
    expect(page.locator("#operations section")).to_have_count(4)
    expect(page.locator("#schemas h3")).to_have_count(5)


def test_no_cameras(open_page: Callable[..., Page]) -> None:
    hub = FakeHub(numbered())
    with start_view(hub, ViewConfig(port=0)) as view:
        page = open_page(view.url)
        expect(page.locator("#empty")).to_be_visible()
        page.get_by_role("button", name="Add one").click()
        expect(page.get_by_role("dialog", name="Add a camera")).to_be_visible()
