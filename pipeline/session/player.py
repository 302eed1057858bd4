"""Playing a session: every camera through decoder and segmenter, on one clock, to whoever listens."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from threading import Lock, Thread

from pipeline.closing import Closing
from pipeline.session.clock import ReplayClock
from pipeline.session.memory import ReplaySegmenter
from pipeline.session.moments import duration_of, frame_before
from pipeline.session.reader import Session
from pipeline.session.reel import Reel
from pipeline.session.source import CameraSource, ModelSize, ReplayedFrame
from pipeline.stages import ahead

AHEAD_FRAMES = 10  # labelled before they are due, so that a burst is not late
_LATENESS_KEPT = 100_000
# So much further on, frames are labelled on the way there; beyond it, from the state before it.
_NEAR_SECONDS = 3.0

OnFrame = Callable[[ReplayedFrame], None]


@dataclass
class Tally:
    """What one camera's replay came to so far.

    Attributes:
        frames: let go.
        lost: recorded label maps whose frames are not in the recording.
        unlabelled: frames that were not labelled when recorded, and so are not now.
        over: it has no further frame.
    """

    frames: int = 0
    lost: int = 0
    unlabelled: int = 0
    over: bool = False


@dataclass
class Lateness:
    """How far from the recorded clock frames were let go, seconds; late is above zero."""

    seconds: list[float] = field(default_factory=list)

    def add(self, late: float) -> None:
        if len(self.seconds) < _LATENESS_KEPT:
            self.seconds.append(late)

    def quantile_ms(self, share: float) -> float | None:
        """Milliseconds; None without frames."""
        if not self.seconds:
            return None
        ordered = sorted(abs(late) for late in self.seconds)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Player(Closing):
    """Plays a session. All methods may be called from any thread, but not from `on_frame`.

    Attributes:
        session: what is played.
        tallies: by camera, anew after each `seek`.
        lateness: of the frames let go since the last `seek` or change of pace.
    """

    def __init__(
        self,
        session: Session,
        segmenter: ReplaySegmenter,
        model_hw: ModelSize,
        on_frame: tuple[OnFrame, ...] = (),
        *,
        on_show: tuple[OnFrame, ...] = (),
        speed: float = 1.0,
        start_seconds: float = 0.0,
        paused: bool = False,
        kept_bytes: int = 0,
        states_fit: bool = True,
    ) -> None:
        """
        Args:
            segmenter: labels the frames.
            model_hw: the network's input size for a picture's size.
            on_frame: get every frame as it is let go, each camera's in order, from its own thread.
            on_show: get those too, and what is seen after a `seek` or a step back, from there too.
            speed: seconds of the session a second; infinite for as fast as can be. No frame is dropped.
            start_seconds: where to start.
            paused: stand still before the first frame.
            kept_bytes: of frames gone by, of all cameras together, among which steps back cost nothing;
                above 0 the player stays at its end, and can go back from there, until it is closed.
            states_fit: the recorded memories are of the network that labels now.
        """
        self.session = session
        self._segmenter, self._model_hw = segmenter, model_hw
        self._on_frame, self._on_show = on_frame, on_show
        self._speed, self._paused, self._kept_bytes = speed, paused, kept_bytes
        self._states_fit = states_fit
        self._control = Lock()
        self._threads: list[Thread] = []
        self._reels: dict[str, Reel] = {}
        self._errors: list[BaseException] = []
        self._stop = False
        self._clock = ReplayClock(start_seconds, speed)
        self.tallies: dict[str, Tally] = {}
        self.lateness = Lateness()
        self.duration_seconds = duration_of(session)
        self._start(start_seconds)

    @property
    def position_seconds(self) -> float:
        """Where the clock is, seconds from the session's beginning."""
        return self._clock.position

    @property
    def speed(self) -> float:
        """Seconds of the session a second; infinite for as fast as can be."""
        return self._speed

    @property
    def paused(self) -> bool:
        return self._paused

    @property
    def preparing(self) -> bool:
        """Whether some camera is still on its way to its next frame, so that the clock stands."""
        return not (self._clock.running or self.ended)

    @property
    def failed(self) -> bool:
        """Whether something went wrong: `raise_failure` raises it."""
        return bool(self._errors)

    @property
    def ended(self) -> bool:
        """Whether no camera has a further frame."""
        return all(tally.over for tally in self.tallies.values())

    def play(self) -> None:
        """Go on."""
        with self._control:
            self._paused, self.lateness = False, Lateness()
            self._clock.play()

    def pause(self) -> None:
        """Stand still."""
        with self._control:
            self._stand()

    def step(self) -> float:
        """Pause, and let the one next frame of all cameras go; returns the position."""
        with self._control:
            self._stand()
            return self._clock.step()

    def step_back(self) -> float:
        """Pause, and go back to where the one newest frame of all cameras was not yet let go; returns
        the position, which at the first frame stays."""
        with self._control:
            self._stand()
            before = frame_before(self.session, self._clock.position)
            if before is not None:
                self._go(before)
            return self._clock.position

    def set_speed(self, speed: float) -> None:
        """Raises ConfigError unless it is above 0; infinite for as fast as can be."""
        with self._control:
            self._clock.set_speed(speed)
            self._speed, self.lateness = speed, Lateness()

    def seek(self, seconds: float) -> None:
        """Go on from another time, with the memory as it was there."""
        with self._control:
            self._go(max(0.0, min(seconds, self.duration_seconds)))

    def wait(self, seconds: float) -> bool:
        """Wait for the end, or a failure, but no longer than so; returns whether the end has come."""
        deadline = time.monotonic() + seconds
        while not (self.ended or self.failed) and time.monotonic() < deadline:
            time.sleep(min(0.05, max(0.0, deadline - time.monotonic())))
        return self.ended

    def join(self) -> None:
        """Wait for the end, which one that stays does not have. Raises as `raise_failure`."""
        while True:
            threads = self._threads
            for thread in threads:
                thread.join()
            if threads is self._threads:
                break
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raises what went wrong in a camera's thread, if something did."""
        if self._errors:
            raise self._errors[0]

    def close(self) -> None:
        """Stop, wherever it is. May be called again."""
        self._stop = True  # a step or a seek under way ends at once
        self._clock.stop()
        with self._control:
            self._halt()

    def _stand(self) -> None:
        """Stand still, and only then say so: the position that is read with `paused` stays."""
        self._clock.pause()
        self._paused = True

    def _go(self, seconds: float) -> None:
        """Go on from a time: by the frames at hand, or else with all cameras begun anew."""
        at_hand = self._kept_bytes and all(reel.since <= seconds for reel in self._reels.values())
        if at_hand and seconds <= self._clock.position + _NEAR_SECONDS:
            self.lateness = Lateness()
            self._clock.move(seconds)
        else:
            self._halt()
            self._start(seconds)

    def _start(self, seconds: float) -> None:
        self._stop = False
        self._clock = clock = ReplayClock(seconds, self._speed, self.duration_seconds)
        if self._paused:
            clock.pause()
        cameras = self.session.cameras
        self.tallies = {name: Tally() for name in cameras}
        self.lateness = Lateness()
        sources = {
            name: CameraSource(self.session, camera, self._segmenter, self._model_hw, seconds,
                               lambda: self._stop, self._states_fit)
            for name, camera in cameras.items()
        }  # fmt: skip
        kept = self._kept_bytes // max(1, len(cameras))
        frames = {name: ahead(source.frames(), AHEAD_FRAMES) for name, source in sources.items()}
        self._reels = {name: Reel(frames[name], seconds, kept) for name in cameras}
        for name in cameras:
            clock.join(name)
        self._threads = [
            Thread(target=self._play, args=(sources[name], frames[name], self._reels[name], clock,
                   self.tallies[name]), name=f"replay-{name}", daemon=True)
            for name in cameras
        ]  # fmt: skip
        for thread in self._threads:
            thread.start()

    def _halt(self) -> None:
        self._stop = True
        self._clock.stop()
        for thread in self._threads:
            thread.join()

    def _play(
        self,
        source: CameraSource,
        frames: Generator[ReplayedFrame, None, None],
        reel: Reel,
        clock: ReplayClock,
        tally: Tally,
    ) -> None:
        try:
            with closing(frames):
                self._follow(source, reel, clock, tally)
        except BaseException as error:
            self._errors.append(error)
        finally:
            tally.lost, tally.unlabelled, tally.over = source.lost, source.unlabelled, True
            clock.leave(source.name)

    def _follow(self, source: CameraSource, reel: Reel, clock: ReplayClock, tally: Tally) -> None:
        """One camera's thread: frames as they are due, and wherever the clock moves."""
        moves = 0
        found = reel.next()
        self._show_place(reel, found)
        while not self._stop:
            if found is not None and clock.wait(source.name, found[0], moves):
                self._let_go(*found, reel, clock, tally)
            elif found is None:
                tally.lost, tally.unlabelled, tally.over = source.lost, source.unlabelled, True
                if not (self._kept_bytes and clock.rest(source.name, moves)):
                    return
            moved = (place := clock.place)[0] != moves and not self._stop
            if moved:
                moves, seconds = place
                reel.turn(seconds, partial(self._goes_on, clock, moves))
                tally.over = False
            found = reel.next()
            if moved:
                self._show_place(reel, found)

    def _goes_on(self, clock: ReplayClock, moves: int) -> bool:
        return not self._stop and clock.place[0] == moves

    def _let_go(
        self, due: float, frame: ReplayedFrame, reel: Reel, clock: ReplayClock, tally: Tally
    ) -> None:
        new = reel.advance()
        if new and not math.isinf(clock.speed) and not clock.paused:
            self.lateness.add((clock.position - due) / clock.speed)
        if new:
            for give in self._on_frame:
                give(frame)
            tally.frames += 1
        self._show(frame)

    def _show_place(self, reel: Reel, following: tuple[float, ReplayedFrame] | None) -> None:
        """What is seen where nothing has moved yet; before the first frame, to whoever steers, that."""
        if reel.stands is not None:
            self._show(reel.stands)
        elif following is not None and self._kept_bytes:
            self._show(following[1])

    def _show(self, frame: ReplayedFrame) -> None:
        for give in self._on_show:
            give(frame)
