"""The result of an evaluation: plain values, `None` where there is none, ready for JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

CARRIED, RESET = "carried", "reset"
"""Modes: the state is carried through a stream, or starts anew with every frame."""

DEFINITIONS = {
    "miou": "mean over classes of hits / (hits + misses + false alarms), pixels pooled over all frames;"
    " classes that never occur in the truth are left out of every mean",
    "mean_accuracy": "mean over classes of the recall",
    "boundary_f1": "Csurka et al., BMVC 2013: share of boundary pixels matched within 0.75 % of the"
    " diagonal, F1 a frame and class, mean over frames, then over classes",
    "probability_error": "mean of |p - y| over labelled pixels and classes, y 1 for the true class",
    "tc": "IoU of a prediction and the one before it brought along DIS optical flow, pixels not seen in"
    " both frames (forward-backward check) left out, pooled over pairs, mean over classes predicted"
    " (after Liu et al., ECCV 2020)",
    "vc": "of the pixels whose truth stays one class over 8 (16) frames, the share whose prediction does"
    " too, mean over windows (Miao et al., VSPW, CVPR 2021, as published code counts); `_right`: and is"
    " that class",
    "flicker": "of the pixels whose truth stays along the flow from one frame to the next, the share whose"
    " prediction changes; truth_change is the truth's own rate of change, flicker_ratio flicker over it",
    "bursts": "ten frames hidden in part; `during` those frames, `hidden` their hidden pixels alone,"
    " `after` the ten frames that follow, `clear` the same frames as `during` without the burst",
}


def known(value: float) -> float | None:
    """The value to six places, None for NaN."""
    return None if math.isnan(value) else round(float(value), 6)


@dataclass(frozen=True)
class ClassScores:
    """One class. All 0-1; None where there is nothing to measure: the class never occurs.

    `share` is its part of all labelled pixels; `mask_iou` is there for networks with a sigmoid head.
    """

    name: str
    share: float
    iou: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    boundary_f1: float | None
    probability_error: float | None
    mask_iou: float | None = None


@dataclass(frozen=True)
class Quality:
    """Accuracy over all frames; see `DEFINITIONS`. `confusion`: [true][predicted] pixels, and last those
    for which nothing was predicted; None for masks of which several may hold."""

    miou: float | None
    pixel_accuracy: float
    mean_accuracy: float | None
    mean_precision: float | None
    mean_recall: float | None
    mean_f1: float | None
    boundary_f1: float | None
    probability_error: float | None
    mask_miou: float | None
    classes: tuple[ClassScores, ...]
    confusion: list[list[int]] | None


@dataclass(frozen=True)
class StreamSteadiness:
    """Steadiness over consecutive frames; see `DEFINITIONS`."""

    pairs: int
    tc: float | None
    tc_of_truth: float | None
    vc8: float | None
    vc16: float | None
    vc8_right: float | None
    vc16_right: float | None
    flicker: float | None
    truth_change: float | None
    flicker_ratio: float | None


@dataclass(frozen=True)
class FramePoint:
    """mIoU of a single frame over the classes in its truth."""

    stream: str
    frame: str
    miou: float | None


@dataclass(frozen=True)
class ModeScores:
    """Everything measured of one mode on undamaged frames."""

    quality: Quality
    steadiness: StreamSteadiness | None
    over_time: tuple[FramePoint, ...]


@dataclass(frozen=True)
class RobustnessCurve:
    """mIoU under one kind of damage at strengths 1 to 5. `retained`: their mean as a share of the mIoU on
    undamaged frames."""

    kind: str
    mode: str
    miou: tuple[float | None, ...]
    retained: float | None


@dataclass(frozen=True)
class BurstScores:
    """mIoU around bursts of one kind in one mode. `over_time`: (frames since the burst began, mIoU)."""

    kind: str
    mode: str
    bursts: int
    clear: float | None
    during: float | None
    hidden: float | None
    after: float | None
    over_time: tuple[tuple[int, float | None], ...]


@dataclass(frozen=True)
class Evaluation:
    """What `roadmask eval` reports."""

    model: str
    weights_sha256: str
    dataset: str
    frames: int
    streams: int
    classes: tuple[str, ...]
    settings: dict[str, Any]
    modes: dict[str, ModeScores]
    robustness: tuple[RobustnessCurve, ...] = ()
    bursts: tuple[BurstScores, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def main_mode(self) -> str:
        return next(iter(self.modes))

    def to_json(self) -> str:
        """Everything, and what the figures mean. Strict JSON: what is not known is null."""
        whole = asdict(self) | {"definitions": DEFINITIONS}
        return json.dumps(whole, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
