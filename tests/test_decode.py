"""The decoder against independent ones: `ffprobe` and `ffmpeg` of another build, and OpenCV."""

from __future__ import annotations

import functools
import http.server
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch
from av.codec.hwaccel import HWAccel
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.decode import Decoder
from pipeline.device_planes import DevicePlaneConverter, scaling_weights
from pipeline.errors import EngineError, MediaError, SourceNotFoundError
from pipeline.frames import EndOfStream, FrameBatch, Gap, StreamInfo
from pipeline.media import Acceleration, Tally, decode_packet
from pipeline.planes import Orientation, PlaneConverter
from pipeline.sources import Source, expand
from pipeline.timestamps import LOOK_AHEAD, Timestamps
from tests.devices import needs_cuda
from tests.media import (
    FRAMES,
    ORANGE_RGB,
    Library,
    ffmpeg,
    has_ffmpeg,
    probe_frames,
    probe_time_base,
    yuv_frames,
)

pytestmark = pytest.mark.skipif(
    not has_ffmpeg(), reason="the media are built and checked with the ffmpeg and ffprobe commands"
)

WHOLE = [
    "plain.mp4", "start first.mp4", "fragments.mp4", "open.mkv", "sound_first.mp4", "covered.mp4",
    "negative.mkv", "hevc.mp4", "hevc10.mkv", "vp9.webm", "vp8.webm", "av1.mkv", "mpeg4.avi",
    "mjpeg.avi", "transport.ts", "mpeg2.ts", "program.mpg", "prores.mov", "high10.mp4",
    "yuv422.mp4", "yuv444.mp4", "rgb.mkv", "odd.mkv", "odd.webm", "odd444.mp4", "wide_pixels.mp4",
    "palette.gif", "raw.h264", "raw_no_b.h264", "raw.hevc",
]  # fmt: skip
PARTIAL = ["edited.mp4", "uneven.mp4", "uneven.mkv", "interlaced.ts"]
CUT = ["cut start first.mp4", "cut.ts", "cut.mkv", "cut.avi", "cut.webm"]
SPOILED = ["spoiled.ts", "spoiled.mp4", "spoiled.mkv", "spoiled_end.mp4", "spoiled.avi"]
JOINED = ["grows.ts", "again.ts"]
ROTATED = [
    "corner.mp4", "corner90.mp4", "corner180.mp4", "corner270.mp4",
    "corner_mirror.mp4", "corner90_mirror.mp4", "corner270_mirror.mp4",
]  # fmt: skip


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library(tmp_path_factory.mktemp("media"))


@dataclass
class Decoded:
    """All a decoder gave: the batches, the gaps and the end."""

    batches: list[FrameBatch]
    gaps: list[Gap]
    end: EndOfStream

    @property
    def info(self) -> StreamInfo:
        return self.batches[0].stream

    @property
    def pts(self) -> list[int]:
        return [pts for batch in self.batches for pts in batch.pts]

    @functools.cached_property
    def pixels(self) -> list[np.ndarray]:
        return [image for batch in self.batches for image in batch.pixels]

    @functools.cached_property
    def pictures(self) -> list[tuple[np.ndarray, ...]]:
        planes = [(b.pictures.y, b.pictures.u, b.pictures.v) for b in self.batches]
        return [frame for batch in planes for frame in zip(*batch, strict=True)]


def decode(path: Path | Source, **options: Any) -> Decoded:
    """Decodes all of a file at 48x32 unless told otherwise; exactly one end, and it is last."""
    source = path if isinstance(path, Source) else Source("clip", str(path))
    options.setdefault("model_hw", lambda _: (32, 48))
    with Decoder(source, **options) as decoder:
        *items, end = list(decoder)
    assert isinstance(end, EndOfStream)
    batches = [item for item in items if isinstance(item, FrameBatch)]
    gaps = [item for item in items if isinstance(item, Gap)]
    assert len(batches) + len(gaps) == len(items)
    return Decoded(batches, gaps, end)


def same_frames(one: Decoded, other: Decoded) -> bool:
    equal = all(np.array_equal(a, b) for a, b in zip(one.pixels, other.pixels, strict=True))
    return equal and one.pts == other.pts and one.end == other.end


def to_yuv(rgb: tuple[int, int, int], matrix: str) -> np.ndarray:
    """Limited-range YUV of an RGB colour by the definitions of ITU-R BT.601 and BT.709."""
    red, blue = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}[matrix]
    r, g, b = (value / 255 for value in rgb)
    luma = red * r + (1 - red - blue) * g + blue * b
    u, v = (b - luma) / (2 - 2 * blue), (r - luma) / (2 - 2 * red)
    return np.array([16 + 219 * luma, 128 + 224 * u, 128 + 224 * v])


def small_colour(image: np.ndarray) -> np.ndarray:
    """Mean Y, U, V of an I420 image [h * 3 // 2, w]."""
    height = image.shape[0] // 3 * 2
    u, v = np.split(image[height:].reshape(-1), 2)
    return np.array([image[:height].mean(), u.mean(), v.mean()])


# ---------------------------------------------------------------- which frames, and when


@pytest.mark.parametrize("name", WHOLE + PARTIAL + CUT + SPOILED + JOINED)
def test_frames_and_stamps_are_those_of_ffprobe(library: Library, name: str) -> None:
    path = library.get(name)
    probed = probe_frames(path)
    found = decode(path, chunk=5)
    assert found.end.frame_count == len(found.pts) == len(probed) > 0
    if name in WHOLE:
        assert len(probed) == FRAMES
    assert found.info.time_base == probe_time_base(path)
    sizes = [batch.stream.size_hw for batch in found.batches for _ in batch.pts]
    assert sizes == [frame.size_hw for frame in probed]
    stated = [(ours, theirs.pts) for ours, theirs in zip(found.pts, probed, strict=True)]
    if name not in JOINED:
        assert all(theirs in (ours, None) for ours, theirs in stated)
    if not name.startswith("raw"):
        assert sum(theirs is not None for _, theirs in stated) >= len(probed) - 1


