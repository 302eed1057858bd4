"""Real footage beside the repository: what the shipped weights see. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.spec import find_model
from pipeline.run import RunConfig, prepare, run, segment
from pipeline.sinks import OutputOptions
from pipeline.stages import SourceReport
from tests.bench.camvid import score


def test_camvid_validation_through_the_command(shared_folder: Path) -> None:
    """At least 60 % mean IoU; the figure itself stands in the model's specification."""
    found = score(shared_folder / "camvid", "--inline")
    assert found.mean_iou() >= 0.60
    stated = find_model("roadnet").spec().measured["camvid_val_miou"]
    assert found.mean_iou() == pytest.approx(stated, abs=0.01)


def test_a_motorway_never_seen_before(shared_folder: Path, tmp_path: Path) -> None:
    """Audio is stream 0, video stream 1. Road ahead, sky above, and a car somewhere most of the time."""
    clip = shared_folder / "clips" / "solidWhiteRight.mp4"
    config = RunConfig((str(clip),), tmp_path, OutputOptions(overlay=True), placement="inline")
    reports = [event for event in run(prepare(config)) if isinstance(event, SourceReport)]
    assert [(r.error, r.frames) for r in reports] == [(None, 221)]
    classes = find_model("roadnet").spec().classes
    labels = np.concatenate([batch.labels for batch in segment(clip)])
    assert labels.shape == (221, 360, 640)
    lane = labels[:, 290:330, 280:360] == classes.index("road")
    above = labels[:, :100] == classes.index("sky")
    assert lane.mean() > 0.9
    assert above.mean() > 0.8
