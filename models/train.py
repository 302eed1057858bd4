"""Training of a recurrent segmenter: `roadmask train models/configs/roadnet.yaml`.

A run goes through phases: first short and small (one frame, small crops, fast), then clips, over which the
gradient flows through time. Every step's data depend on the seed and the step alone, and the checkpoint
holds all else, so that a run that was interrupted goes on as if it had not been.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import cv2
import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from models.data import Clip, ClipSampler, DataError, class_weights, read_rendered, read_stills
from models.losses import segmentation_loss
from models.metrics import ConfusionMatrix
from models.registry import build, save
from models.roadnet import RoadNet
from models.spec import Spec

Batch = tuple[Tensor, Tensor]  # RGB uint8 [N, T, h, w, 3] and labels uint8 [N, T, h, w]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Phase(_Strict):
    """A stretch of training with its own clips and its own learning-rate curve."""

    steps: int = Field(gt=0, description="optimiser steps")
    batch: int = Field(gt=0, description="clips a step")
    frames: int = Field(gt=0, description="frames a clip; the gradient flows through all of them")
    crop_hw: tuple[int, int] = Field(description="height and width of the crops, pixels")
    scale_range: tuple[float, float] = Field(description="smallest and largest zoom")
    peak_rate: float = Field(gt=0, description="learning rate after warm-up")
    final_rate: float = Field(ge=0, description="learning rate at the end (cosine)")
    warmup_steps: int = Field(100, ge=0)
    rendered_share: float = Field(0.0, ge=0, le=1, description="share of clips that are rendered")
    lovasz_share: float = Field(0.0, ge=0, description="weight of the Lovász term")


class TrainConfig(_Strict):
    """What `roadmask train` reads from its YAML file; paths are relative to the current folder."""

    model: str = "roadnet"
    network: str = "RoadNet"
    options: dict[str, Any] = {}
    seed: int = 0
    camvid: Path = Field(description="folder with train/ and val/, each with images/ and labels/")
    rendered: Path | None = Field(None, description="folder of rendered clips")
    rare: tuple[str, ...] = Field(("pole", "sign", "fence", "pedestrian", "bicyclist"))
    weight_decay: float = Field(0.02, ge=0)
    clip_norm: float = Field(5.0, gt=0, description="largest norm of the gradient")
    ema: float = Field(0.998, gt=0, lt=1, description="decay of the averaged weights")
    bf16: bool = Field(True, description="bfloat16 autocast: twice as fast where the CPU has it")
    threads: int = Field(2, gt=0)
    validate_every: int = Field(1000, gt=0, description="steps between validations")
    checkpoint_every: int = Field(250, gt=0, description="steps between checkpoints")
    phases: tuple[Phase, ...] = Field(min_length=1)

    @classmethod
    def read(cls, path: Path) -> TrainConfig:
        """Raises DataError in one line for a file that is missing or not a valid configuration."""
        try:
            return cls.model_validate(yaml.safe_load(path.read_text("utf-8")))
        except OSError as error:
            raise DataError(f"cannot read configuration {path}: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise DataError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise DataError(f"{path}: {where}: {first['msg']}") from error


class Trainer:
    """One training run in a folder: `last.pt` to resume from, `log.jsonl`, and the model at the end.

    Args:
        config: what to train.
        folder: where checkpoints, log and the finished model go.
        say: called with each line of progress.
    """

    def __init__(
        self, config: TrainConfig, folder: Path, say: Callable[[str], None] = print
    ) -> None:
        torch.set_num_threads(config.threads)
        cv2.setNumThreads(1)
        torch.manual_seed(config.seed)
        self.config, self.folder, self.say = config, folder, say
        self.spec = Spec(name=config.model, network=config.network, options=config.options)
        self.classes = len(self.spec.classes)
        self.network = build(self.spec).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = build(self.spec).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average.load_state_dict(self.network.state_dict())
        self.optimizer = torch.optim.AdamW(_decay_groups(self.network, config.weight_decay))
        self.step, self.seconds = 0, 0.0
        self.stills = read_stills(config.camvid / "train", self.classes)
        self.val = read_stills(config.camvid / "val", self.classes)
        self.rendered: list[Clip] = []
        if any(phase.rendered_share for phase in config.phases):
            if config.rendered is None:
                raise DataError("rendered_share is over 0, but no folder 'rendered' is given")
            self.rendered = read_rendered(config.rendered, self.classes)
        self.weights = torch.from_numpy(class_weights(self.stills, self.classes))
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "last.pt"

    def resume(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        if not self.checkpoint.exists():
            return
        saved = torch.load(self.checkpoint, weights_only=True)
        if saved["identity"] != self._identity():
            raise DataError(
                f"{self.checkpoint} was trained with {saved['identity']}, the configuration says"
                f" {self._identity()}: give another --out"
            )
        self.network.load_state_dict(saved["network"])
        self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.seconds = saved["step"], saved["seconds"]
        self.say(f"resumed at step {self.step}")

    def run(self) -> Path:
        """Train to the end of the last phase; returns the finished model's folder."""
        first = 0
        for phase in self.config.phases:
            if self.step < first + phase.steps:
                self._run_phase(phase, first)
            first += phase.steps
        self._save_checkpoint()
        score = self.validate()
        training = {
            "config": json.loads(self.config.model_dump_json()),
            "steps": self.step,
            "hours": round(self.seconds / 3600, 2),
        }
        # The file has fp16 weights: what is stored is what was measured elsewhere, not this score.
        measured = {"camvid_val_miou_in_training": round(score.mean_iou(), 4)}
        spec = Spec(
            name=self.spec.name, network=self.spec.network, options=self.spec.options,
            training=training, measured=measured,
        )  # fmt: skip
        return save(self.folder / "model", self.average, spec).folder

    def _run_phase(self, phase: Phase, first: int) -> None:
        sampler = self._sampler(phase)
        total = sum(p.steps for p in self.config.phases)
        batches = _ahead(sampler, phase, range(self.step, first + phase.steps))
        begun, begun_at, loss_sum, seen = time.monotonic(), self.step, 0.0, 0
        while self.step < first + phase.steps:
            started = time.monotonic()
            rate = learning_rate(phase, self.step - first)
            batch = batches.get()
            if isinstance(batch, Exception):
                raise batch
            loss_sum += self._update(batch, phase, rate)
            seen += 1
            self.step += 1
            self.seconds += time.monotonic() - started
            if self.step % 50 == 0:
                pace = (time.monotonic() - begun) / (self.step - begun_at)
                left = (total - self.step) * pace / 60
                self._log(step=self.step, loss=loss_sum / seen, rate=rate, pace_s=pace)
                self.say(
                    f"step {self.step}/{total}  loss {loss_sum / seen:.4f}  rate {rate:.2e}"
                    f"  {pace:.2f} s/step  {left:.0f} min left"
                )
                loss_sum, seen = 0.0, 0
            if self.step % self.config.checkpoint_every == 0:
                self._save_checkpoint()
            if self.step % self.config.validate_every == 0:
                self.validate()

    def _sampler(self, phase: Phase) -> ClipSampler:
        return ClipSampler(
            self.stills, self.rendered if phase.rendered_share else [],
            seed=self.config.seed, crop_hw=phase.crop_hw, scale_range=phase.scale_range,
            rendered_share=phase.rendered_share,
            rare=[self.spec.classes.index(name) for name in self.config.rare],
        )  # fmt: skip

    def _update(self, batch: Batch, phase: Phase, rate: float) -> float:
        """One optimiser step; returns the loss. Raises FloatingPointError if it is not finite."""
        frames, labels = batch[0].movedim(-1, 2).float(), batch[1].long()
        self.network.train()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.bf16):
            logits, _, auxiliary = self.network.clip(frames)
        flat = labels.flatten(0, 1)
        loss = segmentation_loss(
            logits.flatten(0, 1).float(), flat, self.weights, phase.lovasz_share
        ) + 0.3 * segmentation_loss(auxiliary.flatten(0, 1).float(), flat, self.weights, 0.0)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.step}: the last good checkpoint is"
                f" {self.checkpoint}; resume from it with a lower peak_rate"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self._average()
        return loss.item()

    @torch.no_grad()
    def _average(self) -> None:
        # A young average follows fast, else the first thousand steps weigh it down.
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        for mean, now in zip(
            self.average.state_dict().values(), self.network.state_dict().values(), strict=True
        ):
            if mean.is_floating_point():
                mean.lerp_(now, 1 - decay)
            else:
                mean.copy_(now)

    def validate(self) -> ConfusionMatrix:
        """The averaged network over the validation frames as one stream, state carried."""
        score = evaluate_stream(self.average, self.val, self.config.bf16)
        iou = dict(zip(self.spec.classes, score.class_iou().round(3).tolist(), strict=True))
        self._log(step=self.step, val_miou=score.mean_iou(), val_iou=iou)
        self.say(f"step {self.step}: val mIoU {100 * score.mean_iou():.2f} %  {iou}")
        return score

    def _identity(self) -> dict[str, Any]:
        """What may not change between a checkpoint and its resumption; phases may be added."""
        return {"network": self.config.network, "options": self.config.options,
                "seed": self.config.seed}  # fmt: skip

    def _log(self, **values: Any) -> None:
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(values) + "\n")

    def _save_checkpoint(self) -> None:
        part = self.checkpoint.with_suffix(".part")
        torch.save(
            {
                "network": self.network.state_dict(), "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(), "step": self.step,
                "seconds": self.seconds, "identity": self._identity(),
            },
            part,
        )  # fmt: skip
        part.replace(self.checkpoint)


