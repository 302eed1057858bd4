"""Replay: the labels that were shown come again, whatever the speed and wherever it starts."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from threading import Lock

import numpy as np
import pytest
import torch

from models.spec import DEFAULT_MODEL, find_model
from pipeline.cli import main
from pipeline.engines import choose_engine, engine_factory
from pipeline.engines.counting import CountingEngine
from pipeline.errors import ConfigError
from pipeline.session import Configuration, Limits, Recorder
from pipeline.session import track as track_module
from pipeline.session.clock import ReplayClock
from pipeline.session.errors import SessionError
from pipeline.session.memory import ReplaySegmenter
from pipeline.session.player import Player
from pipeline.session.reader import Session
from pipeline.session.replay import Replay, ReplayConfig
from pipeline.session.source import ReplayedFrame
from pipeline.session.timeline import Timeline
from pipeline.session.verify import Verification
from tests.recordings import MODEL_HW, Script, Told, eight_scripts, record, short_clip
from tests.test_session import feed

MAX = math.inf


class Collected:
    """The frames of a replay, by camera, in the order in which they came."""

    def __init__(self) -> None:
        self.frames: dict[str, list[ReplayedFrame]] = defaultdict(list)
        self.times: list[tuple[float, float]] = []  # session and wall seconds
        self._lock = Lock()

    def on_frame(self, frame: ReplayedFrame) -> None:
        with self._lock:
            self.frames[frame.camera].append(frame)
            self.times.append((frame.seconds, time.monotonic()))

    @property
    def count(self) -> int:
        return sum(map(len, self.frames.values()))

    def labels(self, camera: str) -> list[np.ndarray]:
        return [frame.labels for frame in self.frames[camera]]


def counting_player(
    session: Session, *on_frame: Callable[[ReplayedFrame], None], **how: object
) -> Player:
    segmenter = ReplaySegmenter(lambda size: CountingEngine(size, 8))
    return Player(session, segmenter, lambda _: MODEL_HW, on_frame, **how)  # type: ignore[arg-type]


def wait_for(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Told]]:
    """Eight cameras with drops, gaps and a reconnect."""
    folder = tmp_path_factory.mktemp("eight")
    return folder / "s", record(folder / "s", eight_scripts(folder))


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Told]]:
    """Two cameras with a key frame every six frames, one with B-frames: many segments to start from."""
    folder = tmp_path_factory.mktemp("grouped")
    plain = short_clip(folder / "plain.mp4", 90, seed=1, group=6)
    reordered = short_clip(folder / "reordered.mp4", 90, seed=2, group=9, b_frames=2)
    scripts = {
        "plain": Script([plain], frozenset(range(5, 90, 4)), {40: 1.5}),
        "reordered": Script([reordered, plain], frozenset(range(3, 180, 7))),
    }
    return folder / "s", record(folder / "s", scripts)


@pytest.mark.parametrize("speed", [1.0, MAX], ids=["1x", "max"])
def test_eight_cameras_with_drops_gaps_and_a_reconnect_are_labelled_as_live(
    eight: tuple[Path, dict[str, Told]], speed: float
) -> None:
    folder, told = eight
    collected, verification = Collected(), Verification()
    session = Session.open(folder)
    with counting_player(session, collected.on_frame, verification.on_frame, speed=speed) as player:
        player.join()
        unlabelled = sum(tally.unlabelled for tally in player.tallies.values())
    for name, given in told.items():
        np.testing.assert_array_equal(collected.labels(name), given.labels)
    total = sum(len(given.labels) for given in told.values())
    assert (verification.equal, verification.different) == (total, 0)
    assert verification.identical
    assert unlabelled == 90  # a quarter of all frames: dropped live, and not made up for here
    assert session.notes.all() == []


def test_it_keeps_to_the_recorded_clock(eight: tuple[Path, dict[str, Told]]) -> None:
    """At 4x a second of the session takes a quarter of one, and no frame comes before it is due."""
    folder, collected = eight[0], Collected()
    began = time.monotonic()
    with counting_player(Session.open(folder), collected.on_frame, speed=4.0) as player:
        wait_for(lambda: player.position_seconds > 0)
        first = read_clock(player)
        time.sleep(0.3)
        second = read_clock(player)
        player.join()
        duration, late = player.duration_seconds, player.lateness.seconds
    went, least, most = second[1] - first[1], second[0] - first[2], second[2] - first[0]
    assert min(4 * least, duration - first[1]) - 1e-6 <= went <= 4 * most + 1e-6
    assert len(late) == collected.count
    assert min(late) >= -1e-6
    assert all(now - began >= at / 4 - 0.001 for at, now in collected.times)
    # Drops bear the time at which they were noted, however long the recording took.
    created_at = json.loads((folder / "session.json").read_text())["created_at"]
    took = max(path.stat().st_mtime for path in folder.rglob("*")) - created_at
    latest = max(at for at, _ in collected.times)
    assert latest - 1e-6 <= duration <= max(latest, took) + 0.5


def read_clock(player: Player) -> tuple[float, float, float]:
    """A player's position, between the times right before and right after it was there."""
    before = time.monotonic()
    return before, player.position_seconds, time.monotonic()


