"""The live view: cameras, masks and their state in a browser; see `start_view`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import ConfigError
from pipeline.view.config import DEFAULT_SCHEMES, ViewConfig

if TYPE_CHECKING:
    from pipeline.live.hub import Hub
    from pipeline.metrics.meters import PrometheusMeters
    from pipeline.view.server import View

__all__ = ["DEFAULT_SCHEMES", "ViewConfig", "start_view"]


def start_view(hub: Hub, config: ViewConfig, meters: PrometheusMeters | None = None) -> View:
    """Serve the view of a hub's cameras, in a thread of its own, until its `close()`.

    Args:
        hub, config: whose cameras, and where.
        meters: figures that `/metrics` shows beside those of the cameras and viewers.

    Returns once it listens. Raises ConfigError if the address cannot be listened on, the
    certificate cannot be used, or the packages of the extra "view" are missing.
    """
    try:
        from pipeline.view.server import View
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the view needs the package {error.name}: pip install 'roadmask[view]'"
        ) from error
    return View(hub, config, meters)
