"""The sources of a job, one after the other: a hundred thousand of them need not be in memory at once.

A source's name is its path below what the pattern holds fixed, so it stays the same whatever else comes to
lie there: `bucket/fleet/**/*.mp4` makes of `bucket/fleet/car7/monday.mp4` the source `car7/monday`.

    python -m pipeline.cluster.listing s3://bucket/fleet/**/*.mp4  # a line of JSON a source

Buckets are listed by such a process of their own: their libraries keep all of a folder in memory.
"""

from __future__ import annotations

import fnmatch
import json
import os
import posixpath
import re
import subprocess
import sys
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from pipeline.cluster.storage import (
    CredentialsError,
    Entry,
    StorageError,
    again,
    entry_of,
    is_remote,
    joined,
    open_store,
)
from pipeline.errors import ConfigError, PipelineError, SourceNotFoundError
from pipeline.sources import (
    IMAGE_EXTENSIONS,
    VIDEO_EXTENSIONS,
    Source,
    expand,
    is_session,
    natural_key,
    safe_name,
)

_MAGIC = re.compile(r"[*?[]")
_EXPECTED = "expected videos (.mp4, .mkv, ...) or images (.png, .jpg, ...)"


@dataclass(frozen=True)
class Listed:
    """A source as it was found.

    Attributes:
        source: the stream; its id is a path of safe names.
        root: what it was found under; who sees that, sees it.
        size: bytes, 0 where unknown.
        version: changes when its content does; empty where nothing tells.
    """

    source: Source
    root: str
    size: int = 0
    version: str = ""


class Tree(Protocol):
    """Folders of files, by whole addresses."""

    def look(self, folder: str) -> tuple[list[Entry], list[str]]:
        """A folder's files and folders, in order. Raises PipelineError."""
        ...

    def place(self, folder: str) -> Hashable:
        """What tells a folder from all others, by whatever way it is reached."""
        ...


class LocalTree:
    """Folders of this machine, or that it sees."""

    def look(self, folder: str) -> tuple[list[Entry], list[str]]:
        files, folders = [], []
        try:
            with os.scandir(folder or ".") as entries:
                for entry in entries:
                    is_folder, is_file = _kind(entry)
                    if is_folder:
                        folders.append(entry.path)
                    elif is_file:
                        files.append(_local_entry(entry.path))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise SourceNotFoundError(f"{folder}: cannot be listed: {error.strerror}") from error
        except OSError as error:
            raise StorageError(f"{folder}: cannot be listed: {error.strerror}") from error
        return sorted(files, key=lambda file: _order(file.uri)), sorted(folders, key=_order)

    def place(self, folder: str) -> Hashable:
        try:
            facts = os.stat(folder or ".")
        except OSError:
            return folder  # who looks into it will say so
        return facts.st_dev, facts.st_ino


class RemoteTree:
    """Folders of a bucket or a server."""

    def __init__(self, uri: str) -> None:
        self._store, _ = open_store(uri)
        self._scheme = uri.partition("://")[0]

    def look(self, folder: str) -> tuple[list[Entry], list[str]]:
        path = self._store._strip_protocol(folder)
        found: list[dict[str, Any]] = again(folder, lambda: self._store.ls(path, detail=True))
        files, folders = [], []
        for info in found:
            uri = self._uri(info["name"])
            if info["type"] == "directory":
                folders.append(uri.rstrip("/"))
            elif not uri.endswith("/"):
                files.append(entry_of(uri, info))
        return sorted(files, key=lambda file: _order(file.uri)), sorted(folders, key=_order)

    def place(self, folder: str) -> Hashable:
        return folder

    def _uri(self, name: str) -> str:
        return name if "://" in name else f"{self._scheme}://{name.lstrip('/')}"


def listed(texts: Sequence[str]) -> Iterator[Listed | tuple[str, PipelineError]]:
    """The sources that a command line names, in order; what cannot be used, with the reason."""
    for text in texts:
        try:
            for found in _listed_elsewhere(text) if is_remote(text) else _listed_here(text):
                yield (text, found) if isinstance(found, PipelineError) else found
        except PipelineError as error:
            yield text, error


def _listed_here(text: str) -> Iterator[Listed | PipelineError]:
    path = os.path.expanduser(text.removeprefix("file://"))
    if os.path.isdir(path) and not is_session(path):
        yield from tree_sources(LocalTree(), path, ["*"], text)
    elif _MAGIC.search(path) and not os.path.exists(path):
        yield from tree_sources(LocalTree(), *_split_pattern(path), text)
    else:
        # A file, an image, a session, or an error that says what is wrong.
        expansion = expand([path])
        for _, error in expansion.failures:
            raise error
        for source in expansion.sources:
            entries = [_local_entry(file) for file in source.files or (source.uri,)]
            root = os.path.dirname(os.path.abspath(source.uri))
            yield Listed(_absolute(source), root, _size(entries), _version(entries))


