"""The graph engine: a step, a CUDA graph for each of a few batch sizes, a bank of states on the device.

Everything a step does is in its graph: gathering the states of the batch's slots, resetting some, the
network, scattering the next states, narrowing the labels. Frames go up and labels come down in streams of
their own, two buffers each, while the network runs on the frames before and after.

Batches of different sizes run different kernels, so that labels of the same frame in company and alone may
differ where two classes are equally probable to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from models.program import DTYPES, state_shape
from models.spec import ModelFiles
from pipeline.engines import EngineChoice
from pipeline.engines.device import CudaDevice, Device, Event, Stream, reporting
from pipeline.engines.inductor import load as load_compiled
from pipeline.engines.loading import load_step
from pipeline.errors import EngineError
from pipeline.frames import Pixels, StreamsPixels

# A step of just this many streams: (planes, state) -> (labels, next state). It is called inside a capture.
Runner = Callable[[Tensor, Tensor], Sequence[Tensor]]
LARGEST_BATCH = 64


def bucket_sizes(slots: int, largest: int = LARGEST_BATCH) -> list[int]:
    """Batch sizes that get a graph: powers of two, and the largest that can occur."""
    most = min(slots, largest)
    return [*(2**power for power in range(most.bit_length()) if 2**power < most), most]


def cuda_engine(
    choice: EngineChoice,
    files: ModelFiles,
    model_hw: tuple[int, int],
    slots: int,
    device: Device | None = None,
) -> GraphEngine:
    """The step by PyTorch's kernels, or by those that `roadmask compile` has made for it."""
    device = device or CudaDevice()
    step = load_step(files, choice.precision, device, model_hw, slots)
    found = load_compiled(choice, files, model_hw, device)
    runner, largest = found or (step.to(memory_format=torch.channels_last), LARGEST_BATCH)  # type: ignore[call-overload]
    return GraphEngine(
        device, lambda size: runner, state_chw=state_shape(step, model_hw), model_hw=model_hw,
        slots=slots, dtype=DTYPES[choice.precision], largest=largest,
    )  # fmt: skip


