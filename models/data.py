"""Training and validation data: CamVid folders and rendered clips, held in memory as uint8."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np

from models.augment import IGNORE, Look, draw_windows, occlude, warp


class DataError(ValueError):
    """Training data that is missing, of differing sizes, or labelled out of range."""


@dataclass(frozen=True)
class Clip:
    """Labelled frames that follow each other; a still is a clip of one.

    Attributes:
        name: for messages.
        rgb: uint8 [T, H, W, 3].
        labels: uint8 [T, H, W], `IGNORE` where unlabelled.
    """

    name: str
    rgb: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        if self.rgb.shape[:3] != self.labels.shape:
            raise DataError(
                f"{self.name}: labels are {list(self.labels.shape)}, pictures"
                f" {list(self.rgb.shape[:3])}: they must have the same size"
            )


def read_stills(folder: Path, classes: int) -> list[Clip]:
    """Clips of one frame each from `folder/images` and `folder/labels` (PNG of class ids).

    Ids from `classes` up are unlabelled only if they are `classes` itself (CamVid's 11) or 255; another
    id raises DataError, as do a picture without labels and an empty folder.
    """
    pictures = sorted(p for p in (folder / "images").glob("*") if p.suffix in (".jpg", ".png"))
    if not pictures:
        raise DataError(f"{folder} holds no images/*.jpg or *.png")
    return [_read_still(path, folder / "labels" / f"{path.stem}.png", classes) for path in pictures]


def _read_still(picture: Path, labels: Path, classes: int) -> Clip:
    bgr, ids = cv2.imread(str(picture)), cv2.imread(str(labels), cv2.IMREAD_UNCHANGED)
    if bgr is None or ids is None:
        missing = picture if bgr is None else labels
        raise DataError(f"{missing} is missing or cannot be read")
    return Clip(picture.stem, bgr[None, :, :, ::-1].copy(), clean_ids(ids, classes, labels)[None])


def clean_ids(ids: np.ndarray, classes: int, where: Path) -> np.ndarray:
    """uint8 ids with every unlabelled pixel at `IGNORE`; DataError for an id that is no class."""
    ids = np.where(ids == classes, IGNORE, ids).astype(np.uint8)
    wrong = np.unique(ids[(ids >= classes) & (ids != IGNORE)])
    if wrong.size:
        raise DataError(
            f"{where}: class ids must be 0-{classes - 1}, or {classes} or 255 for unlabelled,"
            f" got {wrong.tolist()}"
        )
    return ids


def read_rendered(folder: Path, classes: int) -> list[Clip]:
    """Clips as `roadmask samples render` writes them: NAME.mp4 beside NAME_labels.mkv."""
    videos = sorted(p for p in folder.glob("*.mp4") if p.with_name(f"{p.stem}_labels.mkv").exists())
    if not videos:
        raise DataError(f"{folder} holds no NAME.mp4 with a NAME_labels.mkv beside it")
    clips = []
    for video in videos:
        path = video.with_name(f"{video.stem}_labels.mkv")
        ids = np.stack(list(_planes(path, "gray")))
        clips.append(Clip(video.stem, np.stack(list(_planes(video, "rgb24"))),
                          clean_ids(ids, classes, path)))  # fmt: skip
    return clips


def _planes(path: Path, pixel_format: str) -> Iterator[np.ndarray]:
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format=pixel_format)


def class_weights(clips: Sequence[Clip], classes: int) -> np.ndarray:
    """float32 [classes]: inverse square root of each class's share, mean 1, at most 4."""
    counts = np.zeros(classes)
    for clip in clips:
        counts += np.bincount(clip.labels.ravel(), minlength=256)[:classes]
    weights = 1 / np.sqrt(np.maximum(counts / counts.sum(), 1e-4))
    weights = np.minimum(weights / weights.mean(), 4.0)
    return (weights / weights.mean()).astype(np.float32)


class ClipSampler:
    """An endless, seeded stream of training batches.

    The batch of step k depends on `seed` and k alone, so a run resumed at k sees what an undisturbed
    one would have seen.

    Args:
        stills, rendered: where frames come from; `rendered_share` of a batch's clips are rendered ones.
        rare: class ids; half of the crops are centred on a pixel of one of these.
    """

    def __init__(
        self,
        stills: Sequence[Clip],
        rendered: Sequence[Clip],
        *,
        seed: int,
        crop_hw: tuple[int, int],
        scale_range: tuple[float, float],
        rendered_share: float,
        rare: Sequence[int],
    ) -> None:
        if not stills and not rendered:
            raise DataError("there is nothing to train on: give stills, rendered clips or both")
        self.stills, self.rendered = stills, rendered
        self.seed, self.crop_hw, self.scale_range = seed, crop_hw, scale_range
        self.rendered_share = rendered_share if stills else 1.0
        self.rare = tuple(rare)

    def batch(self, step: int, size: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
        """RGB uint8 [N, T, h, w, 3] and labels uint8 [N, T, h, w] of one step."""
        rng = np.random.default_rng((self.seed, step))
        pairs = [self._clip(rng, frames) for _ in range(size)]
        return np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs])

    def _clip(self, rng: np.random.Generator, frames: int) -> tuple[np.ndarray, np.ndarray]:
        from_rendered = bool(self.rendered) and rng.random() < self.rendered_share
        pool = self.rendered if from_rendered else self.stills
        clip = pool[int(rng.integers(len(pool)))]
        # Half of the stills really stand still: CamVid's own frames must not always seem to move.
        moving = len(clip.labels) == 1 and frames > 1 and rng.random() < 0.7
        windows = draw_windows(
            rng, clip.labels.shape[1:], self.crop_hw, frames, self.scale_range,
            1.0 if moving else 0.0, self._focus(rng, clip),
        )  # fmt: skip
        look = Look.draw(rng)
        start = int(rng.integers(max(1, len(clip.labels) - frames + 1)))
        pictures, labels = [], []
        for step, window in enumerate(windows):
            at = min(start + step, len(clip.labels) - 1)
            picture, ids = warp(clip.rgb[at], clip.labels[at], window, self.crop_hw)
            pictures.append(look.apply(picture, rng))
            labels.append(ids)
        if frames > 1 and rng.random() < 0.3:
            hidden = int(rng.integers(1, frames))
            pictures[hidden] = occlude(pictures[hidden], rng)
        return np.stack(pictures), np.stack(labels)

    def _focus(self, rng: np.random.Generator, clip: Clip) -> tuple[int, int] | None:
        if not self.rare or rng.random() < 0.5:
            return None
        wanted = self.rare[int(rng.integers(len(self.rare)))]
        # A coarse look is enough to find a pixel of the class, and 16 times cheaper.
        rows, columns = np.nonzero(clip.labels[0, ::4, ::4] == wanted)
        if not rows.size:
            return None
        pick = int(rng.integers(rows.size))
        return int(rows[pick]) * 4, int(columns[pick]) * 4
