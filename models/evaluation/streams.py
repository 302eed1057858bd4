"""Labelled footage as streams, read one frame at a time: what evaluation runs over.

A data set is a folder of stills or of rendered clips, as `models.training.data` describes them. Each clip is
a stream. Stills are cut into streams by their names: one prefix and a number that grows by equal steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np

from models.errors import DataError
from models.spec import Spec
from models.training.data import clean_ids, clean_masks, mask_bits, read_planes


@dataclass(frozen=True)
class LabelledFrame:
    """A picture and what it shows.

    Attributes:
        name: for messages and the report.
        rgb: uint8 [H, W, 3].
        planes: float32 [H, W, C - 3], further channels of a network that wants them.
        truth: uint8 [H, W] class ids, 255 where unlabelled; or uint16 [H, W], bit k for class k and
            65535 where unlabelled.
    """

    name: str
    rgb: np.ndarray
    planes: np.ndarray | None
    truth: np.ndarray

    def __post_init__(self) -> None:
        for what, array in (("labels", self.truth), ("planes", self.planes)):
            if array is not None and array.shape[:2] != self.rgb.shape[:2]:
                raise DataError(
                    f"{self.name}: {what} are {list(array.shape[:2])}, the picture"
                    f" {list(self.rgb.shape[:2])}: they must have the same size"
                )


@dataclass(frozen=True)
class StillStream:
    """Stills that follow each other.

    Attributes:
        name: of its first picture, without the suffix.
        pictures: in order.
        step: by how much the number in the name grows; 0 for a single still.
    """

    name: str
    pictures: tuple[Path, ...]
    step: int
    spec: Spec
    multi_label: bool

    def __len__(self) -> int:
        return len(self.pictures)

    def frames(self) -> Iterator[LabelledFrame]:
        """Raises DataError for a frame that cannot be read, or whose parts do not fit each other."""
        further = self.spec.in_channels - 3
        for path in self.pictures:
            rgb = np.ascontiguousarray(_read_image(path, cv2.IMREAD_COLOR)[..., ::-1])
            planes = None
            if further:
                planes = read_planes(path.parent.with_name("planes"), path.stem, further)
            truth = _read_truth(path, len(self.spec.classes), self.multi_label)
            yield LabelledFrame(path.stem, rgb, planes, truth)


@dataclass(frozen=True)
class ClipStream:
    """A video and its label video, frame by frame."""

    name: str
    video: Path
    labels: Path
    length: int
    classes: int
    step: int = 1

    def __len__(self) -> int:
        return self.length

    def frames(self) -> Iterator[LabelledFrame]:
        pairs = zip(_decode(self.video, "rgb24"), _decode(self.labels, "gray"), strict=True)
        try:
            for number, (rgb, ids) in enumerate(pairs):
                truth = clean_ids(ids, self.classes, self.labels)
                yield LabelledFrame(f"{self.name}:{number:04d}", rgb, None, truth)
        except ValueError as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{self.video} and {self.labels} differ in length") from error


Stream = StillStream | ClipStream


@dataclass(frozen=True)
class DataSet:
    """Streams to evaluate on. `multi_label`: the truth is masks, of which several may hold."""

    folder: Path
    streams: tuple[Stream, ...]
    multi_label: bool

    @property
    def frames(self) -> int:
        return sum(len(stream) for stream in self.streams)

    @property
    def longest(self) -> int:
        """Frames of the longest stream."""
        return max(len(stream) for stream in self.streams)


def open_data_set(folder: Path, spec: Spec) -> DataSet:
    """The streams of a folder. Pictures are read later, one at a time.

    Raises DataError if there is nothing to evaluate on, a picture has no labels, a video and its labels
    differ in length, or the network cannot be evaluated on such data.
    """
    if not folder.is_dir():
        raise DataError(f"there is no data set folder {folder}")
    pictures = [p for p in (folder / "images").glob("*") if p.suffix in (".jpg", ".png")]
    if pictures:
        return _open_stills(folder, pictures, spec)
    videos = [p for p in sorted(folder.glob("*.mp4")) if _labels_of(p).exists()]
    if not videos:
        raise DataError(_nothing_in(folder))
    if spec.in_channels > 3:
        raise DataError(
            f"the network wants {spec.in_channels} channels, but clips have 3: give stills with planes/"
        )
    return DataSet(folder, tuple(_open_clip(p, len(spec.classes)) for p in videos), False)


def _nothing_in(folder: Path) -> str:
    inside = sorted(p.parent.name for p in folder.glob("*/images") if p.is_dir())
    hint = f"; give one of its parts: {', '.join(inside)}" if inside else ""
    return (
        f"{folder} is no data set: it holds neither images/*.jpg or *.png nor NAME.mp4 with"
        f" NAME_labels.mkv{hint}"
    )


def _open_stills(folder: Path, pictures: list[Path], spec: Spec) -> DataSet:
    multi_label = spec.head == "sigmoid" and (folder / "masks").is_dir()
    if not multi_label and not (folder / "labels").is_dir():
        wanted = "labels/ or masks/" if spec.head == "sigmoid" else "labels/, one class a pixel"
        raise DataError(f"{folder} lacks {wanted}: a network with a {spec.head} head needs it")
    for picture in pictures:
        truth = _truth_of(picture, multi_label)
        if not truth.is_file():
            raise DataError(f"{truth} is missing: {picture.name} has no labels")
    pictures.sort(key=lambda path: (*_prefix_and_number(path.stem), path.stem))
    streams = []
    for part in cut_into_streams([path.stem for path in pictures]):
        files = tuple(pictures[part.start : part.stop])
        step = _step(files[0].stem, files[1].stem) if len(files) > 1 else None
        streams.append(StillStream(files[0].stem, files, step or 0, spec, multi_label))
    return DataSet(folder, tuple(streams), multi_label)


def cut_into_streams(names: Sequence[str]) -> list[range]:
    """Where streams lie in a sorted list of names: same prefix, numbers that grow by equal steps.

    A name that could begin a stream by a smaller step does not join one by a larger: 1, 31, 32, 33 is one
    still and a stream of three.
    """
    steps = [_step(*pair) for pair in pairwise(names)]
    parts, start, step = [], 0, None
    for at, gap in enumerate(steps):  # the gap between names `at` and `at + 1`
        following = steps[at + 1] if at + 1 < len(steps) else None
        joins = gap == step if at > start else following is None or gap is None or gap <= following
        if gap is None or not joins:
            parts.append(range(start, at + 1))
            start, step = at + 1, None
        else:
            step = gap
    return [*parts, range(start, len(names))] if names else []


def _prefix_and_number(name: str) -> tuple[str, int]:
    match = re.fullmatch(r"(.*?)(\d+)", name)
    return (match[1], int(match[2])) if match else (name, -1)


def _step(name: str, following: str) -> int | None:
    """How far two names lie apart, None if they cannot be of one stream."""
    (prefix, number), (next_prefix, next_number) = map(_prefix_and_number, (name, following))
    if prefix != next_prefix or number < 0 or next_number <= number:
        return None
    return next_number - number


def _open_clip(video: Path, classes: int) -> ClipStream:
    labels = _labels_of(video)
    length, labelled = _count_frames(video), _count_frames(labels)
    if length != labelled:
        raise DataError(f"{video} has {length} frames, {labels.name} {labelled}")
    return ClipStream(video.stem, video, labels, length, classes)


def _labels_of(video: Path) -> Path:
    return video.with_name(f"{video.stem}_labels.mkv")


def _count_frames(path: Path) -> int:
    """Counted packet by packet: what containers say of their length is not always so."""
    try:
        with av.open(str(path)) as container:
            return sum(packet.size > 0 for packet in container.demux(video=0))
    except (av.FFmpegError, IndexError) as error:
        raise DataError(f"{path} cannot be read as video: {error}") from error


def _decode(path: Path, pixel_format: str) -> Iterator[np.ndarray]:
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format=pixel_format)
    except av.FFmpegError as error:
        raise DataError(f"{path} cannot be read as video: {error}") from error


def _truth_of(picture: Path, multi_label: bool) -> Path:
    """Masks where they are wanted and there, else labels."""
    masks = picture.parent.with_name("masks") / f"{picture.stem}.png"
    if multi_label and masks.is_file():
        return masks
    return picture.parent.with_name("labels") / f"{picture.stem}.png"


def _read_image(path: Path, flags: int) -> np.ndarray:
    image = cv2.imread(str(path), flags)
    if image is None:
        raise DataError(f"{path} is missing or cannot be read")
    return image


def _read_truth(picture: Path, classes: int, multi_label: bool) -> np.ndarray:
    path = _truth_of(picture, multi_label)
    if path.parent.name == "masks":
        return clean_masks(_read_image(path, cv2.IMREAD_UNCHANGED), classes, path)
    ids = clean_ids(_read_image(path, cv2.IMREAD_UNCHANGED), classes, path)
    return mask_bits(ids) if multi_label else ids
