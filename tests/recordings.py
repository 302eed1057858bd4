"""Recordings for tests: files demuxed as if cameras sent them, with drops, gaps and a reconnect.

Labels are made here by the engine alone, without any code of the replay: what a replay must give again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
from av.packet import Packet

from models.spec import DEFAULT_MODEL, find_model
from pipeline.engines import Engine
from pipeline.engines.counting import CountingEngine
from pipeline.planes import PlaneConverter
from pipeline.session import (
    CameraRecorder,
    Configuration,
    Limits,
    Recorder,
    ShownLabels,
    StreamParameters,
)
from tests import media

FPS = 30
MODEL_HW = (32, 48)
MakeEngine = Callable[[tuple[int, int]], Engine]


def counting_configuration(size_hw: tuple[int, int] = MODEL_HW) -> Configuration:
    """Of sessions whose labels the counting engine made."""
    files = find_model(DEFAULT_MODEL)
    spec = files.spec()
    return Configuration(
        DEFAULT_MODEL, files.weights_sha256(), "counting", "NumPy", size_hw=size_hw,
        classes=spec.classes, palette_rgb=spec.palette_rgb,
    )  # fmt: skip


@dataclass(frozen=True)
class Script:
    """What happens to one camera.

    Attributes:
        clips: a connection each.
        drop: decoded frames (of all connections, in order) that are not labelled.
        silent_before: seconds of silence before a packet, by its place in all connections.
    """

    clips: Sequence[Path]
    drop: frozenset[int] = frozenset()
    silent_before: dict[int, float] = field(default_factory=dict)


@dataclass
class Told:
    """What was shown of one camera."""

    labels: list[np.ndarray] = field(default_factory=list)
    captured: list[float] = field(default_factory=list)
    packets: list[bytes] = field(default_factory=list)


class FakeCamera:
    """Plays a script into a recorder, labelling as a live camera's frames are."""

    checkpoint_seconds = 0.5

    def __init__(self, name: str, script: Script, recorder: CameraRecorder, engine: Engine) -> None:
        self.name, self.script, self.recorder, self.engine = name, script, recorder, engine
        self.told = Told()
        self._fresh, self._steps, self._index = True, 0, 0
        self._packets = 0
        self._last_captured: float | None = None
        self._checkpoint_at = 0.0

    def play(self, clock: float, offset: float) -> Iterator[float]:
        """Packet by packet; yields the simulated monotonic time of each.

        Args:
            clock: monotonic time at which the first packet comes.
            offset: wall time at monotonic 0.
        """
        now = clock
        for number, clip in enumerate(self.script.clips):
            if number:
                self.recorder.state("reconnecting", "the camera closed the connection")
                now += 0.4
            with av.open(str(clip)) as container:
                stream = container.streams.video[0]
                parameters = StreamParameters.of(stream)
                decoder = parameters.open_decoder()
                connection = self.recorder.connected(parameters)
                decoded = 0
                self.recorder.state("live", "frames come")
                arrived: dict[int | None, float] = {}
                for packet in container.demux(stream):
                    if not packet.size:
                        packet = None  # noqa: PLW2901
                    else:
                        now += 1 / FPS + self.script.silent_before.get(self._packets, 0.0)
                        self._packets += 1
                        arrived[packet.pts] = now
                        self.told.packets.append(bytes(packet))
                        self.recorder.av_packet(packet, now + offset, now)
                    yield now
                    for frame in decoder.decode(packet):
                        at = arrived.get(frame.pts, now)
                        self._show(connection, decoded, frame, at, at + offset)
                        decoded += 1
                    if packet is None:
                        break

    def _show(
        self, connection: int, decoded: int, frame: av.VideoFrame, at: float, wall: float
    ) -> None:
        index, self._index = self._index, self._index + 1
        if index in self.script.drop:
            self.recorder.dropped(connection, 1, "overload")
            return
        if self._last_captured is not None and at - self._last_captured > 1.0:
            self._fresh = True
        self._last_captured = at
        converter = PlaneConverter(frame)
        height, width = self.engine.model_hw  # type: ignore[attr-defined]
        pixels = np.empty((height * 3 // 2, width), np.uint8)
        converter.write_pixels(frame, pixels)
        labels = self.engine.step(pixels[None, None], [0], [self._fresh])[0, 0]
        self._steps = 1 if self._fresh else self._steps + 1
        self.recorder.labels(
            ShownLabels(connection, index, frame.pts, wall, labels, self._fresh, at, decoded, 12.0)
        )
        self._fresh = False
        self.told.labels.append(labels)
        self.told.captured.append(at)
        if at >= self._checkpoint_at:
            self.recorder.checkpoint(self.engine.read_state(0), self._steps)
            self._checkpoint_at = at + self.checkpoint_seconds


def record(
    folder: Path,
    scripts: dict[str, Script],
    make_engine: MakeEngine = lambda hw: CountingEngine(hw, 1),
    configuration: Configuration | None = None,
    limits: Limits | None = None,
    model_hw: tuple[int, int] = MODEL_HW,
) -> dict[str, Told]:
    """Record all scripts side by side; what was shown, by camera."""
    limits = limits or Limits(segment_seconds=0.4, checkpoint_seconds=0.5)
    with Recorder(folder, configuration or counting_configuration(model_hw), limits) as recorder:
        offset = recorder.run.wall - recorder.run.monotonic
        cameras = {
            name: FakeCamera(name, script, recorder.camera(name), make_engine(model_hw))
            for name, script in scripts.items()
        }
        for camera in cameras.values():
            camera.checkpoint_seconds = limits.checkpoint_seconds
        plays = {name: camera.play(recorder.run.monotonic + 0.005 * place, offset)
                 for place, (name, camera) in enumerate(cameras.items())}  # fmt: skip
        while plays:
            for name in list(plays):
                if next(plays[name], None) is None:
                    del plays[name]
    return {name: camera.told for name, camera in cameras.items()}


def short_clip(
    path: Path,
    frames: int,
    *,
    seed: int,
    group: int = 250,
    codec: str = "libx264",
    b_frames: int = 0,
) -> Path:
    """A 64x48 clip at 30 frames a second of seeded noise that scrolls, a key frame each `group`."""
    rng = np.random.default_rng(seed)
    wall = rng.integers(0, 256, (6, 40, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        options = {"g": str(group), "bf": str(b_frames)}
        if codec == "libx264":
            options |= {"preset": "ultrafast", "sc_threshold": "0"}
        stream = container.add_stream(codec, rate=FPS, options=options)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(frames):
            picture = np.ascontiguousarray(np.roll(wall, -4 * number, 1)[:, :64])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def eight_scripts(folder: Path, frames: int = 40, seed: int = 1) -> dict[str, Script]:
    """Eight cameras of different content: drops everywhere, gaps in some, and one that reconnects."""
    dice = random.Random(seed)
    scripts = {}
    for number in range(8):
        clips = []
        for part in range(2 if number == 3 else 1):
            clips.append(folder / f"camera{number}_{part}.mp4")
            media.write_moving_clip(clips[-1], frames, seed=10 * number + part)
        total = frames * len(clips)
        drop = frozenset(dice.sample(range(total), total // 4))
        silent = {dice.randrange(5, total): dice.choice((0.5, 1.6))} if number % 2 else {}
        scripts[f"camera{number}"] = Script(clips, drop, silent)
    return scripts


def demuxed(clip: Path) -> list[Packet]:
    """The packets of a file's video."""
    with av.open(str(clip)) as container:
        return [packet for packet in container.demux(video=0) if packet.size]
