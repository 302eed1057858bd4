"""Audio of a source, packet by packet as it is, for a file that shows the source's pictures."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.bitstream import BitStreamFilterContext
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard

from pipeline.boxes import TrackHead, find

_RESTART_SECONDS = 1  # time stamps further back than this: the clock was started anew
_PACKETS_BEFORE_THE_FIRST = 5000  # of other streams, until a stream is taken to be empty


@dataclass(frozen=True)
class AudioSample:
    """A packet as it goes into a file.

    Attributes:
        track: place of its stream among `AudioCopy.heads`.
        time, ticks: when it starts and how long it lasts, in the track's scale.
        data: its bytes.
    """

    track: int
    time: int
    ticks: int
    data: bytes


class AudioCopy:
    """A local file's audio, without decoding it, as samples of an mp4.

    Nothing here fails a run: audio that cannot be read or that mp4 cannot hold is left out, and
    `notes` says so.

    Args:
        source: the file's path. Anything else (a URL, a camera, a folder) has no audio to copy.

    Attributes:
        notes: what was left out, a line each.
        heads: what each track is.
    """

    def __init__(self, source: str) -> None:
        self.notes: list[str] = []
        self.heads: list[TrackHead] = []
        self._input: InputContainer | None = None
        self._streams: list[AudioStream] = []
        self._packets: Iterator[Packet] = iter(())
        self._next: Packet | None = None
        self._tracks: dict[int, int] = {}  # of a stream's index
        self._filters: dict[int, BitStreamFilterContext] = {}
        self._last_dts: dict[int, int] = {}
        self._restart_shift: dict[int, Fraction] = {}
        if not Path(source).is_file():
            return
        try:
            self._describe(source)
            self._input = _open(source)
            self._streams = _choose(self._input, self._tracks)
            if self._streams:
                self._packets = self._input.demux(self._streams)
        except (av.FFmpegError, OSError) as error:
            self._give_up(error)

    @property
    def scales(self) -> list[int]:
        """Ticks a second of each track."""
        return [head.scale for head in self.heads]

    def until(self, seconds: Fraction | None, shift: Fraction) -> Iterator[AudioSample]:
        """The samples that start before a time; all that are left if it is None.

        Args:
            seconds: time in the source.
            shift: seconds to add to every time stamp.
        """
        while (packet := self._peek()) is not None:
            stated = packet.dts if packet.dts is not None else packet.pts
            assert stated is not None
            if seconds is not None and stated * packet.time_base >= seconds:
                return
            self._next = None
            yield from self._placed(packet, stated, shift)

    def close(self) -> None:
        """Close the source."""
        if self._input is not None:
            self._input.close()
            self._input = None
        self._packets, self._next = iter(()), None

    def _describe(self, source: str) -> None:
        """Find what each track is, by letting FFmpeg write its first packet to an mp4."""
        with _open(source) as container:
            streams = [s for s in container.streams if isinstance(s, AudioStream)]
            missing = {stream.index: stream for stream in _choose(container, streams)}
            heads: dict[int, TrackHead] = {}
            for count, packet in enumerate(container.demux(list(missing.values()))):
                if not missing or count == _PACKETS_BEFORE_THE_FIRST:
                    break
                if packet.size and (stream := missing.pop(packet.stream_index, None)):
                    try:
                        heads[stream.index] = self._trial(stream, packet)
                    except (av.FFmpegError, ValueError, KeyError):
                        name = stream.codec_context.name
                        self._note(f"{name} audio is not copied: mp4 cannot hold it")
        for index in sorted(heads):
            self._tracks[index] = len(self.heads)
            self.heads.append(heads[index])

    def _trial(self, stream: AudioStream, packet: Packet) -> TrackHead:
        """What an mp4 with this packet says of its track. Raises ValueError if it changes the packet."""
        file, data = io.BytesIO(), bytes(packet)
        with av.open(file, "w", format="mp4") as trial:
            output = trial.add_stream_from_template(stream)
            if language := stream.metadata.get("language"):
                output.metadata["language"] = language
            first = Packet(len(data))
            first.update(data)
            first.pts = first.dts = 0
            first.duration, first.time_base = packet.duration or 0, packet.time_base
            first.stream = output
            trial.mux_one(first)
        tables = find(file.getvalue(), b"moov", b"trak", b"mdia", b"minf", b"stbl")
        size = int.from_bytes(find(tables, b"stsz")[4:8], "big")
        if size != packet.size:
            if stream.codec_context.name != "aac":
                raise ValueError(f"expected a packet of {packet.size} bytes, got {size}")
            # With ADTS headers, as in MPEG-TS: mp4 has them once for all packets.
            self._filters[stream.index] = BitStreamFilterContext("aac_adtstoasc", stream)
        return TrackHead.of_movie(file.getvalue())

    def _peek(self) -> Packet | None:
        while self._next is None:
            try:
                packet = next(self._packets, None)
            except (av.FFmpegError, OSError) as error:
                self._give_up(error)
                return None
            if packet is None:
                return None
            # The last packet of each stream is empty: it flushes decoders.
            if packet.size and not (packet.dts is None and packet.pts is None):
                self._next = packet
        return self._next

    def _placed(self, packet: Packet, stated: int, shift: Fraction) -> Iterator[AudioSample]:
        """The packet as a sample; nothing if its time stamp is not a later one."""
        index, base = packet.stream_index, packet.time_base
        scale = self.heads[self._tracks[index]].scale
        shift += self._restart_shift.get(index, Fraction(0))
        time, last = round((stated * base + shift) * scale), self._last_dts.get(index)
        if last is not None and time <= last:
            back = Fraction(last - time, scale)
            if back < _RESTART_SECONDS:
                self._note("some audio packets are left out: their time stamps do not increase")
                return
            ahead = back + (packet.duration or 1) * base
            self._restart_shift[index] = self._restart_shift.get(index, Fraction(0)) + ahead
            time += round(ahead * scale)
        self._last_dts[index] = time
        ticks = max(1, round((packet.duration or 1) * base * scale))
        for data in self._filtered(packet):
            yield AudioSample(self._tracks[index], time, ticks, data)

    def _filtered(self, packet: Packet) -> list[bytes]:
        if packet.stream_index not in self._filters:
            return [bytes(packet)]
        try:
            return [bytes(made) for made in self._filters[packet.stream_index].filter(packet)]
        except av.FFmpegError:
            self._note("some audio packets are left out: they are damaged")
            return []

    def _give_up(self, error: Exception) -> None:
        self._note(f"audio is not copied to its end: {getattr(error, 'strerror', None) or error}")
        self.close()

    def _note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)


def _open(source: str) -> InputContainer:
    # The prefix keeps a colon in the name from being taken for a protocol.
    return av.open(f"file:{source}", metadata_errors="ignore")


def _choose(container: InputContainer, wanted: Iterable[AudioStream | int]) -> list[AudioStream]:
    """The wanted streams (or those of the wanted indices) that can be read."""
    indices = {stream if isinstance(stream, int) else stream.index for stream in wanted}
    chosen = []
    for stream in container.streams:
        if stream.index in indices and isinstance(stream, AudioStream) and stream.codec_context:
            chosen.append(stream)
        else:
            stream.discard = Discard.all  # spares the demuxer most of the reading
    return chosen
