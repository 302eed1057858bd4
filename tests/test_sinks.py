"""What a run leaves, read back with other tools: ffprobe and ffmpeg of the system, OpenCV, zlib."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import subprocess
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from pipeline.errors import ConfigError, OutputError
from pipeline.frames import EndOfStream, Gap, LabelBatch, Pictures, StreamInfo
from pipeline.palette import CAMVID, UNLABELLED
from pipeline.parts import PartFile, clear_stale
from pipeline.sinks import OutputOptions, Sink

THIRTY = Fraction(1, 30)
ALL = OutputOptions(overlay=True)


def make_stream(size_hw: tuple[int, int] = (90, 160), **changes: Any) -> StreamInfo:
    facts: dict[str, Any] = {"time_base": THIRTY, "average_rate": Fraction(30)} | changes
    return StreamInfo("clip", facts.pop("source", "no such file.mp4"), size_hw, **facts)


def make_labels(count: int, model_hw: tuple[int, int] = (45, 80), seed: int = 0) -> np.ndarray:
    """Blobs of all classes and of no class, another map each frame."""
    rng = np.random.default_rng(seed)
    ids = np.array([*range(len(CAMVID)), UNLABELLED], np.uint8)
    return np.stack([
        cv2.resize(rng.choice(ids, (6, 9)), model_hw[::-1], interpolation=cv2.INTER_NEAREST)
        for _ in range(count)
    ])  # fmt: skip


def make_pictures(count: int, size_hw: tuple[int, int]) -> Pictures:
    """A luminance ramp over grey, brighter each frame."""
    height, width = size_hw
    ramp = np.linspace(40, 150, width).astype(np.uint8)
    y = np.stack([np.tile(ramp + 5 * (i % 10), (height, 1)) for i in range(count)])
    chroma = np.full((count, (height + 1) // 2, (width + 1) // 2), 128, np.uint8)
    return Pictures(y, chroma, chroma + 10)


def make_batches(
    stream: StreamInfo, pts: Sequence[int], chunk: int = 8, seed: int = 0
) -> list[LabelBatch]:
    count = max(1, len(pts))
    labels, pictures = make_labels(count, seed=seed), make_pictures(count, stream.size_hw)
    batches = []
    for start in range(0, len(pts), chunk):
        part = slice(start, start + chunk)
        stamps = tuple(pts[part])
        batches.append(
            LabelBatch(
                stream=stream,
                frame_index=start,
                pts=stamps,
                labels=labels[part],
                decoded_at=tuple(100.0 + i for i in range(len(stamps))),
                labelled_at=110.0,
                steps=np.arange(start + 1, start + 1 + len(stamps)),
                pictures=Pictures(pictures.y[part], pictures.u[part], pictures.v[part]),
            )
        )
    return batches


def run(
    folder: Path,
    stream: StreamInfo,
    pts: Sequence[int],
    options: OutputOptions = ALL,
    seed: int = 0,
    **end: Any,
) -> dict[str, Any]:
    with Sink(folder, CAMVID, options, {"model": {"name": "m"}}) as sink:
        for batch in make_batches(stream, pts, seed=seed):
            sink.write(batch)
        return sink.finish(EndOfStream(stream, len(pts), **end))


def full_labels(stream: StreamInfo, count: int, seed: int = 0) -> np.ndarray:
    """What the labels are at full size: each pixel takes the id under its centre."""
    small = make_labels(count, seed=seed)
    rows, columns = (
        np.minimum(((np.arange(n) + 0.5) * m / n).astype(int), m - 1)
        for n, m in zip(stream.size_hw, small.shape[1:], strict=True)
    )
    return small[:, rows][:, :, columns]


def probe(path: Path, *arguments: str) -> dict[str, Any]:
    command = ["ffprobe", "-v", "error", "-of", "json", *arguments, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def video_pts(path: Path, time_base: Fraction) -> list[Fraction]:
    """Time stamps of the decoded pictures in ticks of `time_base`, by ffprobe, not rounded."""
    found = probe(
        path, "-select_streams", "v", "-show_entries", "frame=pts:stream=time_base"
    )  # fmt: skip
    ticks = Fraction(found["streams"][0]["time_base"])
    return [frame["pts"] * ticks / time_base for frame in found["frames"]]


def decode_raw(path: Path, pixel_format: str, size_hw: tuple[int, int]) -> np.ndarray:
    """All pictures as ffmpeg decodes them, a row of bytes each; fails if it must convert."""
    found = probe(path, "-select_streams", "v", "-show_entries", "stream=pix_fmt,width,height")
    facts = found["streams"][0]
    assert (facts["pix_fmt"], facts["height"], facts["width"]) == (pixel_format, *size_hw)
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-map", "0:v", "-fps_mode", "passthrough"]
    done = subprocess.run([*command, "-f", "rawvideo", "-"], capture_output=True, check=True)
    height, width = size_hw
    chroma = {"gray": 0, "yuv420p": 2 * -(-height // 2) * -(-width // 2)}
    frame_bytes = height * width + chroma.get(pixel_format, 2 * height * width)
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, frame_bytes)


def read_png(path: Path) -> np.ndarray:
    image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return image


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_everything_of_a_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder, stream, pts = tmp_path / "out" / "clip", make_stream(), range(20)
    manifest = run(folder, stream, pts, notes=("a note",), corrupt_frames=2)
    assert names(folder) == [
        "color.mp4", "labels.mkv", "manifest.json", "overlay.mp4", "stats.jsonl"
    ]  # fmt: skip
    assert manifest == json.loads((folder / "manifest.json").read_text())
    expected = {
        "model": {"name": "m"}, "frames_in": 20, "frames_out": 20, "corrupt_frames": 2,
        "time_base": "1/30", "average_rate": "30", "size_hw": [90, 160], "notes": ["a note"],
        "first_pts": 0, "last_pts": 19, "interrupted": False, "classes": list(CAMVID.classes),
        "palette": CAMVID.rgb.tolist(),
    }  # fmt: skip
    assert {name: manifest[name] for name in expected} == expected
    for name, facts in manifest["outputs"].items():
        assert facts["bytes"] == (folder / name).stat().st_size
    for name in ("color.mp4", "overlay.mp4", "labels.mkv"):
        assert [round(stamp) for stamp in video_pts(folder / name, THIRTY)] == list(pts), name
    # Other threads may print meanwhile: of FFmpeg nothing is heard.
    printed = "".join(capfd.readouterr())
    assert not re.search(r"x264|ffv1|\[\S+ @ 0x", printed), printed


def test_stats_say_what_the_network_said(tmp_path: Path) -> None:
    stream = make_stream(time_base=Fraction(1, 90000))
    pts = [-4500 + 3003 * i for i in range(11)]
    run(tmp_path, stream, pts, OutputOptions(labels="none", color=False))
    assert names(tmp_path) == ["manifest.json", "stats.jsonl"]
    lines = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(11))
    assert [line["pts_seconds"] for line in lines] == [float(p * stream.time_base) for p in pts]
    assert [line["latency_ms"] for line in lines[:9]] == [*range(10000, 2000, -1000), 10000]
    for line, labels in zip(lines, make_labels(11), strict=True):
        expected = {n: float((labels == i).mean()) for i, n in enumerate(CAMVID.classes)}
        assert line["share"] == pytest.approx(expected, abs=1e-6)
        assert sum(line["share"].values()) < 1  # the rest has no class


TIME_BASES: list[tuple[Fraction, list[int]]] = [
    (Fraction(1, 90000), [126000 + 3003 * i for i in range(12)]),
    (Fraction(1001, 30000), list(range(5, 17))),
    (Fraction(1, 1000), [17, 50, 84, 117, 150, 184, 917, 918]),
    (Fraction(1, 10_000_000), [12345671 + 333333 * i for i in range(12)]),
    (Fraction(1, 1_000_000_000), [7, 5000, 1_000_001, 30_000_000, 2_000_000_000]),
    (Fraction(1, 15360), [512 * i + i % 3 for i in range(12)]),
    (Fraction(1, 90000), [2**33 + 3003 * i for i in range(12)]),
    (Fraction(2, 7), [3, 4, 9, 20]),
]


@pytest.mark.parametrize(("time_base", "pts"), TIME_BASES)
def test_time_stamps_are_exact(tmp_path: Path, time_base: Fraction, pts: list[int]) -> None:
    rate = (len(pts) - 1) / ((pts[-1] - pts[0]) * time_base)
    stream = make_stream(time_base=time_base, average_rate=rate)
    run(tmp_path, stream, pts, OutputOptions())
    assert video_pts(tmp_path / "color.mp4", time_base) == pts
    labels = video_pts(tmp_path / "labels.mkv", time_base)
    assert [round(stamp) for stamp in labels] == pts
    nanosecond = Fraction(1, 1_000_000_000) / time_base
    assert all(abs(got - p) <= nanosecond / 2 for got, p in zip(labels, pts, strict=True))


def test_time_before_zero(tmp_path: Path) -> None:
    time_base, pts = Fraction(1, 90000), [-9000 + 3003 * i for i in range(12)]
    manifest = run(tmp_path, make_stream(time_base=time_base), pts)
    labels = video_pts(tmp_path / "labels.mkv", time_base)
    assert [round(stamp) for stamp in labels] == pts
    for name in ("color.mp4", "overlay.mp4"):  # mp4 has no time before zero
        assert manifest["outputs"][name]["pts_offset"] == 9000
        assert [stamp - 9000 for stamp in video_pts(tmp_path / name, time_base)] == pts
    assert "pts_offset" not in manifest["outputs"]["labels.mkv"]


def test_a_pause_too_long_for_the_ticks_of_mp4(tmp_path: Path) -> None:
    time_base = Fraction(1, 1_000_000_000)
    pts = [1, 40_000_123, 40_000_124, 3_000_000_000, 3_040_000_456]
    manifest = run(tmp_path, make_stream(time_base=time_base), pts, OutputOptions())
    got = video_pts(tmp_path / "color.mp4", Fraction(1, 1_000_000))
    assert got == [0, 40_000, 40_001, 3_000_000, 3_040_000]
    assert "rounded to 1/1000000 s" in manifest["notes"][0]
    assert [round(p) for p in video_pts(tmp_path / "labels.mkv", time_base)] == pts
    assert not list(tmp_path.glob(".*"))
    planes = decode_raw(tmp_path / "color.mp4", "yuv420p", (90, 160))
    assert_colours(planes, full_labels(make_stream(), 5), "bt709", full_chroma=False)


SIZES = [(90, 160), (91, 160), (90, 161), (91, 161), (45, 80), (31, 33), (2, 2), (1, 1), (200, 40)]


@pytest.mark.parametrize("size_hw", SIZES)
def test_labels_are_exact_at_the_size_of_the_source(
    tmp_path: Path, size_hw: tuple[int, int]
) -> None:
    stream = make_stream(size_hw)
    run(tmp_path, stream, range(3), ALL)
    expected = full_labels(stream, 3)
    raw = decode_raw(tmp_path / "labels.mkv", "gray", size_hw)
    assert np.array_equal(raw.reshape(expected.shape), expected)
    odd = bool(size_hw[0] % 2 or size_hw[1] % 2)
    for name in ("color.mp4", "overlay.mp4"):
        raw = decode_raw(tmp_path / name, "yuv444p" if odd else "yuv420p", size_hw)
        assert len(raw) == 3


def test_labels_state_a_rate_only_if_it_is_constant(tmp_path: Path) -> None:
    for step, shown in ((3003, 33_366_667), (3000, None)):
        pts = [step * i + (i == 7) * (step == 3000) * 900 for i in range(20)]
        stream = make_stream(time_base=Fraction(1, 90000), average_rate=Fraction(24))
        run(tmp_path / str(step), stream, pts, OutputOptions(color=False))
        path = tmp_path / str(step) / "labels.mkv"
        found = probe(path, "-show_entries", "packet=duration:format=duration")
        assert found["packets"][3].get("duration") == shown
        assert float(found["format"]["duration"]) == pytest.approx(20 * step / 90000, abs=1e-6)


def test_labels_are_exact_in_opencv_and_where_it_seeks(tmp_path: Path) -> None:
    stream = make_stream()
    run(tmp_path, stream, range(40), OutputOptions(color=False))
    expected = full_labels(stream, 40)
    capture = cv2.VideoCapture(str(tmp_path / "labels.mkv"))
    try:
        assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 40
        assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(30, abs=1e-4)
        for labels in expected:
            assert np.array_equal(capture.read()[1][..., 1], labels)
        assert not capture.read()[0]
    finally:
        capture.release()
    with av.open(str(tmp_path / "labels.mkv")) as container:
        video = container.streams.video[0]
        assert video.time_base
        for index in (33, 0, 17, 39):
            container.seek(round(index * THIRTY / video.time_base), stream=video)
            frame = next(container.decode(video))
            assert np.array_equal(frame.to_ndarray(format="gray"), expected[index])


@pytest.mark.parametrize("threads", [0, 2])
def test_encoder_threads_change_nothing(tmp_path: Path, threads: int) -> None:
    stream = make_stream()
    manifest = run(tmp_path, stream, range(30), OutputOptions(encoder_threads=threads))
    assert manifest["frames_out"] == 30
    raw = decode_raw(tmp_path / "labels.mkv", "gray", (90, 160))
    assert np.array_equal(raw.reshape(-1, 90, 160), full_labels(stream, 30))
    assert video_pts(tmp_path / "color.mp4", THIRTY) == list(range(30))
    planes = decode_raw(tmp_path / "color.mp4", "yuv420p", (90, 160))
    assert_colours(planes, full_labels(stream, 30), "bt709", full_chroma=False)


def assert_colours(planes: np.ndarray, labels: np.ndarray, matrix: str, full_chroma: bool) -> None:
    """Decoded pictures against the exact drawing, away from boundaries and on the whole."""
    draw = CAMVID.labels_to_i444 if full_chroma else CAMVID.labels_to_i420
    assert len(planes) == len(labels)
    for found, ids in zip(planes, labels, strict=True):
        drawn = np.concatenate([plane.ravel() for plane in draw(ids, matrix)])
        error = np.abs(found.astype(int) - drawn)
        assert error.mean() < 1
        assert (error > 12).mean() < 0.005


@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
@pytest.mark.parametrize("size_hw", [(90, 160), (91, 161)])
def test_colours(tmp_path: Path, size_hw: tuple[int, int], matrix: str) -> None:
    stream, odd = make_stream(size_hw, matrix=matrix), size_hw[0] % 2 == 1
    run(tmp_path, stream, range(10), OutputOptions())
    planes = decode_raw(tmp_path / "color.mp4", "yuv444p" if odd else "yuv420p", size_hw)
    assert_colours(planes, full_labels(stream, 10), matrix, full_chroma=odd)
    entries = "stream=color_range,color_space,color_primaries,color_transfer"
    tags = probe(tmp_path / "color.mp4", "-show_entries", entries)["streams"][0]
    name = {"bt601": "smpte170m", "bt709": "bt709"}[matrix]
    assert tags == {
        "color_range": "tv", "color_space": name, "color_primaries": name, "color_transfer": name
    }  # fmt: skip


@pytest.mark.parametrize("size_hw", [(90, 160), (91, 161)])
def test_overlay_shows_picture_and_colours(tmp_path: Path, size_hw: tuple[int, int]) -> None:
    stream, odd = make_stream(size_hw), size_hw[0] % 2 == 1
    run(tmp_path, stream, range(10), OutputOptions(color=False, overlay=True, opacity=0.4))
    raw = decode_raw(tmp_path / "overlay.mp4", "yuv444p" if odd else "yuv420p", size_hw)
    height, width = size_hw
    luma = raw[:, : height * width].reshape(-1, height, width).astype(int)
    pictures = make_pictures(10, size_hw)
    for place, ids in enumerate(full_labels(stream, 10)):
        colour = CAMVID.labels_to_i444(ids, "bt709")[0]
        blend = np.where(ids < 11, 0.6 * pictures.y[place] + 0.4 * colour, pictures.y[place])
        assert np.abs(luma[place] - blend).mean() < 2


def test_pixel_aspect_is_kept_and_turns_with_the_picture(tmp_path: Path) -> None:
    for rotation, expected in ((0, "4:3"), (90, "3:4")):
        stream = make_stream(
            rotation_degrees=rotation, details={"sample_aspect_ratio": "4:3"}
        )  # fmt: skip
        run(tmp_path / str(rotation), stream, range(2), OutputOptions(labels="none"))
        path = tmp_path / str(rotation) / "color.mp4"
        found = probe(path, "-show_entries", "stream=sample_aspect_ratio")["streams"][0]
        assert found["sample_aspect_ratio"] == expected


def test_png_of_video_frames(tmp_path: Path) -> None:
    stream = make_stream((91, 161))
    manifest = run(tmp_path, stream, range(0, 30, 3), OutputOptions(labels="png", color=False))
    assert names(tmp_path / "labels") == [f"{index:06d}.png" for index in range(10)]
    for index, expected in enumerate(full_labels(stream, 10)):
        path = tmp_path / "labels" / f"{index:06d}.png"
        assert np.array_equal(read_png(path), expected)
    found = probe(path, "-show_entries", "stream=pix_fmt,width,height")["streams"][0]
    assert found == {"pix_fmt": "gray", "width": 161, "height": 91}
    written = sum(len(data) for data in contents(tmp_path / "labels").values())
    assert manifest["outputs"]["labels"] == {"bytes": written, "files": 10}


def test_png_of_images_have_their_names(tmp_path: Path) -> None:
    stems = ("Straße 1", "東京", "a.b", "twice", "twice", "unreadable", "последний")
    stream = make_stream(frame_names=stems)
    options = OutputOptions(labels="png", color=False)
    manifest = run(tmp_path, stream, (0, 1, 2, 3, 4, 6), options)
    assert names(tmp_path / "labels") == sorted(
        ["Straße 1.png", "東京.png", "a.b.png", "twice_000003.png", "twice_000004.png",
         "последний.png"]
    )  # fmt: skip
    assert "occur more than once" in manifest["notes"][0]
    assert np.array_equal(read_png(tmp_path / "labels" / "東京.png"), full_labels(stream, 6)[1])


def test_a_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    stream = make_stream(frame_names=("../evil",))
    with pytest.raises(ValueError, match="names without folders"):
        run(tmp_path / "out", stream, (0,), OutputOptions(labels="png", color=False))
    assert not (tmp_path / "out").exists()
    assert names(tmp_path) == []


def test_size_changes_on_the_way(tmp_path: Path) -> None:
    first, second = make_stream((90, 160)), make_stream((60, 112))
    batches = [*make_batches(first, range(8)), *make_batches(second, range(8))]
    moved = LabelBatch(
        **{**vars(batches[1]), "frame_index": 8, "pts": tuple(range(8, 16))}
    )  # fmt: skip
    for labels in ("mkv", "png"):
        with Sink(tmp_path / labels, CAMVID, OutputOptions(labels, overlay=True), {}) as sink:
            sink.write(batches[0])
            sink.note_gap(Gap(second, 8, None, "change of size"))
            sink.write(moved)
            manifest = sink.finish(EndOfStream(second, 16))
        assert manifest["gaps"] == [{"frame_index": 8, "seconds": None, "reason": "change of size"}]
        assert "the size changes to 112x60" in manifest["notes"][0]
        assert len(decode_raw(tmp_path / labels / "overlay.mp4", "yuv420p", (90, 160))) == 16
    raw = decode_raw(tmp_path / "mkv" / "labels.mkv", "gray", (90, 160)).reshape(-1, 90, 160)
    assert np.array_equal(raw[:8], full_labels(first, 8))
    shrunk = full_labels(second, 8)[3]
    assert np.array_equal(np.unique(raw[11]), np.unique(shrunk))
    assert (raw[11] == full_labels(first, 8)[3]).mean() > 0.95
    assert np.array_equal(read_png(tmp_path / "png" / "labels" / "000011.png"), shrunk)


def make_source(path: Path, *codecs: str, seconds: float = 2, offset: float = 0) -> Path:
    """A video with a tone for each audio codec, each tone another."""
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", f"testsrc=s=160x90:r=30:d={seconds}"]
    for place, _ in enumerate(codecs):
        sine = f"sine=frequency={300 * (place + 1)}:sample_rate=44100:duration={seconds}"
        command += ["-itsoffset", str(offset), "-f", "lavfi", "-i", sine]
    for place in range(len(codecs) + 1):
        command += ["-map", str(place)]
    for place, codec in enumerate(codecs):
        command += [f"-c:a:{place}", codec]
    subprocess.run([*command, "-strict", "-2", "-bf", "0", str(path)], check=True)
    return path


def audio_packets(path: Path) -> list[list[tuple[Fraction, str]]]:
    """Time in seconds and hash of each packet of each audio stream."""
    entries = "packet=stream_index,pts,data_hash:stream=index,time_base"
    found = probe(
        path, "-select_streams", "a", "-show_entries", entries, "-show_data_hash", "md5"
    )  # fmt: skip
    streams = {s["index"]: Fraction(s["time_base"]) for s in found["streams"]}
    return [
        [
            (packet["pts"] * base, packet["data_hash"])
            for packet in found.get("packets", ())
            if packet["stream_index"] == index
        ]
        for index, base in streams.items()
    ]


@pytest.mark.parametrize(
    ("name", "codecs", "offset"),
    [
        ("aac.mp4", ["aac"], 0),
        ("late.mp4", ["aac"], 0.5),
        ("two.mkv", ["libmp3lame", "ac3"], 0),
        ("no audio.mp4", [], 0),
        ("a:b %d über.mkv", ["libopus"], 0),
    ],
)
def test_audio_is_copied(tmp_path: Path, name: str, codecs: list[str], offset: float) -> None:
    source = make_source(tmp_path / name, *codecs, offset=offset)
    before = audio_packets(source)
    assert len(before) == len(codecs)
    manifest = run(tmp_path / "out", make_stream(source=str(source)), range(60))
    overlay = tmp_path / "out" / "overlay.mp4"
    after = audio_packets(overlay)
    assert manifest["outputs"]["overlay.mp4"]["audio_streams"] == len(codecs)
    assert manifest["notes"] == []
    assert video_pts(overlay, THIRTY) == list(range(60))
    for wanted, found in zip(before, after, strict=True):
        assert len(wanted) > 50
        assert [digest for _, digest in found] == [digest for _, digest in wanted]
        for (there, _), (here, _) in zip(wanted, found, strict=True):
            assert abs(there - here) < Fraction(1, 1000)


def test_audio_and_pictures_are_interleaved(tmp_path: Path) -> None:
    # Longer than the ten seconds that the muxer holds back by itself.
    source = make_source(tmp_path / "in.mp4", "aac", seconds=15)
    run(tmp_path / "out", make_stream(source=str(source)), range(0, 450, 5))
    entries = "packet=codec_type,pts_time,pos"
    found = probe(tmp_path / "out" / "overlay.mp4", "-show_entries", entries)["packets"]
    in_file = sorted(found, key=lambda packet: int(packet["pos"]))
    latest = {"audio": 0.0, "video": 0.0}
    for packet in in_file:
        latest[packet["codec_type"]] = float(packet["pts_time"])
        assert abs(latest["audio"] - latest["video"]) < 1.2  # the muxer's own chunks are a second


def test_audio_moves_with_pictures_before_zero(tmp_path: Path) -> None:
    source = make_source(tmp_path / "in.mkv", "libmp3lame")
    before = audio_packets(source)[0]
    run(tmp_path / "out", make_stream(source=str(source)), range(-15, 45))
    overlay = tmp_path / "out" / "overlay.mp4"
    assert video_pts(overlay, THIRTY) == list(range(60))
    after = audio_packets(overlay)[0]
    assert [digest for _, digest in after] == [digest for _, digest in before]
    for (there, _), (here, _) in zip(before, after, strict=True):
        assert abs(there + Fraction(1, 2) - here) < Fraction(1, 1000)


def test_audio_that_mp4_cannot_hold_is_left_out(tmp_path: Path) -> None:
    source = make_source(tmp_path / "in.mkv", "pcm_mulaw", "aac")
    manifest = run(tmp_path / "out", make_stream(source=str(source)), range(60))
    assert manifest["notes"] == ["pcm_mulaw audio is not copied: mp4 cannot hold it"]
    assert [len(packets) > 50 for packets in audio_packets(tmp_path / "out/overlay.mp4")] == [True]


def test_audio_of_a_broken_source_does_not_harm(tmp_path: Path) -> None:
    source = make_source(tmp_path / "in.mkv", "aac")
    data = bytearray(source.read_bytes())
    data[len(data) // 3 :] = bytes(len(data) // 7)
    source.write_bytes(data)
    run(tmp_path / "cut", make_stream(source=str(source)), range(60))
    assert video_pts(tmp_path / "cut" / "overlay.mp4", THIRTY) == list(range(60))
    source.write_text("not a video at all")
    manifest = run(tmp_path / "text", make_stream(source=str(source)), range(60))
    assert "audio is not copied" in manifest["notes"][0]
    assert video_pts(tmp_path / "text" / "overlay.mp4", THIRTY) == list(range(60))


def test_interrupted(tmp_path: Path) -> None:
    source = make_source(tmp_path / "in.mp4", "aac", seconds=4)
    manifest = run(tmp_path / "out", make_stream(source=str(source)), range(30), interrupted=True)
    assert manifest["interrupted"] is True
    overlay = tmp_path / "out" / "overlay.mp4"
    assert video_pts(overlay, THIRTY) == list(range(30))
    last, _ = audio_packets(overlay)[0][-1]
    assert Fraction(9, 10) < last < 1


def test_interrupted_before_the_first_frame(tmp_path: Path) -> None:
    """Nothing is left, and an earlier result with its manifest stays."""
    stream = make_stream()
    manifest = run(tmp_path / "new" / "clip", stream, (), interrupted=True)
    assert (manifest["interrupted"], manifest["frames_out"]) == (True, 0)
    assert manifest["outputs"] == {}
    assert names(tmp_path / "new") == []
    run(tmp_path / "clip", stream, range(20))
    before = contents(tmp_path / "clip")
    with Sink(tmp_path / "clip", CAMVID, ALL, {}) as sink:
        manifest = sink.finish(EndOfStream(stream, 0, interrupted=True))
        assert (manifest["interrupted"], manifest["frames_out"]) == (True, 0)
        with pytest.raises(ValueError, match="is closed"):
            sink.finish(EndOfStream(stream, 0, interrupted=True))
    assert contents(tmp_path / "clip") == before


def test_until_the_end_nothing_has_its_final_name(tmp_path: Path) -> None:
    for labels in ("mkv", "png"):
        folder = tmp_path / labels
        with Sink(folder, CAMVID, OutputOptions(labels, overlay=True), {}) as sink:
            for batch in make_batches(make_stream(), range(20)):
                sink.write(batch)
                assert names(folder)
                assert all(n.startswith(".") and n.endswith(".part") for n in names(folder))
        assert not folder.exists()  # it was new, and nothing was finished


@pytest.mark.parametrize("labels", ["mkv", "png"])
def test_an_aborted_run_leaves_the_earlier_one(tmp_path: Path, labels: str) -> None:
    options = OutputOptions(labels, overlay=True)
    run(tmp_path, make_stream(), range(20), options)
    before = contents(tmp_path)
    for batches in range(4):
        sink = Sink(tmp_path, CAMVID, options, {})
        for batch in make_batches(make_stream(), range(24), seed=1)[:batches]:
            sink.write(batch)
        sink.abort()
        assert contents(tmp_path) == before
    run(tmp_path, make_stream(), range(20), options, seed=1)
    assert contents(tmp_path).keys() == before.keys()
    assert all(contents(tmp_path)[name] != before[name] for name in before)


@pytest.mark.parametrize("writer", ["ColorVideo", "OverlayVideo", "LabelVideo", "StatsFile"])
@pytest.mark.parametrize("method", ["__init__", "write", "close", "publish"])
def test_whatever_raises_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str, method: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(f"pipeline.sinks.{writer}.{method}", fail)
    with pytest.raises(RuntimeError, match="broken"):
        run(tmp_path / "out", make_stream(), range(20))
    left = names(tmp_path / "out") if (tmp_path / "out").exists() else []
    assert "manifest.json" not in left
    assert not [name for name in left if name.startswith(".")]
    if method != "publish":
        assert left == []


def test_a_crash_is_cleared_away(tmp_path: Path) -> None:
    run(tmp_path, make_stream(), range(9), OutputOptions("png"))
    before = contents(tmp_path)
    (tmp_path / ".color.mp4.part").write_text("half a video")
    (tmp_path / ".labels.part").mkdir()
    (tmp_path / ".labels.part" / "000000.png").write_text("half a picture")
    (tmp_path / "labels").rename(tmp_path / ".labels.replaced")  # died between two renames
    Sink(tmp_path, CAMVID, OutputOptions(), {}).close()
    assert contents(tmp_path) == before
    assert (tmp_path / "labels" / "000000.png").exists()


def test_what_the_dead_left_is_cleared(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    clear_stale(folder)  # no folder, no error
    folder.mkdir()
    (folder / ".color.mp4.part").write_text("half a video")
    (folder / ".color.mp4.before.part").write_text("half a video")
    (folder / ".labels.part").mkdir()
    (folder / ".labels.part" / "000000.png").write_text("half a picture")
    clear_stale(folder)
    assert names(tmp_path) == []
    run(folder, make_stream(), range(9), OutputOptions("png"))
    (folder / "mine.part").write_text("somebody else's")
    before = contents(folder)
    (folder / ".stats.jsonl.part").write_text("half a line")
    (folder / "labels").rename(folder / ".labels.replaced")  # killed between two renames
    clear_stale(folder)
    assert contents(folder) == before
    assert (folder / "labels").is_dir()
    clear_stale(folder / "mine.part")  # a file, no error
    assert contents(folder) == before


def test_close_may_be_called_again(tmp_path: Path) -> None:
    stream = make_stream()
    with Sink(tmp_path, CAMVID, OutputOptions(), {}) as sink:
        sink.write(make_batches(stream, range(8))[0])
        sink.finish(EndOfStream(stream, 8))
        before = contents(tmp_path)
        for _ in range(2):
            sink.close()
            sink.abort()
    assert contents(tmp_path) == before
    for call in (
        lambda: sink.write(make_batches(stream, range(8))[0]),
        lambda: sink.finish(EndOfStream(stream, 8)),
    ):
        with pytest.raises(ValueError, match="is closed"):
            call()
    assert contents(tmp_path) == before


def test_no_frames(tmp_path: Path) -> None:
    manifest = run(tmp_path, make_stream(), ())
    assert names(tmp_path) == ["manifest.json", "stats.jsonl"]
    assert (manifest["frames_out"], manifest["first_pts"]) == (0, None)


def test_frames_out_of_order_are_refused(tmp_path: Path) -> None:
    first, second = make_batches(make_stream(), range(16))
    with Sink(tmp_path, CAMVID, OutputOptions(), {}) as sink:
        sink.write(first)
        sink.write(second)
        with pytest.raises(ValueError, match="must increase, got 0, 0 after"):
            sink.write(first)


def test_an_overlay_needs_pictures(tmp_path: Path) -> None:
    batch = make_batches(make_stream(), range(8))[0]
    bare = LabelBatch(**{**vars(batch), "pictures": None})
    with (
        pytest.raises(ValueError, match="pictures must be decoded for an overlay"),
        Sink(tmp_path, CAMVID, ALL, {}) as sink,
    ):
        sink.write(bare)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.mp4")
    run(tmp_path, make_stream(source=name), range(2), OutputOptions(color=False))
    assert json.loads((tmp_path / "manifest.json").read_bytes())["source"] == name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "gif"}, "^labels must be mkv, png or none, got 'gif'$"),
        ({"opacity": -0.1}, r"opacity must be 0 to 1, got -0\.1"),
        ({"encoder_threads": -1}, "encoder_threads must be 0 .* got -1"),
    ],
)
def test_invalid_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        OutputOptions(**options)
    assert isinstance(caught.value, ValueError)


def one_line(error: pytest.ExceptionInfo[OutputError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_the_folder_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "clip"):
        with pytest.raises(OutputError) as error:
            Sink(folder, CAMVID, OutputOptions(), {})
        assert str(folder) in one_line(error)
        assert "a file is where a folder should be; choose another" in one_line(error)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_the_folder_is_not_writable(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        for folder in (tmp_path, tmp_path / "clip"):
            with pytest.raises(OutputError, match="one you may write in"):
                Sink(folder, CAMVID, OutputOptions(), {})
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_has_the_name_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "color.mp4").mkdir()
    with pytest.raises(OutputError) as error:
        run(tmp_path, make_stream(), range(8))
    assert str(tmp_path / "color.mp4") in one_line(error)
    assert names(tmp_path) == ["color.mp4"]


OUTPUTS = [
    ("color.mp4", OutputOptions("none")),
    ("overlay.mp4", OutputOptions("none", color=False, overlay=True)),
    ("labels.mkv", OutputOptions("mkv", color=False)),
    ("labels", OutputOptions("png", color=False)),
]


def write_noise(folder: Path, stream: StreamInfo, options: OutputOptions) -> None:
    noise = np.random.default_rng(3).integers(0, 11, (8, 45, 80)).astype(np.uint8)
    with Sink(folder, CAMVID, options, {}) as sink:
        for batch in make_batches(stream, range(200)):
            sink.write(LabelBatch(**{**vars(batch), "labels": noise}))


def fill(folder: Path, options: OutputOptions) -> str:
    """Write until the disk is full, in a folder with an earlier good run; the error's line."""
    stream = make_stream((360, 640))
    run(folder, stream, range(1), options)
    before = contents(folder)
    with pytest.raises(OutputError) as error:
        write_noise(folder, stream, options)
    assert contents(folder) == before
    return one_line(error)


