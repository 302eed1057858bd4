"""Draws what `roadmask bench` measured of streams, frames a chunk and sizes.

    roadmask bench --sweep streams > streams.txt
    python -m tests.bench.plot streams.txt --out streams.svg

The file's last line is the benchmark's line of JSON. PNG or SVG, as the name says. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

AXES = {"streams": "streams", "chunk": "frames a chunk", "size": "rows of the video"}


def read(path: Path) -> dict[str, Any]:
    """The benchmark's result, of the last line of a file. Raises SystemExit, in one line, without one."""
    try:
        result = json.loads(path.read_text("utf-8").strip().splitlines()[-1])
        sweeps: dict[str, Any] = result["sweeps"]
    except (OSError, ValueError, IndexError, KeyError, TypeError) as error:
        raise SystemExit(
            f"{path}: expected the output of `roadmask bench --sweep ...`, got {error!r}"
        ) from error
    if not AXES.keys() & sweeps.keys():
        raise SystemExit(f"{path}: no sweep of {', '.join(AXES)} in it, got {', '.join(sweeps)}")
    return result


def series(rows: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Rows of a sweep as lines of a plot: (what was varied, frames a second), by what was measured.

    What is varied is left out of the names: "roadmask, 8 streams" belongs to "roadmask".
    """
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        words = [w for w in row["name"].replace(" at ", ", ").split(", ") if not _varies(w)]
        lines.setdefault(", ".join(words), []).append((row["x"], row["fps"]))
    return {name: sorted(points) for name, points in lines.items()}


def _varies(word: str) -> bool:
    return any(letter.isdecimal() for letter in word)


def draw(result: dict[str, Any], out: Path) -> None:
    """A panel a sweep, frames a second over what was varied."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = [name for name in AXES if name in result["sweeps"]]
    figure, panels = plt.subplots(1, len(names), figsize=(6 * len(names), 4.2), squeeze=False)
    for panel, name in zip(panels[0], names, strict=True):
        for label, points in series(result["sweeps"][name]["rows"]).items():
            panel.plot(*zip(*points, strict=True), marker="o", label=label)
        panel.set_xscale("log", base=2)
        ticks = sorted({row["x"] for row in result["sweeps"][name]["rows"]})
        panel.set_xticks(ticks, map(str, ticks))
        panel.set_ylim(bottom=0)
        panel.set_xlabel(AXES[name])
        panel.set_ylabel("frames a second, all streams together")
        panel.grid(alpha=0.3)
        panel.legend(frameon=False)
    figure.suptitle(
        f"{result['engine']}, {result['cores']} cores, medians of {result['rounds']} rounds"
    )
    figure.tight_layout()
    figure.savefig(out, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws what `roadmask bench --sweep` measured.")
    parser.add_argument("result", type=Path, help="what `roadmask bench` printed")
    parser.add_argument("--out", type=Path, default=Path("bench.svg"), help="a .png or .svg")
    options = parser.parse_args()
    draw(read(options.result), options.out)
    print(options.out)


if __name__ == "__main__":
    main()
