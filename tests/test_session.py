"""Recording: packets as they came, labels as they were shown, and what survives when things go wrong."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from pipeline.engines.counting import CountingEngine
from pipeline.errors import ConfigError, MediaError, OutputError, SourceNotFoundError
from pipeline.planes import Orientation, PlaneConverter
from pipeline.session import CameraRecorder, Limits, Recorder, ShownLabels, StreamParameters
from pipeline.session import capture as capture_module
from pipeline.session import track as track_module
from pipeline.session import writing as writing_module
from pipeline.session.capture import record_cameras
from pipeline.session.checks import FormatError
from pipeline.session.errors import SessionError
from pipeline.session.labels import all_entries
from pipeline.session.packets import decode_from
from pipeline.session.reader import CameraFiles, Session
from pipeline.session.records import EventRecord, PacketRecord
from pipeline.session.retention import SessionRetention
from tests import media
from tests.bench import session_fuzz
from tests.cameras import until
from tests.recordings import (
    MODEL_HW,
    Script,
    counting_configuration,
    demuxed,
    eight_scripts,
    record,
    short_clip,
)


def packets_of(session: Session, camera: CameraFiles) -> list[tuple[PacketRecord, bytes]]:
    """All packets of a camera as they are read again."""
    found = []
    for segment in camera.packets:
        if segment.head.stream is None:
            continue
        with segment.media() as file:
            found += [
                (record, file.read(record.place))
                for record in segment.records(session.notes)
                if isinstance(record, PacketRecord)
            ]
    return found


def labels_of(session: Session, camera: CameraFiles) -> list[np.ndarray]:
    return [entry.labels() for entry in all_entries(session, camera, None)]


def feed(camera: CameraRecorder, clip: Path, start: float = 0.0) -> int:
    """All packets of a file, 30 a second of simulated time; returns the connection."""
    base = time.monotonic() + start
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        connection = camera.connected(StreamParameters.of(stream))
        for number, packet in enumerate(p for p in container.demux(stream) if p.size):
            camera.av_packet(packet, time.time(), base + number / 30)
    return connection


def shown(connection: int, index: int, value: int = 0) -> ShownLabels:
    labels = np.full(MODEL_HW, value, np.uint8)
    return ShownLabels(connection, index, index, time.time(), labels, index == 0)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> media.Library:
    return media.Library(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return short_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", 60, seed=1, group=6)


needs_ffmpeg = pytest.mark.skipif(
    not media.has_ffmpeg(), reason="the ffmpeg command judges what is playable"
)


@needs_ffmpeg
@pytest.mark.parametrize(
    "name",
    ["plain.mp4", "transport.ts", "open.mkv", "hevc.mp4", "raw.hevc", "vp8.webm", "vp9.webm",
     "av1.mkv", "mpeg4.avi", "mjpeg.avi", "mpeg2.ts", "prores.mov", "orange_709_422_10.mkv"],
)  # fmt: skip
def test_packets_are_kept_byte_for_byte_and_every_segment_plays(
    library: media.Library, tmp_path: Path, name: str
) -> None:
    """Whatever the codec: the bytes and stamps are the camera's, the decoded frames are those of the
    source, and another build of FFmpeg plays every segment by itself."""
    source = library.get(name)
    with Recorder(tmp_path / "s", None, Limits(segment_seconds=0.3)) as recorder:
        feed(recorder.camera("front"), source)
    session = Session.open(tmp_path / "s")
    camera = session.cameras["front"]
    given, kept = demuxed(source), packets_of(session, camera)
    assert [bytes(packet) for packet in given] == [data for _, data in kept]
    assert [(p.pts, p.dts) for p in given] == [(r.pts, r.dts) for r, _ in kept]
    assert session.notes.all() == session.check() == []
    with av.open(str(source)) as container:
        decoder = StreamParameters.of(container.streams.video[0]).open_decoder()
    frames = [frame for packet in [*given, None] for frame in decoder.decode(packet)]
    again = [decoded.frame for decoded in decode_from(session, camera)]
    assert [frame.pts for frame in frames] == [frame.pts for frame in again]
    for frame, other in zip(frames, again, strict=True):
        np.testing.assert_array_equal(frame.to_ndarray(), other.to_ndarray())
    played = sum(len(media.probe_frames(s.path(".mkv"))) for s in camera.packets)
    assert played >= len(frames) - 3 * (len(camera.packets) - 1)  # open groups lose leading frames
    assert played > 0


@needs_ffmpeg
def test_what_lies_behind_a_packet_in_memory_changes_no_frame(
    library: media.Library, tmp_path: Path
) -> None:
    """FFmpeg's MPEG-4 decoder reads on behind a packet; it must find zeros there each time."""
    with Recorder(tmp_path / "s", None, Limits(segment_seconds=0.3)) as recorder:
        feed(recorder.camera("front"), library.get("mpeg4.avi"))
    session = Session.open(tmp_path / "s")
    runs = (decode_from(session, session.cameras["front"]) for _ in range(40))
    assert len({b"".join(d.frame.to_ndarray().tobytes() for d in run) for run in runs}) == 1


