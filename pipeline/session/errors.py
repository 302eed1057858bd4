"""What is wrong with a session, in one line."""

from __future__ import annotations

from pipeline.errors import PipelineError


class SessionError(PipelineError, ValueError):
    """A session that cannot be read, or not used as asked."""


class UnknownVersionError(SessionError):
    """A session of a later format."""
