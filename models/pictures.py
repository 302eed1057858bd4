"""Pictures and videos from files, each as an array."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np

from models.errors import DataError


def read_rgb(path: Path) -> np.ndarray:
    """uint8 [H, W, 3]. Raises DataError for a file that is no picture."""
    return np.ascontiguousarray(_read(path, cv2.IMREAD_COLOR)[..., ::-1])


def read_ids(path: Path) -> np.ndarray:
    """A picture of numbers, as stored: uint8 or uint16 [H, W], unless it is coloured.

    Raises DataError for a file that is no picture.
    """
    return _read(path, cv2.IMREAD_UNCHANGED)


def _read(path: Path, flags: int) -> np.ndarray:
    image = cv2.imread(str(path), flags)
    if image is None:
        raise DataError(f"{path} is missing or cannot be read")
    return image


def read_planes(folder: Path, name: str, count: int) -> np.ndarray:
    """Further channels of a picture, float32 [H, W, count], on the scale of its pixels, 0-255.

    NAME.npy: numbers 0-255, [H, W] or [H, W, count]. NAME.png: one grey plane, of 8 bits as it is or of 16
    bits with 65535 as 255. Raises DataError for anything else.
    """
    path = folder / f"{name}.npy"
    if path.exists():
        try:
            planes = np.load(path, allow_pickle=False).astype(np.float32)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path} is not an array of numbers: {error}") from error
    else:
        path = folder / f"{name}.png"
        stored = read_ids(path)
        planes = stored.astype(np.float32) / (257 if stored.dtype == np.uint16 else 1)
    planes = planes[..., None] if planes.ndim == 2 else planes
    if planes.ndim != 3 or planes.shape[2] != count:
        raise DataError(f"{path}: must be [H, W, {count}] for in_channels {count + 3},"
                        f" got {list(planes.shape)}")  # fmt: skip
    if not (planes.min() >= 0 and planes.max() <= 255):  # NaN too
        raise DataError(f"{path}: values must be 0-255, got {planes.min()} to {planes.max()}")
    return planes


def decode(path: Path, pixel_format: str) -> Iterator[np.ndarray]:
    """The frames of a video, as "rgb24" [H, W, 3] or "gray" [H, W]. Raises DataError for damage."""
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format=pixel_format)
    except (av.FFmpegError, IndexError) as error:
        raise DataError(f"{path} cannot be read as video: {error}") from error


def count_frames(path: Path) -> int:
    """Counted packet by packet: what containers say of their length is not always so."""
    try:
        with av.open(str(path)) as container:
            return sum(packet.size > 0 for packet in container.demux(video=0))
    except (av.FFmpegError, IndexError) as error:
        raise DataError(f"{path} cannot be read as video: {error}") from error
