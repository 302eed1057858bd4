"""Files that get their final names only when they are whole.

Each is written beside its final name as `.NAME.part`, brought to the disk, and renamed last, so a
crash leaves no half-written file that looks like a good one, and an earlier good one stays.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from pipeline.errors import OutputError

_SUFFIX, _REPLACED = ".part", ".replaced"
_BUFFER_BYTES = 1 << 18
_OTHER_FOLDER = "choose another output folder"
_ADVICE = {
    errno.ENOSPC: f"free some space or {_OTHER_FOLDER}",
    errno.EDQUOT: f"free some space or {_OTHER_FOLDER}",
    errno.EFBIG: f"the file system or a limit forbids files this large; {_OTHER_FOLDER}",
    errno.EACCES: f"{_OTHER_FOLDER}, one you may write in",
    errno.EPERM: f"{_OTHER_FOLDER}, one you may write in",
    errno.EROFS: f"{_OTHER_FOLDER}, one you may write in",
    errno.EEXIST: f"a file is where a folder should be; {_OTHER_FOLDER}",
    errno.ENOTDIR: f"a file is where a folder should be; {_OTHER_FOLDER}",
    errno.EISDIR: f"a folder is where a file should be; {_OTHER_FOLDER}",
    errno.ENAMETOOLONG: "the name is too long for the file system; give the source a shorter one",
}


class PartFile:
    """A file under its temporary name.

    Attributes:
        final: the name it will have.
        part: the name it has now.
        file: open for writing and reading.
    """

    def __init__(self, final: Path) -> None:
        self.final = final
        self.part = _part(final)
        self._before = _part(final.with_name(f"{final.name}.before"))
        with output_errors(final):
            self.file = self._open()

    def _open(self) -> BinaryIO:
        return cast(BinaryIO, open(self.part, "w+b", buffering=_BUFFER_BYTES))

    def renew(self) -> Path:
        """Start anew with an empty file; returns the path of what was written so far."""
        with output_errors(self.final):
            self.file.close()
            os.replace(self.part, self._before)
            self.file = self._open()
        return self._before

    def close(self) -> int:
        """Bring everything to the disk; returns the size in bytes. Raises OutputError."""
        with output_errors(self.final):
            self.file.flush()
            os.fsync(self.file.fileno())
            size = os.fstat(self.file.fileno()).st_size
            self.file.close()
        return size

    def publish(self) -> None:
        """Give the closed file its final name, in place of an earlier file of that name."""
        with output_errors(self.final):
            os.replace(self.part, self.final)

    def discard(self) -> None:
        """Remove what was written; no error, whatever the state."""
        with contextlib.suppress(OSError, ValueError):
            self.file.close()  # what is left in its buffer may not fit the disk
        for path in (self.part, self._before):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


class PartFolder:
    """A folder of files under its temporary name; the files have their own names inside it."""

    def __init__(self, final: Path) -> None:
        self.final = final
        self.part = _part(final)
        self._bytes = 0
        with output_errors(final):
            self.part.mkdir()

    def write(self, name: str, data: bytes) -> None:
        """Write one file whole. Raises OutputError."""
        with output_errors(self.final / name), open(self.part / name, "wb", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
        self._bytes += len(data)

    def close(self) -> int:
        """Bring everything to the disk; returns the size of all files in bytes."""
        with output_errors(self.final):
            for entry in os.scandir(self.part):
                sync(Path(entry.path))
            sync(self.part)
        return self._bytes

    def publish(self) -> None:
        """Give it its final name, in place of an earlier folder of that name."""
        with output_errors(self.final):
            # A folder can't be renamed over one that isn't empty; `clear_stale` mends a crash here.
            replaced = self.final.with_name(f".{self.final.name}{_REPLACED}")
            if self.final.exists():
                os.replace(self.final, replaced)
            os.replace(self.part, self.final)
            shutil.rmtree(replaced, ignore_errors=True)

    def discard(self) -> None:
        """Remove what was written; no error, whatever the state."""
        shutil.rmtree(self.part, ignore_errors=True)


def prepare_folder(folder: Path) -> bool:
    """Make the folder, and remove what a crash left in it; returns whether it is new.

    Raises OutputError if it cannot be made or written in.
    """
    with output_errors(folder):
        new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        _clear(folder)
    return new


def clear_stale(folder: Path) -> None:
    """Remove what a crashed run left in a source's folder, and the folder if nothing else is in it.

    A folder that it was about to replace gets its name back. No error, whatever the state.
    """
    with contextlib.suppress(OSError):
        _clear(folder)
        folder.rmdir()


def _clear(folder: Path) -> None:
    for path in folder.glob(f".*{_SUFFIX}"):
        _remove(path)
    for path in folder.glob(f".*{_REPLACED}"):
        final = path.with_name(path.name.removeprefix(".").removesuffix(_REPLACED))
        if final.exists():
            _remove(path)
        else:
            os.replace(path, final)


def sync(path: Path) -> None:
    """Bring a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says into an OutputError: one line that names `path`."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        advice = _ADVICE.get(error.errno or 0, _OTHER_FOLDER)
        raise OutputError(f"cannot write {path}: {reason}; {advice}") from error


def _part(final: Path) -> Path:
    return final.with_name(f".{final.name}{_SUFFIX}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
