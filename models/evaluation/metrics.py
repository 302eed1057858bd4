"""Accuracy of predictions against the truth, pooled over all frames of a data set.

A class that never occurs in the truth has no score: it is NaN here, and means leave it out. Where the truth
is unlabelled, predictions are neither right nor wrong: those pixels are left out of everything.
"""

from __future__ import annotations

import cv2
import numpy as np

from models.labels import NO_CLASS

BOUNDARY_TOLERANCE = 0.0075
"""How far a boundary may be off and still count as found, as a share of the picture's diagonal."""


def mean_of_known(values: np.ndarray) -> float:
    """Mean without NaN; NaN if there is nothing else."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


class MaskCounts:
    """Hits, misses and false alarms of each class, as int64 [K]: all that IoU, precision, recall and F1 need.

    Each class is a question of its own here, so it serves one class a pixel and many alike.
    """

    def __init__(self, classes: int) -> None:
        self.hits = np.zeros(classes, np.int64)
        self.misses = np.zeros(classes, np.int64)
        self.false_alarms = np.zeros(classes, np.int64)
        self.pixels = 0

    def add(
        self, truth: np.ndarray, predicted: np.ndarray, labelled: np.ndarray | None = None
    ) -> None:
        """truth, predicted: bool [K, ...]; `labelled`: bool [...], pixels that count, all by default.

        Raises ValueError if the shapes differ.
        """
        if truth.shape != predicted.shape:
            raise ValueError(f"truth is {list(truth.shape)}, prediction {list(predicted.shape)}")
        if labelled is not None:
            truth, predicted = truth & labelled, predicted & labelled
        axes = tuple(range(1, truth.ndim))
        both = np.count_nonzero(truth & predicted, axis=axes)
        self.hits += both
        self.misses += np.count_nonzero(truth, axis=axes) - both
        self.false_alarms += np.count_nonzero(predicted, axis=axes) - both
        self.pixels += truth[0].size if labelled is None else int(np.count_nonzero(labelled))

    def merge(self, other: MaskCounts) -> None:
        """Add what another count has."""
        self.hits += other.hits
        self.misses += other.misses
        self.false_alarms += other.false_alarms
        self.pixels += other.pixels

    def occurring(self) -> np.ndarray:
        """bool [K]: which classes the truth holds at all."""
        return self.hits + self.misses > 0

    def class_iou(self) -> np.ndarray:
        """float64 [K]: intersection over union, NaN for a class that never occurs in the truth."""
        return self._share(self.hits, self.hits + self.misses + self.false_alarms)

    def class_precision(self) -> np.ndarray:
        """float64 [K]: share of what was predicted as the class that is it; 0 if it never was."""
        return self._share(self.hits, np.maximum(self.hits + self.false_alarms, 1))

    def class_recall(self) -> np.ndarray:
        """float64 [K]: share of the class that was predicted as it (also called class accuracy)."""
        return self._share(self.hits, self.hits + self.misses)

    def class_f1(self) -> np.ndarray:
        """float64 [K]: harmonic mean of precision and recall (the Dice coefficient)."""
        return self._share(2 * self.hits, 2 * self.hits + self.misses + self.false_alarms)

    def mean_iou(self) -> float:
        """Mean of `class_iou` over the classes that occur."""
        return mean_of_known(self.class_iou())

    def mean_accuracy(self) -> float:
        """Mean of `class_recall` over the classes that occur."""
        return mean_of_known(self.class_recall())

    def _share(self, part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        nothing = np.full(len(self.hits), np.nan)
        return np.divide(part, whole, out=nothing, where=self.occurring())


class ConfusionMatrix:
    """Counts of (true class, predicted class) over all labelled pixels.

    Attributes:
        counts: int64 [K, K].
        unclaimed: int64 [K], labelled pixels of each class for which no class was predicted (255: a
            network of masks may find none).
    """

    def __init__(self, classes: int) -> None:
        self.counts = np.zeros((classes, classes), np.int64)
        self.unclaimed = np.zeros(classes, np.int64)

    def add(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        """truth, predicted: integer arrays of one shape; pixels whose truth is no class are left out.

        Raises ValueError if the shapes differ, or a prediction is neither a class nor `NO_CLASS`.
        """
        if truth.shape != predicted.shape:
            raise ValueError(f"truth is {list(truth.shape)}, prediction {list(predicted.shape)}")
        classes = len(self.counts)
        labelled = truth < classes
        guesses = predicted[labelled].astype(np.int64)
        wrong = guesses[(guesses >= classes) & (guesses != NO_CLASS)]
        if wrong.size:
            raise ValueError(f"predicted ids must be 0-{classes - 1}, got {wrong.max()}")
        flat = truth[labelled].astype(np.int64) * (classes + 1) + np.minimum(guesses, classes)
        counts = np.bincount(flat, minlength=classes * (classes + 1)).reshape(classes, -1)
        self.counts += counts[:, :classes]
        self.unclaimed += counts[:, classes]

    def merge(self, other: ConfusionMatrix) -> None:
        """Add what another matrix has counted."""
        self.counts += other.counts
        self.unclaimed += other.unclaimed

    def masks(self) -> MaskCounts:
        """The same, each class on its own: its IoU, precision, recall and F1."""
        counts = MaskCounts(len(self.counts))
        counts.hits = np.diag(self.counts).copy()
        counts.misses = self.counts.sum(1) + self.unclaimed - counts.hits
        counts.false_alarms = self.counts.sum(0) - counts.hits
        counts.pixels = int(self.counts.sum() + self.unclaimed.sum())
        return counts

    def class_iou(self) -> np.ndarray:
        """float64 [K]: intersection over union, NaN for a class that never occurs in the truth."""
        return self.masks().class_iou()

    def mean_iou(self) -> float:
        """Mean of `class_iou` over the classes that occur, NaN if nothing was labelled."""
        return self.masks().mean_iou()

    def pixel_accuracy(self) -> float:
        """Share of labelled pixels that are right."""
        return float(np.diag(self.counts).sum() / max(1, self.counts.sum() + self.unclaimed.sum()))


class BoundaryF1:
    """Boundary F1 (Csurka et al., "What is a good evaluation measure for semantic segmentation?", BMVC 2013).

    A pixel lies on a class's boundary if it is of that class and one of its four neighbours is labelled
    and isn't. Precision is the share of predicted boundary pixels at most `tolerance` of the diagonal away
    from a true one, recall the reverse. A class's score is the mean of its F1 over the frames in which the
    truth or the prediction has such a boundary. The prediction is cut where the truth is unlabelled.
    """

    def __init__(self, classes: int, tolerance: float = BOUNDARY_TOLERANCE) -> None:
        self.tolerance = tolerance
        self._sums = np.zeros(classes)
        self._frames = np.zeros(classes, np.int64)
        self._occurs = np.zeros(classes, bool)

    def add(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        """One frame. truth, predicted: uint8 [H, W] class ids, the truth `NO_CLASS` where it has none."""
        labelled = truth != NO_CLASS
        predicted = np.where(labelled, predicted, NO_CLASS)
        # Where a network of masks claims nothing, that is a region like another.
        predicted[labelled & (predicted == NO_CLASS)] = NO_CLASS - 1
        true_edges, found_edges = _edges(truth, labelled), _edges(predicted, labelled)
        for index in range(len(self._sums)):
            here = truth == index
            self._add_class(index, here, here & true_edges, (predicted == index) & found_edges)

    def add_masks(self, truth: np.ndarray, predicted: np.ndarray, labelled: np.ndarray) -> None:
        """One frame of masks. truth, predicted: bool [K, H, W]; labelled: bool [H, W]."""
        for index, masks in enumerate(zip(truth & labelled, predicted & labelled, strict=True)):
            true, found = (mask & _edges(mask, labelled) for mask in masks)
            self._add_class(index, masks[0], true, found)

    def _add_class(self, index: int, here: np.ndarray, true: np.ndarray, found: np.ndarray) -> None:
        self._occurs[index] |= here.any()
        if true.any() or found.any():
            self._sums[index] += boundary_f1(true, found, self.tolerance * np.hypot(*true.shape))
            self._frames[index] += 1

    def class_scores(self) -> np.ndarray:
        """float64 [K], 0-1: NaN for a class that never occurs in the truth, or never has a boundary."""
        nothing = np.full(len(self._sums), np.nan)
        known = self._occurs & (self._frames > 0)
        return np.divide(self._sums, self._frames, out=nothing, where=known)


def boundary_f1(true: np.ndarray, found: np.ndarray, tolerance_px: float) -> float:
    """F1 of two boundaries, bool [H, W]; 0 if one of them is empty."""
    if not (true.any() and found.any()):
        return 0.0
    precision = np.mean(_distance_px(true)[found] <= tolerance_px)
    recall = np.mean(_distance_px(found)[true] <= tolerance_px)
    total = precision + recall
    return float(2 * precision * recall / total) if total else 0.0


def _distance_px(boundary: np.ndarray) -> np.ndarray:
    """float32 [H, W]: each pixel's distance from the nearest one of `boundary`."""
    away = np.where(boundary, 0, 1).astype(np.uint8)
    return np.asarray(cv2.distanceTransform(away, cv2.DIST_L2, cv2.DIST_MASK_PRECISE))


