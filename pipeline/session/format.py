"""Names, settings and lines of a session's files, as `pipeline/SESSION.md` describes them."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pipeline.errors import ConfigError
from pipeline.session.checks import FormatError, expect, text
from pipeline.sources import PACKETS, safe_name

FORMAT_VERSION = 1
LABELS = "labels"
TRACKS = (PACKETS, LABELS)
SEGMENT_NAME = re.compile(r"[0-9]{6,9}")
MOST_LINE_BYTES = 1 << 20
MOST_JSON_BYTES = 1 << 20


@dataclass(frozen=True)
class Configuration:
    """What labelled the frames of a session. Two that are equal give equal labels.

    Attributes:
        model: name of the model, or its folder.
        weights_sha256: of its weights.
        engine: "cpu", "cuda", "counting", ...
        runtime: what runs it, with its precision: "OpenVINO bf16".
        form_sha256: of the form the engine reads instead of the weights, None if it reads those.
        size_hw: input size of the network; None if by the source's aspect.
        longest_gap_seconds: a gap up to this long kept the memory.
        classes, palette_rgb: of the labels.
        versions: of what the result depends on; they may differ in a replay.
    """

    model: str
    weights_sha256: str
    engine: str
    runtime: str
    form_sha256: str | None = None
    size_hw: tuple[int, int] | None = None
    longest_gap_seconds: float = 1.0
    classes: tuple[str, ...] = ()
    palette_rgb: tuple[tuple[int, int, int], ...] = ()
    versions: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def precision(self) -> str:
        """What the network multiplied in."""
        return self.runtime.split()[-1] if self.runtime else ""

    @classmethod
    def from_json(cls, raw: Any) -> Configuration:
        """Raises FormatError for anything but what `asdict` and JSON make of one."""
        expect(isinstance(raw, dict), "configuration must be an object")
        try:
            size = raw.get("size_hw")
            return cls(
                model=text(raw, "model", 4096),
                weights_sha256=text(raw, "weights_sha256", 64),
                engine=text(raw, "engine", 64),
                runtime=text(raw, "runtime", 64),
                form_sha256=None
                if raw.get("form_sha256") is None
                else text(raw, "form_sha256", 64),
                size_hw=None if size is None else _size(size),
                longest_gap_seconds=float(raw["longest_gap_seconds"]),
                classes=tuple(str(name)[:256] for name in raw["classes"][:255]),
                palette_rgb=tuple(_colour(colour) for colour in raw["palette_rgb"][:255]),
                versions={str(k)[:64]: str(v)[:64] for k, v in list(raw["versions"].items())[:64]},
            )
        except FormatError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise FormatError(f"configuration is damaged: {type(error).__name__}") from error


@dataclass(frozen=True)
class Limits:
    """How a session is written and how much of it is kept.

    Attributes:
        segment_seconds: a segment is closed at the first key frame after so long.
        checkpoint_seconds: between states that a replay can start from.
        max_age_seconds: older segments are removed; None for never.
        max_bytes: of the whole session; the oldest segments are removed. None for no limit.
        queue_bytes: what may wait for the disk, of each camera, before recording skips packets.
    """

    segment_seconds: float = 10.0
    checkpoint_seconds: float = 10.0
    max_age_seconds: float | None = None
    max_bytes: int | None = None
    queue_bytes: int = 64 * 2**20

    def __post_init__(self) -> None:
        for name in ("segment_seconds", "checkpoint_seconds", "max_age_seconds", "max_bytes",
                     "queue_bytes"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be above 0, got {value}")


@dataclass(frozen=True)
class ShownLabels:
    """One label map as it was shown.

    Attributes:
        connection: as `CameraRecorder.connected` gave it.
        frame_index: as shown: of the camera since it was added.
        pts: the frame's own as decoded, ticks: by it a replay finds the frame. None if it has none.
        decoded_index: place among all frames that the connection's decoder gave, from 0; None if
            nobody counts them. Needed only where frames have no `pts`, or several have one.
        captured_at: `time.time()` of its arrival.
        labels: uint8 [h, w], at the model's size.
        reset: whether the memory was reset just before it, or it is the first of its stream.
        captured_monotonic: `time.monotonic()` of its arrival; None for the recording's own clock.
        latency_ms: from arrival to labels.
    """

    connection: int
    frame_index: int
    pts: int | None
    captured_at: float
    labels: np.ndarray
    reset: bool
    captured_monotonic: float | None = None
    decoded_index: int | None = None
    latency_ms: float = 0.0

    def __post_init__(self) -> None:
        if self.labels.dtype != np.uint8 or self.labels.ndim != 2 or not self.labels.size:
            raise ValueError(
                f"labels must be uint8 [h, w], got {self.labels.dtype} {list(self.labels.shape)}"
            )


def camera_folder(name: str) -> str:
    """The folder of a camera: its name where that is safe and not taken by case, else with a sum."""
    safe = safe_name(name)
    return safe if safe == name else f"{safe[:80]}-{zlib.crc32(name.encode()):08x}"


def segment_name(number: int) -> str:
    """File name of a segment without its suffix."""
    return f"{number:06d}"


def encode_line(record: dict[str, Any]) -> bytes:
    """A line of a log: CRC-32 of the JSON in eight hexadecimal digits, a space, the JSON."""
    plain = json.dumps(record, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(plain), plain)


def decode_line(line: bytes) -> dict[str, Any]:
    """The record of a whole line. Raises FormatError."""
    expect(line.endswith(b"\n") and len(line) > 10 and line[8:9] == b" ", "a line is cut off")
    plain = line[9:-1]
    expect(b"%08x" % zlib.crc32(plain) == line[:8], "a line's checksum is wrong")
    return parse_object(plain)


def parse_object(plain: bytes) -> dict[str, Any]:
    """A JSON object. Raises FormatError, whatever the bytes are."""
    try:
        found = json.loads(plain)
    except (ValueError, RecursionError) as error:
        raise FormatError("not JSON") from error
    expect(isinstance(found, dict), "not a JSON object")
    return dict(found)


def plain_configuration(configuration: Configuration | None) -> dict[str, Any] | None:
    """For JSON."""
    return None if configuration is None else asdict(configuration)


def digest(data: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _size(raw: Any) -> tuple[int, int]:
    expect(
        isinstance(raw, (list, tuple))
        and len(raw) == 2
        and all(type(side) is int and 0 < side <= 8192 for side in raw),
        "size_hw must be two sides in pixels",
    )
    return raw[0], raw[1]


def _colour(raw: Any) -> tuple[int, int, int]:
    red, green, blue = (int(value) & 255 for value in raw)
    return red, green, blue
