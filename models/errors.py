"""Errors of what is given to a training, an evaluation or a quantisation."""

from __future__ import annotations


class DataError(ValueError):
    """Training data or a configuration that is missing, contradicts itself or cannot be used here."""


class QuantizationError(ValueError):
    """INT8 or FP8 was asked for, and there is no such form of a model, or one of other weights, or none can
    be made."""
