"""Labelled footage as streams, read one frame at a time: training loads them, evaluation runs over them.

FOLDER/images/NAME.jpg|png     RGB
FOLDER/labels/NAME.png         class ids; 255, or the number of classes, where unlabelled
FOLDER/masks/NAME.png          instead, for several classes a pixel: uint16, bit k = class k holds there;
                               65535 where unlabelled
FOLDER/planes/NAME.png|npy     further channels (depth, thermal), see `models.pictures.read_planes`
FOLDER/NAME.mp4, NAME_labels.mkv   a rendered clip and its class ids

Each clip is a stream. Pictures are cut into streams by their names: a prefix and a number that rises.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from models.errors import DataError
from models.labels import clean_ids, clean_masks, lowest_class, masks_of
from models.pictures import count_frames, decode, read_ids, read_planes, read_rgb


@dataclass(frozen=True)
class LabelledFrame:
    """A picture and what it shows.

    Attributes:
        name: for messages and the report.
        rgb: uint8 [H, W, 3].
        planes: float32 [H, W, C - 3], further channels of a network that wants them; or None.
        labels: uint8 [H, W], class ids; of a picture that has masks alone the lowest class that holds.
        masks: uint16 [H, W], bit k for class k, if the picture has them.
    """

    name: str
    rgb: np.ndarray
    planes: np.ndarray | None
    labels: np.ndarray
    masks: np.ndarray | None = None

    def __post_init__(self) -> None:
        for what in ("labels", "masks", "planes"):
            array = getattr(self, what)
            if array is not None and array.shape[:2] != self.rgb.shape[:2]:
                raise DataError(
                    f"{self.name}: {what} are {list(array.shape[:2])}, the picture"
                    f" {list(self.rgb.shape[:2])}: they must have the same size"
                )

    def truth(self, multi_label: bool) -> np.ndarray:
        """Labels; or with `multi_label` masks, which of a picture without any are those of its labels."""
        if not multi_label:
            return self.labels
        return masks_of(self.labels) if self.masks is None else self.masks


@dataclass(frozen=True)
class NameFilter:
    """Which pictures or clips of a folder are taken: regular expressions found anywhere in the name.

    Raises DataError for what is no regular expression.
    """

    include: str | None = None
    exclude: str | None = None

    def __post_init__(self) -> None:
        for pattern in (self.include, self.exclude):
            try:
                re.compile(pattern or "")
            except re.error as error:
                raise DataError(f"{pattern!r} is no regular expression: {error}") from error

    def wants(self, name: str) -> bool:
        included = self.include is None or re.search(self.include, name) is not None
        return included and not (self.exclude and re.search(self.exclude, name))

    def __str__(self) -> str:
        return f"include {self.include!r}, exclude {self.exclude!r}"


EVERY_NAME = NameFilter()


@dataclass(frozen=True)
class StillStream:
    """Pictures that follow each other.

    Attributes:
        name: of its first picture, without the suffix.
        pictures: in order.
        step: by how much the number in the name rises; 0 for a single still.
        classes, in_channels: of the network.
        masks: several classes may hold in a pixel; without, only labels are read.
    """

    name: str
    pictures: tuple[Path, ...]
    step: int
    classes: int
    in_channels: int = 3
    masks: bool = False

    def __len__(self) -> int:
        return len(self.pictures)

    def files(self) -> tuple[Path, ...]:
        """What tells this footage from other footage."""
        return self.pictures

    def frames(self) -> Iterator[LabelledFrame]:
        """Raises DataError for a frame that cannot be read, or whose parts do not fit each other."""
        for path in self.pictures:
            yield self._read(path)

    def _read(self, path: Path) -> LabelledFrame:
        masks = labels = planes = None
        of_masks, of_labels = _beside(path, "masks"), _beside(path, "labels")
        if self.masks and of_masks.is_file():
            masks = clean_masks(read_ids(of_masks), self.classes, of_masks)
        if masks is None or of_labels.is_file():
            labels = clean_ids(read_ids(of_labels), self.classes, of_labels)
        else:
            labels = lowest_class(masks, self.classes)
        if self.in_channels > 3:
            planes = read_planes(path.parent.with_name("planes"), path.stem, self.in_channels - 3)
        return LabelledFrame(path.stem, read_rgb(path), planes, labels, masks)


@dataclass(frozen=True)
class ClipStream:
    """A video and its label video."""

    name: str
    video: Path
    labels: Path
    length: int
    classes: int
    step: int = 1

    def __len__(self) -> int:
        return self.length

    def files(self) -> tuple[Path, ...]:
        """What tells this footage from other footage."""
        return (self.video,)

    def frames(self) -> Iterator[LabelledFrame]:
        """Raises DataError for a video that cannot be read, or ids that are no classes."""
        pairs = zip(decode(self.video, "rgb24"), decode(self.labels, "gray"), strict=True)
        try:
            for number, (rgb, ids) in enumerate(pairs):
                labels = clean_ids(ids, self.classes, self.labels)
                yield LabelledFrame(f"{self.name}:{number:04d}", rgb, None, labels)
        except ValueError as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{self.video} and {self.labels} differ in length") from error


Stream = StillStream | ClipStream


def open_streams(
    folder: Path,
    classes: int,
    *,
    in_channels: int = 3,
    masks: bool = False,
    names: NameFilter = EVERY_NAME,
    sequence_step: int | None = 0,
) -> tuple[Stream, ...]:
    """The streams of a folder. Its pictures are read later, one at a time.

    Args:
        classes, in_channels: of the network.
        masks: several classes may hold in a pixel; without, only labels are read.
        names: which pictures or clips to take.
        sequence_step: pictures follow each other if their numbers rise by this; 0: each is a stream by
            itself; None: they do where the numbers rise by equal steps, whatever these are.

    Raises DataError if there is nothing, a picture has no labels, or a video and its labels differ in length.
    """
    if not folder.is_dir():
        raise DataError(f"there is no data set folder {folder}")
    if is_of_pictures(folder):
        pictures = [p for p in picture_files(folder) if names.wants(p.stem)]
        for picture in pictures:
            _expect_labels(picture, masks)
        parts = cut_into_streams([path.stem for path in pictures], sequence_step)
        found: list[Stream] = [
            _stills(tuple(pictures[part.start : part.stop]), classes, in_channels, masks)
            for part in parts
        ]
    else:
        found = _open_clips(folder, classes, in_channels, names)
    if not found:
        raise DataError(f"no name in {folder} passes {names}")
    return tuple(found)


def is_of_pictures(folder: Path) -> bool:
    """Whether it holds pictures, and not rendered clips. Raises DataError if it holds neither."""
    if picture_files(folder):
        return True
    if _clip_files(folder):
        return False
    inside = sorted(p.parent.name for p in folder.glob("*/images") if p.is_dir())
    hint = f"; give one of its parts: {', '.join(inside)}" if inside else ""
    raise DataError(
        f"{folder} is no data set: it holds neither images/*.jpg or *.png nor NAME.mp4 with"
        f" NAME_labels.mkv{hint}"
    )


def picture_files(folder: Path) -> list[Path]:
    """A data set's pictures by prefix and number: frame 9 comes before frame 10."""
    found = [p for p in (folder / "images").glob("*") if p.suffix in (".jpg", ".png")]
    return sorted(found, key=lambda path: (*_prefix_and_number(path.stem), path.stem))


