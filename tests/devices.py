"""A device that is the CPU, for what a GPU does out of order: streams whose work is done as late as their
events allow, in any order that they allow, and graphs that do again what was recorded."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from pipeline.engines.device import WARM_UPS, Event, Stream, Work

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU (REQUIRE_CUDA=1 makes this a failure)"
)


class FakeEvent:
    def __init__(self, device: FakeDevice) -> None:
        self.device, self.reached = device, False

    def synchronize(self) -> None:
        while not self.reached:
            self.device.advance()


class FakeStream:
    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        self.queue: deque[Work | FakeEvent] = deque()

    def run(self, work: Work) -> None:
        self.queue.append(work)
        self.device.maybe_advance()

    def record(self) -> FakeEvent:
        event = FakeEvent(self.device)
        self.queue.append(lambda: setattr(event, "reached", True))
        return event

    def wait(self, event: Event) -> None:
        assert isinstance(event, FakeEvent)
        self.queue.append(event)

    @property
    def ready(self) -> bool:
        """Whether its first piece of work, if any, may be done now."""
        while self.queue and isinstance(self.queue[0], FakeEvent) and self.queue[0].reached:
            self.queue.popleft()
        return bool(self.queue) and not isinstance(self.queue[0], FakeEvent)


class FakeDevice:
    """Does a piece of a random stream's work when somebody waits for it, or now and then.

    Args:
        seed: of the order of the work.
        eagerness: chance that work is done when more is queued; 0 is as late as can be.
    """

    name = "the fake GPU"
    torch_device = torch.device("cpu")

    def __init__(self, seed: int = 0, eagerness: float = 0.3) -> None:
        self.random, self.eagerness = random.Random(seed), eagerness
        self.streams: list[FakeStream] = []
        self.replays = 0
        self.before_replay: Callable[[int], None] = lambda number: None  # may raise

    def stream(self) -> FakeStream:
        self.streams.append(FakeStream(self))
        return self.streams[-1]

    def stream_handle(self) -> int:
        return 77

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype)

    def advance(self) -> None:
        ready = [stream for stream in self.streams if stream.ready]
        assert ready, "the streams wait for each other"
        work = self.random.choice(ready).queue.popleft()
        assert not isinstance(work, FakeEvent)
        work()

    def maybe_advance(self) -> None:
        while self.random.random() < self.eagerness and any(s.ready for s in self.streams):
            self.advance()

    def capture(self, stream: Stream, body: Work) -> Work:
        for _ in range(WARM_UPS):
            stream.run(body)
        stream.record().synchronize()
        record = Record()
        with record:
            body()

        def replay() -> None:
            self.replays += 1
            self.before_replay(self.replays)
            record.replay()

        return replay


# Tensors made of Python's numbers: on a GPU copies from memory that is not pinned, which no graph can hold.
FROM_HOST = ("lift_fresh", "lift_fresh_copy", "scalar_tensor")


class Record(TorchDispatchMode):
    """What was done to which tensors, without the Python that did it, as in a CUDA graph."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        assert name not in FROM_HOST, f"{name} would copy from the host inside a capture"
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        now: dict[int, Any] = {}  # the records hold the tensors, so their ids stay theirs

        def current(value: Any) -> Any:
            return now.get(id(value), value) if isinstance(value, Tensor) else value

        for func, args, kwargs, then in self.calls:
            result = func(*tree_map(current, args), **tree_map(current, kwargs))
            for old, new in zip(tree_leaves(then), tree_leaves(result), strict=True):
                now[id(old)] = new
