"""`--record`: the labels of a live run go beside the packets that the cameras record themselves."""

from __future__ import annotations

from collections import Counter

from pipeline.live.config import LivePlan
from pipeline.live.delivery import Delivery
from pipeline.live.labeller import Labelled
from pipeline.live.live import Listener, LiveHub
from pipeline.session import CameraRecorder, Configuration, Limits, Recorder, ShownLabels


class LabelRecording(Listener):
    """Hands every labelled frame, and now and then the memory after it, to a recorder.

    Args:
        recorder: of the session. Cameras in processes of their own have copies of it.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._cameras: dict[str, CameraRecorder] = {}
        self._recording: dict[str, int] = {}
        self._dropped: dict[str, Counter[str]] = {}

    def camera_added(self, hub: LiveHub, name: str, shown_url: str) -> None:
        self._cameras[name] = self._recorder.camera(name)

    def camera_gone(self, name: str) -> None:
        for known in (self._cameras, self._recording, self._dropped):
            known.pop(name, None)
        self._recorder.forget(name)

    def labelled(self, labelled: Labelled) -> None:
        frame, shown = labelled.frame, labelled.shown
        camera = self._cameras.get(shown.camera)
        if frame.recording is None or camera is None:
            return
        self._recording[shown.camera] = frame.recording
        camera.labels(
            ShownLabels(
                frame.recording, shown.frame_index, frame.pts, shown.captured_at, shown.labels,
                labelled.fresh, frame.captured_monotonic, frame.decoded_index,
                latency_ms=1000 * (shown.labelled_at - shown.captured_at),
            )
        )  # fmt: skip
        if camera.wants_checkpoint:
            camera.checkpoint(*labelled.read_state())

    def camera_news(self, name: str, delivery: Delivery) -> None:
        camera = self._cameras.get(name)
        if camera is None:
            return
        now = Counter(delivery.dropped)
        newly = now - self._dropped.get(name, Counter())
        self._dropped[name] = now
        if newly and name in self._recording:
            for reason, frames in newly.items():
                camera.dropped(self._recording[name], frames, reason)


def make_recorder(plan: LivePlan) -> Recorder | None:
    """The recorder that was asked for, if one was. Raises OutputError or ConfigError."""
    config, spec, choice = plan.config, plan.spec, plan.choice
    if config.record is None:
        return None
    facts = plan.facts()
    return Recorder(
        config.record,
        Configuration(
            model=spec.name,
            weights_sha256=facts["model"]["weights_sha256"],
            engine=choice.name,
            runtime=choice.runtime,
            form_sha256=plan.form_sha256,
            size_hw=config.size_hw,
            longest_gap_seconds=config.longest_gap_seconds,
            classes=spec.classes,
            palette_rgb=spec.palette_rgb,
            versions=facts["versions"],
        ),
        Limits(max_age_seconds=config.keep_seconds, max_bytes=config.keep_bytes),
    )
