"""`roadmask bench`: this pipeline against the loop people write, on the same clip and weights, in one run.

These machines are shared and noisy, so what counts is the ratio within a round: each round runs every
contender once, one after the other, and medians over the rounds are reported. Warm-up is left out:
frames a second are (n - 1) / (t[-1] - t[0]) over the frames after it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from models.spec import find_model
from pipeline.engines import check_fit, choose_engine
from pipeline.errors import ConfigError, MediaError, PipelineError
from pipeline.frames import EndOfStream, FrameItem, LabelItem
from pipeline.run import Plan, RunConfig, prepare, run, versions
from pipeline.settings import available_cores
from pipeline.sinks import OutputOptions
from pipeline.stages import Progress, SourceReport, drain, make_decoder, make_segmenter

WARM_UP_FRAMES = 24


@dataclass(frozen=True)
class Contender:
    """One way of turning the clip into a video of class colours.

    Attributes:
        name: for the table.
        run: runs once; returns (seconds since some start, frames done by then), in order.
    """

    name: str
    run: Callable[[], list[tuple[float, int]]]


def rate(stamps: list[tuple[float, int]], warm_up: int = WARM_UP_FRAMES) -> float:
    """Frames a second after the warm-up.

    Raises ConfigError if the clip ended before it.
    """
    steady = [stamp for stamp in stamps if stamp[1] > warm_up]
    if len(steady) < 2:
        raise ConfigError(f"the clip is too short: give one with over {warm_up + 8} frames")
    return (steady[-1][1] - steady[0][1]) / (steady[-1][0] - steady[0][0])


def compare(
    source: str,
    *,
    model: str = "roadnet",
    engine: str = "auto",
    precision: str = "auto",
    rounds: int = 3,
    plain_frames: int = 100,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run the contenders `rounds` times and measure the stages; returns what `table` shows.

    Args:
        source: a video file.
        rounds: how often each contender runs.
        plain_frames: the plain loop is slow: it stops after so many frames.
    """
    if rounds < 1:
        raise ConfigError(f"rounds must be at least 1, got {rounds}")
    with tempfile.TemporaryDirectory(prefix="roadmask-bench-") as folder:
        config = RunConfig(
            (source,),
            Path(folder),
            OutputOptions(labels="none"),
            model=model,
            engine=engine,
            precision=precision,
        )
        plan = prepare(config)
        if not plan.sources:
            raise MediaError(plan.failures[0].error or f"{source} cannot be read")
        contenders = _contenders(config, plan, plain_frames)
        results: dict[str, list[float]] = {contender.name: [] for contender in contenders}
        for number in range(rounds):
            for contender in contenders:
                results[contender.name].append(rate(contender.run()))
                last = results[contender.name][-1]
                say(f"round {number + 1}/{rounds}  {contender.name}: {last:.1f} fps")
        stages = stage_shares(plan)
    return {
        "source": source,
        "cores": available_cores(),
        "engine": plan.job.choice.runtime,
        "model": plan.job.facts["model"],
        "rounds": rounds,
        "fps": {name: round(statistics.median(rates), 1) for name, rates in results.items()},
        "times_the_plain_loop": _ratios(results),
        "stage_ms_a_frame": stages,
        "versions": versions(),
    }


def _contenders(config: RunConfig, plan: Plan, plain_frames: int) -> list[Contender]:
    source = plan.sources[0].uri
    everything = replace(config, options=OutputOptions(overlay=True))
    inline = replace(config, placement="inline")
    fastest = replace(config, precision="int8")

    def pipeline(wanted: RunConfig) -> Callable[[], list[tuple[float, int]]]:
        return lambda: _pipeline_stamps(prepare(wanted))

    def plain(channels_last: bool) -> Callable[[], list[tuple[float, int]]]:
        out = str(config.out / "plain.mp4")
        return lambda: list(plain_loop(source, config.model, out, plain_frames, channels_last))

    contenders = [
        Contender("plain loop", plain(False)),
        Contender("plain loop, channels_last", plain(True)),
        Contender("roadmask", pipeline(config)),
        Contender("roadmask, labels and overlay too", pipeline(everything)),
        Contender("roadmask --inline", pipeline(inline)),
    ]
    with suppress(PipelineError):  # an INT8 form that is not there, or of other weights
        check_fit(choose_engine("cpu", "int8"), find_model(config.model))
        if plan.job.choice.name == "cpu" and plan.job.choice.precision != "int8":
            contenders.append(Contender("roadmask --precision int8", pipeline(fastest)))
    return contenders


