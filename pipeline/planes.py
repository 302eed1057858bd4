"""A decoded frame as planes of planar YUV 4:2:0: colour, range, size and orientation made uniform.

What comes in is whatever a codec gives: 8 to 16 bits, 4:0:0 to 4:4:4, RGB, palette, limited or full
range, any YUV matrix, lying on its side. What goes out is 8-bit limited-range I420, upright.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from pipeline.frames import Pixels

# AVColorSpace (ITU-T H.273 MatrixCoefficients) to what libswscale can be told. Matrices it does not
# know (YCgCo, ICtCp) are taken for the usual one of the frame's size.
_MATRICES = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,  # BT.470 BG
    6: Colorspace.ITU601,  # SMPTE 170 M
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
    10: Colorspace.BT2020,  # constant luminance, close enough for a mask
}
_NAMES = {Colorspace.ITU709: "bt709", Colorspace.ITU601: "bt601"}
_SPACES = {name: space for space, name in _NAMES.items()}
# The shares of red and blue in luma, which define a matrix (H.273, table 4).
_LUMA_SHARES = {
    Colorspace.ITU709: (0.2126, 0.0722),
    Colorspace.FCC: (0.30, 0.11),
    Colorspace.ITU601: (0.299, 0.114),
    Colorspace.SMPTE240M: (0.212, 0.087),
    Colorspace.BT2020: (0.2627, 0.0593),
}


@dataclass(frozen=True)
class Orientation:
    """How stored pixels are turned to be upright: first `transpose`, then the flips.

    The three cover the eight orientations of EXIF and of the display matrix's right angles.
    """

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @classmethod
    def from_matrix(cls, matrix: np.ndarray) -> Orientation | None:
        """From a display matrix: int32 [9], rows (a b u)(c d v)(x y w) of ISO/IEC 14496-12.

        Returns:
            None if the matrix turns by something else than a multiple of 90 degrees.
        """
        a, b, c, d = (int(matrix[i]) for i in (0, 1, 3, 4))
        straight, crossed = max(abs(a), abs(d)), max(abs(b), abs(c))
        # A hundredth is half a degree: what rounding leaves of a right angle, and no more.
        if crossed * 100 <= straight:
            return cls(False, a < 0, d < 0)
        if straight * 100 <= crossed:
            return cls(True, c < 0, b < 0)
        return None

    @classmethod
    def from_degrees(cls, degrees: float) -> Orientation | None:
        """From a counter-clockwise rotation; None if it is no multiple of 90 degrees."""
        quarter = round(degrees / 90)
        if abs(degrees - 90 * quarter) > 1:
            return None
        turns = (
            (False, False, False),
            (True, False, True),
            (False, True, True),
            (True, True, False),
        )
        return cls(*turns[quarter % 4])

    @property
    def mirrored(self) -> bool:
        """Whether the picture is also mirrored, left to right before it is rotated."""
        return (self.transpose + self.flip_x + self.flip_y) % 2 == 1

    @property
    def degrees(self) -> int:
        """Counter-clockwise rotation, 0, 90, 180 or 270, after the mirroring if there is one."""
        if self.transpose:
            return 270 if self.flip_x else 90
        return 180 if self.flip_y else 0

    def turn_size(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """The size as displayed of a stored size, or the reverse."""
        return (size_hw[1], size_hw[0]) if self.transpose else size_hw

    def turn(self, plane: np.ndarray) -> np.ndarray:
        """The stored plane [H, W] as displayed; a view."""
        plane = plane.T if self.transpose else plane
        return plane[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]


@dataclass(frozen=True)
class FrameFormat:
    """What decides how a frame is converted. Frames of equal format share a `PlaneConverter`."""

    stored_hw: tuple[int, int]
    pixel_format: str
    matrix: int
    full_range: int
    rotation: int

    @classmethod
    def of(cls, frame: VideoFrame) -> FrameFormat:
        """The format of a decoded frame."""
        size_hw = (frame.height, frame.width)
        colours = (int(frame.colorspace), int(frame.color_range))
        return cls(size_hw, (frame.sw_format or frame.format).name, *colours, frame.rotation)


class PlaneConverter:
    """Writes the planes of frames of one format.

    Attributes:
        size_hw: the frames' height and width as displayed.
        orientation: how stored pixels are turned.
        odd_rotation: the frame asks for a rotation that is no right angle; it is not applied.
        matrix: YUV matrix of `write_pictures`: the frames' own where that is "bt601" or "bt709",
            "bt709" instead of a rarer one, and for RGB the usual one of the size.
    """

    def __init__(self, frame: VideoFrame) -> None:
        self.format = FrameFormat.of(frame)
        found = _display_orientation(frame)
        self.odd_rotation = found is None
        self.orientation = found or Orientation()
        self.size_hw = self.orientation.turn_size(self.format.stored_hw)
        space = _source_space(frame)
        self.matrix = _NAMES.get(space, "bt709")
        wanted = _SPACES[self.matrix]
        if frame.format.is_rgb or frame.format.has_palette:
            # libswscale gives any matrix from these; that they have none, the frame says itself.
            self._source: dict[str, int | None] = {}
            self._small_space, self._full_space = Colorspace.ITU601, wanted
            self._to_601 = self._to_matrix = None
        else:
            # libswscale goes from matrix to matrix by way of RGB, which costs twice the scaling
            # and is off by up to four levels; so it keeps the matrix, and `_change` follows.
            self._source = {"src_colorspace": space, "src_color_range": source_range(frame)}
            self._small_space = self._full_space = space
            self._to_601 = _change_of_matrix(space, Colorspace.ITU601)
            self._to_matrix = _change_of_matrix(space, wanted)
        self._plain = frame.format.name == "yuv420p" and frame.color_range != ColorRange.JPEG
        self._small = VideoReformatter()
        self._full = VideoReformatter()

    def room(self, frames: int, model_hw: tuple[int, int]) -> Pixels:
        """uint8 [T, h * 3 // 2, w] for `write_pixels` to write to, frame by frame; h and w are even."""
        height, width = model_hw
        return np.empty((frames, height * 3 // 2, width), np.uint8)

    def write_pixels(self, frame: VideoFrame, out: Pixels) -> None:
        """Scales a frame, turns it upright and writes it as I420, BT.601 limited range.

        Args:
            frame: of this converter's format.
            out: uint8 [h * 3 // 2, w], contiguous, h and w even; written.
        """
        size_hw = (out.shape[0] // 3 * 2, out.shape[1])
        planes = _i420_planes(out, size_hw)
        height, width = self.orientation.turn_size(size_hw)
        small = self._small.reformat(
            _progressive(frame) if frame.interlaced_frame else frame, width, height, "yuv420p",
            dst_colorspace=self._small_space, dst_color_range=ColorRange.MPEG,
            interpolation=Interpolation.AREA, threads=1, **self._source,
        )  # fmt: skip
        self._copy(small, planes)
        if self._to_601 is not None:
            _change(planes, self._to_601)

    def write_pictures(
        self, frame: VideoFrame, out: tuple[np.ndarray, np.ndarray, np.ndarray]
    ) -> None:
        """Turns a frame upright and writes it at full size, limited range, in `matrix`.

        Args:
            frame: of this converter's format.
            out: y uint8 [H, W], u and v uint8 [ceil(H / 2), ceil(W / 2)]; written.
        """
        if not self._plain:
            frame = self._full.reformat(
                frame, format="yuv420p",
                dst_colorspace=self._full_space, dst_color_range=ColorRange.MPEG,
                interpolation=Interpolation.BILINEAR, threads=1, **self._source,
            )  # fmt: skip
        self._copy(frame, out)
        if self._to_matrix is not None:
            _change(out, self._to_matrix)

    def _copy(self, frame: VideoFrame, out: tuple[np.ndarray, ...]) -> None:
        for plane, target in zip(frame.planes, out, strict=True):
            np.copyto(target, self.orientation.turn(_plane_view(plane)))


def _plane_view(plane: VideoPlane) -> np.ndarray:
    """uint8 [H, W] on an 8-bit plane's own memory, without the padding at the end of its lines."""
    return _lines(plane)[:, : plane.width]


def _lines(plane: VideoPlane) -> np.ndarray:
    """uint8 [H, line size] on a plane's own memory, from the top line down."""
    lines = np.frombuffer(memoryview(plane), np.uint8)
    lines = lines.reshape(plane.height, abs(plane.line_size))
    # Stored from the bottom up the size is negative, and the buffer begins at the last line.
    return lines[::-1] if plane.line_size < 0 else lines


def _i420_planes(image: np.ndarray, size_hw: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """The Y, U and V planes of an I420 image uint8 [h * 3 // 2, w], as views."""
    height, width = size_hw
    chroma = image[height:].reshape(2, height // 2, width // 2)
    return image[:height], chroma[0], chroma[1]


def _change_of_matrix(old: Colorspace, new: Colorspace) -> np.ndarray | None:
    """float64 [3, 2]: what Y gains, and U and V become, of U - 128 and V - 128; None if equal.

    Luma itself passes unchanged: a grey is the same in every matrix.
    """
    if old == new:
        return None
    return (_yuv_of_rgb(new) @ np.linalg.inv(_yuv_of_rgb(old)))[:, 1:]


def _yuv_of_rgb(space: Colorspace) -> np.ndarray:
    """float64 [3, 3]: limited-range Y - 16, U - 128 and V - 128 of R, G and B from 0 to 1."""
    red, blue = _LUMA_SHARES[space]
    luma = np.array([red, 1 - red - blue, blue])
    u = (np.array([0, 0, 1]) - luma) / (2 - 2 * blue)
    v = (np.array([1, 0, 0]) - luma) / (2 - 2 * red)
    return np.stack([219 * luma, 224 * u, 224 * v])


def _change(planes: tuple[np.ndarray, ...], matrix: np.ndarray) -> None:
    """Takes Y, U and V, in place, from one YUV matrix to another; see `_change_of_matrix`."""
    y, u, v = planes
    gain, new_u, new_v = (
        cv2.addWeighted(u, of_u, v, of_v, 128 * (1 - of_u - of_v)) for of_u, of_v in matrix
    )
    gain = cv2.resize(gain, (y.shape[1], y.shape[0]), interpolation=cv2.INTER_LINEAR)
    np.copyto(y, cv2.addWeighted(y, 1, gain, 1, -128))
    np.copyto(u, new_u)
    np.copyto(v, new_v)


def _display_orientation(frame: VideoFrame) -> Orientation | None:
    try:
        data: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV 18 cannot list side data when one is of a kind it has no name for, as EXIF is. The
        # rotation is still to be had, mirroring is not.
        return Orientation.from_degrees(frame.rotation)
    if data is None:
        return Orientation()
    return Orientation.from_matrix(np.frombuffer(memoryview(data), np.int32))


def _progressive(frame: VideoFrame) -> VideoFrame:
    """The same planes in a frame that is not marked as interlaced.

    libswscale scales the two fields of a marked frame apart, so that a smaller picture is combed;
    the network is better served by both fields blended. PyAV has no way to clear the mark.
    """
    plain = VideoFrame(frame.width, frame.height, frame.format.name)
    for plane, target in zip(frame.planes, plain.planes, strict=True):
        lines, copies = _lines(plane), _lines(target)
        width = min(lines.shape[1], copies.shape[1])
        np.copyto(copies[:, :width], lines[:, :width])
    return plain


def _source_space(frame: VideoFrame) -> Colorspace:
    """The frame's YUV matrix; untagged, what players assume for its size: HD is BT.709."""
    usual = Colorspace.ITU709 if frame.width >= 1280 or frame.height > 576 else Colorspace.ITU601
    return _MATRICES.get(int(frame.colorspace), usual)


def source_range(frame: VideoFrame) -> ColorRange | None:
    """What the frame's levels span, as libswscale is told; None leaves it to libswscale."""
    if frame.color_range == ColorRange.UNSPECIFIED and frame.format.name.startswith("gray"):
        return None  # libswscale takes untagged grey for full range, as its writers mean it
    full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
    return ColorRange.JPEG if full else ColorRange.MPEG