@needs_ffmpeg
@pytest.mark.parametrize(
    "name",
    ["corner90.mp4", "corner180.mp4", "corner270.mp4", "corner_mirror.mp4", "corner90_mirror.mp4",
     "corner.mp4"],
)  # fmt: skip
def test_pictures_are_turned_as_a_files_container_says(
    library: media.Library, tmp_path: Path, name: str
) -> None:
    """A phone's clip: recorded by the command, its frames come upright, and players turn it too."""
    source = library.get(name)
    with av.open(str(source)) as container:
        wanted = PlaneConverter(next(container.decode(video=0))).orientation
    assert record_cameras([str(source)], tmp_path / "s", Limits(), None, lambda: False, print) == []
    session = Session.open(tmp_path / "s")
    (camera,) = session.cameras.values()
    frames = [decoded.frame for decoded in decode_from(session, camera)]
    assert frames
    assert {PlaneConverter(frame).orientation for frame in frames} == {wanted}
    assert (wanted == Orientation()) == (name == "corner.mp4")
    played = [s for s in camera.packets if s.head.stream is not None]
    with av.open(str(played[0].path(".mkv"))) as container:
        assert PlaneConverter(next(container.decode(video=0))).orientation == wanted


def test_a_display_matrix_must_be_one() -> None:
    stream = StreamParameters("h264", 0, b"", (48, 64), None, Fraction(1, 1000))
    raw = json.loads(json.dumps(stream.to_json()))
    assert StreamParameters.from_json(raw) == stream
    del raw["display_matrix"], raw["counted"]  # as older sessions have it
    assert StreamParameters.from_json(raw) == stream
    counted = replace(stream, counted=True)
    assert StreamParameters.from_json(json.loads(json.dumps(counted.to_json()))) == counted
    for wrong in ("00", "zz" * 36, 5, "00" * 37):
        with pytest.raises(FormatError, match="display_matrix"):
            StreamParameters.from_json({**raw, "display_matrix": wrong})


@needs_ffmpeg
def test_segments_begin_with_key_frames_and_labels_play_too(clip: Path, tmp_path: Path) -> None:
    told = record(tmp_path / "s", {"front": Script([clip])})["front"]
    session = Session.open(tmp_path / "s")
    camera = session.cameras["front"]
    assert len(camera.packets) >= 4
    assert len(camera.labels) >= 4
    for segment in camera.packets:
        first = next(r for r in segment.records(session.notes) if isinstance(r, PacketRecord))
        assert first.key
        assert segment.sealed
    played = [frame for s in camera.labels for frame in media.probe_frames(s.path(".mkv"))]
    assert len(played) == len(told.labels)
    with av.open(str(camera.labels[0].path(".mkv"))) as container:
        first_labels = next(container.decode(video=0)).to_ndarray(format="gray")
    np.testing.assert_array_equal(first_labels, told.labels[0])


@needs_ffmpeg
def test_an_open_segment_plays_as_far_as_it_is_written(clip: Path, tmp_path: Path) -> None:
    """No header, length or index is needed that only closing would write."""
    recorder = Recorder(tmp_path / "s", None, Limits(segment_seconds=1000))
    camera = recorder.camera("front")
    feed(camera, clip)
    log = tmp_path / "s" / "front" / "packets" / "000001.log"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and (not log.exists() or log.read_bytes().count(b"\n") < 62):
        time.sleep(0.02)
    assert len(media.probe_frames(log.with_suffix(".mkv"))) == 60
    assert not log.with_suffix(".json").exists()
    recorder.close()
    assert log.with_suffix(".json").exists()


