"""From what a user names on the command line to the streams of a run.

A source is a video file, a folder of videos or of images, an image, a recorded session, a glob or an http(s)
URL.
Nothing is opened here; that a file can be decoded is for the decoder to find out.
"""

from __future__ import annotations

import glob
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from pipeline.errors import ConfigError, PipelineError, SourceNotFoundError
from pipeline.secrecy import split_url

_VIDEO = """3g2 3gp asf avi divx dv flv h264 h265 264 265 hevc ivf m1v m2t m2ts m2v m4v mjpeg mjpg
    mkv mov mp4 mpeg mpg mts mxf nut ogv ts vob webm wmv y4m"""
_IMAGE = "avif bmp dpx exr jfif jp2 jpe jpeg jpg pbm pgm png pnm ppm tga tif tiff webp"
VIDEO_EXTENSIONS = frozenset(f".{name}" for name in _VIDEO.split())
IMAGE_EXTENSIONS = frozenset(f".{name}" for name in _IMAGE.split())
# 255 bytes is what file systems allow for a name; leave room for what a sink appends to it.
_LONGEST_ID_BYTES = 180
_SUPPORTED = "supported are video files, images, folders, sessions, globs and http(s) URLs of files"
# Of a recorded session (pipeline/SESSION.md).
SESSION_FILE, PACKETS = "session.json", "packets"
LOG_SUFFIX, MEDIA_SUFFIX, SEAL_SUFFIX = ".log", ".mkv", ".json"


@dataclass(frozen=True)
class Source:
    """One stream of a run.

    Attributes:
        stream_id: unique within the run, and safe as the name of a folder, or of one in another (`a/b`).
        uri: path or URL of the video; for images the folder, or the one image; of a session the folder of
            one camera.
        kind: "video", "images" or "session".
        files: for images and sessions, their paths in order; empty for a video.
    """

    stream_id: str
    uri: str
    kind: Literal["video", "images", "session"] = "video"
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in ("video", "images", "session"):
            raise ValueError(f"kind must be 'video', 'images' or 'session', got {self.kind!r}")
        if (self.kind != "video") != bool(self.files):
            raise ValueError(f"only a video has no list of files, got {self.kind} {self.files}")
        if any(part != safe_name(part) for part in self.stream_id.split("/")):
            raise ValueError(f"stream_id must be safe as a folder's name, got {self.stream_id!r}")


@dataclass(frozen=True)
class Expansion:
    """What a command line names.

    Attributes:
        sources: the streams, in the order they were named, each file once.
        failures: what was named and could not be used, with the reason.
    """

    sources: tuple[Source, ...]
    failures: tuple[tuple[str, PipelineError], ...] = ()


def expand(sources: Sequence[str]) -> Expansion:
    """Turns what a user named into streams. One bad source does not stop the others.

    - A video file or an http(s) URL is a stream; its id is the file's stem.
    - A folder is searched, not recursively, in natural order (`2.mp4` before `10.mp4`). Videos in
      it are a stream each. Without any, its images are one stream named after the folder. With
      both, the videos win: the images beside recordings are covers and previews.
    - A folder that `roadmask record` or `live --record` made is a stream for each camera, named
      `session/camera`.
    - A glob (`*`, `?`, `[...]`, `**` for any depth) takes the videos and folders it matches; the
      images it matches are one stream a folder. A file of that very name comes before the pattern.

    Ids that collide get the name of the folder before them (`a_clip`, `b_clip`), or the extension
    behind (`clip_mkv`), or a number.
    """
    found: list[Source] = []
    failures: list[tuple[str, PipelineError]] = []
    for text in sources:
        try:
            found.extend(_expand_one(text))
        except PipelineError as error:
            failures.append((text, error))
    return Expansion(tuple(_with_unique_ids(_once(found))), tuple(failures))


def inside_its_output(source: Source, out: Path) -> bool:
    """Whether what a run writes for a source would lie beside, or in place of, the source itself.

    That is where `out / stream_id`, or the folder of label images in it, is the folder that holds
    one of the source's files, by whatever name or link; never for a URL.

    Args:
        source: the stream.
        out: folder that gets one folder a source; need not be there.
    """
    if "://" in source.uri and not source.files:
        return False
    folder = (out / source.stream_id).resolve()  # `x/..` too, before there is an x
    written = [folder, folder / "labels"]
    files = source.files or (source.uri,)
    held = {os.path.dirname(os.path.abspath(file)) for file in files}
    held |= {os.path.dirname(os.path.realpath(file)) for file in files}
    # A recorded camera's labels lie beside its packets.
    held |= {os.path.dirname(holder) for holder in held if os.path.basename(holder) == PACKETS}
    return any(_same_folder(folder, holder) for folder in written for holder in held)