@pytest.mark.parametrize("name", ["plain.mp4", "uneven.mp4", "hevc.mp4", "vp9.webm", "mpeg4.avi"])
def test_frame_count_is_that_of_opencv(library: Library, name: str) -> None:
    path = library.get(name)
    capture = cv2.VideoCapture(str(path))
    count = 0
    while capture.read()[0]:
        count += 1
    assert decode(path).end.frame_count == count > 0


@pytest.mark.parametrize(
    "name",
    ["plain.mp4", "open.mkv", "edited.mp4", "uneven.mkv", "interlaced.ts", "odd.mkv", "vp9.webm",
     "cut.mkv", *ROTATED],
)  # fmt: skip
def test_pictures_are_those_of_the_ffmpeg_command_bit_for_bit(library: Library, name: str) -> None:
    """The planes of limited-range yuv420p, upright: neither scaled nor converted."""
    path = library.get(name)
    found = decode(path, pictures=True)
    expected = yuv_frames(path, found.info.size_hw)
    assert len(expected) == len(found.pictures)
    for ours, theirs in zip(found.pictures, expected, strict=True):
        for plane, other in zip(ours, theirs, strict=True):
            assert np.array_equal(plane, other)


@pytest.mark.parametrize("name", ["plain.mp4", "uneven.mkv", "grows.ts", "again.ts", "spoiled.mp4"])
def test_chunks_do_not_change_frames(library: Library, name: str) -> None:
    path = library.get(name)
    one = decode(path, chunk=1)
    assert all(len(batch) == 1 for batch in one.batches)
    for chunk in (5, 8, 100):
        many = decode(path, chunk=chunk)
        assert same_frames(one, many)
        at = 0
        for place, batch in enumerate(many.batches):
            assert batch.frame_index == at
            at += len(batch)
            last = place + 1 == len(many.batches)
            closed = last or any(gap.frame_index == at for gap in many.gaps)
            assert len(batch) == chunk or (closed and len(batch) < chunk)


@pytest.mark.parametrize("name", ["plain.mp4", "hevc.mp4", "vp9.webm", "odd.mkv", "again.ts"])
def test_threads_do_not_change_frames(library: Library, name: str) -> None:
    path = library.get(name)
    assert same_frames(decode(path, threads=1), decode(path, threads=4))
    assert same_frames(decode(path, threads=1), decode(path, threads=0))


@pytest.mark.parametrize("name", ["spoiled_end.mp4", "cut start first.mp4"])
def test_threads_lose_no_frame_when_the_end_is_damaged(library: Library, name: str) -> None:
    """Where OpenCV, which decodes with threads, gives fewer."""
    path = library.get(name)
    assert decode(path, threads=4).pts == decode(path, threads=1).pts


def test_stamps_of_variable_frame_rate_stay_variable(library: Library) -> None:
    steps = np.diff(decode(library.get("uneven.mp4")).pts)
    assert len(set(steps)) >= 3


def test_negative_stamps_are_kept(library: Library) -> None:
    found = decode(library.get("negative.mkv"))
    assert found.pts[:3] == [-200, -160, -120]
    assert found.end.repaired_pts == 0


def test_stamps_of_a_raw_stream_are_made_up_and_counted(library: Library) -> None:
    found = decode(library.get("raw.h264"))
    seconds = [pts * found.info.time_base for pts in found.pts]
    assert seconds == [Fraction(place, 25) for place in range(FRAMES)]
    assert found.end.repaired_pts == FRAMES


def test_joined_recordings_go_on_in_time(library: Library) -> None:
    found = decode(library.get("again.ts"))
    assert set(np.diff(found.pts)) == {3600}
    assert found.end.repaired_pts == 1
    assert any("start anew, 0.920 s back" in note for note in found.end.notes)


def test_there_is_a_gap_between_joined_recordings(library: Library) -> None:
    found = decode(library.get("again_and_again.ts"), chunk=10)
    assert [len(batch) for batch in found.batches] == [10, 10, 4] * 4
    assert [(gap.frame_index, gap.seconds, gap.reason) for gap in found.gaps] == [
        (FRAMES * place, None, "the clock starts anew") for place in (1, 2, 3)
    ]
    assert [note for note in found.end.notes if "anew" in note] == [
        "time stamps start anew, 3 times, up to 0.920 s back:"
        " the ones after were moved on so that time increases"
    ]


def test_the_second_recording_decides_where_the_gap_is(library: Library, tmp_path: Path) -> None:
    """A few frames of it are enough, and one is not: that is a bad stamp."""
    for frames, gaps in ((1, 0), (2, 1), (3, 1)):
        end, joined = tmp_path / "end.ts", tmp_path / "joined.ts"
        ffmpeg("-i", library.get("transport.ts"), "-c:v", "mpeg2video", "-frames:v", frames, end)
        first = library.get("mpeg2.ts").read_bytes()
        joined.write_bytes(first + end.read_bytes())
        found = decode(joined)
        assert found.end.frame_count == FRAMES + frames
        assert [gap.frame_index for gap in found.gaps] == [FRAMES] * gaps


def test_a_clock_that_stands_still_is_no_restart(library: Library) -> None:
    found = decode(library.get("zero.mkv"))
    assert found.end.frame_count == FRAMES
    assert found.end.repaired_pts == FRAMES - 1
    assert (found.gaps, found.end.notes) == ([], ())
    seconds = (found.pts[-1] - found.pts[0]) * found.info.time_base
    assert seconds == pytest.approx((FRAMES - 1) / 25, abs=0.1)


def test_frame_count_estimate(library: Library) -> None:
    assert decode(library.get("plain.mp4")).info.frame_count == FRAMES
    assert decode(library.get("transport.ts")).info.frame_count == FRAMES  # from its duration
    assert decode(library.get("raw.h264")).info.frame_count is None


