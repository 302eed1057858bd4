"""Class ids and masks as arrays: what stands for what, and how one becomes the other.

ids     uint8 [...], one class a pixel, `NO_CLASS` where there is none
masks   uint16 [...], bit k = class k holds, of which several may; `UNLABELLED_MASK` where unlabelled
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models.errors import DataError

NO_CLASS = 255
"""Unlabelled in the truth; in a prediction, no class is probable enough."""
UNLABELLED_MASK = 65535
MOST_MASKS = 16
"""Bits of a mask file, so most classes of a network with a mask a class."""


def clean_ids(ids: np.ndarray, classes: int, where: Path) -> np.ndarray:
    """uint8 ids with every unlabelled pixel at `NO_CLASS`; `where` is named in errors.

    Ids from `classes` up are unlabelled only if they are `classes` itself (CamVid's 11) or 255; another one
    raises DataError, as does an array that is not [H, W].
    """
    if ids.ndim != 2:
        raise DataError(
            f"{where}: labels must be grey, one class id a pixel, got {list(ids.shape)}"
        )
    wrong = np.unique(ids[(ids > classes) & (ids != NO_CLASS)])
    if wrong.size:
        raise DataError(
            f"{where}: class ids must be 0-{classes - 1}, or {classes} or 255 for unlabelled,"
            f" got {wrong.tolist()}"
        )
    return np.where(ids == classes, NO_CLASS, ids).astype(np.uint8)


def clean_masks(masks: np.ndarray, classes: int, where: Path) -> np.ndarray:
    """uint16 masks; DataError for another type or a bit that is no class."""
    if masks.dtype != np.uint16 or masks.ndim != 2:
        raise DataError(
            f"{where}: masks must be uint16 [H, W], got {masks.dtype} {list(masks.shape)}"
        )
    if classes > MOST_MASKS:
        raise DataError(
            f"{where}: masks hold at most {MOST_MASKS} classes, the model has {classes}"
        )
    used = int(np.bitwise_or.reduce(masks[masks != UNLABELLED_MASK], axis=None, initial=0))
    wrong = [bit for bit in range(classes, MOST_MASKS) if used >> bit & 1]
    if wrong:
        raise DataError(f"{where}: bits must be 0-{classes - 1}, one a class, got {wrong}")
    return masks


def masks_of(ids: np.ndarray) -> np.ndarray:
    """uint8 ids below 16 or `NO_CLASS` -> uint16 masks of one class each."""
    table = np.full(256, UNLABELLED_MASK, np.uint16)
    table[:MOST_MASKS] = 1 << np.arange(MOST_MASKS)
    return np.asarray(table[ids])


def lowest_class(masks: np.ndarray, classes: int) -> np.ndarray:
    """uint16 masks -> uint8 ids: of the classes that hold the lowest, `NO_CLASS` where none does."""
    ids = np.full(masks.shape, NO_CLASS, np.uint8)
    for index in reversed(range(classes)):
        ids[holds(masks, index)] = index
    return ids


def holds(truth: np.ndarray, index: int) -> np.ndarray:
    """bool [...]: where class `index` holds, of ids (uint8) or masks (uint16); nowhere if unlabelled."""
    if truth.dtype != np.uint16:
        return np.asarray(truth == index)
    return (truth >> index & 1).astype(bool) & (truth != UNLABELLED_MASK)


def is_labelled(truth: np.ndarray) -> np.ndarray:
    """bool [...]: where ids (uint8) or masks (uint16) say anything."""
    return np.asarray(truth != (UNLABELLED_MASK if truth.dtype == np.uint16 else NO_CLASS))


def unpack_masks(bits: np.ndarray, classes: int) -> np.ndarray:
    """uint16 [H, W], a bit a class -> bool [K, H, W]."""
    return np.stack([(bits >> index & 1).astype(bool) for index in range(classes)])


def pack_masks(masks: np.ndarray) -> np.ndarray:
    """bool [K, H, W] -> uint16 [H, W], a bit a class."""
    bits = np.zeros(masks.shape[1:], np.uint16)
    for index, mask in enumerate(masks):
        bits |= mask.astype(np.uint16) << np.uint16(index)
    return bits


def paint(truth: np.ndarray, palette_rgb: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """uint8 [H, W, 3]: class colours of ids, black where there is none. Of masks (uint16), the mean of the
    colours of those that hold."""
    palette = np.array(palette_rgb, np.uint8)
    if truth.dtype != np.uint16:
        table = np.zeros((256, 3), np.uint8)
        table[: len(palette)] = palette
        return np.asarray(table[truth])
    total = np.zeros((*truth.shape, 3), np.float32)
    count = np.zeros(truth.shape, np.float32)
    for index, color in enumerate(palette):
        here = holds(truth, index)
        total[here] += color
        count += here
    return (total / np.maximum(count, 1)[..., None]).astype(np.uint8)
