"""Streams for tests: frames whose content tells which stream and which frame they are."""

from __future__ import annotations

import time
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from pipeline.frames import EndOfStream, FrameBatch, FrameItem, StreamInfo


def stream_info(stream_id: str, size_hw: tuple[int, int] = (32, 48)) -> StreamInfo:
    return StreamInfo(stream_id, f"{stream_id}.mp4", size_hw, Fraction(1, 30))


def frame_pixels(seed: int, frames: int, model_hw: tuple[int, int] = (32, 48)) -> np.ndarray:
    """uint8 [frames, h * 3 // 2, w], different for every frame and seed."""
    height, width = model_hw
    rng = np.random.default_rng(seed)
    return rng.integers(16, 235, (frames, height * 3 // 2, width), dtype=np.uint8)


def batches(
    stream: StreamInfo, pixels: np.ndarray, chunk: int, *, end: bool = True
) -> Iterator[FrameItem]:
    """`pixels` in batches of `chunk` frames, then the end of the stream."""
    for start in range(0, len(pixels), chunk):
        part = pixels[start : start + chunk]
        yield FrameBatch(
            stream, start, tuple(range(start, start + len(part))), part,
            (time.monotonic(),) * len(part),
        )  # fmt: skip
    if end:
        yield EndOfStream(stream, len(pixels))
