"""One camera, for as long as it is wanted: opened, read, decoded, watched, and opened again.

`Camera` is a plain class that knows nothing of where it runs. One thread reads, one decodes, and
`take`, in a third, hands over what is newest. Nothing that a camera does, or fails to do, is an
error here: it becomes a change of state, a count, or both.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Condition, Event, Thread

import av
import cv2
import numpy as np
from av.video.frame import VideoFrame

from pipeline.live.address import Address
from pipeline.live.connection import CameraError, Connection
from pipeline.live.delivery import CameraConfig, Delivery, Frame
from pipeline.live.hub import StateChange
from pipeline.live.waiting import Arrivals, Backoff, FrameQueue, PacketQueue, WaitingFrame
from pipeline.planes import FrameFormat, PlaneConverter
from pipeline.session import CameraRecorder

# Once a frame waited for longer than this share of the limit, the newest wins: the rest of the limit
# is for the network and for whatever else is under way.
_PATIENCE = 1 / 3
_STEADY_SECONDS = 5.0  # a connection that lived this long has worked


@dataclass
class _Link:
    """One of the camera's connections.

    Attributes:
        number: of the connection, from 0.
        recording: its number in the recording.
        decoded: frames it has given.
        backlog: packets between its two threads.
        waits_since: arrival of the first packet after the frame given last.
        arrivals: of its packets.
    """

    connection: Connection
    number: int
    recording: int | None
    backlog: PacketQueue
    decoded: int = 0
    waits_since: float | None = None
    opened_at: float = field(default_factory=time.time)
    arrivals: Arrivals = field(default_factory=Arrivals)


class Camera:
    """A camera. `take` may be called from any one thread, at any pace.

    Args:
        address: where it is.
        config: how it is opened and watched.
        recorder: gets each packet and each change of state; None if nothing records.
    """

    def __init__(
        self, address: Address, config: CameraConfig, recorder: CameraRecorder | None = None
    ) -> None:
        self._address, self._config, self._recorder = address, config, recorder
        self._changed = Condition()
        self._stopping = Event()
        self._queue = FrameQueue(config.queue_frames, _PATIENCE * config.max_latency_seconds)
        self._dropped: Counter[str] = Counter()
        self._changes: list[StateChange] = []
        self._state = ""
        self._indices = self._connections = 0
        self._last_frame_at = self._beat = time.time()
        self._converter: PlaneConverter | None = None
        self._backoff = Backoff(longest_seconds=config.longest_wait_seconds)
        self._change("connecting", "added")
        self._reader = Thread(target=self._run, name="camera-read", daemon=True)

    def start(self) -> None:
        """Begin to open the camera."""
        self._reader.start()

    def stop(self) -> None:
        """Give the camera up; its thread ends at once, or when the call it is in returns."""
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()

    def join(self, seconds: float) -> None:
        """Wait for that end."""
        self._reader.join(seconds)

    def take(self, want_frame: bool, timeout_seconds: float) -> Delivery:
        """The newest frame and the news. Waits for either, no longer than `timeout_seconds`."""
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            while True:
                self._watch()
                ready = (want_frame and len(self._queue)) or self._changes
                left = deadline - time.monotonic()
                if ready or left <= 0 or self._stopping.is_set():
                    break
                self._changed.wait(min(left, 0.5))
            waiting, outdated = self._queue.take(time.time()) if want_frame else (None, 0)
            self._count("overload", outdated)
        frame = self._convert(waiting) if waiting is not None else None
        with self._changed:
            return self._deliver(frame)

    def _deliver(self, frame: Frame | None) -> Delivery:
        delivery = Delivery(
            frame=frame,
            changes=tuple(self._changes),
            indices=self._indices,
            dropped=dict(self._dropped),
            connections=self._connections,
            stuck_seconds=0.0 if self._state == "ended" else max(0.0, time.time() - self._beat),
        )
        self._changes = []
        return delivery

    # The reading thread.

    def _run(self) -> None:
        cv2.setNumThreads(1)
        av.logging.set_level(None)  # FFmpeg's own messages name the URL, password and all
        while not self._stopping.is_set():
            try:
                finished, error = self._follow(), CameraError("the stream ended")
            except CameraError as broken:
                finished, error = False, broken
            except Exception as defect:  # must not end a camera, nor pass unseen
                logging.getLogger(__name__).exception("camera %s", self._address.shown)
                reason = self._address.scrub(f"internal error, please report it: {defect!r}")
                finished, error = False, CameraError(reason)
            if finished:
                self._change("ended", str(error))
                return
            if not self._wait_to_reconnect(error):
                return
        self._change("ended", "removed")

    def _wait_to_reconnect(self, error: CameraError) -> bool:
        """Sleep until it is time to try again; False if there is to be no further try."""
        attempts = self._config.attempts
        if error.hopeless or (attempts is not None and self._backoff.attempts + 1 >= attempts):
            self._change("ended", str(error))
            return False
        wait = self._backoff.next_seconds(error.refused)
        self._change("reconnecting", str(error))
        self._sleep(wait)
        return True

    def _sleep(self, seconds: float) -> None:
        self._beat = time.time() + seconds
        self._stopping.wait(seconds)
        self._beat = time.time()

    def _follow(self) -> bool:
        """One connection from its opening to its end; True if that is the end of the source.

        Raises CameraError if it breaks.
        """
        self._beat = time.time()
        link = self._connect()
        decoder = Thread(target=self._decode, args=(link,), name="camera-decode", daemon=True)
        decoder.start()
        try:
            self._read(link)
        finally:
            link.backlog.close()
            decoder.join()
            link.connection.close()
            if time.time() - link.opened_at > _STEADY_SECONDS and link.decoded:
                self._backoff.succeeded()
        return self._address.kind == "file" or self._stopping.is_set()

    def _connect(self) -> _Link:
        config = self._config
        connection = Connection(self._address, config.open_seconds, config.silence_seconds)
        recording = None
        if self._recorder is not None:
            recording = self._recorder.connected(connection.parameters)
        with self._changed:
            number = self._connections
            self._connections += 1
            self._last_frame_at = time.time()  # the watch begins anew
        return _Link(connection, number, recording, PacketQueue(config.max_latency_seconds))

    def _read(self, link: _Link) -> None:
        silence_seconds = self._config.silence_seconds
        for packet, arrived in link.connection.packets(self._sleep):
            self._beat = time.time()
            if self._stopping.is_set():
                return
            monotonic = time.monotonic()
            link.arrivals.add(arrived, monotonic)
            if self._recorder is not None:
                self._recorder.av_packet(packet, arrived, monotonic)
            self._lose("overload", link.backlog.put(packet, arrived))
            if link.waits_since is None:
                link.waits_since = arrived
            elif arrived - link.waits_since > silence_seconds:
                raise CameraError(
                    f"packets came, but no frame could be decoded for {silence_seconds:g} s"
                )
        if self._address.kind != "file":
            raise CameraError("the camera closed the connection")

    # The decoding thread.

    def _decode(self, link: _Link) -> None:
        while True:
            packet, arrived = link.backlog.take() or (None, time.time())
            frames, damaged = link.connection.decode(packet, arrived)
            self._lose("damaged", damaged)
            for frame, captured_at in frames:
                self._offer(frame, captured_at, link)
            if packet is None:
                return

    def _offer(self, frame: VideoFrame, captured_at: float, link: _Link) -> None:
        with self._changed:
            index, decoded_index = self._indices, link.decoded
            self._indices, link.decoded = index + 1, decoded_index + 1
            link.waits_since = None
            if frame.is_corrupt:
                self._count("damaged", 1)
                return
            waiting = WaitingFrame(
                frame, index, captured_at, link.number, decoded_index, link.recording, time.time(),
                link.connection.stamp_seconds(frame), link.arrivals.monotonic(captured_at),
            )  # fmt: skip
            self._count("overload", self._queue.put(waiting))
            if self._state != "live":
                self._set_live(frame, time.time() - self._last_frame_at)
            self._last_frame_at = time.time()
            self._changed.notify_all()

    def _set_live(self, frame: VideoFrame, seconds: float) -> None:
        if self._recorder is not None and self._indices > 1:
            self._recorder.gap(seconds, f"the camera was {self._state}")
        self._set_state("live", f"{frame.width}x{frame.height} {frame.format.name}")

    def _lose(self, reason: str, packets: int) -> None:
        """Packets that give no frame; each takes an index, so that the gap is seen."""
        if packets:
            with self._changed:
                self._indices += packets
                self._count(reason, packets)

    # Any thread, the lock held except by `_change` and `_convert`.

    def _count(self, reason: str, frames: int) -> None:
        if frames:
            self._dropped[reason] += frames

    def _watch(self) -> None:
        silent_for = time.time() - self._last_frame_at
        if self._state == "live" and silent_for > self._config.quiet_seconds:
            self._set_state("silent", f"no frame for {self._config.quiet_seconds:g} s")

    def _change(self, state: str, reason: str) -> None:
        with self._changed:
            self._set_state(state, reason)

    def _set_state(self, state: str, reason: str) -> None:
        if state != self._state:  # a camera that stays away is told of once
            self._state = state
            self._changes.append(StateChange(time.time(), state, reason))
            if self._recorder is not None:
                self._recorder.state(state, reason)
            self._changed.notify_all()

    def _convert(self, waiting: WaitingFrame) -> Frame | None:
        """The frame at the model's size, None if its pixels cannot be converted."""
        picture, taken_at = waiting.frame, time.time()
        try:
            if self._converter is None or self._converter.format != FrameFormat.of(picture):
                self._converter = PlaneConverter(picture)
            height, width = self._config.model_hw(self._converter.size_hw)
            planes = np.empty((height * 3 // 2, width), np.uint8)
            self._converter.write_pixels(picture, planes)
        except (av.FFmpegError, ValueError):
            with suppress(Exception), self._changed:
                self._count("damaged", 1)
            return None
        return Frame(
            waiting.index, waiting.captured_at, waiting.connection, self._converter.size_hw,
            planes, picture.pts, waiting.stamp_seconds, waiting.decoded_index, waiting.recording,
            waiting.decoded_at, taken_at, time.time(), waiting.captured_monotonic,
        )  # fmt: skip