def is_session(folder: str) -> bool:
    """Whether a folder is a recorded session, so that each of its cameras is a source."""
    return os.path.isfile(os.path.join(folder, SESSION_FILE)) and bool(_cameras(folder))


def _cameras(folder: str) -> list[str]:
    """The folders of a session's cameras, in order; none if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    packets = {name: os.path.join(folder, name, PACKETS) for name in sorted(names, key=_name_key)}
    return [
        name for name, path in packets.items() if os.path.isdir(path) and not os.path.islink(path)
    ]


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sort key that orders numbers inside names by value, and ignores case."""
    parts = re.split(r"([0-9]+)", text.casefold())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def safe_name(text: str) -> str:
    """The text as the name of one folder: never empty, a path, hidden or reserved."""
    name = unicodedata.normalize("NFC", text)
    name = re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|]+', "_", name)
    name = "".join(c for c in name if unicodedata.category(c) not in ("Cs", "Cc", "Cf"))
    name = unicodedata.normalize("NFC", name)  # a joiner may have stood between two that make one
    name = name.encode()[:_LONGEST_ID_BYTES].decode(errors="ignore").strip(" .")
    if re.fullmatch(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", name):
        name = f"_{name}"
    return name or "stream"


def _expand_one(text: str) -> list[Source]:
    if not text.strip():
        raise SourceNotFoundError("a source is empty: expected the path of a video, folder or glob")
    scheme = text.partition("://")[0].lower() if "://" in text else ""
    if scheme in ("http", "https"):
        return [_video(text, unquote(split_url(text).path))]
    if scheme == "file":
        return _expand_path(unquote(split_url(text).path))
    if scheme and not os.path.lexists(text):
        raise ConfigError(f"{text}: sources of the kind {scheme}:// cannot be run; {_SUPPORTED}")
    if re.fullmatch(r"/dev/video[0-9]+", text):
        raise ConfigError(f"{text}: a camera cannot be run, it has no end; {_SUPPORTED}")
    return _expand_path(text)


def _expand_path(text: str) -> list[Source]:
    path = os.path.expanduser(text) if text.startswith("~") else text
    if os.path.isdir(path):
        return _expand_folder(path)
    if os.path.exists(path):
        return _expand_files([path])
    if glob.has_magic(path):
        return _expand_glob(path)
    raise SourceNotFoundError(f"{text}: no such file or folder{_nearby(path)}")


def _expand_folder(folder: str) -> list[Source]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_file()]
    except OSError as error:
        raise SourceNotFoundError(f"{folder}: cannot be listed: {error.strerror}") from error
    if SESSION_FILE in names and (cameras := _cameras(folder)):
        return _session(folder, cameras)
    shown = [name for name in names if not name.startswith(".")]
    files = [os.path.join(folder, name) for name in sorted(shown, key=_name_key)]
    videos = [file for file in files if _extension(file) in VIDEO_EXTENSIONS]
    chosen = videos or [file for file in files if _extension(file) in IMAGE_EXTENSIONS]
    if not chosen:
        held = f"none of its {len(names)} files is one" if names else "it holds no file"
        expected = "expected a folder of videos (.mp4, .mkv, ...) or images (.png, .jpg, ...)"
        raise SourceNotFoundError(f"{folder}: {expected}, {held}")
    return _expand_files(chosen) if videos else [_images(folder, chosen)]


def _expand_glob(pattern: str) -> list[Source]:
    matches = sorted(glob.glob(pattern, recursive=True), key=_path_key)
    known = VIDEO_EXTENSIONS | IMAGE_EXTENSIONS
    files = [match for match in matches if _extension(match) in known and os.path.isfile(match)]
    found = _expand_files(files)
    # `**` also names every folder on the way; those would bring the same files a second time.
    folders = [] if "**" in pattern else [match for match in matches if os.path.isdir(match)]
    for folder in folders:
        try:
            found.extend(_expand_folder(folder))
        except SourceNotFoundError:
            continue  # a folder without media is no error where a pattern happens to match it
    if not found:
        what = f"none of the {len(matches)} it matches is video or image" if matches else "no match"
        raise SourceNotFoundError(f"{pattern}: {what}; expected a glob such as 'drive/*.mp4'")
    return found


def _expand_files(paths: Iterable[str]) -> list[Source]:
    """A stream for each video, and one for each folder's images, in the order they first appear."""
    found: list[Source | list[str]] = []
    images: dict[str, list[str]] = {}
    for path in paths:
        if _extension(path) not in IMAGE_EXTENSIONS:
            found.append(_video(path, path))
            continue
        folder = os.path.dirname(path)
        if folder not in images:
            images[folder] = []
            found.append(images[folder])
        images[folder].append(path)
    return [item if isinstance(item, Source) else _images(_common(item), item) for item in found]


