"""`roadmask compile`: forms of a model that are made once, by whoever ships it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from models.export import QuantizationError, ensure_quantizer, quantize
from models.spec import SpecError
from pipeline.decode import Decoder
from pipeline.errors import ConfigError, ModelError, OutputError
from pipeline.frames import FrameBatch
from pipeline.run import check_size, model_files
from pipeline.sources import Source, expand


def make_int8(
    model: str, sources: tuple[str, ...], frames: int, size_hw: tuple[int, int] | None = None
) -> Path:
    """Make a model's INT8 form from footage; returns the file beside its weights.

    Args:
        sources: files, folders, globs; their frames follow each other, thinned evenly to `frames`.
        size_hw: input size to calibrate at; None for what the model says of the first source.

    Raises ModelError, ConfigError (nothing to make it with) or what reading a source raises.
    """
    check_size(size_hw)
    files, spec = model_files(model)
    try:
        ensure_quantizer(files)  # before footage is decoded for nothing
    except QuantizationError as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise OutputError(f"cannot write to {files.folder}: {error.strerror or error}") from error
    expansion = expand(sources)
    for _, failure in expansion.failures:
        raise failure
    if size_hw is None:
        size_hw = spec.model_hw(_first_size(expansion.sources[0]))
    names = ", ".join("/".join(Path(given).parts[-3:]) for given in sources)
    try:
        return quantize(files, thinned(_pixels(expansion.sources, size_hw), frames), names)
    except QuantizationError as error:
        raise ConfigError(str(error)) from error
    except SpecError as error:
        raise ModelError(str(error)) from error


def _first_size(source: Source) -> tuple[int, int]:
    """The size of a source's first frame, as it is shown."""
    with Decoder(source, model_hw=lambda _: (32, 32), chunk=1) as decoder:
        return next(item.stream.size_hw for item in decoder if isinstance(item, FrameBatch))


def _pixels(sources: tuple[Source, ...], size_hw: tuple[int, int]) -> Iterator[np.ndarray]:
    for source in sources:
        with Decoder(source, model_hw=lambda _: size_hw, chunk=8) as decoder:
            for item in decoder:
                if isinstance(item, FrameBatch):
                    yield from item.pixels


def thinned(frames: Iterator[np.ndarray], count: int) -> list[np.ndarray]:
    """`count` of the frames (all if there are fewer), evenly spread; never holds more than twice as many."""
    kept: list[np.ndarray] = []
    step = 1
    for number, frame in enumerate(frames):
        if number % step == 0:
            kept.append(frame.copy())  # not the whole batch that it is a part of
        if len(kept) == 2 * count:
            kept, step = kept[::2], 2 * step
    if len(kept) <= count:
        return kept
    return [kept[number * len(kept) // count] for number in range(count)]
