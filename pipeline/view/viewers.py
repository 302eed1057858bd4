"""Viewers: each has a short queue that drops to the newest frame, and none waits for another.

Everything here runs in the view's event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque

from aiohttp import web

from pipeline.live.hub import Hub
from pipeline.view.channel import Channel, Message
from pipeline.view.wire import VideoKind

# Frames of one camera that wait for one viewer. More are not sent late but not at all, and the viewer goes
# on at the next keyframe (of H.264) or the next frame.
_LONGEST_QUEUE = 8


class _Waiting:
    """Frames of one camera that wait for one viewer."""

    def __init__(self, kind: VideoKind) -> None:
        self.kind = kind
        self.needs_keyframe = True
        self.messages: deque[bytes] = deque()

    def put(self, message: Message) -> int:
        """Queue a frame; returns how many were dropped."""
        if message.still:
            return self._put_still(message)
        if self.needs_keyframe and not message.keyframe:
            return 1
        dropped = 0
        if len(self.messages) >= (1 if self.kind == "jpeg" else _LONGEST_QUEUE):
            dropped = len(self.messages)
            self.messages.clear()
            if not message.keyframe:
                self.needs_keyframe = True
                return dropped + 1
        self.needs_keyframe = False
        self.messages.append(message.data)
        return dropped

    def _put_still(self, message: Message) -> int:
        """A picture that is whole by itself: the video goes on after it as if it had not been."""
        dropped = 0
        if len(self.messages) >= _LONGEST_QUEUE:
            dropped = len(self.messages)
            self.messages.clear()
            self.needs_keyframe = True
        self.messages.append(message.data)
        return dropped


class Viewer:
    """One connection.

    Attributes:
        sent, skipped: frames it got, and frames it was too slow for.
        why_left: "closed", or "stalled" if it was dropped.
    """

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self.sent = self.skipped = 0
        self.why_left = "closed"
        self._socket = socket
        self._cameras: dict[str, _Waiting] = {}
        self._texts: dict[str, str] = {}
        self._wake = asyncio.Event()
        self._sending_since: float | None = None

    @property
    def kinds(self) -> dict[str, VideoKind]:
        """The cameras it watches, and how their video comes."""
        return {name: waiting.kind for name, waiting in self._cameras.items()}

    def stalled_seconds(self) -> float:
        """For how long it has not taken what is being sent."""
        return 0.0 if self._sending_since is None else time.monotonic() - self._sending_since

    def watch(self, kinds: dict[str, VideoKind]) -> set[str]:
        """Watch these cameras and no others; returns those that are new to it."""
        before = self._cameras
        self._cameras = {
            name: before[name] if name in before and before[name].kind == kind else _Waiting(kind)
            for name, kind in kinds.items()
        }
        return {name for name, waiting in self._cameras.items() if waiting is not before.get(name)}

    def offer(self, message: Message) -> None:
        """Queue a frame if it watches the camera.

        A viewer that is behind waits for the next regular keyframe: one made for it alone would
        cost all the others.
        """
        waiting = self._cameras.get(message.camera)
        if waiting is not None and waiting.kind == message.kind:
            self.skipped += waiting.put(message)
            if waiting.messages:
                self._wake.set()

    def tell(self, topic: str, text: str) -> None:
        """Send a text; one of the same topic that still waits is replaced."""
        self._texts[topic] = text
        self._wake.set()

    async def serve(self) -> None:
        """Send what is queued until the connection ends."""
        while not self._socket.closed:
            await self._wake.wait()
            self._wake.clear()
            self._sending_since = time.monotonic()
            await self._send_queued()
            self._sending_since = None

    async def _send_queued(self) -> None:
        more = True
        while more:
            more = False
            while self._texts:
                topic = next(iter(self._texts))
                await self._socket.send_str(self._texts.pop(topic))
            # In turns, so that no camera waits for another's queue.
            for waiting in list(self._cameras.values()):
                if waiting.messages:
                    await self._socket.send_bytes(waiting.messages.popleft())
                    self._sending_since = time.monotonic()
                    self.sent += 1
                    more = True

    def drop(self, request: web.Request) -> None:
        """Disconnect it at once, whatever it has not taken."""
        if request.transport is not None:
            request.transport.abort()


class Audience:
    """All viewers, and the channels they watch.

    Attributes:
        sent, skipped: frames, of viewers that have left.
        left: viewers that have left, by why.
    """

    def __init__(self, hub: Hub, stall_seconds: float) -> None:
        self.sent = self.skipped = 0
        self.left: Counter[str] = Counter()
        self._hub, self._stall_seconds = hub, stall_seconds
        self._zero_s = time.time()
        self._known: set[str] = set()
        self._viewers: dict[Viewer, web.Request] = {}
        self._channels: dict[str, Channel] = {}
        self._closing: list[Channel] = []

    def __len__(self) -> int:
        return len(self._viewers)

    @property
    def cameras(self) -> list[str]:
        """Cameras that are being encoded."""
        return list(self._channels)

    def frames_sent(self) -> tuple[int, int]:
        """Frames sent to, and skipped for, all viewers so far."""
        viewers = self._viewers
        return (
            self.sent + sum(viewer.sent for viewer in viewers),
            self.skipped + sum(viewer.skipped for viewer in viewers),
        )

    def join(self, viewer: Viewer, request: web.Request) -> None:
        """Add a viewer."""
        self._viewers[viewer] = request

    def leave(self, viewer: Viewer) -> None:
        """Forget a viewer, and every channel that nobody watches any more."""
        if self._viewers.pop(viewer, None) is not None:
            self.sent, self.skipped = self.sent + viewer.sent, self.skipped + viewer.skipped
            self.left[viewer.why_left] += 1
        self._tune()

    def watch(self, viewer: Viewer, kinds: dict[str, VideoKind]) -> None:
        """Give a viewer these cameras and no others."""
        fresh = viewer.watch(kinds)
        self._tune()
        for name in fresh:
            if name in self._channels:
                self._channels[name].want_keyframe()

    def tell_all(self, topic: str, text: str) -> None:
        """Send a text to every viewer."""
        for viewer in self._viewers:
            viewer.tell(topic, text)

    def forget_camera(self, name: str) -> None:
        """Close a removed camera's channel; one of the same name begins anew."""
        channel = self._channels.pop(name, None)
        if channel is not None:
            self._shut(channel)

    def refresh(self, names: set[str]) -> None:
        """Bring the channels in line with the cameras there are; drop viewers that do not read."""
        self._known = names
        for viewer, request in list(self._viewers.items()):
            if viewer.stalled_seconds() > self._stall_seconds:
                viewer.why_left = "stalled"
                viewer.drop(request)
        for name, channel in list(self._channels.items()):
            if name not in names or not channel.alive:  # removed, perhaps added again
                self.forget_camera(name)
        self._tune()

    async def close(self) -> None:
        """End all channels."""
        for name in list(self._channels):
            self.forget_camera(name)
        closing, self._closing = self._closing, []
        await asyncio.gather(*(asyncio.to_thread(channel.join, 5.0) for channel in closing))

    def _shut(self, channel: Channel) -> None:
        channel.close()
        self._closing = [other for other in self._closing if other.alive] + [channel]

    def _tune(self) -> None:
        """Open, adjust and close channels so that just what is watched is encoded."""
        wanted: dict[str, set[VideoKind]] = {}
        for viewer in self._viewers:
            for name, kind in viewer.kinds.items():
                wanted.setdefault(name, set()).add(kind)
        for name in self._channels.keys() - wanted.keys():
            self.forget_camera(name)
        for name, kinds in wanted.items():
            if name not in self._channels and name in self._known:
                self._channels[name] = Channel(self._hub, name, self._zero_s, self._deliver)
            if name in self._channels:
                self._channels[name].want(frozenset(kinds))

    def _deliver(self, messages: list[Message]) -> None:
        for message in messages:
            for viewer in self._viewers:
                viewer.offer(message)
