"""The versions that a result depends on."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str]:
    """Versions of what a result depends on, from package metadata: nothing is imported."""
    # Not by an import: the package itself imports what stands above all modules.
    own = vars(sys.modules[__name__.partition(".")[0]])["__version__"]
    found = {"roadmask": own, "python": platform.python_version()}
    for name in ("av", "numpy", "opencv-python-headless", "openvino", "ray", "torch"):
        found[name] = _version(name) or "not installed"
    for name in ("torch-tensorrt", "torch-tensorrt-rtx"):  # few have it
        if (there := _version(name)) is not None:
            found[name] = there
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
