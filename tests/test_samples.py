"""Sample footage: the renderer and its exact labels, the shipped clip, and downloads."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest

from pipeline import samples
from pipeline.errors import ConfigError, OutputError, PipelineError

SIZE_HW = (120, 160)
CLASSES = range(11)
SKY, BUILDING, ROAD, UNLABELLED = 0, 1, 3, 255
SHIPPED = samples.SAMPLES_FOLDER / "city_drive.mp4"
SHIPPED_LABELS = samples.SAMPLES_FOLDER / "city_drive_labels.mkv"


@pytest.fixture(scope="module")
def renderer() -> ModuleType:
    """The renderer; without EGL its tests are skipped, or fail under REQUIRE_RENDER=1."""
    try:
        return samples._load_renderer()
    except PipelineError as error:
        if os.environ.get("REQUIRE_RENDER") == "1":
            raise
        pytest.skip(f"cannot render here: {error}")


def decode(path: Path, pixel_format: str) -> Iterator[np.ndarray]:
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format=pixel_format)


# Rendering


def test_same_seed_gives_same_frames_and_another_seed_others(renderer: ModuleType) -> None:
    first, again, other = (
        list(renderer.render_clip(seed, 2, SIZE_HW, look="clear")) for seed in (5, 5, 6)
    )
    for (picture, labels), (picture2, labels2) in zip(first, again, strict=True):
        assert picture.shape == (*SIZE_HW, 3)
        assert labels.shape == SIZE_HW
        assert picture.dtype == labels.dtype == np.uint8
        np.testing.assert_array_equal(picture, picture2)
        np.testing.assert_array_equal(labels, labels2)
    assert (first[0][1] != other[0][1]).mean() > 0.1
    assert (first[0][0] != other[0][0]).mean() > 0.5


def test_a_street_does_not_depend_on_where_the_clip_starts(renderer: ModuleType) -> None:
    """At 0.25 frames a second 6 frames pass two hundred metres: segments come and go."""
    whole = list(renderer.render_clip(5, 6, SIZE_HW, fps=0.25))
    tail = list(renderer.render_clip(5, 1, SIZE_HW, fps=0.25, first_frame=5))
    np.testing.assert_array_equal(whole[5][0], tail[0][0])
    np.testing.assert_array_equal(whole[5][1], tail[0][1])


def test_every_class_appears_and_every_label_is_valid(renderer: ModuleType) -> None:
    pixels = np.zeros(256, dtype=int)
    for _, labels in renderer.render_clip(14, 12, (180, 240), fps=1.5, look="clear"):
        pixels += np.bincount(labels.ravel(), minlength=256)
    assert set(np.flatnonzero(pixels)) - {UNLABELLED} == set(CLASSES)


def test_the_picture_agrees_with_its_labels(renderer: ModuleType) -> None:
    for picture, labels in renderer.render_clip(14, 3, SIZE_HW, fps=0.5, look="clear"):
        height = SIZE_HW[0]
        assert np.isin(labels[-4:, 50:110], (ROAD, UNLABELLED)).mean() > 0.9
        assert not (labels[: height // 4] == ROAD).any()
        assert not (labels[height * 3 // 4 :] == SKY).any()
        blue = picture[..., 2].astype(int)
        assert blue[labels == SKY].mean() > blue[labels == ROAD].mean() + 40


def test_light_and_weather_change_the_picture_but_not_the_street(renderer: ModuleType) -> None:
    (dusk, dusk_labels), (bright, bright_labels) = (
        next(renderer.render_clip(9, 1, SIZE_HW, look=look)) for look in ("dusk", "bright")
    )
    assert bright.mean() > dusk.mean() + 40
    visible = (dusk_labels != UNLABELLED) & (bright_labels != UNLABELLED)
    assert (dusk_labels == bright_labels)[visible].mean() > 0.99


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": -1}, "frames must be 0 or more, got -1"),
        ({"size_hw": (4, 160)}, "size_hw must be"),
        ({"fps": 0.0}, "fps must be positive, got 0.0"),
        ({"supersample": 3}, "supersample must be 1 or 2, got 3"),
        ({"look": "snow"}, "look must be one of clear, low_sun"),
    ],
)
def test_bad_arguments_are_named(renderer: ModuleType, arguments: dict, message: str) -> None:
    call = {"seed": 1, "frames": 1, "size_hw": SIZE_HW, **arguments}
    with pytest.raises(ValueError, match=message):
        list(renderer.render_clip(**call))


def test_render_writes_a_playable_clip_with_exact_labels(
    renderer: ModuleType, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    paths = samples.render(
        tmp_path / "new", 5, 3, SIZE_HW, 15.0, lambda *done: seen.append(done), look="clear"
    )
    assert [p.name for p in paths] == ["drive_5.mp4", "drive_5_labels.mkv"]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == sorted(p.name for p in paths)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    expected = list(renderer.render_clip(5, 3, SIZE_HW, 15.0, look="clear"))
    for (picture, labels), rgb, grey in zip(
        expected, decode(paths[0], "rgb24"), decode(paths[1], "gray"), strict=True
    ):
        np.testing.assert_array_equal(grey, labels)
        assert np.abs(rgb.astype(int) - picture).mean() < 8
    with av.open(str(paths[0])) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", 15)
        frame = next(container.decode(stream))
        assert (frame.format.name, int(frame.colorspace)) == ("yuv420p", 1)


def test_an_interrupted_render_leaves_no_file(renderer: ModuleType, tmp_path: Path) -> None:
    def stop(done: int, _: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        samples.render(tmp_path, 5, 3, SIZE_HW, 15.0, stop)
    assert list(tmp_path.iterdir()) == []


def test_render_refuses_what_it_cannot_do(renderer: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"size must be even .* got 121x160"):
        samples.render(tmp_path, 1, 1, (121, 160), 30.0)
    with pytest.raises(ConfigError, match="fps must be positive"):
        samples.render(tmp_path, 1, 1, SIZE_HW, -1.0)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file: cannot write there"):
        samples.render(tmp_path / "file", 1, 1, SIZE_HW, 30.0)


def test_missing_parts_of_the_renderer_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loaded = [name for name in sys.modules if name.split(".")[0] == "sample_videos"]
    for name in loaded:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "moderngl", None)
    with pytest.raises(PipelineError, match=r'pip install "roadmask\[render\]"'):
        samples.render(tmp_path, 1, 1, SIZE_HW, 30.0)
    for name in [n for n in sys.modules if n.split(".")[0] == "sample_videos"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(samples, "SAMPLES_FOLDER", tmp_path / "nowhere")
    with pytest.raises(PipelineError, match="comes with the source checkout"):
        samples.render(tmp_path, 1, 1, SIZE_HW, 30.0)


def test_missing_egl_is_named(
    renderer: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse() -> None:
        raise Exception("libEGL.so.1: not found")

    monkeypatch.setattr(sys.modules["sample_videos.gpu"], "shared_context", refuse)
    with pytest.raises(PipelineError, match=r"apt-get install libegl1 .*libEGL.so.1: not found"):
        samples.render(tmp_path, 1, 1, SIZE_HW, 30.0)


# The shipped clip


def test_shipped_clip_and_labels_are_whole() -> None:
    assert SHIPPED.stat().st_size <= 5_000_000
    assert SHIPPED_LABELS.stat().st_size <= 5_500_000
    with av.open(str(SHIPPED)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", 30)
        assert (stream.height, stream.width) == (720, 1280)
        assert sum(1 for _ in container.decode(stream)) == 300
    counts, frames = np.zeros(256, dtype=int), 0
    for labels in decode(SHIPPED_LABELS, "gray"):
        assert labels.shape == (720, 1280)
        counts += np.bincount(labels[::4, ::4].ravel(), minlength=256)
        frames += 1
    assert frames == 300
    assert set(np.flatnonzero(counts)) - {UNLABELLED} == set(CLASSES)


def test_shipped_labels_are_what_the_code_renders(renderer: ModuleType) -> None:
    """Another renderer rasterises edges a little differently, so not every pixel need agree."""
    _, labels = next(renderer.render_clip(14, 1, (720, 1280), look="clear"))
    shipped = next(decode(SHIPPED_LABELS, "gray"))
    assert (shipped == labels).mean() > 0.99


def test_shipped_picture_lies_over_its_labels() -> None:
    for picture, labels in islice(
        zip(decode(SHIPPED, "rgb24"), decode(SHIPPED_LABELS, "gray"), strict=True), 3
    ):
        assert (labels[-40:, 400:880] == ROAD).mean() > 0.9
        light = picture.mean(axis=2)
        assert light[labels == SKY].mean() > light[labels == ROAD].mean() + 40


# Downloads


class Server:
    """A local web server whose faults a test chooses: a list of what the next answers do."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.faults: list[str] = []
        self.ranges: list[str | None] = []  # the Range header of each request
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/clip.mp4"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(timeout=5)

    def _handler(server) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                server.ranges.append(asked)
                fault = server.faults.pop(0) if server.faults else ""
                if fault.isdigit():
                    self.send_error(int(fault))
                    return
                start = 0
                if asked and fault != "no ranges":
                    start = int(asked.removeprefix("bytes=").rstrip("-"))
                    self.send_response(206)
                    total = len(server.content)
                    self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
                else:
                    self.send_response(200)
                body = server.content[start:]
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if fault == "break off" else body)

            def log_message(self, *_: object) -> None:
                return

        return Handler


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(samples.time, "sleep", lambda _: None)
    content = np.random.default_rng(3).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
    running = Server(content)
    yield running
    running.close()


