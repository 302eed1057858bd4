"""A live run as a node of a cluster has it: its own engine, and what its cameras leave behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pipeline import __version__
from pipeline.engines import engine_factory
from pipeline.errors import ConfigError, ModelError
from pipeline.live.address import Address
from pipeline.live.command import Outputs
from pipeline.live.config import LiveConfig, engine_slots, prepare_live
from pipeline.live.delivery import CameraConfig
from pipeline.live.lane import CameraHandle
from pipeline.live.live import Listener, LiveHub
from pipeline.live.metering import LiveMeter
from pipeline.live.site import Expected, Site
from pipeline.metrics.meters import Meters
from pipeline.session import Recorder

RemoteCameraKind = Callable[[str, Address, CameraConfig, Recorder | None], CameraHandle]


def open_site(
    config: LiveConfig, expected: Expected, make_camera: RemoteCameraKind, meters: Meters
) -> Site:
    """A site for a run, with this machine's engine, whose stages tell `meters` how long they take.

    Raises ConfigError for another version, ModelError for a model that is not here or another one, or as
    `prepare_live`.
    """
    if __version__ != expected.version:
        raise ConfigError(
            f"has Roadmask {__version__}, the run's is {expected.version}: install the same everywhere"
        )
    plan = prepare_live(replace(config, sources=(), address=None))
    found = plan.files.weights_sha256()
    if found != expected.weights_sha256:
        raise ModelError(
            f"model {config.model!r} has other weights here ({found[:12]}) than where the run was started"
            f" ({expected.weights_sha256[:12]}): copy its folder"
        )
    outputs = Outputs(plan)

    def make(name: str, address: Address, camera_config: CameraConfig) -> CameraHandle:
        return make_camera(name, address, camera_config, outputs.recorder)

    def make_hub(listeners: tuple[Listener, ...]) -> LiveHub:
        return LiveHub(
            plan.camera_config,
            engine_factory(plan.choice, plan.files, plan.spec, engine_slots(plan.choice)),
            make,
            longest_gap_seconds=config.longest_gap_seconds,
            listeners=(LiveMeter(meters), *outputs.listeners, *listeners),
        )

    return Site(make_hub, outputs)
