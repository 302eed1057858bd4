"""Accuracy on CamVid's validation part, through `roadmask run` as a user would run it.

    python -m tests.bench.camvid ../shared/camvid --model runs/final
    python -m tests.bench.camvid ../shared/camvid --simulated fp8

The shipped weights have been trained on that part too: for accuracy, name a model that has not. Beside each
other they still show what a precision costs.

The second simulates in float32, on any machine, what TensorRT multiplies in INT8 or FP8 (needs the extra
`trt-quantize`), calibrated with 64 frames of the training part.

The 101 frames are one stretch of one drive and go through as one stream, in order. Each label image is
compared with the annotation at its own size; unlabelled pixels are left out.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch

from models.evaluation.metrics import ConfusionMatrix
from models.labels import clean_ids
from models.program import example_inputs, make_step
from models.quantization import calibrate
from models.spec import find_model
from pipeline.compile import read_footage
from pipeline.writers import resize_labels


def score(camvid: Path, *arguments: str) -> ConfusionMatrix:
    """Confusion matrix of `roadmask run` over `camvid`/val; `arguments` go to the command."""
    classes = len(find_model("roadnet").spec().classes)
    found = ConfusionMatrix(classes)
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "pipeline.cli", "run", str(camvid / "val" / "images"),
                   "--out", out, "--labels", "png", "--no-color", "-q", *arguments]  # fmt: skip
        subprocess.run(command, check=True)
        truths = sorted((camvid / "val" / "labels").glob("*.png"))
        for path in truths:
            truth = clean_ids(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), classes, path)
            labels = cv2.imread(f"{out}/images/labels/{path.name}", cv2.IMREAD_UNCHANGED)
            if labels is None:
                raise FileNotFoundError(f"roadmask run left no label image for {path.name}")
            found.add(truth, labels)
    return found


def score_simulated(camvid: Path, precision: str) -> ConfusionMatrix:
    """The same of the network with quantisers, by plain PyTorch."""
    files = find_model("roadnet")
    spec = files.spec()
    frames, size_hw, _ = read_footage((str(camvid / "train" / "images"),), 64, None, spec)
    step = make_step(files, "f32")
    calibrate(step, precision, frames)
    found = ConfusionMatrix(len(spec.classes))
    truths = sorted((camvid / "val" / "labels").glob("*.png"))
    shown, _, _ = read_footage((str(camvid / "val" / "images"),), len(truths), size_hw, spec)
    state = example_inputs(step, size_hw, 1)[1]
    with torch.no_grad():
        for path, frame in zip(truths, shown, strict=True):
            truth = clean_ids(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), len(spec.classes), path)
            labels, state = step(torch.from_numpy(frame)[None], state)
            found.add(truth, resize_labels(labels[0].numpy().astype(np.uint8), truth.shape))
    return found


def main() -> None:
    camvid, *arguments = sys.argv[1:]
    if arguments[:1] == ["--simulated"]:
        found = score_simulated(Path(camvid), arguments[1])
    else:
        found = score(Path(camvid), *arguments)
    names = find_model("roadnet").spec().classes
    iou = {n: round(float(v), 4) for n, v in zip(names, found.class_iou(), strict=True)}
    for name, value in iou.items():
        print(f"{name:12}{100 * value:6.1f} %")
    print(f"{'mean IoU':12}{100 * found.mean_iou():6.1f} %")
    print(f"{'pixels right':12}{100 * found.pixel_accuracy():6.1f} %")
    print(json.dumps({"miou": found.mean_iou(), "pixel_accuracy": found.pixel_accuracy(),
                      "class_iou": iou}))  # fmt: skip


if __name__ == "__main__":
    main()
