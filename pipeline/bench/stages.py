"""What each stage costs: one after the other, and each alone, from which follows how fast all can be."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from models.spec import find_model
from pipeline.bench.measure import WARM_UP_FRAMES, Cost
from pipeline.engines import engine_factory
from pipeline.errors import ConfigError
from pipeline.frames import EndOfStream, FrameBatch, FrameItem, LabelBatch, LabelItem, StreamInfo
from pipeline.palette import Palette
from pipeline.run import Plan
from pipeline.settings import available_cores
from pipeline.stages import Progress, SourceReport, drain, make_decoder, make_segmenter
from pipeline.writers import resize_labels

MOST_KEPT_FRAMES = 240  # in memory, at the network's size


def stage_shares(plan: Plan) -> dict[str, dict[str, float]]:
    """Milliseconds a frame and share of each stage, the stages run one after the other."""
    seconds = {"decode": 0.0, "segment": 0.0, "write": 0.0}
    steady = False

    def timed(items: Iterator[Any], stage: str, before: str | None) -> Iterator[Any]:
        # What the stage before took is inside this one's time: take it off again.
        while True:
            began, earlier = time.perf_counter(), seconds[before] if before else 0.0
            item = next(items, None)
            if steady:
                inner = seconds[before] - earlier if before else 0.0
                seconds[stage] += time.perf_counter() - began - inner
            if item is None:
                return
            yield item

    job, source = plan.job, plan.sources[0]
    counted, began, total = 0, 0.0, 0.0
    beside = plan.placement.name != "spread"
    with make_decoder(job, source, with_network=beside) as decoder:
        frames: Iterator[FrameItem] = timed(iter(decoder), "decode", None)
        labels = timed(iter(make_segmenter(job).labels(frames)), "segment", "decode")
        for event in drain(job, source, _until_end(labels)):
            if isinstance(event, Progress) and not steady and event.frames > WARM_UP_FRAMES:
                steady, counted, began = True, event.frames, time.perf_counter()
            elif isinstance(event, SourceReport):
                total = time.perf_counter() - began
                counted = event.frames - counted
    if not steady or counted < 1:
        raise ConfigError(
            f"the clip is too short: give one of at least {2 * WARM_UP_FRAMES} frames"
        )
    seconds["write"] = total - seconds["decode"] - seconds["segment"]
    return {
        stage: {"ms": round(1e3 * spent / counted, 2), "share": round(spent / total, 3)}
        for stage, spent in seconds.items()
    }


def _until_end(items: Iterator[LabelItem]) -> Iterator[LabelItem]:
    for item in items:
        yield item
        if isinstance(item, EndOfStream):
            return


@dataclass(frozen=True)
class Kept:
    """Part of a clip, decoded and held in memory for the stages after.

    Attributes:
        stream: what it is of.
        batches: frames at the network's size.
        decoding: what decoding took, the first batch left out.
    """

    stream: StreamInfo
    batches: Sequence[FrameBatch]
    decoding: Cost


def keep(plan: Plan, most: int = MOST_KEPT_FRAMES, with_network: bool = False) -> Kept:
    """Decode the first frames of a plan's first source. Raises ConfigError if there are too few.

    Args:
        with_network: frames may stay on the network's device.
    """
    cost, batches = Cost(), list[FrameBatch]()
    with make_decoder(plan.job, plan.sources[0], with_network=with_network) as decoder:
        items = iter(decoder)
        item = next(items, None)
        while isinstance(item, FrameBatch) and sum(map(len, batches)) < most:
            batches.append(item)
            item = cost.run(lambda: next(items, None), 0)
            cost.frames += len(item) if isinstance(item, FrameBatch) else 0
    if not cost.frames:
        raise ConfigError("the clip is too short: give one of at least two batches")
    return Kept(batches[0].stream, batches, cost)


def stages_alone(plan: Plan, kept: Kept | None = None) -> dict[str, dict[str, float]]:
    """Milliseconds a frame of the clock and of all threads ("cpu_ms"), each stage with nothing beside it.

    Decode (and scale), upload and download where there is a device, network (which there holds both),
    draw, encode. Decode and encode with the bytes a frame that they read and wrote.
    """
    kept = kept or keep(plan, with_network=plan.placement.name != "spread")
    network, labels = _label(plan, kept)
    draw, (written, out_bytes) = _draw(plan, kept, labels), _write(plan, kept, labels)
    encode = Cost(written.frames, written.wall_s - draw.wall_s, written.cpu_s - draw.cpu_s)
    in_bytes = Path(plan.sources[0].uri).stat().st_size / (
        kept.stream.frame_count or written.frames
    )
    costs = {"decode": kept.decoding.ms | {"bytes": round(in_bytes)}, "network": network.ms,
             "draw": draw.ms,
             "encode": encode.ms | {"bytes": round(out_bytes / written.frames)}}  # fmt: skip
    if plan.job.choice.on_gpu:
        pixels = kept.batches[0].pixels
        pixels = pixels if isinstance(pixels, np.ndarray) else pixels.cpu().numpy()
        costs |= transfers("cuda", pixels, labels[0])
    return costs


def bound_fps(costs: dict[str, dict[str, float]], on_device: bool) -> float:
    """Frames a second that one stream cannot exceed: the cores' time over the stages' CPU time a frame; with
    a device, no more than the network alone either."""
    stages = ("decode", "network", "draw", "encode")
    by_cores = 1e3 * available_cores() / sum(costs[stage]["cpu_ms"] for stage in stages)
    return min(by_cores, 1e3 / costs["network"]["ms"]) if on_device else by_cores


def _label(plan: Plan, kept: Kept) -> tuple[Cost, list[np.ndarray]]:
    """The network over the kept frames, chunk by chunk; the first chunk twice, the first time not counted."""
    files = find_model(plan.job.model)
    engine = engine_factory(plan.job.choice, files, files.spec(), 1)(kept.batches[0].model_hw)
    engine.step(kept.batches[0].pixels[None], [0], [True])
    cost, labels = Cost(), []
    for number, batch in enumerate(kept.batches):
        step = partial(engine.step, batch.pixels[None], [0], [number == 0])
        found = cost.run(step, len(batch))
        labels.append(found[0])
    return cost, labels


def _draw(plan: Plan, kept: Kept, labels: list[np.ndarray]) -> Cost:
    spec = plan.job.spec()
    palette = Palette(spec.classes, np.array(spec.palette_rgb, np.uint8))
    cost, size_hw, matrix = Cost(), kept.stream.size_hw, kept.stream.matrix

    def draw(part: np.ndarray) -> None:
        for one in part:
            palette.labels_to_i420(resize_labels(one, size_hw), matrix)

    for part in labels:
        cost.run(partial(draw, part), len(part))
    return cost


def _write(plan: Plan, kept: Kept, labels: list[np.ndarray]) -> tuple[Cost, int]:
    """Draw and encode, by the sink itself; and the bytes that it wrote."""
    items: list[LabelItem] = [
        LabelBatch(b.stream, b.frame_index, b.pts, found, b.decoded_at, b.decoded_at[-1],
                   np.arange(len(found)))
        for b, found in zip(kept.batches, labels, strict=True)
    ]  # fmt: skip
    frames = sum(map(len, labels))
    items.append(EndOfStream(kept.stream, frames))
    cost = Cost()
    cost.run(lambda: list(drain(plan.job, plan.sources[0], items)), frames)
    files = plan.job.folder(plan.sources[0]).rglob("*.m*")
    return cost, sum(file.stat().st_size for file in files)


def transfers(device: str, pixels: np.ndarray, labels: np.ndarray) -> dict[str, dict[str, float]]:
    """Milliseconds a frame to bring frames to a device from pinned memory, and labels back.

    Args:
        device: as torch names it.
        pixels, labels: uint8 [T, ...], of one chunk.
    """
    import torch

    on_gpu = torch.device(device).type == "cuda"

    def pinned(array: np.ndarray) -> Any:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.pin_memory() if on_gpu else tensor

    def copy(target: Any, source: Any) -> None:
        target.copy_(source, non_blocking=True)
        if on_gpu:
            torch.cuda.synchronize()

    up_from, down_to = pinned(pixels), pinned(labels)
    up_to = torch.empty_like(up_from, device=device)
    down_from = down_to.to(device)
    costs = {}
    for name, target, source in (("upload", up_to, up_from), ("download", down_to, down_from)):
        copy(target, source)
        cost = Cost()
        for _ in range(50):
            cost.run(partial(copy, target, source), len(source))
        costs[name] = cost.ms
    return costs