def _ratios(results: dict[str, list[float]]) -> dict[str, float]:
    """Each contender's median ratio to the plain loop of the same round."""
    plain = results["plain loop"]
    return {
        name: round(statistics.median(a / b for a, b in zip(rates, plain, strict=True)), 2)
        for name, rates in results.items()
    }


def _pipeline_stamps(plan: Plan) -> list[tuple[float, int]]:
    stamps = []
    for event in run(plan):
        if isinstance(event, Progress):
            stamps.append((time.monotonic(), event.frames))
        elif isinstance(event, SourceReport) and event.error:
            raise MediaError(event.error)
    return stamps


def plain_loop(
    source: str, model: str, out: str, frames: int, channels_last: bool = False
) -> Iterator[tuple[float, int]]:
    """The loop people write: OpenCV reads, eager PyTorch labels a frame, NumPy colours, OpenCV writes.

    The same network, weights and recurrent state as the pipeline, argmax at the network's own size.
    """
    import cv2
    import numpy as np
    import torch

    from models import load

    torch.set_num_threads(available_cores())
    cv2.setNumThreads(-1)
    network, spec = load(model)
    if channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    palette = np.array(spec.palette_rgb, np.uint8)[:, ::-1]
    capture = cv2.VideoCapture(source)
    width, height = (
        int(capture.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
    )
    model_hw = spec.model_hw((height, width))
    writer = cv2.VideoWriter(
        out, cv2.VideoWriter.fourcc(*"mp4v"), capture.get(cv2.CAP_PROP_FPS), (width, height)
    )
    state = torch.zeros(1, *network.state_shape(model_hw))
    with torch.inference_mode():
        for count in range(frames):
            there, bgr = capture.read()
            if not there:
                break
            small = cv2.cvtColor(cv2.resize(bgr, model_hw[::-1]), cv2.COLOR_BGR2RGB)
            tensor = torch.from_numpy(small).permute(2, 0, 1)[None].float()
            logits, state = network(tensor, state)
            logits = torch.nn.functional.interpolate(
                logits, model_hw, mode="bilinear", align_corners=False
            )
            labels = logits.argmax(1)[0].numpy().astype(np.uint8)
            full = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
            writer.write(palette[full])
            yield time.monotonic(), count + 1
    writer.release()
    capture.release()


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
    with make_decoder(job, source) as decoder:
        frames: Iterator[FrameItem] = timed(iter(decoder), "decode", None)
        labels = timed(iter(make_segmenter(job).labels(frames)), "segment", "decode")
        counted, began = 0, 0.0
        for event in drain(job, source, _until_end(labels)):
            if isinstance(event, Progress) and not steady and event.frames > WARM_UP_FRAMES:
                steady, counted, began = True, event.frames, time.perf_counter()
            elif isinstance(event, SourceReport):
                total = time.perf_counter() - began
                counted = event.frames - counted
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


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    rows = [f"{result['source']}, {result['engine']}, {result['cores']} cores,"
            f" medians of {result['rounds']} rounds", ""]  # fmt: skip
    rows += [f"{'':36}{'fps':>8}{'x plain':>10}"]
    for name, fps in result["fps"].items():
        rows.append(f"{name:36}{fps:8.1f}{result['times_the_plain_loop'][name]:10.2f}")
    rows += ["", f"{'stage, one after the other':36}{'ms':>8}{'share':>10}"]
    for stage, cost in result["stage_ms_a_frame"].items():
        rows.append(f"{stage:36}{cost['ms']:8.2f}{100 * cost['share']:9.1f}%")
    return "\n".join(rows)
