"""The two tracks of a camera being recorded: its packets, and the labels that were shown.

Everything here runs on the camera's writing thread.
"""

from __future__ import annotations

import time
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from av.codec.codec import Codec

from pipeline.session.format import (
    LABELS,
    PACKETS,
    Configuration,
    Limits,
    ShownLabels,
    plain_configuration,
)
from pipeline.session.matroska import describe
from pipeline.session.stream import StreamParameters
from pipeline.session.track import Payload, TrackWriter, segment_numbers
from pipeline.writers import encode_png

_LONGEST_WITHOUT_KEY = 6  # segments' lengths, after which a stream without key frames is cut anyway
_MICROSECOND = Fraction(1, 1_000_000)


class CameraTracks:
    """Cuts a camera's packets and labels into segments.

    A track's folder is made when there is something for it, so that two processes may each write one.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        run: dict[str, Any],
        configuration: Configuration | None,
        limits: Limits,
    ) -> None:
        self._folder, self._limits = folder, limits
        self._facts: dict[str, Any] = {
            "camera": name, "run": run, "configuration": plain_configuration(configuration),
        }  # fmt: skip
        self._writers: dict[str, TrackWriter] = {}
        self._began: dict[str, float] = {}
        self._synced: dict[str, float] = {}
        self._connection = 0
        self._stream: StreamParameters | None = None
        self._part = 0
        self._needs_key = self._opens = False
        self._labels_lost = self._sealed = False

    def last_segment(self) -> int:
        """The number of the last segment of packets, 0 if there is none."""
        folder = self._folder / PACKETS
        return max(segment_numbers(folder), default=0) if folder.is_dir() else 0

    def connected(
        self, connection: int, stream: StreamParameters, reason: str, at: dict[str, float]
    ) -> None:
        """A new stream: its packets go to new segments, the first of which has at least its number.

        Raises OutputError; what comes later is of this stream all the same.
        """
        self._connection, self._stream, self._part = connection, stream, 0
        self._needs_key, self._opens = False, True
        self._seal(PACKETS)
        self.event({"kind": "connected", "connection": connection, "reason": reason, **at})

    def hole(self) -> None:
        """Packets were lost on the way to the disk: what follows is decoded anew."""
        self._part += 1
        self._opens = False
        self._seal(PACKETS)

    def packet(self, facts: dict[str, Any], data: bytes) -> None:
        """A packet of the stream; nothing while there is none."""
        if self._stream is None:
            return
        if self._needs_key:
            if not facts["key"]:
                return
            self._needs_key = False
            self.hole()
        self._cut(PACKETS, facts["key"], facts["arrived"])
        ticks = facts["pts"] if facts["pts"] is not None else facts["dts"]
        self._append(PACKETS, facts, data, ticks)

    def event(self, record: dict[str, Any]) -> None:
        """A line among the packets."""
        self._begin_if_needed(PACKETS, record["mono"])
        self._writers[PACKETS].append(record)

    def labels(self, shown: ShownLabels) -> None:
        """A label map."""
        captured = shown.captured_monotonic
        if captured is None:
            run = self._facts["run"]
            captured = run["monotonic"] + shown.captured_at - run["wall"]
        self._cut(LABELS, True, captured)
        record = {
            "kind": "labels", "connection": shown.connection,
            "decoded_index": shown.decoded_index, "frame_index": shown.frame_index,
            "pts": shown.pts, "captured": captured, "wall": shown.captured_at,
            "latency_ms": round(shown.latency_ms, 3), "reset": bool(shown.reset),
        }  # fmt: skip
        if self._labels_lost:
            record["after_loss"] = True
        if not self._writers[LABELS].open:
            self._begin(LABELS, captured, shown.labels.shape)
        ticks = round(captured / _MICROSECOND)
        self._append(LABELS, record, encode_png(shown.labels), ticks)
        self._labels_lost = False

    def labels_lost(self) -> None:
        """Label maps were lost on the way to the disk."""
        self._labels_lost = True

    def label_event(self, record: dict[str, Any]) -> None:
        """A line among the labels; none before the first of them."""
        if LABELS in self._writers and self._writers[LABELS].open:
            self._writers[LABELS].append(record)

    def checkpoint(self, state: np.ndarray, steps: int) -> None:
        """The state after the labels written last; nothing if their segment could not be written."""
        if LABELS not in self._writers or not self._writers[LABELS].payloads:
            return
        record = {"kind": "checkpoint", "shape": list(state.shape), "steps": int(steps)}
        data = zlib.compress(np.ascontiguousarray(state, "<f4").tobytes(), 1)
        self._append(LABELS, record, data, None, hidden=True)

    @property
    def writing(self) -> bool:
        """Whether what comes is written, and nothing waits for a key frame."""
        return not self._needs_key and any(writer.open for writer in self._writers.values())

    def take_sealed(self) -> bool:
        """Whether a segment was sealed since this was asked last."""
        sealed, self._sealed = self._sealed, False
        return sealed

    def abandon(self) -> None:
        """After an error: the open segments stay as they are; packets go on with a key frame."""
        for writer in self._writers.values():
            writer.abandon()
        self._needs_key = self._stream is not None
        self._labels_lost = True

    def close(self) -> None:
        """Seal both tracks and let others write them; what comes later opens them again.

        Raises OutputError.
        """
        writers, self._writers = list(self._writers.values()), {}
        try:
            for writer in writers:
                writer.seal()
        finally:
            for writer in writers:
                writer.abandon()
                writer.close()

    def _append(
        self, track: str, record: dict[str, Any], data: bytes, ticks: int | None,
        hidden: bool = False,
    ) -> None:  # fmt: skip
        payload = Payload(data, ticks, bool(record.get("key", True)), hidden)
        self._writers[track].append(record, payload)

    def _cut(self, track: str, key: bool, at: float) -> None:
        """Seal the open segment if it is long enough and what comes at `at` may begin another."""
        writer = self._writers.get(track)
        if writer is not None and writer.open and writer.payloads:
            length = abs(at - self._began[track])  # of what came, not of the time it took to write
            if length >= self._limits.segment_seconds * (1 if key else _LONGEST_WITHOUT_KEY):
                self._seal(track)
            elif time.monotonic() - self._synced[track] >= self._limits.segment_seconds:
                writer.sync()
                self._synced[track] = time.monotonic()
        if track == PACKETS:
            self._begin_if_needed(track, at)
        elif track not in self._writers:
            self._writers[track] = TrackWriter(self._folder / track)

    def _begin_if_needed(self, track: str, at: float) -> None:
        if track not in self._writers:
            self._writers[track] = TrackWriter(self._folder / track)
        if not self._writers[track].open:
            self._begin(track, at)

    def _begin(self, track: str, at: float, labels_hw: tuple[int, ...] = ()) -> None:
        media, time_base = None, _MICROSECOND
        head: dict[str, Any] = {"track": track, "began": at, **self._facts}
        if track == LABELS:
            media = describe("png", 0, b"", (labels_hw[0], labels_hw[1]))
        else:
            stream = self._stream
            head |= {"connection": self._connection, "part": self._part, "opens": self._opens,
                     "stream": stream.to_json() if stream else None}  # fmt: skip
            self._opens = False
            if stream is not None:
                canonical = Codec(stream.codec, "r").canonical_name
                media = describe(
                    canonical, stream.codec_tag, stream.extradata, stream.size_hw,
                    stream.orientation,
                )  # fmt: skip
                time_base = stream.time_base
        least = self._connection if track == PACKETS else 1
        self._writers[track].begin(head, media, time_base, least)
        self._began[track], self._synced[track] = at, time.monotonic()

    def _seal(self, track: str) -> None:
        writer = self._writers.get(track)
        if writer is not None and writer.open:
            writer.seal()
            self._sealed = True
