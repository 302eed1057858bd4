"""The view's server: the page's own files, its WebSocket, the API and the metrics, in one thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import AsyncIterator
from http import HTTPStatus
from importlib.resources import files

from aiohttp import WSCloseCode, WSMsgType, web
from aiohttp.http import HttpProcessingError
from aiohttp.typedefs import Handler

from pipeline.closing import Closing
from pipeline.errors import ConfigError
from pipeline.live.hub import Hub
from pipeline.metrics.meters import PrometheusMeters
from pipeline.view.access import SECURITY_HEADERS, Guard
from pipeline.view.api import LARGEST_BODY_BYTES, StreamsApi, failure
from pipeline.view.config import ViewConfig
from pipeline.view.metrics import CONTENT_TYPE, ViewerCounts, metrics_text
from pipeline.view.openapi import openapi
from pipeline.view.playback import PlaybackApi, playback_json, replay_of
from pipeline.view.viewers import Audience, Viewer
from pipeline.view.wire import (
    LARGEST_MESSAGE_BYTES,
    Ping,
    Watch,
    hello_text,
    pong_text,
    read_message,
    status_text,
)

_LOG = logging.getLogger("roadmask.view")
_HTTP_LOG = logging.getLogger("roadmask.view.http")
_STATUS_SECONDS = 0.5
_HEARTBEAT_SECONDS = 15.0
_START_SECONDS = 30.0
# What waits for a viewer in the kernel: more would be old before it is sent.
_UNSENT_BYTES = 131_072
_TYPES = {
    ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml",
}  # fmt: skip
_PAGES = {"/": "index.html", "/login": "login.html", "/api": "api.html"}


class View(Closing):
    """A running view.

    Attributes:
        url: where it is, such as "http://127.0.0.1:8000/".
        notes: what the user should know, a line each.
    """

    def __init__(
        self, hub: Hub, config: ViewConfig, meters: PrometheusMeters | None = None
    ) -> None:
        """Starts it; raises as `start_view`."""
        self.notes = config.notes
        self._config = config
        self._context = config.tls_context()
        self._listening = _listen(config)
        self.url = _url(self._listening, config)
        self._app = _App(hub, config, self._listening.getsockname()[1], meters)
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="view", daemon=True)
        self._thread.start()
        if not self._ready.wait(_START_SECONDS):
            raise ConfigError(f"the view did not start within {_START_SECONDS:g} s")

    def close(self) -> None:
        """Disconnect all viewers and stop listening."""
        with contextlib.suppress(RuntimeError):  # closed before
            self._loop.call_soon_threadsafe(self._end)
        self._thread.join(_START_SECONDS)

    def _end(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        _HTTP_LOG.addFilter(_is_our_fault)  # again and again is once
        runner = web.AppRunner(
            self._app.make(),
            handle_signals=False,
            access_log=None,
            logger=_HTTP_LOG,
            shutdown_timeout=2.0,
        )
        await runner.setup()
        await web.SockSite(runner, self._listening, ssl_context=self._context).start()
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()


class _App:
    """Handlers, and what they share."""

    def __init__(
        self, hub: Hub, config: ViewConfig, port: int, meters: PrometheusMeters | None
    ) -> None:
        self._hub, self._config, self._meters = hub, config, meters
        self._replay = replay_of(hub)
        self._guard = Guard(config, port)
        self._files = page_files()

    def make(self) -> web.Application:
        """The application; to be made in the loop that runs it."""
        self._audience = Audience(self._hub, self._config.stall_seconds)
        self._sockets: set[web.WebSocketResponse] = set()
        app = web.Application(
            middlewares=[answer_errors, self._guard.middleware],
            client_max_size=LARGEST_BODY_BYTES,
        )
        app.on_response_prepare.append(_add_headers)
        app.cleanup_ctx.append(self._ticking)
        app.on_shutdown.append(self._close_sockets)
        app.add_routes(StreamsApi(self._hub, self._config.schemes).routes())
        if self._replay is not None:
            app.add_routes(PlaybackApi(self._replay, self._refresh).routes())
        app.add_routes(
            [
                web.get("/api/openapi.json", self._document, allow_head=False),
                web.get("/ws", self._socket),
                web.get("/healthz", _healthz),
                web.get("/metrics", self._metrics),
                web.post("/login", self._log_in),
                web.post("/logout", self._log_out),
                *(web.get(path, self._file) for path in self._files),
            ]
        )
        return app

    async def _file(self, request: web.Request) -> web.Response:
        body, content_type = self._files[request.path]
        return web.Response(body=body, content_type=content_type, charset="utf-8")

    async def _document(self, _request: web.Request) -> web.Response:
        return web.json_response(openapi(self._config.schemes, self._replay is not None))

    async def _metrics(self, _request: web.Request) -> web.Response:
        audience = self._audience
        counts = ViewerCounts(
            len(audience), len(audience.cameras), *audience.frames_sent(), dict(audience.left)
        )
        cameras = await asyncio.to_thread(self._hub.cameras)
        text = metrics_text(cameras, self._hub.spec.classes, counts, self._meters)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})

    async def _log_in(self, request: web.Request) -> web.StreamResponse:
        try:
            token = (await request.post()).get("token", "")
        except (ValueError, LookupError) as error:
            raise failure(web.HTTPBadRequest, "expected the login form") from error
        answer = await self._guard.log_in(token if isinstance(token, str) else "")
        return answer or web.Response(status=303, headers={"Location": "/login?wrong"})

    async def _log_out(self, _request: web.Request) -> web.StreamResponse:
        return self._guard.log_out()

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        if len(self._audience) >= self._config.max_viewers:
            raise failure(web.HTTPTooManyRequests, "there are as many viewers as are allowed")
        # Frames are compressed already, and what is compressed here is compressed for each viewer.
        ws = web.WebSocketResponse(
            compress=False, max_msg_size=LARGEST_MESSAGE_BYTES, heartbeat=_HEARTBEAT_SECONDS
        )
        await ws.prepare(request)
        _keep_unsent_short(request)
        viewer = Viewer(ws)
        self._audience.join(viewer, request)
        self._sockets.add(ws)
        login = self._config.token is not None
        viewer.tell("hello", hello_text(self._hub.spec, login, self._replay is not None))
        sender = asyncio.create_task(_send(viewer, request))
        try:
            await self._refresh()
            await self._listen_to(viewer, ws)
        finally:
            self._sockets.discard(ws)
            self._audience.leave(viewer)
            sender.cancel()
        return ws

    async def _listen_to(self, viewer: Viewer, ws: web.WebSocketResponse) -> None:
        """Does what a viewer asks; one that speaks anything else is disconnected."""
        async for message in ws:
            try:
                if message.type is not WSMsgType.TEXT:
                    raise ValueError("expected text")
                wanted = read_message(message.data)
            except ValueError as error:
                reason = str(error).encode("ascii", "replace")[:120]
                await ws.close(code=WSCloseCode.POLICY_VIOLATION, message=reason)
                return
            if isinstance(wanted, Watch):
                self._audience.watch(viewer, wanted.cameras)
            elif isinstance(wanted, Ping):
                viewer.tell("pong", pong_text(wanted))

    async def _ticking(self, _app: web.Application) -> AsyncIterator[None]:
        ticker = asyncio.create_task(self._tick())
        yield
        ticker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ticker
        await self._audience.close()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_STATUS_SECONDS)
            if not self._audience:
                continue
            try:
                await self._refresh()
            except Exception:
                _LOG.exception("the view could not read the cameras' state")

    async def _refresh(self) -> None:
        cameras = await asyncio.to_thread(self._hub.cameras)
        self._audience.refresh({camera.name for camera in cameras})
        playback = None
        if self._replay is not None:
            playback = await asyncio.to_thread(playback_json, self._replay)
        self._audience.tell_all("status", status_text(cameras, len(self._audience), playback))

    async def _close_sockets(self, _app: web.Application) -> None:
        closing = (
            ws.close(code=WSCloseCode.GOING_AWAY, message=b"the view has ended", drain=False)
            for ws in list(self._sockets)
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await asyncio.gather(*closing, return_exceptions=True)


def _is_our_fault(record: logging.LogRecord) -> bool:
    """Whether to log an error: anybody can send what is no HTTP, or hang up, as often as they like."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError | ConnectionError)


