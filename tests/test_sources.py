"""What a user names on the command line, and the streams it becomes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError, PipelineError, SourceNotFoundError
from pipeline.journal import fingerprint
from pipeline.sources import Source, expand, inside_its_output, safe_name
from pipeline.stages import SourceReport

Make = Callable[..., None]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes empty files in a folder that is the current one; nothing of a source is opened."""
    monkeypatch.chdir(tmp_path)

    def files(*names: str) -> None:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    return files


def ids(*sources: str) -> list[str]:
    """The stream ids of sources that are all fine."""
    found = expand(sources)
    assert found.failures == ()
    return [source.stream_id for source in found.sources]


def uris(*sources: str) -> list[str]:
    return [source.uri for source in expand(sources).sources]


def failure(*sources: str) -> PipelineError:
    """The reason the one bad source among these failed; a line that names it."""
    ((text, error),) = expand(sources).failures
    assert str(error).startswith(text)
    assert "\n" not in str(error)
    return error


def test_a_file_is_a_video_whatever_its_extension(make: Make) -> None:
    make("clip.mp4", "no extension", "dump.bin")
    assert expand(["clip.mp4"]).sources == (Source("clip", "clip.mp4"),)
    assert ids("clip.mp4", "no extension", "dump.bin") == ["clip", "no extension", "dump"]


@pytest.mark.parametrize(
    "name", ["Zürich 1 – Süd.mp4", "車載 カメラ.MP4", "a[1].mp4", "*.mp4", "x;y&z.mp4"]
)
def test_names_may_have_spaces_unicode_and_brackets(make: Make, name: str) -> None:
    make(name, "other.mp4")
    (source,) = expand([name]).sources
    assert source.uri == name


def test_a_folder_of_videos_in_natural_order(make: Make) -> None:
    make("d/10.mp4", "d/2.MKV", "d/1.avi", "d/notes.txt", "d/.hidden.mp4", "d/sub/deep.mp4")
    assert uris("d") == ["d/1.avi", "d/2.MKV", "d/10.mp4"]
    assert ids("d/") == ["1", "2", "10"]


def test_a_folder_of_images_is_one_stream(make: Make) -> None:
    make("drive 7/f10.png", "drive 7/f9.png", "drive 7/f1.jpg", "drive 7/poses.csv")
    files = ("drive 7/f1.jpg", "drive 7/f9.png", "drive 7/f10.png")
    assert expand(["drive 7"]).sources == (Source("drive 7", "drive 7", "images", files),)


def test_the_current_folder_has_its_own_name(make: Make, tmp_path: Path) -> None:
    make("1.png", "2.png")
    assert ids(".") == [safe_name(tmp_path.name)]


def test_videos_win_over_images_in_one_folder(make: Make) -> None:
    make("d/a.mp4", "d/cover.jpg", "d/b.mp4")
    assert uris("d") == ["d/a.mp4", "d/b.mp4"]


def test_an_image_is_a_stream_of_one(make: Make) -> None:
    make("street.png")
    assert expand(["street.png"]).sources == (
        Source("street", "street.png", "images", ("street.png",)),
    )


def test_globs(make: Make) -> None:
    make("a/1.mp4", "a/b/2.mp4", "a/b/c/3.mkv", "a/b/text.txt", "a/10.mp4", "a/9.mp4")
    assert uris("a/*.mp4") == ["a/1.mp4", "a/9.mp4", "a/10.mp4"]
    assert uris("a/**/*.mp4") == ["a/1.mp4", "a/9.mp4", "a/10.mp4", "a/b/2.mp4"]
    assert sorted(uris("a/**")) == sorted(
        ["a/1.mp4", "a/9.mp4", "a/10.mp4", "a/b/2.mp4", "a/b/c/3.mkv"]
    )
    assert uris("a/[19].mp4") == ["a/1.mp4", "a/9.mp4"]


def test_a_glob_of_images_is_a_stream_a_folder(make: Make) -> None:
    make("s/left/1.png", "s/left/2.png", "s/right/1.png", "s/right/2.png", "s/right/3.png")
    left, right = expand(["s/*/*.png"]).sources
    assert (left.stream_id, left.files) == ("left", ("s/left/1.png", "s/left/2.png"))
    assert (right.stream_id, right.uri, len(right.files)) == ("right", "s/right", 3)


