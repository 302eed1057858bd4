"""Lines of a session's logs as they are read: every value checked, because a file may say anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.session.checks import (
    MOST_EXTRADATA_BYTES,
    MOST_TICKS,
    FormatError,
    bounded_int,
    expect,
    flag,
    optional_int,
    seconds,
    text,
)
from pipeline.session.format import FORMAT_VERSION, TRACKS, Configuration
from pipeline.session.stream import StreamParameters

MOST_PAYLOAD_BYTES = 64 << 20
MOST_STATE_VALUES = 16 << 20
_MOST_NUMBER = 2**31
MOST_REASON = 4096
MOST_NAME = 256


@dataclass(frozen=True)
class Place:
    """Where bytes lie in a segment's media file, and their CRC-32."""

    at: int
    bytes: int
    crc: int

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Place:
        return cls(
            bounded_int(raw.get("at"), "at", 0, 2**50),
            bounded_int(raw.get("bytes"), "bytes", 0, MOST_PAYLOAD_BYTES),
            bounded_int(raw.get("crc"), "crc", 0, 2**32 - 1),
        )


@dataclass(frozen=True)
class Head:
    """The first line of a segment's log.

    Attributes:
        track: "packets" or "labels".
        segment: its number.
        camera: name of the camera.
        began: monotonic time of its first record, seconds.
        run: id, wall and monotonic time of the recorder's start.
        configuration: what labelled the frames; None if nothing did.
        connection, part, stream: of packets: of which connection, how often packets were lost before
            in it, and its stream; None before the camera was opened.
        opens: it is the connection's first.
    """

    track: str
    segment: int
    camera: str
    began: float
    run: tuple[str, float, float]
    configuration: Configuration | None
    connection: int = 0
    part: int = 0
    stream: StreamParameters | None = None
    opens: bool = False

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Head:
        """Raises FormatError."""
        expect(raw.get("kind") == "head", "the first line must be the head")
        expect(raw.get("version") == FORMAT_VERSION, "the version is not known")
        expect(raw.get("track") in TRACKS, "track is unknown")
        run, given, stream = raw.get("run"), raw.get("configuration"), raw.get("stream")
        expect(isinstance(run, dict), "run must be an object")
        assert isinstance(run, dict)
        return cls(
            track=str(raw["track"]),
            segment=bounded_int(raw.get("segment"), "segment", 1, 10**9),
            camera=text(raw, "camera", MOST_NAME),
            began=seconds(raw.get("began"), "began"),
            run=(text(run, "id", 64), seconds(run.get("wall"), "wall"),
                 seconds(run.get("monotonic"), "monotonic")),
            configuration=None if given is None else Configuration.from_json(given),
            connection=bounded_int(raw.get("connection", 0), "connection", 0, _MOST_NUMBER),
            part=bounded_int(raw.get("part", 0), "part", 0, _MOST_NUMBER),
            stream=None if stream is None else StreamParameters.from_json(stream),
            opens=flag(raw.get("opens", False), "opens"),
        )  # fmt: skip


@dataclass(frozen=True)
class PacketRecord:
    """One packet. `arrived` is monotonic, `wall` is `time.time()`, stamps are ticks of the stream."""

    place: Place
    pts: int | None
    dts: int | None
    duration: int
    key: bool
    decoded: bool
    corrupt: bool
    arrived: float
    wall: float
    extradata: bytes = b""

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> PacketRecord:
        """Raises FormatError."""
        extradata = b""
        if "extradata" in raw:
            try:
                extradata = bytes.fromhex(text(raw, "extradata", 2 * MOST_EXTRADATA_BYTES))
            except ValueError as error:
                raise FormatError("extradata must be hexadecimal") from error
        return cls(
            place=Place.from_json(raw),
            pts=_ticks(raw, "pts"),
            dts=_ticks(raw, "dts"),
            duration=bounded_int(raw.get("duration"), "duration", 0, MOST_TICKS),
            key=flag(raw.get("key"), "key"),
            decoded=flag(raw.get("decoded"), "decoded"),
            corrupt=flag(raw.get("corrupt"), "corrupt"),
            arrived=seconds(raw.get("arrived"), "arrived"),
            wall=seconds(raw.get("wall"), "wall"),
            extradata=extradata,
        )


