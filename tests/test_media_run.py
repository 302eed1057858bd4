"""Media as it is, from file to labels: a label frame for each frame that an independent decoder finds.

The independent decoder is the `ffprobe` command, another version and build of FFmpeg than PyAV's.
"""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.run import RunConfig, prepare, run
from pipeline.sinks import OutputOptions
from pipeline.stages import SourceReport
from tests.media import Library, has_ffmpeg, probe_frames, probe_time_base
from tests.test_decode import CUT, PARTIAL, ROTATED, SPOILED, WHOLE

pytestmark = pytest.mark.skipif(
    not has_ffmpeg(), reason="the media are built and checked with the ffmpeg and ffprobe commands"
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library(tmp_path_factory.mktemp("media"))


def run_one(path: Path, out: Path, options: OutputOptions) -> SourceReport:
    """Inline, by the counting engine; the one source's report."""
    config = RunConfig((str(path),), out, options, engine="counting", size_hw=(32, 48),
                       placement="inline")  # fmt: skip
    reports = [event for event in run(prepare(config)) if isinstance(event, SourceReport)]
    assert len(reports) == 1
    return reports[0]


@pytest.mark.parametrize("name", WHOLE + PARTIAL + CUT + SPOILED)
def test_a_label_frame_for_each_decodable_frame(
    library: Library, tmp_path: Path, name: str
) -> None:
    path = library.get(name)
    source, source_base = probe_frames(path), probe_time_base(path)
    report = run_one(path, tmp_path, OutputOptions(overlay=True))
    assert report.error is None
    assert report.folder is not None
    folder = Path(report.folder)
    labels = probe_frames(folder / "labels.mkv")
    label_base = probe_time_base(folder / "labels.mkv")
    assert report.frames == len(labels) == len(source) > 0
    assert {frame.size_hw for frame in labels} == {frame.size_hw for frame in source}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["frames_in"] == manifest["frames_out"] == len(source)
    for before, after in zip(source, labels, strict=True):
        if before.pts is not None and not manifest["repaired_pts"]:
            assert after.pts is not None
            assert round(after.pts * label_base / source_base) == before.pts
    for name_of_video in ("color.mp4", "overlay.mp4"):
        video = probe_frames(folder / name_of_video)
        assert len(video) == len(source)
        assert video[0].size_hw == source[0].size_hw
    assert len((folder / "stats.jsonl").read_text().splitlines()) == len(source)


@pytest.mark.parametrize("name", WHOLE[:5] + SPOILED)
def test_every_label_is_its_own_frames(library: Library, tmp_path: Path, name: str) -> None:
    """The count in the label is the frame's place: none lost, none twice, none out of order."""
    report = run_one(library.get(name), tmp_path, OutputOptions(color=False))
    with av.open(f"{report.folder}/labels.mkv") as container:
        labels = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    assert [int(label[-1, -1]) for label in labels] == list(range(1, report.frames + 1))


@pytest.mark.parametrize("name", ROTATED)
def test_labels_lie_as_the_footage_is_shown(library: Library, tmp_path: Path, name: str) -> None:
    path = library.get(name)
    report = run_one(path, tmp_path, OutputOptions(color=False))
    upright = "90" in name or "270" in name
    stored = probe_frames(path)[0].size_hw
    labels = probe_frames(Path(f"{report.folder}/labels.mkv"))[0].size_hw
    assert labels == (stored[::-1] if upright else stored)


def test_damage_is_counted_and_reported(library: Library, tmp_path: Path) -> None:
    report = run_one(library.get("spoiled.mp4"), tmp_path, OutputOptions(color=False))
    manifest = json.loads(Path(f"{report.folder}/manifest.json").read_text())
    assert manifest["corrupt_frames"] + manifest["undecodable_packets"] > 0
    assert any("damaged" in note or "could not be decoded" in note for note in report.notes)


@pytest.mark.parametrize(
    "name", ["headless.mp4", "frameless.mp4", "frameless.avi", "text.mp4", "empty.mp4", "sound.m4a"]
)
def test_what_holds_no_video_is_one_line(library: Library, tmp_path: Path, name: str) -> None:
    report = run_one(library.get(name), tmp_path, OutputOptions(overlay=True))
    assert report.error is not None
    assert name in report.error
    assert "\n" not in report.error
    assert report.details is None, "a fault of the source must not look like a defect"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_joined_streams_of_two_sizes_are_labelled_whole(library: Library, tmp_path: Path) -> None:
    path = library.get("grows.ts")
    report = run_one(path, tmp_path, OutputOptions(labels="png", overlay=True))
    assert report.error is None
    expected = probe_frames(path)
    images = sorted((tmp_path / "grows" / "labels").iterdir())
    assert len(images) == len(expected)
    with av.open(str(images[-1])) as container:
        last = next(container.decode(video=0))
        assert (last.height, last.width) == expected[-1].size_hw
        # The memory started anew with the second size.
        count = int(last.to_ndarray(format="gray")[-1, -1])
    changed = sum(frame.size_hw == expected[-1].size_hw for frame in expected)
    assert count == changed


def test_time_stamps_of_awkward_bases_are_exact(library: Library, tmp_path: Path) -> None:
    path = library.get("uneven.mp4")
    report = run_one(path, tmp_path, OutputOptions())
    with av.open(str(path)) as container:
        base = container.streams.video[0].time_base
        before = [frame.pts for frame in container.decode(video=0)]
    for name in ("labels.mkv", "color.mp4"):
        with av.open(f"{report.folder}/{name}") as container:
            stream = container.streams.video[0]
            assert base is not None
            assert stream.time_base is not None
            times = [frame.pts * stream.time_base for frame in container.decode(video=0)]
        offset = 0
        if name.endswith("mp4"):
            manifest = json.loads(Path(f"{report.folder}/manifest.json").read_text())
            offset = manifest["outputs"][name].get("pts_offset", 0)
        assert [time - offset * base for time in times] == [
            pytest.approx(float(pts * base), abs=float(base) / 2) for pts in before
        ]
        found = [Fraction(round(time / base)) - offset for time in times]
        assert np.array_equal(found, before)