def test_labels_and_events_come_back_in_order(tmp_path: Path) -> None:
    told = record(tmp_path / "s", eight_scripts(tmp_path))
    session = Session.open(tmp_path / "s")
    assert set(session.cameras) == set(told)
    for name, camera in session.cameras.items():
        np.testing.assert_array_equal(labels_of(session, camera), told[name].labels)
        times = [entry.record.captured for entry in all_entries(session, camera, None)]
        assert times == told[name].captured
        assert [data for _, data in packets_of(session, camera)] == told[name].packets
    events = [
        record for segment in session.cameras["camera3"].packets
        for record in segment.records(session.notes) if isinstance(record, EventRecord)
    ]  # fmt: skip
    assert [e.text for e in events if e.kind == "state"] == ["live", "reconnecting", "live"]
    assert sum(e.kind == "connected" for e in events) == 2


_WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from pipeline.session import *
from tests.recordings import counting_configuration, demuxed, MODEL_HW
import av
folder, clip = Path(sys.argv[1]), sys.argv[2]
recorder = Recorder(folder, counting_configuration(), Limits(segment_seconds=0.4))
camera = recorder.camera("front")
with av.open(clip) as container:
    parameters = StreamParameters.of(container.streams.video[0])
packets, base = demuxed(clip), time.monotonic()
for turn in range(10_000):
    connection = camera.connected(parameters)
    for index, packet in enumerate(packets):
        now = base + (turn * len(packets) + index) / 30
        camera.av_packet(packet, time.time(), now)
        labels = np.full(MODEL_HW, index % 200, np.uint8)
        camera.labels(ShownLabels(connection, turn * len(packets) + index, packet.pts, time.time(),
                                  labels, index == 0, now))
        if turn == index == 0:
            while not camera.idle:
                time.sleep(0.001)
            print("begun", flush=True)  # something is there to be read
        time.sleep(0.0005)
