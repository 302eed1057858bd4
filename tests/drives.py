"""Tiny data sets and configurations for tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch

from models.registry import build, save
from models.training.config import TrainConfig

CLASSES = ["sky", "road", "car"]
TINY_ROADNET = {"width": 16, "memory": 16, "fine_memory": 8, "finest_memory": 4}


def scene(number: int) -> tuple[np.ndarray, np.ndarray]:
    """BGR uint8 [64, 96, 3] and class ids: sky above, road below, a car that moves with `number`."""
    rng = np.random.default_rng(number)
    labels = np.ones((64, 96), np.uint8)
    labels[:30], labels[28:44, 20 + 2 * number : 50 + 2 * number] = 0, 2
    colors = np.array([[200, 150, 120], [90, 90, 90], [30, 30, 200]], np.uint8)
    bgr = np.clip(colors[labels] + rng.normal(0, 8, (64, 96, 3)), 0, 255).astype(np.uint8)
    labels[0, 0] = 3  # unlabelled, as in CamVid's own files
    return bgr, labels


def write_pictures(folder: Path, stills: int = 4) -> Path:
    """A folder of pictures 00.png, 01.png, ... and their labels."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for number in range(stills):
        bgr, labels = scene(number)
        cv2.imwrite(str(folder / "images" / f"{number:02d}.png"), bgr)
        cv2.imwrite(str(folder / "labels" / f"{number:02d}.png"), labels)
    return folder


def write_rendered(folder: Path, frames: int = 4) -> Path:
    """One rendered clip, as the renderer leaves it."""
    folder.mkdir(parents=True)
    scenes = [scene(number) for number in range(frames)]
    write_video(folder / "street.mp4", [bgr for bgr, _ in scenes], "libx264", "bgr24", "yuv420p")
    labels = [labels for _, labels in scenes]
    write_video(folder / "street_labels.mkv", labels, "ffv1", "gray", "gray")
    return folder


def write_video(path: Path, frames: list[np.ndarray], codec: str, given: str, stored: str) -> None:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=15)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], stored
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels, format=given)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def phase(**changes: Any) -> dict[str, Any]:
    return {"steps": 4, "batch": 2, "frames": 1, "crop_hw": [64, 64], "scale_range": [0.8, 1.2],
            "peak_rate": 0.003, "final_rate": 0.0003, "warmup_steps": 2, **changes}  # fmt: skip


def raw_config(folder: Path, **changes: Any) -> dict[str, Any]:
    """A training of seconds on `folder`, as its YAML file would hold it."""
    return {
        "model": "tiny", "options": TINY_ROADNET, "classes": CLASSES, "short_side": 64,
        "train_on": [str(folder)],
        "threads": 1, "device": "cpu", "precision": "f32", "tensorboard": False,
        "checkpoint_every": 3, "validate_every": 100, "log_every": 2, "sampling": {"rare": ["car"]},
        "phases": [phase()], **changes,
    }  # fmt: skip


def tiny_config(folder: Path, **changes: Any) -> TrainConfig:
    return TrainConfig.model_validate(raw_config(folder, **changes))


def write_teacher(folder: Path) -> str:
    """The folder of an untrained model of the same classes."""
    spec = tiny_config(folder).spec()
    torch.manual_seed(5)
    save(folder, build(spec), spec)
    return str(folder)


def quiet(line: str) -> None:
    pass
