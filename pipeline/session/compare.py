"""A replay with another network beside what was recorded: agreement, confusion, flicker, worst frames."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from threading import Lock
from typing import Any

import cv2
import numpy as np

from models.evaluation.consistency import Motion, Steadiness
from models.evaluation.metrics import ConfusionMatrix, mean_of_known
from models.evaluation.plots import COLORS, Series, line_chart
from models.evaluation.report import (
    PAGE_STYLE,
    confusion_cell,
    error_map,
    figure,
    table_html,
)
from models.evaluation.scorers import WorstFrame, WorstFrames
from models.evaluation.scores import known
from models.evaluation.tables import Table, percent
from models.labels import paint
from models.spec import Spec
from pipeline.parts import output_errors, write_whole
from pipeline.session.checks import FormatError
from pipeline.session.source import ReplayedFrame
from pipeline.writers import resize_labels

WORST_FRAMES = 12
_REORDERED_SECONDS = 1.0  # by a codec at most


@dataclass
class _Camera:
    """What one camera came to."""

    recorded: Steadiness
    replayed: Steadiness
    agreement: list[tuple[float, float | None]]
    before_rgb: np.ndarray | None = None
    frames: int = 0
    latest: float = -np.inf  # session seconds


class Comparison:
    """Two networks on the same frames; `on_frame` may be called from many threads.

    Args:
        spec: of the network that labels now; the recorded one has the same classes.
    """

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._lock = Lock()
        self._confusion = ConfusionMatrix(len(spec.classes))
        self._cameras: dict[str, _Camera] = {}
        self._worst: dict[str, WorstFrames] = {}
        self.not_compared = 0

    @property
    def frames(self) -> int:
        """Compared so far."""
        return sum(camera.frames for camera in self._cameras.values())

    def on_frame(self, frame: ReplayedFrame) -> None:
        """Compare one frame."""
        try:
            recorded = frame.recorded.labels() if frame.recorded else None
        except (FormatError, OSError):
            recorded = None
        if recorded is None:
            with self._lock:
                self.not_compared += 1
            return
        # Ids beyond the classes are not the network's: nothing was claimed there.
        recorded = np.where(recorded < len(self._spec.classes), recorded, 255).astype(np.uint8)
        found = resize_labels(frame.labels, (recorded.shape[0], recorded.shape[1]))
        rgb = cv2.cvtColor(frame.planes, cv2.COLOR_YUV2RGB_I420)
        rgb = cv2.resize(rgb, recorded.shape[::-1], interpolation=cv2.INTER_AREA)
        camera = self._camera(frame.camera)
        if frame.seconds < camera.latest - _REORDERED_SECONDS:
            return  # somebody has gone back: it has been compared
        camera.latest = frame.seconds
        self._add_steadiness(camera, recorded, found, rgb)
        self._add_agreement(camera, frame, recorded, found, rgb)

    def _camera(self, name: str) -> _Camera:
        with self._lock:
            if name not in self._cameras:
                classes = len(self._spec.classes)
                self._cameras[name] = _Camera(Steadiness(classes), Steadiness(classes), [])
                self._worst[name] = WorstFrames(WORST_FRAMES)
            return self._cameras[name]

    def _add_steadiness(
        self, camera: _Camera, recorded: np.ndarray, found: np.ndarray, rgb: np.ndarray
    ) -> None:
        """Flicker needs a truth that stays; one that is the same everywhere asks for all that is seen."""
        before, motion = camera.before_rgb, None
        if before is not None and before.shape == rgb.shape:
            motion = Motion.between(before, rgb)
        elif before is not None:
            camera.recorded.start()
            camera.replayed.start()
        still = np.zeros(recorded.shape, np.uint8)
        camera.recorded.add(still, recorded, motion)
        camera.replayed.add(still, found, motion)
        camera.before_rgb = rgb

    def _add_agreement(
        self,
        camera: _Camera,
        frame: ReplayedFrame,
        recorded: np.ndarray,
        found: np.ndarray,
        rgb: np.ndarray,
    ) -> None:
        own = ConfusionMatrix(len(self._spec.classes))
        own.add(recorded, found)
        camera.agreement.append((frame.seconds, known(100 * own.pixel_accuracy())))
        camera.frames += 1
        with self._lock:
            self._confusion.merge(own)
        self._worst[frame.camera].offer(
            WorstFrame(
                frame.camera, frame.frame_index, f"{frame.seconds:.3f} s", own.mean_iou(), rgb,
                recorded, found,
            )
        )  # fmt: skip

    def result(self) -> dict[str, Any]:
        """All figures, ready for JSON; None where there is nothing to measure."""
        confusion = self._confusion
        return {
            "frames": self.frames,
            "frames_not_compared": self.not_compared,
            "agreement": known(confusion.pixel_accuracy()) if self.frames else None,
            "mean_iou": known(confusion.mean_iou()),
            "iou": dict(zip(self._spec.classes, map(known, confusion.class_iou().tolist()),
                            strict=True)),
            "confusion": confusion.counts.tolist(),
            "flicker": {
                "recorded": self._pooled("recorded"), "replayed": self._pooled("replayed"),
            },
            "cameras": {name: self._of_camera(camera) for name, camera in self._cameras.items()},
            "most_different": [
                {"camera": worst.stream, "frame": worst.number, "at": worst.name,
                 "mean_iou": known(worst.miou)}
                for worst in self.most_different()
            ],
        }  # fmt: skip

    def most_different(self) -> list[WorstFrame]:
        """The frames of the lowest agreement, the worst first; of neighbours the worst alone."""
        found = [frame for worst in self._worst.values() for frame in worst.frames]
        return sorted(found, key=lambda frame: frame.miou)[:WORST_FRAMES]

    def _of_camera(self, camera: _Camera) -> dict[str, Any]:
        shares = np.array([np.nan if y is None else y for _, y in camera.agreement])
        return {
            "frames": camera.frames,
            "agreement": known(mean_of_known(shares) / 100),
            "flicker_recorded": known(camera.recorded.flicker()),
            "flicker_replayed": known(camera.replayed.flicker()),
        }

    def _pooled(self, which: str) -> float | None:
        """Mean over the cameras."""
        values = [getattr(camera, which).flicker() for camera in self._cameras.values()]
        return known(mean_of_known(np.array(values or [np.nan])))

    def write(self, folder: Path, recorded: str, replayed: str) -> Path:
        """Write `index.html` and `comparison.json`, each whole; returns the page. Raises OutputError.

        Args:
            folder: made if need be.
            recorded, replayed: what the two networks are called.
        """
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        result = {"recorded": recorded, "replayed": replayed, **self.result()}
        text = json.dumps(result, indent=2, allow_nan=False, ensure_ascii=False)
        write_whole(folder / "comparison.json", (text + "\n").encode())
        page = folder / "index.html"
        write_whole(page, "\n".join(self._page(result)).encode())
        return page

    def _page(self, result: dict[str, Any]) -> Iterator[str]:
        title = escape(f"{result['replayed']} beside {result['recorded']}")
        yield '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
        yield f"<title>{title}</title><style>{PAGE_STYLE}</style></head><body><h1>{title}</h1>"
        yield (
            '<p class="note">Recorded labels on the left of every pair, those of the replay on the'
            " right. Agreement is the share of pixels of the same class; flicker the share of pixels,"
            " seen in two consecutive frames along the optical flow, whose class changes.</p>"
        )
        for table in self._tables(result):
            yield table_html(table)
        lines = [
            Series(name, camera.agreement, COLORS[place % len(COLORS)])
            for place, (name, camera) in enumerate(self._cameras.items())
        ]
        yield line_chart("Agreement of each frame", lines, "seconds", "pixels, %")
        yield from self._confusion_page()
        yield from self._worst_page()
        yield "</body></html>"

    def _tables(self, result: dict[str, Any]) -> Iterator[Table]:
        flicker = result["flicker"]
        yield Table(
            f"{result['frames']} frames", ("%", result["recorded"], result["replayed"]),
            (
                ("pixels that agree", percent(result["agreement"]), ""),
                ("mean IoU of the two", percent(result["mean_iou"]), ""),
                ("flicker", percent(flicker["recorded"]), percent(flicker["replayed"])),
            ),
        )  # fmt: skip
        yield Table(
            "Cameras, %", ("camera", "frames", "agreement", "flicker recorded", "flicker replayed"),
            tuple(
                (name, str(row["frames"]), percent(row["agreement"]),
                 percent(row["flicker_recorded"]), percent(row["flicker_replayed"]))
                for name, row in result["cameras"].items()
            ),
        )  # fmt: skip
        rows = tuple((name, percent(value)) for name, value in result["iou"].items())
        yield Table("IoU of the two, a class, %", ("class", "IoU"), rows)

    def _confusion_page(self) -> Iterator[str]:
        names = [escape(name) for name in self._spec.classes]
        head = "".join(f"<th>{name}</th>" for name in names)
        yield "<h2>Where the pixels of each recorded class went, %</h2>"
        yield '<div class="scroll"><table class="confusion">'
        yield f"<tr><th>recorded \\ replayed</th>{head}</tr>"
        for index, row in enumerate(self._confusion.counts.tolist()):
            total = sum(row)
            cells = "".join(
                confusion_cell(value, total, index == at) for at, value in enumerate(row)
            )
            yield f"<tr><th>{names[index]}</th>{cells}</tr>"
        yield "</table></div>"

    def _worst_page(self) -> Iterator[str]:
        yield "<h2>The frames that differ most</h2>"
        for frame in self.most_different():
            name = escape(f"{frame.stream}, frame {frame.number} ({frame.name})")
            yield f'<div>{name}: mean IoU {100 * frame.miou:.1f} %</div><div class="worst">'
            yield figure(frame.rgb, "picture", ".jpg")
            yield figure(paint(frame.truth, self._spec.palette_rgb), "recorded", ".png")
            yield figure(paint(frame.predicted, self._spec.palette_rgb), "replayed", ".png")
            yield figure(error_map(frame), "where they differ, in red", ".jpg")
            yield "</div>"
