"""`roadmask live`: puts the parts together, runs until there is a reason to stop, and closes them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import __version__
from pipeline.engines import engine_factory
from pipeline.errors import PipelineError, StageError
from pipeline.live.address import Address
from pipeline.live.camera import Camera
from pipeline.live.config import LivePlan, engine_slots
from pipeline.live.connection import picture_size
from pipeline.live.console import Console
from pipeline.live.delivery import CameraConfig
from pipeline.live.events import Events, Rule, parse_rule
from pipeline.live.fleet import Fleet
from pipeline.live.hub import CameraStatus
from pipeline.live.lane import CameraHandle
from pipeline.live.live import Listener, LiveHub, MakeCamera
from pipeline.live.publish import MakeWriter, OverlayStream, Publisher, check_target, is_push
from pipeline.live.recording import LabelRecording, make_recorder
from pipeline.live.segments import SegmentFiles, SegmentOptions
from pipeline.live.site import Expected
from pipeline.palette import Palette
from pipeline.session import Recorder

_TICK_SECONDS = 0.2
StartView = Callable[[Any], Any]  # of a `LiveHub` or a `Fleet`


@dataclass(frozen=True)
class LiveReport:
    """How a live run ended.

    Attributes:
        cameras: their last figures.
        problems: what went wrong, a line each; empty if nothing did.
    """

    cameras: tuple[CameraStatus, ...]
    problems: tuple[str, ...]


def run_live(
    plan: LivePlan,
    console: Console,
    stop: Callable[[], bool],
    start_view: StartView | None = None,
) -> LiveReport:
    """Run until `stop` says so, the time is over, or every camera has ended and nobody looks.

    Args:
        plan: what to run.
        console: is told of everything.
        stop: asked five times a second.
        start_view: starts the view of a hub and returns it; None for none.

    Raises PipelineError if the run cannot begin, or the network fails.
    """
    if plan.config.address is not None:
        return _run_on_cluster(plan, console, stop, start_view)
    with ExitStack() as stack:
        outputs = Outputs(plan)
        stack.callback(outputs.close)
        kind = stack.enter_context(_camera_kind(plan, outputs))
        hub = LiveHub(
            plan.camera_config,
            engine_factory(plan.choice, plan.files, plan.spec, engine_slots(plan.choice)),
            kind,
            longest_gap_seconds=plan.config.longest_gap_seconds,
            listeners=(console, *outputs.listeners),
        )
        try:
            with hub:
                view = stack.enter_context(_viewed(hub, start_view))
                _add_cameras(plan, hub, console, stop)
                _watch(plan, hub, console, stop, forever=view is not None)
                cameras = tuple(hub.cameras())
        finally:
            outputs.close()
            if hub.preparing:  # in native code, which the interpreter waits for before it ends
                console.say("waiting for the network, which was just being made")
    _raise_failure(hub.failure)
    return LiveReport(cameras, (*_ended_badly(cameras), *outputs.problems))


def _run_on_cluster(
    plan: LivePlan, console: Console, stop: Callable[[], bool], start_view: StartView | None
) -> LiveReport:
    """As `run_live`, with the cameras, the networks and the outputs on the nodes of a cluster."""
    from pipeline.live.actors import nodes  # Ray takes a second to import

    check_outputs(plan)
    expected = Expected(__version__, plan.files.weights_sha256())
    with ExitStack() as stack:
        places = stack.enter_context(nodes(plan.config, expected))
        fleet = Fleet(plan.camera_config, places, listeners=(console,), say=console.say)
        with fleet:
            view = stack.enter_context(_viewed(fleet, start_view))
            for address, name in plan.cameras:
                fleet.add_address(address, name)
            _watch(plan, fleet, console, stop, forever=view is not None)
            cameras = tuple(fleet.cameras())
    _raise_failure(fleet.failure)
    return LiveReport(cameras, (*_ended_badly(cameras), *fleet.problems))


def _add_cameras(plan: LivePlan, hub: LiveHub, console: Console, stop: Callable[[], bool]) -> None:
    """Add what was named; files when the network is there, or they would be over before it."""
    files = [address for address, _ in plan.cameras if address.kind == "file"]
    for address, name in plan.cameras:
        if address not in files:
            hub.add_address(address, name)
    sizes = {picture_size(address) for address in files} - {None}
    hub.prepare([plan.camera_config.model_hw(size_hw) for size_hw in sizes if size_hw])
    if hub.preparing:
        console.say("making the network: files are played once it is there")
    while hub.preparing and not stop():
        time.sleep(_TICK_SECONDS / 4)
    for address, name in plan.cameras:
        if address in files:
            hub.add_address(address, name)


@contextmanager
def _viewed(hub: LiveHub | Fleet, start_view: StartView | None) -> Iterator[Any]:
    if start_view is None:
        yield None
        return
    view = start_view(hub)
    try:
        yield view
    finally:
        view.close()


def _watch(
    plan: LivePlan,
    hub: LiveHub | Fleet,
    console: Console,
    stop: Callable[[], bool],
    *,
    forever: bool,
) -> None:
    duration = plan.config.duration_seconds
    ends_at = time.monotonic() + duration if duration is not None else float("inf")
    warned = False
    while not stop() and time.monotonic() < ends_at and hub.failure is None:
        if hub.over and not forever:
            return
        console.show(hub.cameras())
        slowest = max(hub.step_ms().values(), default=0.0)
        if slowest > 1000 * plan.camera_config.max_latency_seconds and not warned:
            warned = True
            console.say(
                f"a step of the network takes {slowest:.0f} ms: the limit of"
                f" {1000 * plan.camera_config.max_latency_seconds:.0f} ms cannot be held"
            )
        time.sleep(min(_TICK_SECONDS, max(0.0, ends_at - time.monotonic())))


def check_outputs(plan: LivePlan) -> tuple[Rule, ...]:
    """The rules of the events. Raises ConfigError if they, or what is to be published, make no sense."""
    if plan.config.publish is not None:
        check_target(plan.config.publish)
    return tuple(parse_rule(text, plan.spec.classes) for text in plan.config.events)


class Outputs:
    """Whatever a run was asked to leave behind."""

    def __init__(self, plan: LivePlan) -> None:
        config, spec = plan.config, plan.spec
        palette = Palette(spec.classes, np.array(spec.palette_rgb, np.uint8))
        rules = check_outputs(plan)
        self.recorder: Recorder | None = make_recorder(plan)
        self.segments = self.publisher = None
        self._palette, self._events = palette, Events(rules) if rules else None
        if config.out is not None:
            options = SegmentOptions(
                config.segment_seconds, config.overlay, config.keep_seconds, config.keep_bytes
            )
            self.segments = SegmentFiles(config.out, palette, plan.facts(), options)
        if config.publish is not None:
            self.publisher = Publisher(config.publish, palette, _writer_kind(plan))
        self._closed = False
        self._recording_problem: str | None = None

    @property
    def listeners(self) -> tuple[Listener, ...]:
        recording = LabelRecording(self.recorder) if self.recorder is not None else None
        found = (recording, self.segments, self.publisher, self._events)
        return tuple(listener for listener in found if listener is not None)

    @property
    def problems(self) -> tuple[str, ...]:
        found = list(self.segments.problems) if self.segments is not None else []
        if self._recording_problem is not None:
            found.append(self._recording_problem)
        if self._events is not None and self._events.lost:
            found.append(f"{self._events.lost} events could not be delivered")
        return tuple(found)

    def close(self) -> None:
        """Close every file; the hub has ended before. May be called again."""
        if self._closed:
            return
        self._closed = True
        if self.segments is not None:
            self.segments.close()
        if self.publisher is not None:
            self.publisher.close()
        if self._events is not None:
            self._events.close()
        if self.recorder is not None:
            try:
                self.recorder.close()
            except PipelineError as error:
                self._recording_problem = str(error)


def _writer_kind(plan: LivePlan) -> MakeWriter:
    assert plan.config.publish is not None
    if not is_push(plan.config.publish):
        return OverlayStream
    from pipeline.live.actors import RemoteOverlay  # Ray takes a second to import

    return RemoteOverlay


@contextmanager
def _camera_kind(plan: LivePlan, outputs: Outputs) -> Iterator[MakeCamera]:
    recorder = outputs.recorder
    if plan.config.inline:

        def make(name: str, address: Address, config: CameraConfig) -> CameraHandle:
            return Camera(address, config, recorder.camera(name) if recorder is not None else None)

        if plan.config.publish is None or not is_push(plan.config.publish):
            yield make
            return
        from pipeline.actors import cluster  # Ray takes a second to import

        with cluster(None):  # for what sends to a server
            yield make
        return
    from pipeline.live.actors import remote_cameras

    with remote_cameras(recorder) as remote:
        yield remote


def _ended_badly(cameras: tuple[CameraStatus, ...]) -> Iterator[str]:
    for camera in cameras:
        last = camera.history[-1] if camera.history else None
        if last is not None and last.state == "ended" and last.reason not in ENDED_WELL:
            yield f"{camera.name}: {last.reason}"
        elif not camera.frames:
            why = f": {last.reason}" if last is not None else ""
            yield f"{camera.name}: gave no frame{why}"


ENDED_WELL = ("the stream ended", "removed")


def _raise_failure(failure: BaseException | None) -> None:
    if isinstance(failure, PipelineError):
        raise failure
    if failure is not None:
        raise StageError(f"the network failed: {type(failure).__name__}: {failure}") from failure
