"""`roadmask doctor`: what this machine can run, what it can't and why, and whether frames get labels."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.errors import PipelineError
from pipeline.options import FAILED
from pipeline.settings import available_cores, cache_folder

CODECS = ("h264", "hevc", "av1", "vp9", "mjpeg")
ENCODERS = ("libx264", "ffv1", "png")
LEAST_FREE_BYTES = 1 << 30

State = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        what: what was looked at.
        state: "ok"; "note": something optional is not there; "problem": runs will fail.
        text: what was found, and for a problem what to do.
    """

    what: str
    state: State
    text: str


Check = Callable[[], Iterator[Finding]]


def examine() -> Iterator[Finding]:
    """Look at everything a run needs, in its order. Each check stands alone: one that breaks is a finding."""
    for name, check in CHECKS.items():
        try:
            yield from check()
        except PipelineError as error:
            yield Finding(name, "problem", " ".join(str(error).split()))
        except ImportError as error:
            text = f"{error}: install Roadmask anew, pip install -e . in its folder"
            yield Finding(name, "problem", text)


def _packages() -> Iterator[Finding]:
    from pipeline.versions import versions

    found = versions()
    missing = [name for name, version in found.items() if version == "not installed"]
    text = ", ".join(f"{name} {version}" for name, version in found.items() if name not in missing)
    yield Finding("packages", "ok", text)
    for name in missing:
        if name == "openvino":
            text = (
                "openvino is not installed: the CPU engine is PyTorch in float32, many times slower"
            )
            yield Finding("packages", "note", text)
        elif name != "opencv-python-headless" or not _has_opencv():
            yield Finding("packages", "problem", f"{name} is not installed: pip install {name}")


def _has_opencv() -> bool:
    """The package with windows serves as well as the headless one."""
    from importlib.util import find_spec

    return find_spec("cv2") is not None


def _machine() -> Iterator[Finding]:
    text = f"{platform.system()} {platform.machine()}, {available_cores()} cores"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        held = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        text += f", {held / 1e9:.0f} GB of memory"
    yield Finding("machine", "ok", text)


def _engines() -> Iterator[Finding]:
    from pipeline.engines import ENGINES, choose_engine
    from pipeline.errors import EngineError

    for name in ENGINES:
        try:
            choice = choose_engine(name)
        except EngineError as error:
            yield Finding(f"engine {name}", "note", str(error))
        else:
            yield Finding(f"engine {name}", "ok", f"{choice.runtime}: {choice.reason}")


def _video() -> Iterator[Finding]:
    import av

    from pipeline.live.connection import has_protocol

    missing = [name for name in (*CODECS, *ENCODERS) if name not in av.codecs_available]
    libavcodec = ".".join(map(str, av.library_versions["libavcodec"]))
    if missing:
        text = f"PyAV's FFmpeg lacks {', '.join(missing)}: take the wheel on PyPI, pip install av"
        yield Finding("video", "problem", text)
    else:
        yield Finding("video", "ok", f"libavcodec {libavcodec} with {', '.join(CODECS)}")
    schemes = ("rtsp", "rtmp", "https", "udp", "srt")
    silent = [scheme for scheme in schemes if not has_protocol(scheme)]
    spoken = ", ".join(scheme for scheme in schemes if scheme not in silent)
    lacks = f"; PyAV's FFmpeg has no {', '.join(silent)}" if silent else ""
    yield Finding("cameras", "note" if silent else "ok", spoken + lacks)


def _cache() -> Iterator[Finding]:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        text = (
            f"cannot write to {folder}: {error.strerror or error}; every start converts the network"
            " anew. Set ROADMASK_CACHE to a folder that can be written to"
        )
        yield Finding("cache", "note", text)
        return
    if free < LEAST_FREE_BYTES:
        yield Finding("cache", "note", f"{folder}: only {free / 1e6:.0f} MB free")
    else:
        yield Finding("cache", "ok", f"{folder}, {free / 1e9:.0f} GB free")


def _shared_memory() -> Iterator[Finding]:
    """Ray puts objects there, where stages are actors of their own; else on disk, slowly."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return
    free = shutil.disk_usage(folder).free
    enough = free > LEAST_FREE_BYTES
    hint = "" if enough else "; --placement spread wants 1 GB (docker run --shm-size=2g)"
    yield Finding("shared memory", "ok" if enough else "note", f"{free / 1e9:.1f} GB free{hint}")


def _models() -> Iterator[Finding]:
    from models.spec import SpecError, find_model, shipped_models

    for name in shipped_models():
        try:
            files = find_model(name)
            yield Finding(f"model {name}", "ok", f"weights {files.weights_sha256()[:12]}")
        except (SpecError, OSError) as error:
            yield Finding(f"model {name}", "problem", f"{error}; install Roadmask anew")


def _one_frame() -> Iterator[Finding]:
    """The way of every frame, from an encoded video to labels."""
    from pipeline.run import segment

    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "grey.mp4"
        _write_grey(video)
        began = time.monotonic()
        labels = [batch.labels for batch in segment(video)]
        took_s = time.monotonic() - began
    frames = sum(len(batch) for batch in labels)
    if frames != 2:
        text = f"{frames} of 2 frames of a small video were labelled"
        yield Finding("a small video", "problem", text)
        return
    text = f"labelled in {took_s:.1f} s, starting up included"
    yield Finding("a small video", "ok", text)


def _write_grey(path: Path) -> None:
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        picture = np.full((180, 320, 3), 128, np.uint8)
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


CHECKS: dict[str, Check] = {
    "packages": _packages,
    "machine": _machine,
    "engines": _engines,
    "video": _video,
    "cache": _cache,
    "shared memory": _shared_memory,
    "models": _models,
    "a small video": _one_frame,
}


def check_machine(
    as_json: Annotated[
        bool, typer.Option("--json", help="A line of JSON for each finding instead.")
    ] = False,
) -> None:
    """Look at what a run needs on this machine; exits with 1 if something is wrong."""
    import json

    wrong = False
    for finding in examine():
        wrong |= finding.state == "problem"
        line = f"{finding.state:8} {finding.what:16} {finding.text}"
        print(json.dumps(asdict(finding)) if as_json else line, flush=True)
    if wrong:
        raise typer.Exit(FAILED)