def _listed_elsewhere(text: str) -> Iterator[Listed | PipelineError]:
    """List a bucket in a process of its own."""
    command = [sys.executable, "-m", "pipeline.cluster.listing", text]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            found = json.loads(line)
            if "error" in found:
                yield _error(found["error"], found["text"])
                continue
            source = found.pop("source")
            source["files"] = tuple(source["files"])
            yield Listed(Source(**source), **found)
    if process.returncode:
        raise ConfigError(f"{text}: cannot be listed: the process that did ended with an error")


def _error(kind: str, text: str) -> PipelineError:
    known = {cls.__name__: cls for cls in (SourceNotFoundError, ConfigError)}
    return known.get(kind, PipelineError)(text)


def remote_sources(text: str) -> Iterator[Listed | PipelineError]:
    """The sources that an address names, and why folders below it cannot be listed. Raises PipelineError."""
    tree = RemoteTree(text)
    # A question mark begins the query of a web address, and is no pattern there.
    web = urlsplit(text).scheme.lower() in ("http", "https")
    if re.search(r"[*\[]" if web else _MAGIC, text):
        yield from tree_sources(tree, *_split_pattern(text), text)
        return
    store, path = open_store(text)
    if not web and again(text, lambda: store.isdir(path)):
        yield from tree_sources(tree, text.rstrip("/"), ["*"], text)
        return
    entry = entry_of(text, again(text, lambda: store.info(path)))
    name = posixpath.basename(urlsplit(text).path)
    yield _video(entry, posixpath.dirname(text), unquote(name) if web else name)


def tree_sources(
    tree: Tree, root: str, parts: list[str], text: str
) -> Iterator[Listed | PipelineError]:
    """The sources below `root` that a pattern matches: each video, and each folder's images.

    A folder that cannot be listed gives its error instead, and the others are gone on with.

    Args:
        parts: the pattern's parts below the root; `**` is any depth.
        text: as the user gave it, for errors.

    Raises SourceNotFoundError if there is none.
    """
    count, names = 0, 0
    for files in _matching(tree, root, parts, frozenset()):
        if isinstance(files, PipelineError):
            count += 1  # that there is no match would be said on top
            yield files
            continue
        names += len(files)
        videos = [file for file in files if _extension(file.uri) in VIDEO_EXTENSIONS]
        images = [file for file in files if _extension(file.uri) in IMAGE_EXTENSIONS]
        if len(parts) == 1 and parts[0] == "*" and videos:
            images = []  # a folder of recordings: those are covers and previews
        for video in videos:
            count += 1
            yield _video(video, root, _below(root, video.uri))
        if images:
            count += 1
            yield _images(images, root)
    if not count:
        found = f"none of its {names} files is one" if names else "there is no match"
        raise SourceNotFoundError(f"{text}: {_EXPECTED}, {found}")


def _matching(
    tree: Tree, folder: str, parts: Sequence[str], above: frozenset[Hashable]
) -> Iterator[list[Entry] | PipelineError]:
    """The matching files, a folder at a time, and why folders inside it cannot be listed.

    Args:
        above: places of the folders that lead here.
    """
    head, rest = parts[0], parts[1:]
    if head == "**" and not rest:
        rest = ["*"]
    if head != "**" and rest and not _MAGIC.search(head):
        yield from _matching(tree, joined(folder, head), rest, above)
        return
    files, folders = tree.look(folder)
    above |= {tree.place(folder)}
    if not rest:
        yield [file for file in files if _matches(file.uri, head)]
    elif head == "**":
        yield from _matching_here(tree, files, folders, rest, above)
        for inner in folders:
            # A link to a folder that it lies in would lead round and round.
            if not _name(inner).startswith(".") and tree.place(inner) not in above:
                yield from _matching_inside(tree, inner, parts, above)
    else:
        for inner in folders:
            if _matches(inner, head):
                yield from _matching_inside(tree, inner, rest, above)


def _matching_here(
    tree: Tree,
    files: list[Entry],
    folders: list[str],
    parts: Sequence[str],
    above: frozenset[Hashable],
) -> Iterator[list[Entry] | PipelineError]:
    """As `_matching` in a folder that has been looked at."""
    head, rest = parts[0], parts[1:]
    if not rest:
        yield [file for file in files if _matches(file.uri, head)]
        return
    for inner in folders:
        if _matches(inner, head):
            yield from _matching_inside(tree, inner, rest, above)


