"""Who gets into the view, and what is served to anybody else: nothing."""

from __future__ import annotations

import http.client
import json
import logging
import random
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

from pipeline.errors import ConfigError
from pipeline.view import ViewConfig, access, start_view
from pipeline.view.playback import Change, Step
from pipeline.view.server import View, page_files
from tests.fake_hub import FakeHub, FakeReplay, numbered

TOKEN = "correct horse battery staple"
WRONG = "correct horse battery stapler"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
EVERYWHERE = [
    "/", "/app.js", "/tile.js", "/api", "/api/streams", "/api/streams/front", "/api/openapi.json",
    "/metrics", "/ws",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "WRONG_TOKEN_SECONDS", 0.0)


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    hub = FakeHub(numbered(), 5.0)
    hub.add("rtsp://viewer:tops3cret@camera.example/one", "front")
    yield hub
    hub.close()


@pytest.fixture(scope="module")
def locked(hub: FakeHub) -> Iterator[View]:
    """A view that wants a token, on every address."""
    with start_view(hub, ViewConfig("0.0.0.0", 0, TOKEN)) as view:
        yield view


@pytest.fixture(scope="module")
def local(hub: FakeHub) -> Iterator[View]:
    """A view on the loopback address, without a token."""
    with start_view(hub, ViewConfig(port=0)) as view:
        yield view