# ---------------------------------------------------------------- on a device


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("name", ["plain.mp4", "hevc.mp4", "odd444.mp4", "covered.mp4"])
def test_without_the_device_frames_are_decoded_on_the_cores_and_it_is_said(
    library: Library, name: str, keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(kind: str, **options: Any) -> HWAccel:
        return HWAccel(kind, device="99", **options)  # on no machine, whatever it has

    monkeypatch.setattr("pipeline.media.HWAccel", absent)
    found = decode(library.get(name), hwaccel="cuda", keep_on_device=keep)
    exact = decode(library.get(name))
    (note,) = found.end.notes
    assert note.startswith("decoded on the cores: cuda cannot be used here: no device or driver")
    assert all(np.array_equal(a, b) for a, b in zip(found.pixels, exact.pixels, strict=True))
    assert (found.pts, found.info) == (exact.pts, exact.info)


def test_a_codec_that_a_device_does_not_know_is_decoded_on_the_cores(library: Library) -> None:
    found = decode(library.get("odd.mkv"), hwaccel="cuda")  # FFV1
    assert found.end.notes == ("decoded on the cores: cuda does not decode ffv1",)
    assert same_frames(
        replace(found, end=replace(found.end, notes=())), decode(library.get("odd.mkv"))
    )


def test_a_device_that_fails_is_no_damaged_packet() -> None:
    class Lost:
        def decode(self, packet: Any) -> list[Any]:
            raise av.error.ExternalError(0, "lost")

    tally = Tally()
    assert decode_packet(Lost(), None, tally) == []  # type: ignore[arg-type]
    assert tally.undecodable_packets == 1
    with pytest.raises(MediaError, match="the device failed to decode"):
        decode_packet(Lost(), None, tally, on_device=True)  # type: ignore[arg-type]


def test_what_a_device_cannot_help_is_said_as_ever(library: Library, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match="no such file"):
        decode(tmp_path / "absent.mp4", hwaccel="cuda")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(MediaError, match="is not media that can be read"):
        decode(tmp_path / "text.mp4", hwaccel="cuda")


def test_frames_as_devices_give_them_are_the_same_to_the_network(library: Library) -> None:
    """NVDEC's frames hold both chroma planes in one, pixel by pixel."""
    with av.open(str(library.get("odd.mkv"))) as container:
        frame = next(container.decode(video=0))
    given = []
    for layout in ("yuv420p", "nv12"):
        converter = PlaneConverter(frame.reformat(format=layout))
        pixels = np.empty((48, 48), np.uint8)
        converter.write_pixels(frame.reformat(format=layout), pixels)
        rows, columns = converter.size_hw
        chroma = (rows + 1) // 2, (columns + 1) // 2
        planes = tuple(np.empty(shape, np.uint8) for shape in ((rows, columns), chroma, chroma))
        converter.write_pictures(frame.reformat(format=layout), planes)
        given.append((pixels, *planes))
    for planar, mixed in zip(*given, strict=True):
        np.testing.assert_array_equal(planar, mixed)


def given_as(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every decoder give frames as NVDEC does, and have them taken for such: they lie in memory, as
    what PyTorch works on here does."""

    def on_device(stream: Any, packet: Any, tally: Tally, there: bool = False) -> list[Any]:
        return [f.reformat(format=layout) for f in decode_packet(stream, packet, tally, there)]

    monkeypatch.setattr("pipeline.reader.decode_packet", on_device)
    monkeypatch.setattr("pipeline.decode.stays_on_device", lambda frame: True)


@pytest.mark.parametrize(
    ("name", "layout"),
    [("plain.mp4", "nv12"), ("hevc10.mkv", "p010le"), ("start first.mp4", "nv12"),
     ("edited.mp4", "nv12"), ("interlaced.ts", "nv12"), ("vp9.webm", "nv12")],
)  # fmt: skip
def test_frames_that_stay_on_a_device_are_scaled_as_on_the_cores(
    library: Library, monkeypatch: pytest.MonkeyPatch, name: str, layout: str
) -> None:
    """Every frame once, at most a level or two apart."""
    exact = decode(library.get(name), pictures=True)
    given_as(layout, monkeypatch)
    found = decode(library.get(name), pictures=True)
    assert all(isinstance(batch.pixels, torch.Tensor) for batch in found.batches)
    assert [len(batch) for batch in found.batches] == [len(batch) for batch in exact.batches]
    assert found.pts == exact.pts
    assert found.info.details["pixel_format"] == layout
    for one, other in zip(found.batches, exact.batches, strict=True):
        apart = np.abs(one.pixels.numpy().astype(int) - other.pixels)
        assert apart.max() <= 2
        assert (apart > 1).mean() < 0.005
        for plane in "yuv":
            given, wanted = (getattr(batch.pictures, plane).astype(int) for batch in (one, other))
            assert np.abs(given - wanted).max() <= (layout != "nv12")  # ten bits are dithered


@pytest.mark.parametrize("model_hw", [(360, 640), (256, 448), (720, 1280)])
def test_real_sizes_are_scaled_to_within_a_level(model_hw: tuple[int, int]) -> None:
    with av.open(str(Path(__file__).parents[1] / "sample_videos" / "city_drive.mp4")) as container:
        frame = next(container.decode(video=0))
    there = frame.reformat(format="nv12")
    cores, device = PlaneConverter(frame), DevicePlaneConverter(there, "h264")
    (expected,), (found,) = (converter.room(1, model_hw) for converter in (cores, device))
    cores.write_pixels(frame, expected)
    device.write_pixels(there, found)
    apart = np.abs(found.numpy().astype(int) - expected)
    assert (apart > 1).mean() < 1e-4
    assert apart.mean() < 0.3


def coloured(height: int, width: int, layout: str) -> VideoFrame:
    """Smooth colours that go up to the ends of the range, with some noise."""
    rng = np.random.default_rng(height + width)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    noisy = (smooth.astype(int) + rng.integers(-6, 7, smooth.shape)).clip(0, 255).astype(np.uint8)
    return VideoFrame.from_ndarray(noisy, format="rgb24").reformat(format=layout)


@pytest.mark.parametrize("layout", ["nv12", "p010le", "p016le"])
@pytest.mark.parametrize("size_hw", [(48, 80), (96, 160), (120, 200), (24, 72), (40, 168)])
@pytest.mark.parametrize("colours", [(1, 1), (5, 1), (9, 1), (1, 2), (6, 2)])
def test_any_size_matrix_and_range_come_out_as_libswscale_has_them(
    layout: str, size_hw: tuple[int, int], colours: tuple[int, int]
) -> None:
    frame = coloured(96, 160, layout)
    frame.colorspace, frame.color_range = colours
    cores, device = PlaneConverter(frame), DevicePlaneConverter(frame)
    (expected,), (found,) = (converter.room(1, size_hw) for converter in (cores, device))
    cores.write_pixels(frame, expected)
    device.write_pixels(frame, found)
    apart = np.abs(found.numpy().astype(int) - expected)
    assert apart.max() <= 2
    assert (apart > 1).mean() < 0.01
    assert device.size_hw == cores.size_hw


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True), (True, True)])
def test_frames_on_a_device_are_turned_upright(transpose: bool, flips: tuple[bool, bool]) -> None:
    frame = coloured(96, 160, "nv12")
    converters = PlaneConverter(frame), DevicePlaneConverter(frame)
    size_hw, planes = ((64, 40) if transpose else (40, 64)), []
    for converter in converters:
        converter.orientation = Orientation(transpose, *flips)
        planes.append(converter.room(1, size_hw)[0])
        converter.write_pixels(frame, planes[-1])
    assert np.abs(planes[1].numpy().astype(int) - planes[0]).max() <= 2


@pytest.mark.parametrize(
    ("error", "lost"),
    [(torch.OutOfMemoryError("CUDA out of memory"), False),
     (torch.AcceleratorError("CUDA error: an illegal memory access"), True)],
)  # fmt: skip
def test_a_device_that_fails_while_it_scales_is_one_line(
    monkeypatch: pytest.MonkeyPatch, error: RuntimeError, lost: bool
) -> None:
    frame = coloured(96, 160, "nv12")
    converter = DevicePlaneConverter(frame)
    room = converter.room(1, (48, 80))

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("pipeline.device_planes.tensor_of", fail)
    for attempt in (
        lambda: converter.write_pixels(frame, room[0]),
        lambda: DevicePlaneConverter(frame),
    ):
        with pytest.raises(
            EngineError, match=r"while frames were scaled: try .* --hwaccel"
        ) as told:
            attempt()
        assert told.value.device_lost is lost


@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from([0.25, 0.5]))
def test_no_light_is_lost_in_scaling(old: int, new: int, place: float) -> None:
    weights = scaling_weights(old, new, place)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
    assert weights.min() >= 0
    if old == new:
        np.testing.assert_array_equal(weights, np.eye(old))


def test_a_layout_that_no_device_gives_is_brought_into_memory() -> None:
    class There:
        """A frame on a device, as PyAV shows it."""

        def __init__(self, layout: str) -> None:
            self.sw_format = VideoFormat(layout)

        def reformat(self, format: str) -> str:
            return f"{format} in memory"

    class Stream:
        def decode(self, packet: Any) -> list[Any]:
            return [There("nv12"), There("yuv444p"), coloured(16, 16, "yuv420p")]

    kept, brought, plain = decode_packet(Stream(), None, Tally())  # type: ignore[arg-type]
    assert isinstance(kept, There)
    assert brought == "yuv444p in memory"
    assert isinstance(plain, VideoFrame)


def test_frames_stay_in_a_context_that_the_network_shares_or_not_at_all() -> None:
    """FFmpeg takes one of two ways into PyTorch's context; a context of its own nobody else can read."""
    ways = list(Acceleration("cuda", keep=True).ways())
    assert [(way.options, way.is_hw_owned) for way in ways] == [
        ({"primary_ctx": "1"}, True),
        ({"primary_ctx": "0", "current_ctx": "1"}, True),
        ({"primary_ctx": "0"}, False),
    ]
    assert not any(way.is_hw_owned for way in Acceleration("cuda").ways())


@needs_cuda
@pytest.mark.parametrize("name", ["plain.mp4", "hevc.mp4", "hevc10.mkv", "again.ts"])
def test_what_nvdec_leaves_on_the_gpu_is_what_the_cores_scale(library: Library, name: str) -> None:
    torch.zeros(1, device="cuda")  # PyTorch was first, so that FFmpeg must share
    exact = decode(library.get(name))
    found = decode(library.get(name), hwaccel="cuda", keep_on_device=True)
    assert found.pts == exact.pts
    for one, other in zip(found.batches, exact.batches, strict=True):
        assert one.pixels.is_cuda
        assert np.abs(one.pixels.cpu().numpy().astype(int) - other.pixels).max() <= 2


@needs_cuda
@pytest.mark.parametrize("name", ["plain.mp4", "hevc.mp4", "again.ts"])
def test_nvdec_gives_the_frames_that_the_cores_give(library: Library, name: str) -> None:
    found, exact = (
        decode(library.get(name), hwaccel=kind, pictures=True) for kind in ("cuda", None)
    )
    assert (found.info.details["decoded_on"], found.end.notes) == ("cuda", ())
    assert found.pts == exact.pts
    for one, other in zip(found.pictures, exact.pictures, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


# ---------------------------------------------------------------- which stream, which size


def test_the_largest_video_is_taken_and_said(library: Library) -> None:
    found = decode(library.get("two_videos.mkv"))
    assert found.info.size_hw == (96, 160)
    assert found.info.details["stream_index"] == 1
    assert found.end.notes == ("2 video streams: stream 1 (160x96) was taken",)


def test_a_cover_is_no_video(library: Library) -> None:
    found = decode(library.get("covered.mp4"))
    assert (found.info.size_hw, found.end.frame_count) == ((64, 96), FRAMES)
    assert found.end.notes == ()


def test_pixels_that_are_not_square_are_left_so_and_said(library: Library) -> None:
    info = decode(library.get("wide_pixels.mp4")).info
    assert info.size_hw == (64, 96)
    assert info.details["sample_aspect_ratio"] == "4:3"


def test_odd_sizes_have_chroma_rounded_up(library: Library) -> None:
    batch = decode(library.get("odd444.mp4"), pictures=True, chunk=3).batches[0]
    assert batch.pictures.y.shape == (3, 63, 95)
    assert batch.pictures.u.shape == batch.pictures.v.shape == (3, 32, 48)


def test_a_change_of_size_is_a_gap(library: Library) -> None:
    asked: list[tuple[int, int]] = []

    def model_hw(size_hw: tuple[int, int]) -> tuple[int, int]:
        asked.append(size_hw)
        return size_hw

    found = decode(library.get("grows.ts"), chunk=10, pictures=True, model_hw=model_hw)
    assert [gap.reason for gap in found.gaps] == ["size changed from 96x64 to 160x96"]
    gap = found.gaps[0]
    assert (gap.frame_index, gap.seconds, gap.stream.size_hw) == (FRAMES, None, (96, 160))
    assert [len(batch) for batch in found.batches] == [10, 10, 4, 10, 10, 4]
    assert found.batches[2].stream.size_hw == (64, 96)
    assert found.batches[3].stream == gap.stream == found.end.stream
    assert found.batches[3].model_hw == (96, 160)
    assert found.batches[3].pictures.y.shape == (10, 96, 160)
    assert asked == [(64, 96), (96, 160)]


def test_a_change_of_colour_is_no_gap(library: Library, tmp_path: Path) -> None:
    """Two matrices joined: the second begins a batch, and a stream's info. Nor is a hole in time."""
    first, second = tmp_path / "a.ts", tmp_path / "b.ts"
    for path, space, start in ((first, "bt709", 0), (second, "smpte170m", 30)):
        copy = ("-c", "copy", "-bsf:v", _tagged(space), "-output_ts_offset", start)
        ffmpeg("-i", library.get("plain.mp4"), *copy, path)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    found = decode(joined)
    assert found.end.frame_count == 2 * FRAMES
    assert max(np.diff(found.pts)) > 20 * 90_000
    assert found.gaps == []
    assert [batch.stream.matrix for batch in found.batches] == ["bt709"] * 3 + ["bt601"] * 3


def _tagged(space: str) -> str:
    number = {"bt709": 1, "smpte170m": 6}[space]
    return f"h264_metadata=matrix_coefficients={number}"


def test_the_model_size_must_be_a_multiple_of_8(library: Library) -> None:
    path = library.get("plain.mp4")
    with pytest.raises(ValueError, match="multiples of 8, got 30x48 for frames of 64x96"):
        decode(path, model_hw=lambda _: (30, 48))
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        decode(path, chunk=0)
    with pytest.raises(ValueError, match="batch_bytes must be at least 1 or None, got 0"):
        decode(path, batch_bytes=0)


@pytest.mark.parametrize(("pictures", "frame_bytes"), [(True, 95 * 63 + 2 * 48 * 32), (False, 0)])
def test_batches_stay_within_their_bytes(
    library: Library, pictures: bool, frame_bytes: int
) -> None:
    path = library.get("odd.mkv")
    frame_bytes += 32 * 48 * 3 // 2
    whole = decode(path, pictures=pictures)
    bounds = [(1, 1), (frame_bytes, 1), (4 * frame_bytes - 1, 3), (4 * frame_bytes, 4), (10**6, 8)]
    for bound, frames in bounds:
        found = decode(path, pictures=pictures, chunk=8, batch_bytes=bound)
        assert {len(batch) for batch in found.batches} == {frames}
        assert same_frames(found, whole)


# ---------------------------------------------------------------- upright


@pytest.mark.parametrize("name", ROTATED)
def test_the_model_sees_the_picture_upright(library: Library, name: str) -> None:
    """Where `ffmpeg` puts the red and the blue corner, the model's pixels have them."""
    path = library.get(name)
    found = decode(path, model_hw=lambda hw: hw)
    expected = yuv_frames(path, found.info.size_hw)
    height, width = found.info.size_hw
    for ours, (y, u, v) in zip(found.pixels, expected, strict=True):
        chroma = ours[height:].reshape(2, height // 2, width // 2)
        for plane, other in ((ours[:height], y), (chroma[0], u), (chroma[1], v)):
            assert np.abs(plane.astype(int) - other).mean() < 1


@pytest.mark.parametrize(
    ("name", "degrees", "red_y", "red_x"),
    [("corner.mp4", 0, 0, 0), ("corner90.mp4", 90, -1, 0), ("corner180.mp4", 180, -1, -1),
     ("corner270.mp4", 270, 0, -1), ("corner_mirror.mp4", 0, 0, -1)],
)  # fmt: skip
def test_rotation_is_counter_clockwise(
    library: Library, name: str, degrees: int, red_y: int, red_x: int
) -> None:
    found = decode(library.get(name), pictures=True)
    assert found.info.rotation_degrees == degrees
    assert found.info.size_hw == ((96, 64) if degrees in (90, 270) else (64, 96))
    assert bool(found.info.details.get("mirrored")) == ("mirror" in name)
    y, u, v = found.pictures[0]
    yuv = np.array([y[red_y, red_x], u[red_y, red_x], v[red_y, red_x]], float)
    assert np.abs(yuv - to_yuv((255, 0, 0), found.info.matrix)).max() < 6


def test_exif_orientation_is_that_of_opencv(library: Library) -> None:
    path = library.get("exif.jpg")
    expected = cv2.imread(str(path))  # turns by EXIF
    assert expected is not None
    found = decode(Source("exif", str(path), "images", (str(path),)), pictures=True)
    assert found.info.size_hw == expected.shape[:2] == (96, 64)
    y, u, v = found.pictures[0]
    i420 = np.concatenate([plane.reshape(-1) for plane in (y, u, v)]).reshape(-1, 64)
    ours = cv2.cvtColor(i420, cv2.COLOR_YUV2BGR_I420)
    assert np.abs(ours.astype(int) - expected).mean() < 4


@pytest.mark.parametrize("degrees", [0, 90, 180, 270, -90, -180])
def test_orientation_by_degrees_and_by_matrix_agree(degrees: int) -> None:
    cos, sin = round(np.cos(np.radians(degrees))), round(np.sin(np.radians(degrees)))
    matrix = np.array([cos, -sin, 0, sin, cos, 0, 0, 0, 1 << 14]) * (1 << 16)
    orientation = Orientation.from_degrees(degrees)
    assert orientation is not None
    assert orientation == Orientation.from_matrix(matrix)
    image = np.arange(6).reshape(2, 3)
    assert np.array_equal(orientation.turn(image), np.rot90(image, degrees // 90))
    assert orientation.degrees == degrees % 360
    assert not orientation.mirrored


def test_a_rotation_that_is_no_right_angle_is_not_applied() -> None:
    assert Orientation.from_matrix(np.array([46341, 46341, 0, -46341, 46341, 0, 0, 0, 1])) is None
    assert Orientation.from_degrees(45) is None


# ---------------------------------------------------------------- colour


@pytest.mark.parametrize(
    ("name", "matrix"),
    [("orange_601.mkv", "bt601"), ("orange_709.mkv", "bt709"), ("orange_2020.mkv", "bt709"),
     ("orange_601_full.mkv", "bt601"), ("orange_709_full_444.mkv", "bt709"),
     ("orange_709_422_10.mkv", "bt709"), ("orange_small_untagged.mkv", "bt601"),
     ("orange_hd_untagged.mkv", "bt709"), ("orange_rgb.mkv", "bt601"),
     ("orange_rgba.png", "bt601"), ("orange_palette.png", "bt601"), ("orange.jpg", "bt601")],
)  # fmt: skip
def test_colours_are_right_whatever_the_source(library: Library, name: str, matrix: str) -> None:
    """A known RGB colour, stored in many ways: BT.601 for the model, as declared for a sink."""
    found = decode(library.get(name), pictures=True)
    assert found.info.matrix == matrix
    assert np.abs(small_colour(found.pixels[0]) - to_yuv(ORANGE_RGB, "bt601")).max() < 2
    picture = np.array([plane.mean() for plane in found.pictures[0]])
    assert np.abs(picture - to_yuv(ORANGE_RGB, matrix)).max() < 2


@pytest.mark.parametrize("name", ["grey.png", "grey16.png"])
def test_grey_images_are_full_range(library: Library, name: str) -> None:
    found = decode(library.get(name), pictures=True)
    expected = to_yuv((128, 128, 128), "bt601")
    assert np.abs(small_colour(found.pixels[0]) - expected).max() < 2
    assert np.abs([plane.mean() for plane in found.pictures[0]] - expected).max() < 2


@pytest.mark.parametrize("name", ["plain.mp4", "interlaced.ts", "high10.mp4"])
def test_the_model_sees_area_averages(library: Library, name: str) -> None:
    """Fields are blended like everything else: OpenCV's area average knows of no fields."""
    found = decode(library.get(name), pictures=True)
    for small, (y, _, _) in zip(found.pixels, found.pictures, strict=True):
        expected = cv2.resize(y, (48, 32), interpolation=cv2.INTER_AREA).astype(int)
        assert np.abs(small[:32] - expected).mean() < 1.5


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("name", SPOILED)
def test_damage_is_counted_and_does_not_reach_what_is_whole(library: Library, name: str) -> None:
    found = decode(library.get(name), chunk=1)
    assert found.end.corrupt_frames + found.end.undecodable_packets > 0
    origin = {"ts": "transport.ts", "mkv": "open.mkv", "avi": "mpeg4.avi", "mp4": "start first.mp4"}
    whole = decode(library.get(origin[name.rpartition(".")[2]]), chunk=1)
    clean = dict(zip(whole.pts, whole.pixels, strict=True))
    # The first group of pictures lies before the damage.
    assert all(np.array_equal(found.pixels[at], clean[found.pts[at]]) for at in range(4))


def test_cut_files_give_what_is_there(library: Library) -> None:
    whole = decode(library.get("start first.mp4"))
    found = decode(library.get("cut start first.mp4"))
    assert 0 < found.end.frame_count < FRAMES
    assert set(found.pts) < set(whole.pts)  # the last ones not in a row: B-frames came later
    assert found.end.undecodable_packets == 1
    assert not found.end.interrupted


def test_an_error_while_reading_ends_the_stream_with_a_note(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = library.get("plain.mp4")
    opened = av.open

    class Failing:
        """A container whose medium is pulled out after ten packets."""

        def __init__(self, container: av.container.InputContainer) -> None:
            self._container = container

        def __getattr__(self, name: str) -> object:
            return getattr(self._container, name)

        def demux(self, stream: av.VideoStream) -> Iterator[av.Packet]:
            for _, packet in zip(range(10), self._container.demux(stream), strict=False):
                yield packet
            raise av.error.OSError(5, "Input/output error")

    monkeypatch.setattr(av, "open", lambda *args, **options: Failing(opened(*args, **options)))
    found = decode(path)
    assert found.end.frame_count == 10  # those the decoder still held included
    assert found.end.notes == ("reading stopped before the end: Input/output error",)


@pytest.mark.parametrize(
    ("name", "message"),
    [("text.mp4", "is not media that can be read"), ("notes.txt", "is a text file"),
     ("empty.mp4", "is empty"), ("headless.mp4", "moov"), ("sound.m4a", "holds only audio"),
     ("frameless.mp4", "video stream is empty"), ("frameless.avi", "video stream is empty")],
)  # fmt: skip
def test_what_cannot_be_decoded_is_one_line(library: Library, name: str, message: str) -> None:
    path = library.get(name)
    with pytest.raises(MediaError, match=message) as caught:
        decode(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "expected" in text
    assert "\n" not in text


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match=r"gone\.mp4: no such file"):
        decode(tmp_path / "gone.mp4")


def test_all_packets_damaged_is_an_error(library: Library, tmp_path: Path) -> None:
    data = bytearray(library.get("mjpeg.avi").read_bytes())
    start, stop = data.index(b"movi") + 4, data.index(b"idx1")
    at = start
    while at + 8 < stop:  # the chunks' headers stay, what is in them goes
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        data[at + 8 : at + 8 + size] = bytes(size)
        at += 8 + size + size % 2
    path = tmp_path / "blank.avi"
    path.write_bytes(data)
    with pytest.raises(MediaError, match=f"all of its {FRAMES} packets are damaged"):
        decode(path)


def test_nothing_of_libav_reaches_the_terminal(library: Library) -> None:
    code = (
        "import sys\n"
        "from pipeline.decode import Decoder\n"
        "from pipeline.sources import Source\n"
        "for path in sys.argv[1:]:\n"
        "    decoder = Decoder(Source('x', path), model_hw=lambda hw: (32, 48), threads=2)\n"
        "    print(len(list(decoder)))\n"
    )
    paths = [str(library.get(name)) for name in ("spoiled.avi", "spoiled.mp4", "cut.ts")]
    done = subprocess.run(
        [sys.executable, "-c", code, *paths],
        cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.split() == ["4", "4", "3"]
    assert done.stderr == ""


# ---------------------------------------------------------------- stopping and closing


def test_stop_half_way_sends_what_is_decoded(library: Library) -> None:
    """Those that the decoder held back for the order of B-frames, too, and a part of a chunk."""
    whole = decode(library.get("plain.mp4"))
    pixels = dict(zip(whole.pts, whole.pixels, strict=True))
    for threads in (1, 4):
        stops = iter([False] * 13 + [True])
        found = decode(library.get("plain.mp4"), chunk=4, threads=threads, stop=stops.__next__)
        assert found.end.interrupted
        assert found.end.frame_count == 13  # a frame a packet
        assert found.pts[:10] == whole.pts[:10]  # of the last ones some come later in the file
        for pts, image in zip(found.pts, found.pixels, strict=True):
            assert np.array_equal(image, pixels[pts])


def test_stop_before_the_first_frame(library: Library) -> None:
    found = decode(library.get("plain.mp4"), stop=lambda: True)
    assert found.batches == []
    assert (found.end.frame_count, found.end.interrupted) == (0, True)
    assert found.end.stream.size_hw == (64, 96)


def _held(path: Path) -> int:
    """How often this process has a file open."""
    descriptors = Path("/proc/self/fd")
    targets = []
    for link in descriptors.iterdir():
        with suppress(FileNotFoundError):  # somebody else's, closed meanwhile
            targets.append(os.readlink(link))
    return targets.count(str(path.resolve()))


def _threads() -> set[str]:
    """The numbers of FFmpeg's threads in this process, which it names av:<codec>."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # somebody else's, ended meanwhile
            if (task / "comm").read_text().startswith("av:"):
                found.add(task.name)
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are read from /proc")
def test_leaving_early_leaves_nothing_open(library: Library) -> None:
    path = library.get("plain.mp4")
    before = _threads()
    decoder = Decoder(Source("clip", str(path)), model_hw=lambda _: (32, 48), chunk=1, threads=4)
    items = iter(decoder)
    next(items)
    assert _held(path) == 1
    begun = _threads() - before
    assert begun
    items.close()
    assert _held(path) == 0
    del items
    # The kernel lets go of a thread's entry a moment after whoever joined it goes on.
    ends_at = time.monotonic() + 10
    while begun & _threads():
        assert time.monotonic() < ends_at, "the decoder's threads are still there"
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are read from /proc")
def test_a_failing_consumer_leaves_nothing_open(library: Library) -> None:
    path = library.get("plain.mp4")
    decoder = Decoder(Source("clip", str(path)), model_hw=lambda _: (32, 48), chunk=1)

    def consume() -> None:
        with decoder:
            for _ in decoder:
                assert _held(path) == 1
                raise RuntimeError("sink")

    with pytest.raises(RuntimeError, match="sink"):
        consume()
    assert _held(path) == 0
    decoder.close()


def test_closing_while_iterating_ends_the_stream(library: Library) -> None:
    with Decoder(
        Source("clip", str(library.get("plain.mp4"))), model_hw=lambda _: (32, 48), chunk=1
    ) as decoder:
        items = iter(decoder)
        next(items)
    *_, end = list(items)
    assert isinstance(end, EndOfStream)
    assert end.interrupted
    assert end.frame_count < FRAMES


def test_a_decoder_can_be_iterated_again(library: Library) -> None:
    decoder = Decoder(Source("clip", str(library.get("plain.mp4"))), model_hw=lambda _: (32, 48))
    first, second = list(decoder), list(decoder)
    assert first[-1] == second[-1]
    assert isinstance(first[-1], EndOfStream)
    assert first[-1].frame_count == FRAMES


# ---------------------------------------------------------------- images, names, URLs


def test_images_are_a_stream_named_by_their_files(library: Library, tmp_path: Path) -> None:
    folder = tmp_path / "frames ü"
    folder.mkdir()
    names = ["f 2.png", "f10.png", "f%03d.png", "a:b.jpg"]
    for name in names:
        kind = "orange.jpg" if name.endswith("jpg") else "orange_rgba.png"
        (folder / name).write_bytes(library.get(kind).read_bytes())
    (folder / "f9.png").write_bytes(b"no image")
    (folder / "g1.png").write_bytes(library.get("cover.png").read_bytes())
    (folder / "notes.txt").write_text("not an image")
    (source,) = expand([str(folder)]).sources
    found = decode(source, chunk=8)
    names_of = found.info.frame_names
    assert names_of is not None
    stems = ["a:b", "f 2", "f%03d", "f9", "f10", "g1"]
    assert sorted(names_of) == sorted(stems)
    seen = [names_of[pts] for pts in found.pts]
    assert seen == [name for name in names_of if name != "f9"]
    assert found.end.undecodable_packets == 1
    assert any(note.startswith("f9.png was left out: ") for note in found.end.notes)
    assert [gap.reason for gap in found.gaps] == ["size changed from 96x64 to 320x320"]
    assert found.end.frame_count == 5
    assert (found.info.time_base, found.info.frame_count) == (Fraction(1, 30), 6)


def test_an_image_that_cannot_be_converted_is_left_out(library: Library, tmp_path: Path) -> None:
    """A TIFF of four floats a pixel, which libswscale does not take, and of another size."""
    for name in ("1", "2", "4"):
        (tmp_path / f"{name}.png").write_bytes(library.get("orange_rgba.png").read_bytes())
    for name in ("0", "3", "5"):
        cv2.imwrite(str(tmp_path / f"{name}.tif"), np.full((70, 50, 4), 0.5, np.float32))
    found = decode(expand([str(tmp_path)]).sources[0], pictures=True)
    assert found.pts == [1, 2, 4]
    assert found.gaps == []
    assert (found.end.frame_count, found.end.undecodable_packets) == (3, 3)
    assert len(found.end.notes) == 3
    assert found.end.notes[0].startswith("0.tif was left out: frames of the pixel format rgbaf32")
    for name in ("1", "2", "4"):
        (tmp_path / f"{name}.png").unlink()
    with pytest.raises(MediaError, match="none of its 3 images can be decoded"):
        decode(expand([str(tmp_path)]).sources[0])


def test_images_none_of_which_can_be_decoded(tmp_path: Path) -> None:
    for name in ("1.png", "2.jpg"):
        (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(MediaError, match="none of its 2 images can be decoded"):
        decode(expand([str(tmp_path)]).sources[0])


@pytest.mark.parametrize(
    "name", ["two words ö漢.mp4", "10:30.mp4", "100%d.mp4", "file:x.mp4", "-x.mp4"]
)
def test_names_are_only_names(library: Library, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(library.get("plain.mp4").read_bytes())
    assert decode(path).end.frame_count == FRAMES


def test_a_relative_name(library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "-a:b.mp4").write_bytes(library.get("plain.mp4").read_bytes())
    monkeypatch.chdir(tmp_path)
    assert decode(Path("-a:b.mp4")).end.frame_count == FRAMES


def test_a_file_over_http(library: Library) -> None:
    path = library.get("start first.mp4")
    handler = functools.partial(_QuietHandler, directory=str(path.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}"
        try:
            (source,) = expand([f"{root}/start%20first.mp4"]).sources
            assert source.stream_id == "start first"
            assert decode(source).end.frame_count == FRAMES
            with pytest.raises(MediaError, match=r"gone\.mp4: cannot be opened.*404"):
                decode(Source("gone", f"{root}/gone.mp4"))
        finally:
            server.shutdown()


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Says nothing."""


# ---------------------------------------------------------------- time stamps by themselves


def _stamps(clock: Timestamps, *pts: int | None) -> list[int]:
    return [
        clock.stamp(value, duration=10, after=pts[place + 1 : place + 1 + LOOK_AHEAD])
        for place, value in enumerate(pts)
    ]


def test_good_stamps_are_untouched() -> None:
    clock = Timestamps(Fraction(1, 1000))
    assert _stamps(clock, -20, -7, 0, 1, 500, 10_000) == [-20, -7, 0, 1, 500, 10_000]
    assert (clock.repaired, clock.restarts, clock.notes) == (0, 0, ())


def test_missing_stamps_follow_by_the_duration() -> None:
    clock = Timestamps(Fraction(1, 1000), Fraction(25))
    assert _stamps(clock, 100, None, None, 140) == [100, 110, 120, 140]
    assert clock.stamp(None) == 150  # by the last frame's own duration
    assert clock.stamp(None) == 190  # by the frame rate
    assert clock.repaired == 4


def test_a_missing_stamp_is_taken_from_the_decoding_order() -> None:
    clock = Timestamps(Fraction(1, 25))
    assert [clock.stamp(None, dts) for dts in (3, 4, 4, 9)] == [3, 4, 5, 9]
    assert clock.repaired == 1


def test_one_bad_stamp_moves_no_other() -> None:
    clock = Timestamps(Fraction(1, 1000))
    assert _stamps(clock, 0, 40, 40, 20, 120, 160) == [0, 40, 41, 42, 120, 160]
    assert clock.repaired == 2


def test_a_clock_that_starts_anew_goes_on() -> None:
    clock = Timestamps(Fraction(1, 1000))
    assert _stamps(clock, 5000, 5010, 0, 10, 25) == [5000, 5010, 5020, 5030, 5045]
    assert (clock.repaired, clock.restarts) == (1, 1)
    assert len(clock.notes) == 1


def test_a_bad_stamp_far_back_is_no_restart() -> None:
    clock = Timestamps(Fraction(1, 1000))
    assert _stamps(clock, 5000, 5010, 0, 5030, 5040) == [5000, 5010, 5011, 5030, 5040]
    assert (clock.repaired, clock.restarts) == (1, 0)
    assert _stamps(clock, 6000, 1, 2, 6030, 6040, 3) == [6000, 6001, 6002, 6030, 6040, 6041]
    assert clock.restarts == 0


@pytest.mark.parametrize("time_base", [Fraction(1, 30), Fraction(1, 1000), Fraction(1, 90_000)])
def test_stamps_that_are_all_equal_go_on_by_the_duration(time_base: Fraction) -> None:
    clock = Timestamps(time_base)
    stamps = _stamps(clock, *[0] * 900)
    assert stamps[:4] == [0, 1, 2, 12]
    assert set(np.diff(stamps[2:])) == {10}
    assert (clock.repaired, clock.restarts, clock.notes) == (899, 0, ())


def test_a_clock_that_stood_still_for_long_cannot_catch_up() -> None:
    clock = Timestamps(Fraction(1, 1000))
    stamps = _stamps(clock, *[0] * 900, 40, 80, 120, 160, 200)
    assert set(np.diff(stamps[2:])) == {10}
    assert clock.restarts == 0


def test_stamps_that_stand_for_a_while_are_caught_up() -> None:
    clock = Timestamps(Fraction(1, 1000))
    stamps = _stamps(clock, 0, 10, 20, 20, 20, 20, 30, 80, 90)
    assert stamps == [0, 10, 20, 21, 22, 32, 33, 80, 90]
    assert clock.restarts == 0


def test_garbage_is_no_storm_of_restarts() -> None:
    for seed in range(20):
        clock = Timestamps(Fraction(1, 90_000))
        garbage = np.random.default_rng(seed).integers(0, 2**33, 900).tolist()
        assert (np.diff(_stamps(clock, *garbage)) > 0).all()
        assert clock.restarts <= 2
        assert len(clock.notes) <= 1


@settings(max_examples=200, deadline=None, database=None)
@given(st.lists(st.none() | st.integers(-3000, 3000), max_size=40))
def test_stamps_increase_whatever_comes(pts: list[int | None]) -> None:
    clock = Timestamps(Fraction(1, 1000))
    stamps = _stamps(clock, *pts)
    assert all(earlier < later for earlier, later in itertools.pairwise(stamps))
    untouched = sum(ours == theirs for ours, theirs in zip(stamps, pts, strict=True))
    assert clock.restarts or untouched >= len(pts) - clock.repaired
