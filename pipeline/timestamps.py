"""Time stamps that later stages can trust: one a frame, and strictly increasing."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

LOOK_AHEAD = 3  # stamps that tell a clock started anew from a bad stamp
_BAD_STAMPS = 2  # in a row, that may move no other stamp
_COUNTS = ("repaired", "restarts", "_last", "_last_ticks", "_stated_before", "_offset", "_good",
           "_bad", "_bad_in_a_row", "_furthest_back")  # fmt: skip


class Timestamps:
    """Gives every decoded frame its time stamp, in ticks of the stream's own time base.

    A stamp that is there and increases is passed on as it is, negative ones too, and so are the
    holes between them: those of a time-lapse are no different from missing frames. Otherwise:

    - missing: the decoding time stamp if that increases (what FFmpeg calls the best effort: AVI has
      no other), else the previous stamp plus one frame's duration;
    - back by half a second or more, in a clock that was mostly right so far, and up to three stamps
      after it rise from there, still behind: the clock was started anew (recordings joined end to
      end). From there on all stamps are moved so that time goes on by one frame's duration;
    - else equal to the previous one or back: the previous stamp plus one tick, so that a bad stamp
      or two do not move the frames after them. From the third in a row on plus one frame's
      duration, unless the stamps rise and are about to catch up: so a clock that stands still, or
      gives garbage, still makes a video of about its true length.

    Attributes:
        repaired: number of stamps that were made up.
        restarts: how often the clock was started anew.
    """

    def __init__(self, time_base: Fraction, rate: Fraction | None = None) -> None:
        """
        Args:
            time_base: seconds a tick.
            rate: frames a second, the duration of frames that do not state theirs; None for 25.
        """
        self.repaired = self.restarts = 0
        self._time_base = time_base
        self._usual_ticks = max(1, round(1 / ((rate or Fraction(25)) * time_base)))
        self._jump_ticks = max(1, round(1 / time_base / 2))
        self._last: int | None = None
        self._last_ticks = self._usual_ticks
        self._stated_before: int | None = None
        self._offset = 0
        self._good = self._bad = self._bad_in_a_row = 0  # of the clock that runs now
        self._furthest_back = 0

    def save(self) -> dict[str, int | None]:
        """What it has come to, for `restore`; JSON can hold it."""
        return {name: vars(self)[name] for name in _COUNTS}

    def restore(self, saved: dict[str, int | None]) -> None:
        """Go on where another clock of the same stream was. Raises KeyError for what `save` never gave."""
        vars(self).update({name: saved[name] for name in _COUNTS})

    @property
    def notes(self) -> tuple[str, ...]:
        """A line if the clock was started anew."""
        if not self.restarts:
            return ()
        seconds = f"{float(self._furthest_back * self._time_base):.3f} s back"
        how = seconds if self.restarts == 1 else f"{self.restarts} times, up to {seconds}"
        return (
            f"time stamps start anew, {how}: the ones after were moved on so that time increases",
        )

    def jumps_back(self, pts: int | None) -> bool:
        """Whether it takes the stamps after this one, `LOOK_AHEAD` of them, to know what it is."""
        return self._last is not None and pts is not None and self._behind(pts) >= self._jump_ticks

    def stamp(
        self,
        pts: int | None,
        dts: int | None = None,
        duration: int | None = None,
        after: Sequence[int | None] = (),
    ) -> int:
        """The frame's time stamp in ticks, later than that of the frame before.

        Args:
            pts: the presentation time stamp as decoded, None if it is missing.
            dts: the decoding time stamp that came out with the frame, None if it is missing.
            duration: the frame's duration in ticks, None or 0 if it is not known.
            after: `pts` of the next frames; needed only where `jumps_back` says so.
        """
        stamp = self._stated(pts, dts)
        if stamp is not None and (self._last is None or stamp > self._last):
            self._good, self._bad_in_a_row = self._good + 1, 0
        else:
            stamp = self._made_up(pts, after)
            self.repaired += 1
        self._last = stamp
        self._last_ticks = duration or self._usual_ticks
        self._stated_before = pts if pts is not None else self._stated_before
        return stamp

    def _stated(self, pts: int | None, dts: int | None) -> int | None:
        if pts is not None:
            return pts + self._offset
        if dts is not None and (self._last is None or dts + self._offset > self._last):
            return dts + self._offset
        return None

    def _made_up(self, pts: int | None, after: Sequence[int | None]) -> int:
        if self._last is None:
            return 0
        if pts is None:
            return self._last + self._last_ticks
        if self._starts_anew(pts, after):
            self.restarts += 1
            self._furthest_back = max(self._furthest_back, self._behind(pts))
            self._good, self._bad, self._bad_in_a_row = 1, 0, 0
            self._offset = self._last + self._last_ticks - pts
            return self._last + self._last_ticks
        self._bad, self._bad_in_a_row = self._bad + 1, self._bad_in_a_row + 1
        stands = self._stated_before is not None and pts <= self._stated_before
        lost = self._bad_in_a_row > _BAD_STAMPS and (stands or self.jumps_back(pts))
        return self._last + (self._last_ticks if lost else 1)

    def _starts_anew(self, pts: int, after: Sequence[int | None]) -> bool:
        stamps = [pts, *(stamp for stamp in after if stamp is not None)]
        rises = stamps == sorted(stamps) and stamps[-1] > pts
        stays_back = self._behind(stamps[-1]) >= 0  # else the one stamp was bad
        return rises and stays_back and self.jumps_back(pts) and self._good >= self._bad

    def _behind(self, pts: int) -> int:
        """Ticks by which a stamp lies before the last one given."""
        assert self._last is not None
        return self._last - self._offset - pts