class Answer:
    """Status, headers and body of an HTTP answer."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.status, self.headers = answer.status, answer.headers
        self.body = answer.read()

    @property
    def text(self) -> str:
        return self.body.decode()


def ask(
    view: View,
    path: str,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    body: str | None = None,
) -> Answer:
    """Sends exactly this path, which a better client would tidy up first."""
    place = urlsplit(view.url)
    connection = http.client.HTTPConnection("127.0.0.1", place.port or 80, timeout=30)
    try:
        connection.request(method, path, body, headers or {})
        return Answer(connection.getresponse())
    finally:
        connection.close()


def complaints(
    caplog: pytest.LogCaptureFixture, level: int = logging.WARNING
) -> list[logging.LogRecord]:
    """What the view's server logged, of what the whole process did.

    Sessions that another test has left open are told of by asyncio too, whenever they are collected.
    """
    return [
        record
        for record in caplog.records
        if record.levelno >= level
        and record.name.partition(".")[0] in ("roadmask", "aiohttp", "asyncio")
        and not record.getMessage().startswith("Unclosed ")
    ]


# Where it may listen


def test_loopback_is_the_default_and_needs_no_token() -> None:
    config = ViewConfig()
    assert config.host == "127.0.0.1"
    assert config.notes == ()


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "192.0.2.7", "camera-room.example"])
def test_other_addresses_need_a_token(host: str) -> None:
    with pytest.raises(ConfigError, match=r"needs a token, such as [A-Za-z0-9_-]{24}"):
        ViewConfig(host)
    (note,) = ViewConfig(host, token=TOKEN).notes
    assert "not encrypted" in note
    assert "--tls-cert" in note


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"token": "short"}, "at least 16 printable ASCII characters, got 5"),
        ({"token": "ünicode is no header"}, "printable ASCII"),
        ({"token": "new\nline in the token"}, "printable ASCII"),
        ({"token": " begins with a space"}, "space"),
        ({"port": 65536}, "0 to 65535, got 65536"),
        ({"tls_key": Path("key.pem")}, "--tls-cert"),
        ({"schemes": ("rtsp", "file")}, "'file'"),
        ({"stall_seconds": 0.0}, "stall_seconds"),
    ],
)
def test_contradictions_are_told(given: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ViewConfig(**given)  # type: ignore[arg-type]


def test_token_is_not_in_the_configuration_as_printed() -> None:
    assert TOKEN not in repr(ViewConfig(token=TOKEN))


def test_taken_port_is_one_clear_line(local: View, hub: FakeHub) -> None:
    port = urlsplit(local.url).port
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}.*another") as found:
        start_view(hub, ViewConfig(port=port or 0))
    assert "\n" not in str(found.value)


def test_tls(hub: FakeHub, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
               "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
               "-keyout", str(key), "-out", str(cert)]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    config = ViewConfig("0.0.0.0", 0, TOKEN, cert, key)
    assert config.notes == ()
    with start_view(hub, config) as view:
        assert view.url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(cert))
        port = urlsplit(view.url).port
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=trusted, timeout=30)
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        connection.request("POST", "/login", urlencode({"token": TOKEN}), form)
        cookie = connection.getresponse().headers["Set-Cookie"]
        assert "; Secure" in cookie
    with pytest.raises(ConfigError, match="unencrypted PEM"):
        start_view(hub, ViewConfig(port=0, tls_cert=key, tls_key=cert))
    with pytest.raises(ConfigError, match="unencrypted PEM"):
        start_view(hub, ViewConfig(port=0, tls_cert=tmp_path / "nowhere.pem"))


# Token and cookie


@pytest.mark.parametrize("path", EVERYWHERE)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": f"Bearer {WRONG}"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
        {"Authorization": "Bearer "},
        {"Cookie": f"roadmask={TOKEN}"},
        {"Cookie": "roadmask_PORT=1.2"},
        {"Cookie": f"roadmask_PORT=9999999999.{'0' * 64}"},
        {"Cookie": "roadmask_PORT=²³.x"},
    ],
    ids=str,
)
def test_without_the_token_nothing_is_told(
    locked: View, path: str, headers: dict[str, str]
) -> None:
    port = str(urlsplit(locked.url).port)
    given = {name: value.replace("PORT", port) for name, value in headers.items()}
    given = {name: value.encode().decode("latin-1") for name, value in given.items()}
    answer = ask(locked, path, headers=given)
    if path in ("/", "/api"):
        assert (answer.status, answer.headers["Location"]) == (303, "/login")
    else:
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert json.loads(answer.text) == {"error": "Unauthorized"}
    assert "front" not in answer.text


@pytest.mark.parametrize("path", ["/", "/app.js", "/api/streams", "/metrics"])
def test_with_the_token_everything_is(locked: View, path: str) -> None:
    assert ask(locked, path, headers=BEARER).status == 200


def log_in(view: View, token: str, **headers: str) -> Answer:
    form = {"Content-Type": "application/x-www-form-urlencoded", **headers}
    return ask(view, "/login", "POST", form, urlencode({"token": token}))


def test_login_sets_a_cookie_that_does_not_tell_the_token(locked: View) -> None:
    answer = log_in(locked, TOKEN)
    assert (answer.status, answer.headers["Location"]) == (303, "/")
    cookie = answer.headers["Set-Cookie"]
    assert "; HttpOnly" in cookie
    assert "; SameSite=Strict" in cookie
    assert "Path=/" in cookie
    assert TOKEN not in cookie
    pair = {"Cookie": cookie.partition(";")[0]}
    assert ask(locked, "/api/streams", headers=pair).status == 200
    forged = {"Cookie": pair["Cookie"][:-1] + ("0" if pair["Cookie"][-1] != "0" else "1")}
    assert ask(locked, "/api/streams", headers=forged).status == 401
    gone = ask(locked, "/logout", "POST", pair)
    assert gone.status == 303
    assert "Max-Age=0" in gone.headers["Set-Cookie"]


def test_cookie_ends(locked: View, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = {"Cookie": log_in(locked, TOKEN).headers["Set-Cookie"].partition(";")[0]}
    monkeypatch.setattr(access, "SESSION_SECONDS", -1)
    assert ask(locked, "/api/streams", headers=pair).status == 401


@pytest.mark.parametrize("token", [WRONG, "", "\ud800".encode("utf-8", "replace").decode()])
def test_wrong_login_sets_nothing(locked: View, token: str) -> None:
    answer = log_in(locked, token)
    assert (answer.status, answer.headers["Location"]) == (303, "/login?wrong")
    assert "Set-Cookie" not in answer.headers


def test_login_takes_forms_only(locked: View) -> None:
    junk = {"Content-Type": "multipart/form-data; boundary=x"}
    assert ask(locked, "/login", "POST", junk, "junk").status in (303, 400)
    part = '--x\r\nContent-Disposition: form-data; name="token"; filename="/etc/passwd"\r\n\r\nx\r\n--x--\r\n'
    assert ask(locked, "/login", "POST", junk, part).headers.get("Set-Cookie") is None


def test_the_way_in_is_open(locked: View) -> None:
    for path in ("/login", "/style.css", "/icon.svg", "/healthz"):
        assert ask(locked, path).status == 200


def test_texts_are_compared_whole() -> None:
    assert access.same_text("abc", "abc")
    assert not access.same_text("abc", "abcd")
    assert not access.same_text("", "abc")
    assert not access.same_text("\udcff", "abc")  # what a header's odd bytes become


# Other sites, other names


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "[", "10.0.0.1"]
)
def test_rebound_names_are_turned_away(local: View, host: str) -> None:
    for path in ("/", "/ws", "/api/streams", "/healthz"):
        answer = ask(local, path, headers={"Host": host})
        assert answer.status in (400, 421)
        assert "front" not in answer.text


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:9000", "127.0.0.1:1", "[::1]:8000", "LOCALHOST"]
)
def test_own_names_are_answered(local: View, host: str) -> None:
    assert ask(local, "/api/streams", headers={"Host": host}).status == 200


UPGRADE = {
    "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}  # fmt: skip


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://["},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_other_sites_get_no_socket_and_change_nothing(
    local: View, locked: View, headers: dict[str, str]
) -> None:
    assert ask(local, "/ws", headers=UPGRADE | headers).status == 403
    assert ask(locked, "/ws", headers=UPGRADE | BEARER | headers).status == 403
    assert ask(local, "/api/streams/front", "DELETE", headers).status == 403
    body = json.dumps({"url": "rtsp://h/x"})
    typed = {"Content-Type": "application/json"}
    assert ask(local, "/api/streams", "POST", typed | headers, body).status == 403
    assert log_in(locked, TOKEN, **headers).status == 403


def test_own_page_gets_a_socket(local: View) -> None:
    origin = {"Origin": local.url.rstrip("/"), "Sec-Fetch-Site": "same-origin"}
    assert ask(local, "/ws", headers=UPGRADE | origin).status == 101


def test_form_of_another_site_cannot_add_a_camera(local: View) -> None:
    """What a form can send without asking first; old browsers tell no origin."""
    body = json.dumps({"url": "rtsp://h/x"})
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        assert ask(local, "/api/streams", "POST", {"Content-Type": kind}, body).status == 415


def test_every_answer_is_guarded_by_headers(local: View) -> None:
    for path in ("/", "/app.js", "/nothing", "/api/streams", "/metrics"):
        headers = ask(local, path).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "same-origin"
        assert "Server" not in headers
        assert "Access-Control-Allow-Origin" not in headers


# Nothing but the page's own files


def test_page_loads_nothing_from_elsewhere() -> None:
    files = page_files()
    assert {"/", "/login", "/api", "/app.js", "/style.css"} <= files.keys()
    for path, (body, _) in files.items():
        text = body.decode().replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in text, path
        assert "http://" not in text, path
        assert "<script>" not in text, path
        assert " style=" not in text, path
        assert "innerHTML" not in text, path


@pytest.mark.parametrize(
    "path",
    [
        "/../pyproject.toml", "/page/../server.py", "/%2e%2e/server.py", "/..%2fserver.py",
        "/..%5cserver.py", "/....//server.py", "//etc/passwd", "/etc/passwd", "/%2fetc%2fpasswd",
        "/app.js/../../server.py", "/app.js%00.html", "/index.html/", "/static/app.js", "/server.py",
        "/__init__.py", "/page/app.js", "/app.js/", "/.%2e/.%2e/etc/passwd", "/%c0%ae%c0%ae/etc/passwd",
        "/api/streams/..%2f..%2fetc%2fpasswd", "/api/streams/%00", "/api/streams/%ff", "/~root",
        "/api/../../../etc/passwd", "/healthz/..%2f..", "file:///etc/passwd", "*",
    ],
)  # fmt: skip
def test_paths_lead_nowhere(local: View, path: str) -> None:
    answer = ask(local, path)
    assert answer.status in (400, 404)
    assert b"root:" not in answer.body
    assert b"import" not in answer.body


def status_again(view: View, *given: Any, **named: Any) -> int:
    """Asks once more where the connection broke: who hangs up on what he has not read resets it, and the
    answer may be lost."""
    try:
        return ask(view, *given, **named).status
    except ConnectionError:
        return ask(view, *given, **named).status


def test_oversized_requests_are_refused(local: View) -> None:
    typed = {"Content-Type": "application/json"}
    body = '{"url": "' + "x" * 100_000
    assert status_again(local, "/api/streams", "POST", typed, body) == 413
    assert status_again(local, "/" + "x" * 50_000) in (400, 414)
    assert status_again(local, "/", headers={"X-Long": "x" * 50_000}) == 400
    assert ask(local, "/api/streams", "POST", typed, "[" * 16_000).status == 422


# Fuzzing


@pytest.fixture(scope="module")
def api_schema(locked: View) -> schemathesis.BaseSchema:
    return schema_of(locked)


def schema_of(view: View) -> schemathesis.BaseSchema:
    document = ask(view, "/api/openapi.json", headers=BEARER)
    schema = schemathesis.openapi.from_dict(json.loads(document.text))
    place = urlsplit(view.url)
    schema.config.update(base_url=f"http://127.0.0.1:{place.port}")
    rejection = schema.config.checks.negative_data_rejection
    rejection.expected_statuses = [
        *rejection.expected_statuses,
        "413",
    ]  # too large is a refusal too
    return schema


OPERATIONS = [
    ("GET /api/streams", GenerationMode.POSITIVE),
    ("POST /api/streams", GenerationMode.POSITIVE),
    ("POST /api/streams", GenerationMode.NEGATIVE),
    ("GET /api/streams/{name}", GenerationMode.POSITIVE),
    ("GET /api/streams/{name}", GenerationMode.NEGATIVE),
    ("DELETE /api/streams/{name}", GenerationMode.POSITIVE),
    ("DELETE /api/streams/{name}", GenerationMode.NEGATIVE),
]


@pytest.fixture(scope="module")
def replay_view() -> Iterator[View]:
    hub = FakeReplay(numbered(), 5.0)
    hub.add("rtsp://camera.example/one", "front")
    with start_view(hub, ViewConfig("0.0.0.0", 0, TOKEN)) as view:
        yield view
    hub.close()


@pytest.fixture(scope="module")
def replay_schema(replay_view: View) -> schemathesis.BaseSchema:
    return schema_of(replay_view)


REPLAY_OPERATIONS = [
    ("GET /api/playback", GenerationMode.POSITIVE),
    ("PATCH /api/playback", GenerationMode.POSITIVE),
    ("PATCH /api/playback", GenerationMode.NEGATIVE),
    ("POST /api/playback/step", GenerationMode.POSITIVE),
    ("POST /api/playback/step", GenerationMode.NEGATIVE),
    ("GET /api/playback/timeline", GenerationMode.POSITIVE),
]


def test_every_operation_is_fuzzed(
    api_schema: schemathesis.BaseSchema, replay_schema: schemathesis.BaseSchema
) -> None:
    operations = {result.ok().label for result in api_schema.get_all_operations()}
    assert operations == {label for label, _ in OPERATIONS}
    of_replay = {result.ok().label for result in replay_schema.get_all_operations()}
    assert of_replay - operations == {label for label, _ in REPLAY_OPERATIONS}
    assert operations - of_replay == {"POST /api/streams"}


@pytest.mark.parametrize(("label", "mode"), OPERATIONS)
def test_api_keeps_to_its_own_document(
    label: str,
    mode: GenerationMode,
    api_schema: schemathesis.BaseSchema,
    hub: FakeHub,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def put_back() -> None:
        for name in hub.by_name.keys() - {"front"}:
            hub.remove(name)
        if "front" not in hub.by_name:
            hub.add("rtsp://camera.example/one", "front")

    # A URL that fits the schema may still be no camera's.
    fuzz(api_schema, label, mode, put_back, without=[checks.positive_data_acceptance])
    assert not complaints(caplog)


@pytest.mark.parametrize(("label", "mode"), REPLAY_OPERATIONS)
def test_the_api_of_a_replay_does_too(
    label: str,
    mode: GenerationMode,
    replay_schema: schemathesis.BaseSchema,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fuzz(replay_schema, label, mode)
    assert not complaints(caplog)


def fuzz(
    schema: schemathesis.BaseSchema,
    label: str,
    mode: GenerationMode,
    after: Callable[[], None] = lambda: None,
    without: Sequence[Any] = (),
) -> None:
    """Calls one operation with what fits its document, or does not, and as a stranger."""
    operation = schema.find_operation_by_label(label)
    assert operation is not None

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    def call(case: schemathesis.Case) -> None:
        case.call_and_validate(headers=BEARER, excluded_checks=list(without), timeout=30)
        stranger = case.call(headers={"Authorization": f"Bearer {WRONG}"}, timeout=30)
        assert stranger.status_code in (400, 401)
        assert "camera.example" not in stranger.text
        after()

    call()


def test_live_cameras_cannot_be_played(local: View) -> None:
    for path in ("/api/playback", "/api/playback/timeline"):
        assert ask(local, path).status == 404


def _masked(opcode: int, payload: bytes, *, final: bool = True) -> bytes:
    """A WebSocket frame as a client sends it (RFC 6455, 5.2)."""
    size = len(payload)
    head = bytes(((0x80 if final else 0) | opcode,))
    if size < 126:
        head += bytes((0x80 | size,))
    else:
        head += (
            struct.pack(">BH", 0x80 | 126, size) if size < 65536 else struct.pack(">BQ", 0xFF, size)
        )
    mask = b"\x11\x22\x33\x44"
    return head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


def broken(rng: random.Random) -> bytes:
    """A good message, changed in a few places and continued."""
    good = bytearray(b'{"type": "watch", "cameras": {"front": "h264"}}')
    for _ in range(rng.randrange(1, 4)):
        good[rng.randrange(len(good))] = rng.choice(b'{}[]":,\\\x00\x1fx9')
    return bytes(good) + b"x"


def malformed(rng: random.Random) -> bytes:
    """Something that is no message of a viewer: of the wrong shape at one level or another."""
    reserved = bytes((rng.choice((0xF1, 0xC1, 0x83, 0x87, 0x8B, 0x8F)),))
    too_long = rng.choice((2**63 - 1, 2**32, 20_000))
    return rng.choice(
        (
            rng.randbytes(rng.randrange(2, 200)) + b"\x00" * 200,  # not a WebSocket frame at all
            reserved + _masked(1, b"{}")[1:],  # opcodes and bits that mean nothing
            struct.pack(">BBQ", 0x81, 0xFF, too_long) + b"\0" * 64,
            _masked(1, rng.randbytes(20) + b"\xff\xfe"),  # no UTF-8
            _masked(2, rng.randbytes(rng.randrange(0, 300))),  # binary
            _masked(1, broken(rng)),
            _masked(0, b"{}"),  # continues what has not begun
            _masked(1, rng.choice(_TEXTS).encode("utf-8", "surrogatepass")),
        )
    )


_TEXTS = [
    "", "null", "1", "[]", "{}", '"watch"', "NaN", "{", "[" * 8000, '{"a":' * 2000, "\x00", "\ud800",
    '{"type": "watch"}', '{"type": "watch", "cameras": []}', '{"type": "watch", "cameras": {"a": "av1"}}',
    '{"type": "watch", "cameras": {"front": null}}', '{"type": "watch", "cameras": {}, "more": 1}',
    json.dumps({"type": "watch", "cameras": {str(i): "h264" for i in range(65)}}),
    '{"type": "ping"}', '{"type": "ping", "sent_ms": "x"}', '{"type": "ping", "sent_ms": NaN}',
    '{"type": "ping", "sent_ms": 1e999}', '{"type": ["ping"], "sent_ms": 1}', '{"type": "shell"}',
    '{"type": "../../etc/passwd"}', '{"type": "watch", "cameras": {"front": "h264"}} x',
    '{"__proto__": {}, "type": "watch"}', "x" * 16_000,
]  # fmt: skip


def test_malformed_messages_end_their_connection_and_nothing_else(
    local: View, hub: FakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(7)
    port = urlsplit(local.url).port or 0
    lines = [
        f"{name}: {value}" for name, value in ({"Host": f"127.0.0.1:{port}"} | UPGRADE).items()
    ]
    opening = "\r\n".join(["GET /ws HTTP/1.1", *lines, "", ""]).encode()
    for _ in range(1000):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(opening)
            received = _read(connection)
            assert received.startswith(b"HTTP/1.1 101 ")
            connection.sendall(malformed(rng))
            connection.shutdown(socket.SHUT_WR)
            while part := _read(connection):
                received += part
        assert b"Traceback" not in received
    assert ask(local, "/healthz").status == 200
    limit = time.monotonic() + 30
    while "roadmask_viewers 0.0" not in (text := ask(local, "/metrics").text):
        assert time.monotonic() < limit, text
        time.sleep(0.05)
    assert hub.listeners("front") == 0
    assert not complaints(caplog)


def _read(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except ConnectionResetError:  # it had more to read than it wanted to
        return b""


@pytest.mark.parametrize("text", _TEXTS, ids=lambda text: text[:40])
def test_malformed_text_is_told_and_closed(local: View, text: str) -> None:
    port = urlsplit(local.url).port or 0
    lines = [
        f"{name}: {value}" for name, value in ({"Host": f"127.0.0.1:{port}"} | UPGRADE).items()
    ]
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall("\r\n".join(["GET /ws HTTP/1.1", *lines, "", ""]).encode())
        connection.sendall(_masked(1, text.encode("utf-8", "surrogatepass")))
        received = b""
        while part := _read(connection):
            received += part
            # A close frame (RFC 6455, 5.5.1) of policy violation or of text that is none.
            if any(b"\x88" in received and code in received for code in (b"\x03\xf0", b"\x03\xef")):
                return
    raise AssertionError(f"the connection was not closed: {received[-200:]!r}")


def test_garbage_instead_of_http_is_refused_quietly(
    local: View, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(3)
    port = urlsplit(local.url).port or 0
    for request in (b"\x16\x03\x01\x02\x00", b"GET", b"GET / HTTP/9.9\r\n\r\n", b"\r\n\r\n\r\n",
                    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", rng.randbytes(3000)):  # fmt: skip
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            received = b""
            while part := _read(connection):
                received += part
        assert b"Traceback" not in received
        assert not received.startswith(b"HTTP/1.1 5")
    assert not complaints(caplog, logging.ERROR)


@pytest.mark.parametrize(
    "body",
    ['{"position_seconds": false}', '{"speed": true}', '{"speed": "2"}', '{"paused": 1}', '{"frames": true}'],
)  # fmt: skip
def test_no_kind_of_value_passes_for_another(body: str) -> None:
    kind = Step if "frames" in body else Change
    with pytest.raises(ValueError, match="validation error"):
        kind.model_validate_json(body)
