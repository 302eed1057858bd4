"""A long file in spans that are labelled side by side: where they begin and end, and their frames.

A span begins at a key frame with an empty memory, so frames before it are labelled too, as a warm-up, and
thrown away. Labels are then nearly those of the whole file, not the same: who wants the same does not split.
How nearly depends on how long a network remembers, so each span is labelled a little into the next one, to be
compared. A network without memory needs none of this, and its labels are the same.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

from av.stream import Discard
from av.video.frame import VideoFrame

from pipeline.cluster.errands import (
    Cut,
    FarJob,
    NotAgainError,
    Span,
)
from pipeline.decode import Decoder
from pipeline.media import Acceleration, Tally, choose_stream, open_media
from pipeline.reader import VideoReader
from pipeline.seek import KeyPacket
from pipeline.sources import Source
from pipeline.stages import (
    Job,
    decoder_options,
)

WARM_UP_FRAMES = 96
COMPARED_FRAMES = 16


def cut(job: FarJob, source: Source) -> Cut | None:
    """The spans of a source, None if it is short, or no file that can be begun in the middle.

    Raises SourceNotFoundError or MediaError.
    """
    if source.kind != "video" or job.split_seconds is None:
        return None
    packets = _scan(source.uri)
    if packets is None:
        return None
    stamps, keys, seconds = packets
    count = int(seconds // job.split_seconds)
    key_frames = [bisect_right(stamps, key.pts) - 1 for key in keys]
    begins = [0]
    for number in range(1, count):
        ideal = len(stamps) * number // count
        nearest = min(key_frames, key=lambda frame: abs(frame - ideal))
        if nearest > begins[-1]:
            begins.append(nearest)
    if len(begins) < 2:
        return None
    remembers = job.spec().recurrent
    spans = []
    for number, (begin, end) in enumerate(pairwise([*begins, len(stamps)])):
        first = max(0, begin - WARM_UP_FRAMES * remembers)
        last = min(len(stamps), end + COMPARED_FRAMES * remembers)
        key = keys[bisect_right(key_frames, first) - 1] if first else None
        frames = tuple(stamps[first:last])
        spans.append(Span(number, begin, begin - first, last - end, frames, key))
    return Cut(source.stream_id, tuple(spans))


def _scan(uri: str) -> tuple[list[int], list[KeyPacket], float] | None:
    """Stamps of all frames in order, the key packets, and the length in seconds, without decoding.

    None where packets do not tell which frames will come: stamps that are missing, doubled or cut off.
    """
    stamps: list[int] = []
    keys: list[KeyPacket] = []
    last_dts: int | None = None
    with open_media(uri) as container:
        stream = choose_stream(container, uri, Tally())
        for other in container.streams:
            if other.index != stream.index:
                other.discard = Discard.all
        for packet in container.demux(stream):
            if not packet.size:
                continue
            pts, dts = packet.pts, packet.dts
            back = dts is not None and last_dts is not None and dts <= last_dts
            if pts is None or back or packet.is_discard or packet.is_corrupt:
                return None
            last_dts = dts if dts is not None else last_dts
            stamps.append(pts)
            if packet.is_keyframe and packet.pos is not None:
                keys.append(KeyPacket(pts, pts if dts is None else dts, packet.pos, packet.size, 0))
        stamps.sort()
        if len(set(stamps)) < len(stamps) or len(keys) < 2 or keys[0].pts != stamps[0]:
            return None
        assert stream.time_base is not None
        return stamps, keys, float((stamps[-1] - stamps[0]) * stream.time_base)


class SpanReader(VideoReader):
    """The frames of a span of a video file. Raises NotAgainError if they are not those that were foretold."""

    def __init__(
        self, uri: str, threads: int, stop: Any, span: Span, hwaccel: Acceleration | None = None
    ) -> None:
        super().__init__(uri, threads, stop, hwaccel)
        self._span = span

    def __iter__(self) -> Iterator[tuple[VideoFrame, int]]:
        key, wanted = self._span.key, self._span.stamps
        frames = self._frames(self._demux()) if key is None else self._frames_at(key)
        place = 0
        for frame in frames or ():
            if frame.pts is not None and frame.pts < wanted[0]:
                continue
            if frame.pts != wanted[place] or self.tally.undecodable_packets:
                break
            self.tally.corrupt_frames += frame.is_corrupt
            yield frame, frame.pts
            place += 1
            if place == len(wanted):
                return
        if not self.tally.interrupted:
            raise NotAgainError(
                f"{self._uri}: cannot be split: its frames are not as its packets say"
            )


class SpanDecoder(Decoder):
    """Decodes a span of a source; frames have the indices that they have in the whole."""

    def __init__(self, source: Source, span: Span, **options: Any) -> None:
        super().__init__(source, **options)
        self._span = span

    def _open(self) -> VideoReader:
        return SpanReader(self._source.uri, self._threads, self._stop, self._span, self._hwaccel)

    def _go_on(self, reader: Any) -> tuple[int, tuple[int, int] | None, int]:
        return self._span.begin - self._span.warm, None, 0


def make_span_decoder(
    job: Job, source: Source, span: Span, stop: Any = None, with_network: bool = False
) -> SpanDecoder:
    """As `make_decoder`, for a span: nobody draws on its frames."""
    options = {**decoder_options(job, stop, with_network), "pictures": False, "mark_seconds": None}
    return SpanDecoder(source, span, **options)


def span_source(source: Source, span: Span) -> Source:
    """The source under a name of its own: spans of one source may meet in a segmenter."""
    return replace(source, stream_id=f"{source.stream_id}~{span.number}")