def test_as_fast_as_can_be_all_cameras_stay_together(eight: tuple[Path, dict[str, Told]]) -> None:
    collected = Collected()
    with counting_player(Session.open(eight[0]), collected.on_frame, speed=MAX) as player:
        player.join()
    latest = 0.0
    for seconds, _ in collected.times:
        assert seconds > latest - 1.6  # a lead of a second, and a frame of the slowest under way
        latest = max(latest, seconds)


@pytest.mark.parametrize("start", [0.2, 0.9, 1.4, 2.2, 2.9, 3.6, 4.4])
def test_it_starts_anywhere_with_the_memory_as_it_was(
    grouped: tuple[Path, dict[str, Told]], start: float
) -> None:
    """All that is shown from there on is what was shown, although no frame before it was labelled but
    those since the nearest state."""
    folder, told = grouped
    collected, verification = Collected(), Verification()
    session = Session.open(folder)
    with counting_player(
        session, collected.on_frame, verification.on_frame, speed=MAX, start_seconds=start
    ) as player:
        player.join()
    assert verification.different == 0
    assert not verification.skipped
    for name, camera in session.cameras.items():
        zero = session.seconds(camera.packets[0], 0.0)
        # From the first that came then on, although a B-frame behind it came before.
        first = next(
            place for place, at in enumerate(told[name].captured) if zero + at >= start - 1e-6
        )
        wanted = told[name].labels[first:]
        found = collected.labels(name)
        assert len(found) == len(wanted)
        for labels, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(labels, other)


def test_pause_step_seek_and_speed(grouped: tuple[Path, dict[str, Told]]) -> None:
    folder, told = grouped
    collected = Collected()
    session = Session.open(folder)
    with counting_player(session, collected.on_frame, paused=True) as player:
        assert player.paused
        for count in range(1, 8):
            at = player.step()
            wait_for(lambda count=count: collected.count >= count)  # type: ignore[misc]
            assert collected.count == count
            assert player.position_seconds == pytest.approx(at)
        steps = [at for at, _ in collected.times]
        assert steps == sorted(steps)  # of both cameras, in the order of the clock
        player.set_speed(MAX)
        player.play()
        player.join()
        assert player.ended
        assert collected.count == sum(len(t.labels) for t in told.values())
        player.pause()
        # Right before a frame: where one lies within a rounding error of the place, it may be due there.
        due = next(frame.seconds for frame in collected.frames["plain"] if frame.seconds > 1.0)
        player.seek(due - 0.001)
        assert not player.ended
        before = collected.count
        time.sleep(0.2)
        assert collected.count == before
        assert player.step() == pytest.approx(due)
        wait_for(lambda: collected.count == before + 1)
        assert collected.frames["plain"][-1].seconds == pytest.approx(due)
        player.play()
        player.join()
        with pytest.raises(ConfigError, match="speed"):
            player.set_speed(0)
    for name, frames in collected.frames.items():
        by_index = {frame.frame_index: frame for frame in frames}
        for labels, frame in zip(told[name].labels, by_index.values(), strict=True):
            np.testing.assert_array_equal(labels, frame.labels)