"""


@pytest.mark.parametrize("seed", range(6))
def test_a_killed_recording_is_read_up_to_where_it_was_killed(
    clip: Path, tmp_path: Path, seed: int
) -> None:
    """kill -9 at a random moment: all that was sealed is whole, of the open segment all but the packet
    that was being written, and recording goes on in the same session."""
    folder = tmp_path / "s"
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(folder), str(clip)], stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"begun\n"
    time.sleep(random.Random(seed).uniform(0.05, 1.0))
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    session = Session.open(folder)
    camera = session.cameras["front"]
    lines = sum(s.path(".log").read_bytes().count(b'"kind":"packet"') for s in camera.packets)
    kept = packets_of(session, camera)
    assert lines - 1 <= len(kept) <= lines
    given = [bytes(packet) for packet in demuxed(clip)]
    assert [data for _, data in kept] == (given * (len(kept) // len(given) + 1))[: len(kept)]
    for index, labels in enumerate(labels_of(session, camera)):
        assert (labels == index % len(given) % 200).all()
    assert session.check() == []
    assert all(segment.sealed for segment in camera.packets[:-1])
    newest = max(segment.head.connection for segment in camera.packets)
    with Recorder(folder, counting_configuration(), Limits(segment_seconds=0.4)) as recorder:
        connection = feed(recorder.camera("front"), clip, start=1.0)
        assert connection > newest
    again = Session.open(folder)
    assert len(packets_of(again, again.cameras["front"])) == len(kept) + len(given)


def test_a_session_goes_on_only_with_what_labelled_it(clip: Path, tmp_path: Path) -> None:
    record(tmp_path / "s", {"front": Script([clip])})
    with pytest.raises(ConfigError, match="another folder"):
        Recorder(tmp_path / "s", None)
    with pytest.raises(ConfigError, match=r"counting|NumPy"):
        Recorder(tmp_path / "s", counting_configuration((64, 64)))
    record(tmp_path / "s", {"front": Script([clip])})
    session = Session.open(tmp_path / "s")
    connections = {s.head.connection for s in session.cameras["front"].packets}
    assert len(connections) == 2
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        Recorder(tmp_path / "other")
    with pytest.raises(SourceNotFoundError, match=r"session\.json"):
        Session.open(tmp_path / "other")


def test_nobody_else_can_write_a_camera_that_is_being_recorded(clip: Path, tmp_path: Path) -> None:
    with Recorder(tmp_path / "s") as first:
        feed(first.camera("front"), clip)
        until(lambda: first.camera("front").idle)
        second = Recorder(tmp_path / "s")
        feed(second.camera("front"), clip)
        with pytest.raises(OutputError, match="another recording"):
            second.close()
    session = Session.open(tmp_path / "s")
    assert len(packets_of(session, session.cameras["front"])) == 60


def test_packets_and_labels_may_be_written_by_two_processes(clip: Path, tmp_path: Path) -> None:
    """A pickled recorder has the same session and clock; each copy writes the track it has data for."""
    here = Recorder(tmp_path / "s", counting_configuration())
    there: Recorder = pickle.loads(pickle.dumps(here))
    connection = feed(there.camera("front"), clip)
    here.camera("front").labels(shown(connection, 0, value=7))
    there.close()
    here.close()
    session = Session.open(tmp_path / "s")
    camera = session.cameras["front"]
    assert len(packets_of(session, camera)) == 60
    assert [int(labels[0, 0]) for labels in labels_of(session, camera)] == [7]
    assert {s.head.run for s in (*camera.packets, *camera.labels)} == {
        (here.run.id, here.run.wall, here.run.monotonic)
    }


def test_names_of_cameras_become_folders_that_are_safe_and_different(
    clip: Path, tmp_path: Path
) -> None:
    names = ["a/b", "a:b", "../up", "front", "Ünder", "a" * 200]
    with Recorder(tmp_path / "s") as recorder:
        for name in names:
            feed(recorder.camera(name), clip)
        for bad in ("", "x\ny", "\u202e", "a" * 300):
            with pytest.raises(ValueError, match="printable"):
                recorder.camera(bad)
    assert set(Session.open(tmp_path / "s").cameras) == set(names)
    assert all(path.parent == tmp_path / "s" for path in (tmp_path / "s").iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


class _FullDisk:
    """A file on a disk that is full from a number of bytes on, until it is freed."""

    free_bytes: float = float("inf")

    def __init__(self, path: Path) -> None:
        self._file = open(path, "xb+", buffering=0)  # noqa: SIM115

    def write(self, data: bytes) -> int:
        if _FullDisk.free_bytes < len(data):
            _FullDisk.free_bytes = 0
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _FullDisk.free_bytes -= len(data)
        return self._file.write(data)

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)


def test_a_full_disk_is_told_of_and_recording_goes_on_when_it_is_freed(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(track_module, "_create", _FullDisk)
    monkeypatch.setattr(writing_module, "_RETRY_SECONDS", 0.0)
    monkeypatch.setattr(_FullDisk, "free_bytes", 6000)
    recorder = Recorder(tmp_path / "s", None, Limits(segment_seconds=1.0))
    camera = recorder.camera("front")
    feed(camera, clip)
    deadline = time.monotonic() + 30
    while camera.problem is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert camera.problem is not None
    assert "No space left" in camera.problem
    while not camera.idle and time.monotonic() < deadline:
        time.sleep(0.01)
    monkeypatch.setattr(_FullDisk, "free_bytes", float("inf"))
    feed(camera, clip)
    recorder.close()
    session = Session.open(tmp_path / "s")
    kept = packets_of(session, session.cameras["front"])
    assert 60 < len(kept) < 120
    assert [data for _, data in kept][-60:] == [bytes(packet) for packet in demuxed(clip)]


def test_a_disk_that_is_too_slow_costs_whole_groups_and_holds_nobody_up(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits is bounded; packets are left out up to a key frame, and what follows decodes."""
    recorder = Recorder(tmp_path / "s", None, Limits(queue_bytes=3000))
    camera = recorder.camera("front")
    slow = camera._tracks.packet

    def packet(facts: dict[str, object], data: bytes) -> None:
        time.sleep(0.004)
        slow(facts, data)

    monkeypatch.setattr(camera._tracks, "packet", packet)
    began = time.monotonic()
    with av.open(str(clip)) as container:
        camera.connected(StreamParameters.of(container.streams.video[0]))
    for number, given in enumerate(demuxed(clip) * 4):
        camera.av_packet(given, time.time(), began + number / 30)
        time.sleep(0.001)
    assert camera.lost_packets > 0
    until(lambda: camera.idle)
    for number, given in enumerate(demuxed(clip), 240):  # what comes once it has caught up
        camera.av_packet(given, time.time(), began + number / 30)
    recorder.close()
    session = Session.open(tmp_path / "s")
    files = session.cameras["front"]
    kept = packets_of(session, files)
    assert len(kept) == 300 - camera.lost_packets
    assert len({s.head.part for s in files.packets}) > 1
    assert all(
        next(r for r in s.records(session.notes) if isinstance(r, PacketRecord)).key
        for s in files.packets
    )
    assert len(list(decode_from(session, files))) == len(kept)


