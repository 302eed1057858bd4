"""What crosses the view's WebSocket. `page/connection.js` reads and writes the same.

The server sends text (JSON: `hello`, `status`, `pong`) and frames (binary, `pack_frame`). A viewer sends
text only: `Watch` and `Ping`.
"""

from __future__ import annotations

import json
import struct
import time
import zlib
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from models.spec import Spec
from pipeline.live.hub import CameraStatus, Shown

PROTOCOL = 1
LARGEST_MESSAGE_BYTES = 16_384
MOST_WATCHED = 64
VideoKind = Literal["h264", "jpeg"]
_KIND_IDS = {"h264": 1, "jpeg": 2}
# protocol, kind, keyframe, frame index, pts in ms, captured and labelled in s, label rows and columns, bytes
# of the camera's name, the codec's name, the header, the picture and the labels; then those bytes.
_FRAME = struct.Struct("<BB?xI3d4H3I")


class Watch(BaseModel):
    """The cameras a viewer wants from now on, all of them, and how each one's video shall come."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    type: Literal["watch"]
    cameras: Annotated[dict[str, VideoKind], Field(max_length=MOST_WATCHED)]


class Ping(BaseModel):
    """A viewer's clock, sent back to it with the server's: that is how it knows the latency."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    type: Literal["ping"]
    sent_ms: Annotated[float, Field(allow_inf_nan=False)]


_MESSAGE: TypeAdapter[Watch | Ping] = TypeAdapter(
    Annotated[Watch | Ping, Field(discriminator="type")]
)


def read_message(text: str) -> Watch | Ping:
    """A viewer's message. Raises ValueError, its text one line, for anything else."""
    try:
        return _MESSAGE.validate_json(text)
    except ValidationError as error:
        raise ValueError(first_line(error)) from error


def first_line(error: ValidationError) -> str:
    """What is wrong first, without the value that was given: it may be a secret."""
    found = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in found["loc"])
    # JSON's own errors name a place in the text; what a key was called is the sender's to know.
    return f"{place[:80]}: {found['msg'][:200]}" if place else found["msg"][:200]


@dataclass(frozen=True)
class Picture:
    """One encoded frame of a camera, as a viewer that asked for `kind` gets it.

    Attributes:
        kind: "h264" (a fragment) or "jpeg".
        keyframe: a viewer can start here; true for every JPEG.
        codec: of H.264, as browsers name it; else empty.
        init: header before the first fragment, with keyframes of H.264; else empty.
        data: the fragment or the JPEG file.
    """

    kind: VideoKind
    keyframe: bool
    codec: str
    init: bytes
    data: bytes


def pack_labels(labels: np.ndarray) -> bytes:
    """A label plane, uint8 [h, w], as zlib data of its rows, each XORed with the row above.

    Streets stand upright: most of a row is as the one above, and what remains is runs of zeros, for
    which deflate's run-length strategy is made. 5 KB and 0.8 ms at 640x360; plain deflate of the
    same level 10 KB and 0.75 ms, and no strategy needs a library in the browser.
    """
    rows = labels.copy()
    rows[1:] ^= labels[:-1]
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    return packer.compress(rows.data) + packer.flush()


def unpack_labels(data: bytes, size_hw: tuple[int, int]) -> np.ndarray:
    """The inverse of `pack_labels`; raises ValueError if the size is another."""
    rows = np.frombuffer(zlib.decompress(data), np.uint8).reshape(size_hw)
    return np.bitwise_xor.accumulate(rows, axis=0)


def pack_frame(shown: Shown, pts_ms: int, picture: Picture, labels: bytes) -> bytes:
    """A frame as one binary message: the picture and the labels that belong to it."""
    name, codec = shown.camera.encode(errors="replace"), picture.codec.encode()
    rows, columns = shown.labels.shape
    header = _FRAME.pack(
        PROTOCOL, _KIND_IDS[picture.kind], picture.keyframe, shown.frame_index & 0xFFFFFFFF,
        pts_ms, shown.captured_at, shown.labelled_at, rows, columns,
        len(name), len(codec), len(picture.init), len(picture.data), len(labels),
    )  # fmt: skip
    return b"".join((header, name, codec, picture.init, picture.data, labels))


@dataclass(frozen=True)
class UnpackedFrame:
    """What `pack_frame` packed, as a viewer that is no browser reads it."""

    camera: str
    frame_index: int
    pts_ms: float
    captured_at: float
    labelled_at: float
    picture: Picture
    labels: np.ndarray


def unpack_frame(message: bytes) -> UnpackedFrame:
    """The inverse of `pack_frame`. Raises ValueError for another protocol or a cut message."""
    if len(message) < _FRAME.size or message[0] != PROTOCOL:
        raise ValueError(f"expected a frame of protocol {PROTOCOL}, got {message[:1]!r}")
    _, kind, keyframe, index, pts, captured, labelled, rows, columns, *sizes = _FRAME.unpack_from(
        message
    )
    parts, start = [], _FRAME.size
    for size in sizes:
        parts.append(message[start : start + size])
        start += size
    if start != len(message):
        raise ValueError(f"a frame must have {start} bytes, got {len(message)}")
    name, codec, init, data, labels = parts
    names: dict[int, VideoKind] = {1: "h264", 2: "jpeg"}
    picture = Picture(names[kind], keyframe, codec.decode(), init, data)
    plane = unpack_labels(labels, (rows, columns))
    return UnpackedFrame(name.decode(), index, pts, captured, labelled, picture, plane)


def hello_text(spec: Spec, login: bool, replay: bool = False) -> str:
    """The first message: what the class ids mean, whether one logs in (and can log out), and whether
    what is seen is a session that is played."""
    classes = [
        {"name": name, "rgb": list(rgb)}
        for name, rgb in zip(spec.classes, spec.palette_rgb, strict=True)
    ]
    return json.dumps(
        {
            "type": "hello",
            "protocol": PROTOCOL,
            "model": spec.name,
            "classes": classes,
            "login": login,
            "replay": replay,
        }
    )


def pong_text(ping: Ping) -> str:
    """The answer to a `Ping`."""
    return json.dumps({"type": "pong", "sent_ms": ping.sent_ms, "server_s": time.time()})


def status_text(
    cameras: list[CameraStatus], viewers: int, playback: dict[str, Any] | None = None
) -> str:
    """The cameras as they are now; of a replay also where it is."""
    shown = [camera_json(camera) for camera in cameras]
    return json.dumps(
        {"type": "status", "viewers": viewers, "cameras": shown, "playback": playback}
    )


def camera_json(camera: CameraStatus) -> dict[str, Any]:
    """A camera for JSON; numbers rounded to what a person reads."""
    shares = None if camera.shares is None else [round(float(share), 4) for share in camera.shares]
    history = [
        {"at": round(change.at, 3), "state": change.state, "reason": change.reason}
        for change in camera.history
    ]
    return {
        "name": camera.name,
        "url": camera.url,
        "state": camera.state,
        "history": history,
        "size_hw": None if camera.size_hw is None else list(camera.size_hw),
        "fps": round(camera.fps, 2),
        "latency_ms": _rounded(camera.latency_ms),
        "latency_p95_ms": _rounded(camera.latency_p95_ms),
        "frames": camera.frames,
        "dropped": dict(camera.dropped),
        "reconnects": camera.reconnects,
        "resets": camera.resets,
        "shares": shares,
    }


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds, 1)