def learning_rate(phase: Phase, step: int) -> float:
    """Linear warm-up, then half a cosine from the peak to the final rate."""
    if step < phase.warmup_steps:
        return phase.peak_rate * (step + 1) / phase.warmup_steps
    done = (step - phase.warmup_steps) / max(1, phase.steps - phase.warmup_steps)
    half = 0.5 * (1 + math.cos(math.pi * done))
    return phase.final_rate + (phase.peak_rate - phase.final_rate) * half


@torch.inference_mode()
def evaluate_stream(network: RoadNet, clips: list[Clip], bf16: bool) -> ConfusionMatrix:
    """Confusion matrix of a network over clips that follow each other as one stream."""
    network.eval()
    score = ConfusionMatrix(network.head.out_channels)
    state: Tensor | None = None
    for clip in clips:
        frames = torch.from_numpy(clip.rgb).movedim(-1, 1).float()
        if state is None:
            state = torch.zeros(1, *network.state_shape(clip.labels.shape[1:]))
        for frame, truth in zip(frames, clip.labels, strict=True):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits, state = network(frame[None], state)
            logits = nn.functional.interpolate(
                logits.float(), truth.shape, mode="bilinear", align_corners=False
            )
            score.add(truth, logits[0].argmax(0).numpy())
    return score


def _decay_groups(network: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Weight decay for kernels only: biases and batch norm keep their scale."""
    kernels = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    return [{"params": kernels, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


def _ahead(sampler: ClipSampler, phase: Phase, steps: range) -> Queue[Batch | Exception]:
    """Make the batches of `steps` in a thread, at most three ahead of their use: uint8, RGB last."""
    batches: Queue[Batch | Exception] = Queue(maxsize=3)

    def produce() -> None:
        for step in steps:
            rgb, labels = sampler.batch(step, phase.batch, phase.frames)
            # No torch arithmetic here: its threads would spin beside those of the training.
            batches.put((torch.from_numpy(rgb), torch.from_numpy(labels)))

    def produce_or_tell() -> None:
        try:
            produce()
        except Exception as error:  # else the training would wait for it for ever
            batches.put(error)

    Thread(target=produce_or_tell, daemon=True).start()
    return batches


def main(config: Path, out: Path) -> Path:
    """Train as `config` says, in folder `out`; an interrupted run in that folder goes on."""
    trainer = Trainer(TrainConfig.read(config), out, say=lambda line: print(line, flush=True))
    trainer.resume()
    return trainer.run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