def test_retention_by_size_and_age_removes_the_oldest(clip: Path, tmp_path: Path) -> None:
    record(tmp_path / "s", {"front": Script([clip])}, limits=Limits(segment_seconds=0.2))
    folder = tmp_path / "s" / "front"
    before = sorted(folder.rglob("*.mkv"))
    for age, path in enumerate(sorted(folder.rglob("*.*"), key=lambda p: p.stem, reverse=True)):
        os.utime(path, (time.time() - 10 * age, time.time() - 10 * age))
    total = sum(path.stat().st_size for path in folder.rglob("*"))
    most = total // 2
    removed = SessionRetention(tmp_path / "s", Limits(max_bytes=most)).tidy(now=True)
    left = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert 0 < left <= most
    assert removed == len(before) - len(list(folder.rglob("*.mkv")))
    session = Session.open(tmp_path / "s")
    assert session.check() == []
    assert packets_of(session, session.cameras["front"])
    numbers = [segment.number for segment in session.cameras["front"].packets]
    newest = max(int(path.stem) for path in before if path.parent.name == "packets")
    assert numbers == list(range(numbers[0], newest + 1))
    assert SessionRetention(tmp_path / "s", Limits(max_age_seconds=1e-6)).tidy(now=True) > 0
    assert not list(folder.rglob("*.mkv"))


def test_retention_keeps_a_running_recording_under_its_limit(clip: Path, tmp_path: Path) -> None:
    limits = Limits(segment_seconds=0.2, max_bytes=60_000)
    with Recorder(tmp_path / "s", None, limits) as recorder:
        camera = recorder.camera("front")
        for turn in range(8):
            feed(camera, clip, start=2.0 * turn)
            deadline = time.monotonic() + 30
            while not camera.idle and time.monotonic() < deadline:
                time.sleep(0.01)
            recorder._retention.tidy(now=True)
            size = sum(p.stat().st_size for p in (tmp_path / "s").rglob("*") if p.is_file())
            assert size < 60_000 + 30_000  # and the segment being written


def test_runs_follow_each_other_even_if_the_wall_clock_was_set_back(
    clip: Path, tmp_path: Path
) -> None:
    """The second run's clock says it is an hour earlier: on the session's clock it still comes later."""
    record(tmp_path / "s", {"front": Script([clip])})
    record(tmp_path / "s", {"front": Script([clip])})
    session = Session.open(tmp_path / "s")
    newest = session.cameras["front"].packets[-1].head.run[0]
    for log in (tmp_path / "s").rglob("*.log"):
        lines = log.read_bytes().splitlines(keepends=True)
        head = json.loads(lines[0][9:])
        if head["run"]["id"] == newest:
            head["run"]["wall"] -= 3600
            lines[0] = session_fuzz.encode_line(head)
            log.write_bytes(b"".join(lines))
    session = Session.open(tmp_path / "s")
    camera = session.cameras["front"]
    times = [session.seconds(s, s.head.began) for s in camera.packets]
    assert times == sorted(times)
    assert times[-1] < 60


def test_a_damaged_first_file_is_made_up_for_by_the_segments(clip: Path, tmp_path: Path) -> None:
    record(tmp_path / "s", {"front": Script([clip])})
    (tmp_path / "s" / "session.json").write_bytes(b"{ damaged")
    session = Session.open(tmp_path / "s")
    assert session.configuration == counting_configuration()
    assert "session.json is damaged" in session.notes.all()[0]


@pytest.mark.parametrize("version", [2, 99])
def test_a_later_format_is_refused_in_one_line(clip: Path, tmp_path: Path, version: int) -> None:
    record(tmp_path / "s", {"front": Script([clip])})
    path = tmp_path / "s" / "session.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": version}))
    with pytest.raises(SessionError, match=f"version {version} is not known") as refusal:
        Session.open(tmp_path / "s")
    assert "\n" not in str(refusal.value)


def test_checksums_find_a_single_flipped_bit(clip: Path, tmp_path: Path) -> None:
    record(tmp_path / "s", {"front": Script([clip])})
    path = tmp_path / "s" / "front" / "packets" / "000002.mkv"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    session = Session.open(tmp_path / "s")
    assert [line for line in session.check() if "000002" in line and "SHA-256" in line]


def test_spoiled_sessions_are_read_in_part_or_refused_and_do_no_harm(tmp_path: Path) -> None:
    """Some of the 10,000 that `tests/bench/session_fuzz.py` makes, in a process of their own."""
    progress = tmp_path / "seed"
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.session_fuzz", "--worker", str(progress),
         "--first", "20000", "--cases", "200"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1], timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, f"case {progress.read_text()}: {done.stderr[-2000:]}"
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert outcomes["in part"] > 80
    assert sum(outcomes.get(name, 0) for name in ("whole", "in part", "refused")) == 200