def test_a_glob_of_folders_takes_those_with_media(make: Make) -> None:
    make("s/one/1.png", "s/two/clip.mp4", "s/three/readme.md")
    assert ids("s/*") == ["one", "clip"]


def test_a_file_url(make: Make, tmp_path: Path) -> None:
    make("my clip.mp4")
    assert uris(f"file://{tmp_path}/my%20clip.mp4") == [f"{tmp_path}/my clip.mp4"]


def test_urls_of_files(make: Make) -> None:
    url = "https://example.org/drives/city%20drive.mp4?token=a/b"
    assert expand([url]).sources == (Source("city drive", url),)


@pytest.mark.parametrize(
    "source", ["rtsp://camera/stream", "/dev/video0", "rtmp://host/app", "srt://h:1"]
)
def test_live_sources_are_for_another_command(source: str) -> None:
    error = failure(source)
    assert isinstance(error, ConfigError)
    assert "supported are video files" in str(error)


@pytest.mark.parametrize(
    ("source", "right"),
    [("gone.mp4", "no such file or folder"), ("nowhere/gone.mp4", "nor is there a folder nowhere"),
     ("clip", "did you mean clip.mp4"), ("empty", "expected a folder of videos"),
     ("text", "none of its 2 files is one"), ("*.mkv", "expected a glob such as"),
     ("text/*", "none of the 2 it matches"), ("", "expected the path of a video"),
     ("   ", "expected the path of a video")],
)  # fmt: skip
def test_what_names_nothing_is_said_in_one_line(make: Make, source: str, right: str) -> None:
    make("clip.mp4", "text/a.txt", "text/b.txt")
    Path("empty").mkdir()
    ((text, error),) = expand([source]).failures
    assert text == source
    assert isinstance(error, SourceNotFoundError)
    assert isinstance(error, FileNotFoundError)
    assert source.strip() in str(error)
    assert right in str(error)
    assert "\n" not in str(error)


def test_a_folder_that_cannot_be_listed_gives_no_hint(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("locked/a.mp4", "b.mp4")

    def deny(path: str) -> list[str]:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "listdir", deny)
    found = expand(["locked/gone.mp4", "b.mp4"])
    assert [source.stream_id for source in found.sources] == ["b"]
    assert [str(error) for _, error in found.failures] == [
        "locked/gone.mp4: no such file or folder"
        " (the folder locked cannot be listed: Permission denied)"
    ]


def test_one_bad_source_does_not_stop_the_others(make: Make) -> None:
    make("a.mp4", "b.mp4")
    found = expand(["a.mp4", "gone.mp4", "rtsp://x/y", "b.mp4"])
    assert [source.stream_id for source in found.sources] == ["a", "b"]
    assert [text for text, _ in found.failures] == ["gone.mp4", "rtsp://x/y"]


def test_the_same_file_is_taken_once(make: Make, tmp_path: Path) -> None:
    make("d/a.mp4", "d/b.mp4", "p/1.png")
    Path("link.mp4").symlink_to("d/a.mp4")
    assert uris("d/a.mp4", "d", "./d/../d/b.mp4", "link.mp4", str(tmp_path / "d/b.mp4")) == [
        "d/a.mp4",
        "d/b.mp4",
    ]
    assert uris("p", "p/", str(tmp_path / "p")) == ["p"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["a/clip.mp4", "b/clip.mp4"], ["a_clip", "b_clip"]),
     (["clip.mp4", "clip.mkv"], ["clip_mp4", "clip_mkv"]),
     (["a/clip.mp4", "a/clip.mkv", "b/clip.mp4"], ["a_clip", "a_clip_mkv", "b_clip"]),
     (["x/a/clip.mp4", "y/a/clip.mp4"], ["clip_1", "clip_2"]),
     (["a/Clip.mp4", "b/clip.mp4"], ["a_Clip", "b_clip"]),
     (["a/c.mp4", "b/c.mp4", "a_c.mp4"], ["c_1", "b_c", "a_c"]),
     (["clip.mp4", "other.mp4"], ["clip", "other"])],
)  # fmt: skip
def test_ids_that_collide_stay_readable(make: Make, names: list[str], expected: list[str]) -> None:
    make(*names)
    assert ids(*names) == expected


