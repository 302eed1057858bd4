"""What a person and a script see of a run."""

from __future__ import annotations

import io
import json

import pytest

from pipeline.progress import Display, Meter, format_seconds
from pipeline.stages import Progress, SourceReport


def test_the_meter_counts_frames_of_all_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("pipeline.progress.time.monotonic", lambda: now[0])
    meter = Meter()
    now[0] = 105.0  # starting up does not count
    meter.update(Progress("a", 8, 100))
    assert meter.fps == 0
    now[0] = 107.0
    meter.update(Progress("a", 28, 100))
    assert (meter.done, meter.fps) == (28, 10)
    assert meter.total(sources=3) == 300  # the two others are taken to be as long
    meter.update(Progress("b", 10, None))
    assert meter.total(sources=3) is None
    meter.update(SourceReport("b", "b.mp4", frames=12))
    assert meter.total(sources=2) == 112


def test_what_failed_adds_nothing_to_what_is_left() -> None:
    meter = Meter()
    meter.update(Progress("a", 8, 100))
    meter.update(Progress("b", 8, 500))
    meter.update(SourceReport("b", "b.mp4", error="b.mp4: gone"))
    assert (meter.done, meter.total(sources=1)) == (8, 100)


def test_what_stops_every_source_is_said_once() -> None:
    stream = io.StringIO()
    with Display(stream=stream) as display:
        display.begin(4)
        for name in "abc":
            error = (
                "the GPU ran out of memory: try a smaller --size; --resume goes on behind frame "
            )
            display.show(SourceReport(name, f"{name}.mp4", error=error + str(ord(name))))
        display.show(SourceReport("d", "d.mp4", error="d.mp4: no such file"))
        display.summary()
    errors = [line for line in stream.getvalue().splitlines() if line.startswith("error: ")]
    assert errors == [
        "error: the GPU ran out of memory: try a smaller --size; --resume goes on behind frame 97",
        "error: d.mp4: no such file",
        "error: 2 more sources failed for the same reason: the GPU ran out of memory: try a smaller --size",
    ]
    assert display.failed == 4


def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    with Display(stream=stream, as_json=True) as display:
        display.begin(3)
        display.show(Progress("a", 8, 16))
        display.show(SourceReport("a", "a.mp4", frames=16, notes=("2 frames are damaged",)))
        display.show(SourceReport("x", "nöpe.mp4", error="nöpe.mp4: no such file"))
        display.show(SourceReport("x", "nöpe.mp4", error="nöpe.mp4: no such file"))
        display.summary()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "starting: 3 sources"
    assert "8/48 frames" in lines[1]
    assert "note: a.mp4: 2 frames are damaged" in lines
    assert lines.count("error: nöpe.mp4: no such file") == 2
    assert lines[-1].startswith("1 of 3 done, 2 failed: 16 frames in")
    reports = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(r["frames"], r["error"]) for r in reports] == [
        (16, None), (0, "nöpe.mp4: no such file"), (0, "nöpe.mp4: no such file"),
    ]  # fmt: skip
    assert display.failed == 2


def test_a_bar_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with Display(stream=stream) as display:
        display.begin(1)
        display.show(Progress("drive", 8, 16))
        display.show(SourceReport("drive", "drive.mp4", frames=16))
        display.summary()
    assert "drive" in stream.getvalue()
    assert "16/16" in stream.getvalue()


def test_quiet_shows_errors_only() -> None:
    stream = io.StringIO()
    with Display(stream=stream, quiet=True) as display:
        display.begin(1)
        display.warn("stopping")
        display.show(Progress("a", 8, 16))
        display.show(SourceReport("a", "a", notes=("note",), error="a: broken", details="trace"))
        display.summary()
    assert stream.getvalue() == "error: a: broken\n"


def test_times_read_as_people_write_them() -> None:
    assert [format_seconds(s) for s in (0, 61.4, 3723)] == ["0:00", "1:01", "1:02:03"]
