"""Steadiness of predictions over consecutive frames: TC, VC and flicker.

Motion is measured on the frames by DIS optical flow (Kroeger et al., ECCV 2016) in both directions. A pixel
counts only if it is seen in both frames: it must come from inside the frame, and the flow there must lead
back to where it started, |f + b|^2 <= 0.01 (|f|^2 + |b|^2) + 0.5 (Sundaram, Brox and Keutzer, ECCV 2010).
Labels are warped by taking the nearest pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from models.evaluation.metrics import mean_of_known
from models.training.augment import IGNORE
from models.training.data import UNLABELLED_MASK

VC_LENGTHS = (8, 16)


@dataclass(frozen=True)
class Motion:
    """Where each pixel of a frame was in the frame before.

    Attributes:
        source_yx: intp [2, H, W], row and column in the frame before, inside it.
        seen: bool [H, W], whether that pixel really shows the same thing.
    """

    source_yx: np.ndarray
    seen: np.ndarray

    @classmethod
    def from_flows(cls, back: np.ndarray, forth: np.ndarray) -> Motion:
        """
        Args:
            back: float32 [H, W, 2], (x, y) from a pixel of this frame to its place in the frame before.
            forth: float32 [H, W, 2], the same from the frame before to this one.
        """
        height, width = back.shape[:2]
        rows, columns = np.mgrid[:height, :width].astype(np.float32)
        x, y = columns + back[..., 0], rows + back[..., 1]
        inside = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
        met = cv2.remap(forth, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        miss = np.square(back + met).sum(2)
        length = np.square(back).sum(2) + np.square(met).sum(2)
        source = np.stack([np.clip(np.rint(y), 0, height - 1), np.clip(np.rint(x), 0, width - 1)])
        return cls(source.astype(np.intp), inside & (miss <= 0.01 * length + 0.5))

    @classmethod
    def between(cls, before: np.ndarray, now: np.ndarray) -> Motion:
        """The motion from one frame to the next, both uint8 [H, W, 3] RGB."""
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (before, now)]
        flow = _optical_flow()
        back = flow.calc(grey[1], grey[0], None)  # type: ignore[call-overload]
        forth = flow.calc(grey[0], grey[1], None)  # type: ignore[call-overload]
        return cls.from_flows(back, forth)

    def bring(self, labels: np.ndarray) -> np.ndarray:
        """Labels [H, W] of the frame before, as they would lie in this frame."""
        return np.asarray(labels[self.source_yx[0], self.source_yx[1]])


def _optical_flow() -> cv2.DISOpticalFlow:
    """DIS by its best preset, and from there on down to full resolution."""
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow.setFinestScale(0)
    return flow


class Steadiness:
    """Scores of one way of predicting, over any number of streams.

    tc: intersection over union of each frame's prediction and the one before it, brought along the motion;
        pooled over all pairs, mean over the classes predicted (Liu et al., "Efficient Semantic Video
        Segmentation with Per-frame Inference", ECCV 2020). Right or wrong does not matter to it. Unlike
        there, pixels not seen in both frames are left out.
    vc(n): over windows of n frames, of the pixels whose truth stays one class throughout, the share whose
        prediction stays one class too; mean over all windows (Miao et al., "VSPW", CVPR 2021, as its
        published code counts, where a steady mistake is steady). `vc_right(n)` wants that class to be the
        true one, as the paper's formula can be read.
    flicker: of the pixels whose truth stays as it was along the motion, the share whose prediction changes.
        `truth_change` is the truth's own rate of change: the share of labelled pixels that differ from the
        truth of the frame before, brought along the motion.

    Args:
        classes: number of classes.
        multi_label: label maps hold a bit for each class (uint16, the truth 65535 where unlabelled) instead
            of a class id (uint8, the truth 255 where unlabelled).
    """

    def __init__(self, classes: int, multi_label: bool = False) -> None:
        self.classes, self.multi_label = classes, multi_label
        self._common = np.zeros((2, classes), np.int64)  # of predictions and of the truth
        self._union = np.zeros((2, classes), np.int64)
        self._windows: dict[int, list[tuple[float, float]]] = {n: [] for n in VC_LENGTHS}
        self._stays = self._flickers = self._both_labelled = 0
        self.pairs = 0
        self.start()

    def start(self) -> None:
        """A stream begins: nothing came before."""
        self._before: tuple[np.ndarray, np.ndarray] | None = None
        self._runs: tuple[np.ndarray, np.ndarray] | None = None

    def add(self, truth: np.ndarray, predicted: np.ndarray, motion: Motion | None) -> None:
        """The next frame of the stream. truth, predicted: [H, W]; `motion` from the frame before to this
        one, None for the first of a stream."""
        if self._before is not None and motion is not None:
            self._add_pair(truth, predicted, motion)
        self._add_windows(truth, predicted)
        self._before = (truth, predicted)

    def _add_pair(self, truth: np.ndarray, predicted: np.ndarray, motion: Motion) -> None:
        assert self._before is not None
        true_before, predicted_before = (motion.bring(labels) for labels in self._before)
        self._overlap(0, predicted_before, predicted, motion.seen)
        labelled = motion.seen & self._labelled(truth) & self._labelled(true_before)
        self._overlap(1, true_before, truth, labelled)
        stays = labelled & (truth == true_before)
        self._both_labelled += int(np.count_nonzero(labelled))
        self._stays += int(np.count_nonzero(stays))
        self._flickers += int(np.count_nonzero(stays & (predicted != predicted_before)))
        self.pairs += 1

    def _overlap(self, row: int, one: np.ndarray, other: np.ndarray, where: np.ndarray) -> None:
        common, union = overlaps(one[where], other[where], self.classes, self.multi_label)
        self._common[row] += common
        self._union[row] += union

    def _labelled(self, truth: np.ndarray) -> np.ndarray:
        return truth != (UNLABELLED_MASK if self.multi_label else IGNORE)

    def _add_windows(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        """How long each pixel has not changed tells whether a window ending here is steady."""
        if self._before is None or self._runs is None:
            ones = np.ones(truth.shape, np.int32)
            self._runs = (ones, ones.copy())
        else:
            now = (truth, predicted)
            true_run, run = (
                np.where(labels == old, runs + 1, 1)
                for labels, old, runs in zip(now, self._before, self._runs, strict=True)
            )
            self._runs = (true_run, run)
        labelled, right = self._labelled(truth), predicted == truth
        for length, windows in self._windows.items():
            still = labelled & (self._runs[0] >= length)
            total = int(np.count_nonzero(still))
            if total:
                steady = still & (self._runs[1] >= length)
                good = np.count_nonzero(steady & right)
                windows.append((np.count_nonzero(steady) / total, good / total))

    def class_tc(self) -> np.ndarray:
        """float64 [K]: TC of each class, NaN for one never predicted."""
        return self._iou(0)

    def tc(self) -> float:
        """0-1, NaN without pairs."""
        return mean_of_known(self.class_tc())

    def tc_of_truth(self) -> float:
        """TC of the truth itself: what the flow and the annotation leave to reach."""
        return mean_of_known(self._iou(1))

    def _iou(self, row: int) -> np.ndarray:
        nothing = np.full(self.classes, np.nan)
        union = self._union[row]
        return np.divide(self._common[row], union, out=nothing, where=union > 0)

    def vc(self, length: int) -> float:
        """0-1, NaN if no stream is that long."""
        return mean_of_known(np.array([steady for steady, _ in self._windows[length]]))

    def vc_right(self, length: int) -> float:
        """0-1, NaN if no stream is that long."""
        return mean_of_known(np.array([right for _, right in self._windows[length]]))

    def flicker(self) -> float:
        """0-1 a pair of frames, NaN without pairs."""
        return self._flickers / self._stays if self._stays else float("nan")

    def truth_change(self) -> float:
        """0-1 a pair of frames, NaN without pairs."""
        changed = self._both_labelled - self._stays
        return changed / self._both_labelled if self._both_labelled else float("nan")


def overlaps(
    one: np.ndarray, other: np.ndarray, classes: int, multi_label: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Intersection and union of each class, int64 [K] each, of two label maps of one shape.

    Args:
        one, other: integers [...]: class ids, where those of `classes` and above are no class; or with
            `multi_label` a bit for each class.
    """
    if multi_label:
        bits = 1 << np.arange(classes)
        both = [
            (np.count_nonzero(one & other & b), np.count_nonzero((one | other) & b)) for b in bits
        ]
        return np.array([common for common, _ in both]), np.array([union for _, union in both])
    wide = classes + 1
    flat = np.minimum(one, classes).astype(np.int64) * wide + np.minimum(other, classes)
    counts = np.bincount(flat.ravel(), minlength=wide * wide).reshape(wide, wide)
    common = np.diag(counts)
    return common[:classes], (counts.sum(0) + counts.sum(1) - common)[:classes]