class Seen:
    """What a viewer of each camera has before its eyes."""

    def __init__(self) -> None:
        self.newest: dict[str, ReplayedFrame] = {}
        self._lock = Lock()

    def on_show(self, frame: ReplayedFrame) -> None:
        with self._lock:
            self.newest[frame.camera] = frame

    def now(self) -> dict[str, tuple[int, bytes]]:
        with self._lock:
            return {name: (f.frame_index, f.labels.tobytes()) for name, f in self.newest.items()}


def settled(player: Player, seen: Seen) -> dict[str, tuple[int, bytes]]:
    """What a paused player shows once nothing comes any more."""

    def still() -> bool:
        # A camera shows what is to be seen at its place before it waits for the frame behind it.
        clock = player._clock
        with clock._changed:
            dues = clock._due.values()
            here = clock._position
            return clock._running and all(due is not None and due > here for due in dues)

    assert player.paused
    wait_for(still)
    return seen.now()


@pytest.mark.parametrize("kept_bytes", [10**8, 10_000, 1], ids=["kept", "few", "none"])
def test_steps_back_show_what_was_seen_there(
    grouped: tuple[Path, dict[str, Told]], kept_bytes: int
) -> None:
    """On and back again, over a start in the middle, with the frames at hand and without: at each moment the
    same frame of each camera, with the same labels."""
    seen = Seen()
    with counting_player(
        Session.open(grouped[0]), on_show=(seen.on_show,), paused=True, start_seconds=1.4,
        kept_bytes=kept_bytes,
    ) as player:  # fmt: skip
        there = {player.position_seconds: settled(player, seen)}
        for _ in range(5):
            at = player.step()
            there[at] = settled(player, seen)
        assert len(there) == 6
        moments = sorted(there)
        for moment in moments[-2:0:-1]:
            assert player.step_back() == moment
            assert settled(player, seen) == there[moment]
        assert player.step_back() < moments[1]  # before the start, if no frame came right at it
        for moment in moments[1:]:
            while (at := player.step()) < moment:
                pass
            assert at == moment
        assert settled(player, seen) == there[moments[-1]]
        assert player.paused


def test_a_seek_shows_the_picture_of_that_moment_at_once(
    grouped: tuple[Path, dict[str, Told]],
) -> None:
    """Of every camera the last frame up to it, although nothing moves; also from the end, and near by."""
    session = Session.open(grouped[0])
    seen, collected = Seen(), Collected()
    with counting_player(
        session, collected.on_frame, on_show=(seen.on_show,), speed=MAX, kept_bytes=10**8
    ) as player:
        wait_for(lambda: player.ended)
        total = collected.count
        player.pause()
        for moment in (2.0, 0.9, 1.3, 4.5):
            player.seek(moment)
            found = settled(player, seen)
            assert player.position_seconds == moment
            for name, frames in collected.frames.items():
                # Each is let go when it came, but not before the one in front of it.
                dues = accumulate((frame.seconds for frame in frames), max)
                (*_, latest) = (f for f, due in zip(frames, dues, strict=True) if due <= moment)
                assert found[name] == (latest.frame_index, latest.labels.tobytes())
        player.seek(player.duration_seconds)
        at_end = settled(player, seen)
        assert {name: index for name, (index, _) in at_end.items()} == {
            name: frames[-1].frame_index for name, frames in collected.frames.items()
        }
        assert collected.count == total  # seen again is not replayed again
        player.seek(0.0)  # before the first frames, which are what is there to see
        assert {name: index for name, (index, _) in settled(player, seen).items()} == {
            name: frames[0].frame_index for name, frames in collected.frames.items()
        }
        player.play()
        wait_for(lambda: player.ended)