@pytest.mark.parametrize("name", ["lines mixed up", "hostile payload"])
def test_the_fuzz_would_notice_writing(tmp_path: Path, name: str) -> None:
    """The watch sees a write and a read outside: else the fuzz could not fail."""
    session = session_fuzz.make_session(tmp_path)
    session_fuzz.MUTATIONS[name](session, random.Random(1))
    with session_fuzz.watched(session) as wrong:
        session_fuzz.attempt(session, forged=True)
    assert wrong == []
    with session_fuzz.watched(session) as wrong:
        (session / "front" / "new").write_text("x")
        Path("/etc/passwd").read_bytes()
    assert len(wrong) == 2


def test_the_engine_of_the_tests_tells_states_apart() -> None:
    """What equality of labels means here: another order, a lost frame or a reset changes a label."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (1, 6, MODEL_HW[0] * 3 // 2, MODEL_HW[1]), dtype=np.uint8)
    whole = CountingEngine(MODEL_HW, 1).step(frames, [0], [True])[0]
    lost = CountingEngine(MODEL_HW, 1).step(frames[:, [0, 1, 3, 4, 5]], [0], [True])[0]
    assert (whole[3:] != lost[2:]).reshape(3, -1).any(1).all()


def test_a_reconnect_right_after_an_error_is_a_stream_of_its_own(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nothing is tried again yet, the camera is opened anew: its packets must not be lost, nor pass
    for those of the connection before."""
    monkeypatch.setattr(track_module, "_create", _FullDisk)
    monkeypatch.setattr(_FullDisk, "free_bytes", 6000)
    recorder = Recorder(tmp_path / "s", None, Limits(segment_seconds=1.0))
    camera = recorder.camera("front")
    feed(camera, clip)
    until(lambda: camera.problem is not None and camera.idle)
    monkeypatch.setattr(_FullDisk, "free_bytes", float("inf"))
    connection = feed(camera, clip)
    recorder.close()
    session = Session.open(tmp_path / "s")
    files = session.cameras["front"]
    newest = replace(
        files, packets=tuple(s for s in files.packets if s.head.connection == connection)
    )
    assert [data for _, data in packets_of(session, newest)] == [bytes(p) for p in demuxed(clip)]
    assert newest.packets[0].head.opens


