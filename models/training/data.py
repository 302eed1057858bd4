"""Data on disk: folders of labelled pictures and rendered clips, read into memory as uint8.

FOLDER/images/NAME.jpg|png     RGB
FOLDER/labels/NAME.png         class ids; 255, or the number of classes, where unlabelled
FOLDER/masks/NAME.png          instead, for several classes a pixel: uint16, bit k = class k holds there;
                               65535 where unlabelled
FOLDER/planes/NAME.png|npy     further channels (depth, thermal), see `read_planes`
FOLDER/NAME.mp4, NAME_labels.mkv   a rendered clip and its class ids
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import av
import cv2
import numpy as np

from models.errors import DataError
from models.training.augment import IGNORE
from models.training.config import MOST_MASKS, Source, TrainConfig

UNLABELLED_MASK = 65535


@dataclass(frozen=True)
class Clip:
    """Labelled frames that follow each other; a still is a clip of one.

    Attributes:
        name: for messages.
        rgb: uint8 [T, H, W, 3].
        labels: uint8 [T, H, W], `IGNORE` where unlabelled. Made from masks, the lowest class that holds.
        masks: uint16 [T, H, W], bit k = class k holds, `UNLABELLED_MASK` where unlabelled; or None.
        planes: float32 [T, H, W, P], further channels, 0-255; or None.
        has_labels: labels were given, and not made from masks.
    """

    name: str
    rgb: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None
    planes: np.ndarray | None = None
    has_labels: bool = True

    def __post_init__(self) -> None:
        for what in ("labels", "masks", "planes"):
            array = getattr(self, what)
            if array is not None and array.shape[:3] != self.rgb.shape[:3]:
                raise DataError(
                    f"{self.name}: {what} are {list(array.shape[:3])}, pictures"
                    f" {list(self.rgb.shape[:3])}: they must have the same size"
                )

    def bits(self) -> np.ndarray:
        """Masks as they are, or those of the labels: one class a pixel."""
        return mask_bits(self.labels) if self.masks is None else self.masks


def mask_bits(labels: np.ndarray) -> np.ndarray:
    """uint8 ids below 16 or `IGNORE` -> uint16 masks of one class each."""
    table = np.full(256, UNLABELLED_MASK, np.uint16)
    table[:MOST_MASKS] = 1 << np.arange(MOST_MASKS)
    return np.asarray(table[labels])


def read_source(source: Source, classes: int, *, in_channels: int = 3) -> list[Clip]:
    """All clips of a data folder that its filters let in.

    Raises DataError if there are none, or one of them is wrong.
    """
    folder = source.folder
    if (folder / "images").is_dir():
        clips = read_stills(folder, classes, in_channels=in_channels, wants=source.wants)
        clips = join_sequences(clips, source.sequence_step)
    elif any(folder.glob("*.mp4")):
        if in_channels != 3:
            raise DataError(
                f"{folder}: rendered clips have 3 channels, in_channels is {in_channels}"
            )
        clips = read_rendered(folder, classes, wants=source.wants)
    else:
        raise DataError(
            f"{folder} is no data folder: it holds neither images/ nor NAME.mp4 with NAME_labels.mkv"
        )
    if not clips:
        raise DataError(f"no name in {folder} passes {source.filters}")
    return clips


def read_stills(
    folder: Path,
    classes: int,
    *,
    in_channels: int = 3,
    wants: Callable[[str], bool] = lambda name: True,
) -> list[Clip]:
    """Clips of one frame each from `folder/images` and `folder/labels` or `folder/masks`.

    Ids from `classes` up are unlabelled only if they are `classes` itself (CamVid's 11) or 255; another
    id raises DataError, as do a picture without labels and an empty folder.
    """
    pictures = [p for p in (folder / "images").glob("*") if p.suffix in (".jpg", ".png")]
    pictures.sort(key=lambda path: by_number(path.stem))
    if not pictures:
        raise DataError(f"{folder} holds no images/*.jpg or *.png")
    return [
        _read_still(folder, path, classes, in_channels - 3) for path in pictures if wants(path.stem)
    ]


def by_number(name: str) -> tuple[str, int, str]:
    """Sorting key: frame 9 comes before frame 10."""
    found = re.fullmatch(r"(.*?)(\d+)", name)
    return (found[1], int(found[2]), name) if found else (name, -1, name)


def _read_still(folder: Path, picture: Path, classes: int, planes: int) -> Clip:
    name = picture.stem
    rgb = _read_image(picture, cv2.IMREAD_COLOR)[None, :, :, ::-1].copy()
    mask_path, label_path = folder / "masks" / f"{name}.png", folder / "labels" / f"{name}.png"
    masks = labels = None
    if mask_path.exists():
        masks = clean_masks(_read_image(mask_path), classes, mask_path)[None]
    if masks is None or label_path.exists():
        labels = clean_ids(_read_image(label_path), classes, label_path)[None]
    else:
        labels = _lowest_class(masks, classes)
    extra = read_planes(folder / "planes", name, planes)[None] if planes else None
    return Clip(name, rgb, labels, masks, extra, has_labels=masks is None or label_path.exists())


def _read_image(path: Path, flags: int = cv2.IMREAD_UNCHANGED) -> np.ndarray:
    image = cv2.imread(str(path), flags)
    if image is None:
        raise DataError(f"{path} is missing or cannot be read")
    return image


def clean_ids(ids: np.ndarray, classes: int, where: Path) -> np.ndarray:
    """uint8 ids with every unlabelled pixel at `IGNORE`; DataError for an id that is no class."""
    if ids.ndim != 2:
        raise DataError(
            f"{where}: labels must be grey, one class id a pixel, got {list(ids.shape)}"
        )
    wrong = np.unique(ids[(ids > classes) & (ids != IGNORE)])
    if wrong.size:
        raise DataError(
            f"{where}: class ids must be 0-{classes - 1}, or {classes} or 255 for unlabelled,"
            f" got {wrong.tolist()}"
        )
    return np.where(ids == classes, IGNORE, ids).astype(np.uint8)


def clean_masks(masks: np.ndarray, classes: int, where: Path) -> np.ndarray:
    """uint16 masks; DataError for another type or a bit that is no class."""
    if masks.dtype != np.uint16 or masks.ndim != 2:
        raise DataError(
            f"{where}: masks must be uint16 [H, W], got {masks.dtype} {list(masks.shape)}"
        )
    if classes > MOST_MASKS:
        raise DataError(
            f"{where}: masks hold at most {MOST_MASKS} classes, the model has {classes}"
        )
    used = int(np.bitwise_or.reduce(masks[masks != UNLABELLED_MASK], axis=None, initial=0))
    wrong = [bit for bit in range(classes, MOST_MASKS) if used >> bit & 1]
    if wrong:
        raise DataError(f"{where}: bits must be 0-{classes - 1}, one a class, got {wrong}")
    return masks


def _lowest_class(masks: np.ndarray, classes: int) -> np.ndarray:
    labels = np.full(masks.shape, IGNORE, np.uint8)
    for index in reversed(range(classes)):
        labels[(masks >> index & 1).astype(bool)] = index
    labels[masks == UNLABELLED_MASK] = IGNORE
    return labels


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
        stored = _read_image(path)
        planes = stored.astype(np.float32) / (257 if stored.dtype == np.uint16 else 1)
    planes = planes[..., None] if planes.ndim == 2 else planes
    if planes.ndim != 3 or planes.shape[2] != count:
        raise DataError(f"{path}: must be [H, W, {count}] for in_channels {count + 3},"
                        f" got {list(planes.shape)}")  # fmt: skip
    if not (planes.min() >= 0 and planes.max() <= 255):  # NaN too
        raise DataError(f"{path}: values must be 0-255, got {planes.min()} to {planes.max()}")
    return planes


def join_sequences(clips: Sequence[Clip], step: int) -> list[Clip]:
    """Stills whose names end in numbers that rise by `step` become one clip; 0 leaves all as they are."""
    if not step:
        return list(clips)
    groups: list[list[Clip]] = []
    for clip in clips:
        if groups and _follows(groups[-1][-1], clip, step):
            groups[-1].append(clip)
        else:
            groups.append([clip])
    return [_join(group) for group in groups]


def _follows(before: Clip, clip: Clip, step: int) -> bool:
    first, second = (re.fullmatch(r"(.*?)(\d+)", c.name) for c in (before, clip))
    if first is None or second is None or before.rgb.shape != clip.rgb.shape:
        return False
    return first[1] == second[1] and int(second[2]) - int(first[2]) == step


def _join(group: list[Clip]) -> Clip:
    if len(group) == 1:
        return group[0]

    def stack(what: str) -> np.ndarray | None:
        parts = [getattr(clip, what) for clip in group]
        return None if parts[0] is None else np.concatenate(parts)

    if any((clip.masks is None) != (group[0].masks is None) for clip in group):
        group = [replace(clip, masks=clip.bits()) for clip in group]
    rgb, labels = (np.concatenate([getattr(c, what) for c in group]) for what in ("rgb", "labels"))
    return Clip(f"{group[0].name}-{group[-1].name}", rgb, labels, stack("masks"), stack("planes"),
                all(clip.has_labels for clip in group))  # fmt: skip


def read_rendered(
    folder: Path, classes: int, *, wants: Callable[[str], bool] = lambda name: True
) -> list[Clip]:
    """Clips as `roadmask samples render` writes them: NAME.mp4 beside NAME_labels.mkv."""
    videos = sorted(p for p in folder.glob("*.mp4") if p.with_name(f"{p.stem}_labels.mkv").exists())
    if not videos:
        raise DataError(f"{folder} holds no NAME.mp4 with a NAME_labels.mkv beside it")
    clips = []
    for video in videos:
        if wants(video.stem):
            path = video.with_name(f"{video.stem}_labels.mkv")
            ids = np.stack(list(_frames(path, "gray")))
            clips.append(Clip(video.stem, np.stack(list(_frames(video, "rgb24"))),
                              clean_ids(ids.reshape(-1, ids.shape[-1]), classes, path)
                              .reshape(ids.shape)))  # fmt: skip
    return clips


def _frames(path: Path, pixel_format: str) -> Iterator[np.ndarray]:
    decoded = 0
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                decoded += 1
                yield frame.to_ndarray(format=pixel_format)
    except (av.FFmpegError, IndexError) as error:
        raise DataError(f"{path} cannot be decoded: {error}") from error
    if not decoded:
        raise DataError(f"{path} holds no frames")


def class_counts(clips: Iterable[Clip], classes: int) -> np.ndarray:
    """int64 [classes]: pixels of each class; of each mask where a clip has masks."""
    counts = np.zeros(classes, np.int64)
    for clip in clips:
        if clip.masks is None:
            counts += np.bincount(clip.labels.ravel(), minlength=256)[:classes]
        else:
            labelled = clip.masks[clip.masks != UNLABELLED_MASK]
            counts += [np.count_nonzero(labelled & (1 << index)) for index in range(classes)]
    return counts


def class_weights(counts: np.ndarray) -> np.ndarray:
    """float32 [classes]: inverse square root of each class's share, mean 1, at most about 4."""
    weights = 1 / np.sqrt(np.maximum(counts / counts.sum(), 1e-4))
    weights = np.minimum(weights / weights.mean(), 4.0)
    return (weights / weights.mean()).astype(np.float32)


@dataclass(frozen=True)
class TrainingData:
    """All that a training reads.

    Attributes:
        pictures, rendered: what is trained on; validation: what is only looked at.
        counts: int64 [K], pixels of each class in the pictures, without any in the rendered clips.
        sources: a line of facts for each folder.
    """

    pictures: list[Clip]
    rendered: list[Clip]
    validation: list[Clip]
    counts: np.ndarray
    sources: list[dict[str, str | int]]

    @classmethod
    def read(cls, config: TrainConfig) -> TrainingData:
        """Raises DataError for data that is wrong, missing, or lacks a class."""
        classes, sources = len(config.classes), []
        pictures: list[Clip] = []
        rendered: list[Clip] = []
        for source in config.train_on:
            clips = read_source(source, classes, in_channels=config.in_channels)
            (pictures if (source.folder / "images").is_dir() else rendered).extend(clips)
            sources.append(_facts(source, clips))
        validation = []
        for source in config.validate_on:
            validation += read_source(source, classes, in_channels=config.in_channels)
        if any(phase.rendered_share for phase in config.phases) and not rendered:
            raise DataError(
                "rendered_share is over 0, but train_on has no folder of rendered clips"
            )
        if config.head == "softmax" and not all(c.has_labels for c in (*pictures, *validation)):
            raise DataError(
                "a softmax head needs labels/, one class a pixel: there are only masks/"
            )
        if not config.allow_empty_classes:
            _check_none_empty([*pictures, *rendered], config.classes)
        counts = class_counts(pictures or rendered, classes)
        return cls(pictures, rendered, validation, counts, sources)

    def rare(self, config: TrainConfig) -> list[int]:
        """Ids of the classes to look for, given or found by their share."""
        if config.sampling.rare is not None:
            return [config.classes.index(name) for name in config.sampling.rare]
        shares = self.counts / self.counts.sum()
        return np.flatnonzero((shares > 0) & (shares < config.sampling.rare_below)).tolist()


def _facts(source: Source, clips: Sequence[Clip]) -> dict[str, str | int]:
    frames = sum(len(clip.labels) for clip in clips)
    facts: dict[str, str | int] = {
        "folder": str(source.folder),
        "clips": len(clips),
        "frames": frames,
    }
    for key in ("include", "exclude"):
        if getattr(source, key):
            facts[key] = getattr(source, key)
    return facts


def _check_none_empty(clips: Sequence[Clip], names: Sequence[str]) -> None:
    counts = class_counts(clips, len(names))
    empty = [name for name, count in zip(names, counts, strict=True) if not count]
    if empty:
        raise DataError(
            f"no pixel of the training data is {', '.join(empty)}: a class that never occurs cannot be"
            " learned; leave it out of classes, or set allow_empty_classes"
        )
