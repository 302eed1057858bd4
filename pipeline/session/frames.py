"""One recorded camera as a decoder reads a file: every frame that was recorded, in presentation order.

Unlike a replay, which labels what live labelled, this is for `roadmask run`: no frame is left out, and the
results are files. Each connection's frames have the camera's own time stamps, from where its first frame
came on the session's clock; those of a camera without time stamps are shown when they came.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from fractions import Fraction
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
BACK_SECONDS = 0.5  # of a camera's time stamps: its clock was started anew


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
        self._saved: dict[str, Any] | None = None
        self._offset: float | None = None
        self._last: float | None = None
        folder = self._folder = Path(source.uri)
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
            TIME_BASE, stream.rate, None, (max(1, stream.size_hw[0]), max(1, stream.size_hw[1])),
            {"container": "session", "codec": stream.codec, "camera": self._camera.name},
        )  # fmt: skip
        self.clock = _SessionClock(TIME_BASE, stream.rate)
        self._usual = float(1 / (stream.rate or Fraction(25)))
        # What is wrong with other cameras is for their own results to say.
        self._others = tuple(
            f"{camera.packets[0].folder.parent.name}/" for camera in self._session.cameras.values()
            if camera is not self._camera
        )  # fmt: skip

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
        self._skipped, self._saved = frames, saved

    def __iter__(self) -> Generator[tuple[VideoFrame, int], None, None]:
        """Raises MediaError if it is to go on and the recording is not what it was."""
        given = 0
        for frame in self._stamped():
            given += 1
            if given > self._skipped:
                yield frame
            elif given == self._skipped and self._saved is not None:
                self._compare(self._saved)
        if given < self._skipped and not self.tally.interrupted:
            raise self._changed()
        for note in self._session.notes.all():
            if not note.startswith(self._others):
                self.tally.note(note)

    def why_no_frame(self) -> str:
        """As of `VideoReader`."""
        note = next(iter(self.tally.all_notes()), "none of its packets gives one")
        return f"holds no frame that can be decoded, {note}; expected at least one"

    def close(self) -> None:
        """Nothing stays open between frames; an iteration closes its files with itself."""

    def _compare(self, saved: dict[str, Any]) -> None:
        # The session's clock begins with its first segment, whichever camera's that is.
        if saved["clock"] != self.clock.save():
            raise self._changed()

    def _changed(self) -> MediaError:
        return MediaError(
            f"{self._folder}: the session is not what it was when the run began: run again without"
            " --resume"
        )

    def _stamped(self) -> Iterator[tuple[VideoFrame, int]]:
        before: DecodedFrame | None = None
        for decoded in decode_from(self._session, self._camera):
            if self._stop is not None and self._stop():
                self.tally.interrupted = True
                return
            connection = decoded.segment.head.connection
            anew = before is None or connection != before.segment.head.connection
            if before is not None and decoded.gap_after(before) is not None:
                self.clock.restarts += 1
            before = decoded
            self.tally.corrupt_frames += decoded.frame.is_corrupt
            yield decoded.frame, self.clock.stamp(self._ticks(decoded, anew))

    def _ticks(self, decoded: DecodedFrame, anew: bool) -> int:
        """When a frame is to be shown: as the camera's clock says, from where the connection began."""
        came, stream, pts = decoded.seconds, decoded.segment.head.stream, decoded.frame.pts
        # Not before what was shown before: a camera's clock that runs fast is ahead when it is opened anew.
        at_least = self._last + self._usual if self._last is not None else -math.inf
        if stream is None or pts is None or stream.counted:
            shown = max(came, at_least) if anew else came
        else:
            stated = float(pts * stream.time_base)
            if anew or self._offset is None:
                self._offset = max(came, at_least) - stated
            elif self._last is not None and self._offset + stated < self._last - BACK_SECONDS:
                self._offset = max(came, at_least) - stated  # its clock was started anew
                self.clock.restarts += 1
            shown = self._offset + stated
        self._last = shown if self._last is None else max(self._last, shown)
        return round(shown / TIME_BASE)
