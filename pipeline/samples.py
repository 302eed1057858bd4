"""Sample footage: render clips with exact labels, or download real ones listed in a catalogue."""

from __future__ import annotations

import hashlib
import http.client
import importlib
import importlib.util
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from pipeline.errors import ConfigError, OutputError, PipelineError

SAMPLES_FOLDER = Path(__file__).resolve().parents[1] / "sample_videos"
CATALOGUE = SAMPLES_FOLDER / "catalogue.json"
TIMEOUT_S = 20.0
ATTEMPTS = 4
BLOCK_BYTES = 1 << 16
Progress = Callable[[int, int], None]


class DownloadError(PipelineError, OSError):
    """A clip could not be fetched, or what came is not what the catalogue promises."""


class _InterruptedTransferError(Exception):
    """A transfer broke off in a way that another attempt may mend."""


@dataclass(frozen=True)
class CatalogueEntry:
    """One downloadable clip; ``name`` is its file name, ``sha256`` in lower-case hex."""

    name: str
    url: str
    licence: str
    attribution: str
    size_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not self.name or self.name != Path(self.name).name:
            raise ConfigError(f"catalogue: name must be a plain file name, got {self.name!r}")
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise ConfigError(f"catalogue: {self.name}: url must be http(s), got {self.url!r}")
        if self.size_bytes <= 0:
            raise ConfigError(
                f"catalogue: {self.name}: size_bytes must be > 0, got {self.size_bytes}"
            )
        if len(self.sha256) != 64 or set(self.sha256) - set("0123456789abcdef"):
            raise ConfigError(
                f"catalogue: {self.name}: sha256 must be 64 lower-case hex digits, "
                f"got {self.sha256!r}"
            )


def render(
    out: Path,
    seed: int,
    frames: int,
    size_hw: tuple[int, int],
    fps: float,
    progress: Progress | None = None,
    *,
    name: str | None = None,
    look: str | None = None,
) -> list[Path]:
    """Render one clip into the folder ``out``: NAME.mp4 and NAME_labels.mkv, returned in order.

    ``name`` defaults to ``drive_SEED``; ``look`` forces a light and weather (clear, low_sun,
    bright, overcast, dusk, rain), otherwise the seed draws it. ``progress`` is called with
    (frames done, frames). Raises PipelineError where the renderer, moderngl or EGL is missing,
    ConfigError for a size or count out of range, OutputError where ``out`` can't be written.
    """
    if any(n % 2 for n in size_hw):
        raise ConfigError(
            f"size must be even both ways for 4:2:0 video, got {size_hw[0]}x{size_hw[1]}"
        )
    renderer = _load_renderer()
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        target = out / (name or f"drive_{seed}")
        try:
            paths: list[Path] = renderer.write_clip(
                target, seed, frames, size_hw, fps, look=look, progress=progress
            )
        except ValueError as error:
            raise ConfigError(str(error)) from error
    return paths