def _matching_inside(
    tree: Tree, folder: str, parts: Sequence[str], above: frozenset[Hashable]
) -> Iterator[list[Entry] | PipelineError]:
    """As `_matching`, in a folder whose errors harm no other."""
    try:
        yield from _matching(tree, folder, parts, above)
    except SourceNotFoundError:
        return  # the pattern goes on with a name that is not there
    except StorageError as error:
        if error.passing or isinstance(error, CredentialsError):
            raise  # the others would fail the same way
        yield error


def _matches(uri: str, pattern: str) -> bool:
    name = _name(uri)
    hidden = name.startswith(".") and not pattern.startswith(".")
    return not hidden and fnmatch.fnmatchcase(name, pattern)


def _split_pattern(text: str) -> tuple[str, list[str]]:
    """The folder that a pattern holds fixed, and its parts below that."""
    start = text.index("://") + 3 if is_remote(text) else 0
    parts = text[start:].split("/")
    fixed = next(i for i, part in enumerate(parts) if _MAGIC.search(part))
    root = text[:start] + "/".join(parts[:fixed])
    return (root or ("/" if text.startswith("/") else ".")), parts[fixed:]


def _video(entry: Entry, root: str, below: str) -> Listed:
    name = _safe_path(posixpath.splitext(below)[0])
    return Listed(_absolute(Source(name, entry.uri)), _root(root), entry.size or 0, entry.version)


def _images(images: list[Entry], root: str) -> Listed:
    folder = posixpath.dirname(images[0].uri)
    name = _safe_path(_below(root, folder) or _name(_root(folder)))
    source = Source(name, folder, "images", tuple(image.uri for image in images))
    return Listed(_absolute(source), _root(root), _size(images), _version(images))


def _size(entries: Sequence[Entry]) -> int:
    return sum(entry.size or 0 for entry in entries)


def _version(entries: Sequence[Entry]) -> str:
    """The newest one's; of several, their number too, for one that is gone leaves no trace in that."""
    newest = max(entry.version for entry in entries)
    return newest if len(entries) == 1 else f"{len(entries)}-{newest}"


def _absolute(source: Source) -> Source:
    """The source as it is found from any folder: other machines' workers have their own."""
    if is_remote(source.uri):
        return source
    files = tuple(os.path.abspath(path) for path in source.files)
    return replace(source, uri=os.path.abspath(source.uri), files=files)


def _root(root: str) -> str:
    return root if is_remote(root) else os.path.abspath(root)


def _safe_path(text: str) -> str:
    first, *inner = [safe_name(part) for part in text.split("/") if part] or ["stream"]
    # `a/labels` would lie where the label images of `a` go.
    return "/".join([first, *(f"{part}_" if part == "labels" else part for part in inner)])


def _below(root: str, uri: str) -> str:
    inner = posixpath.relpath(uri, root) if not is_remote(root) else uri.removeprefix(root)
    return inner.strip("/").removeprefix("./") if inner != "." else ""


def _name(uri: str) -> str:
    return posixpath.basename(uri.rstrip("/"))


def _order(uri: str) -> tuple[list[tuple[int, int, str]], str]:
    return natural_key(_name(uri)), uri


def _extension(uri: str) -> str:
    return posixpath.splitext(urlsplit(uri).path if is_remote(uri) else uri)[1].lower()


def _kind(entry: os.DirEntry[str]) -> tuple[bool, bool]:
    """Whether it is a folder, and whether it is a file."""
    try:
        return entry.is_dir(), entry.is_file()
    except OSError:  # a link to itself, or to where we may not look: who opens it will say so
        return False, True


def _local_entry(path: str) -> Entry:
    try:
        facts = os.stat(path)
    except OSError:
        return Entry(path, None, "")  # who opens it will say so
    return Entry(path, facts.st_size, f"{facts.st_size}-{facts.st_mtime_ns}")


def main() -> None:
    """What a job's driver reads."""
    text = sys.argv[1]
    try:
        for found in remote_sources(text):
            told = _error_facts(found) if isinstance(found, PipelineError) else asdict(found)
            print(json.dumps(told))
    except PipelineError as error:
        print(json.dumps(_error_facts(error)))


def _error_facts(error: PipelineError) -> dict[str, str]:
    return {"error": type(error).__name__, "text": str(error)}


if __name__ == "__main__":
    main()
