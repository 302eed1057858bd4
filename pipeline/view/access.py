"""Who may see the view: token, cookie, and that a browser asks on behalf of the view's own page.

Everything from outside passes `Guard` before any handler.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import time
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from pipeline.view.config import ViewConfig

SESSION_SECONDS = 30 * 24 * 3600
WRONG_TOKEN_SECONDS = 0.3
OPEN_PATHS = frozenset({"/login", "/login.js", "/style.css", "/icon.svg", "/healthz"})
"""What is served without the token: the way in, how it looks, and that the server is alive."""

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:;"
        " media-src blob:; connect-src 'self'; manifest-src 'self'; base-uri 'none';"
        " form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with none at all, forms come from the origin "null"
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}


class Guard:
    """Lets a request through, or answers it."""

    def __init__(self, config: ViewConfig, port: int) -> None:
        """`port`: where the view listens, which `config` may leave open."""
        self._token, self._host = config.token, config.host
        self._secure = config.tls_cert is not None
        # Cookies know no ports: two views on one machine must not take each other's.
        self._cookie = f"roadmask_{port}"

    @property
    def middleware(self) -> Middleware:
        """For `web.Application`."""

        @web.middleware
        async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
            self._check_host(request)
            check_origin(request)
            if request.path not in OPEN_PATHS and not await self._admits(request):
                if _wants_page(request):
                    raise web.HTTPSeeOther("/login")
                raise web.HTTPUnauthorized(
                    headers={"WWW-Authenticate": 'Bearer realm="roadmask"'},
                    reason="Unauthorized",
                )
            return await handler(request)

        return check

    async def log_in(self, token: str) -> web.Response | None:
        """A redirection to the page that sets the cookie; None, after a moment, if it is wrong."""
        if self._token is not None and not same_text(token, self._token):
            await asyncio.sleep(WRONG_TOKEN_SECONDS)
            return None
        response = web.Response(status=303, headers={"Location": "/"})
        if self._token is not None:
            response.set_cookie(
                self._cookie, self._session(int(time.time())), max_age=SESSION_SECONDS,
                path="/", secure=self._secure, httponly=True, samesite="Strict",
            )  # fmt: skip
        return response

    def log_out(self) -> web.Response:
        """A redirection to the way in that takes the cookie away."""
        response = web.Response(status=303, headers={"Location": "/login"})
        response.del_cookie(
            self._cookie, path="/", secure=self._secure, httponly=True, samesite="Strict"
        )
        return response

    def _check_host(self, request: web.Request) -> None:
        """Against DNS rebinding: a page of another name that resolves to this machine.

        With a token the cookie does that: a browser sends it to the name that it came from.
        """
        if self._token is None and not _is_own_name(request.headers.get("Host", ""), self._host):
            raise web.HTTPMisdirectedRequest(
                reason="this view answers to localhost and its own address only"
            )

    async def _admits(self, request: web.Request) -> bool:
        if self._token is None:
            return True
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if given:
            if scheme.lower() == "bearer" and same_text(given.strip(), self._token):
                return True
            await asyncio.sleep(WRONG_TOKEN_SECONDS)
            return False
        return self._is_session(request.cookies.get(self._cookie, ""))

    def _session(self, issued_s: int) -> str:
        """A cookie that proves the token was known, without telling it; a new token ends all."""
        assert self._token is not None
        proof = hmac.new(self._token.encode(), f"roadmask view {issued_s}".encode(), hashlib.sha256)
        return f"{issued_s}.{proof.hexdigest()}"

    def _is_session(self, cookie: str) -> bool:
        issued, _, _ = cookie.partition(".")
        if not (issued.isascii() and issued.isdecimal() and len(issued) <= 12):
            return False
        age_s = time.time() - int(issued)
        return same_text(cookie, self._session(int(issued))) and age_s < SESSION_SECONDS


def same_text(given: str, wanted: str) -> bool:
    """Whether two texts are equal; takes the same time wherever they differ, and however long."""
    digests = (
        hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in (given, wanted)
    )
    return hmac.compare_digest(*digests)


def check_origin(request: web.Request) -> None:
    """Turns away what another site's page sends: WebSockets and changes. Raises HTTPForbidden.

    Browsers say who asks (Origin; Sec-Fetch-Site); other clients, which say nothing, hold no cookies.
    """
    changes = request.method not in ("GET", "HEAD", "OPTIONS")
    if not changes and "upgrade" not in request.headers.get("Connection", "").lower():
        return
    origin = request.headers.get("Origin")
    site = request.headers.get("Sec-Fetch-Site", "same-origin")
    if origin is not None and _network_place(origin) != request.headers.get("Host", "").lower():
        raise web.HTTPForbidden(reason="this comes from another site's page")
    if site not in ("same-origin", "none"):
        raise web.HTTPForbidden(reason="this comes from another site's page")


def _network_place(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def _is_own_name(host_header: str, bound_host: str) -> bool:
    try:
        name = urlsplit(f"//{host_header}").hostname or ""
        if name in ("localhost", bound_host.lower()):
            return True
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _wants_page(request: web.Request) -> bool:
    return request.method in ("GET", "HEAD") and request.path in ("/", "/api")
