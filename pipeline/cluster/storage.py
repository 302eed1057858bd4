"""Buckets and servers, by fsspec: what they hold comes in pieces that are asked for again after an error, and
results are there whole or not at all.

Every error is one line that names the place and says whether to wait, to renew the credentials, or to give
another address.
"""

from __future__ import annotations

import os
import posixpath
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import ConfigError, PipelineError, SourceNotFoundError
from pipeline.parts import lock_folder

PIECE_BYTES = 8 << 20
TRIES = 5
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 8.0  # it doubles with each failure
_PATIENCE_SECONDS = 3600.0  # for another process of this machine that fetches the same
# What is put there is seen when it is whole. Elsewhere it gets its name by being moved.
_OBJECT_STORES = frozenset(
    {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "memory"}
)
_LOCAL = frozenset({"file", "local"})
_EXPIRED = ("ExpiredToken", "TokenRefreshRequired", "RequestExpired", "oken has expired",
            "oken included in the request is expired", "invalid_grant")  # fmt: skip
_REFUSED = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidClientTokenId",
            "NoCredentials", "PartialCredentials", "DefaultCredentialsError", "Unauthorized",
            "Unable to locate credentials")  # fmt: skip
_UNREACHABLE = ("EndpointConnectionError", "ConnectTimeoutError", "ClientConnectorError", "gaierror",
                "ConnectionRefusedError", "ConnectionTimeoutError", "ConnectionClosedError",
                "ClientConnectorDNSError", "ServerDisconnectedError", "ProxyConnectionError")  # fmt: skip

_UNSAID = ("Bad Request", "Forbidden")

Result = TypeVar("Result")


class StorageError(PipelineError, OSError):
    """A place cannot be read from or written to. Its `passing` is whether it may be well again soon."""

    passing = False


class UnreachableError(StorageError):
    """It did not answer, or broke off."""

    passing = True


class CredentialsError(StorageError):
    """It knows us no longer: nothing there will work until somebody has renewed the credentials."""


@dataclass(frozen=True)
class Entry:
    """What a place says of a file before it is opened.

    Attributes:
        uri: its whole address.
        size: bytes, None where it is not said.
        version: changes when the content does; empty where nothing tells.
    """

    uri: str
    size: int | None
    version: str


def is_remote(uri: str) -> bool:
    """Whether a path is an address that only fsspec understands; never for a file that is there."""
    scheme, separator, _ = uri.partition("://")
    return bool(separator) and scheme.lower() not in _LOCAL and not os.path.lexists(uri)


def joined(root: str, *names: str) -> str:
    """A place below another, of whichever kind that is."""
    return (
        posixpath.join(root.rstrip("/"), *names) if is_remote(root) else os.path.join(root, *names)
    )


def open_store(uri: str) -> tuple[Any, str]:
    """The file system that an address belongs to, and the path in it.

    Raises ConfigError if there is none of that kind, or its library is not installed.
    """
    scheme = uri.partition("://")[0].lower()
    try:
        import fsspec

        options: dict[str, Any] = {"use_listings_cache": False} if scheme != "memory" else {}
        if scheme in (
            "s3",
            "s3a",
        ):  # `again` and s3fs try again: a third time over is once too often
            options["config_kwargs"] = {"retries": {"max_attempts": 0}}
        return fsspec.core.url_to_fs(uri, **options)
    except ImportError as error:
        raise ConfigError(
            f"{uri}: {scheme}:// needs a library that is not installed ({_first_line(error)});"
            " pip install 'roadmask[remote]'"
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"{uri}: there is no storage of the kind {scheme}://; give s3://, gs://, http(s)://, a"
            " folder, or what else fsspec has"
        ) from error
    except Exception as error:  # each library has errors of its own
        raise explained(uri, error) from error


def describe(uri: str) -> Entry:
    """What the place says of a file. Raises StorageError or SourceNotFoundError."""
    store, path = open_store(uri)
    return entry_of(uri, again(uri, lambda: store.info(path)))


def entry_of(uri: str, info: dict[str, Any]) -> Entry:
    """An entry from fsspec's words for it."""
    size = info.get("size")
    stamp = next((info[key] for key in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "created")
                  if info.get(key)), "")  # fmt: skip
    return Entry(uri, size, f"{size}-{stamp}".replace('"', "") if stamp or size is not None else "")


