"""What `roadmask train` reads: one YAML file, checked key by key. Paths are relative to where it is run."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from models.errors import DataError
from models.footage import NameFilter
from models.labels import MOST_MASKS
from models.spec import CAMVID_CLASSES, CAMVID_RGB, Spec

GOLDEN_SHARE = 0.618034  # its multiples, less their whole parts, are spread evenly over 0 to 1

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]


def _is_pattern(value: str) -> str:
    NameFilter(value)  # raises DataError, a ValueError, for what is none
    return value


Pattern = Annotated[str, AfterValidator(_is_pattern)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Strict):
    """A folder of data, as `models.footage` describes it.

    A plain string in the YAML is such a folder with everything in it.
    """

    folder: Path = Field(description="data folder")
    include: Pattern | None = Field(
        None, description="regular expression: only names it is found in"
    )
    exclude: Pattern | None = Field(
        None, description="regular expression: names it is found in stay out"
    )
    sequence_step: int = Field(
        0, ge=0,
        description="pictures whose names end in numbers that rise by this follow each other as a"
        " clip; 0: each is a still",
    )  # fmt: skip

    @property
    def names(self) -> NameFilter:
        return NameFilter(self.include, self.exclude)


def _as_source(raw: Any) -> Any:
    return {"folder": raw} if isinstance(raw, str) else raw


AnySource = Annotated[Source, BeforeValidator(_as_source)]


class Losses(_Strict):
    """Weights of the terms of the loss; 0 leaves one out. `models.training.losses` says what each one is."""

    cross_entropy: Weight = Field(
        1.0, description="by class weights; for a sigmoid head binary, a mask a class"
    )
    hard_pixels: Weight = Field(0.0, description="cross-entropy of the hardest pixels (OHEM)")
    hard_share: float = Field(0.25, gt=0, le=1, description="share of pixels that count as hard")
    lovasz: Weight = Field(0.0, description="Lovász: 1 - IoU, on every fourth pixel each way")
    dice: Weight = Field(0.0, description="1 - Dice coefficient")
    auxiliary: Weight = Field(
        0.3, description="cross-entropy of the coarse logits, if there are any"
    )
    boundary: Weight = Field(0.0, description="balanced cross-entropy of the boundary head")
    steadiness: Weight = Field(0.0, description="change along the motion of an imagined camera")
    flow_steadiness: Weight = Field(0.0, description="change along optical flow, where frames move")
    motion: Weight = Field(0.0, description="of a network that finds motion: how far it is off")
    distillation: Weight = Field(0.0, description="divergence from the teacher's probabilities")
    temperature: float = Field(2.0, gt=0, description="softens both sides of the distillation")

    @model_validator(mode="after")
    def _has_a_term(self) -> Losses:
        if not (self.cross_entropy or self.hard_pixels or self.dice or self.lovasz
                or self.distillation or self.motion):  # fmt: skip
            raise ValueError(
                "one of cross_entropy, hard_pixels, lovasz, dice, distillation, motion must be over 0"
            )
        return self


class Augment(_Strict):
    """How clips are changed, all frames of a clip alike. Shares are of clips, 0 switches off.

    Scale and crop belong to a phase (`scale_range`, `crop_hw`).
    """

    flip: Share = Field(0.5, description="share mirrored left to right")
    roll_degrees: float = Field(2.0, ge=0, description="standard deviation of the rotation")
    moving: Share = Field(0.7, description="share of stills that become clips of a moving camera")
    drift: float = Field(1.0, ge=0, description="its motion; 1: about 5 pixels a frame")
    contrast: float = Field(0.14, ge=0, description="standard deviation of the log of a gain")
    brightness: float = Field(10.0, ge=0, description="standard deviation of a shift, grey levels")
    gamma: float = Field(0.14, ge=0, description="standard deviation of the log of the exponent")
    saturation: float = Field(0.25, ge=0, description="standard deviation of a factor around 1")
    tint: float = Field(0.05, ge=0, description="standard deviation of the log gain of a channel")
    strong: Share = Field(0.25, description="share with 1.7 times these changes of colour")
    noise: Share = Field(0.4, description="share with noise")
    noise_levels: float = Field(9.0, ge=0, description="its largest deviation, grey levels")
    blur: Share = Field(0.2, description="share blurred")
    blur_pixels: tuple[float, float] = Field((0.3, 1.3), description="deviation of the Gaussian")
    occlusion: Share = Field(
        0.4, description="share of clips in which something hides a part of some frames on end"
    )
    rain: Share = Field(0.0, description="share with streaks of rain")
    rain_density: tuple[float, float] = Field(
        (100.0, 500.0), description="streaks, per 100 000 pixels"
    )
    glare: Share = Field(0.0, description="share with a low sun in or near the picture")
    glare_strength: tuple[float, float] = Field((0.3, 0.9), description="1 whitens its middle")
    jpeg: Share = Field(0.0, description="share compressed as JPEG")
    jpeg_quality: tuple[int, int] = Field((15, 80), description="0-100")

    @field_validator("blur_pixels", "rain_density", "glare_strength", "jpeg_quality")
    @classmethod
    def _rises(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] <= value[1]:
            raise ValueError(f"must be [low, high], 0 <= low <= high, got {list(value)}")
        return value


class Sampling(_Strict):
    """Which frames and crops are drawn."""

    rare: tuple[str, ...] | None = Field(
        None, description="classes to draw more often; by default those under `rare_below`"
    )
    rare_below: Share = Field(0.02, description="share of the labelled pixels")
    focus: Share = Field(0.5, description="share of crops centred on a pixel of a rare class")
    rare_frames: Share = Field(
        0.0, description="share of clips drawn from those that hold a rare class, each class alike"
    )


class Phase(_Strict):
    """A stretch of training with its own clips and its own learning-rate curve."""

    steps: int = Field(gt=0, description="optimiser steps")
    batch: int = Field(gt=0, description="clips a step, over all processes")
    frames: int = Field(gt=0, description="frames a clip; the gradient flows through all of them")
    burn_in: int = Field(
        0, ge=0,
        description="most frames before those of the clip that, in every other step, only fill the"
        " memory: no loss, no gradient (burn-in, Kapturowski et al., ICLR 2019)",
    )  # fmt: skip
    crop_hw: tuple[int, int] = Field(description="height and width of the crops, pixels")
    scale_range: tuple[float, float] = Field(description="smallest and largest zoom")
    peak_rate: float = Field(gt=0, description="learning rate after warm-up")
    final_rate: float = Field(ge=0, description="learning rate at the end")
    warmup_steps: int = Field(100, ge=0, description="steps of linear rise to the peak")
    schedule: Literal["cosine", "poly"] = Field("cosine", description="how the rate falls")
    poly_power: float = Field(0.9, gt=0, description="exponent of the poly schedule")
    rendered_share: Share = Field(0.0, description="share of clips that are rendered")
    only: Pattern | None = Field(
        None, description="pattern of the names of the parameters trained; the others stay"
    )
    losses: Losses | None = Field(None, description="instead of the file's losses")
    augment: Augment | None = Field(None, description="instead of the file's augmentation")

    def burn_in_of(self, step: int) -> int:
        """Frames of burn-in in a step: none in every other one, for a stream's first frames must be right
        too; else 1 to `burn_in`, each doubling as often, for a memory must stand many ages."""
        if not self.burn_in or step % 2 == 0:
            return 0
        share = step // 2 * GOLDEN_SHARE % 1  # spread evenly from the first steps on
        return round(self.burn_in**share)

    def trains(self, parameter: str) -> bool:
        return NameFilter(self.only).wants(parameter)

    @field_validator("crop_hw", "scale_range")
    @classmethod
    def _positive(cls, value: tuple[float, float]) -> tuple[float, float]:
        if min(value) <= 0:
            raise ValueError(f"must be over 0, got {list(value)}")
        return value

    @field_validator("crop_hw")
    @classmethod
    def _fits_the_networks(cls, value: tuple[int, int]) -> tuple[int, int]:
        if value[0] % 8 or value[1] % 8:
            raise ValueError(f"must be multiples of 8 pixels, got {list(value)}")
        return value

    @field_validator("scale_range")
    @classmethod
    def _rises(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError(f"must be [smallest, largest], got {list(value)}")
        return value


class TrainConfig(_Strict):
    """A whole training."""

    model: str = Field("roadnet", description="the finished model's name")
    network: str = Field("RoadNet", description="a network of `models.registry`")
    options: dict[str, Any] = Field({}, description="of the network's constructor")
    head: Literal["softmax", "sigmoid"] = Field(
        "softmax", description="one class a pixel, or a mask a class of which several may hold"
    )
    recurrent: bool = Field(True, description="False: no memory, each frame by itself")
    boundary: bool = Field(False, description="a boundary head as second task")
    in_channels: int = Field(3, ge=3, description="3, and further planes from planes/NAME.png|npy")
    classes: tuple[str, ...] = Field(CAMVID_CLASSES, min_length=1)
    palette_rgb: tuple[tuple[int, int, int], ...] | None = Field(
        None, description="a colour a class; by default CamVid's, or evenly spaced hues"
    )
    short_side: int = Field(360, gt=0, description="rows the model will be run at, pixels")

    train_on: tuple[AnySource, ...] = Field(min_length=1)
    validate_on: tuple[AnySource, ...] = ()
    allow_empty_classes: bool = Field(
        False, description="go on though a class never occurs in the training data"
    )
    sampling: Sampling = Sampling.model_validate({})
    augment: Augment = Augment.model_validate({})
    losses: Losses = Losses.model_validate({})
    teacher: str | None = Field(None, description="a model to distil: its name or folder")
    init: str | None = Field(
        None, description="a model whose weights to start from, where they fit"
    )

    seed: int = Field(0, ge=0, lt=2**31)
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    weight_decay: float = Field(0.02, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD (Nesterov's)")
    clip_norm: float = Field(5.0, gt=0, description="largest norm of the gradient")
    ema: float = Field(0.998, gt=0, lt=1, description="decay of the averaged weights")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: a GPU if there is one"
    )
    precision: Literal["f32", "bf16", "f16"] = Field(
        "bf16", description="of the forward pass; bf16 is twice as fast where the CPU has it"
    )
    compile: bool = Field(
        False, description="torch.compile: minutes at first, then faster on a GPU"
    )
    threads: int = Field(2, gt=0, description="of PyTorch on the CPU")
    workers: int = Field(0, ge=0, description="processes that make batches; 0: one thread does")
    validate_every: int = Field(1000, gt=0, description="steps between validations")
    checkpoint_every: int = Field(250, gt=0, description="steps between checkpoints")
    log_every: int = Field(50, gt=0, description="steps between lines of the log")
    tensorboard: bool = Field(True, description="also write TensorBoard's events, if installed")
    phases: tuple[Phase, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _agrees(self) -> TrainConfig:
        for number, phase in enumerate(self.phases):
            losses = self.losses_of(phase)
            if bool(losses.boundary) != self.boundary:
                raise ValueError(
                    f"boundary is {self.boundary}, but losses.boundary of phase {number} is"
                    f" {losses.boundary}: give both or neither"
                )
            if losses.motion and phase.frames < 2:
                raise ValueError(
                    f"losses.motion of phase {number} is over 0: it wants clips, frames of 2 or more"
                )
            if losses.distillation and self.teacher is None:
                raise ValueError("losses.distillation is over 0, but there is no teacher")
        if self.teacher and not any(self.losses_of(phase).distillation for phase in self.phases):
            raise ValueError("there is a teacher, but losses.distillation is 0 in every phase")
        if self.head == "sigmoid" and len(self.classes) > MOST_MASKS:
            raise ValueError(
                f"a sigmoid head has at most {MOST_MASKS} classes, got {len(self.classes)}"
            )
        unknown = set(self.sampling.rare or ()) - set(self.classes)
        if unknown:
            raise ValueError(f"sampling.rare names {sorted(unknown)}, which are no classes")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes must differ from each other")
        return self

    def losses_of(self, phase: Phase) -> Losses:
        return phase.losses or self.losses

    def augment_of(self, phase: Phase) -> Augment:
        return phase.augment or self.augment

    @property
    def total_steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def spec(self) -> Spec:
        """The specification of the model to be trained. Raises SpecError for a wrong one."""
        palette = self.palette_rgb
        if palette is None:
            palette = CAMVID_RGB if self.classes == CAMVID_CLASSES else hues(len(self.classes))
        return Spec(
            name=self.model, network=self.network, options=self.options, head=self.head,
            recurrent=self.recurrent, boundary=self.boundary, in_channels=self.in_channels,
            classes=self.classes, palette_rgb=palette, short_side=self.short_side,
        )  # fmt: skip

    @classmethod
    def read(cls, path: Path, changes: Sequence[str] = ()) -> TrainConfig:
        """A configuration file, with `changes` such as "seed=2" or "phases.0.steps=100" made to it.

        Raises DataError in one line for a file that is missing or not a valid configuration.
        """
        try:
            raw = yaml.safe_load(path.read_text("utf-8"))
            for change in changes:
                _change(raw, change)
            return cls.model_validate(raw)
        except OSError as error:
            raise DataError(f"cannot read configuration {path}: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise DataError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise DataError(f"{path}: {where}: {first['msg']}") from error


def _change(raw: Any, change: str) -> None:
    """Set one value of a parsed file: KEY=VALUE, the key dotted, the value YAML."""
    key, equals, value = change.partition("=")
    *parents, last = [int(part) if part.isdecimal() else part for part in key.split(".")]
    try:
        for part in parents:
            raw = raw.setdefault(part, {}) if isinstance(raw, dict) else raw[part]
        if not equals:
            raise KeyError(last)
        raw[last] = yaml.safe_load(value)
    except (LookupError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise DataError(
            f"a change must be KEY=VALUE, a key of the file and YAML, got {change!r}"
        ) from error


def hues(count: int) -> tuple[tuple[int, int, int], ...]:
    """Colours 0-255 that differ: hues a golden section apart, two brightnesses."""
    colors = []
    for index in range(count):
        rgb = colorsys.hsv_to_rgb(index * GOLDEN_SHARE % 1, 0.75, 0.9 if index % 2 else 0.6)
        colors.append((round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2])))
    return tuple(colors)
