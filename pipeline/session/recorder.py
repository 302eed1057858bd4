"""Recording cameras into a session. Whoever records is never held up: each camera has a writing thread."""

from __future__ import annotations

import json
import os
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from av.packet import Packet

from pipeline.closing import Closing
from pipeline.errors import ConfigError, OutputError
from pipeline.parts import PartFile, output_errors, sync
from pipeline.session.camera import CameraTracks
from pipeline.session.checks import one_line
from pipeline.session.format import (
    FORMAT_VERSION,
    Configuration,
    Limits,
    ShownLabels,
    camera_folder,
    plain_configuration,
)
from pipeline.session.records import MOST_NAME, MOST_REASON
from pipeline.session.retention import SessionRetention
from pipeline.session.stream import StreamParameters
from pipeline.session.writing import WritingThread
from pipeline.sources import SESSION_FILE

_CLOSE_SECONDS = 60.0


@dataclass(frozen=True)
class Run:
    """One run of a recorder, whose cameras share its clock.

    Attributes:
        id: random, hexadecimal.
        wall: `time.time()` at its start.
        monotonic: `time.monotonic()` at the same moment.
    """

    id: str
    wall: float
    monotonic: float


class Recorder(Closing):
    """Writes a session folder. Recording into a folder that holds a session goes on with it.

    Attributes:
        folder: the session's.
        notes: what the user should know, a line each.
    """

    def __init__(
        self, folder: Path, configuration: Configuration | None = None, limits: Limits | None = None
    ) -> None:
        """
        Args:
            folder: made if it is not there.
            configuration: what labels the frames; None if nothing does.
            limits: how the session is cut and how much of it is kept.

        Raises:
            OutputError: the folder cannot be written, or holds something else.
            ConfigError: it holds a session that was labelled otherwise.
        """
        self.folder, self.configuration = Path(folder), configuration
        self.limits = limits or Limits()
        self.run = Run(secrets.token_hex(8), time.time(), time.monotonic())
        self.notes: list[str] = []
        self._cameras: dict[str, CameraRecorder] = {}
        self._lock = Lock()
        self._retention = SessionRetention(self.folder, self.limits)
        self._start()
        self.tidy()  # on a full disk nothing else would make room

    def __getstate__(self) -> dict[str, Any]:
        """Another process gets the session, its clock and its settings, and opens cameras itself."""
        return {**self.__dict__, "_cameras": {}, "_lock": None, "notes": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=Lock())

    def camera(self, name: str) -> CameraRecorder:
        """The recorder of a camera, made the first time it is asked for; from any thread.

        Raises ValueError for a name that is empty, longer than 256 characters or not printable.
        """
        if not (0 < len(name) <= MOST_NAME and name.isprintable()):
            raise ValueError(f"a camera's name must be 1 to 256 printable characters, got {name!r}")
        with self._lock:
            if name not in self._cameras:
                self._cameras[name] = CameraRecorder(self, name)
            self._cameras[name].stay()
            return self._cameras[name]

    def forget(self, name: str) -> None:
        """A camera was removed: its segments are sealed once nothing comes of it any more; does not wait.

        `camera` gives the same one again, should there be another of this name.
        """
        with self._lock:
            if name in self._cameras:
                self._cameras[name].leave()

    def tidy(self) -> None:
        """Remove what is older or more than the limits allow; at most every half minute."""
        self._retention.try_to_tidy()

    def close(self) -> None:
        """Write what waits and seal all segments. May be called again.

        Raises OutputError if a camera's recording could not be completed.
        """
        with self._lock:
            cameras, self._cameras = list(self._cameras.values()), {}
        for camera in cameras:
            camera.ask_to_close()
        problems = [problem for camera in cameras if (problem := camera.wait_closed())]
        if problems:
            raise OutputError(problems[0])

    def _start(self) -> None:
        path = self.folder / SESSION_FILE
        with output_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if path.exists():
                self._go_on(path)
                return
            if any(not name.startswith(".") for name in os.listdir(self.folder)):
                raise OutputError(
                    f"{self.folder} is not empty and holds no {SESSION_FILE}: give a new folder"
                )
        session = {
            "version": FORMAT_VERSION,
            "id": self.run.id,
            "created_at": self.run.wall,
            "configuration": plain_configuration(self.configuration),
            "limits": asdict(self.limits),
        }
        part = PartFile(path)
        with output_errors(path):
            part.file.write(json.dumps(session, indent=2).encode() + b"\n")
        part.close()
        part.publish()
        with output_errors(self.folder):
            sync(self.folder)

    def _go_on(self, path: Path) -> None:
        from pipeline.session.manifest import read_manifest

        held = read_manifest(path)
        if held.configuration != self.configuration:
            raise ConfigError(
                f"{self.folder} holds a session labelled by {_said(held.configuration)}, not by"
                f" {_said(self.configuration)}: give another folder"
            )
        self.notes.append(f"{self.folder} holds a session already: recording goes on in it")


