"""Evaluation of a network on labelled footage: `roadmask eval MODEL DATASET`.

The network runs as in the product, frame by frame, its state carried through each stream. Everything about
undamaged frames comes from one pass; each kind of damage is one more pass, all its strengths side by side,
and bursts are another. Where two modes are compared (state carried, state reset every frame) both run over
the same frames in the same pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from models.errors import DataError
from models.evaluation.robustness import (
    BURST_FRAMES,
    BURSTS,
    CORRUPTIONS,
    STRENGTHS,
    BurstPlan,
    corrupt,
    hide,
)
from models.evaluation.scorers import Accuracy, Scorer, WorstFrame
from models.evaluation.scores import (
    CARRIED,
    RESET,
    BurstScores,
    Evaluation,
    ModeScores,
    RobustnessCurve,
    known,
)
from models.evaluation.streams import DataSet, open_data_set
from models.footage import LabelledFrame, NameFilter, Stream
from models.motion import Motion
from models.networks.recurrent import Network
from models.predictor import Predictor
from models.registry import load
from models.spec import Spec, find_model

PRECISIONS = ("f32", "bf16")
MODES = (CARRIED, RESET)

Progress = Callable[[str, int, int], None]
"""Called after each frame with what is being done, frames done and frames in all."""


@dataclass(frozen=True)
class EvalConfig:
    """What to evaluate and how.

    Attributes:
        model: a shipped model's name or a model's folder.
        dataset: see `models.footage`.
        include, exclude: regular expressions: which names to take.
        sequence_step: pictures whose numbers rise by this are a stream, 0: each by itself; None: those
            whose numbers rise by equal steps.
        modes: "carried", "reset" or both; the first one is reported as the main one.
        steadiness: measure it; None: where frames are consecutive.
        corruptions: kinds of damage, of `models.evaluation.robustness.CORRUPTIONS`.
        bursts: hide parts of ten frames on end; both modes are always compared on these.
        scales, flip: views of a frame at test time, their probabilities averaged.
        precision: "f32" or "bf16" (autocast).
        seed: of what is random in damage.
        worst: how many of the worst frames to keep for the report.
    """

    model: str
    dataset: Path
    include: str | None = None
    exclude: str | None = None
    sequence_step: int | None = None
    modes: tuple[str, ...] = (CARRIED,)
    steadiness: bool | None = None
    corruptions: tuple[str, ...] = ()
    bursts: bool = False
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    precision: str = "f32"
    seed: int = 0
    worst: int = 6

    def __post_init__(self) -> None:
        if not self.modes or len(set(self.modes)) < len(self.modes) or set(self.modes) - {*MODES}:
            raise DataError(f"modes must be some of {', '.join(MODES)}, got {self.modes}")
        for kind in self.corruptions:
            if kind not in CORRUPTIONS:
                raise DataError(f"unknown damage {kind!r}: known are {', '.join(CORRUPTIONS)}")
        if not self.scales or any(not 0.25 <= scale <= 4 for scale in self.scales):
            raise DataError(f"scales must be 0.25 to 4, got {self.scales}")
        if len(set(self.scales)) < len(self.scales):
            raise DataError(f"scales must differ from each other, got {self.scales}")
        if self.precision not in PRECISIONS:
            raise DataError(
                f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}"
            )
        for name in ("seed", "sequence_step"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise DataError(f"{name} must be at least 0, got {value}")
        NameFilter(self.include, self.exclude)  # raises for what is no regular expression


@dataclass(frozen=True)
class Step:
    """One frame of a walk over all streams. `first`: nothing that came before belongs to it."""

    stream: Stream
    number: int
    frame: LabelledFrame
    first: bool


def walk(streams: tuple[Stream, ...]) -> Iterator[Step]:
    """All frames in order; a stream begins anew where its size changes."""
    for stream in streams:
        shape: tuple[int, ...] | None = None
        for number, frame in enumerate(stream.frames()):
            yield Step(stream, number, frame, frame.rgb.shape != shape)
            shape = frame.rgb.shape


def evaluate(
    config: EvalConfig, progress: Progress = lambda what, done, total: None
) -> tuple[Evaluation, list[WorstFrame]]:
    """Run an evaluation; returns its figures and the worst frames, the worst first.

    Raises SpecError for a model that is unknown or damaged, DataError for data that is missing, wrong or
    unfit for what is asked.
    """
    began = time.monotonic()
    network, spec = load(config.model)
    names = NameFilter(config.include, config.exclude)
    data = open_data_set(config.dataset, spec, names, config.sequence_step)
    _check_consecutive(config, data)
    run = _Run(config, network, spec, data, progress)
    modes, worst = run.undamaged()
    evaluation = Evaluation(
        model=config.model,
        weights_sha256=find_model(config.model).weights_sha256(),
        dataset=str(config.dataset),
        frames=data.frames,
        streams=len(data.streams),
        classes=spec.classes,
        settings=_settings(config),
        modes=modes,
        robustness=tuple(run.robustness(modes)),
        bursts=tuple(run.bursts()) if config.bursts else (),
        notes=tuple(_notes(config, spec, data, modes)),
        seconds=round(time.monotonic() - began, 1),
        versions={module.__name__: module.__version__ for module in (torch, np, cv2)},
    )
    return evaluation, worst


def _check_consecutive(config: EvalConfig, data: DataSet) -> None:
    wants = {
        "steadiness": bool(config.steadiness),
        "comparing carried with reset state": len(config.modes) > 1,
    }
    for what, wanted in wants.items():
        if wanted and data.longest < 2:
            raise DataError(f"{what} needs consecutive frames, but {_why_single(config)}")
    if config.bursts and data.longest <= BURST_FRAMES:
        raise DataError(
            f"bursts need a stream of over {BURST_FRAMES} frames, the longest in {config.dataset} has"
            f" {data.longest}"
        )


def _why_single(config: EvalConfig) -> str:
    if config.sequence_step == 0:
        return "sequence_step 0 makes each picture a stream by itself"
    return (
        f"no two names in {config.dataset}/images follow each other (one prefix, numbers that rise by"
        f" {config.sequence_step or 'equal steps'})"
    )


def _settings(config: EvalConfig) -> dict[str, Any]:
    chosen = {key: getattr(config, key) for key in ("include", "exclude", "sequence_step")}
    return {key: value for key, value in chosen.items() if value is not None} | {
        "scales": list(config.scales), "flip": config.flip, "precision": config.precision,
        "seed": config.seed, "boundary_tolerance": "0.75 % of the diagonal",
        "optical_flow": "DIS, medium preset, finest scale 0; forward-backward check",
    }  # fmt: skip


def _notes(
    config: EvalConfig, spec: Spec, data: DataSet, modes: dict[str, ModeScores]
) -> Iterator[str]:
    """What a reader of the figures must know."""
    if config.sequence_step is None and data.steps():
        yield (
            f"taken for consecutive frames, by their names: {_shown(data.steps())}; if they are not,"
            " give --sequence-step, 0 for single frames"
        )
    scores = next(iter(modes.values()))
    absent = [row.name for row in scores.quality.classes if not row.share]
    if absent:
        yield f"never in the data, so n/a and left out of all means: {', '.join(absent)}"
    if not spec.recurrent and len(modes) > 1:
        yield "the network has no memory: carried or reset, its labels are the same"
    short = sum(len(stream) < 2 for stream in data.streams)
    if short:
        yield f"{short} of {len(data.streams)} streams are single frames: accuracy only"
    if scores.steadiness is None and config.steadiness is None:
        yield "steadiness is not measured: no frames are consecutive"
    elif scores.steadiness is not None and data.longest < 16:
        yield f"VC16 needs a stream of 16 frames, the longest has {data.longest}"
    if len(config.scales) > 1 or config.flip:
        yield "probabilities are the mean of several views of a frame, each with a state of its own"


def _shown(steps: dict[int, tuple[int, int]]) -> str:
    return ", ".join(
        f"{frames} pictures numbered {step} apart ({streams} stream{'s' if streams > 1 else ''})"
        for step, (streams, frames) in steps.items()
    )


class _Run:
    """One evaluation: what its passes share."""

    def __init__(
        self, config: EvalConfig, network: Network, spec: Spec, data: DataSet, progress: Progress
    ) -> None:
        self.config, self.network, self.spec, self.data = config, network, spec, data
        self.progress = progress
        self.done = 0
        passes = 1 + len(config.corruptions) + config.bursts
        self.total = passes * data.frames

    def _predictor(self, modes: list[str]) -> Predictor:
        return Predictor(
            self.network, self.spec, [mode == CARRIED for mode in modes],
            scales=self.config.scales, flip=self.config.flip, precision=self.config.precision,
        )  # fmt: skip

    def _accuracy(self) -> Accuracy:
        return Accuracy(len(self.spec.classes), self.data.multi_label)

    def _walk(self, what: str) -> Iterator[Step]:
        for step in walk(self.data.streams):
            yield step
            self.done += 1
            self.progress(what, self.done, self.total)

    def undamaged(self) -> tuple[dict[str, ModeScores], list[WorstFrame]]:
        """Accuracy and steadiness of each mode, and the worst frames of the first one."""
        steady = self.data.longest > 1 if self.config.steadiness is None else self.config.steadiness
        modes = list(self.config.modes)
        predictor = self._predictor(modes)
        scorers = [Scorer(self.spec, self.data.multi_label, self.config.worst) for _ in modes]
        before: np.ndarray | None = None
        for step in self._walk("clear"):
            motion, rgb = None, step.frame.rgb
            if step.first:
                predictor.start()
                for scorer in scorers:
                    scorer.start()
            elif steady and before is not None:
                motion = Motion.between(before, rgb)
            predictions = predictor.predict([rgb] * len(modes), step.frame.planes)
            for scorer, prediction in zip(scorers, predictions, strict=True):
                scorer.add(step.stream.name, step.number, step.frame, prediction, motion)
            before = rgb
        results = {mode: scorer.result(steady) for mode, scorer in zip(modes, scorers, strict=True)}
        return results, scorers[0].worst.frames

    def robustness(self, clear: dict[str, ModeScores]) -> Iterator[RobustnessCurve]:
        """mIoU at five strengths of each kind of damage, in each mode."""
        for kind in self.config.corruptions:
            lanes = [(mode, strength) for mode in self.config.modes for strength in STRENGTHS]
            scores = self._damaged(kind, lanes)
            for mode in self.config.modes:
                mious = [scores[mode, strength].miou() for strength in STRENGTHS]
                whole = clear[mode].quality.miou
                retained = float(np.mean(mious)) / whole if whole else float("nan")
                yield RobustnessCurve(
                    kind, mode, tuple(known(miou) for miou in mious), known(retained)
                )

    def _damaged(self, kind: str, lanes: list[tuple[str, int]]) -> dict[tuple[str, int], Accuracy]:
        scores = {lane: self._accuracy() for lane in lanes}
        predictor = self._predictor([mode for mode, _ in lanes])
        for number, step in enumerate(self._walk(kind)):
            if step.first:
                predictor.start()
            damaged = {
                strength: corrupt(step.frame.rgb, kind, strength, self.config.seed, number)
                for strength in STRENGTHS
            }
            predictions = predictor.predict(
                [damaged[strength] for _, strength in lanes], step.frame.planes
            )
            truth = step.frame.truth(self.data.multi_label)
            for lane, prediction in zip(lanes, predictions, strict=True):
                scores[lane].add(truth, prediction)
        return scores

    def bursts(self) -> Iterator[BurstScores]:
        """mIoU before, during and after bursts, state carried and state reset."""
        lanes = [(kind, mode) for kind in ("", *BURSTS) for mode in MODES]
        around: dict[tuple[str, str, int], Accuracy] = {}
        hidden = {lane: self._accuracy() for lane in lanes}
        predictor = self._predictor([mode for _, mode in lanes])
        plan, count, begun = BurstPlan((), 0), 0, 0
        for step in self._walk("bursts"):
            if step.number == 0:
                plan, begun = BurstPlan.of(len(step.stream)), count
                count += len(plan.starts)
            if step.first:
                predictor.start()
            offset, burst = plan.offset(step.number), plan.burst(step.number)
            views = self._views(step.frame.rgb, None if burst is None else begun + burst, offset)
            predictions = predictor.predict(
                [views[kind][0] for kind, _ in lanes], step.frame.planes
            )
            truth = step.frame.truth(self.data.multi_label)
            for (kind, mode), prediction in zip(lanes, predictions, strict=True):
                if offset is None:
                    continue
                score = around.setdefault((kind, mode, offset), self._accuracy())
                score.add(truth, prediction)
                where = views[kind][1]
                if where is not None:
                    hidden[kind, mode].add(truth, prediction, where)
        for kind in BURSTS:
            for mode in MODES:
                yield self._burst_scores(kind, mode, count, around, hidden[kind, mode])

    def _views(
        self, rgb: np.ndarray, burst: int | None, offset: int | None
    ) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
        """The frame clear ("") and with each kind of burst over it, with the pixels hidden."""
        clear: tuple[np.ndarray, np.ndarray | None] = (rgb, None)
        if burst is None or offset is None:
            return dict.fromkeys(("", *BURSTS), clear)
        seed = self.config.seed
        return {"": clear} | {kind: hide(rgb, kind, seed, burst, offset) for kind in BURSTS}

    def _burst_scores(
        self, kind: str, mode: str, count: int,
        around: dict[tuple[str, str, int], Accuracy], hidden: Accuracy,
    ) -> BurstScores:  # fmt: skip
        offsets = sorted(offset for k, m, offset in around if (k, m) == (kind, mode))

        def pooled(what: str, wanted: range) -> float | None:
            total = self._accuracy()
            for offset in wanted:
                if (what, mode, offset) in around:
                    total.merge(around[what, mode, offset])
            return known(total.miou())

        during, after = range(BURST_FRAMES), range(BURST_FRAMES, 2 * BURST_FRAMES)
        return BurstScores(
            kind=kind, mode=mode, bursts=count,
            clear=pooled("", during), during=pooled(kind, during), hidden=known(hidden.miou()),
            after=pooled(kind, after),
            over_time=tuple((o, known(around[kind, mode, o].miou())) for o in offsets),
        )  # fmt: skip
