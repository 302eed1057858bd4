"""One camera on its way to its viewers: encoded once for all of them, and only while there are any."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import cv2

from pipeline.errors import EngineError
from pipeline.live.hub import Hub, Shown, Subscription
from pipeline.view.fmp4 import FragmentEncoder
from pipeline.view.playback import replay_of
from pipeline.view.wire import Picture, VideoKind, pack_frame, pack_labels

_LOG = logging.getLogger("roadmask.view")
_TAKE_SECONDS = 0.5
# In a replay: how soon a picture that stands is sent as one, and how many of those that run by are.
_STILL_SECONDS = 0.1
_REPLAY_STEP_SECONDS = 1 / 40
_JPEG_QUALITY = 80
_LARGEST_BACKSTEP_S = 1.0
# Frames on their way to the event loop; a loop that is behind gets no more until it has taken them.
_MOST_IN_FLIGHT = 2
# However often viewers come and go: a keyframe is ten times the size of other frames.
_KEYFRAMES_APART_S = 0.3


@dataclass(frozen=True)
class Message:
    """A frame as it goes to every viewer of `kind`.

    Attributes:
        camera: its name.
        kind: the kind those viewers asked for.
        keyframe: a viewer can start here.
        data: the whole message.
        still: a JPEG for viewers of whatever kind, between frames of the video.
    """

    camera: str
    kind: VideoKind
    keyframe: bool
    data: bytes
    still: bool = False


class Timeline:
    """Presentation times from capture times: whole milliseconds, always increasing."""

    def __init__(self, zero_s: float) -> None:
        """`zero_s`: the `time.time()` that becomes 0."""
        self._zero_s = zero_s
        self._last_ms = 0

    def pts_ms(self, captured_at: float) -> int:
        """The time of the next frame. A clock that was set back shifts all that follow."""
        pts_ms = round(1000 * (captured_at - self._zero_s))
        if pts_ms < self._last_ms - 1000 * _LARGEST_BACKSTEP_S:
            self._zero_s = captured_at - (self._last_ms + 40) / 1000
            pts_ms = self._last_ms + 40
        self._last_ms = max(self._last_ms + 1, pts_ms)
        return self._last_ms


class Channel:
    """Takes a camera's newest frames in a thread of its own and gives them to `deliver`.

    `deliver` is called in the event loop that the channel was made in, with the messages of one frame.
    """

    def __init__(
        self, hub: Hub, camera: str, zero_s: float, deliver: Callable[[list[Message]], None]
    ) -> None:
        """`zero_s`: the `time.time()` from which presentation times count, one for all channels."""
        self.camera = camera
        self._hub, self._deliver = hub, deliver
        self._loop = asyncio.get_running_loop()
        self._timeline = Timeline(zero_s)
        self._kinds: frozenset[VideoKind] = frozenset()
        self._keyframe_wanted = threading.Event()
        self._keyframe_at = 0.0
        self._stop = threading.Event()
        self._places = threading.BoundedSemaphore(_MOST_IN_FLIGHT)
        self._encoder: FragmentEncoder | None = None
        self._encodable = True
        self._replay = replay_of(hub)
        self._last: Shown | None = None
        self._owed = False  # viewers lack the newest frame, or have it in a video that stands still
        self._joined = threading.Event()
        self._sent_at = 0.0
        self._thread = threading.Thread(target=self._run, name=f"view-{camera}", daemon=True)
        self._thread.start()

    def want(self, kinds: frozenset[VideoKind]) -> None:
        """Encode these kinds from now on."""
        self._kinds = kinds

    def want_keyframe(self) -> None:
        """A viewer has joined: make the next frame one that it can start at."""
        self._keyframe_wanted.set()
        self._joined.set()

    @property
    def alive(self) -> bool:
        """Whether its thread still runs."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Ask the thread to end; `join` waits for it."""
        self._stop.set()

    def join(self, timeout_seconds: float) -> None:
        """Wait for the thread, which ends within half a second of `close`."""
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        try:
            subscription = self._hub.subscribe(self.camera)
        except KeyError:
            return  # removed in between; the viewers learn of it by the status
        try:
            self._relay(subscription)
        except Exception:
            if not self._loop.is_closed():
                _LOG.exception("the view of camera %r stopped", self.camera)
        finally:
            subscription.close()
            self._close_encoder()

    def _relay(self, subscription: Subscription) -> None:
        while not (self._stop.is_set() or subscription.over):
            shown = subscription.take(_TAKE_SECONDS if self._replay is None else _STILL_SECONDS)
            if shown is None:
                self._send_again()
                continue
            self._last, self._owed = shown, True
            # A frame for which there is no place is dropped before it is encoded: the video stays
            # whole, and the next frame is newer.
            if self._runs_by() or not self._places.acquire(blocking=False):
                continue
            stands = self._stands
            self._send(self._still(shown) if stands else self._encode(shown))
            self._owed = self._replay is not None and not stands

    @property
    def _stands(self) -> bool:
        """Whether a replay is paused or over: its pictures come one by one, and shall be seen at once."""
        player = self._replay.playback if self._replay is not None else None
        return player is not None and (player.paused or player.ended)

    def _runs_by(self) -> bool:
        """Whether a replay lets go of more frames than anybody can see."""
        now = time.monotonic()
        if self._replay is not None and not self._stands:
            return now - self._sent_at < _REPLAY_STEP_SECONDS
        return False

    def _send_again(self) -> None:
        """Nothing new has come: whoever has joined gets the newest frame, and all do where it stands."""
        wanted = self._joined.is_set() or (self._owed and self._stands)
        if wanted and self._last is not None and self._places.acquire(blocking=False):
            self._send(self._still(self._last))
            self._owed = False

    def _send(self, messages: list[Message]) -> None:
        self._sent_at = time.monotonic()
        self._joined.clear()
        self._loop.call_soon_threadsafe(self._hand_over, messages)

    def _still(self, shown: Shown) -> list[Message]:
        pts_ms = self._timeline.pts_ms(shown.captured_at)
        packed = pack_frame(shown, pts_ms, jpeg_picture(shown), pack_labels(shown.labels))
        return [Message(self.camera, kind, True, packed, still=True) for kind in self._kinds]

    def _hand_over(self, messages: list[Message]) -> None:
        self._places.release()
        if not self._stop.is_set():
            self._deliver(messages)

    def _encode(self, shown: Shown) -> list[Message]:
        kinds, pts_ms = self._kinds, self._timeline.pts_ms(shown.captured_at)
        if not kinds:
            return []
        h264 = self._h264(shown, pts_ms) if "h264" in kinds else None
        jpeg = jpeg_picture(shown) if "jpeg" in kinds or h264 is None else None
        labels = pack_labels(shown.labels)
        packed = {
            picture.kind: (picture.keyframe, pack_frame(shown, pts_ms, picture, labels))
            for picture in (h264, jpeg)
            if picture is not None
        }
        return [
            Message(self.camera, kind, *packed[kind if kind in packed else "jpeg"])
            for kind in kinds
        ]

    def _h264(self, shown: Shown, pts_ms: int) -> Picture | None:
        """The frame as a fragment; None, and JPEG from then on, where H.264 cannot be encoded."""
        if not self._encodable:
            return None
        size_hw = (shown.planes.shape[0] // 3 * 2, shown.planes.shape[1])
        try:
            if self._encoder is None or self._encoder.size_hw != size_hw:
                self._close_encoder()
                self._encoder = FragmentEncoder(size_hw)
            fragment = self._encoder.encode(
                shown.planes, shown.frame_index, pts_ms, self._keyframe_is_due()
            )
        except EngineError as error:
            _LOG.warning("camera %s is shown as JPEG: %s", self.camera, error)
            self._encodable = False
            return None
        if fragment.keyframe:
            self._keyframe_at = time.monotonic()
        return Picture("h264", fragment.keyframe, fragment.codec, fragment.init, fragment.data)

    def _keyframe_is_due(self) -> bool:
        wanted = self._keyframe_wanted.is_set()
        if not wanted or time.monotonic() - self._keyframe_at < _KEYFRAMES_APART_S:
            return False
        self._keyframe_wanted.clear()
        return True

    def _close_encoder(self) -> None:
        if self._encoder is not None:
            self._encoder.close()
            self._encoder = None


def jpeg_picture(shown: Shown) -> Picture:
    """A frame as a JPEG file. JFIF is BT.601, as the planes are."""
    picture = cv2.cvtColor(shown.planes, cv2.COLOR_YUV2BGR_I420)
    done, data = cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY))
    if not done:
        raise EngineError(f"a frame of {shown.camera} cannot be encoded as JPEG")
    return Picture("jpeg", True, "", b"", data.tobytes())
