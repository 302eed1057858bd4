"""Frames out of files: opening, choosing the video stream, and decoding on past what is damaged."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import av
from av.packet import Packet
from av.stream import Discard
from av.video.frame import VideoFrame

from pipeline.errors import MediaError, SourceNotFoundError
from pipeline.media import (
    IMAGE_TIME_BASE,
    Acceleration,
    MediaFacts,
    Tally,
    choose_stream,
    decode_packet,
    decodes_on,
    facts_of,
    open_media,
    open_video,
    reason_of,
    set_threads,
)
from pipeline.seek import KeyPacket, Place, Trail, packets_from, reach
from pipeline.sources import Source
from pipeline.timestamps import LOOK_AHEAD, Timestamps


class VideoReader:
    """The frames of a video file or URL in presentation order, with their time stamps.

    Attributes:
        facts: what the container says.
        tally: what went wrong so far.
        clock: makes the time stamps, counts those it made up, and the times it was started anew up
            to the frame given last.
        gap_reason: what is between the frames where it was.
    """

    gap_reason = "the clock starts anew"

    def __init__(
        self,
        uri: str,
        threads: int,
        stop: Callable[[], bool] | None,
        hwaccel: Acceleration | None = None,
    ) -> None:
        """Opens the file.

        Args:
            uri: path or URL.
            threads: decoding threads; 0 for as many as there are cores.
            stop: asked once a packet whether to stop reading; the frames that the decoder still
                holds are given.
            hwaccel: device to decode on where it can, as `open_video` has it.

        Raises:
            SourceNotFoundError: the file is not there.
            MediaError: it cannot be opened, or holds no video that can be decoded.
        """
        self.tally = Tally()
        self._uri, self._threads, self._stop, self._hwaccel = uri, threads, stop, hwaccel
        self._closed = False
        self._saved: dict[str, Any] | None = None
        self._skipped = 0
        self._open()
        self.clock = Timestamps(self.facts.time_base, self.facts.average_rate)

    def _open(self) -> None:
        self._container, self._no_device = open_video(self._uri, self._hwaccel)
        try:
            self._stream = choose_stream(self._container, self._uri, self.tally)
            self.facts = facts_of(self._container, self._stream)
        except BaseException:
            self._container.close()
            raise
        self._trail = Trail()
        set_threads(self._stream, self._threads)
        for other in self._container.streams:
            if other.index != self._stream.index:
                other.discard = Discard.all

    def save(self) -> dict[str, Any]:
        """Where it is, right behind the frame given last, for `go_on`; JSON can hold it.

        The last frames before must have been shown to `remember`, or the way back is from the start.
        """
        place = self._trail.place() if self._threads == 1 else None
        return {"clock": self.clock.save(), "tally": self.tally.save(),
                "place": place and place.to_json()}  # fmt: skip

    def remember(self, frame: VideoFrame) -> None:
        """Take a checksum of the frame given last: a place follows that will be saved."""
        self._trail.pass_frame(frame)

    def go_on(self, frames: int, saved: dict[str, Any]) -> None:
        """Begin the iteration where a reader of the same file was when it was saved.

        Args:
            frames: how many it had given.
            saved: what its `save` gave.
        """
        self._skipped, self._saved = frames, saved

    def __iter__(self) -> Iterator[tuple[VideoFrame, int]]:
        if self._saved is None:
            yield from self._all_stamped(self._frames(self._demux()))
            return
        frames = self._frames_from(self._saved)
        if frames is not None:
            yield from self._all_stamped(frames)
        else:  # the long way, which leads there in any file
            yield from islice(self._all_stamped(self._frames(self._demux())), self._skipped, None)

    def _frames_from(self, saved: dict[str, Any]) -> Iterator[VideoFrame] | None:
        """The frames behind the place that was saved; None if only the start leads there."""
        if saved["place"] is None or self._threads != 1:
            return None
        place = Place.from_json(saved["place"])
        for key in place.keys:
            frames = self._frames_at(key)
            reached = frames is not None and reach(place, frames)
            if reached or self.tally.interrupted:
                counted = self.tally.undecodable_packets  # those decoded a second time too
                self.clock.restore(saved["clock"])
                self.tally.restore(
                    {**saved["tally"], "interrupted": self.tally.interrupted,
                     "undecodable_packets": counted}
                )  # fmt: skip
                return frames
            self._container.close()
            self.tally.undecodable_packets = 0
            self._open()
        return None

    def _frames_at(self, key: KeyPacket) -> Iterator[VideoFrame] | None:
        packets = packets_from(self._container, self._stream, key)
        if packets is None:
            return None
        self.tally.undecodable_packets = key.undecodable
        return self._frames(packets)

    def _demux(self) -> Iterator[Packet]:
        return self._container.demux(self._stream)

    def _all_stamped(self, frames: Iterable[VideoFrame]) -> Iterator[tuple[VideoFrame, int]]:
        waiting: deque[VideoFrame] = deque()
        for frame in frames:
            waiting.append(frame)
            while waiting and (
                len(waiting) > LOOK_AHEAD or not self.clock.jumps_back(waiting[0].pts)
            ):
                yield self._stamped(waiting)
        while waiting:
            yield self._stamped(waiting)

    def _frames(self, packets: Iterator[Packet]) -> Iterator[VideoFrame]:
        sent = given = 0
        on_device = self._stream.codec_context.is_hwaccel
        for packet in self._until_stopped(packets):
            if packet is not None:
                self._trail.pass_packet(packet, self.tally.undecodable_packets)
            try:
                frames = decode_packet(self._stream, packet, self.tally, on_device)
            except MediaError as error:
                raise MediaError(f"{self._uri}: {error}") from error
            if frames and not given and self._hwaccel is not None:
                self._tell_where(self._hwaccel.kind)
            sent += packet is not None and packet.size > 0 and not packet.is_discard
            given += len(frames)
            yield from frames
        missing = sent - given - self.tally.undecodable_packets
        if self._threads != 1 and missing > 0 and not self.tally.interrupted:
            yield from self._lost_while_draining(given)

    def _tell_where(self, hwaccel: str) -> None:
        """Of the first frame: whether it came from the device; FFmpeg itself falls back in silence."""
        if decodes_on(self._stream, hwaccel):
            self.facts.details["decoded_on"] = hwaccel
            return
        details = self.facts.details
        codec = " ".join(details[key] for key in ("codec", "profile") if key in details)
        why = self._no_device or f"does not decode {codec}"
        self.tally.note(f"decoded on the cores: {hwaccel} {why}")

    def why_no_frame(self) -> str:
        """What is wrong with a source of which not one frame came."""
        damaged = self.tally.undecodable_packets
        what = (
            f"all of its {damaged} packets are damaged" if damaged else "its video stream is empty"
        )
        return f"holds no frame that can be decoded, {what}; expected at least one"

    def close(self) -> None:
        """Closes the file and ends an iteration under way. May be called more than once."""
        self._closed = True
        self._container.close()

    def _until_stopped(self, packets: Iterator[Packet]) -> Iterator[Packet | None]:
        """The packets, and what makes the decoder give the frames it still holds."""
        try:
            for packet in packets:
                if self._stop is not None and self._stop():
                    self.tally.interrupted = True
                    break
                yield packet
                if self._closed:  # to read on would be to read from freed memory
                    self.tally.interrupted = True
                    return
            else:
                return  # the last packet is one that makes the decoder give all it holds
        except av.FFmpegError as error:
            self.tally.note(f"reading stopped before the end: {reason_of(error)}")
        yield None

    def _stamped(self, waiting: deque[VideoFrame]) -> tuple[VideoFrame, int]:
        """The first of the waiting frames, and its stamp."""
        frame = waiting.popleft()
        self.tally.corrupt_frames += frame.is_corrupt
        after = [later.pts for later in waiting]
        return frame, self.clock.stamp(frame.pts, frame.dts, frame.duration, after)

    def _lost_while_draining(self, given: int) -> list[VideoFrame]:
        """The frames that decoding with one thread gives beyond the first `given`.

        With frame threading a damaged packet at the very end makes PyAV drop the frames that other
        threads had finished after it; there is no way to ask for them again.
        """
        frames: list[VideoFrame] = []
        with open_media(self._uri) as container:
            stream = choose_stream(container, self._uri, Tally())
            set_threads(stream, 1)
            count = 0
            try:
                for packet in container.demux(stream):
                    for frame in decode_packet(stream, packet, Tally()):
                        count += 1
                        if count > given:
                            frames.append(frame)
            except av.FFmpegError:
                frames.extend(decode_packet(stream, None, Tally()))
        return frames


class ImageReader:
    """Images as a stream: the first frame of each file, `pts` its place in the list.

    Attributes: as of `VideoReader`. A file that cannot be decoded leaves its `pts` out, so that
    `frame_names[pts]` is a frame's name whatever is missing.
    """

    gap_reason = ""

    def __init__(self, source: Source, threads: int, stop: Callable[[], bool] | None) -> None:
        self.tally = Tally()
        self.clock = Timestamps(IMAGE_TIME_BASE, 1 / IMAGE_TIME_BASE)
        self._files, self._threads, self._stop = source.files, threads, stop
        self._first = self._next = 0
        self.facts = MediaFacts(
            time_base=IMAGE_TIME_BASE,
            average_rate=1 / IMAGE_TIME_BASE,
            frame_count=len(source.files),
            coded_hw=(1, 1),
            details={"container": "images", "codec": Path(source.files[0]).suffix[1:].lower()},
            frame_names=tuple(Path(file).stem for file in source.files),
        )

    def save(self) -> dict[str, Any]:
        """As of `VideoReader`."""
        return {"clock": self.clock.save(), "tally": self.tally.save(), "place": self._next}

    def remember(self, frame: VideoFrame) -> None:
        """Nothing has to be: an image is found by its number."""

    def go_on(self, frames: int, saved: dict[str, Any]) -> None:
        """As of `VideoReader`."""
        self._first = self._next = int(saved["place"])
        self.clock.restore(saved["clock"])
        self.tally.restore(saved["tally"])

    def __iter__(self) -> Iterator[tuple[VideoFrame, int]]:
        for place, file in enumerate(self._files[self._first :], self._first):
            self._next = place + 1
            if self._stop is not None and self._stop():
                self.tally.interrupted = True
                return
            frame = self._read(place, file)
            if frame is not None:
                self.tally.corrupt_frames += frame.is_corrupt
                yield frame, self.clock.stamp(place)

    def leave_out(self, place: int, reason: str) -> None:
        """Counts a file that gives no frame, with a note."""
        self.tally.undecodable_packets += 1
        self.tally.note(f"{os.path.basename(self._files[place])} was left out: {reason}")

    def why_no_frame(self) -> str:
        """As of `VideoReader`."""
        damaged = self.tally.undecodable_packets
        return f"none of its {damaged} images can be decoded; expected at least one"

    def close(self) -> None:
        """Nothing stays open between images."""

    def _read(self, place: int, file: str) -> VideoFrame | None:
        inside = Tally()
        try:
            with open_media(file) as container:
                stream = choose_stream(container, file, inside)
                set_threads(stream, self._threads)
                for packet in container.demux(stream):
                    for frame in decode_packet(stream, packet, inside):
                        return frame
            reason = "nothing in it can be decoded"
        except MediaError as error:
            reason = str(error).removeprefix(f"{file}: ")
        except (SourceNotFoundError, av.FFmpegError) as error:
            reason = reason_of(error)
        self.leave_out(place, reason)
        return None
