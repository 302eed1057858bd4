"""Motion from frame to frame, measured on the pictures.

By DIS optical flow (Kroeger et al., ECCV 2016) in both directions. A pixel is seen in both frames if it comes
from inside the frame, and the flow there leads back to where it started: |f + b|^2 <= 0.01 (|f|^2 + |b|^2)
+ 0.5 (Sundaram, Brox and Keutzer, ECCV 2010).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Motion:
    """Where each pixel of a frame was in the frame before.

    Attributes:
        back_xy: float32 [H, W, 2], (x, y) in pixels from here to its place in the frame before.
        source_yx: intp [2, H, W], row and column of the pixel nearest to that place, inside the frame.
        seen: bool [H, W], whether that pixel really shows the same thing.
    """

    back_xy: np.ndarray
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
        return cls(back, source.astype(np.intp), inside & (miss <= 0.01 * length + 0.5))

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
