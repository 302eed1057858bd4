"""`roadmask compile`: builds an engine, reads it back, and checks it; makes a model's INT8 form before,
where footage is given to calibrate with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from time import perf_counter

import numpy as np

from models.errors import QuantizationError
from models.export import ensure_quantizer, quantize
from models.spec import ModelFiles, Spec, SpecError
from pipeline.decode import Decoder
from pipeline.engines import EngineChoice, check_fit, choose_engine, engine_factory
from pipeline.errors import ConfigError, ModelError, OutputError
from pipeline.frames import FrameBatch
from pipeline.run import check_size, model_files
from pipeline.sources import Source, expand

WIDESCREEN_HW = (720, 1280)  # footage is mostly of this shape
RUN_FRAMES = 8  # to calibrate with, in a row
Say = Callable[[str], None]


def compile_engine(
    model: str,
    engine: str,
    precision: str,
    streams: int,
    size_hw: tuple[int, int] | None,
    say: Say,
    calibrate: tuple[str, ...] = (),
    frames: int = 200,
) -> Path:
    """Build an engine for 1 to `streams` streams, read it back, check it, and say how it does.

    Args:
        size_hw: input size; None for what the model says of the footage to calibrate with, or else of
            widescreen footage.
        say: takes the findings, a line each.
        calibrate: footage for a TensorRT engine in INT8 or FP8: files, folders, globs.
        frames: how many of its frames to calibrate with, evenly spread.

    Returns the engine's file.

    Raises ModelError, EngineError where it cannot be built, or is not right, or what reading footage raises.
    """
    check_size(size_hw)
    files, spec = model_files(model)
    choice = choose_engine(engine, precision)
    check_fit(choice, files)
    footage: list[np.ndarray] = []
    if calibrate:
        from models.quantization import ensure_modelopt

        try:
            ensure_modelopt()  # before footage is decoded for nothing
        except QuantizationError as error:
            raise ConfigError(str(error)) from error
        footage, size_hw, _ = read_footage(calibrate, frames, size_hw, spec)
    size_hw = size_hw or spec.model_hw(WIDESCREEN_HW)
    say(f"engine {choice.name} ({choice.runtime}): {choice.reason}")
    from pipeline.engines.build import build

    began = perf_counter()
    built = build(choice, files, size_hw, streams, footage)
    seconds = perf_counter() - began
    share = built.converted / built.operators
    say(f"operators {built.converted} of {built.operators} ({share:.1%})")
    say(f"built in {seconds:.1f} s, {built.size_bytes / 1e6:.1f} MB, {size_hw[0]}x{size_hw[1]}")
    try:
        _check(choice, files, spec, size_hw, streams, say)
    except BaseException:
        built.forget()  # else `run` would take it
        raise
    return built.path


def _check(
    choice: EngineChoice, files: ModelFiles, spec: Spec, size_hw: tuple[int, int], streams: int,
    say: Say,
) -> None:  # fmt: skip
    """Read an engine back and hold it against float32. Raises EngineError if it is not right."""
    from pipeline.engines.check import TOLERANCES, check, ensure, latencies_ms
    from pipeline.engines.cuda import GraphEngine, bucket_sizes
    from pipeline.engines.eager import EagerEngine

    engine = engine_factory(choice, files, spec, max(2, streams))(size_hw)
    where = engine.device.torch_device.type if isinstance(engine, GraphEngine) else "cpu"
    plain = EngineChoice(where, "torch float32", "to check with", choice.threads)
    findings = check(engine, EagerEngine(plain, files, size_hw, 2), size_hw)
    tolerance = TOLERANCES[choice.precision]
    say(
        f"against float32: labels differ on {findings.labels:.2%} (at most {tolerance.labels:.2%}),"
        f" states by {findings.state:.5f} (at most {tolerance.state})"
    )
    say(
        f"the same frames again: labels differ on {findings.repeated:.2%}; frames of another seed:"
        f" {findings.other_seed:.2%}, states by {findings.other_seed_state:.3f}"
    )
    ensure(findings, choice.precision)
    sizes = bucket_sizes(streams) if engine.batches else [1]
    times = latencies_ms(engine, size_hw, sizes)
    say("latency, ms a step of 1 frame: " + ", ".join(f"{n}: {ms:.2f}" for n, ms in times.items()))


def make_int8(
    model: str, sources: tuple[str, ...], frames: int, size_hw: tuple[int, int] | None = None
) -> Path:
    """Make a model's INT8 form from footage; returns the file beside its weights.

    Args:
        sources: files, folders, globs; their frames follow each other, thinned to `frames` as `thinned` does.
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
    footage, _, names = read_footage(sources, frames, size_hw, spec)
    try:
        return quantize(files, footage, names)
    except QuantizationError as error:
        raise ConfigError(str(error)) from error
    except SpecError as error:
        raise ModelError(str(error)) from error


def read_footage(
    sources: tuple[str, ...], frames: int, size_hw: tuple[int, int] | None, spec: Spec
) -> tuple[list[np.ndarray], tuple[int, int], str]:
    """Frames to calibrate with, uint8 [h * 3 // 2, w], I420; their height and width, and what they are.

    Raises what reading a source raises.
    """
    expansion = expand(sources)
    for _, failure in expansion.failures:
        raise failure
    if size_hw is None:
        size_hw = spec.model_hw(_first_size(expansion.sources[0]))
    names = ", ".join("/".join(Path(given).parts[-3:]) for given in sources)
    return thinned(_pixels(expansion.sources, size_hw), frames), size_hw, names


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
    """`count` of the frames (all if there are fewer), in runs evenly spread; holds twice as many at most.

    In a run frames follow each other as they were filmed: a memory must be calibrated with motion as it is.
    """
    length = min(RUN_FRAMES, max(1, count // 8))  # few frames tell more apart
    most = -(-count // length)
    kept: list[list[np.ndarray]] = []
    step = 1
    for number, run in enumerate(iter(lambda: list(islice(frames, length)), [])):
        if number % step == 0:
            kept.append([frame.copy() for frame in run])  # not the whole batch that it is a part of
        if len(kept) == 2 * most:
            kept, step = kept[::2], 2 * step
    if len(kept) > most:
        kept = [kept[number * len(kept) // most] for number in range(most)]
    return [frame for run in kept for frame in run][:count]
