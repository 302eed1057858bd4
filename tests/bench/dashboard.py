"""The dashboard of deploy/ as a picture: a real run and a live run, scraped by a real Prometheus, each panel
drawn from its own queries. (It is not Grafana that draws.)

    python -m tests.bench.dashboard --seconds 90 --out deploy/dashboard.png

needs Prometheus (Debian: prometheus) and the extra `bench`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.cameras import free_port
from tests.prometheus import Prometheus, prometheus
from tests.test_deploy import DASHBOARD, RULES, TOKEN, concrete, scraping

CLIP = Path(__file__).resolve().parents[2] / "sample_videos" / "city_drive.mp4"
WINDOW = "15s"


def panels() -> list[dict[str, Any]]:
    found = json.loads(DASHBOARD.read_text())["panels"]
    return [panel for panel in found if panel["type"] == "timeseries"]


def draw(found: Prometheus, seconds: float, out: Path) -> None:
    """All panels that have lines, four beside each other."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    end = time.time()
    drawn = [(panel, lines(found, panel, end - seconds, end)) for panel in panels()]
    drawn = [(panel, every) for panel, every in drawn if every]
    rows = -(-len(drawn) // 4)
    figure, axes = pyplot.subplots(rows, 4, figsize=(15, 2.4 * rows), squeeze=False)
    for axis in axes.flat[len(drawn) :]:
        axis.axis("off")
    for axis, (panel, every) in zip(axes.flat, drawn, strict=False):
        for name, points in every[:8]:
            times, values = zip(*points, strict=True)
            axis.plot([at - end for at in times], values, linewidth=1, label=name)
        unit = panel["fieldConfig"]["defaults"].get("unit", "none")
        axis.set_title(panel["title"] + (f", {unit}" if unit != "none" else ""), fontsize=8)
        axis.set_ylim(bottom=0)
        axis.tick_params(labelsize=6)
        axis.legend(fontsize=5, loc="upper left")
    figure.tight_layout()
    figure.savefig(out, dpi=80)


def lines(
    found: Prometheus, panel: dict[str, Any], start: float, end: float
) -> list[tuple[str, list[tuple[float, float]]]]:
    """Each line's name and its points."""
    every = []
    for target in panel["targets"]:
        answer = found.api(
            "query_range", query=concrete(target["expr"], WINDOW), start=start, end=end, step=2
        )
        for series in answer["result"]:
            name = target["legendFormat"]
            for label, value in series["metric"].items():
                name = name.replace("{{" + label + "}}", value)
            points = [(at, float(value)) for at, value in series["values"] if value != "NaN"]
            if points:
                every.append((name, points))
    return every


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--out", type=Path, default=Path("deploy/dashboard.png"))
    given = parser.parse_args()
    live_at, run_at = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    program = [sys.executable, "-m", "pipeline.cli"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "token").write_text(TOKEN)
        files = [str(folder / f"clip{number}.mp4") for number in range(8)]
        for file in files:
            shutil.copy(CLIP, file)
        run = [*program, "run", *files, "--out", str(folder / "out"), "--inline", "-q",
               "--size", "184x320", "--metrics", run_at]  # fmt: skip
        cameras = [f"front=file://{files[0]}", f"rear=file://{files[1]}", "--realtime", "--inline"]
        live = [*program, "live", *cameras, "-q", "--size", "96x160", "--view", live_at]
        environment = {**os.environ, "ROADMASK_VIEW_TOKEN": TOKEN}
        config = scraping(live_at, run_at, folder / "token")
        with prometheus(folder / "prometheus", config, RULES) as found:
            began = time.monotonic()
            started = [subprocess.Popen(command, env=environment) for command in (run, live)]
            try:
                time.sleep(given.seconds)
                draw(found, time.monotonic() - began, given.out)
            finally:
                for process in started:
                    process.terminate()
                for process in started:
                    process.wait(60)
    print(json.dumps({"out": str(given.out), "seconds": given.seconds}))


if __name__ == "__main__":
    main()
