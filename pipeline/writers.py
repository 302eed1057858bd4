"""One small writer for each file that a source's labels end up in.

All have the same methods: `write` a frame, `save` what is written (which brings it to the disk and gives
what a later writer needs to go on there), `close` it (which gives the facts for the manifest), `publish` it
under its final name, or `abort`.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import av
import cv2
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from pipeline.errors import OutputError
from pipeline.frames import StreamInfo
from pipeline.mkv import MatroskaWriter, to_nanoseconds
from pipeline.palette import Palette, Planes
from pipeline.parts import Kept, PartFile, PartFolder, output_errors

# FFV1 version 3 with Golomb-Rice codes, no context model, checksums: the fastest, and for label
# maps, which are flat, half the size of the range coder's.
_FFV1_OPTIONS = {"level": "3", "coder": "0", "context": "0", "slicecrc": "1"}
_USUAL_FRAME_NS = 40_000_000


@dataclass(frozen=True)
class LabelledFrame:
    """One frame with its labels, as every writer gets it.

    Attributes:
        stream: as in `LabelBatch`; its size may change on the way.
        index: place in the stream, from 0.
        pts: ticks of `stream.time_base`.
        small: uint8 [h, w], labels at the model's size.
        full: uint8 [H, W], the same at `stream.size_hw`.
        picture: y, u, v of the frame itself, 4:2:0; None if nobody draws on it.
        latency_ms: from decoded to labelled.
    """

    stream: StreamInfo
    index: int
    pts: int
    small: np.ndarray
    full: np.ndarray
    picture: Planes | None
    latency_ms: float


class Writer(Protocol):
    """What the sink does with each of its outputs. All but `abort` raise OutputError."""

    @property
    def notes(self) -> list[str]: ...

    def write(self, frame: LabelledFrame) -> None: ...

    def save(self) -> dict[str, Any]: ...

    def close(self, interrupted: bool) -> dict[str, Any]: ...

    def publish(self) -> None: ...

    def abort(self, keep: bool = False) -> None: ...


def resize_labels(labels: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Labels at another size, each pixel the id of the nearest one; [H, W] uint8.

    `INTER_NEAREST_EXACT` compares the pixels' centres, as the averaging resize before the network
    does; `INTER_NEAREST` compares corners, which moves every boundary by up to half a pixel of the
    network's. Both take 0.3 ms to 1280x720.
    """
    if labels.shape == size_hw:
        return labels
    return cv2.resize(labels, size_hw[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


@dataclass(frozen=True)
class Saved:
    """What a writer's `save` gave, for a writer of the same file that goes on there.

    Attributes:
        data: as `save` gave it.
        published: the file may have its final name already.
    """

    data: dict[str, Any]
    published: bool

    def kept(self, what: str = "bytes") -> Kept:
        return Kept(self.data[what], self.published)


class LabelVideo:
    """`labels.mkv`: the ids themselves, lossless, at the file's first size."""

    def __init__(
        self, final: Path, stream: StreamInfo, threads: int, saved: Saved | None = None
    ) -> None:
        self.notes: list[str] = []
        self._size_hw, self._time_base = stream.size_hw, stream.time_base
        self._frame_ns = _USUAL_FRAME_NS
        if stream.average_rate:
            self._frame_ns = round(1_000_000_000 / stream.average_rate)
        self._last_pts: int | None = None
        self._frames = 0
        height, width = stream.size_hw
        self._frame = VideoFrame(width, height, "gray")
        plane = self._frame.planes[0]
        self._pixels = np.frombuffer(memoryview(plane), np.uint8).reshape(height, -1)[:, :width]
        self._encoder = _ffv1_encoder(stream, threads)
        self._part = PartFile(final, saved.kept() if saved else None)
        private = bytes(self._encoder.extradata or b"")
        file = (self._part.file, "V_FFV1", private, stream.size_hw, stream.time_base)
        try:
            self._file = MatroskaWriter(*file, delay_ns=saved.data["delay_ns"] if saved else None)
        except ValueError as error:
            self._part.discard(keep=True)
            raise OutputError(
                f"cannot go on with {self._part.part}: it is damaged ({error}); begin anew"
            ) from error
        if saved:
            self._frames, self._last_pts = saved.data["frames"], saved.data["last_pts"]
            self._frame_ns = saved.data["frame_ns"]

    def write(self, frame: LabelledFrame) -> None:
        np.copyto(self._pixels, resize_labels(frame.full, self._size_hw))
        self._frame.pts, self._frame.time_base = frame.pts, self._time_base
        self._append(self._frame)
        if self._last_pts is not None:
            self._frame_ns = to_nanoseconds(frame.pts - self._last_pts, self._time_base)
        self._last_pts = frame.pts
        self._frames += 1

    def save(self) -> dict[str, Any]:
        return {"bytes": self._part.sync(), "frames": self._frames, "last_pts": self._last_pts,
                "frame_ns": self._frame_ns, "delay_ns": self._file.delay_ns}  # fmt: skip

    def close(self, interrupted: bool) -> dict[str, Any]:
        self._append(None)
        with output_errors(self._part.final):
            self._file.finish(self._frame_ns)
        size = self._part.close()
        return {"bytes": size, "frames": self._frames, "size_hw": list(self._size_hw)}

    def publish(self) -> None:
        self._part.publish()

    def abort(self, keep: bool = False) -> None:
        self._part.discard(keep)

    def _append(self, frame: VideoFrame | None) -> None:
        for packet in self._encoder.encode(frame):
            assert packet.pts is not None
            with output_errors(self._part.final):
                self._file.write(packet.pts, bytes(packet))


class LabelImages:
    """`labels/NAME.png`: the ids themselves, each image at its frame's own size."""

    def __init__(self, final: Path, stream: StreamInfo, saved: Saved | None = None) -> None:
        self.notes: list[str] = []
        counts = Counter(stream.frame_names or ())
        self._repeated = {name for name, count in counts.items() if count > 1}
        if self._repeated:
            self.notes.append(
                f"{len(self._repeated)} image names occur more than once: their labels are"
                " NAME_INDEX.png"
            )
        self._files = saved.data["files"] if saved else 0
        self._last = (saved.data["last"][0], saved.data["last"][1]) if saved else (-1, -1)
        if saved is None:
            self._part = PartFolder(final)
            return
        index, pts = self._last
        names = stream.frame_names
        written = (
            {f"{self._name(names, i, i)}.png" for i in range(pts + 1)} if names is not None
            else {f"{self._name(None, i, 0)}.png" for i in range(index + 1)}
        )  # fmt: skip
        self._part = PartFolder(final, saved.kept("files"), written.__contains__)

    def write(self, frame: LabelledFrame) -> None:
        name = self._name(frame.stream.frame_names, frame.index, frame.pts)
        self._part.write(f"{name}.png", encode_png(frame.full))
        self._files += 1
        self._last = (frame.index, frame.pts)

    def save(self) -> dict[str, Any]:
        self._part.sync()
        return {"files": self._files, "last": list(self._last)}

    def close(self, interrupted: bool) -> dict[str, Any]:
        return {"bytes": self._part.close(), "files": self._files}

    def publish(self) -> None:
        self._part.publish()

    def abort(self, keep: bool = False) -> None:
        self._part.discard(keep)

    def _name(self, names: Sequence[str] | None, index: int, pts: int) -> str:
        if names is None:
            return f"{index:06d}"
        name = names[pts]
        if Path(name).name != name:
            raise ValueError(f"frame_names must be names without folders, got {name!r}")
        return f"{name}_{pts:06d}" if name in self._repeated else name


class StatsFile:
    """`stats.jsonl`: a line a frame."""

    def __init__(self, final: Path, palette: Palette, saved: Saved | None = None) -> None:
        self.notes: list[str] = []
        self._classes = palette.classes
        self._lines = saved.data["lines"] if saved else 0
        self._part = PartFile(final, saved.kept() if saved else None)

    def write(self, frame: LabelledFrame) -> None:
        # At the model's size: a third of the time, and what the network said before resizing.
        counts = cv2.calcHist([frame.small], [0], None, [256], [0, 256]).ravel().tolist()
        share = {
            name: round(count / frame.small.size, 6)
            for name, count in zip(self._classes, counts, strict=False)
        }
        line = {
            "index": frame.index,
            "pts_seconds": float(frame.pts * frame.stream.time_base),
            "share": share,
            "latency_ms": round(frame.latency_ms, 3),
        }
        with output_errors(self._part.final):
            self._part.file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._lines += 1

    def save(self) -> dict[str, Any]:
        return {"bytes": self._part.sync(), "lines": self._lines}

    def close(self, interrupted: bool) -> dict[str, Any]:
        return {"bytes": self._part.close(), "lines": self._lines}

    def publish(self) -> None:
        self._part.publish()

    def abort(self, keep: bool = False) -> None:
        self._part.discard(keep)


def encode_png(labels: np.ndarray) -> bytes:
    """An 8-bit grey PNG of `labels`, uint8 [H, W] (ISO/IEC 15948).

    Rows are stored as differences to the row above, which in label maps are almost all zero, and
    deflated as runs: as fast as OpenCV's fastest and half the size.
    """
    height, width = labels.shape
    rows = np.zeros((height, 1 + width), np.uint8)
    rows[0, 1:] = labels[0]
    rows[1:, 0] = 2  # filter type "up"
    np.subtract(labels[1:], labels[:-1], out=rows[1:, 1:])
    deflate = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = (
        (b"IHDR", header),
        (b"IDAT", deflate.compress(rows.data) + deflate.flush()),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def _ffv1_encoder(stream: StreamInfo, threads: int) -> VideoCodecContext:
    height, width = stream.size_hw
    encoder = av.CodecContext.create("ffv1", "w")
    assert isinstance(encoder, VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "gray"
    encoder.time_base = stream.time_base
    encoder.gop_size = 1  # every frame stands alone: tools can go to any
    encoder.color_range = 2  # full: ids are not video levels
    encoder.thread_count = threads
    encoder.options = {**_FFV1_OPTIONS, "slices": "4" if min(height, width) >= 32 else "1"}
    encoder.open()
    return encoder
