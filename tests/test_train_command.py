"""The training command: its configuration, its errors, and how it is followed."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from models.errors import DataError
from models.registry import build
from models.spec import Spec
from models.terminal import Terminal
from models.training.config import Phase, TrainConfig
from models.training.optimize import learning_rate
from models.training.tracking import Log
from models.training.train import Trainer
from pipeline import cli
from tests.drives import (
    CLASSES,
    phase,
    quiet,
    raw_config,
    tiny_config,
    write_pictures,
)

REPOSITORY = Path(__file__).parents[1]


def test_wrong_training_is_refused_in_one_line(
    pictures: Path, teacher: str, tmp_path: Path
) -> None:
    write_pictures(tmp_path / "small", 1)
    cv2.imwrite(str(tmp_path / "small" / "labels" / "00.png"), np.zeros((8, 8), np.uint8))
    distil = {"losses": {"distillation": 1.0}}
    for message, changes in (
        ("no pixel of the training data is tram, van", {"classes": [*CLASSES, "bus", "tram", "van"]}),
        (r"teacher .*: classes must be \('sky', 'car', 'road'\), got \('sky', 'road', 'car'\)",
         {"classes": ["sky", "car", "road"], "teacher": teacher, **distil}),
        ("teacher .*: head must be sigmoid, got softmax", {"head": "sigmoid", "teacher": teacher, **distil}),
        ("unknown model 'nothing'", {"init": "nothing"}),
        ("unknown network 'Net'", {"network": "Net"}),
        ("labels are .8, 8., the picture .64, 96.", {"train_on": [str(tmp_path / "small")]}),
        ("no rendered|has no folder of rendered clips", {"phases": [phase(rendered_share=0.5)]}),
        ("precision f16 needs a GPU", {"precision": "f16"}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message) as caught:
            Trainer(tiny_config(pictures, **changes), tmp_path / "out", quiet)
        assert "\n" not in str(caught.value)
    if not torch.cuda.is_available():
        with pytest.raises(DataError, match="device is cuda: this machine has 0 GPUs"):
            Trainer(tiny_config(pictures, device="cuda"), tmp_path / "out", quiet)
    Trainer(tiny_config(pictures, classes=[*CLASSES, "bus"], allow_empty_classes=True),
            tmp_path / "out", quiet).run()  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "fp32"}, "precision: Input should be 'f32', 'bf16' or 'f16'"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"phases": []}, "phases"),
        ({"ema": 1.5}, "ema: Input should be less than 1"),
        ({"train_on": None}, "train_on"),
        ({"train_on": [{"folder": "x", "include": "("}]}, r"train_on\.0\.include: .*no regular expression"),
        ({"phases": [phase(crop_hw=[60, 64])]}, r"phases\.0\.crop_hw: .*multiples of 8"),
        ({"phases": [phase(scale_range=[2, 1])]}, r"must be \[smallest, largest\], got \[2\.0, 1\.0\]"),
        ({"losses": {"boundary": 1.0}}, "boundary is False, but losses.boundary of phase 0 is 1.0"),
        ({"losses": {"cross_entropy": 0}}, "must be over 0"),
        ({"losses": {"distillation": 1.0}}, "there is no teacher"),
        ({"teacher": "roadnet"}, "losses.distillation is 0 in every phase"),
        ({"sampling": {"rare": ["bus"]}}, r"rare names \['bus'\], which are no classes"),
        ({"augment": {"blur_pixels": [2, 1]}}, r"must be \[low, high\]"),
        ({"classes": ["a", "a"], "sampling": {}}, "classes must differ"),
    ],
)  # fmt: skip
def test_wrong_configuration_is_one_line(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw_config(tmp_path) | change))
    with pytest.raises(DataError, match=message) as caught:
        TrainConfig.read(path)
    assert "\n" not in str(caught.value)
    assert "config.yaml" in str(caught.value)


def test_a_configuration_can_be_changed_by_key(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw_config(tmp_path)))
    changed = TrainConfig.read(
        path,
        [
            "seed=7",
            "phases.0.steps=9",
            "losses.dice=0.5",
            'train_on=[a, {folder: b, include: "="}]',
        ],
    )
    assert (changed.seed, changed.phases[0].steps, changed.losses.dice) == (7, 9, 0.5)
    assert [(str(source.folder), source.include) for source in changed.train_on] == [
        ("a", None),
        ("b", "="),
    ]
    for wrong in ("seed", "phases.5.steps=1", "model.x=1", "train_on=[a", "options=*b*"):
        with pytest.raises(DataError, match="a change must be KEY=VALUE"):
            TrainConfig.read(path, [wrong])


def test_learning_rate_warms_up_and_falls() -> None:
    for schedule in ("cosine", "poly"):
        plan = Phase(
            **phase(steps=100, peak_rate=1.0, final_rate=0.1, warmup_steps=10, schedule=schedule)
        )
        rates = [learning_rate(plan, step) for step in range(100)]
        assert rates[0] == pytest.approx(0.1)
        assert max(rates) == rates[10] == pytest.approx(1.0)
        assert rates[-1] == pytest.approx(0.1, abs=0.03)
        assert rates[10:] == sorted(rates[10:], reverse=True)
    half = learning_rate(Phase(**phase(steps=100, peak_rate=1, final_rate=0, warmup_steps=0,
                                       schedule="poly", poly_power=2)), 50)  # fmt: skip
    assert half == pytest.approx(0.25)


def test_tensorboard_gets_losses_scores_and_pictures(pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny_config(pictures, tensorboard=True, validate_on=[str(pictures)], validate_every=2)
    Trainer(config, tmp_path, quiet).run()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"loss/loss", "loss/cross_entropy", "rate", "val_miou", "val_iou/car"} <= set(
        events.Tags()["scalars"]
    )
    assert [event.step for event in events.Scalars("val_miou")] == [2, 4]
    assert events.Tags()["images"] == ["val/0", "val/1", "val/2"]


def test_without_tensorboard_the_log_stands_alone_and_says_so_once(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    lines: list[str] = []
    Trainer(tiny_config(pictures, tensorboard=True), tmp_path, lines.append).run()
    assert [line for line in lines if "installed" in line] == [
        f"tensorboard is not installed: the log is {tmp_path / 'log.jsonl'} alone"
    ]
    assert not (tmp_path / "tensorboard").exists()


def test_the_log_is_json_even_where_a_class_has_no_score(tmp_path: Path) -> None:
    Log(tmp_path, False, 0).write(3, val_iou={"car": float("nan"), "sky": 0.5})
    line = (tmp_path / "log.jsonl").read_text()
    assert json.loads(line) == {"step": 3, "val_iou": {"car": None, "sky": 0.5}}


def test_a_terminal_gets_a_bar_and_a_file_plain_lines() -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, bar in ((io.StringIO(), False), (Screen(), True)):
        with Terminal(stream) as terminal:
            terminal.tick(10, 40)
            terminal.line("step 10/40 [half]")
            terminal.tick(20, 40)
        assert "step 10/40 [half]" in stream.getvalue()
        assert ("20/40" in stream.getvalue()) == bar


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "models" / "configs").glob("*.yaml")), ids=lambda p: p.stem
)
def test_shipped_configurations_are_valid(path: Path) -> None:
    config = TrainConfig.read(path)
    assert isinstance(config.spec(), Spec)
    with torch.device("meta"):
        assert build(config.spec()).classes == 11
    assert path.stem.startswith(config.model) or config.model == "segformer"


def run_command(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["roadmask", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_command_trains_and_tells_errors_in_one_line(
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(raw_config(pictures)))
    train = ["train", str(path), "--out", str(tmp_path / "out")]
    assert run_command([*train, "--set", "phases.0.steps=2"], monkeypatch) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "model")
    train[-1] = str(tmp_path / "other")
    for wrong, message in (
        (["--set", "surprise=1"], "surprise: Extra inputs are not permitted"),
        (["--set", "classes=[sky, road, car, bus, van]"], "no pixel of the training data is van"),
        (["--resume", str(tmp_path / "none.pt")], "cannot read checkpoint"),
        (["--set", "options={depth: 3}"], "does not take"),
    ):
        assert run_command([*train, *wrong], monkeypatch) == cli.WRONG_USE
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.err.strip().splitlines()[-1].startswith("error: ")
        assert captured.out == ""
