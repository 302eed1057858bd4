"""The few things the graph engine asks of a GPU: streams that run work in order, events between them, pinned
memory, graphs. Behind this seam the engine's logic is tested on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Protocol

import torch
from torch import Tensor

from pipeline.errors import EngineError

Work = Callable[[], object]
_CAPTURE = Lock()  # another thread that waits for the whole device meanwhile would spoil a capture
WARM_UPS = 3  # before a capture: libraries set themselves up in their first calls


class Event(Protocol):
    """A point in a stream's work."""

    def synchronize(self) -> None:
        """Wait until the stream has come to it."""
        ...


class Stream(Protocol):
    """A queue of work on the device: in order within itself, side by side with other streams."""

    def run(self, work: Work) -> None:
        """Put work in the queue. Returns at once; the memory that the work names must stay as it is."""
        ...

    def record(self) -> Event:
        """The point behind all work queued so far."""
        ...

    def wait(self, event: Event) -> None:
        """What is queued from now on waits for an event of another stream."""
        ...


class Device(Protocol):
    """Where a graph engine runs.

    Attributes:
        torch_device: where its tensors lie.
        name: as its maker calls it.
    """

    torch_device: torch.device
    name: str

    def stream(self) -> Stream: ...

    def stream_handle(self) -> int:
        """The stream that work is being put in just now, as libraries outside PyTorch know it."""
        ...

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory of the host that the device copies from and to by itself."""
        ...

    def capture(self, stream: Stream, body: Work) -> Work:
        """Record what `body` does to tensors; what is returned does it again, to the same tensors, in the
        stream that it is run in. `body` itself runs a few times before."""
        ...


class CudaStream:
    """A stream of the current CUDA device."""

    def __init__(self) -> None:
        self.raw = torch.cuda.Stream()

    def run(self, work: Work) -> None:
        with torch.cuda.stream(self.raw):
            work()

    def record(self) -> torch.cuda.Event:
        return self.raw.record_event()

    def wait(self, event: Event) -> None:
        assert isinstance(event, torch.cuda.Event)
        self.raw.wait_event(event)


class CudaDevice:
    """The current CUDA device. Raises EngineError if it can't be used."""

    def __init__(self) -> None:
        self.torch_device = torch.device("cuda")
        try:
            self.name = torch.cuda.get_device_name()
            torch.backends.cudnn.allow_tf32 = False  # float32 is what it says, as for matrices
            # No graph is replayed while another runs, and none leaves anything in this memory.
            self._pool = torch.cuda.graph_pool_handle()
        except (RuntimeError, AssertionError) as error:
            raise EngineError(f"the GPU cannot be used: {first_line(error)}") from error

    def stream(self) -> CudaStream:
        return CudaStream()

    def stream_handle(self) -> int:
        return int(torch.cuda.current_stream().cuda_stream)

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, pin_memory=True)

    def capture(self, stream: Stream, body: Work) -> Work:
        assert isinstance(stream, CudaStream)
        with _CAPTURE:
            torch.cuda.synchronize()  # what made the tensors ran in another stream
            for _ in range(WARM_UPS):
                stream.run(body)
            stream.record().synchronize()
            graph = torch.cuda.CUDAGraph()
            # Other engines' threads may allocate meanwhile.
            mode = "thread_local"
            with torch.cuda.graph(graph, self._pool, stream.raw, capture_error_mode=mode):
                body()
        return graph.replay


@contextmanager
def reporting(device: Device, model_hw: tuple[int, int], streams: int) -> Iterator[None]:
    """Turn what a device raises into an EngineError: one line, with what to try."""
    try:
        yield
    except EngineError:
        raise
    except RuntimeError as error:
        problem = device_problem(error)
        if problem is None:
            raise
        height, width = model_hw
        reported = EngineError(
            f"{device.name} {problem} with {streams} streams of {height}x{width}: try a smaller"
            " --size, fewer sources at once, or --engine cpu"
        )
        reported.device_lost = is_lost(error)
        raise reported from error


def device_problem(error: BaseException) -> str | None:
    """What an error says of the device, in a few words; None if it isn't the device's."""
    if isinstance(error, torch.OutOfMemoryError):
        return "ran out of memory"
    if is_lost(error) or any(
        word in str(error) for word in ("CUDA error", "cuDNN error", "TensorRT")
    ):
        return f"failed ({first_line(error)})"
    return None


def is_lost(error: BaseException) -> bool:
    """Whether an error stays with the process's context: nothing will run in it any more."""
    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error):
        return False
    return isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)


def first_line(error: BaseException) -> str:
    """An error's message up to its first line break."""
    return str(error).strip().split("\n")[0] or type(error).__name__
