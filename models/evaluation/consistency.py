"""Steadiness of predictions over consecutive frames: TC, VC and flicker.

Motion is measured on the frames (`models.motion`); a pixel counts only if it is seen in both. Labels are
warped by taking the nearest pixel.
"""

from __future__ import annotations

import numpy as np

from models.evaluation.metrics import mean_of_known
from models.labels import is_labelled
from models.motion import Motion

VC_LENGTHS = (8, 16)


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
        labelled = motion.seen & is_labelled(truth) & is_labelled(true_before)
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
        labelled, right = is_labelled(truth), predicted == truth
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
