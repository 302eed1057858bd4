"""`roadmask record`: cameras into a session as they come, opened again for ever, nothing labelled."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event, Lock, Thread

import av

from pipeline.errors import ConfigError
from pipeline.live.address import Address, check_name, parse_address, split_name, usual_name
from pipeline.live.connection import CameraError, Connection
from pipeline.live.waiting import Backoff
from pipeline.session.format import Limits
from pipeline.session.recorder import CameraRecorder, Recorder

_OPEN_SECONDS = _SILENCE_SECONDS = 10.0
_STEADY_SECONDS = 5.0  # a connection that lived this long has worked
_JOIN_SECONDS = 15.0

Say = Callable[[str], None]


class CameraCapture:
    """One camera, from its opening to the end of the recording, in a thread of its own.

    Attributes:
        name: the camera's.
        error: why it was given up, or what went wrong with it that should not, one line; None if neither.
        packets: recorded so far.
    """

    def __init__(self, name: str, address: Address, recorder: CameraRecorder, say: Say) -> None:
        self.name = name
        self.error: str | None = None
        self.packets = 0
        self._last_packet_at: float | None = None
        self._address, self._recorder, self._say = address, recorder, say
        self._stop = Event()
        self._backoff = Backoff()
        self._state = ""
        self._thread = Thread(target=self._run, name=f"capture-{name}", daemon=True)
        self._thread.start()

    @property
    def over(self) -> bool:
        """Whether nothing more will come: a file has ended, or the camera was given up."""
        return not self._thread.is_alive()

    def ask_to_stop(self) -> None:
        """Let go of the camera at its next packet."""
        self._stop.set()

    def join(self) -> None:
        """Wait for that, but no longer than a camera may be silent."""
        self._thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        av.logging.set_level(None)  # FFmpeg's own messages name the URL, password and all
        self._change("connecting", "added")
        while not self._stop.is_set():
            try:
                self._follow()
            except CameraError as broken:
                error = broken
            except Exception as defect:  # must not end a recording, nor pass unseen
                text = self._address.scrub(traceback.format_exc())
                logging.getLogger(__name__).error("%s: %s", self._address.shown, text)
                reason = f"internal error, please report it: {defect!r}"
                error = CameraError(self._address.scrub(reason))
                self.error = f"{self._address.shown}: {error}"
            else:
                break
            if not self._try_again(error):
                return
        self._change("ended", "the recording ends" if self._stop.is_set() else "the file ends")

    def _follow(self) -> None:
        """One connection; returns at the end of a file or of the recording. Raises CameraError."""
        connection = Connection(self._address, _OPEN_SECONDS, _SILENCE_SECONDS)
        opened = time.monotonic()
        try:
            self._recorder.connected(connection.parameters)
            self._change("live", connection.parameters.codec)
            first = True
            for packet, arrived_at in connection.packets(self._stop.wait):
                if self._stop.is_set():
                    return
                now = time.monotonic()
                if first and self._last_packet_at is not None:
                    self._recorder.gap(now - self._last_packet_at, "the camera was reconnecting")
                first, self._last_packet_at = False, now
                self._recorder.av_packet(packet, arrived_at, now)
                self.packets += 1
        finally:
            connection.close()
            if time.monotonic() - opened > _STEADY_SECONDS:
                self._backoff.succeeded()
        if self._address.kind != "file":
            raise CameraError("the camera closed the connection")

    def _try_again(self, error: CameraError) -> bool:
        if error.hopeless or self._address.kind == "file":
            self.error = f"{self._address.shown}: {error}"
            self._change("ended", str(error))
            return False
        self._change("reconnecting", str(error))
        self._stop.wait(self._backoff.next_seconds(error.refused))
        return True

    def _change(self, state: str, reason: str) -> None:
        if state != self._state:  # a camera that stays away is told of once
            self._state = state
            self._recorder.state(state, reason)
            self._say(f"{self.name}: {state}: {reason}")


def record_cameras(
    sources: Sequence[str],
    out: Path,
    limits: Limits,
    seconds: float | None,
    stop: Callable[[], bool],
    say: Say,
) -> list[str]:
    """Record until `stop`, for so many seconds, or until all files have ended; returns what failed.

    Args:
        sources: each a URL, a device or a file, `NAME=` before it to name it.

    Raises ConfigError for a source of an unknown kind, OutputError if the session cannot be written.
    """
    addresses = _named(sources)
    lock = Lock()

    def say_whole(line: str) -> None:
        with lock:
            say(line)

    deadline = None if seconds is None else time.monotonic() + seconds
    problems: set[str] = set()
    with Recorder(out, None, limits) as recorder:
        for note in recorder.notes:
            say(note)
        captures = [
            CameraCapture(name, address, recorder.camera(name), say_whole)
            for name, address in addresses.items()
        ]
        try:
            while not stop() and not all(capture.over for capture in captures):
                if deadline is not None and time.monotonic() >= deadline:
                    break
                _report_problems(recorder, captures, problems, say_whole)
                time.sleep(0.1)
        finally:
            for capture in captures:
                capture.ask_to_stop()
            for capture in captures:
                capture.join()
    packets = sum(capture.packets for capture in captures)
    say(f"{len(captures)} cameras, {packets} packets in {out}")
    return [*(capture.error for capture in captures if capture.error), *problems]


def _report_problems(
    recorder: Recorder, captures: list[CameraCapture], told: set[str], say: Say
) -> None:
    for capture in captures:
        problem = recorder.camera(capture.name).problem
        if problem and problem not in told:
            told.add(problem)
            say(f"{capture.name}: {problem}: recording goes on when it can")
            logging.getLogger(__name__).warning("%s: %s", capture.name, problem)


def _named(sources: Sequence[str]) -> dict[str, Address]:
    """Each source's address by its name, all names different. Raises ConfigError."""
    found: dict[str, Address] = {}
    for source in sources:
        given, url = split_name(source)
        address = parse_address(url, files=True)
        name = check_name(given) if given is not None else usual_name(address)
        if given is not None and name in found:
            raise ConfigError(f"two cameras are named {name!r}: give another name")
        number, free = 2, name
        while free.casefold() in {taken.casefold() for taken in found}:
            free, number = f"{name[:60]}_{number}", number + 1
        found[free] = address
    return found