def download(
    out: Path,
    names: list[str] | None = None,
    catalogue: Path | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Fetch clips of the catalogue into the folder ``out``; ``names`` None or empty means all.

    A clip already there with the right SHA-256 is left alone; a broken transfer is resumed with
    an HTTP range, now or in a later call. Each clip gets its name only after its hash was checked,
    beside NAME.licence.txt. ``progress`` is called with (bytes done, bytes of the clip).
    Raises ConfigError for an unknown name or a bad catalogue, DownloadError where the network or
    the server fails or the content is wrong, OutputError where ``out`` can't be written.
    """
    entries = read_catalogue(CATALOGUE if catalogue is None else catalogue)
    wanted = _choose(entries, names)
    paths = []
    for entry in wanted:
        with _writing(out):
            out.mkdir(parents=True, exist_ok=True)
            paths.append(_fetch(entry, out, progress))
    return paths


def read_catalogue(path: Path) -> list[CatalogueEntry]:
    """The entries of a catalogue file. Raises ConfigError where it is missing or malformed."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"no catalogue of sample clips at {path}: it comes with the source checkout, not with "
            "an installed package"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable catalogue: {error}") from error
    try:
        return [CatalogueEntry(**row) for row in rows]
    except TypeError as error:
        raise ConfigError(f"{path}: wrong fields in a catalogue entry: {error}") from error


def _load_renderer() -> ModuleType:
    """The checkout's ``sample_videos.render``, with EGL known to work."""
    package = _load_package()
    try:
        renderer = importlib.import_module(f"{package.__name__}.render")
        gpu = importlib.import_module(f"{package.__name__}.gpu")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("moderngl", "glcontext"):
            raise
        raise PipelineError(
            'rendering needs moderngl: pip install "roadmask[render]" '
            "(in the source checkout: pip install -e '.[render]')"
        ) from error
    try:
        gpu.shared_context()
    except Exception as error:  # moderngl raises plain Exception for a missing or refusing driver
        raise PipelineError(
            "rendering needs EGL with OpenGL 3.3; on Debian or Ubuntu: "
            f"apt-get install libegl1 libgl1 libgl1-mesa-dri ({error})"
        ) from error
    return renderer


def _load_package() -> ModuleType:
    """Import the checkout's folder ``sample_videos`` as a package of that name."""
    start = SAMPLES_FOLDER / "__init__.py"
    loaded = sys.modules.get("sample_videos")
    if loaded is not None and Path(loaded.__file__ or "").resolve() == start:
        return loaded
    if not start.is_file():
        raise PipelineError(
            f"the renderer's source is not at {SAMPLES_FOLDER}: it comes with the source checkout "
            "(git clone, then pip install -e '.[render]'), not with an installed package"
        )
    spec = importlib.util.spec_from_file_location(
        "sample_videos", start, submodule_search_locations=[str(SAMPLES_FOLDER)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["sample_videos"] = package
    spec.loader.exec_module(package)
    return package


def _choose(entries: list[CatalogueEntry], names: list[str] | None) -> list[CatalogueEntry]:
    known = {entry.name: entry for entry in entries}
    for entry in entries:  # a clip may be named without its suffix
        known.setdefault(Path(entry.name).stem, entry)
    for name in names or ():
        if name not in known:
            listed = ", ".join(entry.name for entry in entries) or "none"
            raise ConfigError(f"no sample clip named {name!r}; the catalogue has: {listed}")
    return [known[name] for name in names] if names else entries


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turn the file system's refusals into one clear error."""
    try:
        yield
    except PipelineError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{out}: cannot write there: {reason}") from error


def _fetch(entry: CatalogueEntry, out: Path, progress: Progress | None) -> Path:
    target, part = out / entry.name, out / f".{entry.name}.part"
    if target.is_file() and _sha256(target) == entry.sha256:
        return target
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _transfer(entry, part, progress)
            break
        except _InterruptedTransferError as error:
            if attempt == ATTEMPTS:
                raise DownloadError(
                    f"{entry.name}: download from {entry.url} failed {ATTEMPTS} times, "
                    f"last: {error}"
                    " (what came is kept; the same command resumes it)"
                ) from error
            time.sleep(0.25 * 2**attempt)
    got = _sha256(part)
    if got != entry.sha256:
        part.unlink()
        raise DownloadError(
            f"{entry.name}: wrong content from {entry.url}: "
            f"SHA-256 must be {entry.sha256}, got {got}"
        )
    os.replace(part, target)
    notice = f"{entry.name}\nfrom {entry.url}\n{entry.attribution}\nLicence: {entry.licence}\n"
    (out / f"{entry.name}.licence.txt").write_text(notice, encoding="utf-8")
    return target


def _transfer(entry: CatalogueEntry, part: Path, progress: Progress | None) -> None:
    """Bring ``part`` to the clip's full size, going on from what it already has."""
    have = part.stat().st_size if part.exists() else 0
    if have > entry.size_bytes:
        part.unlink()
        have = 0
    if have == entry.size_bytes:
        return
    request = urllib.request.Request(entry.url, headers={"User-Agent": "roadmask-samples"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with _open(entry, request) as response:
        resumed = response.status == 206 and _range_start(response) == have
        if response.status == 206 and not resumed:
            part.unlink()
            raise _InterruptedTransferError("the server sent another range than asked for")
        with part.open("ab" if resumed else "wb") as file:
            _copy(entry, response, file, have if resumed else 0, progress)


def _open(entry: CatalogueEntry, request: urllib.request.Request) -> Any:
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code >= 500 or error.code in (408, 429):
            raise _InterruptedTransferError(f"HTTP {error.code} {error.reason}") from error
        raise DownloadError(
            f"{entry.name}: {entry.url} answered HTTP {error.code} {error.reason}"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise _InterruptedTransferError(
            f"no connection ({reason}); is this machine online?"
        ) from error


def _copy(
    entry: CatalogueEntry, response: Any, file: Any, done: int, progress: Progress | None
) -> None:
    while True:
        try:
            block = response.read(BLOCK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise _InterruptedTransferError(f"broke off after {done} bytes ({error})") from error
        if not block:
            break
        file.write(block)
        done += len(block)
        if progress is not None:
            progress(min(done, entry.size_bytes), entry.size_bytes)
        if done > entry.size_bytes:
            break
    if done < entry.size_bytes:
        raise _InterruptedTransferError(f"broke off after {done} of {entry.size_bytes} bytes")


def _range_start(response: Any) -> int | None:
    """The first byte of a partial answer, from "Content-Range: bytes START-END/TOTAL"."""
    value = (response.headers.get("Content-Range") or "").removeprefix("bytes ")
    start = value.split("-")[0]
    return int(start) if start.isdigit() else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