def test_playing_what_plays_and_pausing_what_is_paused_change_nothing(
    grouped: tuple[Path, dict[str, Told]],
) -> None:
    with counting_player(Session.open(grouped[0]), speed=0.5) as player:
        wait_for(lambda: player.position_seconds > 0.1)
        for _ in range(5):
            before = player.position_seconds
            player.play()
            assert player.position_seconds >= before
        player.pause()
        here = player.position_seconds
        player.pause()
        assert player.position_seconds == here


def test_the_timeline_tells_when_what_happened(tmp_path: Path) -> None:
    """States, gaps and drops by the session's clock; near drops together; a damaged line costs itself."""
    clip = short_clip(tmp_path / "clip.mp4", 60, seed=1, group=6)
    with Recorder(tmp_path / "s", None, Limits(segment_seconds=0.5)) as recorder:
        camera = recorder.camera("front")
        camera.state("connecting", "added")
        feed(camera, clip)
        camera.state("live", "64x48")
        time.sleep(0.2)
        camera.gap(0.15, "the camera was silent")
        camera.state("reconnecting", "no packet")
        feed(camera, clip, start=10.0)
    session = Session.open(tmp_path / "s")
    timeline = Timeline(session)
    assert not timeline.complete
    timeline.start()
    wait_for(lambda: timeline.complete)
    timeline.close()
    found = timeline.cameras["front"]
    assert [state for _, state, _ in found.states] == ["connecting", "live", "reconnecting"]
    assert len(found.connected) == 2
    (gap,) = found.gap_spans()
    assert gap.end - gap.start == pytest.approx(0.15, abs=1e-6)
    spans = found.state_spans(20.0)
    assert spans[-1].end == 20.0
    assert spans[1].end == spans[2].start >= gap.end - 1e-6
    assert found.states_until(spans[1].start, 50)[-1][1] == "live"
    assert found.states_until(spans[1].start, 1) == found.states[1:2]
    assert found.reconnects_until(20.0) == 1
    assert abs(timeline.began_at - time.time()) < 60
    found.drops = [(1.0, 2, "overload"), (1.01, 3, "stale"), (5.0, 1, "overload")]
    near, far = found.drop_spans(20.0)
    assert (near.start, near.end, near.frames, near.reason) == (1.0, 1.01, 5, "overload, stale")
    assert far.frames == 1
    assert found.dropped_until(0.5) == {}
    assert found.dropped_until(1.0) == {"overload": 2}
    assert found.dropped_until(9.0) == {"overload": 3, "stale": 3}


def test_the_clock_waits_for_every_camera_before_it_runs() -> None:
    clock = ReplayClock(0.0, 1.0)
    clock.join("a")
    clock.join("b")
    clock.leave("b")
    assert clock.wait("a", 0.0)
    clock.join("b")
    clock.pause()
    position = clock.position
    time.sleep(0.05)
    assert clock.position == position
    clock.stop()
    assert not clock.wait("a", 10.0)


def test_a_missing_segment_costs_its_frames_and_no_false_alarm(
    grouped: tuple[Path, dict[str, Told]], tmp_path: Path
) -> None:
    """Labels after a hole in the packets are not called wrong, and from the next state on are exact."""
    folder = shutil.copytree(grouped[0], tmp_path / "s")
    for suffix in (".log", ".mkv", ".json"):
        (folder / "plain" / "packets" / f"000003{suffix}").unlink()
    verification = Verification()
    session = Session.open(folder)
    with counting_player(session, verification.on_frame, speed=MAX) as player:
        player.join()
        lost = player.tallies["plain"].lost
    assert verification.different == 0
    assert lost > 0
    skipped = sum(verification.skipped.values())
    assert 0 < skipped < 30
    total = sum(len(told.labels) for told in grouped[1].values())
    assert verification.equal + skipped + lost == total