async def _send(viewer: Viewer, request: web.Request) -> None:
    try:
        await viewer.serve()
    except ConnectionError:
        viewer.drop(request)


async def _healthz(_request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(SECURITY_HEADERS)
    response.headers.popall("Server", None)


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error is JSON of one line; none shows what is inside."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400 or error.content_type == "application/json":
            raise
        allowed = {
            name: value
            for name, value in error.headers.items()
            if name in ("Allow", "WWW-Authenticate")
        }
        return web.json_response({"error": error.reason}, status=error.status, headers=allowed)
    except (ConnectionError, asyncio.CancelledError):
        raise
    except Exception:
        _LOG.exception("%s failed", request.method)
        status = HTTPStatus.INTERNAL_SERVER_ERROR
        return web.json_response({"error": status.phrase}, status=status)


def page_files() -> dict[str, tuple[bytes, str]]:
    """What is served, by path: content and type. Nothing else is ever read from the disk."""
    folder = files("pipeline.view") / "page"
    found = {}
    for file in folder.iterdir():
        suffix = file.name[file.name.rfind(".") :]
        if suffix in _TYPES:
            found[f"/{file.name}"] = (file.read_bytes(), _TYPES[suffix])
    for path, name in _PAGES.items():
        found[path] = found.pop(f"/{name}")
    return found


def _listen(config: ViewConfig) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            config.host or None, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(address)
            listening.listen(128)
        except OSError:
            listening.close()
            raise
    except (OSError, UnicodeError) as error:
        where = f"{config.host}:{config.port}"
        raise ConfigError(
            f"the view cannot listen on {where}: {error}; give another address or port"
        ) from error
    return listening


def _url(listening: socket.socket, config: ViewConfig) -> str:
    address, port = listening.getsockname()[:2]
    host = "localhost" if config.host == "localhost" else address
    scheme = "http" if config.tls_cert is None else "https"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/"


def _keep_unsent_short(request: web.Request) -> None:
    """So that a slow viewer's frames wait, and are dropped, here and not in the kernel."""
    connection = request.get_extra_info("socket")
    if connection is not None and hasattr(socket, "TCP_NOTSENT_LOWAT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
    elif connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _UNSENT_BYTES)
