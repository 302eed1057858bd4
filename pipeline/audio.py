"""Audio of a source, packet by packet as it is, for a file that shows the source's pictures."""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Discard, Stream

_RESTART_SECONDS = 1  # time stamps further back than this: the clock was started anew


class AudioCopy:
    """Copies a local file's audio streams into an mp4 without decoding them.

    Nothing here fails a run: audio that cannot be read or that mp4 cannot hold is left out, and
    `notes` says so.

    Args:
        source: the file's path. Anything else (a URL, a camera, a folder) has no audio to copy.

    Attributes:
        notes: what was left out, a line each.
    """

    def __init__(self, source: str) -> None:
        self.notes: list[str] = []
        self._input: InputContainer | None = None
        self._streams: list[AudioStream] = []
        self._packets: Iterator[Packet] = iter(())
        self._next: Packet | None = None
        self._outputs: dict[int, AudioStream] = {}
        self._last_dts: dict[int, int] = {}
        self._restart_shift: dict[int, Fraction] = {}
        if not Path(source).is_file():
            return
        try:
            # The prefix keeps a colon in the name from being taken for a protocol.
            self._input = av.open(f"file:{source}", metadata_errors="ignore")
            self._streams = self._pick(self._input)
            if self._streams:
                self._packets = self._input.demux(self._streams)
        except (av.FFmpegError, OSError) as error:
            self._give_up(error)

    @property
    def rates_hz(self) -> list[int]:
        """Sample rates of the streams that are copied."""
        return [stream.rate for stream in self._streams]

    def attach(self, container: OutputContainer) -> None:
        """Add the streams to an output file that has no header yet, after those it has."""
        for stream in self._streams:
            output = container.add_stream_from_template(stream)
            if language := stream.metadata.get("language"):
                output.metadata["language"] = language
            self._outputs[stream.index] = output

    def until(self, seconds: Fraction | None, shift: Fraction) -> Iterator[Packet]:
        """The packets that start before a time, ready to be muxed; all that are left if it is None.

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
            if self._place(packet, stated, shift):
                yield packet

    def close(self) -> None:
        """Close the source."""
        if self._input is not None:
            self._input.close()
            self._input = None
        self._packets, self._next = iter(()), None

    def _pick(self, source: InputContainer) -> list[AudioStream]:
        picked = []
        for stream in source.streams:
            if isinstance(stream, AudioStream) and stream.codec_context is not None:
                if _fits_mp4(stream):
                    picked.append(stream)
                    continue
                self._note(f"{stream.codec_context.name} audio is not copied: mp4 cannot hold it")
            stream.discard = Discard.all  # spares the demuxer most of the reading
        return picked

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

    def _place(self, packet: Packet, stated: int, shift: Fraction) -> bool:
        """Point the packet at its output stream; False if its time stamp is not a later one."""
        index = packet.stream_index
        output = self._outputs[index]
        shift += self._restart_shift.get(index, Fraction(0))
        scale = packet.time_base / (output.time_base or packet.time_base)
        offset = round(shift / packet.time_base)
        dts, last = round((stated + offset) * scale), self._last_dts.get(index)
        if last is not None and dts <= last:
            back = Fraction(last - dts) * (output.time_base or packet.time_base)
            if back < _RESTART_SECONDS:
                self._note("some audio packets are left out: their time stamps do not increase")
                return False
            ahead = back + (packet.duration or 1) * packet.time_base
            self._restart_shift[index] = self._restart_shift.get(index, Fraction(0)) + ahead
            offset += round(ahead / packet.time_base)
            dts = round((stated + offset) * scale)
        self._last_dts[index] = dts
        packet.pts = (stated if packet.pts is None else packet.pts) + offset
        packet.dts = stated + offset
        packet.stream = output
        return True

    def _give_up(self, error: Exception) -> None:
        self._note(f"audio is not copied to its end: {getattr(error, 'strerror', None) or error}")
        self.close()

    def _note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)


def _fits_mp4(stream: Stream) -> bool:
    """Whether a stream can be written to mp4, found out by writing a header."""
    try:
        with av.open(io.BytesIO(), "w", format="mp4") as trial:
            trial.add_stream_from_template(stream)
            trial.start_encoding()
    except (av.FFmpegError, ValueError):
        return False
    return True
