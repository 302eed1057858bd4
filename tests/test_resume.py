"""Going on: what a cut-off run has left, and that going on with it gives what an undisturbed run gives."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipeline.decode import Decoder
from pipeline.engines import choose_engine
from pipeline.errors import OutputError
from pipeline.frames import (
    GROUP_FRAMES,
    EndOfStream,
    FrameBatch,
    FrameItem,
    LabelBatch,
    Mark,
    StreamInfo,
    StreamState,
)
from pipeline.journal import Journal, frames_kept
from pipeline.palette import CAMVID
from pipeline.parts import lock_folder
from pipeline.reader import VideoReader
from pipeline.run import RunConfig, prepare, run
from pipeline.session import Limits, Recorder, StreamParameters
from pipeline.sinks import OutputOptions, Sink
from pipeline.sources import expand
from pipeline.stages import Progress, SourceReport
from tests import media
from tests.bench.chaos import contents as left_by
from tests.recordings import short_clip
from tests.test_run import read_labels, roadmask
from tests.test_session import feed
from tests.test_sinks import (
    contents,
    make_batches,
    make_source,
    make_stream,
    small_disk,  # noqa: F401
    video_pts,
)

FRAMES = 3 * GROUP_FRAMES + 10
IDENTITY = {"model": "m"}


# ---------------------------------------------------------------------------------- decoding from a mark


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> media.Library:
    return media.Library(tmp_path_factory.mktemp("media"))


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's media have 24 frames."""
    monkeypatch.setattr("pipeline.decode.GROUP_FRAMES", 12)
    for module in ("decode", "seek"):
        monkeypatch.setattr(f"pipeline.{module}.WINDOW_FRAMES", 4)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How each reader got to its mark."""
    taken: list[str] = []
    original = VideoReader._frames_from

    def spy(self: VideoReader, saved: dict[str, Any]) -> Any:
        frames = original(self, saved)
        taken.append("start" if frames is None else "seek")
        return frames

    monkeypatch.setattr(VideoReader, "_frames_from", spy)
    return taken


def decoder(path: Path, **settings: Any) -> Decoder:
    source = expand([str(path)]).sources[0]
    return Decoder(
        source, model_hw=lambda _: (32, 48), chunk=5, pictures=True, mark_seconds=0, **settings
    )


def flat(items: Iterator[FrameItem] | Decoder) -> list[Any]:
    """Everything that comes, frame by frame, pixels as checksums."""
    found: list[Any] = []
    for item in items:
        if isinstance(item, FrameBatch):
            planes = (item.pixels, item.pictures.y, item.pictures.u, item.pictures.v)
            for place, pts in enumerate(item.pts):
                sums = tuple(zlib.crc32(np.ascontiguousarray(p[place])) for p in planes)
                found.append((item.frame_index + place, pts, item.stream.size_hw, *sums))
        elif isinstance(
            item, EndOfStream
        ):  # but for the picture, which the last mark may be behind
            found.append((item.frame_count, item.corrupt_frames, item.undecodable_packets,
                          item.repaired_pts, item.notes, item.interrupted))  # fmt: skip
        else:
            found.append((item.frame_index, item.seconds, item.reason))
    return found


def marks_of(items: Decoder) -> list[Mark]:
    """The marks, as the journal would give them back."""
    marks = [item.mark for item in items if isinstance(item, FrameBatch) and item.mark]
    return [Mark(m.frame_index, json.loads(json.dumps(m.decoder))) for m in marks]


SEEKABLE = [
    "plain.mp4", "start first.mp4", "hevc.mp4", "fragments.mp4", "edited.mp4", "open.mkv", "av1.mkv",
    "vp9.webm", "vp8.webm", "transport.ts", "mpeg2.ts", "program.mpg", "mpeg4.avi", "mjpeg.avi",
    "prores.mov", "interlaced.ts", "spoiled.mp4", "spoiled.mkv", "spoiled.avi", "cut.mkv", "cut.ts",
    "covered.mp4", "two_videos.mkv", "odd.mkv", "high10.mp4", "rgb.mkv",
]  # fmt: skip
FROM_THE_START = ["raw.h264", "raw.hevc", "zero.mkv", "spoiled.ts"]
JOINED = ["again.ts", "again_and_again.ts", "grows.ts", "negative.mkv"]  # by either way


@pytest.mark.parametrize("name", SEEKABLE + FROM_THE_START + JOINED)
def test_decoding_from_any_mark_is_as_if_it_had_never_stopped(
    library: media.Library, small_groups: None, ways: list[str], name: str
) -> None:
    """The same frames, pixels, stamps, gaps, counts and notes, wherever the way leads."""
    path = library.get(name)
    whole, marks = flat(decoder(path)), marks_of(decoder(path))
    assert marks
    for mark in marks:
        rest = flat(decoder(path, start=mark))
        assert rest == whole[-len(rest) :]
        assert rest[0][0] == mark.frame_index
    assert len(ways) == len(marks)
    if name not in JOINED:
        assert set(ways) == {"start" if name in FROM_THE_START else "seek"}


def test_what_does_not_come_out_the_same_is_decoded_from_the_start(
    library: media.Library, small_groups: None, ways: list[str]
) -> None:
    path = library.get("plain.mp4")
    whole, mark = flat(decoder(path)), marks_of(decoder(path))[0]
    mark.decoder["place"]["frames"][-1][1] ^= 1  # a checksum
    assert flat(decoder(path, start=mark)) == whole[mark.frame_index :]
    mark.decoder["place"]["keys"][0][2] += 1  # a position in the file
    assert flat(decoder(path, start=mark)) == whole[mark.frame_index :]
    assert ways == ["start", "start"]


def test_images_go_on_by_their_place(tmp_path: Path, small_groups: None) -> None:
    folder = tmp_path / "images"
    media.write_images(folder, [f"{i:02d}" for i in range(3)])
    picture = (folder / "00.png").read_bytes()
    for number in range(3, 30):
        bad = number in (11, 12, 20)
        (folder / f"{number:02d}.png").write_bytes(b"bad" if bad else picture)
    whole, marks = flat(decoder(folder)), marks_of(decoder(folder))
    assert [mark.frame_index for mark in marks] == [12, 24]
    for mark in marks:
        rest = flat(decoder(folder, start=mark))
        assert rest == whole[mark.frame_index :]


def test_no_mark_is_made_where_a_stop_may_have_left_frames_out(
    library: media.Library, small_groups: None
) -> None:
    """What a stop drains may lack frames that come later in the file: nothing can go on behind that."""
    path, made = library.get("plain.mp4"), 0
    whole = flat(decoder(path))
    for packets in range(8, 26):
        asked = iter([False] * packets + [True] * 99)
        items = list(decoder(path, stop=lambda asked=asked: next(asked)))  # type: ignore[misc]
        assert isinstance(items[-1], EndOfStream)
        for item in items:
            if isinstance(item, FrameBatch) and item.mark:
                made += 1
                assert flat(decoder(path, start=item.mark)) == whole[item.mark.frame_index :]
    assert made


# --------------------------------------------------------------------------------------- writing on


def batches(stream: StreamInfo, pts: list[int]) -> list[LabelBatch]:
    """Batches of eight, each sixth with a mark."""
    made = []
    for batch in make_batches(stream, pts):
        after = batch.frame_index + len(batch)
        mark = None
        if after % GROUP_FRAMES == 0:
            values = np.full((2, 3, 4), after, np.float32)
            mark = Mark(after, {"frame": after}, StreamState((96, 128), values, after, 0))
        made.append(LabelBatch(**{**vars(batch), "mark": mark}))
    return made


def write(
    folder: Path,
    items: list[LabelBatch],
    options: OutputOptions,
    *,
    resume: bool = False,
    until: int | None = None,
    **end: Any,
) -> int:
    """Write what is left of the items, or part of it and then fail; returns where it began."""
    stream = items[0].stream
    with Journal(folder, IDENTITY, resume) as journal:
        start = journal.record.mark.frame_index if journal.record else 0
        with Sink(folder, CAMVID, options, {}, journal) as sink:
            for item in items:
                if item.frame_index >= start and (until is None or item.frame_index < until):
                    sink.write(item)
            if until is None or "interrupted" in end:
                count = items[-1].frame_index + len(items[-1])
                sink.finish(EndOfStream(stream, until or count, **end))
    return start


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("footage") / "in.mkv", "aac", "ac3", seconds=6)


def stream_of(footage: Path) -> StreamInfo:
    return make_stream(source=str(footage), time_base=Fraction(1, 90000))


PTS = [3003 * i - 4500 + 17 * (i % 3) for i in range(FRAMES)]
KINDS = {"mkv": OutputOptions(overlay=True), "png": OutputOptions("png", color=False)}


def results(folder: Path) -> dict[str, Any]:
    """Every file's bytes, without what the manifest says of the run rather than of its results."""
    found: dict[str, Any] = dict(contents(folder))
    manifest = json.loads(found["manifest.json"])
    for name in ("started_at", "finished_at", "resumed_at"):
        del manifest[name]
    return found | {"manifest.json": manifest}


