"""Accuracy on CamVid's validation part, through `roadmask run` as a user would run it.

    python -m tests.bench.camvid ../shared/camvid

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

from models.evaluation.metrics import ConfusionMatrix
from models.labels import clean_ids
from models.spec import find_model


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


def main() -> None:
    found = score(Path(sys.argv[1]), *sys.argv[2:])
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
