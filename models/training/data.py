"""What a training reads, all of it into memory as uint8: clips, and what classes they hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from models.errors import DataError
from models.footage import LabelledFrame, Stream, is_of_pictures, open_streams
from models.labels import holds, masks_of
from models.training.config import Source, TrainConfig


@dataclass(frozen=True)
class Clip:
    """Labelled frames that follow each other; a still is a clip of one.

    Attributes:
        name: for messages.
        rgb: uint8 [T, H, W, 3].
        labels: uint8 [T, H, W], `NO_CLASS` where unlabelled.
        masks: uint16 [T, H, W], bit k = class k holds, `UNLABELLED_MASK` where unlabelled; or None.
        planes: float32 [T, H, W, P], further channels, 0-255; or None.
        files: what its frames were read from.
    """

    name: str
    rgb: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None
    planes: np.ndarray | None = None
    files: tuple[Path, ...] = ()

    @classmethod
    def of(cls, frames: Sequence[LabelledFrame], files: tuple[Path, ...]) -> Clip:
        """Frames of one size. If some have masks, those of the others are their labels'."""
        first, last = frames[0], frames[-1]
        several = any(frame.masks is not None for frame in frames)
        planes = [frame.planes for frame in frames if frame.planes is not None]
        return cls(
            first.name if first is last else f"{first.name}-{last.name}",
            np.stack([frame.rgb for frame in frames]),
            np.stack([frame.labels for frame in frames]),
            np.stack([frame.truth(True) for frame in frames]) if several else None,
            np.stack(planes) if planes else None,
            files,
        )

    def bits(self, frame: int) -> np.ndarray:
        """Masks [H, W] of a frame as they are, or those of its labels: one class a pixel."""
        return masks_of(self.labels[frame]) if self.masks is None else self.masks[frame]

    def truth(self) -> np.ndarray:
        """Masks where there are any, else labels: all that is known."""
        return self.labels if self.masks is None else self.masks


def read_source(
    source: Source, classes: int, *, in_channels: int = 3, masks: bool = False
) -> list[Clip]:
    """All clips of a data folder that its filters let in.

    Args:
        masks: several classes may hold in a pixel.

    Raises DataError if there are none, or one of them is wrong.
    """
    streams = open_streams(
        source.folder, classes, in_channels=in_channels, masks=masks, names=source.names,
        sequence_step=source.sequence_step,
    )  # fmt: skip
    return [clip for stream in streams for clip in _load(stream)]


def _load(stream: Stream) -> Iterator[Clip]:
    """A stream in memory, as clips of one size each."""
    numbered = enumerate(stream.frames())
    for _, group in groupby(numbered, key=lambda item: item[1].rgb.shape):
        numbers, frames = zip(*group, strict=True)
        files = stream.files()
        yield Clip.of(frames, files[numbers[0] : numbers[-1] + 1] or files)


def class_counts(clips: Iterable[Clip], classes: int) -> np.ndarray:
    """int64 [classes]: pixels of each class; of each mask where a clip has masks."""
    counts = np.zeros(classes, np.int64)
    for clip in clips:
        if clip.masks is None:
            counts += np.bincount(clip.labels.ravel(), minlength=256)[:classes]
        else:
            counts += [np.count_nonzero(holds(clip.masks, index)) for index in range(classes)]
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
        sources = []
        pictures: list[Clip] = []
        rendered: list[Clip] = []
        for source in config.train_on:
            clips = _read(source, config)
            (pictures if is_of_pictures(source.folder) else rendered).extend(clips)
            sources.append(_facts(source, clips))
        validation = [clip for source in config.validate_on for clip in _read(source, config)]
        if any(phase.rendered_share for phase in config.phases) and not rendered:
            raise DataError(
                "rendered_share is over 0, but train_on has no folder of rendered clips"
            )
        if not config.allow_empty_classes:
            _check_none_empty([*pictures, *rendered], config.classes)
        counts = class_counts(pictures or rendered, len(config.classes))
        return cls(pictures, rendered, validation, counts, sources)

    def seen_twice(self) -> bool:
        """Whether a file that is validated on is trained on too."""
        trained, validated = (
            {file.resolve() for clip in clips for file in clip.files}
            for clips in ([*self.pictures, *self.rendered], self.validation)
        )
        return not trained.isdisjoint(validated)

    def rare(self, config: TrainConfig) -> list[int]:
        """Ids of the classes to look for, given or found by their share."""
        if config.sampling.rare is not None:
            return [config.classes.index(name) for name in config.sampling.rare]
        shares = self.counts / self.counts.sum()
        return np.flatnonzero((shares > 0) & (shares < config.sampling.rare_below)).tolist()


def _read(source: Source, config: TrainConfig) -> list[Clip]:
    several = config.head == "sigmoid"
    return read_source(source, len(config.classes), in_channels=config.in_channels, masks=several)


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
