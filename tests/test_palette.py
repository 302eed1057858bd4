"""Colours and drawing: against the definitions, computed another way."""

from __future__ import annotations

from fractions import Fraction

import cv2
import numpy as np
import pytest

from pipeline.palette import CAMVID, CITYSCAPES, UNLABELLED, Palette, rgb_to_yuv

WEIGHTS = {
    "bt601": (Fraction("0.299"), Fraction("0.587"), Fraction("0.114")),
    "bt709": (Fraction("0.2126"), Fraction("0.7152"), Fraction("0.0722")),
}


def exact_yuv(rgb: tuple[int, int, int], matrix: str) -> list[int]:
    """The standards' equations in fractions, rounded half up."""
    kr, kg, kb = WEIGHTS[matrix]
    r, g, b = (Fraction(int(value), 255) for value in rgb)
    luma = kr * r + kg * g + kb * b
    wide = (
        16 + 219 * luma,
        128 + 224 * (b - luma) / (2 * (1 - kb)),
        128 + 224 * (r - luma) / (2 * (1 - kr)),
    )
    return [int((value + Fraction(1, 2)) // 1) for value in wide]


def random_labels(height: int, width: int, palette: Palette = CAMVID, seed: int = 0) -> np.ndarray:
    ids = [*range(len(palette)), len(palette), UNLABELLED]
    return np.random.default_rng(seed).choice(ids, (height, width)).astype(np.uint8)


@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
def test_conversion_is_exact_to_the_rounding(matrix: str) -> None:
    colours = np.random.default_rng(1).integers(0, 256, (300, 3)).astype(np.uint8)
    colours = np.vstack([colours, CAMVID.rgb, CITYSCAPES.rgb, [(0, 0, 0), (255, 255, 255)]])
    expected = [exact_yuv(tuple(rgb), matrix) for rgb in colours]
    assert rgb_to_yuv(colours.astype(np.uint8), matrix).tolist() == expected


def test_the_matrices_differ() -> None:
    assert (rgb_to_yuv(CAMVID.rgb, "bt601") != rgb_to_yuv(CAMVID.rgb, "bt709")).any()


@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
@pytest.mark.parametrize("size_hw", [(36, 64), (35, 64), (36, 63), (35, 63), (1, 1), (1, 2)])
def test_i420_samples_even_rows_and_columns(size_hw: tuple[int, int], matrix: str) -> None:
    labels = random_labels(*size_hw)
    planes = CAMVID.labels_to_i420(labels, matrix)
    colours = {i: exact_yuv(rgb, matrix) for i, rgb in enumerate(CAMVID.rgb.tolist())}
    for place, (plane, ids) in enumerate(
        zip(planes, (labels, labels[::2, ::2], labels[::2, ::2]), strict=True)
    ):
        black = (16, 128, 128)[place]
        expected = [[colours[i][place] if i in colours else black for i in row] for row in ids]
        assert plane.dtype == np.uint8
        assert plane.tolist() == expected


def test_i444_has_full_chroma() -> None:
    labels = random_labels(35, 63)
    full = CAMVID.labels_to_i444(labels, "bt709")
    half = CAMVID.labels_to_i420(labels, "bt709")
    assert [plane.shape for plane in full] == [(35, 63)] * 3
    for wide, narrow in zip(full[1:], half[1:], strict=True):
        assert np.array_equal(wide[::2, ::2], narrow)


def test_drawing_into_padded_planes_leaves_the_padding() -> None:
    labels = random_labels(36, 64)
    buffers = [np.full((h, w + 32), 7, np.uint8) for h, w in ((36, 64), (18, 32), (18, 32))]
    y, u, v = (buffer[:, :-32] for buffer in buffers)
    out = (y, u, v)
    assert CAMVID.labels_to_i420(labels, "bt601", out) is out
    for buffer, plane in zip(buffers, CAMVID.labels_to_i420(labels, "bt601"), strict=True):
        assert np.array_equal(buffer[:, :-32], plane)
        assert (buffer[:, -32:] == 7).all()


def test_rgb_is_the_palette_and_black() -> None:
    labels = random_labels(20, 30, CITYSCAPES)
    table = np.zeros((256, 3), np.uint8)
    table[:19] = CITYSCAPES.rgb
    assert np.array_equal(CITYSCAPES.labels_to_rgb(labels), table[labels])


@pytest.mark.parametrize("opacity", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize(
    ("size_hw", "full"), [((36, 64), False), ((35, 63), False), ((35, 63), True)]
)
def test_overlay_blends_labelled_pixels_only(
    size_hw: tuple[int, int], full: bool, opacity: float
) -> None:
    labels = random_labels(*size_hw)
    ids = [labels, *([labels if full else labels[::2, ::2]] * 2)]
    rng = np.random.default_rng(2)
    y, u, v = (rng.integers(16, 236, plane.shape).astype(np.uint8) for plane in ids)
    picture = (y, u, v)
    before = [plane.copy() for plane in picture]
    drawn = CAMVID.overlay(picture, labels, opacity, "bt709")
    table = np.zeros((256, 3))
    table[: len(CAMVID)] = rgb_to_yuv(CAMVID.rgb, "bt709")
    for place, plane in enumerate(drawn):
        blend = (1 - opacity) * before[place] + opacity * table[ids[place], place]
        expected = np.where(ids[place] < len(CAMVID), blend, before[place])
        assert np.abs(plane - expected).max() <= 0.501
        assert np.array_equal(picture[place], before[place])
    unlabelled = labels >= len(CAMVID)
    assert np.array_equal(drawn[0][unlabelled], picture[0][unlabelled])


def test_published_colours() -> None:
    assert CAMVID.classes[3] == "road"
    assert CAMVID.rgb[3].tolist() == [128, 64, 128]
    assert (len(CAMVID), len(CITYSCAPES)) == (11, 19)
    assert CITYSCAPES.rgb[CITYSCAPES.classes.index("car")].tolist() == [0, 0, 142]


@pytest.mark.parametrize(
    ("classes", "rgb", "message"),
    [
        ((), np.zeros((0, 3), int), "1 to 255 names, got 0"),
        (("a", "a"), [(0, 0, 0)] * 2, "differ"),
        (("a", "b"), [(0, 0, 0)], r"rgb must be \[2, 3\], got \[1, 3\]"),
        (("a",), [(0, 0, 256)], "0 to 255"),
        (("a",), [(0, 0, -1)], "0 to 255"),
        (("a",), [(0.5, 0, 0)], "whole numbers"),
        (tuple(map(str, range(256))), np.zeros((256, 3), int), "got 256"),
    ],
)
def test_invalid_palettes(classes: tuple[str, ...], rgb: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Palette(classes, rgb)  # type: ignore[arg-type]


def test_wrong_arguments_name_expected_and_actual() -> None:
    labels = random_labels(4, 4)
    with pytest.raises(ValueError, match=r"uint8 \[H, W\], got int64 \[4, 4\]"):
        CAMVID.labels_to_rgb(labels.astype(np.int64))
    with pytest.raises(ValueError, match=r"matrix must be one of .*bt2020"):
        CAMVID.labels_to_i420(labels, "bt2020")
    picture = CAMVID.labels_to_i420(random_labels(6, 4), "bt709")
    with pytest.raises(ValueError, match=r"size \[6, 4\], got \[4, 4\]"):
        CAMVID.overlay(picture, labels, 0.5, "bt709")
    with pytest.raises(ValueError, match=r"opacity must be 0 to 1, got 1\.5"):
        CAMVID.overlay(picture, random_labels(6, 4), 1.5, "bt709")


def test_a_palette_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        CAMVID.rgb[0] = 0


def test_threads_of_opencv_do_not_matter() -> None:
    labels = random_labels(360, 640)
    before = cv2.getNumThreads()
    try:
        results = []
        for threads in (1, 2):
            cv2.setNumThreads(threads)
            results.append(CAMVID.labels_to_i420(labels, "bt709"))
    finally:
        cv2.setNumThreads(before)
    for one, two in zip(*results, strict=True):
        assert np.array_equal(one, two)
