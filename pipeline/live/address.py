"""What a user names as a camera: its kind, its name, and its address without the password.

Nothing is opened here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.errors import ConfigError
from pipeline.secrecy import mask, scrub, split_url, userinfo
from pipeline.sources import safe_name

# How an address begins, and what kind of camera that is. `rtspu` and `rtspt` are GStreamer's names
# for RTSP whose media come over UDP and TCP.
_KIND_OF_SCHEME = {
    "rtsp": "rtsp", "rtsps": "rtsp", "rtspt": "rtsp", "rtspu": "rtsp",
    "rtmp": "rtmp", "rtmps": "rtmp", "rtmpt": "rtmp", "rtmpts": "rtmp",
    "http": "http", "https": "http", "srt": "srt", "udp": "udp",
}  # fmt: skip
SCHEMES = tuple(_KIND_OF_SCHEME)
_ANYWHERE = ("rtsp", "rtmp", "http", "srt")  # kinds of cameras that every machine can open
KINDS = ("rtsp", "rtmp", "http", "srt", "udp", "device", "file")
_NAMED = re.compile(r"(?P<name>[^=/:?]+)=(?P<url>([a-z]+://|/dev/video).*)", re.DOTALL)
_SUPPORTED = "expected rtsp://, rtmp://, http(s)://, srt://, udp:// or /dev/videoN"


@dataclass(frozen=True)
class Address:
    """A camera's address, checked.

    Attributes:
        url: as FFmpeg opens it, with its password; never shown.
        kind: one of `KINDS`.
        shown: as given, passwords and tokens replaced by ***.
        over_udp: RTSP's media come as datagrams instead of through the same TCP connection.
    """

    url: str = field(repr=False)
    kind: str
    shown: str
    over_udp: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")

    def scrub(self, text: str) -> str:
        """A message without this camera's secrets, as one line."""
        return " ".join(scrub(text, self.url, self.shown).split())


def parse_address(text: str, *, files: bool = False) -> Address:
    """Checks what is named as a camera.

    Args:
        text: a URL, `/dev/videoN`, or a file's path.
        files: whether a file may be named, to be played at its own pace.

    Raises:
        ConfigError: it is of an unknown kind, names no host, or is a file that is not there or may
            not be named.
    """
    text = text.strip()
    if re.fullmatch(r"/dev/video[0-9]{1,4}", text):
        return Address(text, "device", text)
    scheme, separator, rest = text.partition("://")
    if not separator or scheme.lower() == "file":
        return _file(unquote(rest) if separator else text, files)
    shown, scheme = mask(text), scheme.lower()
    kind = _KIND_OF_SCHEME.get(scheme)
    if kind is None:
        raise ConfigError(f"{shown}: {scheme}:// is no kind of camera; {_SUPPORTED}")
    if any(ord(c) < 0x21 for c in text) or not (_host(text) or kind == "udp"):
        raise ConfigError(f"{shown}: names no host; expected {scheme}://HOST[:PORT]/PATH")
    split_url(f"{scheme}://{_public(rest)}")
    plain = f"rtsp://{rest}" if scheme in ("rtspt", "rtspu") else text
    return Address(plain, kind, shown, over_udp=scheme == "rtspu")


def split_name(text: str) -> tuple[str | None, str]:
    """`front=rtsp://...` as ("front", "rtsp://..."); None as the name where none is given."""
    found = _NAMED.fullmatch(text.strip())
    return (found["name"], found["url"]) if found else (None, text)


def check_name(name: str) -> str:
    """The name, if it can be a camera's: short, printable, and safe as a folder.

    Raises ConfigError otherwise.
    """
    if not name.isprintable() or len(name) > 64 or name != safe_name(name):
        raise ConfigError(
            f"a camera's name must be printable, up to 64 characters, without / \\ : * ? \" < > |,"
            f" got {name[:80]!r}"
        )
    return name


def usual_name(address: Address) -> str:
    """A name for a camera that was given none: its host and path, the file's stem, or the device."""
    if address.kind in ("file", "device"):
        return safe_name(Path(address.url).stem)[:64]
    public = mask(f"{address.kind}://{_public(address.url.partition('://')[2])}")
    path = re.sub(r"[^A-Za-z0-9._-]+", "_", urlsplit(public).path).strip("_")
    host = re.sub(r"[^A-Za-z0-9.-]+", "_", _host(address.url)).strip("_")
    host = host or f"port_{_port(address.url)}"
    return safe_name(f"{host}_{path}" if path and address.kind != "rtmp" else host)[:64]


def check_anywhere(address: Address) -> None:
    """Raises ConfigError for a camera that one machine alone can reach."""
    if address.kind not in _ANYWHERE:
        raise ConfigError(
            f"{address.shown}: is known to one machine alone; with --address, name cameras that every"
            f" node can reach: {', '.join(_ANYWHERE)}"
        )


def free_name(name: str, taken: Iterable[str]) -> str:
    """The name, or it with a number behind, so that it differs from all of `taken` in any case."""
    others = {other.casefold() for other in taken}
    number, free = 2, name
    while free.casefold() in others:
        free, number = f"{name[:60]}_{number}", number + 1
    return free


def _public(rest: str) -> str:
    """What follows user and password."""
    return rest[len(userinfo(rest)) :].lstrip("@")


def _host(url: str) -> str:
    rest = _public(url.partition("://")[2])
    return (
        re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition(":")[0]
        or re.split(r"[:/?#]", rest, maxsplit=1)[0]
    )


def _port(url: str) -> str:
    found = re.search(r":([0-9]+)", url.partition("://")[2])
    return found[1] if found else "0"


def _file(path: str, files: bool) -> Address:
    path = os.path.expanduser(path)
    if not os.path.exists(path):
        raise ConfigError(f"{path}: no such file, and no URL; {_SUPPORTED}")
    if not files:
        raise ConfigError(
            f"{path}: is a file: add --realtime to play it at its own pace, or use `roadmask run`"
        )
    if not os.path.isfile(path):
        raise ConfigError(f"{path}: is a folder; name the video files in it")
    return Address(path, "file", path)