class CameraRecorder:
    """One camera of a session. All methods return at once and may be called from any thread.

    Attributes:
        name: the camera's.
        lost_packets, lost_labels: not recorded, because the disk was too slow or failed.
    """

    def __init__(self, recorder: Recorder, name: str) -> None:
        self.name = name
        self.lost_packets = self.lost_labels = 0
        self._recorder, self._limits = recorder, recorder.limits
        folder = recorder.folder / camera_folder(name)
        self._tracks = CameraTracks(
            folder, name, asdict(recorder.run), recorder.configuration, recorder.limits
        )
        self._connections = self._tracks.last_segment() + 1
        self._connections_lock = Lock()
        self._writing = WritingThread(name, self._tracks, recorder.tidy)
        self._skipping = self._losing_labels = False
        self._checkpoint_due = 0.0

    def connected(self, parameters: StreamParameters, reason: str = "") -> int:
        """The camera was opened: packets that follow are of a new stream; returns its number."""
        with self._connections_lock:
            connection, self._connections = self._connections, self._connections + 1
        at, why = _now(), one_line(reason, MOST_REASON)
        self._skipping = False
        # Whatever the disk does: packets that follow must not pass for those of another stream.
        self._writing.put(
            0, lambda: self._tracks.connected(connection, parameters, why, at), always=True
        )
        return connection

    def packet(
        self,
        data: bytes,
        *,
        pts: int | None,
        dts: int | None,
        key: bool,
        arrived_at: float,
        arrived_monotonic: float | None = None,
        duration: int = 0,
        decoded: bool = True,
        corrupt: bool = False,
        extradata: bytes = b"",
    ) -> None:
        """A packet of the newest connection, in the order in which they came.

        Args:
            data: as it came.
            pts, dts, duration: in ticks of the stream's time base; None where it states none.
            key: decoding can begin here.
            arrived_at: `time.time()` of its arrival.
            arrived_monotonic: `time.monotonic()` of it; None to take the recording's own clock.
            decoded: False if it is known that the decoder did not get it.
            corrupt: the transport says that something is missing in it.
            extradata: new set-up data that came with it.
        """
        if self._skip_packet(key):
            return
        if arrived_monotonic is None:
            run = self._recorder.run
            arrived_monotonic = run.monotonic + arrived_at - run.wall
        facts = {
            "kind": "packet", "pts": pts, "dts": dts, "duration": duration, "key": key,
            "decoded": decoded, "corrupt": corrupt, "arrived": arrived_monotonic,
            "wall": arrived_at,
        }  # fmt: skip
        if extradata:
            facts["extradata"] = extradata.hex()
        self._writing.put(len(data), lambda: self._tracks.packet(facts, data))

    def av_packet(
        self,
        packet: Packet,
        arrived_at: float,
        arrived_monotonic: float | None = None,
        decoded: bool = True,
    ) -> None:
        """The same, of a packet as `demux` gives it; its bytes are copied."""
        self.packet(
            bytes(packet), pts=packet.pts, dts=packet.dts, key=bool(packet.is_keyframe),
            arrived_at=arrived_at, arrived_monotonic=arrived_monotonic,
            duration=packet.duration or 0, decoded=decoded, corrupt=bool(packet.is_corrupt),
            extradata=_new_extradata(packet),
        )  # fmt: skip

    def gap(self, seconds: float | None, reason: str) -> None:
        """Frames are missing in the stream; None if how long is unknown."""
        at, why = _now(), one_line(reason, MOST_REASON)
        self._event({"kind": "gap", "seconds": seconds, "reason": why, **at})

    def state(self, state: str, reason: str = "") -> None:
        """The camera's state changed; one of `CAMERA_STATES`, with why, and without a password."""
        at, why = _now(), one_line(reason, MOST_REASON)
        self._event({"kind": "state", "state": state, "reason": why, **at})

    def labels(self, shown: ShownLabels) -> None:
        """A label map was shown. Its array must not change afterwards."""
        if self._behind:
            self.lost_labels += 1
            if not self._losing_labels:  # once, however long the disk hangs
                self._losing_labels = True
                self._writing.put(0, self._tracks.labels_lost)
            return
        self._losing_labels = False
        self._writing.put(shown.labels.nbytes, lambda: self._tracks.labels(shown))

    def dropped(self, connection: int, frames: int, reason: str) -> None:
        """Frames were not labelled: "overload", "stale", "damaged". For the statistics alone."""
        if self._behind:
            return
        at, why = _now(), one_line(reason, MOST_REASON)
        record = {"kind": "dropped", "connection": connection, "frames": frames,
                  "reason": why, **at}  # fmt: skip
        self._writing.put(0, lambda: self._tracks.label_event(record))

    @property
    def wants_checkpoint(self) -> bool:
        """Whether a state is due, so that a replay can start near here."""
        return time.monotonic() >= self._checkpoint_due

    def checkpoint(self, state: np.ndarray, steps: int) -> None:
        """The state right after the labels given last, as an engine's `read_state` gives it.

        Args:
            state: float32 [C, h, w].
            steps: frames it has seen since its last reset.
        """
        self._checkpoint_due = time.monotonic() + self._limits.checkpoint_seconds
        if not self._behind:
            self._writing.put(state.nbytes, lambda: self._tracks.checkpoint(state, steps))

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be written."""
        return self._writing.idle

    @property
    def problem(self) -> str | None:
        """Why nothing is being written just now, one line; None if all is well."""
        return self._writing.problem

    def stay(self) -> None:
        """The camera is wanted: its segments stay open, however long nothing comes of it."""
        self._writing.stay()

    def leave(self) -> None:
        """The camera was removed: they are sealed once nothing has come of it for some seconds."""
        self._writing.leave()

    def ask_to_close(self) -> None:
        """What waits is written, then the segments are sealed. Nothing more is taken."""
        self._writing.ask_to_close()

    def wait_closed(self) -> str | None:
        """Wait for that; returns what went wrong, if anything did."""
        if not self._writing.wait_closed(_CLOSE_SECONDS):
            return f"{self._recorder.folder}: the disk did not answer for {_CLOSE_SECONDS:g} s"
        return self.problem

    def _event(self, record: dict[str, Any]) -> None:
        self._writing.put(0, lambda: self._tracks.event(record))

    @property
    def _behind(self) -> bool:
        """Whether more waits for the disk than may."""
        return self._writing.waiting_bytes > self._limits.queue_bytes

    def _skip_packet(self, key: bool) -> bool:
        """Once the disk cannot follow, all up to a key frame is left out, and said to be."""
        if self._behind and not self._skipping:
            self._skipping = True
        elif self._skipping and key and self._writing.waiting_bytes == 0:
            self._skipping = False
            self._writing.put(0, self._tracks.hole)
        self.lost_packets += self._skipping
        return self._skipping


def _new_extradata(packet: Packet) -> bytes:
    """Set-up data that came with a packet, as FLV sends it when a camera changes its settings."""
    if not packet.has_sidedata("new_extradata"):
        return b""
    return bytes(packet.get_sidedata("new_extradata"))


def _now() -> dict[str, float]:
    return {"wall": time.time(), "mono": time.monotonic()}


def _said(configuration: Configuration | None) -> str:
    if configuration is None:
        return "nothing"
    return (
        f"{configuration.model} ({configuration.weights_sha256[:8]}, {configuration.runtime},"
        f" size {configuration.size_hw or 'by aspect'})"
    )
