"""Frames in, masks out: streaming semantic segmentation of driving footage."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.run import segment

__all__ = ["__version__", "segment"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    # `roadmask --help` must answer at once, so nothing is imported before it is asked for.
    if name == "segment":
        from pipeline.run import segment

        return segment
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
