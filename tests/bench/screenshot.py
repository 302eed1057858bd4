"""The picture of the live view in the README, taken anew.

    python -m tests.bench.screenshot --out sample_videos/live_view.jpg

Four cameras of a real RTSP server show the sample clip, each from another place; `roadmask live` labels them
by the shipped network, and Chromium shows the page. `--replay` shows the session that was recorded instead,
and `--phone` the page on a phone.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from playwright.sync_api import Page, sync_playwright

from tests.pages import PATIENCE_MS, PHONE
from tests.test_view_live import LiveRun, ReplayRun

NAMES = ("bus-12", "bus-31", "tram-7", "van-4")
LARGEST_BYTES = 200_000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fps", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=12.0, help="of the cameras, before it")
    parser.add_argument("--replay", action="store_true")
    parser.add_argument("--phone", action="store_true")
    parser.add_argument("--light", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = LiveRun(Path(folder), NAMES, (360, 640), given.fps, None)
        run.start()
        try:
            time.sleep(given.seconds)
            shot = replayed(run, given) if given.replay else taken(run.url, given)
        finally:
            run.stop()
    save(given.out, shot)


def replayed(run: LiveRun, given: argparse.Namespace) -> bytes:
    replay = ReplayRun(run.end_recording())
    try:
        replay.ask(method="PATCH", body={"position_seconds": given.seconds / 2})
        replay.settled()
        return taken(replay.url, given)
    finally:
        replay.stop()


def taken(url: str, given: argparse.Namespace) -> bytes:
    """The page as PNG, once every picture is there and the figures are steady."""
    size = {"viewport": PHONE, "device_scale_factor": 2, "is_mobile": True} if given.phone else {
        "viewport": {"width": 1440, "height": 860}}  # fmt: skip
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page: Page = browser.new_page(color_scheme="light" if given.light else "dark", **size)
        page.set_default_timeout(PATIENCE_MS)
        page.goto(url)
        page.wait_for_selector(".tile[data-video]")
        page.wait_for_timeout(6000)
        shot = page.screenshot()
        browser.close()
    return shot


def save(out: Path, shot: bytes) -> None:
    """As PNG, or as JPEG of the best quality that is small enough."""
    if out.suffix == ".png":
        out.write_bytes(shot)
        return
    picture = cv2.imdecode(np.frombuffer(shot, np.uint8), cv2.IMREAD_COLOR)
    for quality in range(95, 50, -3):
        _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
        if data.nbytes < LARGEST_BYTES:
            break
    out.write_bytes(data.tobytes())
    print(f"{out}: {data.nbytes} bytes, quality {quality}")


if __name__ == "__main__":
    main()
