"""Training of a recurrent segmenter: `roadmask train models/configs/roadnet.yaml --out runs/roadnet`.

A run goes through phases: first short and small (one frame, small crops, fast), then clips, over which the
gradient flows through time. Every step's data depend on the seed and the step alone, and the checkpoint
holds all else, so that a run that was interrupted goes on as if it had not been: on the CPU to the same bits.

What it leaves in its folder:
    model/          the finished model: the averaged weights of the last step
    best/           the averaged weights that scored best on `validate_on`, if there is any
    phase_N/        the averaged weights at the end of each phase
    last.pt         to resume from; phase_N.pt the same at the end of each phase
    log.jsonl       losses, rates and scores; tensorboard/ the same as events
"""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import torch
from torch import Tensor, nn

from models.errors import DataError
from models.evaluation.metrics import ConfusionMatrix, MaskCounts
from models.networks.recurrent import Network
from models.predictor import autocast
from models.registry import build, save
from models.terminal import Terminal
from models.training.checkpoint import read_checkpoint, write_checkpoint
from models.training.config import Losses, Phase, TrainConfig
from models.training.data import Clip, TrainingData, class_weights
from models.training.objective import Objective, total
from models.training.optimize import follow, learning_rate, make_optimizer
from models.training.place import Place
from models.training.sampling import Batch, ClipSampler, Needs, ahead
from models.training.tracking import Gallery, Log, Means
from models.training.transfer import load_teacher, origins, spec_to_train, start_from
from models.training.validation import score_clips

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
SPEED_SECONDS = 300  # validations are part of the pace


