"""The clips that are measured with: cut, copied, or scaled from the one that was given."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path

import av

from pipeline.errors import MediaError

SCALED_OPTIONS = {"preset": "veryfast", "crf": "20"}


def cut(source: str, frames: int, path: Path) -> Path:
    """The first frames of a video, not encoded again. Raises MediaError if it cannot be done."""
    try:
        with av.open(source) as given, av.open(str(path), "w") as made:
            stream = given.streams.video[0]
            copy = made.add_stream_from_template(stream)
            for packet in islice(given.demux(stream), frames):
                if packet.dts is None:
                    break
                packet.stream = copy
                made.mux(packet)
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise MediaError(f"{source} cannot be cut for the benchmark: {error}") from error
    return path


def copies(clip: Path, count: int) -> list[Path]:
    """A file by as many names, each a source of its own."""
    named = [clip.with_name(f"{clip.stem}-{number}{clip.suffix}") for number in range(count)]
    for path in named:
        if not path.exists():
            shutil.copyfile(clip, path)
    return named


def scaled(clip: Path, size_hw: tuple[int, int], path: Path) -> Path:
    """The clip at another size, H.264. Raises MediaError if it cannot be done."""
    height, width = size_hw
    try:
        with av.open(str(clip)) as given, av.open(str(path), "w") as made:
            source = given.streams.video[0]
            stream = made.add_stream("libx264", source.average_rate or 30, options=SCALED_OPTIONS)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for number, frame in enumerate(given.decode(source)):
                small = frame.reformat(width, height, "yuv420p")
                small.pts, small.time_base = number, 1 / stream.codec_context.framerate
                made.mux(stream.encode(small))
            made.mux(stream.encode())
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise MediaError(f"{clip} cannot be scaled for the benchmark: {error}") from error
    return path