def test_a_camera_whose_first_event_could_not_be_written_is_recorded_once_that_works(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the segment whose head could not be written, nothing is left."""
    monkeypatch.setattr(track_module, "_create", _FullDisk)
    monkeypatch.setattr(_FullDisk, "free_bytes", float("inf"))
    recorder = Recorder(tmp_path / "s")
    camera = recorder.camera("front")
    camera.packet(b"of no stream", pts=0, dts=0, key=True, arrived_at=time.time())
    until(lambda: camera.idle)
    assert camera.problem is None
    monkeypatch.setattr(_FullDisk, "free_bytes", 0)
    camera.state("connecting", "added")
    until(lambda: camera.problem is not None and camera.idle)
    assert "No space left" in str(camera.problem)
    assert os.listdir(tmp_path / "s" / "front" / "packets") == [track_module.LOCK_FILE]
    monkeypatch.setattr(_FullDisk, "free_bytes", float("inf"))
    feed(camera, clip)
    recorder.close()
    session = Session.open(tmp_path / "s")
    kept = packets_of(session, session.cameras["front"])
    assert [data for _, data in kept] == [bytes(packet) for packet in demuxed(clip)]
    assert session.notes.all() == []


def sealed_segments(folder: Path, clip: Path) -> list[Path]:
    """The files of a session's sealed segments."""
    record(folder, {"old": Script([clip])}, limits=Limits(segment_seconds=0.4))
    return sorted((folder / "old").rglob("0*.*"))


def make_old(paths: list[Path]) -> None:
    for path in paths:
        os.utime(path, (time.time() - 86400, time.time() - 86400))


ONE_HOUR = Limits(segment_seconds=0.1, max_age_seconds=3600)


def test_what_is_too_old_goes_before_recording_goes_on(clip: Path, tmp_path: Path) -> None:
    """On a full disk no segment would ever be sealed."""
    old = sealed_segments(tmp_path / "s", clip)
    make_old(old)
    Recorder(tmp_path / "s", counting_configuration(), ONE_HOUR).close()
    assert not any(path.exists() for path in old)


@pytest.mark.parametrize("free_bytes", [0, float("inf")])
def test_what_is_too_old_goes_while_no_segment_is_sealed(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_bytes: float
) -> None:
    """After an error, as of a full disk; and while a camera is away."""
    monkeypatch.setattr(track_module, "_create", _FullDisk)
    monkeypatch.setattr(_FullDisk, "free_bytes", float("inf"))
    monkeypatch.setattr(writing_module, "_TIDY_SECONDS", 0.05 if free_bytes else 1000.0)
    old = sealed_segments(tmp_path / "s", clip)
    recorder = Recorder(tmp_path / "s", counting_configuration(), ONE_HOUR)
    make_old(old)
    time.sleep(ONE_HOUR.segment_seconds)
    monkeypatch.setattr(_FullDisk, "free_bytes", free_bytes)
    recorder.camera("front").state("connecting", "added")
    until(lambda: not any(path.exists() for path in old))
    with contextlib.suppress(OutputError):
        recorder.close()


def test_what_cannot_be_removed_costs_no_packet_and_keeps_nothing_else(
    clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = sealed_segments(tmp_path / "s", clip)
    make_old(old)
    stuck = tmp_path / "s" / "old" / "packets" / "000001.mkv"
    stuck.unlink()
    stuck.mkdir()
    os.utime(stuck, (0, 0))
    with Recorder(tmp_path / "s", counting_configuration(), ONE_HOUR) as recorder:
        camera = recorder.camera("front")
        for turn in range(3):
            feed(camera, clip, start=3.0 * turn)
            time.sleep(ONE_HOUR.segment_seconds)
        until(lambda: camera.idle)
        assert camera.problem is None
    session = Session.open(tmp_path / "s")
    assert len(packets_of(session, session.cameras["front"])) == 180
    assert {path for path in old if path.exists()} == {
        stuck, *(stuck.with_suffix(suffix) for suffix in (".log", ".json"))
    }  # fmt: skip
    assert caplog.text.count("cannot all be removed") == 1
    with pytest.raises(OSError, match=r"000001\.mkv"):
        SessionRetention(tmp_path / "s", ONE_HOUR).tidy(now=True)


def test_files_that_go_while_they_are_looked_at_are_no_error(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process tidies the same folder, or gives a file its final name."""
    sealed_segments(tmp_path / "s", clip)
    scandir = os.scandir

    class Gone:
        def __init__(self, entry: os.DirEntry[str]) -> None:
            self.name, self.path = entry.name, entry.path

        def stat(self, follow_symlinks: bool = True) -> os.stat_result:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.path)

    @contextlib.contextmanager
    def some_gone(path: Path) -> Iterator[list[os.DirEntry[str] | Gone]]:
        with scandir(path) as entries:
            yield [Gone(e) if e.name.startswith("000002.") else e for e in entries]

    retention = SessionRetention(tmp_path / "s", Limits(max_age_seconds=3600))
    whole = {path.stem for piece in retention.find()[0] for path in piece.paths}
    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", some_gone)
        found, total = retention.find()
    assert {path.stem for piece in found for path in piece.paths} == whole - {"000002"}
    assert total > 0


def test_behind_a_disk_that_hangs_no_more_waits_than_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither lost label maps nor dropped frames are noted one by one; the first after them is marked."""
    limits = Limits(queue_bytes=3 * MODEL_HW[0] * MODEL_HW[1])
    with Recorder(tmp_path / "s", counting_configuration(), limits) as recorder:
        camera = recorder.camera("front")
        write, works = camera._tracks.labels, Event()

        def hang(given: ShownLabels) -> None:
            works.wait(30)
            write(given)

        monkeypatch.setattr(camera._tracks, "labels", hang)
        connection = camera.connected(StreamParameters("h264", 0, b"", (48, 64), None, Fraction(1)))
        for index in range(500):
            camera.labels(shown(connection, index))
            camera.dropped(connection, 1, "overload")
        assert camera._writing._queue.qsize() < 20
        assert camera.lost_labels > 490
        works.set()
        until(lambda: camera.idle)
        camera.labels(shown(connection, 500))
    session = Session.open(tmp_path / "s")
    entries = list(all_entries(session, session.cameras["front"], None))
    assert [entry.follows_damage for entry in entries] == [False] * (len(entries) - 1) + [True]
    assert entries[-1].record.frame_index == 500


def test_a_camera_that_was_removed_is_sealed_and_may_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread ends and its files are closed; another one of its name goes on in its folder."""
    monkeypatch.setattr(writing_module, "_LINGER_SECONDS", 0.05)
    stream = StreamParameters("h264", 0, b"", (48, 64), None, Fraction(1))
    with Recorder(tmp_path / "s", counting_configuration()) as recorder:
        for turn in range(2):
            camera = recorder.camera("front")
            connection = camera.connected(stream)
            camera.labels(shown(connection, turn))
            recorder.forget("front")
            until(lambda: "record-front" not in {thread.name for thread in threading.enumerate()})
            seals = sorted((tmp_path / "s").rglob("front/labels/*.json"))
            assert len(seals) == turn + 1
    recorder.forget("front")  # of one that is not there, nothing
    session = Session.open(tmp_path / "s")
    assert [s.head.connection for s in session.cameras["front"].packets] == [1, 2]
    assert len(labels_of(session, session.cameras["front"])) == 2
    assert session.notes.all() == session.check() == []


def test_what_should_not_happen_to_a_camera_being_recorded_is_told(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise UnicodeDecodeError("ascii", b"\xff", 0, 1, "ordinal not in range")

    monkeypatch.setattr(capture_module.Connection, "packets", fail)
    lines: list[str] = []
    failed = record_cameras(
        [str(clip)], tmp_path / "s", Limits(), None, lambda: False, lines.append
    )
    assert len(failed) == 1
    assert "internal error" in failed[0]
    assert any("ended: internal error" in line for line in lines)


def test_a_camera_that_comes_back_leaves_a_gap_in_the_recording(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, opened = capture_module.Connection.packets, []

    def packets(self: Any, wait: Any) -> Iterator[Any]:
        opened.append(self)
        for number, found in enumerate(real(self, wait)):
            if number == 20 and len(opened) == 1:
                raise capture_module.CameraError("the camera closed the connection")
            yield found

    def keep_trying(self: Any, error: Any) -> bool:
        self._change("reconnecting", str(error))
        return True

    monkeypatch.setattr(capture_module.Connection, "packets", packets)
    monkeypatch.setattr(capture_module.CameraCapture, "_try_again", keep_trying)
    assert record_cameras([str(clip)], tmp_path / "s", Limits(), None, lambda: False, print) == []
    session = Session.open(tmp_path / "s")
    (camera,) = session.cameras.values()
    events = [event for segment in camera.packets for event in segment.events()]
    (gap,) = [event for event in events if event.kind == "gap"]
    assert gap.reason == "the camera was reconnecting"
    assert 0 <= gap.seconds < 60


def test_a_containers_tag_that_is_not_ascii_is_left_out() -> None:
    class Context(SimpleNamespace):
        @property
        def codec_tag(self) -> str:
            return b"\xff\x01\x00\x00".decode("ascii")

    context = Context(name="h264", extradata=None, height=48, width=64, pix_fmt="yuv420p",
                      color_primaries=2, color_range=0, color_trc=2, colorspace=2)  # fmt: skip
    stream: Any = SimpleNamespace(
        codec_context=context, time_base=Fraction(1, 90000), average_rate=None, guessed_rate=None
    )
    assert StreamParameters.of(stream).codec_tag == 0
    replace(StreamParameters.of(stream), codec_tag=0xFFFFFFFF).open_decoder()
    with pytest.raises(MediaError, match="does not open"):
        replace(StreamParameters.of(stream), pix_fmt="nonesuch").open_decoder()


def test_zeros_lie_behind_a_decoders_set_up_data() -> None:
    """PyAV leaves there what the heap held, unless more was there before; decoders read on into it."""
    given: list[bytes] = []

    class Context(SimpleNamespace):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "extradata":
                given.append(value)

    stream = StreamParameters("h264", 0, b"set up", (48, 64), None, Fraction(1, 90000))
    stream._set_up(Context())  # type: ignore[arg-type]
    assert given == [b"set up" + bytes(64), b"set up"]


@pytest.mark.parametrize("first_file", ["damaged", "missing"])
def test_the_segments_make_up_for_the_first_file_whatever_the_folder_is_called(
    clip: Path, tmp_path: Path, first_file: str
) -> None:
    folder = tmp_path / "version2"
    record(folder, {"front": Script([clip])})
    (folder / "session.json").unlink()
    if first_file == "damaged":
        (folder / "session.json").write_bytes(b"{ damaged")
    session = Session.open(folder)
    assert session.configuration == counting_configuration()
    assert f"session.json is {first_file}" in session.notes.all()[0]
    assert len(packets_of(session, session.cameras["front"])) == 60
