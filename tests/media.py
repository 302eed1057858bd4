"""Builders of small odd media, by Debian's `ffmpeg` command or by cutting and spoiling its files.

`Library(folder).get(name)` builds a file on first use. `probe_frames` is the independent decoder
the tests compare with: the `ffprobe` command, another version and build of FFmpeg than PyAV's.
"""

from __future__ import annotations

import json
import random
import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.frame import VideoFrame

FRAMES = 24
MOVING = f"testsrc2=size=96x64:rate=25:duration={FRAMES / 25}"
LARGER = f"testsrc2=size=160x96:rate=25:duration={FRAMES / 25}"
ODD = f"testsrc2=size=96x64:rate=25:duration={FRAMES / 25},format=yuv444p,crop=95:63:0:0"
TONE = f"sine=frequency=440:duration={FRAMES / 25}"
X264 = ("-c:v", "libx264", "-preset", "veryfast", "-threads", "1")

Builder = Callable[["Library", Path], None]
BUILDERS: dict[str, Builder] = {}


class Library:
    """Media by file name, each built once into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str) -> Path:
        """The path of a medium; `name` is one of `BUILDERS`."""
        path = self.folder / name
        if not path.exists():
            BUILDERS[name](self, path)
        return path


def ffmpeg(*arguments: object, given: bytes | None = None) -> bytes:
    """Runs the `ffmpeg` command quietly; returns what it wrote to standard output."""
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y", *map(str, arguments)]
    if given is not None:
        command.remove("-nostdin")
    done = subprocess.run(command, input=given, capture_output=True, check=False, timeout=60)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.decode(errors='replace')}")
    return done.stdout


@dataclass(frozen=True)
class ProbedFrame:
    """A frame as `ffprobe` decodes it; `pts` is FFmpeg's best effort, in the stream's time base."""

    pts: int | None
    size_hw: tuple[int, int]


def probe_frames(path: Path, stream: str = "v:0") -> list[ProbedFrame]:
    """All frames `ffprobe` can decode."""
    entries = "frame=best_effort_timestamp,width,height"
    command = ["ffprobe", "-v", "quiet", "-threads", "1", "-select_streams", stream]
    command += ["-show_entries", entries, "-of", "json", str(path)]
    shown = subprocess.run(command, capture_output=True, check=False).stdout
    return [
        ProbedFrame(frame.get("best_effort_timestamp"), (frame["height"], frame["width"]))
        for frame in json.loads(shown).get("frames", [])
        if "width" in frame
    ]


def probe_time_base(path: Path, stream: str = "v:0") -> Fraction:
    """The time base of a stream, by `ffprobe`."""
    command = ["ffprobe", "-v", "quiet", "-select_streams", stream, "-of", "csv=p=0"]
    command += ["-show_entries", "stream=time_base", str(path)]
    shown = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    return Fraction(shown.split()[0].strip(","))


def yuv_frames(path: Path, size_hw: tuple[int, int]) -> list[tuple[np.ndarray, ...]]:
    """Frames by the `ffmpeg` command, which turns them upright by itself: Y, U and V of each.

    Args:
        path: a medium.
        size_hw: height and width of its frames as displayed.
    """
    data = ffmpeg("-i", path, "-vsync", "passthrough", "-pix_fmt", "yuv420p", "-f", "rawvideo", "-")
    height, width = size_hw
    chroma = ((height + 1) // 2, (width + 1) // 2)
    shapes = (size_hw, chroma, chroma)
    ends = np.cumsum([rows * columns for rows, columns in shapes])
    frames = np.frombuffer(data, np.uint8).reshape(-1, ends[-1])
    return [
        tuple(
            part.reshape(shape)
            for part, shape in zip(np.split(frame, ends[:-1]), shapes, strict=True)
        )
        for frame in frames
    ]


def encoded(*arguments: object, source: str = MOVING) -> Builder:
    """A builder that encodes a generated picture with the given options."""

    def build(_: Library, path: Path) -> None:
        ffmpeg("-f", "lavfi", "-i", source, *arguments, path)

    return build


def cut(name: str, share: float) -> Builder:
    """A builder that keeps the first part of another medium, as after a loss of power."""

    def build(library: Library, path: Path) -> None:
        data = library.get(name).read_bytes()
        path.write_bytes(data[: int(len(data) * share)])

    return build


def spoiled(name: str, start: float, stop: float, *, spots: int = 30) -> Builder:
    """A builder that overwrites bytes of another medium between two places in it."""

    def build(library: Library, path: Path) -> None:
        data = bytearray(library.get(name).read_bytes())
        dice = random.Random(7)
        for _ in range(spots):
            at = dice.randrange(int(len(data) * start), int(len(data) * stop))
            data[at : at + 4] = dice.randbytes(4)
        path.write_bytes(data)

    return build


def joined(*names: str) -> Builder:
    """A builder that joins files end to end, as `cat` does."""

    def build(library: Library, path: Path) -> None:
        path.write_bytes(b"".join(library.get(name).read_bytes() for name in names))

    return build


def written(data: bytes) -> Builder:
    """A builder of a file with the given content."""

    def build(_: Library, path: Path) -> None:
        path.write_bytes(data)

    return build


def rotated(degrees: int, *, mirror: bool = False, source: str = "corner.mp4") -> Builder:
    """A builder that marks another medium as lying on its side, its pixels untouched."""

    def build(library: Library, path: Path) -> None:
        with av.open(str(library.get(source))) as given, av.open(str(path), "w") as made:
            stream = given.streams.video[0]
            copy = made.add_stream_from_template(stream)
            copy.set_display_rotation(degrees, hflip=mirror)
            for packet in given.demux(stream):
                if packet.dts is not None:
                    packet.stream = copy
                    made.mux(packet)

    return build


def _with_sound(_: Library, path: Path) -> None:
    inputs = ("-f", "lavfi", "-i", TONE, "-f", "lavfi", "-i", MOVING)
    ffmpeg(*inputs, "-map", "0:a", "-map", "1:v", *X264, "-c:a", "aac", path)


def _two_videos(_: Library, path: Path) -> None:
    inputs = ("-f", "lavfi", "-i", MOVING, "-f", "lavfi", "-i", LARGER)
    ffmpeg(*inputs, "-map", "0:v", "-map", "1:v", *X264, "-disposition", "0", path)


def _with_cover(library: Library, path: Path) -> None:
    cover = library.get("cover.png")
    video = library.get("plain.mp4")
    ffmpeg(
        "-i", cover, "-i", video, "-map", "0", "-map", "1", "-c", "copy",
        "-disposition:v:0", "attached_pic", path,
    )  # fmt: skip


def _edit_list(library: Library, path: Path) -> None:
    """Starts inside a group of pictures: the packets before are there but not to be shown."""
    ffmpeg("-ss", "0.3", "-i", library.get("plain.mp4"), "-c", "copy", path)


def _uneven(_: Library, path: Path) -> None:
    """Variable frame rate: gaps of one to five frames between frames."""
    uneven = "select='not(mod(n\\,5))+not(mod(n\\,7))+eq(n\\,1)'"
    ffmpeg("-f", "lavfi", "-i", MOVING, "-vf", uneven, "-vsync", "vfr", *X264, path)


def _negative(_: Library, path: Path) -> None:
    start = ("-output_ts_offset", "-0.2", "-avoid_negative_ts", "disabled")
    ffmpeg("-f", "lavfi", "-i", MOVING, "-c:v", "mpeg4", "-bf", "0", *start, path)


def _stamped_zero(library: Library, path: Path) -> None:
    """All frames at one time, as cameras without a clock write them."""
    ffmpeg("-i", library.get("mjpeg.avi"), "-c", "copy", "-bsf:v", "setts=ts=0", path)


def _headless(library: Library, path: Path) -> None:
    """An MP4 whose recording was cut off: all the frames, no index."""
    data = library.get("plain.mp4").read_bytes()
    path.write_bytes(data[: data.index(b"moov") - 4])


def _exif(library: Library, path: Path) -> None:
    """A JPEG that says, by EXIF orientation 6, that it is to be turned clockwise by 90 degrees."""
    plain = path.with_suffix(".plain.jpg")
    ffmpeg("-i", library.get("corner.mp4"), "-frames:v", 1, "-q:v", 2, plain)
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    block = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + entry + b"\0\0\0\0"
    data = plain.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:])
    plain.unlink()


ORANGE_RGB = (220, 120, 40)
ORANGE_STILL = "color=0xDC7828:size=96x64:duration=0.04,format=rgb24"


def orange(
    pixels: str, matrix: str | None, full_range: bool = False, size: str = "96x64", tag: bool = True
) -> Builder:
    """A builder of lossless frames of `ORANGE_RGB`, in a pixel format, YUV matrix and range."""
    chain = f"format={pixels}"
    tags: tuple[str, ...] = ()
    if matrix is not None:
        limits = "pc" if full_range else "tv"
        name = "bt2020" if matrix == "bt2020nc" else matrix
        chain = f"scale=out_color_matrix={name}:out_range={limits},{chain}"
        space = "smpte170m" if matrix == "bt601" else matrix
        tags = ("-colorspace", space, "-color_range", limits) if tag else ()
    source = f"color=0xDC7828:size={size}:rate=25:duration=0.12,format=rgb24"
    return encoded("-vf", chain, "-c:v", "ffv1", "-level", "3", *tags, source=source)


# Red at the top left, blue at the top right: tells all eight orientations apart.
CORNER = (
    "color=gray:size=96x64:rate=25:duration=0.2,drawbox=w=32:h=24:color=red:t=fill,"
    "drawbox=x=80:y=0:w=16:h=16:color=blue:t=fill"
)
GOPS = (*X264, "-x264-params", "keyint=8:min-keyint=8:scenecut=0:bframes=3:b-adapt=0")

BUILDERS |= {
    "plain.mp4": encoded(*GOPS),
    "start first.mp4": encoded(*GOPS, "-movflags", "+faststart"),
    "fragments.mp4": encoded(*GOPS, "-movflags", "+frag_keyframe+empty_moov"),
    "open.mkv": encoded(
        *X264, "-x264-params", "keyint=8:open-gop=1:bframes=3:b-adapt=0:scenecut=0"
    ),
    "sound_first.mp4": _with_sound,
    "two_videos.mkv": _two_videos,
    "cover.png": encoded("-frames:v", "1", source="color=lime:size=320x320"),
    "covered.mp4": _with_cover,
    "edited.mp4": _edit_list,
    "uneven.mp4": _uneven,
    "uneven.mkv": _uneven,
    "negative.mkv": _negative,
    "hevc.mp4": encoded("-c:v", "libx265", "-x265-params", "log-level=none:keyint=8:pools=1"),
    "hevc10.mkv": encoded(
        "-pix_fmt", "yuv420p10le", "-c:v", "libx265", "-x265-params", "log-level=none:pools=1"
    ),
    "vp9.webm": encoded("-c:v", "libvpx-vp9", "-cpu-used", "8", "-deadline", "realtime"),
    "vp8.webm": encoded("-c:v", "libvpx", "-cpu-used", "8", "-deadline", "realtime"),
    "av1.mkv": encoded("-c:v", "libaom-av1", "-cpu-used", "8", "-usage", "realtime"),
    "mpeg4.avi": encoded("-c:v", "mpeg4", "-bf", "2", "-q:v", "4"),
    "mjpeg.avi": encoded("-c:v", "mjpeg", "-q:v", "4"),
    "transport.ts": encoded(*GOPS),
    "mpeg2.ts": encoded("-c:v", "mpeg2video", "-bf", "2", "-g", "8", "-q:v", "4"),
    "program.mpg": encoded("-c:v", "mpeg2video", "-bf", "2", "-g", "8", "-q:v", "4"),
    "interlaced.ts": encoded(
        "-vf", "interlace", *X264, "-flags", "+ilme+ildct", "-x264-params", "tff=1"
    ),
    "prores.mov": encoded("-c:v", "prores_ks", "-pix_fmt", "yuv422p10le"),
    "high10.mp4": encoded(*X264, "-pix_fmt", "yuv420p10le"),
    "yuv422.mp4": encoded(*X264, "-pix_fmt", "yuv422p"),
    "yuv444.mp4": encoded(*X264, "-pix_fmt", "yuv444p"),
    "rgb.mkv": encoded("-c:v", "libx264rgb", "-preset", "veryfast"),
    "odd.mkv": encoded("-c:v", "ffv1", "-pix_fmt", "yuv420p", source=ODD),
    "odd.webm": encoded("-c:v", "libvpx-vp9", "-cpu-used", "8", source=ODD),
    "odd444.mp4": encoded(*X264, "-pix_fmt", "yuv444p", source=ODD),
    "wide_pixels.mp4": encoded("-vf", "setsar=4/3", *X264),
    "palette.gif": encoded(),
    "raw.h264": encoded(*GOPS),
    "raw_no_b.h264": encoded(*X264, "-bf", "0"),
    "raw.hevc": encoded("-c:v", "libx265", "-x265-params", "log-level=none:pools=1"),
    "larger.ts": encoded(*GOPS, source=LARGER),
    "grows.ts": joined("transport.ts", "larger.ts"),
    "again.ts": joined("transport.ts", "transport.ts"),
    "again_and_again.ts": joined(*["transport.ts"] * 4),
    "zero.mkv": _stamped_zero,
    "cut start first.mp4": cut("start first.mp4", 0.6),
    "cut.ts": cut("transport.ts", 0.6),
    "cut.mkv": cut("open.mkv", 0.6),
    "cut.avi": cut("mpeg4.avi", 0.6),
    "cut.webm": cut("vp9.webm", 0.6),
    "headless.mp4": _headless,
    "frameless.mp4": encoded(*X264, "-frames:v", "0", "-movflags", "empty_moov"),
    "frameless.avi": encoded("-c:v", "mpeg4", "-frames:v", "0"),
    "spoiled.ts": spoiled("transport.ts", 0.3, 0.7),
    "spoiled.mp4": spoiled("start first.mp4", 0.4, 0.8, spots=10),
    "spoiled.mkv": spoiled("open.mkv", 0.4, 0.7, spots=6),
    "spoiled_end.mp4": spoiled("start first.mp4", 0.9, 0.99, spots=40),
    "spoiled.avi": spoiled("mpeg4.avi", 0.4, 0.7),
    "text.mp4": written(b"This is not a video.\n" * 40),
    "notes.txt": written(b"This is not a video.\n" * 40),
    "empty.mp4": written(b""),
    "sound.m4a": encoded("-c:a", "aac", source=TONE),
    "corner.mp4": encoded(*X264, "-qp", "4", source=CORNER),
    "corner90.mp4": rotated(90),
    "corner180.mp4": rotated(180),
    "corner270.mp4": rotated(270),
    "corner_mirror.mp4": rotated(0, mirror=True),
    "corner90_mirror.mp4": rotated(90, mirror=True),
    "corner270_mirror.mp4": rotated(270, mirror=True),
    "exif.jpg": _exif,
    "orange_601.mkv": orange("yuv420p", "bt601"),
    "orange_709.mkv": orange("yuv420p", "bt709"),
    "orange_2020.mkv": orange("yuv420p10le", "bt2020nc"),
    "orange_601_full.mkv": orange("yuv420p", "bt601", full_range=True),
    "orange_709_full_444.mkv": orange("yuv444p", "bt709", full_range=True),
    "orange_709_422_10.mkv": orange("yuv422p10le", "bt709"),
    "orange_small_untagged.mkv": orange("yuv420p", "bt601", tag=False),
    "orange_hd_untagged.mkv": orange("yuv420p", "bt709", size="1280x720", tag=False),
    "orange_rgb.mkv": orange("gbrp", None),
    "orange_rgba.png": encoded("-frames:v", "1", "-pix_fmt", "rgba", source=ORANGE_STILL),
    "orange_palette.png": encoded(
        "-frames:v",
        "1",
        "-vf",
        "split[a][b];[a]palettegen[p];[b][p]paletteuse",
        source=ORANGE_STILL,
    ),
    "orange.jpg": encoded("-frames:v", "1", "-q:v", "1", source=ORANGE_STILL),
    "grey.png": encoded(
        "-frames:v", "1", "-pix_fmt", "gray", source="color=0x808080:size=96x64,format=rgb24"
    ),
    "grey16.png": encoded(
        "-frames:v", "1", "-pix_fmt", "gray16be", source="color=0x808080:size=96x64,format=rgb24"
    ),
}


def has_ffmpeg() -> bool:
    """Whether the `ffmpeg` and `ffprobe` commands are there."""
    return bool(shutil.which("ffmpeg") and shutil.which("ffprobe"))


def write_moving_clip(path: Path, frames: int, *, seed: int, first: int = 0) -> None:
    """A 128x96 H.264 clip at 30 frames a second, written by PyAV: a seeded picture that scrolls.

    `first` leaves out so many frames at the start; the others are the same.
    """
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (12, 40, 3), dtype=np.uint8)
    wall = coarse.repeat(8, 0).repeat(16, 1)  # 96 x 640
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for number in range(first, frames):
            picture = np.ascontiguousarray(np.roll(wall, -4 * number, 1)[:, :128])
            container.mux(stream.encode(VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_images(folder: Path, names: Sequence[str]) -> None:
    """A folder of small PNG pictures of these names."""
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        picture = np.full((96, 128, 3), 20 + 70 * number, np.uint8)
        done, data = cv2.imencode(".png", picture)
        assert done
        (folder / f"{name}.png").write_bytes(data.tobytes())
