"""Time stamps that later stages can trust: one a frame, and strictly increasing."""

from __future__ import annotations

from fractions import Fraction


class Timestamps:
    """Gives every decoded frame its time stamp, in ticks of the stream's own time base.

    A stamp that is there and increases is passed on as it is, negative ones too. Otherwise:

    - missing: the decoding time stamp if that increases (what FFmpeg calls the best effort: AVI has
      no other), else the previous stamp plus one frame's duration;
    - equal to the previous one, or back by less than half a second: the previous stamp plus one
      tick, so that one bad stamp does not move the frames after it;
    - further back: the clock was started anew (recordings joined end to end). From there on all
      stamps are moved so that time goes on by one frame's duration.

    Attributes:
        repaired: number of stamps that were made up.
        notes: a line for each restart of the clock.
    """

    def __init__(self, time_base: Fraction, rate: Fraction | None = None) -> None:
        """
        Args:
            time_base: seconds a tick.
            rate: frames a second, the duration of frames that do not state theirs; None for 25.
        """
        self.repaired = 0
        self.notes: list[str] = []
        self._time_base = time_base
        self._usual_ticks = max(1, round(1 / ((rate or Fraction(25)) * time_base)))
        self._jump_ticks = max(1, round(1 / time_base / 2))
        self._last: int | None = None
        self._last_ticks = self._usual_ticks
        self._offset = 0

    def stamp(self, pts: int | None, dts: int | None = None, duration: int | None = None) -> int:
        """The frame's time stamp in ticks, later than that of the frame before.

        Args:
            pts: the presentation time stamp as decoded, None if it is missing.
            dts: the decoding time stamp that came out with the frame, None if it is missing.
            duration: the frame's duration in ticks, None or 0 if it is not known.
        """
        stamp = self._stated(pts, dts)
        if stamp is None:
            stamp = 0 if self._last is None else self._last + self._last_ticks
            self.repaired += 1
        elif self._last is not None and stamp <= self._last:
            stamp = self._after(stamp)
            self.repaired += 1
        self._last = stamp
        self._last_ticks = duration or self._usual_ticks
        return stamp

    def _stated(self, pts: int | None, dts: int | None) -> int | None:
        if pts is not None:
            return pts + self._offset
        if dts is not None and (self._last is None or dts + self._offset > self._last):
            return dts + self._offset
        return None

    def _after(self, stamp: int) -> int:
        assert self._last is not None
        back = self._last - stamp
        if back < self._jump_ticks:
            return self._last + 1
        self._offset += back + self._last_ticks
        self.notes.append(
            f"time stamps start anew, {float(back * self._time_base):.3f} s back:"
            " the ones after were moved on so that time increases"
        )
        return stamp + back + self._last_ticks
