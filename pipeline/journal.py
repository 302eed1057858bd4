"""The journal of a source: what of its results is safely on the disk, and the memory that goes with it.

A record says: everything before this mark is in these files up to these bytes, and here is what decoder,
network and sink need to go on behind it. It is written whole or not at all, after the files, so whatever
dies when, the files can be cut back to what a record vouches for and the run can go on from there as if it
had never stopped. It lies in the source's output folder as long as the source is not done.

The file: eight bytes that name the format, CRC-32 and length of the head, the head as JSON, and the state,
float32, row by row.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.closing import Closing
from pipeline.errors import PipelineError
from pipeline.frames import Mark, StreamInfo, StreamState
from pipeline.parts import lock_folder, output_errors, prepare_folder, write_whole
from pipeline.secrecy import mask
from pipeline.sources import Source

JOURNAL = ".roadmask.journal"
_MAGIC = b"RMJRNL\x00\x01"  # the last byte is the format's version
_HEAD = struct.Struct(">8sIQ")
PATIENCE_SECONDS = 20.0  # for a killed process that still holds the folder
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 16


class ResumeError(PipelineError, ValueError):
    """A source cannot be gone on with: something is not what it was."""


@dataclass(frozen=True)
class Record:
    """One state of a journal.

    Attributes:
        identity: what the results depend on, see `identity_of`.
        mark: where to go on.
        sink: what the sink needs to go on there; JSON can hold it.
        started_at: when the run began, ISO 8601 with milliseconds; the finished run's manifest has it too.
        resumed_at: frame indices the run was gone on from so far.
        publishing: the files may have their final names already.
    """

    identity: dict[str, Any]
    mark: Mark
    sink: dict[str, Any]
    started_at: str
    resumed_at: list[int] = field(default_factory=list)
    publishing: bool = False


class Journal(Closing):
    """A source's journal, and the right to write to the source's folder.

    As a context manager it lets the folder go at the end, and removes it if it is new and empty.

    Args:
        folder: the source's output folder; made if it is missing.
        identity: what the results will depend on.
        resume: go on from the last record, if there is one; else it is forgotten, with all it vouches for.

    Attributes:
        record: the last record, None as long as there is none.
        notes: what the user should know, a line each.

    Raises:
        OutputError: the folder cannot be written to, or another run does.
        ResumeError: the record is of another source, model, size, or the like; not of another engine, which
            goes on where the last one was.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], resume: bool) -> None:
        self.folder, self.identity = folder, identity
        self.notes: list[str] = []
        self._new_folder = prepare_folder(folder, keep=True)
        self._unlock: Callable[[], None] | None = lock_folder(folder, PATIENCE_SECONDS)
        try:
            self.record = self._last(resume)
            if self.record is None:
                self.remove()
                prepare_folder(folder)
        except BaseException:
            self.close()
            raise

    def commit(self, record: Record) -> None:
        """Write a record in place of the last one. Raises OutputError; then the last one stays."""
        write_whole(self.folder / JOURNAL, encode(record))
        self.record = record

    def remove(self) -> None:
        """Forget the record: the source is done, or begun anew. Raises OutputError."""
        with output_errors(self.folder / JOURNAL):
            (self.folder / JOURNAL).unlink(missing_ok=True)
        self.record = None

    def close(self) -> None:
        """Let the folder go. May be called again."""
        if self._unlock is not None:
            self._unlock()
            self._unlock = None
        if self._new_folder:
            with suppress(OSError):  # something is in it
                self.folder.rmdir()

    def _last(self, resume: bool) -> Record | None:
        if not resume:
            return None
        try:
            record = read(self.folder)
        except ResumeError as error:
            self.notes.append(f"begun anew: {error}")
            return None
        if record is None:
            return None
        place = record.mark.frame_index
        sink, other = record.sink, check_identity(self.folder, record.identity, self.identity)
        if other is not None:  # told with the results, whoever finishes them
            sink = {**sink, "notes": [*sink["notes"], f"from frame {place} on {other}"]}
        return replace(record, sink=sink, resumed_at=[*record.resumed_at, place])


