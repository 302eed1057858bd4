"""One recorded camera as a decoder reads a file: every frame that was recorded, in presentation order.

Unlike a replay, which labels what live labelled, this is for `roadmask run`: no frame is left out, and the
results are files. Each connection's frames have the camera's own time stamps, from where its first frame
came on the session's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

from av.video.frame import VideoFrame

from pipeline.errors import MediaError
from pipeline.media import MediaFacts, Tally
from pipeline.session.errors import SessionError
from pipeline.session.packets import DecodedFrame, decode_from
from pipeline.session.reader import CameraFiles, Session
from pipeline.sources import Source
from pipeline.timestamps import Timestamps

TIME_BASE = Fraction(1, 90_000)  # as RTP's clock for video (RFC 3551)
HOLE_SECONDS = 1.0  # without a frame: some are missing


class _SessionClock(Timestamps):
    """Its restarts are gaps of the recording, which has notes of its own."""

    @property
    def notes(self) -> tuple[str, ...]:
        return ()


class SessionReader:
    """The frames of a recorded camera with their time stamps, in ticks of `TIME_BASE`.

    Attributes: as of `VideoReader`; the clock's restarts are the places where frames are missing or the
    camera was opened anew.
    """

    gap_reason = "frames are missing in the recording"

    def __init__(self, source: Source, stop: Callable[[], bool] | None) -> None:
        """Opens the session.

        Args:
            source: of the kind "session"; its `uri` is the camera's folder.

        Raises:
            SourceNotFoundError: there is no session.
            MediaError: nothing of it, or of the camera, can be read.
        """
        self.tally = Tally()
        self._stop, self._skipped = stop, 0
        folder = Path(source.uri)
        try:
            self._session = Session.open(folder.parent)
        except SessionError as error:
            raise MediaError(str(error)) from error
        self._camera = self._find(folder)
        heads = [segment.head for segment in self._camera.packets if segment.head.stream]
        if not heads:
            raise MediaError(f"{folder}: holds no packets that can be read; expected a recording")
        stream = heads[0].stream
        assert stream is not None
        self.facts = MediaFacts(
            TIME_BASE, stream.rate, None, stream.size_hw,
            {"container": "session", "codec": stream.codec, "camera": self._camera.name},
        )  # fmt: skip
        self.clock = _SessionClock(TIME_BASE, stream.rate)

    def _find(self, folder: Path) -> CameraFiles:
        for camera in self._session.cameras.values():
            if camera.packets[0].folder.parent.name == folder.name:
                return camera
        why = "; ".join(self._session.notes.all()[:1]) or "it has no packets"
        raise MediaError(f"{folder}: is no camera of a recorded session: {why}")

    def save(self) -> dict[str, Any]:
        """As of `VideoReader`: the way back is from the start."""
        return {"clock": self.clock.save(), "tally": self.tally.save(), "place": None}

    def remember(self, frame: VideoFrame) -> None:
        """Nothing has to be: a frame is found by decoding from the start."""

    def go_on(self, frames: int, saved: dict[str, Any]) -> None:
        """As of `VideoReader`."""
        self._skipped = frames

    def __iter__(self) -> Generator[tuple[VideoFrame, int], None, None]:
        yield from islice(self._stamped(), self._skipped, None)
        for note in self._session.notes.all():
            self.tally.note(note)

    def close(self) -> None:
        """Nothing stays open between frames; an iteration closes its files with itself."""

    def _stamped(self) -> Iterator[tuple[VideoFrame, int]]:
        before: DecodedFrame | None = None
        first: tuple[int | None, float] = (None, 0.0)
        for decoded in decode_from(self._session, self._camera):
            if self._stop is not None and self._stop():
                self.tally.interrupted = True
                return
            anew = before is None or _connection(decoded) != _connection(before)
            if anew:
                first = (decoded.frame.pts, decoded.seconds)
            if before is not None and (
                anew
                or decoded.broken != before.broken
                or decoded.seconds - before.seconds > HOLE_SECONDS
            ):
                self.clock.restarts += 1
            before = decoded
            self.tally.corrupt_frames += decoded.frame.is_corrupt
            yield decoded.frame, self.clock.stamp(_ticks(decoded, *first))


def _connection(decoded: DecodedFrame) -> tuple[int, str]:
    return decoded.segment.head.connection, decoded.segment.head.run[0]


def _ticks(decoded: DecodedFrame, first_pts: int | None, began: float) -> int:
    """When a frame is to be shown: by the camera's clock since the connection began, if it states one."""
    pts, stream = decoded.frame.pts, decoded.segment.head.stream
    if pts is None or first_pts is None or stream is None:
        return round(decoded.seconds / TIME_BASE)
    return round((Fraction(began).limit_denominator(10**6) + (pts - first_pts) * stream.time_base)
                 / TIME_BASE)  # fmt: skip
