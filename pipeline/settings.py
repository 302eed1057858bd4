"""The one module that reads the environment."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """Where compiled networks are kept: `ROADMASK_CACHE`, else the user's cache folder."""
    given = os.environ.get("ROADMASK_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "roadmask"


def available_cores() -> int:
    """CPU cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_nvidia_driver() -> bool:
    """Whether an NVIDIA driver is loaded; cheap, where asking torch costs seconds of import."""
    return os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/dxg") or os.name == "nt"


def cpu_has_amx() -> bool:
    """Whether the CPU multiplies bfloat16 matrices in tiles (Intel AMX); False where unknown."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def counting_seconds() -> float:
    """What a frame costs the engine that counts, by the clock: `ROADMASK_COUNTING_MS`, else nothing."""
    return float(os.environ.get("ROADMASK_COUNTING_MS") or 0) / 1000


def scratch_folder() -> Path:
    """Where what is fetched from afar, and what goes there, lies meanwhile: `ROADMASK_SCRATCH`, else the
    system's folder for such things."""
    return Path(os.environ.get("ROADMASK_SCRATCH") or tempfile.gettempdir()) / "roadmask-scratch"
