"""Cameras as Ray actors: each in a process of its own, so that none can take another one down.

And sites as Ray actors, on the nodes of a cluster, with their cameras beside them.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from threading import Event, Lock
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.actors import cluster
from pipeline.errors import PipelineError, StageError
from pipeline.live.address import Address
from pipeline.live.camera import Camera
from pipeline.live.config import LiveConfig
from pipeline.live.delivery import CameraConfig, Delivery
from pipeline.live.hub import Shown, StateChange
from pipeline.live.live import MakeCamera
from pipeline.live.publish import OverlayStream
from pipeline.live.remote import open_site
from pipeline.live.site import Expected, Place, SiteLostError
from pipeline.metrics.on_ray import RayMeters
from pipeline.palette import Palette
from pipeline.session import Recorder
from pipeline.stages import one_line, root_cause

_START_SECONDS = 120.0  # a process of Ray's takes one second, on a loaded machine many
_ANSWER_SECONDS = 15.0  # an answer takes a millisecond
_NICE = 5  # cameras that flood must not keep the network from the cores
_PAUSE_SECONDS = (1.0, 30.0)  # before a new process, so that one that always dies costs little
# Calls for every frame would fill Ray's list of tasks: its head grew by five megabytes a minute.
_UNLISTED = {"enable_task_events": False}


class CameraActor:
    """A `Camera` in a process of its own."""

    def __init__(
        self, name: str, address: Address, config: CameraConfig, recorder: Recorder | None
    ) -> None:
        os.nice(_NICE)
        self._recorder = recorder
        self._camera = Camera(address, config, recorder.camera(name) if recorder else None)
        self._camera.start()

    def take(self, want_frame: bool, timeout_seconds: float) -> Delivery:
        return self._camera.take(want_frame, timeout_seconds)

    def stop(self) -> str | None:
        """Close what was recorded; returns what went wrong with it."""
        self._camera.stop()
        try:
            if self._recorder is not None:
                self._recorder.close()
        except PipelineError as error:
            return str(error)
        return None


class RemoteCamera:
    """A camera whose process is replaced when it dies or hangs; its counts go on.

    Args:
        name, address, config: the camera's, passed on to its process.
        recorder: gets its packets there; None if nothing records.
    """

    def __init__(
        self,
        name: str,
        address: Address,
        config: CameraConfig,
        recorder: Recorder | None = None,
    ) -> None:
        self._arguments = (name, address, config, recorder)
        self._longest_call = config.open_seconds + config.silence_seconds + _ANSWER_SECONDS
        self._base = Delivery()  # counts of the processes before
        self._newest = Delivery()
        self._failures = 0
        self._stopped = Event()
        self._actor: Any = None
        self._closing: Any = None
        self._begun = 0.0

    def start(self) -> None:
        """Start the process; does not wait for it."""
        # Blocked in `take`, the actor hears nothing else, and need not: `stop` kills it.
        self._actor = _small_actor(CameraActor, *self._arguments)
        self._begun = 0.0

    def stop(self) -> None:
        """End the process, whatever it is doing; one that records closes its recording first."""
        self._stopped.set()
        if self._arguments[-1] is None:
            self._kill()
        else:
            self._closing = self._actor.stop.remote()

    def join(self, seconds: float) -> None:
        """Wait for that; then the process is killed."""
        if self._closing is not None:
            with suppress(RayError, TimeoutError):
                ray.get(self._closing, timeout=seconds)
        self._kill()

    def _kill(self) -> None:
        with suppress(Exception):
            ray.kill(self._actor)

    def take(self, want_frame: bool, timeout_seconds: float) -> Delivery:
        """As `Camera.take`; a process that is lost becomes a change of state."""
        patience = timeout_seconds + (_ANSWER_SECONDS if self._begun else _START_SECONDS)
        try:
            found = ray.get(self._actor.take.remote(want_frame, timeout_seconds), timeout=patience)
        except (RayError, TimeoutError) as error:
            self._newest = replace(self._newest, changes=())  # they were handed over
            return self._replace(f"its process died ({type(error).__name__})")
        self._begun = self._begun or time.monotonic()
        if time.monotonic() - self._begun > _PAUSE_SECONDS[1]:
            self._failures = 0
        self._newest = self._on_top_of_base(found)
        if found.stuck_seconds > self._longest_call:
            return self._replace(f"its process hung for {found.stuck_seconds:.0f} s")
        return self._newest

    def _replace(self, reason: str) -> Delivery:
        """A new process in place of the lost one; the counts, and the lost one's last news."""
        self._kill()
        news, self._base = (
            self._newest.changes,
            replace(self._newest, frame=None, changes=(), stuck_seconds=0.0),
        )
        self._newest = self._base
        shortest, longest = _PAUSE_SECONDS
        self._stopped.wait(min(longest, shortest * 2 ** min(self._failures, 10)))
        if self._stopped.is_set():
            return self._base
        self._failures += 1
        self.start()
        change = StateChange(time.time(), "reconnecting", f"{reason}: a new one was started")
        return replace(self._base, changes=(*news, change))

    def _on_top_of_base(self, found: Delivery) -> Delivery:
        base = self._base
        if not base.connections and not base.indices:
            return found
        frame = found.frame
        if frame is not None:
            frame = replace(
                frame, index=frame.index + base.indices,
                connection=frame.connection + base.connections,
            )  # fmt: skip
        return replace(
            found,
            frame=frame,
            indices=found.indices + base.indices,
            dropped=dict(Counter(found.dropped) + Counter(base.dropped)),
            connections=found.connections + base.connections,
        )


