"""What `roadmask run` is asked to do, checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.spec import DEFAULT_MODEL
from pipeline.cluster.storage import is_remote
from pipeline.errors import ConfigError
from pipeline.sinks import OutputOptions

PLACEMENTS = ("auto", "fused", "spread", "inline")
SHORTEST_SPAN_SECONDS = 2.0


@dataclass(frozen=True)
class RunConfig:
    """What `roadmask run` was asked to do.

    Attributes:
        sources: files, folders, globs.
        out: folder that gets one folder a source.
        options: which files to write.
        model: a shipped model's name or a model's folder.
        engine: "auto", "cpu", "cuda" or "tensorrt".
        precision: "auto", "f32", "f16", "bf16", "int8" or "fp8".
        size_hw: input size of the network in pixels, multiples of 8; None for what the model says.
        placement: "auto", "fused", "spread" or "inline".
        address: of a running Ray cluster; None for a Ray of our own on this machine.
        chunk: frames a batch, at least 1.
        resume: go on with what an earlier run of the same configuration began; skip what it finished.
        checkpoint_seconds: how often what is written is brought to the disk so that a run that was cut
            off can go on there; at the next multiple of `GROUP_FRAMES` frames, 0 for at each.
        to: address that the results go to instead, such as s3://bucket/folder; None for `out`.
        tries: on a cluster, and where sources or results are far away, failures after which a source is put
            aside.
        segmenters: of each GPU of a cluster.
        split_seconds: there, files of twice this are labelled in spans about so long; None never splits.
        hwaccel: kind of device that decodes videos, by FFmpeg's name, such as "cuda"; None for the cores.
    """

    sources: tuple[str, ...]
    out: Path
    options: OutputOptions
    model: str = DEFAULT_MODEL
    engine: str = "auto"
    precision: str = "auto"
    size_hw: tuple[int, int] | None = None
    placement: str = "auto"
    address: str | None = None
    chunk: int = 8
    resume: bool = False
    checkpoint_seconds: float = 5.0
    to: str | None = None
    tries: int = 3
    segmenters: int = 1
    split_seconds: float | None = None
    hwaccel: str | None = None

    @property
    def far(self) -> bool:
        """Whether it is a job with a ledger: on a cluster, or with sources or results far away."""
        away = [s for s in self.sources if is_remote(s) and not s.lower().startswith("http")]
        return self.address is not None or self.to is not None or bool(away)

    def __post_init__(self) -> None:
        if self.checkpoint_seconds < 0:
            raise ConfigError(
                f"checkpoint_seconds must be 0 (as often as can be) or more, got"
                f" {self.checkpoint_seconds}"
            )
        if not self.sources:
            raise ConfigError("no source given: name a video, a folder or a glob")
        if self.placement not in PLACEMENTS:
            raise ConfigError(
                f"unknown placement {self.placement!r}: choose one of {', '.join(PLACEMENTS)}"
            )
        if self.tries < 1 or self.segmenters < 1:
            raise ConfigError(
                f"tries and segmenters must be at least 1, got {self.tries} and {self.segmenters}"
            )
        if self.split_seconds is not None and not self.split_seconds >= SHORTEST_SPAN_SECONDS:
            raise ConfigError(
                f"spans must be at least {SHORTEST_SPAN_SECONDS:g} s, got {self.split_seconds:g}: the"
                " warm-up would cost more than it gains"
            )
        if not self.far and (self.split_seconds is not None or self.segmenters > 1):
            raise ConfigError(
                "--split and --segmenters are for jobs over a cluster or buckets: give --address"
            )
        if self.chunk < 1:
            raise ConfigError(f"chunk must be at least 1 frame, got {self.chunk}")
        if self.placement == "inline" and self.address is not None:
            raise ConfigError("--inline runs in this process: it cannot be combined with --address")
        check_size(self.size_hw)
        check_hwaccel(self.hwaccel)


def whereto(out: str) -> dict[str, Any]:
    """`out` and `to` of a configuration, from what a user gave."""
    return {"out": Path(out), "to": out if is_remote(out) else None}


def check_size(size_hw: tuple[int, int] | None) -> None:
    """Raises ConfigError for an input size that no network takes; None is the model's own."""
    if size_hw is not None and (min(size_hw) < 32 or any(s % 8 for s in size_hw)):
        height, width = size_hw
        raise ConfigError(
            f"size must be multiples of 8 from 32 up, height x width, got {height}x{width}"
        )


def check_hwaccel(name: str | None) -> None:
    """Raises ConfigError for a kind of device that PyAV's FFmpeg cannot decode on; None is the cores."""
    if name is None:
        return
    from pipeline.media import hardware_devices  # takes a while, and few ask

    known = hardware_devices()
    if name not in known:
        raise ConfigError(
            f"unknown --hwaccel {name!r}: this FFmpeg decodes on {', '.join(known) or 'none'}"
        )