def cut_into_streams(names: Sequence[str], step: int | None = None) -> list[range]:
    """Where streams lie in a sorted list of names: one prefix, numbers that rise by `step`.

    Step 0 makes each name a stream. None takes any equal steps; a name that could begin a stream by a
    smaller step does not join one by a larger then: 1, 31, 32, 33 is one still and a stream of three.
    """
    gaps = [_gap(*pair) for pair in pairwise(names)]
    if step is not None:
        cuts = [at + 1 for at, gap in enumerate(gaps) if gap != step or not step]
        return [range(*ends) for ends in pairwise([0, *cuts, len(names)])] if names else []
    parts, start, last = [], 0, None
    for at, gap in enumerate(gaps):  # the gap between names `at` and `at + 1`
        following = gaps[at + 1] if at + 1 < len(gaps) else None
        joins = gap == last if at > start else following is None or gap is None or gap <= following
        if gap is None or not joins:
            parts.append(range(start, at + 1))
            start, last = at + 1, None
        else:
            last = gap
    return [*parts, range(start, len(names))] if names else []


def _prefix_and_number(name: str) -> tuple[str, int]:
    match = re.fullmatch(r"(.*?)(\d+)", name)
    return (match[1], int(match[2])) if match else (name, -1)


def _gap(name: str, following: str) -> int | None:
    """How far two names lie apart, None if they cannot be of one stream."""
    (prefix, number), (next_prefix, next_number) = map(_prefix_and_number, (name, following))
    if prefix != next_prefix or number < 0 or next_number <= number:
        return None
    return next_number - number


def _stills(files: tuple[Path, ...], classes: int, in_channels: int, masks: bool) -> StillStream:
    step = _gap(files[0].stem, files[1].stem) if len(files) > 1 else None
    return StillStream(files[0].stem, files, step or 0, classes, in_channels, masks)


def _expect_labels(picture: Path, masks: bool) -> None:
    labels = _beside(picture, "labels")
    if labels.is_file() or (masks and _beside(picture, "masks").is_file()):
        return
    wanted = (
        "a sigmoid head needs labels/ or masks/"
        if masks
        else "a softmax head needs labels/, one class a pixel"
    )
    raise DataError(f"{labels} is missing: {wanted}")


def _beside(picture: Path, kind: str) -> Path:
    return picture.parent.with_name(kind) / f"{picture.stem}.png"


def _open_clips(folder: Path, classes: int, in_channels: int, names: NameFilter) -> list[Stream]:
    if in_channels > 3:
        raise DataError(
            f"{folder}: rendered clips have 3 channels, the network wants {in_channels}: give stills"
            " with planes/"
        )
    return [_open_clip(path, classes) for path in _clip_files(folder) if names.wants(path.stem)]


def _clip_files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.mp4")) if _labels_of(path).exists()]


def _open_clip(video: Path, classes: int) -> ClipStream:
    labels = _labels_of(video)
    length, labelled = count_frames(video), count_frames(labels)
    if length != labelled:
        raise DataError(f"{video} has {length} frames, {labels.name} {labelled}")
    if not length:
        raise DataError(f"{video} holds no frames")
    return ClipStream(video.stem, video, labels, length, classes)


def _labels_of(video: Path) -> Path:
    return video.with_name(f"{video.stem}_labels.mkv")
