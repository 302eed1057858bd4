"""`session.json`: what a session is, without which it is only a folder."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import SourceNotFoundError
from pipeline.session.checks import FormatError, expect, seconds, text
from pipeline.session.errors import SessionError, UnknownVersionError
from pipeline.session.format import (
    FORMAT_VERSION,
    MOST_JSON_BYTES,
    Configuration,
    parse_object,
)
from pipeline.sources import SESSION_FILE


@dataclass(frozen=True)
class SessionManifest:
    """A session as its first file states it.

    Attributes:
        id: of the run that made it.
        created_at: `time.time()`.
        configuration: what labelled its frames; None if nothing did.
    """

    id: str
    created_at: float
    configuration: Configuration | None


def read_manifest(path: Path) -> SessionManifest:
    """Raises SessionError if the file is not one that this version can read, SourceNotFoundError if there
    is none; one line."""
    try:
        raw = parse_object(read_plain(path, MOST_JSON_BYTES))
        version = raw.get("version")
        if version != FORMAT_VERSION and type(version) is int:
            raise UnknownVersionError(
                f"{path}: format version {str(version)[:20]} is not known: this version reads"
                f" {FORMAT_VERSION}"
            )
        expect(version == FORMAT_VERSION, "version must be a whole number")
        given = raw.get("configuration")
        configuration = None if given is None else Configuration.from_json(given)
        return SessionManifest(text(raw, "id", 64), seconds(raw.get("created_at"), "created_at"),
                               configuration)  # fmt: skip
    except FormatError as error:
        raise SessionError(f"{path} is damaged: {error}") from error
    except FileNotFoundError as error:
        raise SourceNotFoundError(
            f"{path.parent}: not a session, it has no {SESSION_FILE}"
        ) from error
    except OSError as error:
        raise SessionError(f"{path} cannot be read: {error.strerror or error}") from error


def read_plain(path: Path, most: int) -> bytes:
    """A regular file whole, never through a link. Raises OSError, or FormatError if it is too long."""
    with open_plain(path) as file:
        data = file.read(most + 1)
    expect(len(data) <= most, f"longer than {most} bytes")
    return data


def open_plain(path: Path) -> BinaryIO:
    """A regular file for unbuffered reading, never through a link nor a device. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "not a regular file")
    return os.fdopen(descriptor, "rb")