def write_catalogue(folder: Path, server: Server, **changes: object) -> Path:
    entry = {
        "name": "clip.mp4",
        "url": server.url,
        "licence": "MIT",
        "attribution": "Somebody",
        "size_bytes": len(server.content),
        "sha256": hashlib.sha256(server.content).hexdigest(),
        **changes,
    }
    path = folder / "catalogue.json"
    path.write_text(json.dumps([entry]), encoding="utf-8")
    return path


def test_download_checks_names_and_credits_a_clip_once(tmp_path: Path, server: Server) -> None:
    catalogue, out = write_catalogue(tmp_path, server), tmp_path / "out"
    seen: list[tuple[int, int]] = []
    paths = samples.download(out, None, catalogue, lambda *done: seen.append(done))
    assert paths == [out / "clip.mp4"]
    assert paths[0].read_bytes() == server.content
    assert seen[-1] == (300_000, 300_000)
    assert "Somebody\nLicence: MIT" in (out / "clip.mp4.licence.txt").read_text()
    assert sorted(p.name for p in out.iterdir()) == ["clip.mp4", "clip.mp4.licence.txt"]
    assert samples.download(out, ["clip"], catalogue) == paths
    assert server.ranges == [None]  # the second call asked for nothing
    paths[0].write_bytes(b"damaged")
    samples.download(out, ["clip.mp4"], catalogue)
    assert paths[0].read_bytes() == server.content


