"""The stages of a live run as metrics; what cameras count themselves, the view takes from the hub."""

from __future__ import annotations

import time

from pipeline.engines.memory import device_bytes
from pipeline.live.delivery import Delivery
from pipeline.live.labeller import Labelled
from pipeline.live.live import Listener, LiveHub
from pipeline.metrics.measure import tell_of_memory, tell_of_step
from pipeline.metrics.meters import Meters

_GAUGES_EVERY_SECONDS = 1.0


class LiveMeter(Listener):
    """Times of decoding, waiting and the network for each frame, and from its arrival to its labels.

    Args:
        meters: where they go.
    """

    def __init__(self, meters: Meters) -> None:
        self._meters = meters
        self._hub: LiveHub | None = None
        self._step: tuple[float, float] | None = None  # when it began and ended
        self._in_step = 0
        self._gauges_at = 0.0

    def camera_added(self, hub: LiveHub, name: str, shown_url: str) -> None:
        self._hub = hub

    def camera_news(self, name: str, delivery: Delivery) -> None:
        if delivery.changes:  # one that has ended waits no more
            self._tell_gauges()

    def labelled(self, labelled: Labelled) -> None:
        frame, shown = labelled.frame, labelled.shown
        step = (labelled.began_at, shown.labelled_at)
        if step != self._step:  # frames of one step come one after the other
            self._tell_of_step()
            self._step = step
        self._in_step += 1
        decoded_at = frame.decoded_at or frame.captured_at
        for stage, began_at, ended_at in (
            ("decode", frame.captured_at, decoded_at),
            ("wait", decoded_at, labelled.began_at),
        ):
            self._meters.observe("stage_seconds", max(0.0, ended_at - began_at), stage=stage)
        latency_seconds = max(0.0, shown.labelled_at - shown.captured_at)
        self._meters.observe("latency_seconds", latency_seconds, stream=shown.camera)

    def _tell_of_step(self) -> None:
        if self._step is None:
            return
        seconds, streams = self._step[1] - self._step[0], self._in_step
        self._in_step = 0
        tell_of_step(self._meters, seconds, streams)
        self._meters.observe("stage_seconds", seconds / streams, streams, stage="network")
        if time.monotonic() - self._gauges_at > _GAUGES_EVERY_SECONDS:
            self._tell_gauges()

    def _tell_gauges(self) -> None:
        self._gauges_at = time.monotonic()
        tell_of_memory(self._meters, device_bytes())
        lanes = self._hub.lanes() if self._hub is not None else []
        waiting = sum(lane.frame is not None for lane in lanes)
        self._meters.set("queue_depth", waiting, stage="network")