@dataclass(frozen=True)
class LabelRecord:
    """One label map that was shown; fields as of `ShownLabels`, `captured` is monotonic.

    After a loss the memory has seen frames whose labels are not in the recording.
    """

    place: Place
    connection: int
    decoded_index: int | None
    frame_index: int
    pts: int | None
    captured: float
    wall: float
    latency_ms: float
    reset: bool
    after_loss: bool = False

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> LabelRecord:
        """Raises FormatError."""
        return cls(
            place=Place.from_json(raw),
            connection=bounded_int(raw.get("connection"), "connection", 0, _MOST_NUMBER),
            decoded_index=optional_int(raw.get("decoded_index"), "decoded_index", 0, 2**50),
            frame_index=bounded_int(raw.get("frame_index"), "frame_index", 0, 2**50),
            pts=_ticks(raw, "pts"),
            captured=seconds(raw.get("captured"), "captured"),
            wall=seconds(raw.get("wall"), "wall"),
            latency_ms=seconds(raw.get("latency_ms"), "latency_ms"),
            reset=flag(raw.get("reset"), "reset"),
            after_loss=flag(raw.get("after_loss", False), "after_loss"),
        )


@dataclass(frozen=True)
class CheckpointRecord:
    """The state after the label map before it: float32 [C, h, w], and the frames it has seen."""

    place: Place
    shape: tuple[int, int, int]
    steps: int

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> CheckpointRecord:
        """Raises FormatError."""
        shape = raw.get("shape")
        expect(isinstance(shape, list) and len(shape) == 3, "shape must be three numbers")
        assert isinstance(shape, list)
        channels, height, width = (bounded_int(s, "shape", 1, 65536) for s in shape)
        expect(channels * height * width <= MOST_STATE_VALUES, "the state is too large")
        steps = bounded_int(raw.get("steps"), "steps", 0, 2**50)
        return cls(Place.from_json(raw), (channels, height, width), steps)


@dataclass(frozen=True)
class EventRecord:
    """What happened beside packets and labels.

    Attributes:
        kind: "connected", "state", "gap" or "dropped".
        mono, wall: when.
        text: the state, else the reason.
        reason: why.
        seconds: of a gap, None if unknown.
        frames: dropped.
    """

    kind: str
    mono: float
    wall: float
    text: str
    reason: str
    seconds: float | None = None
    frames: int = 0

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> EventRecord:
        """Raises FormatError."""
        kind, length = str(raw["kind"]), raw.get("seconds")
        reason = text(raw, "reason", MOST_REASON)
        return cls(
            kind=kind,
            mono=seconds(raw.get("mono"), "mono"),
            wall=seconds(raw.get("wall"), "wall"),
            text=text(raw, "state", 64) if kind == "state" else reason,
            reason=reason,
            seconds=None if length is None else seconds(length, "seconds"),
            frames=bounded_int(raw.get("frames", 0), "frames", 0, 2**50),
        )


Record = Head | PacketRecord | LabelRecord | CheckpointRecord | EventRecord

_KINDS: dict[str, Callable[[dict[str, Any]], Record]] = {
    "head": Head.from_json,
    "packet": PacketRecord.from_json,
    "labels": LabelRecord.from_json,
    "checkpoint": CheckpointRecord.from_json,
    "connected": EventRecord.from_json,
    "state": EventRecord.from_json,
    "gap": EventRecord.from_json,
    "dropped": EventRecord.from_json,
}


def parse_record(raw: dict[str, Any]) -> Record | None:
    """A line's record, None for a kind that a later version may have added. Raises FormatError."""
    kind = raw.get("kind")
    expect(isinstance(kind, str), "kind must be text")
    make = _KINDS.get(str(kind))
    return make(raw) if make is not None else None


def _ticks(raw: dict[str, Any], name: str) -> int | None:
    return optional_int(raw.get(name), name, -MOST_TICKS, MOST_TICKS)