@pytest.mark.parametrize(
    ("source", "out", "inside"),
    [("color.mp4", ".", False), ("color/color.mp4", ".", True), ("color/color.mp4", "out", False),
     ("color/color.mp4", "color", False), ("frames", ".", True), ("frames", "out", False),
     ("frames/1.png", ".", False), ("1/1.png", ".", True), ("./1/../frames/*.png", "out/..", True),
     ("linked", ".", True), ("frames", "elsewhere", True), ("deep/labels/labels", "deep", True),
     ("there.mp4", ".", True), ("there/link.mp4", ".", False), ("link/link.mp4", ".", True),
     ("gone/gone.mp4", ".", False)],
)  # fmt: skip
def test_a_source_inside_its_own_output(make: Make, source: str, out: str, inside: bool) -> None:
    make("color.mp4", "color/color.mp4", "frames/1.png", "frames/2.png", "1/1.png", "far/1.png",
         "deep/labels/labels/1.png", "there/real.mp4", "link/x")  # fmt: skip
    Path("linked").symlink_to("far")  # the stream is named after `far`, and so is the output
    Path("elsewhere").mkdir()
    Path("elsewhere/frames").symlink_to("../frames")
    Path("there.mp4").symlink_to("there/real.mp4")
    Path("there/link.mp4").symlink_to("../color.mp4")
    Path("link/link.mp4").symlink_to("../color.mp4")
    (found,) = expand([source]).sources if "gone" not in source else (Source("gone", source),)
    assert inside_its_output(found, Path(out)) == inside


def test_a_url_is_in_no_output(make: Make) -> None:
    make("clip/clip.mp4")
    assert not inside_its_output(Source("clip", "https://example.org/clip/clip.mp4"), Path())


def test_ids_do_not_depend_on_what_else_is_there(make: Make) -> None:
    make("a/clip.mp4", "b/clip.mp4", "z.mp4")
    assert ids("a/clip.mp4", "b/clip.mp4") == ids("a/clip.mp4", "b/clip.mp4", "z.mp4")[:2]
    assert ids("b/clip.mp4", "a/clip.mp4") == ["b_clip", "a_clip"]


@pytest.mark.parametrize(
    ("text", "name"),
    [("clip", "clip"), ("..", "stream"), ("", "stream"), ("/etc/passwd", "_etc_passwd"),
     ("a/../b", "a_.._b"), (".hidden", "hidden"), ("dots...", "dots"), ("a\x00b\n", "a_b_"),
     ("C:\\x", "C_x"), ("con", "_con"), ("e\u0301", "\u00e9"), ("\u202etxt", "txt")],
)  # fmt: skip
def test_safe_names(text: str, name: str) -> None:
    assert safe_name(text) == name


@settings(max_examples=60, deadline=None, database=None)
@given(st.text())
@example("e\u200d\u0301")
def test_a_safe_name_is_one_folder_below(text: str) -> None:
    name = safe_name(text)
    root = Path("/out").resolve()
    assert (root / name).resolve().parent == root
    assert 0 < len(name.encode()) <= 200
    assert safe_name(name) == name


def test_a_source_is_validated() -> None:
    with pytest.raises(
        ValueError, match="kind must be 'video', 'images' or 'session', got 'sound'"
    ):
        Source("a", "a.wav", "sound")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stream_id must be safe"):
        Source("../a", "a.mp4")
    with pytest.raises(ValueError, match="only a video has no list of files"):
        Source("a", "a", "images")


def test_a_web_address_is_told_without_its_secrets() -> None:
    url = "https://me:secret99@nas/clip.mp4?X-Amz-Signature=secret98&part=1"
    report = SourceReport("clip", url, error=f"{url}: 403, secret98 is old", notes=(f"{url}: x",))
    shown = "https://me:***@nas/clip.mp4?X-Amz-Signature=***&part=1"
    assert report.source == shown
    assert report.error == f"{shown}: 403, *** is old"
    assert report.notes == (f"{shown}: x",)
    assert fingerprint(Source("clip", url)) == {"the source": shown}
    [(_, error)] = expand(["http://[nas/clip.mp4"]).failures
    assert isinstance(error, ConfigError)
