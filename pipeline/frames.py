"""What crosses from stage to stage: batches of frames, batches of labels, gaps and the end of a stream.

A stream's place in the world is `(stream_id, frame_index, pts)` in the source's own time base. The three
travel untouched from the decoder to the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np

from pipeline.work import Step, Stretch

# Frames of one stream at the network's size, uint8 [T, h * 3 // 2, w]: an array; a tensor where they were
# decoded on the device and have stayed there. PyTorch is not imported for the sake of its name.
Pixels: TypeAlias = Any
# Of N streams: [N, T, h * 3 // 2, w], or one by one.
StreamsPixels: TypeAlias = Sequence[Pixels] | np.ndarray
# Encoded videos begin a new closed group of pictures every so many frames, and a run can go on only from
# between two of them. A count, not a time, so that a run that was cut off makes the same groups again.
# 48 costs 1.3 % of a mask video's size and 2.2 % of an overlay's; 16 would cost 6 and 9 %.
GROUP_FRAMES = 48


@dataclass(frozen=True)
class StreamInfo:
    """What is known of a stream before its first frame.

    Attributes:
        stream_id: unique within a run; also the name of its output folder.
        source: path or URL, as given.
        size_hw: height and width in pixels as displayed, rotation applied.
        time_base: seconds a tick of `pts`.
        average_rate: frames a second as the container states it, None if it does not.
        frame_count: number of frames as the container states or implies it, None if unknown. For the
            progress bar only: it may be wrong.
        matrix: YUV matrix of `Pictures`, "bt601" or "bt709".
        frame_names: for a folder of images, the files' stems in order; None for video.
        rotation_degrees: counter-clockwise rotation that was applied, 0, 90, 180 or 270.
        details: codec, pixel format and whatever else belongs in the manifest.
    """

    stream_id: str
    source: str
    size_hw: tuple[int, int]
    time_base: Fraction
    average_rate: Fraction | None = None
    frame_count: int | None = None
    matrix: str = "bt709"
    frame_names: tuple[str, ...] | None = None
    rotation_degrees: int = 0
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.matrix not in ("bt601", "bt709"):
            raise ValueError(f"matrix must be 'bt601' or 'bt709', got {self.matrix!r}")
        if min(self.size_hw) < 1:
            raise ValueError(f"size_hw must be at least 1x1, got {self.size_hw}")
        if self.time_base <= 0:
            raise ValueError(f"time_base must be positive, got {self.time_base}")


@dataclass(frozen=True)
class Pictures:
    """T full-size frames as planar YUV 4:2:0, limited range, in the stream's own matrix.

    Attributes:
        y: uint8 [T, H, W].
        u: uint8 [T, ceil(H / 2), ceil(W / 2)].
        v: as `u`.
    """

    y: np.ndarray
    u: np.ndarray
    v: np.ndarray

    def __post_init__(self) -> None:
        frames, height, width = _expect_uint8(self.y, "y", 3)
        chroma = (frames, (height + 1) // 2, (width + 1) // 2)
        for name in ("u", "v"):
            if _expect_uint8(getattr(self, name), name, 3) != chroma:
                raise ValueError(f"{name} must be {chroma}, got {getattr(self, name).shape}")


@dataclass(frozen=True)
class StreamState:
    """A stream's memory between two frames, out of the engine: only ever part of a `Mark`.

    Attributes:
        model_hw: input size of the network whose memory it is.
        values: float32 [C, h, w] exactly as the engine had it; None if the next frame starts from zeros.
        steps: frames seen since the last reset.
        resets: how often it was reset after its start.
    """

    model_hw: tuple[int, int]
    values: np.ndarray | None
    steps: int
    resets: int

    def __post_init__(self) -> None:
        if self.values is not None and self.values.dtype != np.float32:
            raise ValueError(f"values must be float32, got {self.values.dtype}")


@dataclass(frozen=True)
class Mark:
    """A place in a stream from which it can go on as if it had never stopped.

    The decoder makes it, behind the last frame of a batch; the segmenter adds the stream's state; the
    sink writes it down once all frames before it are on the disk.

    Attributes:
        frame_index: index of the first frame after it, a multiple of `GROUP_FRAMES`.
        decoder: what the decoder needs to go on there; JSON can hold it.
        state: the stream's memory there, None on the way from decoder to segmenter.
    """

    frame_index: int
    decoder: dict[str, Any]
    state: StreamState | None = None


@dataclass(frozen=True)
class FrameBatch:
    """T consecutive frames of one stream, on their way to the segmenter.

    Attributes:
        stream: the stream they belong to; `size_hw` holds for every frame of the batch.
        frame_index: index of the first frame in its stream, from 0.
        pts: T presentation time stamps in ticks of `stream.time_base`, strictly increasing.
        pixels: uint8 [T, h * 3 // 2, w], planar YUV 4:2:0 (I420) at the model's size, BT.601 limited
            range whatever the source was; h and w are even. A tensor on the device that decoded them, where
            the network runs there too: it is ready, and never crosses to another process.
        decoded_at: `time.monotonic()` at which each frame left the decoder; T seconds.
        pictures: full-size frames for a sink that draws on them, None if none does. A handle (an
            object reference) while the batch is between processes.
        mark: the place behind the last frame, where the decoder made one.
        decode: what decoding them took, where it was measured.
    """

    stream: StreamInfo
    frame_index: int
    pts: tuple[int, ...]
    pixels: Pixels
    decoded_at: tuple[float, ...]
    pictures: Any = None
    mark: Mark | None = None
    decode: Stretch | None = None

    def __post_init__(self) -> None:
        frames, rows, width = _expect_uint8(self.pixels, "pixels", 3)
        if rows % 3 or width % 2:
            raise ValueError(f"pixels must be uint8 [T, h * 3 // 2, w], got {self.pixels.shape}")
        _expect_stamps(self, frames)

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def model_hw(self) -> tuple[int, int]:
        """Height and width of the frames as the network sees them."""
        return self.pixels.shape[1] // 3 * 2, self.pixels.shape[2]


@dataclass(frozen=True)
class LabelBatch:
    """T consecutive label maps of one stream, on their way to the sink.

    Attributes:
        stream, frame_index, pts, decoded_at, pictures, decode: as they came in the `FrameBatch`.
        labels: uint8 [T, h, w], a class id a pixel, at the model's size.
        labelled_at: `time.monotonic()` at which the labels left the engine, seconds.
        steps: int64 [T], how many frames the stream's state had seen, this one included.
        mark: as in the `FrameBatch`, with the stream's state.
        step: the engine's step that made them, where it was measured.
    """

    stream: StreamInfo
    frame_index: int
    pts: tuple[int, ...]
    labels: np.ndarray
    decoded_at: tuple[float, ...]
    labelled_at: float
    steps: np.ndarray
    pictures: Any = None
    mark: Mark | None = None
    decode: Stretch | None = None
    step: Step | None = None

    def __post_init__(self) -> None:
        frames, _, _ = _expect_uint8(self.labels, "labels", 3)
        _expect_stamps(self, frames)
        if self.steps.shape != (frames,):
            raise ValueError(f"steps must be [{frames}], got {list(self.steps.shape)}")

    def __len__(self) -> int:
        return len(self.pts)


@dataclass(frozen=True)
class Gap:
    """Frames are missing between the batch before and the batch after; the state decides what follows.

    Attributes:
        stream: the stream that has the gap.
        frame_index: index of the first frame after it.
        seconds: how long it lasted, None if what follows is another scene (a cut, a change of size).
        reason: for the log and the manifest.
    """

    stream: StreamInfo
    frame_index: int
    seconds: float | None
    reason: str


@dataclass(frozen=True)
class EndOfStream:
    """The stream is over. Counts are of the whole stream.

    Attributes:
        stream: the stream that ended, as it was at the end.
        frame_count: frames decoded and sent.
        corrupt_frames: frames among them that the decoder marked as damaged.
        undecodable_packets: packets that gave no frame because they could not be decoded.
        repaired_pts: frames whose time stamp was missing or did not increase, and was made up.
        notes: what a user should know, a line each.
        interrupted: the stream was stopped before its end.
    """

    stream: StreamInfo
    frame_count: int
    corrupt_frames: int = 0
    undecodable_packets: int = 0
    repaired_pts: int = 0
    notes: tuple[str, ...] = ()
    interrupted: bool = False


FrameItem = FrameBatch | Gap | EndOfStream
LabelItem = LabelBatch | Gap | EndOfStream


def _expect_uint8(array: Pixels, name: str, ndim: int) -> tuple[int, ...]:
    if str(array.dtype).rpartition(".")[2] != "uint8" or array.ndim != ndim:
        raise ValueError(
            f"{name} must be uint8 with {ndim} dimensions, got {array.dtype} {list(array.shape)}"
        )
    return tuple(array.shape)


def _expect_stamps(batch: FrameBatch | LabelBatch, frames: int) -> None:
    if frames < 1:
        raise ValueError("a batch must hold at least one frame, got 0")
    if len(batch.pts) != frames or len(batch.decoded_at) != frames:
        raise ValueError(
            f"pts and decoded_at must have {frames} entries,"
            f" got {len(batch.pts)} and {len(batch.decoded_at)}"
        )
    if any(later <= earlier for earlier, later in zip(batch.pts, batch.pts[1:], strict=False)):
        raise ValueError(f"pts must increase strictly, got {batch.pts}")