class OverlayActor:
    """An `OverlayStream` in a process of its own: what sends to a server may hang in the sending."""

    def __init__(self, target: str, palette: Palette, first: Shown) -> None:
        self._stream = OverlayStream(target, palette, first)

    def write(self, shown: Shown) -> None:
        self._stream.write(shown)

    def close(self) -> None:
        self._stream.close()


class RemoteOverlay:
    """An `OverlayWriter` in a process of its own. Raises OSError when that fails or hangs."""

    def __init__(self, target: str, palette: Palette, first: Shown) -> None:
        self._actor = _small_actor(OverlayActor, target, palette, first)
        self._patience = _START_SECONDS

    def write(self, shown: Shown) -> None:
        try:
            ray.get(self._actor.write.remote(shown), timeout=self._patience)
        except (RayError, TimeoutError) as error:
            cause = root_cause(error)
            reason = getattr(cause, "strerror", None) or type(cause).__name__
            raise ConnectionError(0, reason) from error
        self._patience = _ANSWER_SECONDS

    def close(self) -> None:
        with suppress(RayError, TimeoutError):
            ray.get(self._actor.close.remote(), timeout=2.0)
        with suppress(Exception):
            ray.kill(self._actor)


def _small_actor(kind: type, *arguments: Any) -> Any:
    """A process on this very node, whose frames nobody sends over a network."""
    here = ray.get_runtime_context().get_node_id()
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": 0, "max_task_retries": 0,
                               "scheduling_strategy": _on(here), **_UNLISTED}  # fmt: skip
    return ray.remote(**options)(kind).remote(*arguments)


def _on(node_id: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node_id, soft=False)


@contextmanager
def remote_cameras(recorder: Recorder | None) -> Iterator[MakeCamera]:
    """Makes cameras in processes of their own, while a Ray of our own runs on this machine.

    Args:
        recorder: gets each camera's packets in the camera's process; None if nothing records.
    """

    def make(name: str, address: Address, config: CameraConfig) -> RemoteCamera:
        return RemoteCamera(name, address, config, recorder)

    with cluster(None):
        yield make


class SiteActor:
    """A `Site` on a node of a cluster; its cameras are processes beside it."""

    def __init__(self, config: LiveConfig, expected: Expected) -> None:
        self._arguments = (config, expected)
        self._site: Any = None
        self._opening = Lock()

    def ask(self, method: str, arguments: tuple[Any, ...]) -> Any:
        """One of the site's methods. What is wrong with opening it is raised by each of them."""
        with self._opening:
            if self._site is None:
                self._site = open_site(*self._arguments, RemoteCamera, RayMeters())
        return getattr(self._site, method)(*arguments)

    def ask_for_frames(self, arguments: tuple[Any, ...]) -> Any:
        return self.ask("shown", arguments)


