"""Events: a class takes more than a share of a camera's picture for so long, and somebody is told.

--event 'pedestrian > 5% for 2s -> https://example.org/hook'
--event 'car>0.3 for 10s -> mqtt://user:password@broker/roads/front'
"""

from __future__ import annotations

import json
import logging
import re
import time
import urllib.request
from base64 import b64encode
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from queue import Empty, Full, Queue
from threading import Condition, Event, Thread
from typing import Any
from urllib.parse import unquote, urlsplit

from pipeline.errors import ConfigError
from pipeline.live.labeller import Labelled
from pipeline.live.live import Listener
from pipeline.secrecy import mask, scrub, split_url

_RULE = re.compile(
    r"\s*(?P<name>[^<>]+?)\s*>\s*(?P<share>[0-9]*\.?[0-9]+)\s*(?P<percent>%?)"
    r"(\s+for\s+(?P<seconds>[0-9]*\.?[0-9]+)\s*s)?\s*->\s*(?P<target>\S+)\s*"
)
_EXAMPLE = "'pedestrian>0.05 for 2s -> https://example.org/hook'"
_WAITING_EVENTS = 100
_TIMEOUT_SECONDS = 5.0
_PAUSES_SECONDS = (1.0, 4.0)  # before the second and the third try
_LONGEST_PAUSE_SECONDS = 15  # between tries to reach a broker
_LAST_WAIT_SECONDS = 2.0  # for a broker, when the run ends
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rule:
    """When to tell whom.

    Attributes:
        class_name, class_id: whose share is watched.
        share: above which it must be, 0 to 1.
        seconds: for so long, without a frame in which it is not.
        target: URL of a webhook or an MQTT topic; never shown as it is.
    """

    class_name: str
    class_id: int
    share: float
    seconds: float
    target: str = field(repr=False)


def parse_rule(text: str, classes: tuple[str, ...]) -> Rule:
    """A rule as the command line gives it. Raises ConfigError."""
    found = _RULE.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"event {mask(text)!r}: expected CLASS>SHARE [for SECONDSs] -> URL, such as {_EXAMPLE}"
        )
    name, share = found["name"], float(found["share"]) / (100 if found["percent"] else 1)
    if name not in classes:
        raise ConfigError(f"event: the model has no class {name!r}; it has {', '.join(classes)}")
    if not 0 <= share < 1:
        raise ConfigError(f"event: the share of {name} must be 0 to below 1, got {share:g}")
    parts = split_url(found["target"])
    if parts.scheme not in ("http", "https", "mqtt", "mqtts") or not parts.hostname:
        raise ConfigError(
            f"event: {mask(found['target'])}: expected an http(s):// webhook or mqtt(s)://HOST/TOPIC"
        )
    if parts.scheme.startswith("mqtt") and not parts.path.strip("/"):
        raise ConfigError(f"event: {mask(found['target'])}: names no topic; expected HOST/TOPIC")
    return Rule(name, classes.index(name), share, float(found["seconds"] or 0), found["target"])


@dataclass
class _Watch:
    """A rule and a camera: since when the share is above, and whether it was told."""

    since: float | None = None
    told: bool = False


class Events(Listener):
    """Watches the rules and sends what comes of them, each target in a thread of its own.

    A rule speaks once; again only after its share was not above in between.

    Attributes:
        sent: events that arrived.
        lost: those that did not: a webhook's after three tries, an MQTT broker's when the run ended before
            it came back; or because too many waited.
    """

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self._rules = rules
        self._watches: dict[tuple[str, Rule], _Watch] = {}
        self._senders = {rule.target: _Sender(rule.target) for rule in rules}
        for sender in self._senders.values():
            sender.start()

    @property
    def sent(self) -> int:
        return sum(sender.sent for sender in self._senders.values())

    @property
    def lost(self) -> int:
        return sum(sender.lost for sender in self._senders.values())

    def labelled(self, labelled: Labelled) -> None:
        shown = labelled.shown
        for rule in self._rules:
            watch = self._watches.setdefault((shown.camera, rule), _Watch())
            share = float(labelled.shares[rule.class_id])
            if share <= rule.share or labelled.fresh:  # what was before a long gap does not count
                watch.since, watch.told = None, watch.told and share > rule.share
            if share <= rule.share:
                continue
            watch.since = shown.captured_at if watch.since is None else watch.since
            if not watch.told and shown.captured_at - watch.since >= rule.seconds:
                watch.told = True
                self._senders[rule.target].put(_message(rule, labelled, share, watch.since))

    def camera_gone(self, name: str) -> None:
        self._watches = {key: watch for key, watch in self._watches.items() if key[0] != name}

    def close(self, timeout_seconds: float = 5.0) -> None:
        """Send what waits, for a while, and stop."""
        deadline = time.monotonic() + timeout_seconds
        for sender in self._senders.values():
            sender.ask_to_stop()
        for sender in self._senders.values():
            sender.join(max(0.0, deadline - time.monotonic()))


