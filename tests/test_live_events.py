"""Events by MQTT, to a real broker that goes away and comes back. Webhooks: test_live_outputs.py."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.spec import CAMVID_CLASSES
from pipeline.live.delivery import Frame
from pipeline.live.events import Events, parse_rule
from pipeline.live.hub import Shown
from pipeline.live.labeller import Labelled
from tests.cameras import broker_command, free_port, has_broker, until

pytestmark = pytest.mark.skipif(not has_broker(), reason="the mosquitto broker is not installed")


class Broker:
    """Mosquitto on a port of its own, with a user `me`; it keeps what its subscribers have not had."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        passwords, self._config = folder / "passwords", folder / "mosquitto.conf"
        passwords.touch()
        subprocess.run(
            ["mosquitto_passwd", "-b", str(passwords), "me", "secret99"],
            check=True,
            capture_output=True,
        )
        passwords.chmod(0o644)
        self._config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous false\npassword_file {passwords}\n"
            f"persistence true\npersistence_location {folder}/\nuser root\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [str(broker_command()), "-c", str(self._config)]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()  # it writes down who subscribes
            self._process.wait()
            self._process = None


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    found = Broker(tmp_path)
    found.start()
    try:
        yield found
    finally:
        found.stop()


@contextmanager
def subscriber(broker: Broker) -> Iterator[list[dict[str, Any]]]:
    """What comes to the topics below `roads`, in order."""
    from paho.mqtt import client as mqtt

    got: list[dict[str, Any]] = []
    subscribed: list[int] = []
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="test", clean_session=False)
    client.username_pw_set("me", "secret99")
    client.reconnect_delay_set(1, 1)
    client.on_connect = lambda *_: client.subscribe("roads/#", qos=1)
    client.on_subscribe = lambda *_: subscribed.append(1)
    client.on_message = lambda _, __, message: got.append(json.loads(message.payload))
    client.connect_async("127.0.0.1", broker.port)
    client.loop_start()
    try:
        until(lambda: subscribed)
        yield got
    finally:
        client.disconnect()
        client.loop_stop()


def labelled(share: float, index: int) -> Labelled:
    shares = np.zeros(len(CAMVID_CLASSES), np.float32)
    shares[CAMVID_CLASSES.index("pedestrian")] = share
    blank = np.zeros((4, 4), np.uint8)
    at = 1000.0 + index
    shown = Shown("front", index, at, at + 0.01, blank, blank)
    return Labelled(
        shown, Frame(index, at, 0, (4, 4), blank), shares, False, at, lambda: (blank, 1)
    )


def tell(events: Events, first: int, count: int) -> None:
    """So many events, each of a frame of its own."""
    for index in range(first, first + count):
        events.labelled(labelled(0.5, index))
        events.labelled(labelled(0.0, index))


def events_to(broker: Broker, user: str = "me:secret99") -> Events:
    target = f"mqtt://{user}@127.0.0.1:{broker.port}/roads/front"
    return Events((parse_rule(f"pedestrian>0.1 -> {target}", CAMVID_CLASSES),))


def test_what_happens_while_the_broker_is_away_arrives_once_it_is_back(broker: Broker) -> None:
    with subscriber(broker) as got:
        events = events_to(broker)
        tell(events, 0, 3)
        until(lambda: len(got) == 3)
        broker.stop()
        tell(events, 3, 20)  # nobody waits: the frames are the network's own thread's
        assert events.sent <= 4
        time.sleep(2.0)
        broker.start()
        until(lambda: len(got) >= 23, 120)
        tell(events, 23, 2)
        until(lambda: events.sent == 25, 60)
        until(lambda: got[-1]["frame_index"] == 24)
        events.close()
    indices = [message["frame_index"] for message in got]
    assert sorted(set(indices)) == list(range(25))
    assert indices == sorted(indices)
    assert len(indices) <= 26  # at least once: what was on its way may come again
    assert (events.sent, events.lost) == (25, 0)
    assert got[0]["class"] == "pedestrian"


def test_events_that_find_no_broker_are_counted_and_the_end_does_not_wait_for_it(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    broker.stop()
    events = events_to(broker)
    tell(events, 0, 150)  # a hundred may wait
    until(lambda: events.lost >= 48)
    events.close(timeout_seconds=60)
    assert events.sent == 0
    assert events.lost == 150
    assert "secret99" not in caplog.text


def test_a_broker_that_refuses_is_told_of_without_the_password(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    events = events_to(broker, "me:wrong99")
    tell(events, 0, 1)
    until(lambda: "refuses" in caplog.text)
    events.close(timeout_seconds=60)
    assert events.lost == 1
    assert "wrong99" not in caplog.text
