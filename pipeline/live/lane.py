"""A camera as the hub keeps it: the frame that waits for the network, its figures and its listeners."""

from __future__ import annotations

import statistics
import time
from collections import Counter, deque
from collections.abc import Callable
from threading import Condition, Event, Thread
from typing import Protocol

import numpy as np

from pipeline.live.address import Address
from pipeline.live.delivery import Delivery, Frame, Handover
from pipeline.live.hub import CameraStatus, Shown, StateChange

_WINDOW_SECONDS = 5.0  # over which rate and latency are told
_HISTORY = 50
_POLL_SECONDS = 0.5  # how late news of a camera may come whose frames nobody wants just now


class CameraHandle(Protocol):
    """A camera in a thread or in a process of its own; see `Camera`."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def join(self, seconds: float) -> None: ...

    def take(self, want_frame: bool, timeout_seconds: float) -> Delivery: ...


class Feed:
    """A listener to one camera; see `Subscription`.

    Args:
        depth: frames that may wait; a further one pushes out the oldest.
        closed: called when the listener closes it.

    Attributes:
        missed: frames that were pushed out before they were taken.
    """

    def __init__(self, depth: int, closed: Callable[[Feed], None]) -> None:
        self._frames: deque[Shown] = deque()
        self._depth, self._closed = depth, closed
        self._changed = Condition()
        self.over = False
        self.missed = 0

    def put(self, shown: Shown) -> None:
        with self._changed:
            self._frames.append(shown)
            if len(self._frames) > self._depth:
                self._frames.popleft()
                self.missed += 1
            self._changed.notify_all()

    def take(self, timeout_seconds: float) -> Shown | None:
        """The oldest of those that wait, which for a depth of 1 is the newest there is."""
        with self._changed:
            self._changed.wait_for(lambda: self._frames or self.over, timeout_seconds)
            return self._frames.popleft() if self._frames else None

    def end(self) -> None:
        """The camera is gone: what waits can still be taken."""
        with self._changed:
            self.over = True
            self._changed.notify_all()

    def close(self) -> None:
        self.end()
        self._closed(self)


class Lane:
    """One camera's way to the network and its figures. May be used from any thread.

    Attributes:
        served_at: `time.monotonic()` at which the network took a frame of it last.
        last: the frame labelled last.
        drained: the camera has ended and no frame waits.
        over: and its listeners know.
        held: another network still serves the camera: its frames are for trying things out.
        rehearsed: one has come, and there is a network for it.
        handed: the memory it brings from there, until its first frame is labelled.
        leaving: another network is to serve it: no more frames are labelled.
        left: set once that is so, and `handed` is what to take there.
        checkpoint_wanted: its memory is to be kept after its next frame, in `checkpoint`.

    Args:
        name, address: the camera's.
        camera: gives its frames.
        frame_came: called when there is a frame to label.
        news: called with what the camera did, from the lane's own thread.
    """

    def __init__(
        self,
        name: str,
        address: Address,
        camera: CameraHandle,
        frame_came: Callable[[], None],
        news: Callable[[Lane, Delivery], None],
    ) -> None:
        self.name, self.address = name, address
        self.served_at = 0.0
        self.last: Frame | None = None
        self.drained = self.over = False
        self.held = self.rehearsed = self.leaving = self.checkpoint_wanted = False
        self.handed: Handover | None = None
        self.checkpoint: Handover | None = None
        self.left = Event()
        self._camera, self._frame_came, self._news = camera, frame_came, news
        self._lock = Condition()
        self._wanted, self._stopping = Event(), Event()
        self._frame: Frame | None = None
        self._feeds: list[Feed] = []
        self._delivery = Delivery()
        self._history: deque[StateChange] = deque(maxlen=_HISTORY)
        self._change_counts: Counter[str] = Counter()
        self._own_dropped: Counter[str] = Counter()
        self._labelled: deque[tuple[float, float]] = deque()  # when (monotonic), latency
        self._frames = self._resets = 0
        self._size_hw: tuple[int, int] | None = None
        self._shares: np.ndarray | None = None
        self._thread = Thread(target=self._pump, name=f"camera-{name}", daemon=True)

    def start(self) -> None:
        self._camera.start()
        self._thread.start()

    def stop(self) -> None:
        """Give the camera up; its listeners see its end."""
        self._stopping.set()
        self._wanted.set()
        self._camera.stop()
        self.finish()

    def join(self, seconds: float) -> None:
        """Wait until the camera has closed what it had open."""
        self._camera.join(seconds)
        self._thread.join(seconds)

    # The network's side.

    @property
    def frame(self) -> Frame | None:
        """The frame that waits for the network."""
        return self._frame

    def want(self) -> None:
        """Have a frame brought, unless one waits already."""
        with self._lock:
            if self._frame is None:
                self._wanted.set()

    def take_frame(self, this: Frame | None = None) -> Frame | None:
        """The frame that waits; None if there is none, or another than `this` by now."""
        with self._lock:
            if this is not None and self._frame is not this:
                return None
            frame, self._frame = self._frame, None
            return frame

    def finish(self) -> None:
        """The camera has ended and its last frame is labelled: the listeners see it."""
        self.over = True
        for feed in self._take_feeds():
            feed.end()

    def leave(self, handover: Handover | None) -> None:
        """No more frames are labelled; what goes to the next network."""
        self.handed = handover
        self.left.set()

    def keep(self, checkpoint: Handover | None) -> None:
        self.checkpoint, self.checkpoint_wanted = checkpoint, False

    def drop(self, reason: str, waiting: Frame | None = None) -> None:
        """Count a frame that will not be labelled: one that was taken, or that waits, if it still does."""
        if waiting is None or self.take_frame(waiting) is not None:
            with self._lock:
                self._own_dropped[reason] += 1

    def labelled(self, frame: Frame, shown: Shown, shares: np.ndarray, reset: bool) -> None:
        """Count a labelled frame and hand it to the listeners."""
        with self._lock:
            self.last = frame
            self._frames += 1
            self._resets += reset
            self._size_hw, self._shares = frame.size_hw, shares
            self._labelled.append((time.monotonic(), shown.labelled_at - shown.captured_at))
            self._forget_old()
            feeds = list(self._feeds)
        for feed in feeds:
            feed.put(shown)

    # The listeners' side.

    def subscribe(self, depth: int) -> Feed:
        feed = Feed(depth, self._unsubscribe)
        with self._lock:
            self._feeds.append(feed)
        if self.over:
            feed.end()
        return feed

    def status(self) -> CameraStatus:
        with self._lock:
            self._forget_old()
            latencies = [latency for _, latency in self._labelled]
            delivery = self._delivery
            history = tuple(self._history)
            return CameraStatus(
                name=self.name,
                url=self.address.shown,
                state=self._state(),
                history=history,
                size_hw=self._size_hw,
                fps=self._fps(),
                latency_ms=1000 * statistics.median(latencies) if latencies else None,
                frames=self._frames,
                dropped=dict(Counter(delivery.dropped) + self._own_dropped),
                reconnects=max(0, delivery.connections - 1),
                resets=self._resets,
                shares=self._shares,
                changes=dict(self._change_counts),
                latency_p95_ms=_p95_ms(latencies),
            )

    def _fps(self) -> float:
        if len(self._labelled) < 2:
            return 0.0
        span = max(time.monotonic() - self._labelled[0][0], 1e-3)
        return (len(self._labelled) - 1) / span

    def _forget_old(self) -> None:
        horizon = time.monotonic() - _WINDOW_SECONDS
        while self._labelled and self._labelled[0][0] < horizon:
            self._labelled.popleft()

    def _unsubscribe(self, feed: Feed) -> None:
        with self._lock:
            if feed in self._feeds:
                self._feeds.remove(feed)

    def _take_feeds(self) -> list[Feed]:
        with self._lock:
            feeds, self._feeds = self._feeds, []
            return feeds

    # The camera's side: a thread that brings what is asked for.

    def _pump(self) -> None:
        while not self._stopping.is_set():
            wanted = self._wanted.wait(_POLL_SECONDS)
            if self._stopping.is_set():
                return
            delivery = self._camera.take(wanted, _POLL_SECONDS if wanted else 0.0)
            self._receive(delivery)
            if wanted and delivery.frame is None and self._state() == "ended":
                self.drained = True
                self._frame_came()  # the network's thread calls `finish` after the last frame
                return

    def _receive(self, delivery: Delivery) -> None:
        with self._lock:
            self._delivery = delivery
            self._history.extend(delivery.changes)
            self._change_counts.update(change.state for change in delivery.changes)
            if delivery.frame is not None:
                self._wanted.clear()
                self._own_dropped["overload"] += self._frame is not None
                self._frame = delivery.frame
        self._news(self, delivery)
        if delivery.frame is not None:
            self._frame_came()

    def _state(self) -> str:
        return self._history[-1].state if self._history else "connecting"


def _p95_ms(latencies: list[float]) -> float | None:
    if not latencies:
        return None
    return 1000 * sorted(latencies)[min(len(latencies) - 1, int(0.95 * len(latencies)))]
