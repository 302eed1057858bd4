"""Accuracy of label maps, from one confusion matrix."""

from __future__ import annotations

import numpy as np


class ConfusionMatrix:
    """Counts of (true class, predicted class) over all labelled pixels: int64 [K, K]."""

    def __init__(self, classes: int) -> None:
        self.counts = np.zeros((classes, classes), np.int64)

    def add(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        """truth, predicted: integer arrays of one shape; pixels whose truth is no class are left out.

        Raises ValueError if the shapes differ or a prediction is no class.
        """
        if truth.shape != predicted.shape:
            raise ValueError(f"truth is {list(truth.shape)}, prediction {list(predicted.shape)}")
        classes = len(self.counts)
        labelled = truth < classes
        guesses = predicted[labelled].astype(np.int64)
        if guesses.size and guesses.max() >= classes:
            raise ValueError(f"predicted ids must be 0-{classes - 1}, got {guesses.max()}")
        flat = truth[labelled].astype(np.int64) * classes + guesses
        self.counts += np.bincount(flat, minlength=classes**2).reshape(classes, classes)

    def class_iou(self) -> np.ndarray:
        """float64 [K]: intersection over union of each class, NaN for one that never occurs."""
        hits = np.diag(self.counts).astype(float)
        union = self.counts.sum(0) + self.counts.sum(1) - hits
        return np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)

    def mean_iou(self) -> float:
        """Mean of `class_iou` over the classes that occur."""
        return float(np.nanmean(self.class_iou()))

    def pixel_accuracy(self) -> float:
        """Share of labelled pixels that are right."""
        return float(np.diag(self.counts).sum() / max(1, self.counts.sum()))
