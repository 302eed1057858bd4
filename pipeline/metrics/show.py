"""What `roadmask status` says: of a run by its folder or its metrics' address, or of a live view."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import ConfigError
from pipeline.metrics.status import STALE_SECONDS, RunStatus, read_status
from pipeline.progress import format_seconds

_PATIENCE_SECONDS = 10.0


class Found(Protocol):
    """What there is to say.

    Attributes:
        well: nothing is wrong.
    """

    @property
    def well(self) -> bool: ...

    def lines(self) -> list[str]:
        """For a person."""
        ...

    def as_json(self) -> Any:
        """For a script."""
        ...


@dataclass(frozen=True)
class FoundRun:
    """A run over files.

    Attributes:
        status: as the run wrote it.
        now: `time.time()` at which it was read, seconds.
    """

    status: RunStatus
    now: float

    @property
    def silent(self) -> bool:
        return self.status.silent_seconds(self.now) > STALE_SECONDS

    @property
    def well(self) -> bool:
        return self.status.state in ("running", "done") and not self.silent

    def lines(self) -> list[str]:
        return list(self._lines())

    def as_json(self) -> dict[str, Any]:
        return {**vars(self.status), "working": dict(self.status.working), "silent": self.silent}

    def _lines(self) -> Iterator[str]:
        status = self.status
        who = f"process {status.pid} on {status.host}"
        if self.silent:
            ago = format_seconds(status.silent_seconds(self.now))
            yield f"no word for {ago} from {who}: it has probably died; --resume goes on"
        else:
            ran = format_seconds(max(0.0, status.updated_at - status.began_at))
            yield f"{status.state}: {who}, {ran}"
        of = f" of {status.sources}" if status.sources is not None else ""
        failed = f", {status.failed} failed" if status.failed else ""
        yield f"sources: {status.ended - status.failed}{of} done{failed}"
        of = f"/{status.frames_total}" if status.frames_total is not None else ""
        left = (
            f", {format_seconds(status.left_seconds)} left"
            if status.state == "running" and status.left_seconds is not None
            else ""
        )
        yield f"frames: {status.frames}{of}, {status.fps:.1f} fps{left}"
        for name, (frames, total) in status.working.items():
            yield f"  {name}: {frames}{f'/{total}' if total else ''}"
        if status.metrics_url is not None and status.state == "running":
            yield f"metrics: {status.metrics_url}/metrics"


@dataclass(frozen=True)
class FoundView:
    """The cameras of a live run, as its view's API gives them."""

    streams: list[dict[str, Any]]

    @property
    def well(self) -> bool:
        return all(stream["state"] in ("live", "connecting") for stream in self.streams)

    def lines(self) -> list[str]:
        live = sum(stream["state"] == "live" for stream in self.streams)
        return [f"live: {live} of {len(self.streams)} cameras", *map(_camera_line, self.streams)]

    def as_json(self) -> dict[str, Any]:
        return {"streams": self.streams}


def _camera_line(stream: dict[str, Any]) -> str:
    late = stream.get("latency_ms")
    latency = f", {late:.0f} ms" if late is not None else ""
    dropped = sum(stream["dropped"].values())
    return (
        f"  {stream['name']}: {stream['state']}, {stream['fps']:.1f} fps{latency},"
        f" {stream['frames']} frames, {dropped} dropped, {stream['resets']} resets"
    )


def ask(place: str, token: str | None = None) -> Found:
    """How whatever is at a place stands.

    Args:
        place: a run's output folder, the URL of its metrics, or the URL of a live view.
        token: of the view.

    Raises OutputError for a folder that no run has written to, ConfigError for an address where there is
    neither a run nor a view.
    """
    if not place.startswith(("http://", "https://")):
        return FoundRun(read_status(Path(place)), time.time())
    base = place.rstrip("/").removesuffix("/metrics").removesuffix("/status")
    status = _get(f"{base}/status", token, or_none=True)
    try:
        if status is not None:
            return FoundRun(RunStatus.of(json.loads(status)), time.time())
        return FoundView(json.loads(_get(f"{base}/api/streams", token) or b"")["streams"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{base} is neither a run's --metrics nor a live view: {error}"
        ) from error


def _get(url: str, token: str | None, or_none: bool = False) -> bytes | None:
    """A page; None for one that isn't there, where that is no error. Raises ConfigError."""
    try:
        request = urllib.request.Request(url)
        if token:  # not to wherever an answer redirects
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=_PATIENCE_SECONDS) as answer:
            body: bytes = answer.read()
            return body
    except urllib.error.HTTPError as error:
        if error.code == 401:
            raise ConfigError(f"{url} wants a token: give the view's --token") from error
        if error.code == 404 and or_none:
            return None
        raise ConfigError(f"{url} answers {error.code}: {error.reason}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ConfigError(f"nothing answers at {url}: {reason}") from error