def _common(files: Sequence[str]) -> str:
    return files[0] if len(files) == 1 else os.path.dirname(files[0]) or "."


def _video(uri: str, path: str) -> Source:
    return Source(safe_name(Path(path).stem), uri)


def _images(uri: str, files: Sequence[str]) -> Source:
    name = Path(uri).stem if os.path.isfile(uri) else Path(uri).resolve().name
    return Source(safe_name(name), uri, "images", tuple(files))


def _session(folder: str, cameras: list[str]) -> list[Source]:
    """A stream for each camera of a recorded session.

    Its files are what tells its content: of a closed segment the seal, which holds the others' checksums.
    """
    found = []
    for name in cameras:
        packets = os.path.join(folder, name, PACKETS)
        try:
            names = sorted(os.listdir(packets))
        except OSError as error:
            raise SourceNotFoundError(f"{packets}: cannot be listed: {error.strerror}") from error
        closed = {file.removesuffix(SEAL_SUFFIX) for file in names if file.endswith(SEAL_SUFFIX)}
        files = [
            os.path.join(packets, file) for file in names
            if file.endswith(SEAL_SUFFIX)
            or (file.endswith((LOG_SUFFIX, MEDIA_SUFFIX)) and file[:-4] not in closed)
        ]  # fmt: skip
        if files:
            stream_id = f"{safe_name(Path(folder).resolve().name)}/{safe_name(name)}"
            found.append(Source(stream_id, os.path.join(folder, name), "session", tuple(files)))
    if not found:
        raise SourceNotFoundError(f"{folder}: a session without packets; expected a recording")
    return found


def _once(sources: Iterable[Source]) -> Iterator[Source]:
    seen: set[tuple[str, ...]] = set()
    for source in sources:
        files = source.files or (source.uri,)
        key = files if "://" in source.uri else tuple(map(os.path.realpath, files))
        if key not in seen:
            seen.add(key)
            yield source


def _with_unique_ids(sources: Iterable[Source]) -> list[Source]:
    """Makes ids differ by more than case, so that they stay apart on every file system."""
    sources = list(sources)
    same: dict[str, list[Source]] = {}
    for source in sources:
        same.setdefault(source.stream_id.casefold(), []).append(source)
    taken: set[str] = {name for name, rivals in same.items() if len(rivals) == 1}
    renamed = []
    for source in sources:
        name = source.stream_id
        rivals = same[name.casefold()]
        if len(rivals) > 1:
            name = next(n for n in _alternatives(source, rivals) if n.casefold() not in taken)
            taken.add(name.casefold())
        renamed.append(Source(name, source.uri, source.kind, source.files))
    return renamed


def _alternatives(source: Source, rivals: Sequence[Source]) -> Iterator[str]:
    """Names for a source whose id others have too, the most telling first."""
    name, folder = source.stream_id, _folder_name(source)
    folders = {_folder_name(rival) for rival in rivals}
    extensions = {_extension(rival.uri) for rival in rivals}
    extension = _extension(source.uri).lstrip(".")
    if len(extensions) == len(rivals):
        yield safe_name(f"{name}_{extension}") if extension else name
    longer = name
    if len(folders) > 1:
        longer = f"{folder}_{name}"
        yield safe_name(longer)
    if extension and len(extensions) > 1:
        yield safe_name(f"{longer}_{extension}")
    for number in range(1, len(rivals) + 2):
        yield safe_name(f"{name}_{number}")
    for number in range(len(rivals) + 2, 10**9):
        yield safe_name(f"{name[:100]}_{number}")


def _folder_name(source: Source) -> str:
    if "://" in source.uri:
        return safe_name(urlsplit(source.uri).hostname or "")
    return Path(source.uri).resolve().parent.name


def _same_folder(one: Path, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them is not there, so they are not the same
        return False


def _nearby(path: str) -> str:
    """A hint for a path that names nothing: what does exist of it."""
    parent = os.path.dirname(path) or "."
    if not os.path.isdir(parent):
        return f" (nor is there a folder {parent})"
    stem = Path(path).stem.casefold()
    try:
        like = [name for name in os.listdir(parent) if Path(name).stem.casefold() == stem]
    except OSError as error:
        return f" (the folder {parent} cannot be listed: {error.strerror})"
    return f"; did you mean {os.path.join(os.path.dirname(path), min(like))}?" if like else ""


def _extension(path: str) -> str:
    return os.path.splitext(urlsplit(path).path if "://" in path else path)[1].lower()


def _name_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    return natural_key(name), name


def _path_key(path: str) -> list[tuple[list[tuple[int, int, str]], str]]:
    return [_name_key(part) for part in Path(path).parts]