class _ClipPass(nn.Module):
    """A network whose forward pass takes clips: what is compiled, and shared between processes."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, frames: Tensor, state: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits, _, auxiliary = self.network.clip(frames, state)
        return logits, auxiliary


class Trainer:
    """One training run in a folder.

    Args:
        config: what to train.
        folder: where checkpoints, log and the finished model go.
        say: called with each line of progress.
        tick: called with the steps done and their total, after each.
        command: how this run was started, for the model's specification.

    Raises:
        DataError, SpecError: the data, the configuration or a model it names is wrong.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        say: Callable[[str], None] = print,
        tick: Callable[[int, int], None] = lambda done, total: None,
        command: str = "",
    ) -> None:
        self.config, self.folder, self.command = config, folder, command
        self.place = Place.choose(config.device, config.threads)
        if config.precision == "f16" and not self.place.on_gpu:
            raise DataError("precision f16 needs a GPU: on the CPU use bf16 or f32")
        for phase in config.phases:
            if phase.batch % self.place.processes:
                raise DataError(
                    f"batch must be a multiple of the {self.place.processes} processes,"
                    f" got {phase.batch}"
                )
        self.say = say if self.place.leads else lambda line: None
        self.tick = tick if self.place.leads else lambda done, total: None
        self.spec, self.origins = spec_to_train(config), origins(config)
        teacher = load_teacher(config)
        self.teacher = None if teacher is None else self.place.ready(teacher)
        self.data = TrainingData.read(config)
        self.rare = self.data.rare(config)
        self.weights = torch.from_numpy(class_weights(self.data.counts)).to(self.place.device)
        torch.manual_seed(config.seed)
        self.network, self.average = (self.place.ready(build(self.spec)) for _ in range(2))
        if config.init:
            self.say(start_from(self.network, config.init))
        self.average.load_state_dict(self.network.state_dict())
        self._check_phases()
        unused = any(phase.only or not config.losses_of(phase).auxiliary for phase in config.phases)
        self.clip_pass = self.place.share(_ClipPass(self.network), unused=unused)
        if config.compile:
            self.clip_pass.compile(dynamic=False)
        self.optimizer = make_optimizer(self.network, config)
        self.scaler = torch.amp.GradScaler(
            self.place.device.type, enabled=config.precision == "f16"
        )
        self.step, self.seconds = 0, 0.0
        self.best: dict[str, float] = {}
        self.log: Log | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def _check_phases(self) -> None:
        finds_motion = getattr(self.network, "motion", None) is not None
        names = [name for name, _ in self.network.named_parameters()]
        for number, phase in enumerate(self.config.phases):
            if not any(map(phase.trains, names)):
                raise DataError(
                    f"phases.{number}.only: {phase.only!r} is found in no parameter's name,"
                    f" such as {names[0]} and {names[-1]}"
                )
            if self.config.losses_of(phase).motion and not finds_motion:
                raise DataError(
                    f"losses.motion of phase {number} is over 0, but {self.config.network} finds no"
                    " motion with these options: leave it out"
                )

    @property
    def checkpoint(self) -> Path:
        return self.folder / "last.pt"

    def resume(self, path: Path | None = None) -> None:
        """Go on from a checkpoint; without one from the folder's last, if it has one."""
        if path is None and not self.checkpoint.exists():
            return
        saved = read_checkpoint(path or self.checkpoint, self._identity())
        self.network.load_state_dict(saved["network"])
        self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if saved["scaler"]:  # empty but for f16
            self.scaler.load_state_dict(saved["scaler"])
        self.step, self.seconds, self.best = saved["step"], saved["seconds"], saved["best"]
        now = json.loads(self.config.model_dump_json())
        changed = [key for key in now if now[key] != saved["config"].get(key)]
        note = f"; changed since then: {', '.join(changed)}" if changed else ""
        self.say(f"resumed at step {self.step}{note}")

    def run(self) -> Path:
        """Train to the end of the last phase; returns the finished model's folder.

        Raises FloatingPointError if the loss or its gradient is not finite; the last checkpoint is good.
        """
        self._introduce()
        first = 0
        with closing(self._open_log()) as self.log:
            for number, phase in enumerate(self.config.phases, 1):
                if self.step < first + phase.steps:
                    self._run_phase(phase, first)
                    self._save_checkpoint(self.folder / f"phase_{number}.pt")
                    self._save_model(f"phase_{number}", None)
                first += phase.steps
            self._save_checkpoint(self.checkpoint)
            return self._finish()

    def _run_phase(self, phase: Phase, first: int) -> None:
        sampler, objective = self._sampler(phase), self._objective(phase)
        self._choose_parameters(phase)
        steps, start = range(self.step, first + phase.steps), time.monotonic()
        own = phase.batch // self.place.processes
        batches = ahead(
            lambda step: sampler.batch(step, own, phase.frames, phase.burn_in_of(step)), steps,
            workers=self.config.workers, pin=self.place.on_gpu,
        )  # fmt: skip
        means, steps_in_all = Means(), self.config.total_steps
        with closing(batches):
            for _ in steps:
                started = time.monotonic()
                rate = learning_rate(phase, self.step - first)
                burn_in = phase.burn_in_of(self.step)
                means.add(self._update(next(batches), objective, rate, burn_in))
                self.step += 1
                self.seconds += time.monotonic() - started
                self.tick(self.step, steps_in_all)
                if self.step % self.config.log_every == 0:
                    pace = (time.monotonic() - start) / (self.step - steps.start)
                    self._log_losses(means.take(), rate, pace)
                # The end of the last phase is validated anyway.
                if self.step % self.config.validate_every == 0 and self.step < steps_in_all:
                    self.validate()
                # After the validation: the checkpoint must know of the best score.
                if self.step % self.config.checkpoint_every == 0:
                    self._save_checkpoint(self.checkpoint)

    def _choose_parameters(self, phase: Phase) -> None:
        """What the phase trains; norms that it does not train keep their statistics too."""
        self.network.train()
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(phase.trains(name))
        for module in self.network.modules():
            if isinstance(module, NORMS) and not any(p.requires_grad for p in module.parameters()):
                module.eval()

    def _sampler(self, phase: Phase) -> ClipSampler:
        losses, place = self.config.losses_of(phase), self.place
        # Alone, a training draws as it always has; together, each process draws its own clips.
        seed = [self.config.seed] if place.processes == 1 else [self.config.seed, place.rank]
        return ClipSampler(
            self.data.pictures, self.data.rendered, seed=seed, phase=phase,
            augment=self.config.augment_of(phase), sampling=self.config.sampling, rare=self.rare,
            needs=Needs(masks=self.network.multi_label, flow=bool(losses.flow_steadiness or losses.motion)),
        )  # fmt: skip

    def _objective(self, phase: Phase) -> Objective:
        losses: Losses = self.config.losses_of(phase)
        return Objective(losses, self.weights, self.network.multi_label)

    def _update(
        self, batch: Batch, objective: Objective, rate: float, burn_in: int = 0
    ) -> dict[str, float]:
        """One optimiser step; returns the loss and its terms, means over all processes."""
        batch = batch.to(self.place.device)
        before, batch = batch.frames()[:, :burn_in], batch.after(burn_in)
        frames = batch.frames()
        # Dropout too depends on the step alone.
        torch.manual_seed(
            (self.config.seed << 32) + self.step * self.place.processes + self.place.rank
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        warm = before if burn_in else None
        with autocast(self.place.device, self.config.precision):
            taught = self._teach(frames, warm) if objective.losses.distillation else None
            state = None if warm is None else self._remembered(self.network, warm)
            logits, auxiliary = self.clip_pass(frames, state)
        terms = objective.terms(logits, auxiliary, batch, taught)
        loss = total(terms)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm)
        values = self.place.mean(torch.stack([loss, *terms.values()]).detach()).tolist()
        self._check_finite(values[0], norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        follow(self.average, self.network, self.config.ema, self.step)
        return dict(zip(["loss", *terms], values, strict=True))

    @staticmethod
    @torch.no_grad()
    def _remembered(network: Network, frames: Tensor) -> Tensor:
        """A network's state after these frames, without a way back for the gradient."""
        return network.clip(frames)[1]

    @torch.no_grad()
    def _teach(self, frames: Tensor, warm: Tensor | None) -> Tensor:
        """What the teacher says of the frames; it has seen `warm` before them, as the student has."""
        assert self.teacher is not None
        state = None if warm is None else self._remembered(self.teacher, warm)
        return self.teacher.clip(frames, state)[0]

    def _check_finite(self, loss: float, norm: Tensor) -> None:
        # f16 gradients overflow at times: the scaler then leaves out the step and scales less.
        wrong = "the loss" if not math.isfinite(loss) else None
        if wrong is None and not self.scaler.is_enabled() and not math.isfinite(norm.item()):
            wrong = "the gradient"
        if wrong:
            value = loss if wrong == "the loss" else norm.item()
            kept = "no checkpoint was written yet; start again"
            if self.checkpoint.exists():
                kept = f"the last good checkpoint is {self.checkpoint}; resume from it"
            raise FloatingPointError(
                f"{wrong} is {value} at step {self.step}: {kept} with a lower peak_rate"
            )

    def _log_losses(self, means: dict[str, float], rate: float, pace: float) -> None:
        if self.log is not None and self.place.leads:
            self.log.write(self.step, loss=means, rate=rate, pace_s=pace)
        left = (self.config.total_steps - self.step) * pace / 60
        self.say(
            f"step {self.step}/{self.config.total_steps}  loss {means['loss']:.4f}"
            f"  rate {rate:.2e}  {pace:.2f} s/step  {left:.0f} min left"
        )

    def validate(self) -> ConfusionMatrix | MaskCounts | None:
        """The averaged network's score on the validation clips; the best one's weights are kept.

        None without such clips, and in all processes but the first.
        """
        if not (self.place.leads and self.data.validation):
            return None
        gallery = Gallery(frames_of(self.data.validation), self.spec.palette_rgb)
        score = score_clips(
            self.average, self.spec, self.data.validation, self.config.precision, gallery
        )
        miou = score.mean_iou()
        iou = dict(zip(self.spec.classes, score.class_iou().round(3).tolist(), strict=True))
        self.say(f"step {self.step}: val mIoU {100 * miou:.2f} %  {iou}")
        if self.log is not None:
            self.log.write(self.step, val_miou=miou, val_iou=iou)
            for number, picture in enumerate(gallery.pictures):
                self.log.show(f"val/{number}", picture, self.step)
        if miou > self.best.get("miou", -1.0):
            self.best = {"step": self.step, "miou": miou}
            self._save_model("best", miou)
        return score

    def _finish(self) -> Path:
        score = self.validate()
        miou = score.mean_iou() if score is not None else None
        path = self.folder / "model"
        self._save_model("model", miou)
        got = "" if miou is None else f", val mIoU {100 * miou:.2f} %"
        self.say(f"saved {path}: the averaged weights of the last step, {self.step}{got}")
        if self.best:
            self.say(
                f"saved {self.folder / 'best'}: those of step {self.best['step']:.0f}, best on"
                f" validation, {100 * self.best['miou']:.2f} %"
            )
        self.place.wait()
        return path

    def _save_model(self, name: str, miou: float | None) -> None:
        if not self.place.leads:
            return
        # The score is of the weights before they are rounded to the file's fp16.
        measured = {} if miou is None else {"val_miou_in_training": round(miou, 4)}
        spec = replace(self.spec, training=self._facts(), measured=measured)
        save(self.folder / name, self.average, spec)

    def _facts(self) -> dict[str, Any]:
        """How these weights came about, for the specification."""
        return {
            "command": self.command,
            "seed": self.config.seed,
            "steps": self.step,
            "hours": round(self.seconds / 3600, 2),
            "machine": self.place.machine(),
            "data": self.data.sources,
            "versions": {"python": python_version(),
                         **{name: version(name) for name in ("roadmask", "torch", "numpy")}},
            "config": json.loads(self.config.model_dump_json()),
            **self.origins,
        }  # fmt: skip

    def _identity(self) -> dict[str, Any]:
        """What may not change between a checkpoint and its resumption; phases may be added."""
        keys = {"network", "options", "head", "recurrent", "boundary", "in_channels", "classes",
                "seed", "optimizer"}  # fmt: skip
        shapes = {name: list(shape) for name, shape in self.spec.shapes.items()}
        return {**json.loads(self.config.model_dump_json(include=keys)), "shapes": shapes}

    def _open_log(self) -> Log:
        log = Log(self.folder, self.config.tensorboard and self.place.leads, self.step)
        if log.note:
            self.say(log.note)
        return log

    def _introduce(self) -> None:
        machine = self.place.machine()
        self.say(
            f"training {self.config.network} on {machine.get('gpu', machine['processor'])} in"
            f" {self.config.precision}: {frames_of(self.data.pictures)} pictures,"
            f" {len(self.data.rendered)} rendered clips; rare classes:"
            f" {', '.join(self.spec.classes[index] for index in self.rare) or 'none'}"
        )
        if self.data.seen_twice():
            self.say("note: some of validate_on is trained on: its score says nothing")
        unused = not any(phase.rendered_share for phase in self.config.phases)
        if self.data.rendered and self.data.pictures and unused:
            self.say("note: rendered_share is 0 in every phase: the rendered clips are not used")

    def _save_checkpoint(self, path: Path) -> None:
        if self.place.leads:
            write_checkpoint(path, {
                "network": self.network.state_dict(), "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(),
                "step": self.step, "seconds": self.seconds, "best": self.best,
                "identity": self._identity(), "config": json.loads(self.config.model_dump_json()),
            })  # fmt: skip


def frames_of(clips: Sequence[Clip]) -> int:
    return sum(len(clip.labels) for clip in clips)


def main(
    config: Path, out: Path, changes: Sequence[str] = (), checkpoint: Path | None = None
) -> Path | None:
    """Train as `config` says, in folder `out`; an interrupted run in that folder goes on.

    Args:
        changes: KEY=VALUE, made to the configuration.
        checkpoint: to go on from, instead of the folder's last.

    Returns:
        The finished model's folder; None in all processes that train together but the first.
    """
    command = ["roadmask", "train", str(config), "--out", str(out)]
    for change in changes:
        command += ["--set", change]
    if checkpoint is not None:
        command += ["--resume", str(checkpoint)]
    columns = ("step {task.completed}/{task.total}",)
    with Terminal(columns=columns, speed_seconds=SPEED_SECONDS) as terminal:
        trainer = Trainer(
            TrainConfig.read(config, changes), out, terminal.line,
            partial(terminal.tick, what="training"), shlex.join(command),
        )  # fmt: skip
        trainer.resume(checkpoint)
        folder = trainer.run()
        trainer.place.leave()
        return folder if trainer.place.leads else None
