"""The table of the networks: size, cost, accuracy, steadiness and speed, each cell measured by this.

    python -m tests.bench.family ../shared/camvid roadnet runs/fcn/model runs/unet/model

Accuracy and steadiness on CamVid's validation part, in bfloat16, the state carried; in brackets the same
network with its state reset at every frame. Speed is that of the engine for this CPU alone, with all cores,
over frames of that part: the models take turns, and a figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from models.cost import cost
from models.evaluation.evaluate import MODES, EvalConfig, evaluate
from models.registry import load
from models.spec import find_model
from pipeline.bench.measure import Contender, measure, processor_name
from pipeline.bench.sweeps import bare
from pipeline.compile import read_footage
from pipeline.engines import choose_engine
from pipeline.settings import available_cores

CHUNK = 8


def frames_of(camvid: Path, model: str) -> np.ndarray:
    """uint8 [1, 8, h * 3 // 2, w]: the first frames of the validation part at the model's size."""
    spec = find_model(model).spec()
    frames, _, _ = read_footage((str(camvid / "val" / "images"),), CHUNK, None, spec)
    return np.stack(frames)[None]


def facts(camvid: Path, model: str, size_hw: tuple[int, int]) -> dict[str, Any]:
    """What one model costs a frame of `size_hw`, and how right and how steady its labels are."""
    network, spec = load(model)
    needed = cost(network, size_hw)
    config = EvalConfig(model, camvid / "val", modes=MODES, precision="bf16", worst=0)
    modes = evaluate(config)[0].modes
    found: dict[str, Any] = {
        "model": model, "name": spec.name, "parameters": needed.parameters, "gflops": needed.gflops,
        "size_hw": size_hw, "steps": spec.training.get("steps"),
    }  # fmt: skip
    for mode, scores in modes.items():
        assert scores.steadiness is not None  # the part is one stretch of footage
        found[mode] = {"miou": scores.quality.miou, "tc": scores.steadiness.tc}
    return found


def kept_facts(
    camvid: Path, model: str, size_hw: tuple[int, int], keep: Path | None
) -> dict[str, Any]:
    """The same, read from the file `keep` where they stand in it, else added to it."""
    if keep is None:
        return facts(camvid, model, size_hw)
    known = json.loads(keep.read_text()) if keep.exists() else {}
    digest = find_model(model).weights_sha256()
    if digest not in known:
        known[digest] = facts(camvid, model, size_hw)
        keep.write_text(json.dumps(known, indent=1))
    return dict(known[digest])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("camvid", type=Path)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="figures of the same weights are not made twice")
    options = parser.parse_args()
    pixels = {model: frames_of(options.camvid, model) for model in options.models}
    rows = [
        kept_facts(options.camvid, model, (of.shape[2] * 2 // 3, of.shape[3]), options.keep)
        for model, of in pixels.items()
    ]
    choice = replace(choose_engine("cpu"), threads=available_cores())
    contenders = [Contender(model, bare(choice, model, of)) for model, of in pixels.items()]
    for row, speed in zip(rows, measure(contenders, options.rounds), strict=True):
        row["fps"] = speed["fps"]
    print("| | M parameters | GFLOPs | mean IoU | TC | CPU, frames a second |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        carried, reset = row["carried"], row["reset"]
        print(
            f"| {row['name']} | {row['parameters'] / 1e6:.2f} | {row['gflops']:.2f}"
            f" | {100 * carried['miou']:.1f} ({100 * reset['miou']:.1f})"
            f" | {100 * carried['tc']:.1f} ({100 * reset['tc']:.1f}) | {row['fps']:.0f} |"
        )
    print(json.dumps({"machine": processor_name(), "cores": available_cores(),
                      "engine": choice.runtime, "rows": rows}))  # fmt: skip


if __name__ == "__main__":
    main()
