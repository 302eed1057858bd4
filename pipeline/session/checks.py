"""Checks of what stands in a session's files: whoever wrote them may have meant harm."""

from __future__ import annotations

import math
from typing import Any

MOST_EXTRADATA_BYTES = 1 << 18
MOST_PIXELS_A_SIDE = 16384
MOST_TICKS = 2**62  # of a 64-bit time stamp: sums of two still fit


class FormatError(ValueError):
    """A line or a file of a session that does not say what it should."""


def expect(holds: bool, otherwise: str) -> None:
    """Raises FormatError unless it holds."""
    if not holds:
        raise FormatError(otherwise)


def bounded_int(value: Any, name: str, least: int, most: int) -> int:
    """A whole number within bounds; True and 1.0 are none. Raises FormatError."""
    expect(type(value) is int, f"{name} must be a whole number, got {_shown(value)}")
    expect(least <= value <= most, f"{name} must be {least} to {most}, got {_shown(value)}")
    return int(value)


def optional_int(value: Any, name: str, least: int, most: int) -> int | None:
    """As `bounded_int`, or None."""
    return None if value is None else bounded_int(value, name, least, most)


def seconds(value: Any, name: str) -> float:
    """A finite time in seconds of at most ten thousand years. Raises FormatError."""
    expect(type(value) in (int, float), f"{name} must be seconds, got {_shown(value)}")
    expect(abs(value) < 3.2e11, f"{name} must be seconds, got {_shown(value)}")
    found = float(value)
    expect(math.isfinite(found), f"{name} must be finite")
    return found


def flag(value: Any, name: str) -> bool:
    """True or false. Raises FormatError."""
    expect(isinstance(value, bool), f"{name} must be true or false, got {_shown(value)}")
    return bool(value)


def text(raw: dict[str, Any], name: str, longest: int) -> str:
    """A printable text of bounded length. Raises FormatError."""
    value = raw.get(name)
    expect(isinstance(value, str), f"{name} must be text, got {_shown(value)}")
    assert isinstance(value, str)
    expect(len(value) <= longest, f"{name} must have at most {longest} characters")
    expect(value.isprintable(), f"{name} must be printable")
    return value


def one_line(given: str, longest: int) -> str:
    """A text that `text` takes."""
    return "".join(c if c.isprintable() else " " for c in given)[:longest]


def _shown(value: Any) -> str:
    """Short, and printable: it may come from anywhere."""
    shown = ascii(value)
    return shown if len(shown) <= 40 else f"{shown[:40]}..."