def test_any_damaged_line_leaves_no_label_that_is_called_exact_and_is_not(
    grouped: tuple[Path, dict[str, Told]], tmp_path: Path
) -> None:
    """The first, a middle and the last line of each log of one camera, one damaged at a time: the last
    ones of a segment are known to the next one."""
    folder = shutil.copytree(grouped[0], tmp_path / "s")
    logs = sorted((folder / "plain").rglob("*.log"))
    assert len(logs) > 8
    for log in logs:
        whole = log.read_bytes()
        lines = whole.splitlines(keepends=True)
        for place in sorted({1, len(lines) // 2, len(lines) - 1}):
            spoiled = [*lines]
            spoiled[place] = spoiled[place].replace(b'"', b"'", 1)
            log.write_bytes(b"".join(spoiled))
            verification = Verification()
            session = Session.open(folder)
            with counting_player(session, verification.on_frame, speed=MAX) as player:
                player.join()
            where = f"{log.parent.name}/{log.name}, line {place}"
            assert verification.different == 0, where
            assert any("left out" in line for line in session.notes.all()), where
            assert session.check(), where
        log.write_bytes(whole)


def test_a_label_that_was_changed_is_found(
    grouped: tuple[Path, dict[str, Told]], tmp_path: Path
) -> None:
    """The verification can fail: two label maps of another content, one of them in one pixel."""
    folder = tmp_path
    clip = short_clip(folder / "clip.mp4", 30, seed=1)

    class Lying(CountingEngine):
        count = 0

        def step(self, *given: object) -> np.ndarray:
            labels = super().step(*given)  # type: ignore[arg-type]
            Lying.count += 1
            if Lying.count == 10:
                labels[..., 1, 1] ^= 1
            if Lying.count == 20:
                labels[..., 1:, :] ^= 1
            return labels

    record(folder / "s", {"front": Script([clip])}, lambda size: Lying(size, 1))
    verification = Verification()
    with counting_player(Session.open(folder / "s"), verification.on_frame, speed=MAX) as player:
        player.join()
    assert (verification.equal, verification.different) == (28, 2)
    assert verification.first is not None
    assert verification.worst is not None
    assert verification.first.frame_index == 9
    assert verification.first.share == pytest.approx(1 / (32 * 48))
    assert verification.worst.frame_index == 19
    assert any("first: camera front, frame 9" in line for line in verification.lines())


def test_labels_lost_on_a_slow_disk_are_followed_by_exact_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state has seen frames whose labels were not recorded: what follows is not compared until the
    next state, and then equals."""
    clip = short_clip(tmp_path / "clip.mp4", 90, seed=3, group=6)
    written = track_module.TrackWriter.append
    count = 0

    def fail_sometimes(self: object, record: dict[str, object], payload: object = None) -> None:
        nonlocal count
        if record["kind"] == "labels":
            count += 1
            if 20 <= count < 30:
                raise track_module.OutputError("cannot write: No space left on device")
        written(self, record, payload)  # type: ignore[arg-type]

    monkeypatch.setattr(track_module.TrackWriter, "append", fail_sometimes)
    monkeypatch.setattr("pipeline.session.writing._RETRY_SECONDS", 0.0)
    monkeypatch.setattr(Recorder, "close", _close_quietly(Recorder.close))
    told = record(tmp_path / "s", {"front": Script([clip])})["front"]
    verification = Verification()
    session = Session.open(tmp_path / "s")
    with counting_player(session, verification.on_frame, speed=MAX) as player:
        player.join()
    assert verification.different == 0
    assert verification.skipped
    assert verification.equal > 40
    assert verification.equal + sum(verification.skipped.values()) <= len(told.labels) - 10


def _close_quietly(close: Callable[[Recorder], None]) -> Callable[[Recorder], None]:
    def quiet(self: Recorder) -> None:
        try:
            close(self)
        except track_module.OutputError:
            return

    return quiet


def test_without_labels_every_frame_is_labelled_and_gaps_reset(tmp_path: Path) -> None:
    """A session of `roadmask record`: no drops at any speed; a silence longer than the limit resets."""
    clip = short_clip(tmp_path / "clip.mp4", 60, seed=4, group=6)
    with Recorder(tmp_path / "s", None, Limits(segment_seconds=0.5)) as recorder:
        camera = recorder.camera("front")
        feed(camera, clip)
        feed(camera, clip, start=10.0)
    session = Session.open(tmp_path / "s")
    found = {}
    for speed in (8.0, MAX):
        collected = Collected()
        with counting_player(session, collected.on_frame, speed=speed) as player:
            player.join()
        found[speed] = collected.labels("front")
    assert len(found[MAX]) == 120
    np.testing.assert_array_equal(found[8.0], found[MAX])
    counts = [int(labels[1, 1]) for labels in found[MAX]]
    assert counts == [*range(1, 61), *range(1, 61)]
    np.testing.assert_array_equal(found[MAX][:60], found[MAX][60:])


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cameras labelled by the shipped network on the CPU."""
    folder = tmp_path_factory.mktemp("real")
    files, choice = find_model(DEFAULT_MODEL), choose_engine("cpu")
    spec, size_hw = files.spec(), (96, 128)
    configuration = Configuration(
        DEFAULT_MODEL, files.weights_sha256(), choice.name, choice.runtime, size_hw=size_hw,
        classes=spec.classes, palette_rgb=spec.palette_rgb,
    )  # fmt: skip
    scripts = eight_scripts(folder, frames=16)
    record(
        folder / "s", {name: scripts[name] for name in ("camera1", "camera3")},
        engine_factory(choice, files, spec, 1), configuration, model_hw=size_hw,
    )  # fmt: skip
    return folder / "s"


def test_the_real_network_gives_identical_labels_from_any_start(real: Path) -> None:
    for start in (0.0, 0.4):
        replay = Replay(ReplayConfig(real, speed=MAX, start_seconds=start, verify=True))
        lines = list(replay.play())
        assert replay.verification is not None
        assert replay.verification.identical, lines
        assert replay.notes == []


def roadmask(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_the_command_verifies_and_says_so(real: Path) -> None:
    done = roadmask("replay", real, "--verify", "--speed", "max")
    assert done.returncode == 0, done.stderr
    assert "all labels are identical to those recorded" in done.stderr
    other = roadmask("replay", real, "--verify", "--speed", "max", "--precision", "f32")
    if "replayed with" in other.stderr:  # a CPU without bf16 recorded in f32 too
        assert other.returncode == 1
        assert "first: camera" in other.stderr
        assert "worst: camera" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("replay", "EMPTY"), 1, "not a session"),
        (("replay", "SESSION", "--speed", "0"), 2, "--speed"),
        (("replay", "SESSION", "--speed", "fast"), 2, "--speed"),
        (("replay", "SESSION", "--start", "-1"), 2, "start"),
        (("replay", "SESSION", "--paused"), 2, "--view"),
        (("replay", "SESSION", "--view", "8000"), 2, "HOST:PORT"),
        (("replay", "SESSION", "--model", "nonesuch"), 2, "nonesuch"),
        (("record", "gopher://x", "--out", "EMPTY"), 2, "no kind of camera"),
        (("record", "rtsp://x/", "--out", "EMPTY", "--segment", "0"), 2, "segment_seconds"),
    ],
)
def test_wrong_use_is_one_line(
    eight: tuple[Path, dict[str, Told]], tmp_path: Path, arguments: tuple[str, ...], status: int,
    said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    places = {"EMPTY": str(tmp_path), "SESSION": str(eight[0])}
    monkeypatch.setattr("sys.argv", ["roadmask", *(places.get(a, a) for a in arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == status
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1


def test_another_network_is_set_beside_the_recorded_one(real: Path, tmp_path: Path) -> None:
    """Agreement, confusion, flicker and the frames that differ most, as figures and as a page."""
    from models.registry import build, save

    spec = replace(find_model(DEFAULT_MODEL).spec(), name="other", network="FCN", options={},
                   shapes={}, training={}, measured={})  # fmt: skip
    torch.manual_seed(2)  # else it may agree with the recorded one nowhere
    save(tmp_path / "other", build(spec), spec)
    config = ReplayConfig(
        real, speed=MAX, model=str(tmp_path / "other"), engine="cpu", report=tmp_path / "report",
        size_hw=(64, 96),
    )  # fmt: skip
    lines = list(Replay(config).play())
    assert any("report:" in line for line in lines)
    result = json.loads((tmp_path / "report" / "comparison.json").read_text())
    total = sum(camera["frames"] for camera in result["cameras"].values())
    assert result["frames"] == total > 20
    assert np.sum(result["confusion"]) == total * 96 * 128
    agreement = np.trace(np.array(result["confusion"])) / np.sum(result["confusion"])
    assert result["agreement"] == pytest.approx(agreement, abs=1e-5)
    assert 0 <= result["agreement"] < 1  # an untrained network may well agree nowhere
    assert result["flicker"].keys() == {"recorded", "replayed"}
    worst = [frame["mean_iou"] for frame in result["most_different"]]
    assert len(worst) > 1
    assert worst == sorted(worst)
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count("<figure>") == 4 * len(worst)
    assert "other (OpenVINO" in page or "other (torch" in page


def test_the_same_network_agrees_everywhere(real: Path, tmp_path: Path) -> None:
    config = ReplayConfig(real, speed=MAX, model=DEFAULT_MODEL, report=tmp_path / "report")
    list(Replay(config).play())
    result = json.loads((tmp_path / "report" / "comparison.json").read_text())
    assert result["agreement"] == result["mean_iou"] == 1.0
    assert result["flicker"]["recorded"] == result["flicker"]["replayed"]


def test_a_network_that_is_not_the_recorded_one_cannot_verify(real: Path, tmp_path: Path) -> None:
    from models.registry import build, save

    spec = replace(find_model(DEFAULT_MODEL).spec(), name="other", shapes={})
    save(tmp_path / "other", build(spec), spec)
    with pytest.raises(ConfigError, match="recorded network"):
        Replay(ReplayConfig(real, verify=True, model=str(tmp_path / "other")))
    Replay(ReplayConfig(real, verify=True, model=str(find_model(DEFAULT_MODEL).folder)))


def test_the_view_sees_a_replay_as_it_sees_live(eight: tuple[Path, dict[str, Told]]) -> None:
    folder, told = eight
    replay = Replay(ReplayConfig(folder, speed=MAX, engine="counting", paused=True))
    assert [camera.name for camera in replay.hub.cameras()] == sorted(told)
    feed = replay.hub.subscribe("camera3", depth=1000)
    with replay.player() as player:
        assert replay.hub.playback is player
        assert feed.take(0.1) is None
        player.play()
        player.join()
        shown = [feed.take(0.1) for _ in told["camera3"].labels]
        assert all(frame is not None for frame in shown)
        found = [frame.labels for frame in shown if frame is not None]
        np.testing.assert_array_equal(found, told["camera3"].labels)
        wait_for(lambda: replay.hub.cameras() and replay.hub.timeline.complete)
        status = {camera.name: camera for camera in replay.hub.cameras()}["camera3"]
        assert (status.state, status.frames) == ("ended", len(found))
        assert (status.reconnects, status.size_hw) == (1, (96, 128))
        assert status.shares is not None
    with pytest.raises(ConfigError, match="replay"):
        replay.hub.add("rtsp://10.0.0.1/x")
    replay.hub.remove("camera3")
    assert feed.over
    with pytest.raises(KeyError):
        replay.hub.subscribe("camera3")
    with pytest.raises(KeyError):
        replay.hub.remove("camera3")


def test_a_session_without_labels_has_nothing_to_verify(tmp_path: Path) -> None:
    clip = short_clip(tmp_path / "clip.mp4", 12, seed=1)
    done = roadmask("record", clip, "--out", tmp_path / "s")
    assert done.returncode == 0, done.stderr
    assert "12 packets" in done.stderr
    with pytest.raises(SessionError, match="live --record"):
        Replay(ReplayConfig(tmp_path / "s", verify=True))
    replay = Replay(ReplayConfig(tmp_path / "s", speed=MAX, engine="counting", size_hw=MODEL_HW))
    assert "1 cameras, 12 frames replayed" in list(replay.play())
    other = Replay(ReplayConfig(
        tmp_path / "s", speed=MAX, engine="counting", size_hw=MODEL_HW, model=DEFAULT_MODEL,
        report=tmp_path / "report",
    ))  # fmt: skip
    assert other.notes == ["no labels were recorded: there is nothing to compare, and no report"]
    assert "1 cameras, 12 frames replayed" in list(other.play())
    assert not (tmp_path / "report").exists()


def test_verifying_checks_the_files_too(real: Path, tmp_path: Path) -> None:
    """A file that was closed and is not what it was is named, though no frame needs what it lost."""
    copy = shutil.copytree(real, tmp_path / "s")
    command = ("replay", copy, "--verify", "--speed", "max")
    whole = roadmask(*command)
    assert whole.returncode == 0, whole.stderr
    assert "all labels are identical" in whole.stderr
    media_file = min((copy / "camera1" / "packets").glob("*.mkv"))
    data = bytearray(media_file.read_bytes())
    data[5] ^= 1  # of Matroska's head, which a replay does not read
    media_file.write_bytes(data)
    found = roadmask(*command)
    assert found.returncode == 1
    assert "all labels are identical" in found.stderr
    name = f"camera1/packets/{media_file.stem}: {media_file.name}"
    assert f"damaged: {name} is not what was sealed (SHA-256)" in found.stderr
    media_file.write_bytes(data[:-5])
    (copy / "camera3" / "labels" / "000001.log").unlink()
    found = roadmask(*command)
    assert found.returncode == 1
    assert f"damaged: {name} is not what was sealed (SHA-256)" in found.stderr
    assert "damaged: camera3/labels/000001: No such file" in found.stderr


def test_without_a_state_that_fits_the_memory_is_warmed_up(
    grouped: tuple[Path, dict[str, Told]],
) -> None:
    """Recorded states of another network are left alone: zeros, three seconds before."""
    collected = Collected()
    with counting_player(
        Session.open(grouped[0]), collected.on_frame, speed=MAX, start_seconds=3.9, states_fit=False
    ) as player:
        player.join()
    frames = collected.frames["reordered"]
    first = frames[0]
    assert first.seconds == pytest.approx(3.9, abs=0.1)
    assert first.recorded is not None
    seen = int(first.labels[1, 1])
    assert 60 < seen <= 80  # of 30 a second, but those that were dropped, and a reconnect
    assert seen < int(first.recorded.labels()[1, 1])
    assert not any(frame.exact for frame in frames)  # nor is there a reset


def test_a_state_of_another_shape_is_refused(
    eight: tuple[Path, dict[str, Told]],
) -> None:
    """What the counting engine remembers is nothing to the network of the same weights."""
    replay = Replay(ReplayConfig(eight[0], speed=MAX, engine="cpu", start_seconds=1.0))
    feed = replay.hub.subscribe("camera0", depth=1000)
    assert any("frames replayed" in line for line in replay.play())
    assert feed.take(0.1) is not None


def test_another_network_begins_without_the_recorded_memory(real: Path, tmp_path: Path) -> None:
    """Of the same shape as its own: nothing else would tell."""
    from models.registry import build, save

    spec = replace(find_model(DEFAULT_MODEL).spec(), name="other", shapes={}, training={},
                   measured={})  # fmt: skip
    torch.manual_seed(2)
    save(tmp_path / "other", build(spec), spec)
    shown = {}
    for start in (0.0, 0.4):
        config = ReplayConfig(real, speed=MAX, start_seconds=start, engine="cpu",
                              model=str(tmp_path / "other"))  # fmt: skip
        replay = Replay(config)
        feed = replay.hub.subscribe("camera1", depth=1000)
        list(replay.play())
        shown[start] = [frame.labels for frame in iter(lambda feed=feed: feed.take(0.0), None)]
    assert 0 < len(shown[0.4]) < len(shown[0.0])
    np.testing.assert_array_equal(shown[0.4], shown[0.0][-len(shown[0.4]) :])