def check_identity(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """What of the engine is another, in a few words; None if nothing is.

    Its labels are the same but for rounding, and the memory is the network's: it may go on.

    Raises ResumeError that says in what else the two differ, if they do.
    """
    old = {_SCALER: _CORES, **old}  # what was begun before there was a choice
    new = {_SCALER: _CORES, **new}
    changed = {
        name: f"{name} was {_short(old.get(name))}, is {_short(new.get(name))}"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    }
    essential = [line for name, line in changed.items() if name not in _ENGINE]
    if essential:
        raise ResumeError(
            f"{folder}: cannot be gone on with: {', '.join(essential)}; give what it was begun with,"
            " or begin anew without --resume"
        )
    return ", ".join(changed.values()) or None


def read(folder: Path) -> Record | None:
    """The record in a folder, None if there is none. Raises ResumeError if it is damaged."""
    try:
        data = (folder / JOURNAL).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ResumeError(f"its journal cannot be read: {error.strerror}") from error
    return decode(data)


def frames_kept(folder: Path) -> int:
    """How many frames of an unfinished source are safe and can be gone on with; 0 if none."""
    try:
        record = read(folder)
    except ResumeError:
        return 0
    return record.mark.frame_index if record else 0


def encode(record: Record) -> bytes:
    """The record as the file's bytes."""
    state = record.mark.state
    values = None if state is None or state.values is None else np.ascontiguousarray(state.values)
    head = asdict(replace(record, mark=replace(record.mark, state=None)))
    if state is not None:
        head["state"] = {"model_hw": state.model_hw, "steps": state.steps, "resets": state.resets,
                         "shape": None if values is None else values.shape}  # fmt: skip
    # File names that are not UTF-8 arrive as lone surrogates; JSON can escape those.
    text = json.dumps(head).encode("ascii")
    tail = b"" if values is None else values.astype("<f4").tobytes()
    return _HEAD.pack(_MAGIC, zlib.crc32(tail, zlib.crc32(text)), len(text)) + text + tail


def decode(data: bytes) -> Record:
    """The record that `encode` gave. Raises ResumeError for anything else."""
    try:
        magic, checksum, length = _HEAD.unpack_from(data)
        if magic != _MAGIC:
            raise ResumeError("its journal is of another version, or none")
        body = data[_HEAD.size :]
        if zlib.crc32(body) != checksum:
            raise ResumeError("its journal is damaged")
        head = json.loads(body[:length])
        state = _state(head.pop("state", None), body[length:])
        mark = Mark(head["mark"]["frame_index"], head["mark"]["decoder"], state)
        return Record(**{**head, "mark": mark})
    except (struct.error, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ResumeError):
            raise
        raise ResumeError("its journal is damaged") from error


def _state(saved: dict[str, Any] | None, tail: bytes) -> StreamState | None:
    if saved is None:
        return None
    values = None
    if saved["shape"] is not None:
        values = np.frombuffer(tail, "<f4").reshape(saved["shape"]).astype(np.float32)
    height, width = saved["model_hw"]
    return StreamState((height, width), values, saved["steps"], saved["resets"])


def stream_to_json(stream: StreamInfo) -> dict[str, Any]:
    """A stream's facts as JSON can hold them."""
    rate = stream.average_rate
    return {**asdict(stream), "time_base": str(stream.time_base),
            "average_rate": None if rate is None else str(rate)}  # fmt: skip


def stream_from_json(data: dict[str, Any]) -> StreamInfo:
    """What `stream_to_json` was given."""
    names, rate = data["frame_names"], data["average_rate"]
    height, width = data["size_hw"]
    changed = {
        "size_hw": (height, width), "time_base": Fraction(data["time_base"]),
        "average_rate": None if rate is None else Fraction(rate),
        "frame_names": None if names is None else tuple(names),
    }  # fmt: skip
    return StreamInfo(**{**data, **changed})


_SCALER, _CORES = "what scales frames", "the cores"
_OPENVINO, _TORCH = ("openvino",), ("torch",)
_TENSORRT = (*_TORCH, "torch-tensorrt", "torch-tensorrt-rtx")
# What of an identity says by which means labels come about rather than what they are of.
_ENGINE = {
    "the engine", "the engine's precision", "the model's compiled form", _SCALER,
    *(f"the version of {name}" for name in _OPENVINO + _TENSORRT),
}  # fmt: skip


def identity_of(source: Source, facts: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """All that a source's results depend on, by names that a user understands.

    Args:
        facts: what the manifest says of model, engine and versions.
        options: which files are written, and how.
    """
    model, engine, versions = facts["model"], facts["engine"], facts["versions"]
    runtimes: tuple[str, ...] = _OPENVINO if "OpenVINO" in engine["runtime"] else _TORCH
    if engine["name"] == "tensorrt":
        runtimes = _TENSORRT
    size = model["size_hw"]
    return {
        **fingerprint(source),
        "model": model["name"],
        "the model's weights": model["weights_sha256"],
        "the model's compiled form": engine["form_sha256"],
        "the network's size": size if isinstance(size, str) else list(size),
        "the engine": engine["name"],
        "the engine's precision": engine["runtime"],
        # A device's pixels are a level off those of the cores here and there.
        _SCALER: facts.get("scaled_on", _CORES),
        **{f"the option {name}": value for name, value in options.items()},
        **{f"the version of {name}": versions.get(name)
           for name in ("roadmask", "av", "opencv-python-headless", *runtimes)},
    }  # fmt: skip


def fingerprint(source: Source) -> dict[str, Any]:
    """Length and SHA-256 of a source: of all bytes up to 4 MB, of 64 places in what is longer.

    Of a URL only its text, without its secrets. A file that is not there has none.
    """
    if "://" in source.uri and not os.path.exists(source.uri):
        return {"the source": mask(source.uri)}  # a signature may change from run to run
    digest, total = hashlib.sha256(), 0
    for path in source.files or (source.uri,):
        try:
            total += os.path.getsize(path)
            for piece in _pieces(path, max(1, _SAMPLES // max(1, len(source.files)))):
                digest.update(piece)
        except OSError:
            digest.update(b"missing")
        digest.update(os.fsencode(os.path.basename(path)) if source.files else b"")
    return {"the source's length": total, "the source's content": digest.hexdigest()}


def _pieces(path: str, count: int) -> Iterator[bytes]:
    """All of a file, or so many pieces spread evenly over it, the first and the last bytes among them."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= count * _SAMPLE_BYTES:
            yield file.read()
            return
        for number in range(count):
            file.seek((size - _SAMPLE_BYTES) * number // max(1, count - 1))
            yield file.read(_SAMPLE_BYTES)


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 and text.isalnum() else text
