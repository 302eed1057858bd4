"""The last stage: everything `roadmask run` leaves for one source.

with Sink(folder, palette, OutputOptions(overlay=True), facts) as sink:
    for item in items:  # LabelBatch, Gap, EndOfStream
        ...sink.write(item), sink.note_gap(item) or sink.finish(item)
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.closing import Closing
from pipeline.errors import ConfigError
from pipeline.frames import EndOfStream, Gap, LabelBatch, Mark, Pictures, StreamInfo
from pipeline.journal import Journal, Record, stream_from_json, stream_to_json
from pipeline.palette import Palette
from pipeline.parts import PartFile, output_errors, prepare_folder, sync
from pipeline.secrecy import mask
from pipeline.video_writers import ColorVideo, OverlayVideo
from pipeline.writers import (
    LabelImages,
    LabelledFrame,
    LabelVideo,
    Saved,
    StatsFile,
    Writer,
    resize_labels,
)

MANIFEST = "manifest.json"
_LABEL_FORMATS = ("mkv", "png", "none")
_MOST_GAPS = 1000


@dataclass(frozen=True)
class OutputOptions:
    """Which files to write, and how. `stats.jsonl` and `manifest.json` are always written.

    Attributes:
        labels: "mkv" for one lossless video, "png" for an image a frame, "none".
        color: whether to write `color.mp4`.
        overlay: whether to write `overlay.mp4`; needs `LabelBatch.pictures`.
        opacity: of the colours in the overlay, 0 to 1.
        encoder_threads: threads of each video encoder, 0 for as many as there are cores.

    Raises:
        ConfigError: one of them is none of these.
    """

    labels: str = "mkv"
    color: bool = True
    overlay: bool = False
    opacity: float = 0.5
    encoder_threads: int = 1

    def __post_init__(self) -> None:
        if self.labels not in _LABEL_FORMATS:
            *others, last = _LABEL_FORMATS
            raise ConfigError(f"labels must be {', '.join(others)} or {last}, got {self.labels!r}")
        if not 0 <= self.opacity <= 1:
            raise ConfigError(f"opacity must be 0 to 1, got {self.opacity}")
        if self.encoder_threads < 0:
            raise ConfigError(
                f"encoder_threads must be 0 (one a core) or more, got {self.encoder_threads}"
            )


class Sink(Closing):
    """Writes one source's files; they get their final names together, in `finish`.

    Until then everything is under temporary names in the same folder, so after an error, or a crash
    of the machine, nothing half-written looks like a result, and an earlier run's files are still
    there. As a context manager, leaving without `finish` aborts.

    With a journal, what was written by the last mark is kept when all else fails: a sink with the same
    journal goes on there, and an abort leaves it as it is.
    """

    def __init__(
        self,
        folder: Path,
        palette: Palette,
        options: OutputOptions,
        manifest: dict[str, Any],
        journal: Journal | None = None,
    ) -> None:
        """
        Args:
            folder: where the files go; made if it is missing.
            palette: names and colours of the classes.
            options: which files to write.
            manifest: what the manifest shall say beside what the sink knows: model, engine,
                versions and the like.
            journal: of this folder; the sink goes on from its record, if it has one. None for no
                journal, and no way to go on.

        Raises:
            OutputError: the folder cannot be made or written in, or what the journal vouches for is
                not there.
        """
        self._folder, self._palette, self._options = Path(folder), palette, options
        self._facts = dict(manifest)
        self._journal = journal
        self._started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._writers: dict[str, Writer] = {}
        self._stream: StreamInfo | None = None
        self._gaps: list[dict[str, Any]] = []
        self._gap_count = 0
        self._notes: list[str] = []
        self._resumed_at: list[int] = []
        self._frames = 0
        self._first_pts: int | None = None
        self._last: tuple[int, int] | None = None  # index and pts
        self._closed = False
        self._new_folder = False
        if journal is None:
            self._new_folder = prepare_folder(self._folder)
        elif journal.record is not None:
            try:
                self._restore(journal.record)
            except BaseException:
                self.abort()
                raise

    def write(self, batch: LabelBatch) -> None:
        """Write a batch's frames to every output. Raises OutputError; abort after it."""
        self._expect_open()
        if self._last and (batch.frame_index, batch.pts[0]) <= self._last:
            raise ValueError(
                f"frame_index and pts must increase, got {batch.frame_index}, {batch.pts[0]}"
                f" after {self._last}"
            )
        if not self._writers:
            self._open(batch.stream)
        self._note_size(batch)
        for frame in _frames(batch):
            for writer in self._writers.values():
                writer.write(frame)
        if self._first_pts is None:
            self._first_pts = batch.pts[0]
        self._last = (batch.frame_index + len(batch) - 1, batch.pts[-1])
        self._frames += len(batch)
        mark = batch.mark
        if self._journal is not None and mark is not None and mark.state is not None:
            self._checkpoint(self._journal, mark)

    def note_gap(self, gap: Gap) -> None:
        """Tell the manifest of frames that are missing, or of a cut."""
        self._gap_count += 1
        if len(self._gaps) < _MOST_GAPS:
            self._gaps.append(
                {"frame_index": gap.frame_index, "seconds": gap.seconds, "reason": gap.reason}
            )

    def finish(self, end: EndOfStream) -> dict[str, Any]:
        """Close all files, give them their final names, the manifest last; returns the manifest.

        An interrupted stream is finished like any other and its manifest says so; but if it was
        interrupted before its first frame, everything is aborted: no file is written, those of an
        earlier run stay, and the manifest that is returned, with `frames_out` 0 and `outputs`
        empty, is nowhere else. Files of an earlier run that this one makes too are replaced,
        others stay.

        Raises:
            OutputError: a file could not be completed; then everything is aborted.
        """
        self._expect_open()
        if end.interrupted and not self._frames:
            self.abort()
            return self._manifest(end, {})
        try:
            if not self._writers:
                self._writers["stats.jsonl"] = StatsFile(
                    self._folder / "stats.jsonl", self._palette
                )
            outputs = {
                name: writer.close(end.interrupted) for name, writer in self._writers.items()
            }
            manifest = self._manifest(end, outputs)
            self._publish(manifest)
        except BaseException:
            self.abort()
            raise
        self._closed = True
        return manifest

    def abort(self) -> None:
        """Remove everything that is not finished, but what a journal vouches for; no error ever."""
        if self._closed:
            return
        self._closed = True
        keep = self._journal is not None and self._journal.record is not None
        for writer in self._writers.values():
            writer.abort(keep)
        if self._new_folder:
            with contextlib.suppress(OSError):
                self._folder.rmdir()

    def close(self) -> None:
        """Abort unless finished. May be called again."""
        self.abort()

    def _expect_open(self) -> None:
        if self._closed:
            raise ValueError(f"the sink of {self._folder} is closed")

    def _open(self, stream: StreamInfo, record: Record | None = None) -> None:
        """Open the outputs, one by one, so that `abort` knows those that were opened."""
        options, threads = self._options, self._options.encoder_threads
        self._stream, folder = stream, self._folder
        wanted: list[tuple[str, type[Any], tuple[Any, ...]]] = [
            ("stats.jsonl", StatsFile, (self._palette,))
        ]
        if options.labels != "none":
            video = options.labels == "mkv"
            label = (
                ("labels.mkv", LabelVideo, (stream, threads)),
                ("labels", LabelImages, (stream,)),
            )
            wanted.insert(0, label[0] if video else label[1])
        if options.overlay:
            drawn = (stream, self._palette, options.opacity, threads)
            wanted.insert(0, ("overlay.mp4", OverlayVideo, drawn))
        if options.color:
            wanted.insert(0, ("color.mp4", ColorVideo, (stream, self._palette, threads)))
        for name, kind, arguments in wanted:
            saved = record and Saved(record.sink["writers"][name], record.publishing)
            self._writers[name] = kind(folder / name, *arguments, saved=saved)

    def _checkpoint(self, journal: Journal, mark: Mark) -> None:
        """Bring what is written to the disk, and then the record that vouches for it."""
        if mark.frame_index != self._frames:
            raise ValueError(
                f"a mark must follow the frames, got {mark.frame_index} after {self._frames}"
            )
        assert self._stream is not None
        state = {
            "writers": {name: writer.save() for name, writer in self._writers.items()},
            "stream": stream_to_json(self._stream), "first_pts": self._first_pts,
            "last": self._last, "gap_count": self._gap_count, "gaps": self._gaps,
            "notes": self._notes,
        }  # fmt: skip
        journal.commit(Record(journal.identity, mark, state, self._started_at, self._resumed_at))

    def _restore(self, record: Record) -> None:
        saved = record.sink
        self._started_at, self._resumed_at = record.started_at, record.resumed_at
        self._frames, self._first_pts = record.mark.frame_index, saved["first_pts"]
        self._last = (saved["last"][0], saved["last"][1])
        self._gap_count, self._gaps = saved["gap_count"], saved["gaps"]
        self._notes = saved["notes"]
        if record.publishing:  # files lose their final names again: no manifest may vouch for them
            with output_errors(self._folder / MANIFEST):
                (self._folder / MANIFEST).unlink(missing_ok=True)
        self._open(stream_from_json(saved["stream"]), record)

    def _note_size(self, batch: LabelBatch) -> None:
        assert self._stream is not None
        if batch.stream.size_hw != self._stream.size_hw:
            height, width = batch.stream.size_hw
            note = f"the size changes to {width}x{height} on the way: videos keep their first size"
            if note not in self._notes:
                self._notes.append(note)

    def _publish(self, manifest: dict[str, Any]) -> None:
        final = self._folder / MANIFEST
        part = PartFile(final)
        try:
            with output_errors(final):
                text = json.dumps(manifest, indent=2, ensure_ascii=False, default=str)
                # Names that are not UTF-8 arrive as lone surrogates; JSON can escape those.
                part.file.write(text.encode("utf-8", "backslashreplace") + b"\n")
            part.close()
            self._announce()
            with output_errors(final):
                # From here to the end files of two runs lie side by side: no manifest vouches.
                final.unlink(missing_ok=True)
            for writer in self._writers.values():
                writer.publish()
            part.publish()
        except BaseException:
            part.discard()
            raise
        with output_errors(self._folder):
            sync(self._folder)
        if self._journal is not None and not manifest["interrupted"]:
            self._journal.remove()

    def _announce(self) -> None:
        """Tell whoever goes on after a crash that files may have their final names."""
        if self._journal is not None and self._journal.record is not None:
            self._journal.commit(replace(self._journal.record, publishing=True))

    def _manifest(self, end: EndOfStream, outputs: dict[str, Any]) -> dict[str, Any]:
        stream = self._stream or end.stream
        writer_notes = [note for writer in self._writers.values() for note in writer.notes]
        return {
            "source": mask(stream.source),
            "stream_id": stream.stream_id,
            **self._facts,
            "size_hw": list(stream.size_hw),
            "rotation_degrees": stream.rotation_degrees,
            "time_base": str(stream.time_base),
            "average_rate": str(stream.average_rate) if stream.average_rate else None,
            "matrix": stream.matrix,
            "details": stream.details,
            "classes": list(self._palette.classes),
            "palette": self._palette.rgb.tolist(),
            "frames_in": end.frame_count,
            "frames_out": self._frames,
            "first_pts": self._first_pts,
            "last_pts": self._last[1] if self._last else None,
            "corrupt_frames": end.corrupt_frames,
            "undecodable_packets": end.undecodable_packets,
            "repaired_pts": end.repaired_pts,
            "gap_count": self._gap_count,
            "gaps": self._gaps,
            "notes": [*end.notes, *self._notes, *writer_notes],
            "interrupted": end.interrupted,
            "outputs": outputs,
            "identity": self._journal.identity if self._journal else None,
            "resumed_at": self._resumed_at,
            "started_at": self._started_at,
            "finished_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }


def _frames(batch: LabelBatch) -> Iterator[LabelledFrame]:
    """The frames of a batch, their labels resized once for all writers."""
    pictures: Pictures | None = batch.pictures
    for place, labels in enumerate(batch.labels):
        yield LabelledFrame(
            stream=batch.stream,
            index=batch.frame_index + place,
            pts=batch.pts[place],
            small=labels,
            full=resize_labels(labels, batch.stream.size_hw),
            picture=(pictures.y[place], pictures.u[place], pictures.v[place]) if pictures else None,
            latency_ms=1000 * (batch.labelled_at - batch.decoded_at[place]),
        )
