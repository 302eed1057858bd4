"""`--publish`: each camera's picture with the colours over it, encoded, for players such as VLC.

An address that ends in `.m3u8` is HLS, written as files; `rtsp://`, `rtmp://`, `srt://` and `udp://`
are pushed to a server. `{camera}` in it stands for the camera's name.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, Protocol

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from pipeline.errors import ConfigError
from pipeline.live.hub import Shown, Subscription
from pipeline.live.labeller import LIVE_TIME_BASE
from pipeline.live.live import Listener, LiveHub
from pipeline.live.waiting import Backoff
from pipeline.palette import Palette, Planes
from pipeline.secrecy import mask
from pipeline.sources import safe_name

OPACITY = 0.5
_FORMATS = {"rtsp": "rtsp", "rtmp": "flv", "rtmps": "flv", "srt": "mpegts", "udp": "mpegts"}
_KEYFRAME_SECONDS = 1.0  # a player that joins sees a picture after so long
_RATE = 25  # stated; the frames' own time stamps count
_OPTIONS = {
    # PyAV's own time-outs are for inputs; the other protocols get no options from it.
    "rtsp": {"rtsp_transport": "tcp", "timeout": "5000000"},  # microseconds
    "flv": {"flvflags": "no_duration_filesize"},
    "hls": {"hls_time": "1", "hls_list_size": "6", "hls_flags": "delete_segments+temp_file"},
}
_log = logging.getLogger(__name__)


def check_target(pattern: str) -> str:
    """The pattern, if it can be published to. Raises ConfigError."""
    scheme = pattern.partition("://")[0] if "://" in pattern else ""
    if scheme not in ("", *_FORMATS) or (not scheme and not pattern.endswith(".m3u8")):
        raise ConfigError(
            f"--publish {mask(pattern)}: expected rtsp://, rtmp://, srt:// or udp://, or a file that"
            " ends in .m3u8"
        )
    return pattern


def is_push(pattern: str) -> bool:
    """Whether a target is a server, and not a file. It may keep a sender waiting for ever, who in some of
    PyAV's calls holds the interpreter's lock: it is to be sent to from a process apart."""
    return "://" in pattern


class OverlayWriter(Protocol):
    """Where one camera's overlay goes; may be in another process."""

    def write(self, shown: Shown) -> None: ...

    def close(self) -> None: ...


class OverlayStream:
    """Encodes overlays and sends them to one target. Made with the first frame's size.

    Args:
        target: where to; a file's folder is made.
        palette: names and colours of the classes.
        first: the first frame.

    Raises:
        OSError: av's errors are of its kind: the target cannot be opened.
    """

    def __init__(self, target: str, palette: Palette, first: Shown) -> None:
        self.size_hw = first.labels.shape
        self._palette, self._zero = palette, first.captured_at
        scheme = target.partition("://")[0] if is_push(target) else ""
        kind = _FORMATS.get(scheme, "hls")
        if kind == "hls":
            Path(target).parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(
            target, "w", format=kind, container_options=_OPTIONS.get(kind, {})
        )
        self._stream = self._add_stream()
        self._pts, self._keyframe_at = -1, 0.0

    def write(self, shown: Shown) -> None:
        """Draw and send a frame of the first one's size. Raises OSError."""
        height, width = self.size_hw
        frame = VideoFrame(width, height, "yuv420p")
        self._palette.overlay(
            _planes(shown.planes), shown.labels, OPACITY, "bt601", _views(frame, (height, width))
        )
        seconds = shown.captured_at - self._zero
        self._pts = max(self._pts + 1, round(seconds / LIVE_TIME_BASE))
        frame.pts, frame.time_base = self._pts, LIVE_TIME_BASE
        if seconds >= self._keyframe_at:
            frame.pict_type = av.video.frame.PictureType.I
            self._keyframe_at = seconds + _KEYFRAME_SECONDS
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """End the stream; no error, whatever the state."""
        try:
            self._container.mux(self._stream.encode(None))
            self._container.close()
        except (av.FFmpegError, OSError, ValueError):
            pass

    def _add_stream(self) -> VideoStream:
        height, width = self.size_hw
        stream = self._container.add_stream(
            "libx264", _RATE,
            options={"preset": "ultrafast", "tune": "zerolatency", "crf": "23",
                     "forced-idr": "1", "x264-params": "colormatrix=smpte170m:range=tv"},
        )  # fmt: skip
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(LIVE_TIME_BASE)
        stream.codec_context.gop_size = 10 * _RATE
        stream.codec_context.thread_count = 1
        return stream


MakeWriter = Callable[[str, Palette, Shown], OverlayWriter]


class Publisher(Listener):
    """Sends the newest frames of every camera, and connects again when a target breaks.

    Args:
        pattern: see `check_target`.
        palette: names and colours of the classes.
        make: makes the writer of one target.

    Attributes:
        breaks: how often a target could not be opened or broke.
    """

    def __init__(self, pattern: str, palette: Palette, make: MakeWriter = OverlayStream) -> None:
        self._pattern, self._palette, self._make = check_target(pattern), palette, make
        self._stopping = Event()
        self._threads: list[Thread] = []
        self._lock = Lock()
        self.breaks = 0

    def camera_added(self, hub: LiveHub, name: str, shown_url: str) -> None:
        target = self._pattern.replace("{camera}", safe_name(name))
        thread = Thread(
            target=self._follow, args=(hub.subscribe(name), target), name=f"publish-{name}",
            daemon=True,
        )  # fmt: skip
        with self._lock:
            self._threads = [old for old in self._threads if old.is_alive()]
            self._threads.append(thread)
        thread.start()

    def close(self, timeout_seconds: float = 10.0) -> None:
        """End the streams."""
        self._stopping.set()
        deadline = time.monotonic() + timeout_seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _follow(self, feed: Subscription, target: str) -> None:
        backoff, broken = Backoff(), False
        while not self._stopping.is_set() and not feed.over:
            try:
                self._send(feed, target, backoff)
            except Exception as error:
                self.breaks += 1
                if not broken:  # once, however often it is tried again
                    reason = getattr(error, "strerror", None) or type(error).__name__
                    _log.warning("publishing to %s broke: %s", mask(target), reason)
                broken = backoff.attempts > 0
                self._stopping.wait(backoff.next_seconds(refused=False))

    def _send(self, feed: Subscription, target: str, backoff: Backoff) -> None:
        writer: OverlayWriter | None = None
        size_hw: Any = None
        try:
            while not self._stopping.is_set():
                shown = feed.take(0.5)
                if shown is None:
                    if feed.over:
                        return
                    continue
                if writer is not None and shown.labels.shape != size_hw:
                    writer.close()
                    writer = None
                if writer is None:
                    writer, size_hw = self._make(target, self._palette, shown), shown.labels.shape
                writer.write(shown)
                backoff.succeeded()
        finally:
            if writer is not None:
                writer.close()


def _planes(i420: np.ndarray) -> Planes:
    height, width = i420.shape[0] // 3 * 2, i420.shape[1]
    chroma = i420[height:].reshape(2, height // 2, width // 2)
    return i420[:height], chroma[0], chroma[1]


def _views(frame: VideoFrame, size_hw: tuple[int, int]) -> Planes:
    """A frame's own planes, to draw into."""
    height, width = size_hw
    views = []
    for plane, (rows, columns) in zip(
        frame.planes, ((height, width), *[(height // 2, width // 2)] * 2), strict=True
    ):
        lines = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        views.append(lines[:rows, :columns])
    return views[0], views[1], views[2]
