"""The error of everything that is given to a training or an evaluation."""

from __future__ import annotations


class DataError(ValueError):
    """Training data or a configuration that is missing, contradicts itself or cannot be used here."""