@pytest.fixture(scope="module")
def undisturbed(
    footage: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    for name, options in KINDS.items():
        write(folder / name, batches(stream_of(footage), PTS), options)
    return {name: results(folder / name) for name in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("until", [8, 56, 96, 104, FRAMES])
def test_writing_on_gives_the_same_bytes(
    footage: Path, tmp_path: Path, undisturbed: dict[str, Any], kind: str, until: int
) -> None:
    """Labels, colours, overlay with its sound, statistics: byte for byte."""
    items = batches(stream_of(footage), PTS)
    with pytest.raises(ZeroDivisionError):
        _write_and_fail(tmp_path, items, KINDS[kind], until)
    start = write(tmp_path, items, KINDS[kind], resume=True)
    assert start == until // GROUP_FRAMES * GROUP_FRAMES
    assert results(tmp_path) == undisturbed[kind]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["resumed_at"] == ([start] if start else [])


def _write_and_fail(
    folder: Path, items: list[LabelBatch], options: OutputOptions, until: int
) -> None:
    with (
        Journal(folder, IDENTITY, resume=False) as journal,
        Sink(folder, CAMVID, options, {}, journal) as sink,
    ):
        for item in items:
            if item.frame_index < until:
                sink.write(item)
        raise ZeroDivisionError


def test_videos_can_be_played_up_to_the_last_checkpoint_at_any_moment(
    footage: Path, tmp_path: Path
) -> None:
    """As a crash leaves them, by another FFmpeg; with the sound."""
    stream = make_stream(source=str(footage))
    items = batches(stream, list(range(FRAMES)))
    write(tmp_path, items, KINDS["mkv"], until=2 * GROUP_FRAMES + 16)
    for name in ("color.mp4", "overlay.mp4", "labels.mkv"):
        with open(tmp_path / f".{name}.part", "r+b") as file:
            if (
                name == "labels.mkv"
            ):  # the moment after a checkpoint: nothing behind it is written yet
                file.truncate(_kept_bytes(tmp_path, name))
        stamps = video_pts(tmp_path / f".{name}.part", Fraction(1, 30))
        assert [round(stamp) for stamp in stamps] == list(range(2 * GROUP_FRAMES)), name
    done = subprocess.run(
        ["ffmpeg", "-v", "error", "-i", str(tmp_path / ".overlay.mp4.part"), "-map", "0:a",
         "-f", "null", "-"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""


def _kept_bytes(folder: Path, name: str) -> int:
    with Journal(folder, IDENTITY, resume=True) as journal:
        assert journal.record is not None
        size: int = journal.record.sink["writers"][name]["bytes"]
        return size


def _die_at(number: int, folder: Path, source: Path, kind: str) -> None:
    """Write to the end, but die at the nth call that makes something last."""
    left = [number]

    def mortal(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os._exit(9)
            return call(*arguments, **named)

        return wrapped

    for name in ("fsync", "replace", "unlink"):
        setattr(os, name, mortal(getattr(os, name)))
    write(folder, batches(stream_of(source), PTS), KINDS[kind], resume=True)
    os._exit(0)


@pytest.mark.parametrize("kind", KINDS)
def test_dying_at_any_step_loses_nothing(
    footage: Path, tmp_path: Path, undisturbed: dict[str, Any], kind: str
) -> None:
    """At every third sync, rename and removal, those of the end too, over an earlier result."""
    # A fork of this process would have the locks of threads that other tests have left behind.
    server, number, ends = multiprocessing.get_context("forkserver"), 1, set()
    server.set_forkserver_preload([__name__])
    while True:
        folder = tmp_path / str(number)
        write(folder, batches(stream_of(footage), PTS)[:3], KINDS[kind])
        child = server.Process(target=_die_at, args=(number, folder, footage, kind))
        child.start()
        child.join(120)
        assert child.exitcode in (0, 9)
        ends.add(child.exitcode)
        if child.exitcode == 9:
            _nothing_is_half(folder, kind)
            write(folder, batches(stream_of(footage), PTS), KINDS[kind], resume=True)
        assert results(folder) == undisturbed[kind], number
        assert frames_kept(folder) == 0
        if child.exitcode == 0:
            break
        number += 3
    assert ends == {0, 9}
    assert number > 20


def _nothing_is_half(folder: Path, kind: str) -> None:
    """Where there is a manifest, what it speaks of is there and whole."""
    if (folder / "manifest.json").exists():
        outputs = json.loads((folder / "manifest.json").read_text())["outputs"]
        for name, facts in outputs.items():
            path = folder / name
            files = path.iterdir() if path.is_dir() else [path]
            assert sum(file.stat().st_size for file in files) == facts["bytes"], name


def test_an_interrupted_run_can_be_gone_on_with(
    footage: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    """Ctrl-C finishes the files; --resume takes them back, cuts them, and goes on."""
    items = batches(stream_of(footage), PTS)
    for kind, options in KINDS.items():
        folder = tmp_path / kind
        write(folder, items, options, until=72, interrupted=True)
        manifest = json.loads((folder / "manifest.json").read_text())
        assert (manifest["interrupted"], manifest["frames_out"]) == (True, 72)
        if kind == "mkv":
            assert len(video_pts(folder / "color.mp4", Fraction(1, 90000))) == 72
        assert write(folder, items, options, resume=True) == GROUP_FRAMES
        assert results(folder) == undisturbed[kind]


def test_an_earlier_result_stays_until_the_end(
    footage: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    items = batches(stream_of(footage), PTS)
    for kind, options in KINDS.items():
        folder = tmp_path / kind
        write(folder, items[:3], options)
        before = contents(folder)
        for resume in (False, True):
            write(folder, items, options, until=GROUP_FRAMES + 8, resume=resume)
            now = contents(folder)
            assert {name: now[name] for name in before} == before
        write(folder, items, options, resume=True)
        assert results(folder) == undisturbed[kind]


@pytest.mark.parametrize("name", [".color.mp4.part", ".labels.mkv.part", ".stats.jsonl.part"])
@pytest.mark.parametrize("harm", ["gone", "short"])
def test_files_that_are_not_what_the_journal_says(
    footage: Path, tmp_path: Path, name: str, harm: str
) -> None:
    items = batches(stream_of(footage), PTS)
    write(tmp_path, items, KINDS["mkv"], until=GROUP_FRAMES + 8)
    if harm == "gone":
        (tmp_path / name).unlink()
    else:
        os.truncate(tmp_path / name, 100)
    with pytest.raises(OutputError, match=r"cannot go on with .*; begin anew"):
        write(tmp_path, items, KINDS["mkv"], resume=True)
    assert write(tmp_path, items, KINDS["mkv"]) == 0


# ------------------------------------------------------------------------------------- whole runs


CLIP_FRAMES = 200


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    media.write_moving_clip(path, CLIP_FRAMES, seed=5)
    return path


def config(sources: list[Path], out: Path, **settings: Any) -> RunConfig:
    usual: dict[str, Any] = {"engine": "counting", "placement": "inline", "checkpoint_seconds": 0}
    options = settings.pop("options", OutputOptions())
    return RunConfig(tuple(map(str, sources)), out, options, **usual | settings)


def reports(plan_config: RunConfig, until: int | None = None) -> dict[str, SourceReport]:
    """Run, or leave a run after so many frames as a crash would: nothing is finished."""
    found = {}
    events = run(prepare(plan_config))
    for event in events:
        if isinstance(event, SourceReport):
            found[event.stream_id] = event
        elif until is not None and event.frames >= until:
            events.close()
            break
    return found


def labels(out: Path, name: str = "clip") -> np.ndarray:
    return read_labels(out / name / "labels.mkv")


@pytest.fixture(scope="module")
def right(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The labels of an undisturbed run: each frame's count, and a checksum of all before it."""
    out = tmp_path_factory.mktemp("right")
    assert reports(config([clip], out))["clip"].error is None
    found = labels(out)
    np.testing.assert_array_equal(found[:, -1, -1], np.arange(1, CLIP_FRAMES + 1))
    return found


def test_a_run_goes_on_with_what_is_left(clip: Path, tmp_path: Path, right: np.ndarray) -> None:
    """What is done is skipped, what was begun goes on, what was not is begun."""
    other, third = tmp_path / "other.mp4", tmp_path / "third.mp4"
    media.write_moving_clip(other, 60, seed=6)
    media.write_moving_clip(third, 60, seed=7)
    out = tmp_path / "out"
    reports(config([other], out))
    reports(config([clip], out), until=120)
    finished = (out / "other" / "manifest.json").read_bytes()
    found = reports(config([other, clip, third], out, resume=True))
    assert {name: report.error for name, report in found.items()} == dict.fromkeys(
        ("other", "clip", "third")
    )
    assert found["other"].notes == ("an earlier run has finished it",)
    assert "gone on once" in found["clip"].notes[0]
    assert (out / "other" / "manifest.json").read_bytes() == finished
    np.testing.assert_array_equal(labels(out), right)
    stats = [json.loads(line) for line in (out / "clip" / "stats.jsonl").read_text().splitlines()]
    assert [line["index"] for line in stats] == list(range(CLIP_FRAMES))


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of two cameras: one opened anew after ten seconds, one with B-frames."""
    folder = tmp_path_factory.mktemp("recorded")
    front, rear = folder / "front.mp4", folder / "rear.mp4"
    short_clip(front, 90, seed=4, group=6)
    short_clip(rear, 120, seed=5, group=30, b_frames=2)
    with Recorder(folder / "drive", None, Limits(segment_seconds=0.5)) as recorder:
        feed(recorder.camera("front"), front)
        feed(recorder.camera("front"), front, start=10.0)
        feed(recorder.camera("rear"), rear)
    return folder / "drive"


def test_a_recorded_session_is_run_camera_by_camera(session: Path, tmp_path: Path) -> None:
    """Every frame in its order, at the cameras' own pace; what is missing between resets the memory."""
    found = reports(config([session], tmp_path))
    assert {name: (report.frames, report.error) for name, report in found.items()} == {
        "drive/front": (180, None), "drive/rear": (120, None),
    }  # fmt: skip
    counted = labels(tmp_path, "drive/front")[:, -1, -1].tolist()
    assert counted == [*range(1, 91), *range(1, 91)]
    assert labels(tmp_path, "drive/rear")[:, -1, -1].tolist() == list(range(1, 121))
    for name, gaps in (("front", {89: 10.0 - 89 / 30}), ("rear", {})):
        text = (tmp_path / "drive" / name / "stats.jsonl").read_text()
        times = [json.loads(line)["pts_seconds"] for line in text.splitlines()]
        steps = np.diff(times)
        for at, step in enumerate(steps):
            # Between the two connections there was the time that it took to write the first, too.
            assert step == pytest.approx(gaps.get(at, 1 / 30), abs=5 if at in gaps else 2e-3), at
    manifest = json.loads((tmp_path / "drive" / "front" / "manifest.json").read_text())
    assert manifest["source"] == str(session / "front")


def test_a_session_is_gone_on_with(session: Path, tmp_path: Path) -> None:
    reports(config([session], tmp_path / "right"))
    reports(config([session], tmp_path / "cut"), until=128)
    found = reports(config([session], tmp_path / "cut", resume=True))
    assert "gone on once" in found["drive/front"].notes[0]
    wanted, gone_on = (left_by(tmp_path / name) for name in ("right", "cut"))
    assert wanted.keys() >= {"drive/front/labels.mkv", "drive/rear/stats.jsonl"}
    assert gone_on == wanted


def test_a_session_that_lost_a_segment_is_run_as_far_as_it_is_good(
    session: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(session, tmp_path / "drive")
    numbers = sorted((copy / "front" / "packets").glob("*.log"))
    for suffix in (".log", ".mkv", ".json"):
        numbers[1].with_suffix(suffix).unlink()
    report = reports(config([copy], tmp_path / "out"))["drive/front"]
    assert report.error is None
    assert 100 < report.frames < 180
    counted = labels(tmp_path / "out", "drive/front")[:, -1, -1].tolist()
    assert counted.count(1) == 3  # begun, after what is missing, and when it was opened anew


def test_results_never_take_the_place_of_the_recorded_labels(session: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(session, tmp_path / "drive")
    before = sorted(copy.rglob("*"))
    found = reports(config([copy], tmp_path, options=OutputOptions(labels="png")))
    assert {"where it lies itself" in (report.error or "") for report in found.values()} == {True}
    assert sorted(copy.rglob("*")) == before


def test_a_session_that_changed_is_not_gone_on_with(tmp_path: Path) -> None:
    """Without the camera that was recorded first the session's clock begins later."""
    clip = tmp_path / "clip.mp4"
    short_clip(clip, 120, seed=4, group=6)
    with Recorder(tmp_path / "drive", None, Limits()) as recorder:
        feed(recorder.camera("rear"), clip)
        feed(recorder.camera("front"), clip, start=5.0)
    front = config([tmp_path / "drive"], tmp_path / "out")
    reports(front, until=60)
    shutil.rmtree(tmp_path / "drive" / "rear")
    report = reports(replace(front, resume=True))["drive/front"]
    assert "drive/front: the session is not what it was when the run began" in (report.error or "")


class Camera:
    """Packets with time stamps of their own making, as a recorded camera."""

    def __init__(self, folder: Path, clip: Path) -> None:
        self.recorder = Recorder(folder, None, Limits())
        self.camera = self.recorder.camera("front")
        self.clip, self.now = clip, time.monotonic()

    def connect(self, ticks: Callable[[int], int], seconds: float, **more: Any) -> None:
        """One connection of the clip, its stamps by `ticks`, a frame every `seconds`."""
        with av.open(str(self.clip)) as container:
            stream = container.streams.video[0]
            parameters = replace(StreamParameters.of(stream, **more), time_base=Fraction(1, 1000))
            self.camera.connected(parameters)
            for number, packet in enumerate(p for p in container.demux(stream) if p.size):
                packet.pts = packet.dts = ticks(number)
                packet.time_base = parameters.time_base
                self.now += seconds
                self.camera.av_packet(packet, time.time(), self.now)


def shown_at(folder: Path, out: Path) -> list[float]:
    assert reports(config([folder], out))[f"{folder.name}/front"].error is None
    text = (out / folder.name / "front" / "stats.jsonl").read_text()
    return [json.loads(line)["pts_seconds"] for line in text.splitlines()]


def test_time_stamps_that_tell_no_time_are_not_believed(tmp_path: Path) -> None:
    """A camera whose frames FFmpeg counts as 25 a second, and that sends ten."""
    clip = tmp_path / "clip.mp4"
    short_clip(clip, 30, seed=1, group=10)
    camera = Camera(tmp_path / "s", clip)
    camera.connect(lambda number: 40 * number, 0.1, counted=True)
    camera.recorder.close()
    found = shown_at(tmp_path / "s", tmp_path / "out")
    assert np.diff(found) == pytest.approx(0.1, abs=1e-3)


def test_time_goes_on_when_a_fast_clock_is_opened_anew_or_set_back(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    short_clip(clip, 30, seed=1, group=10)
    camera = Camera(tmp_path / "s", clip)
    camera.connect(lambda number: 80 * number, 0.04)  # twice as fast as time
    camera.connect(lambda number: 5000 + 40 * number, 0.04)
    camera.connect(lambda number: (900_000 if number < 10 else 0) + 40 * number, 0.04)
    camera.recorder.close()
    found = shown_at(tmp_path / "s", tmp_path / "out")
    steps = np.diff(found)
    assert len(found) == 90
    assert steps[:29] == pytest.approx(0.08, abs=1e-3)
    assert steps[30:59] == pytest.approx(0.04, abs=1e-3)
    assert ((steps > 0) & (steps < 0.1)).all()  # also where a connection ends, or the clock is set
    labels_shown = labels(tmp_path / "out", "s/front")[:, -1, -1].tolist()
    assert [at for at, count in enumerate(labels_shown) if count == 1] == [0, 30, 60, 70]


def test_a_session_of_nothing_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "session.json").write_text("{}")
    (found,) = expand([str(tmp_path)]).failures
    assert "expected a folder of videos" in str(found[1])  # anything may be named so
    (tmp_path / "front" / "packets").mkdir(parents=True)
    (found,) = expand([str(tmp_path)]).failures
    assert str(found[1]) == f"{tmp_path}: a session without packets; expected a recording"
    (tmp_path / "front" / "packets" / "000001.log").write_bytes(b"garbage\n")
    found = reports(config([tmp_path], tmp_path / "out"))
    (report,) = found.values()
    assert "nothing in it can be replayed" in (report.error or "")


def test_what_a_crash_left_beside_finished_results_is_removed(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an actor that outlived its driver, and finished what the next run had begun anew."""
    monkeypatch.setattr("pipeline.resume.PATIENCE_SECONDS", 0.2)
    reports(config([clip], tmp_path))
    folder = tmp_path / "clip"
    finished = results(folder)
    (folder / ".labels.mkv.part").write_bytes(b"half")
    (folder / ".labels.part").mkdir()
    let_go = lock_folder(folder, 0)
    reports(config([clip], tmp_path, resume=True))
    assert (folder / ".labels.mkv.part").is_file(), "somebody may write it still"
    let_go()
    report = reports(config([clip], tmp_path, resume=True))["clip"]
    assert report.notes == ("an earlier run has finished it",)
    assert not list(folder.glob(".*"))
    assert results(folder) == finished


def test_without_resume_it_is_begun_anew_and_said(
    clip: Path, tmp_path: Path, right: np.ndarray
) -> None:
    reports(config([clip], tmp_path), until=120)
    assert frames_kept(tmp_path / "clip") == 96
    plan = prepare(config([clip], tmp_path))
    assert plan.warnings == (
        f"{clip}: begun anew; --resume would go on with the 96 frames of an unfinished run",
    )
    assert [event.error for event in run(plan) if isinstance(event, SourceReport)] == [None]
    assert json.loads((tmp_path / "clip" / "manifest.json").read_text())["resumed_at"] == []
    np.testing.assert_array_equal(labels(tmp_path), right)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size_hw": (64, 64)}, r"the network's size was by the source's aspect, is \[64, 64\]"),
        ({"options": OutputOptions(color=False)}, "the option color was True, is False"),
    ],
)
@pytest.mark.parametrize("until", [120, None])
def test_another_run_s_results_are_refused(
    clip: Path, tmp_path: Path, changes: dict[str, Any], message: str, until: int | None
) -> None:
    """Begun or finished, before anything runs, and nothing is harmed."""
    reports(config([clip], tmp_path), until=until)
    before = contents(tmp_path / "clip")
    plan = prepare(config([clip], tmp_path, resume=True, **changes))
    assert plan.sources == ()
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(plan.failures[0].error)
    assert contents(tmp_path / "clip") == before


@pytest.mark.parametrize("until", [120, None])
def test_another_engine_goes_on_and_it_is_said(
    clip: Path,
    tmp_path: Path,
    right: np.ndarray,
    until: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reports(config([clip], tmp_path), until=until)
    monkeypatch.setattr(
        "pipeline.run.choose_engine",
        lambda *asked, **more: replace(choose_engine(*asked, **more), runtime="fingers"),
    )
    report = reports(config([clip], tmp_path, resume=True))["clip"]
    assert report.error is None
    np.testing.assert_array_equal(labels(tmp_path), right)
    manifest = json.loads((tmp_path / "clip" / "manifest.json").read_text())
    changed = "the engine's precision was NumPy, is fingers"
    if until is None:
        assert report.notes == (f"an earlier run has finished it: {changed}",)
        assert manifest["identity"]["the engine's precision"] == "NumPy"
    else:
        assert manifest["notes"] == [f"from frame 96 on {changed}"]
        assert manifest["identity"]["the engine's precision"] == "fingers"


def test_a_changed_source_is_refused(clip: Path, tmp_path: Path, right: np.ndarray) -> None:
    source, out = tmp_path / "clip.mp4", tmp_path / "out"
    data = clip.read_bytes()
    source.write_bytes(data)
    reports(config([source], out), until=120)
    source.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    error = reports(config([source], out, resume=True))["clip"].error or ""
    assert "the source's content was" in error
    source.write_bytes(data)
    assert reports(config([source], out, resume=True))["clip"].error is None
    np.testing.assert_array_equal(labels(out), right)


def test_another_model_is_refused(clip: Path, tmp_path: Path) -> None:
    from models.registry import build, save
    from models.spec import Spec

    folders = []
    for width in (16, 24):
        spec = Spec("small", options={"width": width, "memory": 16})
        save(tmp_path / f"m{width}", build(spec), spec)
        folders.append(str(tmp_path / f"m{width}"))
    reports(config([clip], tmp_path / "out", model=folders[0]), until=120)
    error = reports(config([clip], tmp_path / "out", model=folders[1], resume=True))["clip"].error
    assert "the model's weights was" in (error or "")
    assert (
        reports(config([clip], tmp_path / "out", model=folders[0], resume=True))["clip"].error
        is None
    )


@pytest.mark.usefixtures("small_groups")
def test_gaps_and_changes_of_size_are_gone_on_with(
    library: media.Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Joined recordings, another size after the gap, marks before, at and behind it."""
    for module in ("mp4", "frames"):
        monkeypatch.setattr(f"pipeline.{module}.GROUP_FRAMES", 12)
    for name in ("grows.ts", "again.ts"):
        path = library.get(name)
        whole = tmp_path / f"{name}-whole"
        reports(config([path], whole))
        wanted = results(whole / path.stem)
        for until in (12, 24, 36, 48):
            out = tmp_path / f"{name}-{until}"
            reports(config([path], out), until=until)
            assert reports(config([path], out, resume=True))[path.stem].error is None
            found = results(out / path.stem)
            for made in (wanted, found):
                made.pop("stats.jsonl")
                made["manifest.json"].pop("outputs", None)
            assert found == wanted, (name, until)
            wanted = results(whole / path.stem)


def test_the_network_s_memory_comes_back_exactly(clip: Path, tmp_path: Path) -> None:
    """The default network, its states in the engine's own precision: labels equal to the last pixel."""
    settings: dict[str, Any] = {"engine": "cpu", "size_hw": (96, 128)}
    reports(config([clip], tmp_path / "whole", **settings))
    for resume, until in ((False, 60), (True, 150), (True, None)):
        reports(config([clip], tmp_path / "parts", resume=resume, **settings), until=until)
    whole, parts = labels(tmp_path / "whole"), labels(tmp_path / "parts")
    np.testing.assert_array_equal(parts, whole)
    assert len(np.unique(whole)) > 1
    for name in ("color.mp4", "labels.mkv"):
        one, other = ((tmp_path / run_ / "clip" / name).read_bytes() for run_ in ("whole", "parts"))
        assert one == other


def test_the_command_goes_on(clip: Path, tmp_path: Path, right: np.ndarray) -> None:
    """Killed by SIGKILL, then `roadmask run --resume`, with a source that it doesn't hurt."""
    reports(config([clip], tmp_path), until=120)
    command = (
        "run",
        clip,
        "--out",
        tmp_path,
        "--engine",
        "counting",
        "--inline",
        "--json",
        "--resume",
    )
    for _ in range(2):
        done = roadmask(*command)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert (report["frames"], report["error"]) == (CLIP_FRAMES, None)
        np.testing.assert_array_equal(labels(tmp_path), right)
    refused = roadmask(*command, "--size", "64x64")
    assert refused.returncode == 1
    assert "the network's size was by the source's aspect" in refused.stderr
    assert "Traceback" not in refused.stderr


# ------------------------------------------------------------------------------ what goes wrong outside


def goes_on(clip: Path, out: Path, right: np.ndarray) -> None:
    report = reports(config([clip], out, resume=True))["clip"]
    assert report.error is None
    np.testing.assert_array_equal(labels(out), right)


def one_line(report: SourceReport) -> str:
    assert report.error is not None
    assert report.details is None
    assert "\n" not in report.error
    return report.error


def test_a_full_disk_that_is_freed(
    clip: Path,
    small_disk: Path,  # noqa: F811
    right: np.ndarray,
) -> None:
    """Filled up in the middle of the run: one line, the videos playable, and all goes on."""
    ballast = small_disk / "ballast"
    events = run(prepare(config([clip], small_disk)))
    report = None
    for event in events:
        if isinstance(event, Progress) and event.frames == 104:
            free = os.statvfs(small_disk)
            ballast.write_bytes(bytes(free.f_bavail * free.f_bsize))
        if isinstance(event, SourceReport):
            report = event
    assert report is not None
    error = one_line(report)
    assert "No space left on device; free some space" in error
    assert "--resume goes on behind frame 95" in error
    ballast.unlink()
    assert len(video_pts(small_disk / "clip" / ".color.mp4.part", Fraction(1, 30))) >= 96
    goes_on(clip, small_disk, right)


def test_a_disk_that_becomes_read_only(
    clip: Path,
    small_disk: Path,  # noqa: F811
    right: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While running (as a kernel does after an error, here from the system call on), and remounted."""
    with monkeypatch.context() as patch:
        original = os.fsync

        def fsync(descriptor: int) -> None:
            if frames_kept(small_disk / "clip") >= 96:
                raise OSError(30, os.strerror(30))
            original(descriptor)

        patch.setattr(os, "fsync", fsync)
        error = one_line(reports(config([clip], small_disk))["clip"])
    assert "Read-only file system" in error
    assert "--resume goes on behind frame 95" in error
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    subprocess.run(remount, check=True)
    try:
        with pytest.raises(OutputError, match="Read-only file system"):
            prepare(config([clip], small_disk, resume=True))
    finally:
        subprocess.run([*remount[:2], "remount,rw", str(small_disk)], check=True)
    goes_on(clip, small_disk, right)


def test_the_output_folder_is_deleted(clip: Path, tmp_path: Path, right: np.ndarray) -> None:
    import shutil

    out, found = tmp_path / "out", None
    for event in run(prepare(config([clip], out))):
        if isinstance(event, Progress) and event.frames == 104:
            shutil.rmtree(out)
        if isinstance(event, SourceReport):
            found = event
    assert found is not None
    error = one_line(found)
    assert "No such file or directory" in error
    assert "the output folder is gone" in error
    goes_on(clip, out, right)  # from the first frame: nothing is left


def test_the_source_is_deleted(clip: Path, tmp_path: Path, right: np.ndarray) -> None:
    """Cut to nothing under the decoder's hands, gone at the next start, and back again."""
    source, out = tmp_path / "clip.mp4", tmp_path / "out"
    source.write_bytes(clip.read_bytes())
    reports(config([source], out), until=120)
    source.unlink()
    failure = prepare(config([source], out, resume=True)).failures[0]
    assert "no such file" in one_line(failure)
    assert frames_kept(out / "clip") == 96
    source.write_bytes(clip.read_bytes())
    goes_on(source, out, right)


def test_a_clock_set_back_changes_nothing(
    clip: Path, tmp_path: Path, right: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports(config([clip], tmp_path), until=120)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    os.utime(tmp_path / "clip" / ".roadmask.journal", (2**31, 2**31))
    goes_on(clip, tmp_path, right)


def test_checkpoints_come_by_the_clock(clip: Path, tmp_path: Path) -> None:
    """Every so many seconds, not at every place there could be one."""
    path = tmp_path / "clip" / ".roadmask.journal"
    for event in run(prepare(config([clip], tmp_path, checkpoint_seconds=3600))):
        assert isinstance(event, SourceReport) or not path.exists()


# ----------------------------------------------------------------------------------------- Ray


def test_a_source_whose_processes_die_again_and_again_is_given_up(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.errors import StageError
    from pipeline.restarts import MOST_DEATHS, Restarts
    from pipeline.stages import failure

    job = prepare(config([clip], tmp_path)).job
    source = expand([str(clip)]).sources[0]
    restarts = Restarts(job, source)
    assert not restarts.resume
    pauses = [restarts.count() for _ in range(MOST_DEATHS)]
    assert pauses == [0.25, 0.5, 1, 2, 4]
    assert restarts.resume
    reports(config([clip], tmp_path), until=120)
    assert restarts.count() == 0.25  # there was a checkpoint in between
    assert [restarts.count() for _ in range(MOST_DEATHS)][-1] is None
    report = restarts.give_up(failure(source, StageError("it died")))
    assert report.error == "it died; --resume goes on behind frame 95"
    kept = contents(tmp_path / "clip")
    (tmp_path / "clip" / ".roadmask.journal").unlink()
    assert restarts.give_up(failure(source, StageError("it died"))).error == "it died"
    assert kept
    assert not (tmp_path / "clip").exists()


def test_full_shared_memory_is_one_line_and_can_be_gone_on_with(
    clip: Path, tmp_path: Path, right: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray refuses to store another picture: one line, and going on without it."""
    reports(config([clip], tmp_path, options=OutputOptions(overlay=True)), until=120)
    code_path = tmp_path / "sitecustomize.py"
    code_path.write_text(
        "import ray\nfrom ray.exceptions import ObjectStoreFullError\n"
        "def put(*_, **__): raise ObjectStoreFullError('full')\nray.put = put\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    options = OutputOptions(overlay=True)
    error = one_line(
        reports(config([clip], tmp_path, options=options, placement="spread", resume=True))["clip"]
    )
    assert "Ray's shared memory and the disk behind it are full: free some space" in error
    assert "--resume goes on behind frame 95" in error
    report = reports(config([clip], tmp_path, options=options, resume=True))["clip"]
    assert report.error is None
    np.testing.assert_array_equal(labels(tmp_path), right)
