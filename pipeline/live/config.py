"""What `roadmask live` was asked to do, and what that comes to on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from models.spec import DEFAULT_MODEL, ModelFiles, Spec
from pipeline.engines import ENGINES, EngineChoice, check_fit, choose_engine, with_kernels
from pipeline.errors import ConfigError
from pipeline.live.address import (
    Address,
    check_anywhere,
    check_name,
    parse_address,
    split_name,
)
from pipeline.live.delivery import CameraConfig
from pipeline.run import check_size, model_files, name_anywhere
from pipeline.versions import versions

GPU_LATENCY_MS = 200.0
CPU_LATENCY_MS = (
    500.0  # a step takes 15 to 30 ms on two cores, and a burst of cameras must queue for it
)


def engine_slots(choice: EngineChoice) -> int:
    """Cameras whose states lie in the engine's own memory, and the most that a batch has; the states of
    further ones are swapped."""
    return 64 if choice.on_gpu else 16


@dataclass(frozen=True)
class LiveConfig:
    """What `roadmask live` was asked to do.

    Attributes:
        sources: cameras, each a URL or a device, `NAME=` before it to name it; files with `realtime`.
        model, engine, precision, size_hw: as in `RunConfig`.
        max_latency_ms: frames that would be labelled later than this after they arrived are dropped;
            None for 200 on a GPU and 500 on a CPU.
        silence_seconds: without a frame for so long, a camera is opened anew.
        open_seconds: how long opening one may take.
        attempts: to open one in a row before it is given up; None for ever.
        longest_gap_seconds: a gap in a camera's frames up to this long keeps its memory.
        realtime: files may be named, and are played at their own pace.
        inline: cameras are threads of this process instead of processes.
        duration_seconds: how long to run; None until all files have ended, or for ever.
        out: folder for rolling segments of colours and labels; None for none.
        segment_seconds: length of a segment.
        overlay: segments have the colours over the pictures too.
        record: folder of the session to record into; None for none.
        keep_seconds, keep_bytes: of `out` and of `record`, each: older segments are removed, and the oldest
            beyond this size; None for no limit.
        publish: where the overlay goes, with `{camera}` for the name; None for nowhere.
        events: rules such as "pedestrian>0.05 for 2s -> https://...".
        address: of a running Ray cluster whose nodes share the cameras; None for this machine alone.

    Raises ConfigError if they contradict each other.
    """

    sources: tuple[str, ...]
    model: str = DEFAULT_MODEL
    engine: str = "auto"
    precision: str = "auto"
    size_hw: tuple[int, int] | None = None
    max_latency_ms: float | None = None
    silence_seconds: float = 10.0
    open_seconds: float = 10.0
    attempts: int | None = None
    longest_gap_seconds: float = 1.0
    realtime: bool = False
    inline: bool = False
    duration_seconds: float | None = None
    out: Path | None = None
    segment_seconds: float = 600.0
    overlay: bool = False
    record: Path | None = None
    keep_seconds: float | None = None
    keep_bytes: int | None = None
    publish: str | None = None
    events: tuple[str, ...] = ()
    address: str | None = None

    def __post_init__(self) -> None:
        check_size(self.size_hw)
        for name, least in (("max_latency_ms", 1.0), ("silence_seconds", 0.1),
                            ("open_seconds", 0.1), ("segment_seconds", 0.1),
                            ("keep_seconds", 1.0), ("keep_bytes", 1),
                            ("duration_seconds", 0.0), ("attempts", 1)):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ConfigError(f"{name} must be at least {least:g}, got {value:g}")
        if self.address is not None:
            self._check_cluster()
        if self.overlay and self.out is None:
            raise ConfigError("--overlay is written beside the colours: give --out too")
        limited = self.keep_seconds is not None or self.keep_bytes is not None
        if limited and self.out is None and self.record is None:
            raise ConfigError("there is nothing to keep: give --out or --record too")

    def _check_cluster(self) -> None:
        if self.inline:
            raise ConfigError("--inline runs in this process: it cannot be combined with --address")
        if self.record is not None:
            raise ConfigError(
                "--record keeps the cameras of one machine: it cannot be combined with --address"
            )
        if self.engine not in (*ENGINES, "counting"):
            raise ConfigError(f"unknown engine {self.engine!r}: choose one of {', '.join(ENGINES)}")


@dataclass(frozen=True)
class LivePlan:
    """A checked live run, ready to go.

    Attributes:
        config: as it was asked for.
        cameras: addresses, and the names they were given, None where they were not.
        files: the model's.
        choice: the engine.
        form_sha256: of the form of the model that the engine reads, None if it reads the weights.
        camera_config: how cameras are opened and watched.
    """

    config: LiveConfig
    cameras: tuple[tuple[Address, str | None], ...]
    files: ModelFiles
    choice: EngineChoice
    form_sha256: str | None
    camera_config: CameraConfig

    @property
    def spec(self) -> Spec:
        return self.camera_config.spec

    def decisions(self) -> list[str]:
        """What was decided and why, a line each."""
        limit = 1000 * self.camera_config.max_latency_seconds
        why = "asked for" if self.config.max_latency_ms else f"the default on {self._device}"
        where = "threads of this process" if self.config.inline else "processes of their own"
        if self.config.address is not None:
            return [f"engine and latency limit: {self.choice.reason}", f"cameras are {where} there"]
        return [
            f"engine {self.choice.name} ({self.choice.runtime}): {self.choice.reason}",
            f"frames are dropped when older than {limit:.0f} ms: {why}",
            f"cameras are {where}",
        ]

    @property
    def _device(self) -> str:
        return "a CPU" if self.choice.name in ("cpu", "counting") else "a GPU"

    def facts(self) -> dict[str, Any]:
        """What manifests say of model, engine and versions."""
        return {
            "model": {"name": self.spec.name, "weights_sha256": self.files.weights_sha256(),
                      "size_hw": self.config.size_hw or "by the source's aspect"},
            "engine": {"name": self.choice.name, "runtime": self.choice.runtime,
                       "reason": self.choice.reason, "form_sha256": self.form_sha256},
            "max_latency_ms": 1000 * self.camera_config.max_latency_seconds,
            "versions": versions(),
        }  # fmt: skip


def prepare_live(config: LiveConfig) -> LivePlan:
    """Check all that can be checked before a camera is opened.

    Raises ConfigError, ModelError or EngineError.
    """
    files, spec = model_files(config.model)
    if config.address is not None:  # what this machine could run the network with says nothing
        config = _named_anywhere(config, files)
        choice, form = EngineChoice("cluster", "", "each node chooses its own"), None
    else:
        choice = with_kernels(choose_engine(config.engine, config.precision), files)
        form = check_fit(choice, files)
    on_cpu = choice.name in ("cpu", "counting", "cluster")
    usual_ms = CPU_LATENCY_MS if on_cpu else GPU_LATENCY_MS
    camera_config = CameraConfig(
        spec=spec,
        size_hw=config.size_hw,
        max_latency_seconds=(config.max_latency_ms or usual_ms) / 1000,
        open_seconds=config.open_seconds,
        silence_seconds=config.silence_seconds,
        quiet_seconds=min(2.0, config.silence_seconds / 2),
        attempts=config.attempts,
        recorded=config.record is not None,
    )
    return LivePlan(config, _cameras(config), files, choice, form, camera_config)


def _named_anywhere(config: LiveConfig, files: ModelFiles) -> LiveConfig:
    """With full paths: the nodes' own working folders are others."""
    publish = config.publish
    if publish is not None and "://" not in publish:
        publish = os.path.abspath(publish)
    return replace(
        config, model=name_anywhere(config.model, files), publish=publish,
        out=None if config.out is None else config.out.absolute(),
    )  # fmt: skip


def _cameras(config: LiveConfig) -> tuple[tuple[Address, str | None], ...]:
    cameras = []
    for source in config.sources:
        name, url = split_name(source)
        given = check_name(name) if name is not None else None
        address = parse_address(url, files=config.realtime)
        if config.address is not None:
            check_anywhere(address)
        cameras.append((address, given))
    return tuple(cameras)
