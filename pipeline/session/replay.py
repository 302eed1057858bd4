"""`roadmask replay`: a session through the same stages as when it was live, and what is made of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import cv2

from models.spec import DEFAULT_MODEL, ModelFiles, Spec, shipped_models
from pipeline.engines import EngineChoice, check_fit, choose_engine, engine_factory
from pipeline.errors import ConfigError, EngineError, ModelError
from pipeline.run import check_size, model_files
from pipeline.session.compare import Comparison
from pipeline.session.errors import SessionError
from pipeline.session.format import Configuration
from pipeline.session.memory import ReplaySegmenter
from pipeline.session.player import Player
from pipeline.session.reader import Session
from pipeline.session.replayhub import ReplayHub
from pipeline.session.source import as_job_size
from pipeline.session.verify import Verification

ShowView = Callable[[ReplayHub], AbstractContextManager[object]]
_KEPT_BYTES = 256 * 2**20  # of frames to step back through: two seconds of eight cameras at 640x360
_PRECISIONS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class ReplayConfig:
    """What `roadmask replay` was asked to do.

    Attributes:
        session: its folder.
        speed: seconds of the session a second; infinite for as fast as can be.
        start_seconds: where to start.
        verify: compare the labels with those recorded.
        model: another network; None for the one that was recorded.
        engine, precision: as of `roadmask run`; None for what was recorded, if it can be had here.
        size_hw: input size of the network; None for what was recorded.
        report: folder of a side-by-side report of the recorded labels and those of `model`.
        paused: stand still before the first frame.
    """

    session: Path
    speed: float = 1.0
    start_seconds: float = 0.0
    verify: bool = False
    model: str | None = None
    engine: str | None = None
    precision: str | None = None
    size_hw: tuple[int, int] | None = None
    report: Path | None = None
    paused: bool = False

    def __post_init__(self) -> None:
        if not self.speed > 0:
            raise ConfigError(f"speed must be above 0 or max, got {self.speed}")
        if not (math.isfinite(self.start_seconds) and self.start_seconds >= 0):
            raise ConfigError(f"start must be 0 seconds or more, got {self.start_seconds}")
        check_size(self.size_hw)


class Replay:
    """A checked replay: `play` it, then read what it came to.

    Attributes:
        session: what is played.
        spec: of the network.
        choice: the engine.
        notes: what the user should know before it starts, a line each.
        verification, comparison: filled while it plays, where they were asked for.
        hub: for the view.
    """

    def __init__(self, config: ReplayConfig) -> None:
        """Raises PipelineError: no session, no such model or engine, or one that does not fit."""
        self.config = config
        self.session = Session.open(config.session)
        recorded = self.session.configuration
        has_labels = any(camera.labels for camera in self.session.cameras.values())
        if config.verify and not has_labels:
            raise SessionError(
                f"{config.session}: has no labels to compare with: record them with"
                " roadmask live --record"
            )
        files, self.spec = _model(config, recorded)
        self.choice, self.notes = _engine(config, recorded)
        check_fit(self.choice, files)
        own = recorded is not None and files.weights_sha256() == recorded.weights_sha256
        if config.model is None or config.verify or own:
            self.notes += _differences(files, self.choice, recorded)
        self._check_classes(recorded)
        self._states_fit = _states_fit(config, recorded, files)
        self.verification = Verification() if config.verify else None
        self.comparison = None
        if config.report is not None and has_labels:
            self.comparison = Comparison(self.spec)
        elif config.report is not None:
            self.notes.append("no labels were recorded: there is nothing to compare, and no report")
        self.hub = ReplayHub(self.spec, self.session)
        slots = len(self.session.cameras)
        gap_seconds = recorded.longest_gap_seconds if recorded else 1.0
        self._segmenter = ReplaySegmenter(
            engine_factory(self.choice, files, self.spec, slots), longest_gap_seconds=gap_seconds
        )

    def player(self, steered: bool = False) -> Player:
        """Start playing; close it when done.

        Args:
            steered: somebody will step back, and seek after the end: it stays there until it is closed.
        """
        cv2.setNumThreads(1)  # cameras run side by side: more threads would only get in their way
        size_hw = self.config.size_hw
        if size_hw is None and self.session.configuration is not None:
            size_hw = self.session.configuration.size_hw
        listeners = [self.hub.on_frame]
        if self.verification is not None:
            listeners.append(self.verification.on_frame)
        if self.comparison is not None:
            listeners.append(self.comparison.on_frame)
        player = Player(
            self.session, self._segmenter, as_job_size(size_hw, self.spec.model_hw),
            tuple(listeners), on_show=(self.hub.show,),
            speed=self.config.speed, start_seconds=self.config.start_seconds,
            paused=self.config.paused, kept_bytes=_KEPT_BYTES if steered else 0,
            states_fit=self._states_fit,
        )  # fmt: skip
        self.hub.steer(player)
        return player

    def play(
        self, stop: Callable[[], bool] = lambda: False, view: ShowView | None = None
    ) -> Iterator[str]:
        """Play it to its end, or until `stop` says so; gives what it came to, a line each.

        Args:
            view: shows the hub meanwhile; then it waits at its end for somebody to seek, until `stop`.
        """
        with ExitStack() as stack:
            player = stack.enter_context(self.player(steered=view is not None))
            stack.callback(self.hub.close)
            if view is not None:
                stack.enter_context(view(self.hub))
            while (view is not None or not player.ended) and not player.failed and not stop():
                if player.wait(0.2):
                    time.sleep(0.2)
            player.raise_failure()
            yield from self.outcome(player)

    def outcome(self, player: Player) -> Iterator[str]:
        """What a replay came to."""
        tallies = player.tallies.values()
        frames, lost = sum(t.frames for t in tallies), sum(t.lost for t in tallies)
        yield f"{len(player.tallies)} cameras, {frames} frames replayed"
        if lost:
            yield f"{lost} recorded label maps have no frame in the recording"
        if (late := player.lateness.quantile_ms(0.99)) is not None:
            yield f"within {late:.1f} ms of the recorded clock (99 of 100 frames)"
        if self.verification is not None:
            yield from self.verification.lines()
        if self.comparison is not None and self.config.report is not None:
            yield f"report: {self._write_report(self.config.report)}"
        yield from (f"note: {line}" for line in self.session.notes.all())

    def _write_report(self, folder: Path) -> Path:
        assert self.comparison is not None
        recorded = self.session.configuration
        names = _said(recorded) if recorded else "recorded"
        return self.comparison.write(folder, names, f"{self.spec.name} ({self.choice.runtime})")

    def _check_classes(self, recorded: Configuration | None) -> None:
        if self.config.model is None or recorded is None or not recorded.classes:
            return
        if recorded.classes != self.spec.classes:
            raise ModelError(
                f"model {self.config.model!r} has other classes than the recorded one"
                f" ({', '.join(self.spec.classes[:3])}, ... instead of"
                f" {', '.join(recorded.classes[:3])}, ...): they cannot be compared"
            )


def _model(config: ReplayConfig, recorded: Configuration | None) -> tuple[ModelFiles, Spec]:
    """The network asked for, or the recorded one, which a session may name but not point at."""
    if config.model is not None or recorded is None:
        files, spec = model_files(config.model or DEFAULT_MODEL)
        if config.verify and recorded and files.weights_sha256() != recorded.weights_sha256:
            raise ConfigError(
                f"--verify needs the recorded network ({recorded.model},"
                f" {recorded.weights_sha256[:8]}): leave --model out, or give that one"
            )
        return files, spec
    if recorded.model not in shipped_models():
        raise ConfigError(
            f"it was recorded with model {recorded.model!r}, which is not a shipped one: give its"
            " folder with --model"
        )
    return model_files(recorded.model)


def _engine(config: ReplayConfig, recorded: Configuration | None) -> tuple[EngineChoice, list[str]]:
    """The engine asked for, else the recorded one, else the best there is, with a note."""
    if config.engine or config.precision or recorded is None:
        return choose_engine(config.engine or "auto", config.precision or "auto"), []
    precision = recorded.precision
    precision = "auto" if recorded.engine == "counting" else _PRECISIONS.get(precision, precision)
    try:
        return choose_engine(recorded.engine, precision), []
    except EngineError as error:
        return choose_engine("auto"), [f"the recorded engine cannot be had here: {error}"]


def _differences(
    files: ModelFiles, choice: EngineChoice, recorded: Configuration | None
) -> list[str]:
    """Why labels may differ from those recorded, a line each."""
    if recorded is None:
        return []
    notes = []
    if files.weights_sha256() != recorded.weights_sha256:
        notes.append(
            f"model {recorded.model!r} has other weights than when it was recorded: labels will differ"
        )
    if choice.runtime != recorded.runtime:
        notes.append(
            f"recorded with {recorded.runtime}, replayed with {choice.runtime}: labels may differ"
        )
    return notes


def _states_fit(config: ReplayConfig, recorded: Configuration | None, files: ModelFiles) -> bool:
    """Whether the recorded memories are of the network that labels now, as far as can be told before."""
    if recorded is None or files.weights_sha256() != recorded.weights_sha256:
        return False
    return config.size_hw is None or recorded.size_hw in (None, config.size_hw)


def _said(configuration: Configuration) -> str:
    return f"{configuration.model} ({configuration.runtime}, recorded)"
