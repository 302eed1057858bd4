"""Errors a user can act on: each message is one line that says what is wrong and what would be right."""

from __future__ import annotations


class PipelineError(Exception):
    """Base of all errors raised on purpose; the command line prints its message, no traceback."""


class SourceNotFoundError(PipelineError, FileNotFoundError):
    """A source names nothing: no such file, an empty folder, a glob without a match."""


class MediaError(PipelineError, ValueError):
    """A source exists but holds nothing that can be decoded as video or image."""


class OutputError(PipelineError, OSError):
    """The output folder or a file in it cannot be written."""


class ModelError(PipelineError, ValueError):
    """An unknown model, or weights that do not fit their specification."""


class EngineError(PipelineError, RuntimeError):
    """An engine is unknown, unavailable on this machine, or failed to build or run.

    Attributes:
        device_lost: nothing will run on the device in this process any more; in a new one it may.
    """

    device_lost = False

    def again(self) -> EngineError:
        """The same to be raised another time."""
        other = EngineError(*self.args)
        other.device_lost = self.device_lost
        return other


class ConfigError(PipelineError, ValueError):
    """The command line or configuration is wrong."""


class StageError(PipelineError, RuntimeError):
    """A stage's process died (killed, out of memory), so its stream could not be finished."""
