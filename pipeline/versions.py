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
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
