"""Comparing a replay's labels with the recorded ones, frame by frame."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Lock

import numpy as np

from pipeline.session.checks import FormatError
from pipeline.session.source import ReplayedFrame


@dataclass(frozen=True)
class Difference:
    """One frame whose labels are not those recorded.

    Attributes:
        camera, frame_index, seconds: which frame, and when it came.
        share: of its pixels that differ, 0-1; 1 if the size does.
    """

    camera: str
    frame_index: int
    seconds: float
    share: float

    def __str__(self) -> str:
        return (
            f"camera {self.camera}, frame {self.frame_index} at {self.seconds:.3f} s:"
            f" {100 * self.share:.4f} % of the pixels differ"
        )


class Verification:
    """Counts and keeps differences; `on_frame` may be called from many threads.

    Attributes:
        equal: frames whose labels are those recorded, byte for byte.
        different: frames whose labels are not.
        first, worst: the earliest difference on the common clock, and the largest.
        skipped: frames that could not be compared, by why.
    """

    def __init__(self) -> None:
        self.equal = self.different = 0
        self.first: Difference | None = None
        self.worst: Difference | None = None
        self.skipped: Counter[str] = Counter()
        self._lock = Lock()

    def on_frame(self, frame: ReplayedFrame) -> None:
        """Compare one frame."""
        if frame.recorded is None:
            self._skip("no labels were recorded for them")
            return
        if not frame.exact:
            self._skip("they follow a place where the recording is damaged")
            return
        try:
            recorded = frame.recorded.labels()
        except (FormatError, OSError):
            self._skip("their recorded labels are damaged")
            return
        share = 1.0
        if recorded.shape == frame.labels.shape:
            share = float(np.count_nonzero(recorded != frame.labels)) / recorded.size
        self._count(Difference(frame.camera, frame.frame_index, frame.seconds, share))

    @property
    def identical(self) -> bool:
        """Whether something was compared, and nothing differs."""
        return self.equal > 0 and self.different == 0

    def lines(self) -> Iterator[str]:
        """The result for the user."""
        total = self.equal + self.different
        if not total:
            yield "nothing could be compared"
        elif self.different:
            yield f"{self.different} of {total} frames differ from the recorded labels"
            yield f"first: {self.first}"
            yield f"worst: {self.worst}"
        else:
            yield f"{total} frames compared: all labels are identical to those recorded"
        for why, frames in sorted(self.skipped.items()):
            yield f"{frames} frames were not compared: {why}"

    def _skip(self, why: str) -> None:
        with self._lock:
            self.skipped[why] += 1

    def _count(self, found: Difference) -> None:
        with self._lock:
            if found.share == 0:
                self.equal += 1
                return
            self.different += 1
            if self.first is None or found.seconds < self.first.seconds:
                self.first = found
            if self.worst is None or found.share > self.worst.share:
                self.worst = found
