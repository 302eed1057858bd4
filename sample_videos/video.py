"""Writes a clip and its labels: H.264 in MP4 beside FFV1 in Matroska."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np


class ClipWriter:
    """Writes pictures to ``out``.mp4 and class ids to ``out``_labels.mkv.

    Both are written under temporary names beside the final ones and renamed when the ``with``
    block ends well; after an error neither is left.
    """

    def __init__(self, out: Path, size_hw: tuple[int, int], fps: float, crf: int) -> None:
        self.picture_path = out.with_name(out.name + ".mp4")
        self.label_path = out.with_name(out.name + "_labels.mkv")
        self._parts = [
            p.with_name(f".{p.stem}.part{p.suffix}") for p in (self.picture_path, self.label_path)
        ]
        height, width = size_hw
        if height % 2 or width % 2:
            raise ValueError(f"size_hw must be even for 4:2:0 video, got {size_hw}")
        rate = Fraction(fps).limit_denominator(1001)
        self._picture_file = av.open(
            str(self._parts[0]), "w", format="mp4", options={"movflags": "faststart"}
        )
        self._picture = self._picture_file.add_stream("libx264", rate=rate)
        self._picture.width, self._picture.height = width, height
        self._picture.pix_fmt = "yuv420p"
        self._picture.options = {"crf": str(crf), "preset": "slow"}
        context = self._picture.codec_context
        context.color_primaries = context.color_trc = context.colorspace = 1  # bt709
        context.color_range = 1  # limited ("tv")
        self._label_file = av.open(str(self._parts[1]), "w", format="matroska")
        self._label = self._label_file.add_stream("ffv1", rate=rate)
        self._label.width, self._label.height = width, height
        self._label.pix_fmt = "gray"
        self._label.options = {
            "level": "3",
            "context": "1",
            "coder": "range_def",
            "g": "30",
            "slices": "4",
        }
        self._tick = 1 / rate
        self._count = 0

    def write(self, picture: np.ndarray, labels: np.ndarray) -> None:
        """Add a frame: picture uint8 [H, W, 3], labels uint8 [H, W]."""
        image = av.VideoFrame.from_ndarray(picture, format="rgb24")
        image = image.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        grey = av.VideoFrame.from_ndarray(labels, format="gray")
        for frame, stream, file in (
            (image, self._picture, self._picture_file),
            (grey, self._label, self._label_file),
        ):
            frame.pts = self._count
            frame.time_base = self._tick
            file.mux(stream.encode(frame))
        self._count += 1

    def __enter__(self) -> ClipWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                for stream, file in (
                    (self._picture, self._picture_file),
                    (self._label, self._label_file),
                ):
                    file.mux(stream.encode(None))
        finally:
            self._picture_file.close()
            self._label_file.close()
        if kind is None:
            for part, path in zip(self._parts, (self.picture_path, self.label_path), strict=True):
                os.replace(part, path)
        else:
            for part in self._parts:
                part.unlink(missing_ok=True)
