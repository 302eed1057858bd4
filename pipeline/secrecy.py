"""Addresses without their secrets: what may stand in messages, manifests, metrics and traces."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, unquote, urlsplit

from pipeline.errors import ConfigError

_QUERY_PAIR = re.compile(r"([^&=?#]+)=([^&#]*)")
_SECRET_KEY = re.compile(r"(?i)pass|pwd|token|secret|key|auth|sig|cred|session|streamid")
# Some cameras take them in the path: /user=admin&password=12345&channel=1, or with _ between.
_SECRET_IN_PATH = re.compile(r"(?i)((?:pass|pwd|token|secret|key|auth)[^=&/]*=)([^&/]*)")
_STREAM_KEY = re.compile(r"(?i)(rtmp[a-z]*://[^/]*/.+/)([^/]+)")  # whoever has it may publish


def mask(url: str) -> str:
    """The URL with `***` for its password, for each value in its path or query that may be a secret, and for
    an RTMP stream's key."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    user = userinfo(rest)
    if user:
        name, colon, _ = user.partition(":")
        rest = (f"{name}:***" if colon else "***") + rest[len(user) :]
    before, mark, query = rest.partition("?")
    before = _SECRET_IN_PATH.sub(r"\1***", scheme + separator + before)
    before = _STREAM_KEY.sub(r"\1***", before)
    return before + mark + _QUERY_PAIR.sub(_mask_pair, query)


def _mask_pair(found: re.Match[str]) -> str:
    return f"{found[1]}=***" if _SECRET_KEY.search(found[1]) else found[0]


def userinfo(rest: str) -> str:
    """What stands before the host, user and password.

    A password with a bare / in it ends the authority too early, by the book; it is to be hidden all
    the same. Only a port, which is a number, keeps an @ further on from being taken for its end.
    """
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        return authority.rpartition("@")[0]
    _, colon, after = authority.rpartition(":")
    if colon and after and not after.isdecimal() and not authority.startswith("["):
        return rest.rpartition("@")[0]
    return ""


def secrets_of(url: str) -> list[str]:
    """The passwords and tokens of a URL, as written and decoded; the longest first."""
    rest = url.partition("://")[2]
    found = {userinfo(rest).partition(":")[2] or userinfo(rest)}
    before, _, query = url.partition("?")
    for key, value in _QUERY_PAIR.findall(query):
        if _SECRET_KEY.search(key):
            found.add(value)
    found |= {secret for _, secret in _SECRET_IN_PATH.findall(before)}
    found |= {secret for _, secret in _STREAM_KEY.findall(before)}
    found |= {unquote(secret) for secret in found}
    return sorted((secret for secret in found if len(secret) > 2), key=len, reverse=True)


def scrub(text: str, url: str, shown: str) -> str:
    """A text about an address without the address's secrets; where all of it stands, `shown` does then."""
    text = text.replace(url, shown)
    for secret in secrets_of(url):
        text = text.replace(secret, "***")
    return text


def split_url(url: str) -> SplitResult:
    """The parts of a URL, its port a number. Raises ConfigError, without its secrets, if it has none."""
    try:
        parts = urlsplit(url)
        _ = parts.hostname, parts.port  # read here, where it can be told what is wrong
    except ValueError:
        # Not the error's own text: it quotes what it took for the port, which may be a password's end.
        raise ConfigError(f"{mask(url)}: is no valid address") from None
    return parts
