"""Where the view listens, and who may see it."""

from __future__ import annotations

import ipaddress
import secrets
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import ConfigError

DEFAULT_SCHEMES = ("rtsp", "rtsps", "rtmp", "http", "https", "srt", "udp")
"""What a camera added through the API may be. Files and devices never may."""

_LOCAL_SCHEMES = frozenset({"", "file", "concat", "subfile", "data", "pipe", "fd", "unix"})
SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class ViewConfig:
    """Where the view listens, and who may see it.

    Attributes:
        host: address to listen on. Anything but this machine's own needs a token.
        port: TCP port; 0 takes a free one.
        token: what a viewer must know, printable ASCII, at least 16 characters; None asks for none.
        tls_cert, tls_key: PEM files of the certificate (chain) and its key; the key may be in the
            certificate's file.
        schemes: URL schemes that a camera added through the API may have, lower case.
        max_viewers: connections beyond this many are turned away.
        stall_seconds: a viewer that has taken nothing for so long is disconnected.

    Raises ConfigError if the values contradict each other.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    schemes: tuple[str, ...] = DEFAULT_SCHEMES
    max_viewers: int = 200
    stall_seconds: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"the view's port must be 0 to 65535, got {self.port}")
        if self.token is not None:
            _check_token(self.token)
        elif not self.is_loopback:
            raise ConfigError(
                f"a view on {self.host or 'every address'} can be seen from other machines and"
                f" needs a token, such as {secrets.token_urlsafe(18)}"
            )
        if self.tls_key is not None and self.tls_cert is None:
            raise ConfigError("a TLS key needs its certificate: give --tls-cert too")
        local = _LOCAL_SCHEMES.intersection(self.schemes)
        if local:
            raise ConfigError(
                f"schemes must be of the network, such as rtsp, got {', '.join(sorted(local))!r}"
            )
        if self.max_viewers < 1 or self.stall_seconds <= 0:
            raise ConfigError(
                "max_viewers must be at least 1 and stall_seconds above 0,"
                f" got {self.max_viewers} and {self.stall_seconds}"
            )

    @classmethod
    def at(
        cls,
        address: str,
        token: str | None = None,
        tls_cert: Path | None = None,
        tls_key: Path | None = None,
    ) -> ViewConfig:
        """As the command line has it, with the address as HOST:PORT. Raises ConfigError."""
        host, colon, port = address.rpartition(":")
        if not (colon and port.isascii() and port.isdecimal()):
            raise ConfigError(f"--view must be HOST:PORT, such as 127.0.0.1:8000, got {address!r}")
        return cls(host.strip("[]"), int(port), token, tls_cert, tls_key)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about these choices, a line each."""
        if self.is_loopback or self.tls_cert is not None:
            return ()
        return (
            f"the view on {self.host} is not encrypted: token and pictures can be read on the way;"
            " give --tls-cert and --tls-key, or put it behind a proxy that has them",
        )

    def tls_context(self) -> ssl.SSLContext | None:
        """What encrypts the connections, None without a certificate. Raises ConfigError."""
        if self.tls_cert is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            # A key with a passphrase would be asked for on the terminal; a server has none.
            context.load_cert_chain(self.tls_cert, self.tls_key, password=_no_passphrase)
        except (OSError, ssl.SSLError, ValueError) as error:
            given = " and ".join(str(path) for path in (self.tls_cert, self.tls_key) if path)
            raise ConfigError(
                f"{given}: expected a certificate and its key, unencrypted PEM: {error}"
            ) from error
        return context


def _check_token(token: str) -> None:
    if len(token) < SHORTEST_TOKEN or not (token.isascii() and token.isprintable()):
        raise ConfigError(
            f"the token must be at least {SHORTEST_TOKEN} printable ASCII characters, got"
            f" {len(token)} characters; such as {secrets.token_urlsafe(18)}"
        )
    if token != token.strip():
        raise ConfigError("the token must not begin or end with a space")


def _no_passphrase() -> str:
    raise ValueError("the key is encrypted")