@contextlib.contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """How large files may become: a real error of the kernel for everybody, root or not.

    Lifted again before the test ends, since pytest itself may write to a file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("name", "options"), OUTPUTS[:3])
def test_a_file_grows_too_large(tmp_path: Path, name: str, options: OutputOptions) -> None:
    with file_size_limit(500_000):
        message = fill(tmp_path / "clip", options)
    assert message.startswith(f"cannot write {tmp_path / 'clip' / name}: File too large; ")


@pytest.mark.parametrize(("name", "options"), OUTPUTS[:3])
def test_the_last_bytes_do_not_fit(tmp_path: Path, name: str, options: OutputOptions) -> None:
    """Everything is still buffered when the file is closed, and fails only there."""
    stream = make_stream()
    size = run(tmp_path / "trial", stream, range(12), options)["outputs"][name]["bytes"]
    assert size < 200_000  # less than the buffer
    sink = Sink(tmp_path / "clip", CAMVID, options, {"model": {"name": "m"}})
    for batch in make_batches(stream, range(12)):
        sink.write(batch)
    refused = pytest.raises(OutputError, match=f"cannot write .*{name}: File too large")
    with refused, file_size_limit(size - 100):
        sink.finish(EndOfStream(stream, 12))
    assert not (tmp_path / "clip").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(("name", "options"), OUTPUTS)
def test_the_disk_is_full(small_disk: Path, name: str, options: OutputOptions) -> None:
    message = fill(small_disk / "clip", options)
    # Whichever file asks first for the block that is not there.
    assert message.startswith(
        tuple(f"cannot write {small_disk / 'clip' / file}" for file in (name, "stats.jsonl"))
    )
    assert "No space left on device; free some space or choose another output folder" in message


def test_a_part_file_replaces_only_at_the_end(tmp_path: Path) -> None:
    final = tmp_path / "file"
    final.write_bytes(b"old")
    part = PartFile(final)
    part.file.write(b"new")
    assert part.close() == 3
    assert final.read_bytes() == b"old"
    part.publish()
    assert final.read_bytes() == b"new"
    assert names(tmp_path) == ["file"]
