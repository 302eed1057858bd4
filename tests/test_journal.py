"""The journal: what it holds, what it refuses, and that it is whole or not there."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import OutputError
from pipeline.frames import Mark, StreamInfo, StreamState
from pipeline.journal import (
    JOURNAL,
    Journal,
    Record,
    ResumeError,
    check_identity,
    decode,
    encode,
    fingerprint,
    frames_kept,
    identity_of,
    read,
    stream_from_json,
    stream_to_json,
)
from pipeline.parts import lock_folder
from pipeline.sources import Source

IDENTITY = {"model": "m", "the network's size": [96, 128]}


def make_record(frame_index: int = 48, values: np.ndarray | None = None, **changes: Any) -> Record:
    state = StreamState((96, 128), values, 48, 1)
    mark = Mark(frame_index, {"clock": {"_last": 7}, "place": None}, state)
    return replace(
        Record(IDENTITY, mark, {"writers": {}}, "2026-01-01T00:00:00.000+00:00"), **changes
    )


def same(one: Record, other: Record) -> bool:
    def plain(record: Record) -> Record:
        return replace(record, mark=replace(record.mark, state=None))

    a, b = one.mark.state, other.mark.state
    assert a is not None
    assert b is not None
    values = (a.values is None and b.values is None) or (
        a.values is not None
        and b.values is not None
        and a.values.shape == b.values.shape
        and a.values.tobytes() == b.values.tobytes()
    )
    return (
        plain(one) == plain(other) and values and replace(a, values=None) == replace(b, values=None)
    )


def test_a_record_comes_back_to_the_last_bit() -> None:
    """States have every float there is: negative zero, the smallest, infinities, not-a-numbers."""
    rng = np.random.default_rng(1)
    values = rng.integers(0, 2**32, (5, 6, 7), np.uint32).view(np.float32)
    values.ravel()[:4] = [-0.0, 1e-45, np.inf, np.nan]
    for given_values in (values, values[:, ::2], None):
        record = make_record(values=given_values, resumed_at=[48], publishing=True)
        assert same(decode(encode(record)), record)


def test_file_names_that_are_not_utf8() -> None:
    record = make_record(sink={"source": os.fsdecode(b"caf\xe9.mp4")})
    assert decode(encode(record)).sink == record.sink


def test_a_stream_comes_back() -> None:
    for rate in (None, Fraction(30000, 1001)):
        stream = StreamInfo(
            "a",
            "a.mp4",
            (90, 160),
            Fraction(1, 90000),
            rate,
            7,
            "bt601",
            ("x", "y"),
            90,
            {"codec": "h264"},
        )
        assert stream_from_json(stream_to_json(stream)) == stream


@given(st.data())
def test_damage_is_seen(data: st.DataObject) -> None:
    """Flipped bits, cut ends and appended bytes: refused in one line, never half believed."""
    good = encode(make_record(values=np.ones((2, 3, 4), np.float32)))
    kind = data.draw(st.sampled_from(["flip", "cut", "more"]))
    bad = bytearray(good)
    if kind == "flip":
        bit = data.draw(st.integers(0, 8 * len(good) - 1))
        bad[bit // 8] ^= 1 << bit % 8
    elif kind == "cut":
        bad = bad[: data.draw(st.integers(0, len(good) - 1))]
    else:
        bad += data.draw(st.binary(min_size=1, max_size=9))
    with pytest.raises(ResumeError, match="its journal is") as error:
        decode(bytes(bad))
    assert "\n" not in str(error.value)


def test_the_last_record_stays_until_the_next_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal(tmp_path, IDENTITY, resume=False) as journal:
        assert journal.record is None
        journal.commit(make_record(48))
        for name in ("fsync", "replace"):
            with monkeypatch.context() as patch:

                def fail(*_: Any) -> None:
                    raise OSError(28, "No space left on device")

                patch.setattr(f"pipeline.parts.os.{name}", fail)
                with pytest.raises(OutputError, match="No space left"):
                    journal.commit(make_record(96))
            assert frames_kept(tmp_path) == 48
            assert journal.record is not None
            assert journal.record.mark.frame_index == 48
        assert [path.name for path in tmp_path.iterdir()] == [JOURNAL]
        journal.commit(make_record(144))
        assert frames_kept(tmp_path) == 144
        journal.remove()
        assert frames_kept(tmp_path) == 0


def test_going_on_or_anew(tmp_path: Path) -> None:
    with Journal(tmp_path, IDENTITY, resume=False) as journal:
        journal.commit(make_record(96))
    (tmp_path / ".color.mp4.part").write_text("frames")
    with Journal(tmp_path, IDENTITY, resume=True) as journal:
        assert journal.record is not None
        assert journal.record.resumed_at == [96]
        assert (tmp_path / ".color.mp4.part").exists()
    with Journal(tmp_path, IDENTITY, resume=False) as journal:
        assert journal.record is None
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_journal_is_begun_anew_and_said(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_bytes(b"nonsense")
    with pytest.raises(ResumeError):
        read(tmp_path)
    with Journal(tmp_path, IDENTITY, resume=True) as journal:
        assert journal.record is None
        assert journal.notes == ["begun anew: its journal is damaged"]


@pytest.mark.parametrize("now", [{"model": "n"}, {"the network's size": [64, 64]}, {"more": 1}])
def test_another_identity_is_refused_and_said(tmp_path: Path, now: dict[str, Any]) -> None:
    with Journal(tmp_path, IDENTITY, resume=False) as journal:
        journal.commit(make_record(48))
    (name, value), old = next(iter(now.items())), IDENTITY.get(next(iter(now)))
    with pytest.raises(ResumeError) as error:
        Journal(tmp_path, IDENTITY | now, resume=True)
    assert f"{name} was {old}, is {value}" in str(error.value)
    assert "without --resume" in str(error.value)
    assert frames_kept(tmp_path) == 48  # refusing costs nothing
    Journal(tmp_path, IDENTITY, resume=True).close()  # and holds nothing


def test_what_results_depend_on(tmp_path: Path) -> None:
    facts: dict[str, Any] = {
        "model": {"name": "m", "weights_sha256": "a" * 64, "size_hw": (96, 128)},
        "engine": {"name": "cpu", "runtime": "OpenVINO bf16", "form_sha256": None},
        "versions": {"roadmask": "1", "av": "18", "openvino": "2026", "torch": "2", "ray": "2"},
    }
    (tmp_path / "a.mp4").write_bytes(b"footage")
    source = Source("a", str(tmp_path / "a.mp4"))
    whole = identity_of(source, facts, {"labels": "mkv"})
    for part, key, value in [
        ("model", "weights_sha256", "b" * 64), ("model", "size_hw", (64, 64)),
        ("engine", "runtime", "OpenVINO f32"), ("versions", "openvino", "2027"),
    ]:  # fmt: skip
        changed = identity_of(source, facts | {part: facts[part] | {key: value}}, {"labels": "mkv"})
        assert sum(whole[name] != changed[name] for name in whole) == 1, (part, key)
    other = facts | {"versions": facts["versions"] | {"ray": "3", "torch": "3"}}
    assert identity_of(source, other, {"labels": "mkv"}) == whole
    assert identity_of(source, facts, {"labels": "png"}) != whole
    there = identity_of(source, facts | {"scaled_on": "cuda where it decodes"}, {"labels": "mkv"})
    told = check_identity(tmp_path, whole, there)
    assert told == "what scales frames was the cores, is cuda where it decodes"
    before = {name: value for name, value in whole.items() if name != "what scales frames"}
    assert check_identity(tmp_path, before, whole) is None
    moved = tmp_path / "moved.mp4"
    os.replace(tmp_path / "a.mp4", moved)
    assert identity_of(Source("a", str(moved)), facts, {"labels": "mkv"}) == whole


@pytest.mark.parametrize("size", [1000, 5_000_000, 20_000_000])
def test_a_changed_source_is_seen(tmp_path: Path, size: int) -> None:
    """Of any byte in up to 4 MB, and of what is longer in places spread over it."""
    path, data = tmp_path / "a.mp4", bytearray(np.random.default_rng(2).bytes(size))
    path.write_bytes(data)
    source = Source("a", str(path))
    before = fingerprint(source)
    assert fingerprint(source) == before
    for at in (0, size - 1, *([size // 3] if size < 4_000_000 else [])):
        changed = data.copy()
        changed[at] ^= 1
        path.write_bytes(changed)
        assert fingerprint(source) != before, at
    path.write_bytes(data + b"x")
    assert fingerprint(source) != before
    path.unlink()
    assert fingerprint(source) != before


def test_images_are_known_by_name_and_content(tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.png" for name in "abc"]
    for file in files:
        file.write_bytes(file.name.encode() * 50)
    source = Source("x", str(tmp_path), "images", tuple(map(str, files)))
    before = fingerprint(source)
    files[1].write_bytes(b"q.png" * 50)
    assert fingerprint(source) != before
    assert fingerprint(Source("u", "http://host/a.mp4")) == {"the source": "http://host/a.mp4"}


def test_two_runs_never_write_to_one_folder(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from pipeline.parts import lock_folder;"
        "lock_folder(Path(sys.argv[1]), 0); print('locked', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "locked\n"
    with pytest.raises(OutputError, match="another run is writing to"):
        lock_folder(tmp_path, 0.1)
    other.kill()  # the end of a process is the end of its lock
    other.communicate()
    lock_folder(tmp_path, 60)()
    lock_folder(tmp_path, 0)()


def test_a_new_folder_goes_if_nothing_comes_of_it(tmp_path: Path) -> None:
    with Journal(tmp_path / "a" / "clip", IDENTITY, resume=True):
        assert (tmp_path / "a" / "clip").is_dir()
    assert list(tmp_path.rglob("clip")) == []
    (tmp_path / "b").mkdir()
    Journal(tmp_path / "b", IDENTITY, resume=True).close()
    assert (tmp_path / "b").is_dir()
