"""One small writer for each file that a source's labels end up in.

All have the same four methods: `write` a frame, `close` what is written (which brings it to the
disk and gives the facts for the manifest), `publish` it under its final name, or `abort`.
"""

from __future__ import annotations

import json
import struct
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import cv2
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from pipeline.audio import AudioCopy
from pipeline.frames import StreamInfo
from pipeline.mkv import MatroskaWriter, to_nanoseconds
from pipeline.mp4 import Mp4Writer, VideoSettings
from pipeline.palette import Palette, Planes
from pipeline.parts import PartFile, PartFolder, output_errors

# Constant quantisers of x264. Masks are flat with sharp edges: at 22 fewer than one pixel in five
# thousand is off by more than 8 levels, and unlike a rate factor it needs no look-ahead (0.6 ms).
_MASK_QUALITY = {"qp": "22"}
_PICTURE_QUALITY = {"qp": "24"}
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

    def close(self, interrupted: bool) -> dict[str, Any]: ...

    def publish(self) -> None: ...

    def abort(self) -> None: ...


def resize_labels(labels: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Labels at another size, each pixel the id of the nearest one; [H, W] uint8.

    `INTER_NEAREST_EXACT` compares the pixels' centres, as the averaging resize before the network
    does; `INTER_NEAREST` compares corners, which moves every boundary by up to half a pixel of the
    network's. Both take 0.3 ms to 1280x720.
    """
    if labels.shape == size_hw:
        return labels
    return cv2.resize(labels, size_hw[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


class _VideoFile(ABC):
    """An mp4 whose frames a subclass draws; it keeps its first size."""

    _quality: dict[str, str]

    def __init__(
        self, final: Path, stream: StreamInfo, threads: int, audio: AudioCopy | None = None
    ) -> None:
        self._size_hw, self._matrix = stream.size_hw, stream.matrix
        self._frames = 0
        self._audio = audio
        self._part = PartFile(final)
        settings = VideoSettings(
            size_hw=stream.size_hw,
            time_base=stream.time_base,
            rate=stream.average_rate,
            matrix=stream.matrix,
            aspect=_pixel_aspect(stream),
            quality=self._quality,
            threads=threads,
        )
        try:
            self._mp4 = Mp4Writer(self._part, settings, audio)
        except BaseException:
            self._part.discard()
            raise

    @property
    def notes(self) -> list[str]:
        return self._mp4.notes + (self._audio.notes if self._audio else [])

    @abstractmethod
    def _draw(self, frame: LabelledFrame, labels: np.ndarray, out: Planes) -> None:
        """Draw a frame with `labels` at the file's size into `out`."""

    def write(self, frame: LabelledFrame) -> None:
        self._draw(frame, resize_labels(frame.full, self._size_hw), self._mp4.planes)
        self._mp4.encode(frame.pts)
        self._frames += 1

    def close(self, interrupted: bool) -> dict[str, Any]:
        self._mp4.finish(whole=not interrupted)
        facts: dict[str, Any] = {
            "bytes": self._part.close(),
            "frames": self._frames,
            "size_hw": list(self._size_hw),
        }
        if self._mp4.pts_offset:
            facts["pts_offset"] = self._mp4.pts_offset
        if self._audio is not None:
            facts["audio_streams"] = len(self._audio.rates_hz)
        return facts

    def publish(self) -> None:
        self._part.publish()

    def abort(self) -> None:
        self._mp4.abort()
        self._part.discard()


class ColorVideo(_VideoFile):
    """`color.mp4`: the class colours."""

    _quality = _MASK_QUALITY

    def __init__(self, final: Path, stream: StreamInfo, palette: Palette, threads: int) -> None:
        super().__init__(final, stream, threads)
        self._palette = palette

    def _draw(self, frame: LabelledFrame, labels: np.ndarray, out: Planes) -> None:
        if self._mp4.full_chroma:
            self._palette.labels_to_i444(labels, self._matrix, out)
        else:
            self._palette.labels_to_i420(labels, self._matrix, out)


class OverlayVideo(_VideoFile):
    """`overlay.mp4`: the class colours over the source's pictures, with the source's audio."""

    _quality = _PICTURE_QUALITY

    def __init__(
        self, final: Path, stream: StreamInfo, palette: Palette, opacity: float, threads: int
    ) -> None:
        super().__init__(final, stream, threads, AudioCopy(stream.source))
        self._palette, self._opacity = palette, opacity

    def _draw(self, frame: LabelledFrame, labels: np.ndarray, out: Planes) -> None:
        if frame.picture is None:
            raise ValueError("pictures must be decoded for an overlay, got None")
        picture = _fit_picture(frame.picture, self._size_hw, self._mp4.full_chroma)
        self._palette.overlay(picture, labels, self._opacity, self._matrix, out)


class LabelVideo:
    """`labels.mkv`: the ids themselves, lossless, at the file's first size."""

    def __init__(self, final: Path, stream: StreamInfo, threads: int) -> None:
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
        self._part = PartFile(final)
        private = bytes(self._encoder.extradata or b"")
        self._file = MatroskaWriter(
            self._part.file, "V_FFV1", private, stream.size_hw, stream.time_base
        )

    def write(self, frame: LabelledFrame) -> None:
        np.copyto(self._pixels, resize_labels(frame.full, self._size_hw))
        self._frame.pts, self._frame.time_base = frame.pts, self._time_base
        self._append(self._frame)
        if self._last_pts is not None:
            self._frame_ns = to_nanoseconds(frame.pts - self._last_pts, self._time_base)
        self._last_pts = frame.pts
        self._frames += 1

    def close(self, interrupted: bool) -> dict[str, Any]:
        self._append(None)
        with output_errors(self._part.final):
            self._file.finish(self._frame_ns)
        size = self._part.close()
        return {"bytes": size, "frames": self._frames, "size_hw": list(self._size_hw)}

    def publish(self) -> None:
        self._part.publish()

    def abort(self) -> None:
        self._part.discard()

    def _append(self, frame: VideoFrame | None) -> None:
        for packet in self._encoder.encode(frame):
            assert packet.pts is not None
            with output_errors(self._part.final):
                self._file.write(packet.pts, bytes(packet))


class LabelImages:
    """`labels/NAME.png`: the ids themselves, each image at its frame's own size."""

    def __init__(self, final: Path, stream: StreamInfo) -> None:
        self.notes: list[str] = []
        counts = Counter(stream.frame_names or ())
        self._repeated = {name for name, count in counts.items() if count > 1}
        if self._repeated:
            self.notes.append(
                f"{len(self._repeated)} image names occur more than once: their labels are"
                " NAME_INDEX.png"
            )
        self._files = 0
        self._part = PartFolder(final)

    def write(self, frame: LabelledFrame) -> None:
        self._part.write(f"{self._name(frame)}.png", encode_png(frame.full))
        self._files += 1

    def close(self, interrupted: bool) -> dict[str, Any]:
        return {"bytes": self._part.close(), "files": self._files}

    def publish(self) -> None:
        self._part.publish()

    def abort(self) -> None:
        self._part.discard()

    def _name(self, frame: LabelledFrame) -> str:
        if frame.stream.frame_names is None:
            return f"{frame.index:06d}"
        name = frame.stream.frame_names[frame.pts]
        if Path(name).name != name:
            raise ValueError(f"frame_names must be names without folders, got {name!r}")
        return f"{name}_{frame.pts:06d}" if name in self._repeated else name


class StatsFile:
    """`stats.jsonl`: a line a frame."""

    def __init__(self, final: Path, palette: Palette) -> None:
        self.notes: list[str] = []
        self._classes = palette.classes
        self._lines = 0
        self._part = PartFile(final)

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

    def close(self, interrupted: bool) -> dict[str, Any]:
        return {"bytes": self._part.close(), "lines": self._lines}

    def publish(self) -> None:
        self._part.publish()

    def abort(self) -> None:
        self._part.discard()


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


def _fit_picture(picture: Planes, size_hw: tuple[int, int], full_chroma: bool) -> Planes:
    """A 4:2:0 picture at `size_hw`, its chroma at full size if wanted."""
    height, width = size_hw
    y, u, v = picture
    if y.shape != size_hw:
        half = ((width + 1) // 2, (height + 1) // 2)
        y = cv2.resize(y, (width, height), interpolation=cv2.INTER_LINEAR)
        u, v = (cv2.resize(plane, half, interpolation=cv2.INTER_LINEAR) for plane in (u, v))
    if full_chroma:
        u, v = (
            cv2.resize(plane, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)[:height, :width]
            for plane in (u, v)
        )
    return y, u, v


def _pixel_aspect(stream: StreamInfo) -> Fraction | None:
    """Width over height of a pixel as displayed, None where square or unknown."""
    stated = stream.details.get("sample_aspect_ratio")
    if not stated:
        return None
    width, height = map(int, str(stated).split(":"))
    if stream.rotation_degrees % 180:
        width, height = height, width
    return Fraction(width, height)
