"""Files that get their final names only when they are whole.

Each is written beside its final name as `.NAME.part`, brought to the disk, and renamed last, so a
crash leaves no half-written file that looks like a good one, and an earlier good one stays. One that a
journal vouches for up to some byte can be gone on with from there.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

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
    errno.ENOENT: "the output folder is gone: run again",
    errno.EIO: f"the disk reports an error; {_OTHER_FOLDER}",
    errno.ENAMETOOLONG: "the name is too long for the file system; give the source a shorter one",
}


@dataclass(frozen=True)
class Kept:
    """What of a file an earlier process vouched for.

    Attributes:
        size: its first so many bytes, or files if it is a folder.
        published: it may have its final name already, if it has not its temporary one.
    """

    size: int
    published: bool = False


class PartFile:
    """A file under its temporary name.

    Args:
        final: the name it will have.
        kept: what is there already and stays; None to start with an empty file.

    Attributes:
        final: the name it will have.
        part: the name it has now.
        file: open for writing and reading, at its end.

    Raises:
        OutputError: it cannot be opened, or is shorter than what shall stay of it.
    """

    def __init__(self, final: Path, kept: Kept | None = None) -> None:
        self.final = final
        self.part = _part(final)
        with output_errors(final):
            if kept is None:
                self.file = self._open("w+b")
            else:
                _take_back(final, kept)
                self.file = self._open("r+b")
                self._cut(kept.size)

    def _open(self, mode: str) -> BinaryIO:
        return cast(BinaryIO, open(self.part, mode, buffering=_BUFFER_BYTES))

    def _cut(self, size: int) -> None:
        there = self.file.seek(0, os.SEEK_END)
        if there < size:
            self.file.close()
            raise OutputError(
                f"cannot go on with {self.part}: it has {there} bytes, expected {size} or more;"
                " begin anew"
            )
        self.file.truncate(size)
        self.file.seek(size)

    def sync(self) -> int:
        """Bring what is written to the disk; returns the size in bytes. Raises OutputError."""
        with output_errors(self.final):
            self.file.flush()
            os.fsync(self.file.fileno())
            return os.fstat(self.file.fileno()).st_size

    def close(self) -> int:
        """Bring everything to the disk; returns the size in bytes. Raises OutputError."""
        size = self.sync()
        with output_errors(self.final):
            self.file.close()
        return size

    def publish(self) -> None:
        """Give the closed file its final name, in place of an earlier file of that name."""
        with output_errors(self.final):
            os.replace(self.part, self.final)

    def discard(self, keep: bool = False) -> None:
        """Remove what was written, or leave it where it is; no error, whatever the state."""
        with contextlib.suppress(OSError, ValueError):
            self.file.close()  # what is left in its buffer may not fit the disk
        if not keep:
            with contextlib.suppress(OSError):
                self.part.unlink(missing_ok=True)


class PartFolder:
    """A folder of files under its temporary name; the files have their own names inside it.

    Args:
        final: the name it will have.
        kept: how many files are there already and stay; None to start with an empty folder.
        stays: whether a file of that name is one of those.

    Raises:
        OutputError: it cannot be made, or has not the files that shall stay.
    """

    def __init__(
        self,
        final: Path,
        kept: Kept | None = None,
        stays: Callable[[str], bool] = lambda name: True,
    ) -> None:
        self.final = final
        self.part = _part(final)
        self._bytes = 0
        with output_errors(final):
            if kept is None:
                self.part.mkdir()
            else:
                _take_back(final, kept)
                self._clear(kept.size, stays)

    def _clear(self, count: int, stays: Callable[[str], bool]) -> None:
        there = 0
        for entry in os.scandir(self.part):
            if stays(entry.name):
                there += 1
                self._bytes += entry.stat().st_size
            else:
                os.unlink(entry.path)
        if there != count:
            raise OutputError(
                f"cannot go on with {self.part}: it has {there} files, expected {count}; begin anew"
            )

    def write(self, name: str, data: bytes) -> None:
        """Write one file whole. Raises OutputError."""
        with output_errors(self.final / name), open(self.part / name, "wb", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
        self._bytes += len(data)

    def sync(self) -> None:
        """Bring what is written to the disk. Raises OutputError."""
        with output_errors(self.final):
            _sync_files(self.part)
            sync(self.part)

    def close(self) -> int:
        """Bring everything to the disk; returns the size of all files in bytes."""
        self.sync()
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

    def discard(self, keep: bool = False) -> None:
        """Remove what was written, or leave it where it is; no error, whatever the state."""
        if not keep:
            shutil.rmtree(self.part, ignore_errors=True)


def prepare_folder(folder: Path, keep: bool = False) -> bool:
    """Make the folder, and remove what a crash left in it; returns whether it is new.

    Args:
        keep: leave half-written files: they will be gone on with.

    Raises OutputError if it cannot be made or written in.
    """
    with output_errors(folder):
        new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if not keep:
            _clear(folder)
        _mend(folder)
    return new


def lock_folder(folder: Path, patience_seconds: float) -> Callable[[], None]:
    """Keep other processes from locking the folder; returns what lets it go, as the process's end does.

    Where the file system knows no locks, nothing is locked.

    Args:
        patience_seconds: how long to wait for another process, which may be about to die.

    Raises OutputError if another process has it still.
    """
    if fcntl is None:
        return lambda: None
    with output_errors(folder):
        descriptor = os.open(folder, os.O_RDONLY)
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise OutputError(
                    f"another run is writing to {folder}: wait for it, or {_OTHER_FOLDER}"
                ) from None
            time.sleep(0.05)
            continue
        except OSError:
            pass
        return lambda: os.close(descriptor)


def clear_stale(folder: Path) -> None:
    """Remove what a crashed run left in a source's folder, and the folder if nothing else is in it.

    A folder that it was about to replace gets its name back. No error, whatever the state.
    """
    with contextlib.suppress(OSError):
        _clear(folder)
        _mend(folder)
        folder.rmdir()


def tidy_finished(folder: Path, patience_seconds: float) -> None:
    """Remove what a crashed run left beside the results of a finished one, unless some run writes there.

    No error, whatever the state.

    Args:
        patience_seconds: how long to wait for another process, which may be about to die.
    """
    with contextlib.suppress(OSError, OutputError):
        if not any(path.suffix in (_SUFFIX, _REPLACED) for path in folder.glob(".*")):
            return
        let_go = lock_folder(folder, patience_seconds)
        try:
            _clear(folder)
            _mend(folder)
        finally:
            let_go()


def write_whole(final: Path, data: bytes) -> None:
    """Write a small file so that after a crash it is as before or as now. Raises OutputError."""
    part = PartFile(final)
    try:
        with output_errors(final):
            part.file.write(data)
        part.close()
        part.publish()
        with output_errors(final):
            sync(final.parent)
    except BaseException:
        part.discard()
        raise


def _clear(folder: Path) -> None:
    for path in folder.glob(f".*{_SUFFIX}"):
        _remove(path)


def _mend(folder: Path) -> None:
    """Finish, or take back, what a crash between two renames has left of a folder's replacement."""
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


def _sync_files(folder: Path) -> None:
    """Bring a folder's files to the disk: in one go, one by one each waits for a turn of the disk."""
    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None) if fcntl else None
    if syncfs is None:
        for entry in os.scandir(folder):
            sync(Path(entry.path))
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if syncfs(descriptor):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
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


def _take_back(final: Path, kept: Kept) -> None:
    """Give a file or folder its temporary name again, if it got its final one before the crash."""
    part = _part(final)
    if kept.published and not part.exists() and final.exists():
        os.replace(final, part)
    if not part.exists():
        raise OutputError(f"cannot go on with {part}: it is gone; begin anew")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