def _message(rule: Rule, labelled: Labelled, share: float, since: float) -> dict[str, Any]:
    return {
        "event": "class_share",
        "camera": labelled.shown.camera,
        "class": rule.class_name,
        "share": round(share, 5),
        "threshold": rule.share,
        "seconds": rule.seconds,
        "since": datetime.fromtimestamp(since, UTC).isoformat(timespec="milliseconds"),
        "at": datetime.fromtimestamp(labelled.shown.captured_at, UTC).isoformat(
            timespec="milliseconds"
        ),
        "frame_index": labelled.shown.frame_index,
    }


class _Sender(Thread):
    """Sends events to one target, in order, as long as that takes. Nobody waits for it."""

    def __init__(self, target: str) -> None:
        super().__init__(name="events", daemon=True)
        self._target = target
        self._queue: Queue[dict[str, Any]] = Queue(_WAITING_EVENTS)
        self._stopping = Event()
        self.sent = self.lost = 0
        self._to = _Topic(target) if target.startswith("mqtt") else _Webhook(target)

    def put(self, message: dict[str, Any]) -> None:
        try:
            self._queue.put_nowait(message)
        except Full:
            self.lost += 1

    def ask_to_stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        while not (self._stopping.is_set() and self._queue.empty()):
            with suppress(Empty):
                body = json.dumps(self._queue.get(timeout=0.2)).encode()
                if not self._send(body) and self._stopping.is_set():
                    self.lost += self._queue.qsize()  # nor would those
                    break
        self._to.close()

    def _send(self, body: bytes) -> bool:
        try:
            self._to.deliver(body, self._stopping)
        except Exception as error:
            self.lost += 1
            where = mask(self._target)
            why = scrub(str(error), self._target, where)
            _log.warning("event for %s was lost: %s", where, why)
            return False
        self.sent += 1
        return True


class _Webhook:
    """Posts JSON to a URL; its user and password go in a header."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._headers = {"Content-Type": "application/json", "User-Agent": "roadmask"}
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = f"Basic {b64encode(user.encode()).decode()}"
        self._url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()

    def deliver(self, body: bytes, stopping: Event) -> None:
        """Raises what went wrong the third time."""
        for pause in _PAUSES_SECONDS:
            try:
                return self._post(body)
            except Exception:
                stopping.wait(pause)
        return self._post(body)

    def _post(self, body: bytes) -> None:
        request = urllib.request.Request(self._url, body, self._headers, method="POST")
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS):
            pass

    def close(self) -> None:
        pass


class _Topic:
    """Publishes to an MQTT topic, at least once; a broker that is away is waited for."""

    def __init__(self, target: str) -> None:
        try:
            from paho.mqtt import client as mqtt
        except ModuleNotFoundError as error:
            raise ConfigError("events by MQTT need: pip install 'roadmask[mqtt]'") from error
        parts = urlsplit(target)
        self._topic = unquote(parts.path).strip("/")
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        if parts.username is not None:
            self._client.username_pw_set(unquote(parts.username), unquote(parts.password or ""))
        secure = parts.scheme == "mqtts"
        if secure:
            self._client.tls_set()
        self._client.reconnect_delay_set(1, _LONGEST_PAUSE_SECONDS)
        self._client.on_publish = self._acknowledge
        self._client.on_connect = self._tell_of_refusal
        self._acknowledged: set[int] = set()  # numbers of messages the broker has
        self._changed = Condition()
        self._where = mask(target)
        self._client.connect_async(parts.hostname or "", parts.port or (8883 if secure else 1883))
        self._client.loop_start()  # connects, and again whenever it must

    def _acknowledge(self, client: Any, userdata: Any, number: int, *_: Any) -> None:
        with self._changed:
            self._acknowledged.add(number)
            self._changed.notify_all()

    def _tell_of_refusal(self, client: Any, userdata: Any, flags: Any, why: Any, *_: Any) -> None:
        if why.is_failure:
            _log.warning("the broker of %s refuses: %s", self._where, why)

    def deliver(self, body: bytes, stopping: Event) -> None:
        """Raises ConnectionError if the run ends before the broker has it."""
        # The client keeps it while there is no connection: to publish it again would send it twice.
        number = self._client.publish(self._topic, body, qos=1).mid
        ends_at: float | None = None
        with self._changed:
            while number not in self._acknowledged:
                if stopping.is_set():
                    ends_at = ends_at or time.monotonic() + _LAST_WAIT_SECONDS
                    if time.monotonic() > ends_at:
                        raise ConnectionError("the broker does not answer")
                self._changed.wait(0.2)
            self._acknowledged.discard(number)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
