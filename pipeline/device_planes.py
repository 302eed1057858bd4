"""Frames that were decoded on a device, made ready for the network there: they never go through memory.

What `pipeline.planes` has libswscale do on the cores, in PyTorch on whatever device the frame lies. The
pixels are the same to within a level or two, for libswscale rounds on its way.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import ParamSpec, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import ColorRange
from torch import Tensor

from pipeline.engines.device import device_problem, is_lost
from pipeline.errors import EngineError
from pipeline.planes import PlaneConverter, source_range

P = ParamSpec("P")
R = TypeVar("R")

# Where a sample lies in its pixel, of the pixel's length: in the middle, or, of chroma, where its left luma
# sample is (H.273, chroma_sample_loc_type 0). PyAV does not tell what a frame says of it: it is what FFmpeg's
# decoders of these codecs say where the stream does not.
_MIDDLE, _LEFT = 0.5, 0.25
LEFT_CHROMA = ("h264", "hevc", "mpeg2video", "mpeg4")
_TO_LIMITED = ((219 / 255, 16.0), (224 / 255, 128 * (1 - 224 / 255)))  # luma, chroma: times, plus


def _reported(method: Callable[P, R]) -> Callable[P, R]:
    """Turn what a device raises into an EngineError: one line, with what to try."""

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except RuntimeError as error:
            problem = device_problem(error)
            if problem is None:
                raise
            reported = EngineError(
                f"the GPU {problem} while frames were scaled: try fewer sources at once, or without"
                " --hwaccel"
            )
            reported.device_lost = is_lost(error)
            raise reported from error

    return call


class DevicePlaneConverter(PlaneConverter):
    """Writes the planes of frames of one format that lie on a device, as NV12, P010 or P016.

    `write_pictures` brings frames into memory: those who draw are there.

    Args:
        frame: of the format.
        codec: FFmpeg's name of what it was coded with.

    Raises EngineError where the device fails, here and in every method.
    """

    @_reported
    def __init__(self, frame: VideoFrame, codec: str = "") -> None:
        super().__init__(frame)
        # Of frames that were interlaced the cores forget it.
        left = codec in LEFT_CHROMA and not frame.interlaced_frame
        self._chroma_place = _LEFT if left else _MIDDLE
        self._full_range = source_range(frame) == ColorRange.JPEG
        self._device = tensor_of(frame.planes[0]).device
        self._weights: dict[tuple[int, int, float], Tensor] = {}
        self._change: Tensor | None = None
        if self._to_601 is not None:
            self._change = torch.from_numpy(self._to_601).float().to(self._device)

    @_reported
    def room(self, frames: int, model_hw: tuple[int, int]) -> Tensor:
        height, width = model_hw
        shape = (frames, height * 3 // 2, width)
        return torch.empty(shape, dtype=torch.uint8, device=self._device)

    @_reported
    @torch.inference_mode()
    def write_pixels(self, frame: VideoFrame, out: Tensor) -> None:
        """As of `PlaneConverter`, into a tensor; it is ready when this returns.

        Raises NotImplementedError for a frame in another layout.
        """
        height, width = out.shape[0] // 3 * 2, out.shape[1]
        rows, columns = self.orientation.turn_size((height, width))
        luma, chroma = (_levels(tensor_of(plane)) for plane in frame.planes)
        y = self._scale(luma, rows, columns, _MIDDLE)
        u, v = (
            self._scale(chroma[..., at], rows // 2, columns // 2, self._chroma_place)
            for at in range(2)
        )
        if self._full_range:
            (times, plus), (of_chroma, middle) = _TO_LIMITED
            y, u, v = y * times + plus, u * of_chroma + middle, v * of_chroma + middle
        if self._change is not None:
            y, u, v = _changed(y, u, v, self._change)
        target = out[height:].view(2, height // 2, width // 2)
        for plane, place in ((y, out[:height]), (u, target[0]), (v, target[1])):
            place.copy_(self._upright(plane).round_().clamp_(0, 255))
        if self._device.type == "cuda":
            # The decoder writes into the frame's memory again once the frame is let go.
            torch.cuda.current_stream(self._device).synchronize()

    def _scale(self, plane: Tensor, rows: int, columns: int, place: float) -> Tensor:
        down = self._cached(plane.shape[0], rows, _MIDDLE)
        across = self._cached(plane.shape[1], columns, place)
        return down @ plane @ across.T

    def _cached(self, old: int, new: int, place: float) -> Tensor:
        if (old, new, place) not in self._weights:
            weights = scaling_weights(old, new, place)
            self._weights[old, new, place] = torch.from_numpy(weights).to(self._device)
        return self._weights[old, new, place]

    def _upright(self, plane: Tensor) -> Tensor:
        turned = plane.T if self.orientation.transpose else plane
        flips = (self.orientation.flip_y, self.orientation.flip_x)
        return turned.flip([axis for axis, flip in enumerate(flips) if flip])


def tensor_of(plane: VideoPlane) -> Tensor:
    """A plane's own memory as a tensor: [H, W], or [H, W, 2] of both chroma planes.

    Raises NotImplementedError for a layout that PyAV cannot describe.
    """
    # The capsule by hand: PyTorch would ask for its own stream, which PyAV does not take. Both use the
    # device's default stream, where what is queued later sees what was queued before.
    return torch.from_dlpack(plane.__dlpack__())  # type: ignore[arg-type]


def scaling_weights(old: int, new: int, place: float = _MIDDLE) -> np.ndarray:
    """What each of `old` samples gives to each of `new` over the same length, as libswscale's SWS_AREA has
    it: to fewer by the share that it covers, to more by its nearness.

    Args:
        place: where a sample lies in its pixel, from 0 to 1.

    Returns float32 [new, old]; each row's sum is 1, at the ends too, where there are fewer to take from.
    """
    scale = old / new
    centres = (np.arange(new)[:, None] + place) * scale - place
    samples = np.arange(old)
    if scale > 1:
        ends = np.minimum(centres + scale / 2, samples + 0.5)
        covered = ends - np.maximum(centres - scale / 2, samples - 0.5)
        weights = np.maximum(covered, 0)
    else:
        weights = np.maximum(1 - np.abs(centres - samples), 0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _levels(plane: Tensor) -> Tensor:
    """float32 levels from 0 to 255 of an 8-bit plane, or of one whose 10 to 16 bits are the upper ones."""
    levels = plane.float()
    return levels if plane.dtype == torch.uint8 else levels / 256


def _changed(y: Tensor, u: Tensor, v: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `planes._change`: to another YUV matrix, `matrix` being what Y gains and U and V become."""
    away = torch.stack([u, v]) - 128
    gain, new_u, new_v = torch.einsum("ij,jhw->ihw", matrix, away)
    enlarge: Callable[[Tensor], Tensor] = partial(F.interpolate, size=y.shape, mode="bilinear")
    return y + enlarge(gain[None, None])[0, 0], new_u + 128, new_v + 128
