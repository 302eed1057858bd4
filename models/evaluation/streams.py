"""What an evaluation runs over: the streams of a folder that suit a network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from models.footage import EVERY_NAME, NameFilter, StillStream, Stream, open_streams
from models.spec import Spec


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

    def steps(self) -> dict[int, tuple[int, int]]:
        """Pictures that were taken to follow each other: by how much their numbers rise, and of each such
        step how many streams and frames there are."""
        found: dict[int, tuple[int, int]] = {}
        for stream in self.streams:
            if isinstance(stream, StillStream) and stream.step:
                streams, frames = found.get(stream.step, (0, 0))
                found[stream.step] = streams + 1, frames + len(stream)
        return dict(sorted(found.items()))


def open_data_set(
    folder: Path, spec: Spec, names: NameFilter = EVERY_NAME, sequence_step: int | None = None
) -> DataSet:
    """The streams of a folder for a network; `names` and `sequence_step` as `open_streams` has them.

    A network with a mask a class is measured on masks/ if there are any, else on labels/.

    Raises DataError as `open_streams` does.
    """
    several = spec.head == "sigmoid"
    streams = open_streams(
        folder, len(spec.classes), in_channels=spec.in_channels, masks=several, names=names,
        sequence_step=sequence_step,
    )  # fmt: skip
    pictures = any(isinstance(stream, StillStream) for stream in streams)
    return DataSet(folder, streams, several and pictures and (folder / "masks").is_dir())
