"""The videos people look at: `color.mp4` and `overlay.mp4`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.audio import AudioCopy
from pipeline.frames import StreamInfo
from pipeline.mp4 import Mp4Writer, VideoSettings
from pipeline.palette import Palette, Planes
from pipeline.parts import PartFile
from pipeline.writers import LabelledFrame, Saved, resize_labels

# Constant quantisers of x264. Masks are flat with sharp edges: at 22 fewer than one pixel in five
# thousand is off by more than 8 levels, and unlike a rate factor it needs no look-ahead (0.6 ms).
_MASK_QUALITY = {"qp": "22"}
_PICTURE_QUALITY = {"qp": "24"}


class _VideoFile(ABC):
    """An mp4 whose frames a subclass draws; it keeps its first size."""

    _quality: dict[str, str]

    def __init__(
        self,
        final: Path,
        stream: StreamInfo,
        threads: int,
        audio: AudioCopy | None = None,
        saved: Saved | None = None,
    ) -> None:
        self._size_hw, self._matrix = stream.size_hw, stream.matrix
        self._frames = saved.data["frames"] if saved else 0
        self._audio = audio
        self._part = PartFile(final, saved.kept() if saved else None)
        settings = VideoSettings(
            size_hw=stream.size_hw,
            time_base=stream.time_base,
            rate=stream.average_rate,
            matrix=stream.matrix,
            aspect=_pixel_aspect(stream),
            quality=self._quality,
            threads=threads,
        )
        try:
            self._mp4 = Mp4Writer(self._part, settings, audio, saved.data["mp4"] if saved else None)
        except BaseException:
            self._part.discard(keep=saved is not None)
            raise

    @property
    def notes(self) -> list[str]:
        return self._mp4.notes + (self._audio.notes if self._audio else [])

    @abstractmethod
    def _draw(self, frame: LabelledFrame, labels: np.ndarray, out: Planes) -> None:
        """Draw a frame with `labels` at the file's size into `out`."""

    def write(self, frame: LabelledFrame) -> None:
        self._draw(frame, resize_labels(frame.full, self._size_hw), self._mp4.planes)
        self._mp4.encode(frame.pts)
        self._frames += 1

    def save(self) -> dict[str, Any]:
        """Raises ValueError unless it has a multiple of `GROUP_FRAMES`."""
        mp4 = self._mp4.save()
        return {"bytes": self._part.sync(), "frames": self._frames, "mp4": mp4}

    def close(self, interrupted: bool) -> dict[str, Any]:
        self._mp4.finish(whole=not interrupted)
        facts: dict[str, Any] = {
            "bytes": self._part.close(),
            "frames": self._frames,
            "size_hw": list(self._size_hw),
        }
        if self._mp4.pts_offset:
            facts["pts_offset"] = self._mp4.pts_offset
        if self._audio is not None:
            facts["audio_streams"] = len(self._audio.heads)
        return facts

    def publish(self) -> None:
        self._part.publish()

    def abort(self, keep: bool = False) -> None:
        self._mp4.abort()
        self._part.discard(keep)


class ColorVideo(_VideoFile):
    """`color.mp4`: the class colours."""

    _quality = _MASK_QUALITY

    def __init__(
        self,
        final: Path,
        stream: StreamInfo,
        palette: Palette,
        threads: int,
        saved: Saved | None = None,
    ) -> None:
        super().__init__(final, stream, threads, saved=saved)
        self._palette = palette

    def _draw(self, frame: LabelledFrame, labels: np.ndarray, out: Planes) -> None:
        if self._mp4.full_chroma:
            self._palette.labels_to_i444(labels, self._matrix, out)
        else:
            self._palette.labels_to_i420(labels, self._matrix, out)


class OverlayVideo(_VideoFile):
    """`overlay.mp4`: the class colours over the source's pictures, with the source's audio."""

    _quality = _PICTURE_QUALITY

    def __init__(
        self,
        final: Path,
        stream: StreamInfo,
        palette: Palette,
        opacity: float,
        threads: int,
        saved: Saved | None = None,
    ) -> None:
        super().__init__(final, stream, threads, AudioCopy(stream.source), saved)
        self._palette, self._opacity = palette, opacity

    def _draw(self, frame: LabelledFrame, labels: np.ndarray, out: Planes) -> None:
        if frame.picture is None:
            raise ValueError("pictures must be decoded for an overlay, got None")
        picture = _fit_picture(frame.picture, self._size_hw, self._mp4.full_chroma)
        self._palette.overlay(picture, labels, self._opacity, self._matrix, out)


def _fit_picture(picture: Planes, size_hw: tuple[int, int], full_chroma: bool) -> Planes:
    """A 4:2:0 picture at `size_hw`, its chroma at full size if wanted."""
    height, width = size_hw
    y, u, v = picture
    if y.shape != size_hw:
        half = ((width + 1) // 2, (height + 1) // 2)
        y = cv2.resize(y, (width, height), interpolation=cv2.INTER_LINEAR)
        u, v = (cv2.resize(plane, half, interpolation=cv2.INTER_LINEAR) for plane in (u, v))
    if full_chroma:
        u, v = (
            cv2.resize(plane, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)[:height, :width]
            for plane in (u, v)
        )
    return y, u, v


def _pixel_aspect(stream: StreamInfo) -> Fraction | None:
    """Width over height of a pixel as displayed, None where square or unknown."""
    stated = stream.details.get("sample_aspect_ratio")
    if not stated:
        return None
    width, height = map(int, str(stated).split(":"))
    if stream.rotation_degrees % 180:
        width, height = height, width
    return Fraction(width, height)