class RemoteSite:
    """A site as the fleet sees it."""

    def __init__(self, node_id: str, options: dict[str, Any], *arguments: Any) -> None:
        options = {
            **options, "max_restarts": 0, "max_task_retries": 0, "max_concurrency": 4,
            "concurrency_groups": {"frames": 1}, "scheduling_strategy": _on(node_id), **_UNLISTED,
        }  # fmt: skip
        self._actor: Any = ray.remote(**options)(SiteActor).remote(*arguments)

    def ask(self, method: str, *arguments: Any) -> RemoteAnswer:
        try:
            if method == "shown":
                in_frames = self._actor.ask_for_frames.options(concurrency_group="frames")
                return RemoteAnswer(in_frames.remote(arguments))
            return RemoteAnswer(self._actor.ask.remote(method, arguments))
        except RayError:
            return RemoteAnswer(None)

    def kill(self) -> None:
        with suppress(Exception):
            ray.kill(self._actor)


class RemoteAnswer:
    """An answer of a site that is on its way; without a reference it never will be."""

    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def done(self) -> bool:
        return self._reference is None or bool(ray.wait([self._reference], timeout=0)[0])

    def result(self, timeout_seconds: float) -> Any:
        if self._reference is None:
            raise SiteLostError("its process or its node is gone")
        try:
            return ray.get(self._reference, timeout=timeout_seconds)
        except RayTaskError as error:  # the site raised
            cause = root_cause(error)
            if isinstance(cause, PipelineError):
                raise cause from error
            problem = f"internal error, please report it: {type(cause).__name__}: {one_line(cause)}"
            raise StageError(problem) from error
        except TimeoutError as error:
            raise SiteLostError(f"no answer in {timeout_seconds:g} s") from error
        except RayError as error:
            raise SiteLostError("its process or its node is gone") from error


class Nodes:
    """The nodes of a Ray cluster as places for sites: one on each GPU, or on each node without any.

    Nodes without a GPU are places only where the cluster has none, or a CPU engine was asked for.

    Args:
        config: of the run.
        expected: what a node must have.
    """

    def __init__(self, config: LiveConfig, expected: Expected) -> None:
        self._config, self._expected = config, expected
        self._nodes: dict[str, tuple[str, dict[str, Any]]] = {}  # node id and options, by place

    def current(self) -> list[Place]:
        going = ray._private.state.state.get_draining_nodes()
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        on_cpu = self._config.engine in ("cpu", "counting")
        gpus = {n["NodeID"]: 0 if on_cpu else int(n["Resources"].get("GPU", 0)) for n in nodes}
        found: dict[str, Place] = {}
        for node in nodes:
            node_id = node["NodeID"]
            shown = f"node {node['NodeManagerAddress']} ({node_id[:6]})"
            options: dict[str, Any] = (
                {"num_cpus": 1, "num_gpus": 1} if gpus[node_id] else {"num_cpus": 1}
            )
            for number in range(gpus[node_id] if any(gpus.values()) else 1):
                name = f"{node_id}/{number}"
                found[name] = Place(name, shown, going=node_id in going)
                self._nodes[name] = node_id, options
        return list(found.values())

    def open(self, place: Place) -> RemoteSite:
        node_id, options = self._nodes[place.name]
        return RemoteSite(node_id, options, self._config, self._expected)

    def want(self, sites: int) -> None:
        """Ask Ray's autoscaler, where there is one, for nodes that hold so many sites."""
        from ray.autoscaler.sdk import request_resources

        bundle = next((options for _, options in self._nodes.values()), {"num_cpus": 1})
        resources = {"CPU": 1} | ({"GPU": 1} if "num_gpus" in bundle else {})
        with suppress(Exception):  # a cluster without an autoscaler has what it has
            request_resources(bundles=[resources] * sites)


@contextmanager
def nodes(config: LiveConfig, expected: Expected) -> Iterator[Nodes]:
    """The nodes of the running cluster at the run's address. Raises ConfigError if there is none."""
    with cluster(config.address):
        yield Nodes(config, expected)
