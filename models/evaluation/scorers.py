"""What is counted while an evaluation runs: one scorer for each mode, and the worst frames it saw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.evaluation.consistency import Steadiness
from models.evaluation.metrics import (
    BoundaryF1,
    ConfusionMatrix,
    MaskCounts,
    ProbabilityError,
    mean_of_known,
)
from models.evaluation.scores import (
    ClassScores,
    FramePoint,
    ModeScores,
    Quality,
    StreamSteadiness,
    known,
)
from models.footage import LabelledFrame
from models.labels import NO_CLASS, is_labelled, pack_masks, unpack_masks
from models.motion import Motion
from models.predictor import Prediction
from models.spec import Spec


class Accuracy:
    """mIoU alone: for frames of which nothing else is asked.

    Args:
        classes: number of classes.
        multi_label: the truth is masks; else one class a pixel.
    """

    def __init__(self, classes: int, multi_label: bool) -> None:
        self.classes, self.multi_label = classes, multi_label
        self.confusion = ConfusionMatrix(classes)
        self.counts = MaskCounts(classes)

    def add(
        self, truth: np.ndarray, prediction: Prediction, where: np.ndarray | None = None
    ) -> None:
        """One frame; `where`: bool [H, W], pixels that count, all by default."""
        if self.multi_label:
            labelled = is_labelled(truth)
            labelled = labelled if where is None else labelled & where
            self.counts.add(unpack_masks(truth, self.classes), prediction.masks(), labelled)
        else:
            truth = truth if where is None else np.where(where, truth, NO_CLASS)
            self.confusion.add(truth, prediction.labels)

    def merge(self, other: Accuracy) -> None:
        """Add what another one has counted."""
        self.confusion.merge(other.confusion)
        self.counts.merge(other.counts)

    def masks(self) -> MaskCounts:
        """Hits, misses and false alarms of each class."""
        return self.counts if self.multi_label else self.confusion.masks()

    def miou(self) -> float:
        """0-1, NaN if nothing was labelled."""
        return self.masks().mean_iou()

    def pixel_accuracy(self) -> float:
        """Share of labelled pixels that are right; of masks, of all decisions on a pixel and a class."""
        if not self.multi_label:
            return self.confusion.pixel_accuracy()
        wrong = self.counts.misses.sum() + self.counts.false_alarms.sum()
        return float(1 - wrong / max(1, self.counts.pixels * self.classes))


@dataclass(frozen=True)
class WorstFrame:
    """A frame the network did badly on. truth, predicted: label maps, or bits of masks."""

    stream: str
    number: int
    name: str
    miou: float
    rgb: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray


class WorstFrames:
    """The frames of the lowest mIoU; of neighbours in a stream, which look alike, the worst alone.

    Args:
        most: how many to keep.
        apart: frames of a stream closer than this are neighbours.
    """

    def __init__(self, most: int, apart: int = 8) -> None:
        self.most, self.apart = most, apart
        self._blocks: list[WorstFrame] = []  # the worst of each stretch of `apart` frames

    def offer(self, frame: WorstFrame) -> None:
        """Keep the frame if it may be one of the worst."""
        if np.isnan(frame.miou):
            return
        last = self._blocks[-1] if self._blocks else None
        if last is not None and self._block(last) == self._block(frame):
            if frame.miou < last.miou:
                self._blocks[-1] = frame
            return
        # A frame has at most two neighbours among the worst of stretches: three times as many will do.
        *full, newest = [*self._blocks, frame]
        full.sort(key=lambda kept: kept.miou)
        self._blocks = [*full[: 3 * self.most], newest]

    def _block(self, frame: WorstFrame) -> tuple[str, int]:
        return frame.stream, frame.number // self.apart

    @property
    def frames(self) -> list[WorstFrame]:
        """The worst first."""
        chosen: list[WorstFrame] = []
        for frame in sorted(self._blocks, key=lambda kept: kept.miou):
            near = (
                kept.stream == frame.stream and abs(kept.number - frame.number) < self.apart
                for kept in chosen
            )  # fmt: skip
            if not any(near):
                chosen.append(frame)
        return chosen[: self.most]


class Scorer:
    """Everything about one mode, from one pass over undamaged frames.

    Args:
        spec: of the network.
        multi_label: the truth is masks.
        worst: how many of the worst frames to keep.
    """

    def __init__(self, spec: Spec, multi_label: bool, worst: int) -> None:
        classes = len(spec.classes)
        self.spec, self.multi_label = spec, multi_label
        self.accuracy = Accuracy(classes, multi_label)
        # Of a network of masks on data of one class a pixel: each mask on its own as well.
        self.own_masks = MaskCounts(classes)
        self.boundary, self.error = BoundaryF1(classes), ProbabilityError(classes)
        self.steadiness = Steadiness(classes, multi_label)
        self.points: list[FramePoint] = []
        self.worst = WorstFrames(worst)

    def add(
        self, stream: str, number: int, frame: LabelledFrame, prediction: Prediction,
        motion: Motion | None,
    ) -> None:  # fmt: skip
        """The next frame of a stream; `motion` from the one before, None if it is not to count."""
        truth = frame.truth(self.multi_label)
        own = Accuracy(len(self.spec.classes), self.multi_label)
        own.add(truth, prediction)
        self.accuracy.merge(own)
        if self.multi_label:
            labelled = is_labelled(truth)
            masks = unpack_masks(truth, len(self.spec.classes))
            self.boundary.add_masks(masks, prediction.masks(), labelled)
            self.error.add_masks(masks, prediction.probabilities, labelled)
            labels = pack_masks(prediction.masks())
        else:
            labels = prediction.labels
            self.boundary.add(truth, labels)
            self.error.add(truth, prediction.probabilities)
            if self.spec.head == "sigmoid":
                ids = np.arange(len(self.spec.classes), dtype=np.uint8)[:, None, None]
                self.own_masks.add(truth == ids, prediction.masks(), is_labelled(truth))
        self.steadiness.add(truth, labels, motion)
        miou = own.miou()
        self.points.append(FramePoint(stream, frame.name, known(miou)))
        self.worst.offer(WorstFrame(stream, number, frame.name, miou, frame.rgb, truth, labels))

    def start(self) -> None:
        """A stream begins."""
        self.steadiness.start()

    def result(self, steadiness: bool) -> ModeScores:
        """Of all frames so far."""
        return ModeScores(
            self._quality(), self._steadiness() if steadiness else None, tuple(self.points)
        )

    def _mask_iou(self) -> np.ndarray | None:
        if self.spec.head != "sigmoid":
            return None
        return (self.accuracy.counts if self.multi_label else self.own_masks).class_iou()

    def _quality(self) -> Quality:
        counts, mask_iou = self.accuracy.masks(), self._mask_iou()
        boundary, errors = self.boundary.class_scores(), self.error.class_errors()
        confusion = self.accuracy.confusion
        table = np.column_stack([confusion.counts, confusion.unclaimed]).tolist()
        return Quality(
            miou=known(counts.mean_iou()),
            pixel_accuracy=round(self.accuracy.pixel_accuracy(), 6),
            mean_accuracy=known(counts.mean_accuracy()),
            mean_precision=known(mean_of_known(counts.class_precision())),
            mean_recall=known(mean_of_known(counts.class_recall())),
            mean_f1=known(mean_of_known(counts.class_f1())),
            boundary_f1=known(mean_of_known(boundary)),
            probability_error=known(self.error.mean()),
            mask_miou=None if mask_iou is None else known(mean_of_known(mask_iou)),
            classes=self._classes(counts, boundary, errors, mask_iou),
            confusion=None if self.multi_label else table,
        )

    def _classes(
        self, counts: MaskCounts, boundary: np.ndarray, errors: np.ndarray,
        mask_iou: np.ndarray | None,
    ) -> tuple[ClassScores, ...]:  # fmt: skip
        columns = [
            counts.class_iou(), counts.class_precision(), counts.class_recall(), counts.class_f1(),
            boundary, errors,
        ]  # fmt: skip
        if mask_iou is not None:
            columns.append(mask_iou)
        shares = (counts.hits + counts.misses) / max(1, counts.pixels)
        return tuple(
            ClassScores(name, round(float(share), 6), *(known(value) for value in values))
            for name, share, values in zip(
                self.spec.classes, shares, np.column_stack(columns), strict=True
            )
        )

    def _steadiness(self) -> StreamSteadiness:
        scores = self.steadiness
        flicker, change = scores.flicker(), scores.truth_change()
        return StreamSteadiness(
            pairs=scores.pairs,
            tc=known(scores.tc()),
            tc_of_truth=known(scores.tc_of_truth()),
            vc8=known(scores.vc(8)),
            vc16=known(scores.vc(16)),
            vc8_right=known(scores.vc_right(8)),
            vc16_right=known(scores.vc_right(16)),
            flicker=known(flicker),
            truth_change=known(change),
            flicker_ratio=known(flicker / change) if change > 0 else None,
        )
