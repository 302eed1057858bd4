"""Checkpoints: all that a training needs to go on as if it had never stopped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from models.errors import DataError


def write_checkpoint(path: Path, values: dict[str, Any]) -> None:
    """Whole or not at all: a crash in the middle leaves the one before."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        torch.save(values, file)
        file.flush()
        os.fsync(file.fileno())  # else a power cut may leave the new name with nothing in it
    part.replace(path)


def read_checkpoint(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """The values of a checkpoint, on the CPU: whoever loads them knows where each belongs.

    Args:
        identity: what the training is; the checkpoint must have been written by one that is the same.

    Raises:
        DataError: the file cannot be read, is no checkpoint, or is that of another training.
    """
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        theirs = saved["identity"]
    except OSError as error:
        raise DataError(f"cannot read checkpoint {path}: {error.strerror}") from error
    except Exception as error:  # damage shows as many types
        raise DataError(f"{path} is no checkpoint: {str(error).splitlines()[0]}") from error
    other = [key for key in identity if theirs.get(key) != identity[key]]
    if other:
        raise DataError(
            f"{path} was trained with {', '.join(f'{key} {theirs.get(key)}' for key in other)}, the"
            f" configuration says {', '.join(f'{key} {identity[key]}' for key in other)}:"
            " give another --out"
        )
    return saved
