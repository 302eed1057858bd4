"""A small HTTP server for a run's own figures: `/metrics`, `/status`, `/healthz`."""

from __future__ import annotations

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from pipeline.errors import ConfigError

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PATIENCE_SECONDS = 10.0  # with a client that says nothing


def parse_place(text: str, option: str = "--metrics") -> tuple[str, int]:
    """HOST:PORT, or PORT on this machine alone. Raises ConfigError for anything else."""
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise ConfigError(
            f"{option} must be PORT or HOST:PORT, such as 127.0.0.1:9400, got {text!r}"
        )
    return host.strip("[]") or "127.0.0.1", int(port)


class MetricsServer:
    """Serves until `close()`, in threads of its own.

    Args:
        host, port: where; port 0 takes a free one.
        metrics: gives Prometheus' text.
        status: gives what `/status` says, for JSON.

    Attributes:
        url: where it is, such as "http://127.0.0.1:9400".

    Raises ConfigError if it cannot listen there.
    """

    def __init__(
        self, host: str, port: int, metrics: Callable[[], bytes], status: Callable[[], Any]
    ) -> None:
        pages: dict[str, Callable[[], tuple[str, bytes]]] = {
            "/metrics": lambda: (METRICS_TYPE, metrics()),
            "/status": lambda: ("application/json", json.dumps(status()).encode()),
            "/healthz": lambda: ("application/json", b'{"status": "ok"}'),
        }
        try:
            self._server = _Server((host, port), _handler(pages))
        except (OSError, UnicodeError) as error:
            raise ConfigError(
                f"metrics cannot be served on {host}:{port}: {error}; give another address or port"
            ) from error
        at, port = self._server.server_address[:2]
        shown = at.decode() if isinstance(at, bytes) else at
        self.url = f"http://{f'[{shown}]' if ':' in shown else shown}:{port}"
        self._thread = Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is none of the user's business."""


def _handler(
    pages: dict[str, Callable[[], tuple[str, bytes]]],
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _PATIENCE_SECONDS

        def do_GET(self) -> None:
            page = pages.get(self.path.partition("?")[0])
            if page is None:
                self.send_error(404)
                return
            content_type, body = page()
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Requests are not the user's business either."""

    return Handler
