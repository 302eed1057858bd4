"""The networks: recurrent segmenters, their training, their export and the shipped weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.registry import load

__all__ = ["load"]


def __getattr__(name: str) -> object:
    # torch takes seconds to import; a specification alone must not cost that.
    if name == "load":
        from models.registry import load

        return load
    raise AttributeError(f"module 'models' has no attribute {name!r}")