class GraphEngine:
    """A step on a device, for any batches of its slots.

    The last row of the bank belongs to no stream: what pads a batch up to the size of a graph, and what warms
    one up, reads and writes that row.

    Args:
        device: where.
        make_runner: gives the step for a batch size; called largest first.
        state_chw: shape of a stream's state.
        model_hw: size of the frames.
        slots: streams in the bank.
        dtype: of the states.
        largest: streams that the step takes at once.

    Raises EngineError where the device fails, here and in every call.
    """

    batches = True

    def __init__(
        self,
        device: Device,
        make_runner: Callable[[int], Runner],
        *,
        state_chw: tuple[int, int, int],
        model_hw: tuple[int, int],
        slots: int,
        dtype: torch.dtype,
        largest: int = LARGEST_BATCH,
    ) -> None:
        self.device, self.model_hw, self.slots = device, model_hw, slots
        self._failure: EngineError | None = None
        self._compute, self._upload, self._download = (device.stream() for _ in range(3))
        sizes = bucket_sizes(slots, largest)
        self._largest = sizes[-1]
        with self._reported(), torch.inference_mode():
            shape = (slots + 1, *state_chw)
            self.bank = torch.zeros(shape, dtype=dtype, device=device.torch_device)
            self._sides = [_Side(device, self._largest, model_hw) for _ in range(2)]
            # Largest first: the others fit into the memory that its graph has taken.
            self._buckets = [
                _Bucket(device, self._compute, self.bank, make_runner(size), size, model_hw)
                for size in reversed(sizes)
            ][::-1]

    def step(
        self, frames: StreamsPixels, slots: Sequence[int], reset: Sequence[bool]
    ) -> np.ndarray:
        self._check(frames, slots, reset)
        labels = np.empty((len(frames), len(frames[0]), *self.model_hw), np.uint8)
        with self._reported(), torch.inference_mode():
            for start in range(0, len(slots), self._largest):
                part = slice(start, start + self._largest)
                self._advance(frames[part], slots[part], reset[part], labels[part])
        return labels

    def read_state(self, slot: int) -> np.ndarray:
        state = torch.empty(self.bank.shape[1:])
        self._now(lambda: state.copy_(self.bank[slot]))
        return state.numpy()

    def write_state(self, slot: int, state: np.ndarray) -> None:
        self._now(lambda: self.bank[slot].copy_(torch.from_numpy(state)))

    def _now(self, work: Callable[[], object]) -> None:
        """Do something to the bank, behind all steps, and wait for it."""
        with self._reported(), torch.inference_mode():
            self._compute.run(work)
            self._compute.record().synchronize()

    def _check(self, frames: StreamsPixels, slots: Sequence[int], reset: Sequence[bool]) -> None:
        rows, width = self.model_hw[0] * 3 // 2, self.model_hw[1]
        for stream in frames:
            wanted = (len(frames[0]), rows, width)
            if stream.dtype not in (np.uint8, torch.uint8) or tuple(stream.shape) != wanted:
                raise ValueError(
                    f"frames must be uint8 [N, T, {rows}, {width}], got {stream.dtype}"
                    f" {list(stream.shape)} among N = {len(frames)}"
                )
        known = all(0 <= slot < self.slots for slot in slots)
        if not (len(frames) == len(slots) == len(reset) == len(set(slots)) and known):
            raise ValueError(
                f"a batch of {len(frames)} streams needs as many flags and as many different slots"
                f" below {self.slots}, got {list(slots)} and {list(reset)}"
            )

    def _advance(
        self, frames: StreamsPixels, slots: Sequence[int], reset: Sequence[bool], labels: np.ndarray
    ) -> None:
        """All frames of a batch that fits into a bucket, time by time, into `labels`."""
        count, times = len(frames), len(frames[0])
        bucket = next(bucket for bucket in self._buckets if bucket.size >= count)
        spare = [self.slots] * (bucket.size - count)
        keep = [not fresh for fresh in reset]
        for time in range(times):
            side = self._sides[time % 2]
            if time >= 2:
                side.fetch(labels[:, time - 2])
            side.fill(
                [stream[time] for stream in frames],
                [*slots, *spare],
                [*keep, *(False for _ in spare)],
            )
            keep = [True] * count
            self._launch(bucket, side, count)
        for time in range(max(0, times - 2), times):
            self._sides[time % 2].fetch(labels[:, time])

    def _launch(self, bucket: _Bucket, side: _Side, count: int) -> None:
        """Queue one step: up, through the graph, down."""
        # What was fetched from this side has left it long ago, and so has what was uploaded to it.
        self._upload.run(lambda: side.upload(count, bucket.size))
        self._compute.wait(self._upload.record())
        self._compute.run(lambda: bucket.take(side))
        self._compute.run(bucket.replay)
        self._compute.run(lambda: bucket.give(side))
        self._download.wait(self._compute.record())
        self._download.run(lambda: side.download(count))
        side.downloaded = self._download.record()

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Report a device that failed; after that the engine serves no more.

        Streams of the batch may have got on or not: nobody could tell.
        """
        if self._failure is not None:
            raise self._failure.again()
        try:
            with reporting(self.device, self.model_hw, self.slots):
                yield
        except EngineError as error:
            self._failure = error.again()  # without its traceback, which holds all there was
            raise


class _Side:
    """One of the two sets of buffers between host and device, for batches of up to `largest` streams."""

    downloaded: Event

    def __init__(self, device: Device, largest: int, model_hw: tuple[int, int]) -> None:
        self._there: dict[
            int, Tensor
        ] = {}  # frames that need no bringing up, by their place in the batch
        height, width = model_hw
        frames = (largest, height * 3 // 2, width)
        shapes = [
            (frames, torch.uint8), ((largest,), torch.int64), ((largest,), torch.bool),
            ((largest, height, width), torch.uint8),
        ]  # fmt: skip
        self._host = [device.pinned(shape, dtype) for shape, dtype in shapes]
        self._device = [
            torch.zeros(shape, dtype=dtype, device=device.torch_device) for shape, dtype in shapes
        ]

    def fill(self, planes: list[Pixels], rows: list[int], keep: list[bool]) -> None:
        """On the host: put a batch's input in. Frames that lie on the device must stay as they are until the
        labels are fetched."""
        host_planes, host_rows, host_keep, _ = self._host
        self._there = {row: one for row, one in enumerate(planes) if isinstance(one, Tensor)}
        for row, one in enumerate(planes):
            if row not in self._there:
                host_planes[row].numpy()[...] = one
        host_rows[: len(rows)] = torch.tensor(rows)
        host_keep[: len(keep)] = torch.tensor(keep)

    def upload(self, count: int, size: int) -> None:
        from_host = count if len(self._there) < count else 0
        for number, rows in enumerate((from_host, size, size)):
            self._device[number][:rows].copy_(self._host[number][:rows], non_blocking=True)
        for row, frame in self._there.items():
            self._device[0][row].copy_(frame, non_blocking=True)

    def inputs(self, size: int) -> list[Tensor]:
        """On the device: planes, rows of the bank, flags."""
        return [tensor[:size] for tensor in self._device[:3]]

    def labels(self, size: int) -> Tensor:
        """On the device."""
        return self._device[3][:size]

    def download(self, count: int) -> None:
        self._host[3][:count].copy_(self._device[3][:count], non_blocking=True)

    def fetch(self, labels: np.ndarray) -> None:
        """On the host: wait for a batch's labels and copy them out."""
        self.downloaded.synchronize()
        labels[...] = self._host[3][: len(labels)].numpy()


class _Bucket:
    """The step of exactly `size` streams as one graph, with the memory it reads and writes."""

    def __init__(
        self, device: Device, stream: Stream, bank: Tensor, runner: Runner, size: int,
        model_hw: tuple[int, int],
    ) -> None:  # fmt: skip
        height, width = model_hw
        where = device.torch_device
        self.size, self._bank, self._runner = size, bank, runner
        self._planes = torch.zeros(size, height * 3 // 2, width, dtype=torch.uint8, device=where)
        self._rows = torch.full((size,), len(bank) - 1, device=where)  # the spare row, at first
        self._keep = torch.zeros(size, dtype=torch.bool, device=where)
        self._labels = torch.zeros(size, height, width, dtype=torch.uint8, device=where)
        self.replay = device.capture(stream, self._body)

    def _body(self) -> None:
        state = self._bank.index_select(0, self._rows)
        # Not a product: zero times what is not a number would be none either.
        state = torch.where(self._keep[:, None, None, None], state, 0.0)
        labels, following = self._runner(self._planes, state)
        self._bank.index_copy_(0, self._rows, following.to(self._bank.dtype))
        self._labels.copy_(labels)  # int32 -> uint8

    def take(self, side: _Side) -> None:
        inputs = (self._planes, self._rows, self._keep)
        for mine, given in zip(inputs, side.inputs(self.size), strict=True):
            mine.copy_(given, non_blocking=True)

    def give(self, side: _Side) -> None:
        side.labels(self.size).copy_(self._labels, non_blocking=True)
