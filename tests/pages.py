"""What the tests of the view's page share: the browser, and how to look at a tile."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api")
Browser, Page, expect = playwright.Browser, playwright.Page, playwright.expect

PATIENCE_MS = 60_000
PHONE = {"width": 390, "height": 844}
expect.set_options(timeout=PATIENCE_MS)  # of itself it waits 5 s, whatever a context waits


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        if os.environ.get("REQUIRE_BROWSER") == "1":
            pytest.fail("REQUIRE_BROWSER=1, but there is no chromium command")
        pytest.skip("needs the chromium command (Debian: chromium)")
    with playwright.sync_playwright() as driver:
        # In containers and as root Chromium's own sandbox cannot be made.
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens pages; at the end none may have complained."""
    contexts: list[Any] = []
    complaints: list[str] = []

    def open_(url: str, init: str = "", **options: object) -> Page:
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 800}} | options))
        contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        if init:
            page.add_init_script(init)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console", lambda message: message.type == "error" and complaints.append(message.text)
        )
        page.goto(url)
        return page

    yield open_
    for context in contexts:
        context.close()
    # What the browser itself says of refused requests and servers that are gone is no complaint.
    own = ("ERR_CONNECTION", "Failed to load resource")
    assert [text for text in complaints if not any(part in text for part in own)] == []


def tile(page: Page, name: str) -> Any:
    return page.locator(f".tile[data-name={name}]")


def wait_for_pictures(page: Page, *names: str, kind: str = "h264|jpeg") -> None:
    """By default of either kind: a browser that is short of time turns to JPEG, and may.

    It tries H.264 again a minute later, so whoever insists on that waits for longer than the minute.
    """
    patience_ms = 3 * PATIENCE_MS if kind == "h264" else PATIENCE_MS
    for name in names:
        shown = re.compile(f"^({kind})$")
        expect(tile(page, name)).to_have_attribute("data-video", shown, timeout=patience_ms)
