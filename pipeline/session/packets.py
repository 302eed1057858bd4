"""A camera's recorded packets decoded again: the same packets to a decoder made alike, so the same frames."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import av
from av.packet import Packet, PacketSideData
from av.video.frame import VideoFrame

from pipeline.errors import MediaError
from pipeline.session.checks import FormatError
from pipeline.session.reader import CameraFiles, Segment, Session
from pipeline.session.records import PacketRecord
from pipeline.session.stream import StreamDecoder

_NEW_EXTRADATA = 1  # AV_PKT_DATA_NEW_EXTRADATA
HOLE_SECONDS = 1.0  # without a frame: some are missing
_KEYS_BEFORE = 2  # frames right after a key frame may refer to those before it


@dataclass(frozen=True)
class DecodedFrame:
    """One decoded frame.

    Attributes:
        frame: as the decoder gave it.
        segment: of the packet that completed it.
        ordinal: place among the frames of its stretch, from 0.
        from_start: the stretch began with the connection, so that `ordinal` counts as the recorder did.
        broken: how often decoding had begun anew because something was missing.
        seconds: session time at which its packet came.
        wall: `time.time()` at which the packet that completed it came.
    """

    frame: VideoFrame
    segment: Segment
    ordinal: int
    from_start: bool
    broken: int
    seconds: float
    wall: float

    def gap_after(self, before: DecodedFrame) -> tuple[float, str] | None:
        """What is missing since the frame before: how long that is, in seconds, and why; None if nothing."""
        seconds = self.seconds - before.seconds
        if before.segment.head.connection != self.segment.head.connection:
            return max(0.0, seconds), "the camera was opened anew"
        if seconds > HOLE_SECONDS or self.broken != before.broken:
            return max(0.0, seconds), "frames are missing"
        return None


@dataclass(frozen=True)
class KeyFrame:
    """Where decoding can begin: a segment and the place of a packet in it."""

    segment: Segment
    index: int
    seconds: float


def decode_from(
    session: Session, camera: CameraFiles, start: KeyFrame | None = None
) -> Iterator[DecodedFrame]:
    """All frames from a key frame on, or from the first packet there is.

    A piece that is damaged or missing ends a stretch; decoding goes on with the next key frame.
    """
    stretch = _Stretch(session)
    begin = start.segment.number if start else 0
    for segment in camera.packets:
        if segment.number >= begin and segment.head.stream is not None:
            skip = start.index if start and segment.number == begin else 0
            yield from stretch.segment(segment, skip)
    yield from stretch.finish()


def key_frames(session: Session, camera: CameraFiles, connection: int) -> Iterator[KeyFrame]:
    """The key frames of a connection, and first of all its first packet, newest segments first."""
    own = [s for s in camera.packets if s.head.connection == connection and s.head.stream]
    for segment in reversed(own):
        packets = [r for r in segment.records(session.notes) if isinstance(r, PacketRecord)]
        for index in range(len(packets) - 1, -1, -1):
            if packets[index].key or (index == 0 and segment is own[0]):
                yield KeyFrame(segment, index, session.seconds(segment, packets[index].arrived))


def key_frame_before(
    session: Session, camera: CameraFiles, connection: int, seconds: float
) -> KeyFrame | None:
    """The key frame from which a frame that came at `seconds` is decoded as it was; None if there is none."""
    found: KeyFrame | None = None
    count = 0
    for key in key_frames(session, camera, connection):
        if key.seconds <= seconds + 1e-6:
            found, count = key, count + 1
            if count == _KEYS_BEFORE:
                break
    return found


class _Stretch:
    """Packets that are decoded in one go, with the same decoder."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._decoder: StreamDecoder | None = None
        self._at: tuple[int, int] = (-1, -1)
        self._count = self._broken = 0
        self._needs_key = False
        self._from_start = True
        self._last: Segment | None = None
        self._arrived: dict[int, float] = {}
        self._seconds = self._wall = 0.0

    def segment(self, segment: Segment, skip: int) -> Iterator[DecodedFrame]:
        head = segment.head
        if (head.connection, head.part) != self._at:
            yield from self.finish()
            self._at = (head.connection, head.part)
            self._broken += not head.opens
            # Of a connection whose first segments are gone, the count of frames is not known.
            self._begin(segment, from_start=head.opens and skip == 0)
        elif self._last is not None and self._misses_segment(segment):
            yield from self._break()
        self._last = segment
        try:
            with ExitStack() as stack:
                media = stack.enter_context(segment.media())
                place = -1
                for record in segment.records(self._session.notes):
                    if record is None:
                        yield from self._break()
                        continue
                    if not isinstance(record, PacketRecord):
                        continue
                    place += 1
                    if place < skip:
                        continue
                    try:
                        data = media.read(record.place) if self._wanted(record) else None
                    except FormatError as error:
                        self._session.notes.add(f"{segment.name}: a packet is left out: {error}")
                        yield from self._break()
                        continue
                    if data is not None:
                        yield from self._feed(segment, record, data)
        except OSError as error:
            self._session.notes.add(f"{segment.name}: has no packets: {error.strerror or error}")
            yield from self._break()

    def finish(self) -> Iterator[DecodedFrame]:
        """The frames that the decoder still holds."""
        decoder, self._decoder = self._decoder, None
        if decoder is not None and self._last is not None:
            yield from self._frames(self._last, decoder, None)

    def _misses_segment(self, segment: Segment) -> bool:
        """Whether something is missing between the last segment and this one of the same connection."""
        assert self._last is not None
        return segment.number != self._last.number + 1 or not self._last.sealed

    def _break(self) -> Iterator[DecodedFrame]:
        """Something is missing: what was decoded goes out, and a key frame begins anew."""
        yield from self.finish()
        self._needs_key = True

    def _begin(self, segment: Segment, from_start: bool) -> None:
        assert segment.head.stream is not None
        self._count, self._from_start, self._needs_key = 0, from_start, False
        self._arrived.clear()
        try:
            self._decoder = segment.head.stream.open_decoder()
        except MediaError as error:
            self._session.notes.add(f"{segment.name}: {error}")
            self._decoder = None

    def _wanted(self, record: PacketRecord) -> bool:
        if not record.decoded:
            return False
        return record.key or not self._needs_key

    def _feed(self, segment: Segment, record: PacketRecord, data: bytes) -> Iterator[DecodedFrame]:
        if self._needs_key:
            self._broken += 1
            self._at = (segment.head.connection, segment.head.part)
            self._begin(segment, from_start=False)
        if self._decoder is None:
            return
        self._seconds, self._wall = self._session.seconds(segment, record.arrived), record.wall
        if record.pts is not None:
            self._arrived[record.pts] = self._seconds
            if len(self._arrived) > 256:
                del self._arrived[next(iter(self._arrived))]
        yield from self._frames(segment, self._decoder, _packet(segment, record, data))

    def _frames(
        self, segment: Segment, decoder: StreamDecoder, packet: Packet | None
    ) -> Iterator[DecodedFrame]:
        try:
            frames = decoder.decode(packet)
        except (av.FFmpegError, ValueError):  # as live: a packet that gives nothing
            return
        for frame in frames:
            arrived = self._seconds
            if frame.pts is not None:
                arrived = self._arrived.pop(frame.pts, arrived)
            yield DecodedFrame(
                frame, segment, self._count, self._from_start, self._broken, arrived, self._wall
            )
            self._count += 1


def _packet(segment: Segment, record: PacketRecord, data: bytes) -> Packet:
    assert segment.head.stream is not None
    # FFmpeg's own memory, with zeros behind the data: decoders read past the end, and of `Packet(data)`,
    # which points into the bytes object (PyAV 17), they would read whatever lies there.
    packet = Packet(len(data))
    packet.update(data)
    packet.pts, packet.dts = record.pts, record.dts
    packet.time_base = segment.head.stream.time_base
    if record.duration:
        packet.duration = record.duration
    packet.is_keyframe = record.key
    if record.corrupt:
        packet.is_corrupt = True
    if record.extradata:
        side = PacketSideData(_NEW_EXTRADATA, len(record.extradata))  # type: ignore[call-arg]
        side.update(record.extradata)
        packet.set_sidedata(side)
    return packet
