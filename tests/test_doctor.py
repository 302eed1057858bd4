"""`roadmask doctor`: it says what is there, and what is wrong in a line that helps."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest
from typer.testing import CliRunner

from pipeline import doctor
from pipeline.cli import app
from pipeline.doctor import Finding, examine
from pipeline.errors import ModelError


def findings(what: str) -> list[Finding]:
    return [finding for finding in examine() if finding.what == what]


def test_a_whole_installation_has_no_problem() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    found = [json.loads(line) for line in result.output.splitlines()]
    assert result.exit_code == 0
    assert {one["state"] for one in found} <= {"ok", "note"}
    said = {one["what"]: one["text"] for one in found}
    assert "torch" in said["packages"]
    assert said["engine cpu"]
    assert "model roadnet" in said
    assert said["a small video"].startswith("labelled in")


def test_what_is_missing_is_said_and_the_other_checks_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = builtins.__import__

    def without_ray(name: str, *rest: Any) -> Any:
        if name.split(".", maxsplit=1)[0] == "av":
            raise ImportError("No module named 'av'", name="av")
        return whole(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_ray)
    (video,) = findings("video")
    assert video.state == "problem"
    assert "pip install" in video.text
    assert findings("machine")[0].state == "ok"


def test_a_build_without_an_encoder_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    monkeypatch.setitem(doctor.CHECKS, "a small video", lambda: iter(()))
    (video,) = findings("video")
    assert (video.state, "libx264" in video.text) == ("problem", True)


def test_an_error_of_the_pipeline_is_a_problem_and_sets_the_exit_status(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken() -> Any:
        raise ModelError("the weights do not fit\nat all")

    monkeypatch.setitem(doctor.CHECKS, "a small video", broken)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "problem  a small video    the weights do not fit at all" in result.output


def test_frames_without_labels_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.run.segment", lambda video: iter(()))
    (found,) = findings("a small video")
    assert (found.state, found.text[:1]) == ("problem", "0")


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to(path / "itself")])
def test_a_cache_that_cannot_be_written_is_noted(
    make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "cache")
    monkeypatch.setenv("ROADMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(doctor.CHECKS, "a small video", lambda: iter(()))
    (cache,) = findings("cache")
    assert cache.state == "note"
    assert "ROADMASK_CACHE" in cache.text