def _edges(ids: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """bool [H, W]: pixels of which one of the four neighbours differs, both of them labelled."""
    edges = np.zeros(ids.shape, bool)
    for before, after in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        differ = (ids[before] != ids[after]) & labelled[before] & labelled[after]
        edges[before] |= differ
        edges[after] |= differ
    return edges


class ProbabilityError:
    """Mean absolute error of class probabilities: |p - y| with y 1 where the class is and 0 elsewhere.

    The mean is over all labelled pixels, for each class; over the K classes of a softmax it is at most 2 / K.
    """

    def __init__(self, classes: int) -> None:
        self._sums = np.zeros(classes)
        self._pixels = 0

    def add(self, truth: np.ndarray, probabilities: np.ndarray) -> None:
        """truth: uint8 [H, W] class ids or `NO_CLASS`; probabilities: float [K, H, W], 0-1."""
        labelled = truth != NO_CLASS
        for index, plane in enumerate(probabilities):
            here = truth == index
            own = plane[here].sum(dtype=np.float64)
            # |p - y| is p off the class and 1 - p on it.
            total = plane[labelled].sum(dtype=np.float64)
            self._sums[index] += total - 2 * own + np.count_nonzero(here)
        self._pixels += int(np.count_nonzero(labelled))

    def add_masks(self, truth: np.ndarray, probabilities: np.ndarray, labelled: np.ndarray) -> None:
        """truth: bool [K, H, W]; probabilities: float [K, H, W], 0-1; labelled: bool [H, W]."""
        off = np.abs(probabilities - truth)
        self._sums += off.sum((1, 2), dtype=np.float64, where=labelled)
        self._pixels += int(np.count_nonzero(labelled))

    def class_errors(self) -> np.ndarray:
        """float64 [K], 0-1; NaN if nothing was labelled."""
        if not self._pixels:
            return np.full(len(self._sums), np.nan)
        return self._sums / self._pixels

    def mean(self) -> float:
        """Mean over all classes."""
        return float(self.class_errors().mean())