def fetch(uri: str, target: Path) -> None:
    """Bring a file here, whole, unless it is here already; a piece that fails is asked for again.

    What was fetched before this process began, all or a part, counts if the file is still the same there.

    Raises StorageError, SourceNotFoundError or OutputError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    unlock = lock_folder(
        target.parent, _PATIENCE_SECONDS
    )  # another source of this machine may want it
    try:
        if target.exists() and _fetched_version(target) == describe(uri).version != "":
            return
        for _ in range(TRIES):
            entry = describe(uri)
            _fetch_pieces(entry, target)
            if describe(uri).version == entry.version:
                os.replace(_part(target), target)
                # The file comes first: a crash in between costs a fetch, and vouches for nothing older.
                os.replace(_part(target).with_suffix(".version"), _whole_mark(target))
                return
            _part(target).unlink(missing_ok=True)
        raise UnreachableError(f"{uri}: it changes while it is fetched: wait until it is written")
    finally:
        unlock()


def _fetch_pieces(entry: Entry, target: Path) -> None:
    store, path = open_store(entry.uri)
    part, version = _part(target), _part(target).with_suffix(".version")
    if not version.exists() or version.read_text() != entry.version or not entry.version:
        part.unlink(missing_ok=True)
        version.write_text(entry.version)
    if entry.size is None:
        again(entry.uri, lambda: store.get_file(path, str(part)))
        return
    with part.open("ab") as file:
        while (start := file.tell()) < entry.size:
            stop = min(start + PIECE_BYTES, entry.size)
            piece = again(entry.uri, lambda: _piece(store, entry, path, start, stop))  # noqa: B023
            file.write(piece)
            file.flush()


def _piece(store: Any, entry: Entry, path: str, start: int, stop: int) -> bytes:
    data: bytes = store.cat_file(path, start=start, end=stop)
    if len(data) == entry.size and len(data) > stop - start:  # a server that knows no ranges
        data = data[start:stop]
    if len(data) != stop - start:
        raise UnreachableError(
            f"{entry.uri}: broke off: bytes {start} to {stop} were asked for, {len(data)} came"
        )
    return data


def put(file: Path, uri: str) -> None:
    """Send a file; under its name there it is whole or not there. Raises StorageError."""
    size = file.stat().st_size

    def send(store: Any, path: str) -> None:
        store.put_file(str(file), path)
        try:
            there = store.info(path)["size"]
        except FileNotFoundError:
            there = 0
        if there != size:
            raise UnreachableError(f"{uri}: {there} of {size} bytes arrived")

    _whole(uri, send)


def write(uri: str, data: bytes) -> None:
    """Write a small file whole. Raises StorageError."""
    _whole(uri, lambda store, path: store.pipe_file(path, data))


def _whole(uri: str, send: Callable[[Any, str], None]) -> None:
    store, path = open_store(uri)
    if uri.partition("://")[0].lower() in _OBJECT_STORES:
        try:
            again(uri, lambda: send(store, path))
        except SourceNotFoundError as error:
            raise StorageError(f"{uri}: there is no such bucket") from error
        return
    parent, name = posixpath.split(path)
    part = posixpath.join(parent, f".{name}.part")

    def send_and_name() -> None:
        store.makedirs(parent, exist_ok=True)
        send(store, part)
        store.mv(part, path)

    again(uri, send_and_name)


def read(uri: str) -> bytes | None:
    """A small file's content, None if there is none. Raises StorageError."""
    store, path = open_store(uri)
    try:
        data: bytes = again(uri, lambda: store.cat_file(path))
    except SourceNotFoundError:
        return None
    return data


def remove(uri: str) -> None:
    """Remove a file; it may be gone already. Raises StorageError."""
    store, path = open_store(uri)
    with suppress(SourceNotFoundError):
        again(uri, lambda: store.rm_file(path))


def again(uri: str, action: Callable[[], Result], tries: int = TRIES) -> Result:
    """Do something at a place; once more after a pause where the error may pass.

    Raises StorageError, CredentialsError, UnreachableError or SourceNotFoundError.
    """
    for number in range(tries):
        try:
            with errors_of(uri):
                return action()
        except StorageError as error:
            told = _asked_again(uri, error)
            if told is not error:
                raise told from error
            if not error.passing or number == tries - 1:
                raise
        time.sleep(min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**number))
    raise AssertionError("unreachable")


def _asked_again(uri: str, error: StorageError) -> PipelineError:
    """S3 refuses a look at an object without a word; a list it refuses with the reason."""
    if not uri.startswith(("s3://", "s3a://")) or not any(w in _words(error) for w in _UNSAID):
        return error
    store, path = open_store(uri)
    try:
        store.call_s3("list_objects_v2", Bucket=store.split_path(path)[0], MaxKeys=1)
    except Exception as reason:  # each library has errors of its own
        return explained(uri, reason)
    return error


@contextmanager
def errors_of(uri: str) -> Iterator[None]:
    """Turn what fsspec and the libraries under it raise into one line that names the place."""
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:  # each library has errors of its own
        raise explained(uri, error) from error


def explained(uri: str, error: BaseException) -> PipelineError:
    """The error of ours that says what a library's error means."""
    words, text = _words(error), _first_line(error)

    def told(*names: str) -> bool:
        return any(name in words for name in names)

    meanings: tuple[tuple[bool, type[PipelineError], str], ...] = (
        (told(*_EXPIRED), CredentialsError, "the credentials have expired: renew them and run again"),
        (told(*_REFUSED), CredentialsError, f"the credentials are missing or wrong: {text}"),
        (told("NoSuchBucket"), StorageError, "there is no such bucket"),
        (isinstance(error, FileNotFoundError), SourceNotFoundError, "there is nothing of that name"),
        (isinstance(error, PermissionError), StorageError, f"access is denied: {text}"),
        (told(*_UNREACHABLE), UnreachableError, f"cannot be reached: {text}"),
        (isinstance(error, OSError | EOFError) or told("Timeout", "Payload"), UnreachableError,
         f"broke off: {text}"),
    )  # fmt: skip
    for is_it, kind, meaning in meanings:
        if is_it:
            return kind(f"{uri}: {meaning}")
    return StorageError(f"{uri}: {type(error).__name__}: {text}")


def _words(error: BaseException | None) -> str:
    """Names and texts of an error and of those it came from."""
    found: list[str] = []
    while error is not None and len(found) < 20:
        found += [type(error).__name__, str(error)]
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            found.append(str(response.get("Error", {}).get("Code", "")))
        error = error.__cause__ or error.__context__
    return " ".join(found)


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _part(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def _whole_mark(target: Path) -> Path:
    """What holds the version of a file that was fetched whole."""
    return target.with_name(f".{target.name}.whole")


def _fetched_version(target: Path) -> str:
    mark = _whole_mark(target)
    return mark.read_text() if mark.exists() else ""