def test_a_broken_transfer_goes_on_where_it_stopped(tmp_path: Path, server: Server) -> None:
    server.faults = ["break off", "503", "break off", ""]
    (path,) = samples.download(tmp_path, None, write_catalogue(tmp_path, server))
    assert path.read_bytes() == server.content
    assert server.ranges == [None, "bytes=150000-", "bytes=150000-", "bytes=225000-"]


def test_a_later_call_resumes_an_earlier_one(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = write_catalogue(tmp_path, server)
    monkeypatch.setattr(samples, "ATTEMPTS", 1)
    server.faults = ["break off"]
    with pytest.raises(samples.DownloadError, match="broke off after 150000 of 300000 bytes"):
        samples.download(tmp_path, None, catalogue)
    assert not (tmp_path / "clip.mp4").exists()
    (path,) = samples.download(tmp_path, None, catalogue)
    assert path.read_bytes() == server.content
    assert server.ranges == [None, "bytes=150000-"]


def test_a_server_without_ranges_is_read_from_the_start(tmp_path: Path, server: Server) -> None:
    server.faults = ["break off", "no ranges"]
    (path,) = samples.download(tmp_path, None, write_catalogue(tmp_path, server))
    assert path.read_bytes() == server.content


def test_wrong_content_is_refused_and_removed(tmp_path: Path, server: Server) -> None:
    catalogue, out = write_catalogue(tmp_path, server, sha256="0" * 64), tmp_path / "out"
    with pytest.raises(samples.DownloadError, match=f"must be {'0' * 64}, got [0-9a-f]{{64}}"):
        samples.download(out, None, catalogue)
    assert list(out.iterdir()) == []


def test_content_longer_than_promised_is_refused(tmp_path: Path, server: Server) -> None:
    catalogue = write_catalogue(tmp_path, server, size_bytes=1000)
    with pytest.raises(samples.DownloadError, match="wrong content"):
        samples.download(tmp_path, None, catalogue)
    assert not (tmp_path / "clip.mp4").exists()


def test_a_missing_page_is_reported_at_once(tmp_path: Path, server: Server) -> None:
    server.faults = ["404"]
    with pytest.raises(samples.DownloadError, match=r"clip.mp4 answered HTTP 404 Not Found"):
        samples.download(tmp_path, None, write_catalogue(tmp_path, server))
    assert len(server.ranges) == 1


def test_being_offline_is_one_clear_error(tmp_path: Path, server: Server) -> None:
    catalogue = write_catalogue(tmp_path, server)
    server.close()
    with pytest.raises(samples.DownloadError, match=r"failed 4 times.*is this machine online"):
        samples.download(tmp_path, None, catalogue)
    server.close = lambda: None  # type: ignore[method-assign]


def test_download_refuses_unknown_names_and_bad_catalogues(tmp_path: Path, server: Server) -> None:
    catalogue = write_catalogue(tmp_path, server)
    with pytest.raises(ConfigError, match=r"no sample clip named 'x'; the catalogue has: clip.mp4"):
        samples.download(tmp_path, ["x"], catalogue)
    with pytest.raises(ConfigError, match="comes with the source checkout"):
        samples.download(tmp_path, None, tmp_path / "none.json")
    for changes, message in (
        ({"name": "../clip.mp4"}, "plain file name"),
        ({"url": "file:///etc/passwd"}, "must be http"),
        ({"size_bytes": 0}, "size_bytes must be > 0, got 0"),
        ({"sha256": "abc"}, "64 lower-case hex"),
        ({"colour": "red"}, "wrong fields"),
    ):
        with pytest.raises(ConfigError, match=message):
            samples.read_catalogue(write_catalogue(tmp_path, server, **changes))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file: cannot write there"):
        samples.download(tmp_path / "file", None, write_catalogue(tmp_path, server))
    assert server.ranges == []


def test_shipped_catalogue_is_valid_and_its_known_clip_matches(shared_folder: Path) -> None:
    entries = samples.read_catalogue(samples.CATALOGUE)
    assert entries
    for entry in entries:
        local = shared_folder / "clips" / entry.name
        if local.exists():
            assert local.stat().st_size == entry.size_bytes
            assert hashlib.sha256(local.read_bytes()).hexdigest() == entry.sha256
