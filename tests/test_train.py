"""The training loop: that it learns, resumes, refuses what is wrong, and runs in several processes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

from models.errors import DataError
from models.evaluation.evaluate import EvalConfig, evaluate
from models.evaluation.metrics import ConfusionMatrix, MaskCounts
from models.labels import UNLABELLED_MASK
from models.registry import build, load, save
from models.spec import Spec
from models.training.config import Phase, Source
from models.training.data import Clip, TrainingData, read_source
from models.training.sampling import Batch
from models.training.train import Trainer, main
from models.training.validation import score_clips
from tests.drives import (
    CLASSES,
    phase,
    quiet,
    raw_config,
    scene,
    tiny_config,
    write_pictures,
    write_rendered,
)

REPOSITORY = Path(__file__).parents[1]


def weights_equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def test_training_learns_and_leaves_a_model_that_runs(pictures: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    phases = [phase(steps=25), phase(steps=15, frames=2, losses={"lovasz": 0.5, "steadiness": 1.0})]
    path.write_text(yaml.safe_dump(raw_config(pictures, phases=phases)))
    folder = main(
        path, tmp_path / "out", [f"validate_on=[{pictures}]", "seed=3", "validate_every=20"]
    )
    assert folder == tmp_path / "out" / "model"
    network, spec = load(str(folder))
    assert spec.classes == tuple(CLASSES)
    training = spec.training
    assert (training["steps"], training["seed"]) == (40, 3)
    assert training["command"].startswith(f"roadmask train {path} --out {tmp_path / 'out'} --set ")
    assert training["data"] == [{"folder": str(pictures), "clips": 4, "frames": 4}]
    assert training["machine"]["cores"] >= 1
    assert {"python", "torch", "roadmask"} <= training["versions"].keys()
    assert training["config"]["phases"][1]["frames"] == 2
    scores = [
        json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()
    ]
    miou = [line["val_miou"] for line in scores if "val_miou" in line]
    assert len(miou) == 2
    assert miou[-1] > 0.7
    losses = [line["loss"] for line in scores if "loss" in line]
    assert losses[-1]["cross_entropy"] < 0.6 * losses[0]["cross_entropy"]
    assert {"lovasz", "auxiliary", "steadiness"} <= losses[-1].keys()
    assert not network.training


def test_the_best_weights_are_kept_beside_the_last(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    config = tiny_config(pictures, validate_on=[str(pictures)], validate_every=2)
    trainer = Trainer(config, tmp_path, lines.append)
    monkeypatch.setattr(
        ConfusionMatrix, "mean_iou", lambda self: {2: 0.9, 4: 0.4}[trainer.step]
    )  # as if it had got worse
    trainer.run()
    _, best = load(str(tmp_path / "best"))
    _, last = load(str(tmp_path / "model"))
    assert (best.training["steps"], best.measured) == (2, {"val_miou_in_training": 0.9})
    assert (last.training["steps"], last.measured) == (4, {"val_miou_in_training": 0.4})
    said = "\n".join(lines)
    assert re.search(
        r"saved .*model: the averaged weights of the last step, 4, val mIoU 40\.00 %", said
    )
    assert re.search(r"saved .*best: those of step 2, best on validation, 90\.00 %", said)
    assert "some of validate_on is trained on" in said


class Stop(Exception):
    pass


def stop_at(trainer: Trainer, step: int) -> None:
    update = trainer._update

    def stopping(*arguments: Any) -> dict[str, float]:
        if trainer.step == step:
            raise Stop
        return update(*arguments)

    trainer._update = stopping  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("burn_in", "how"),
    [(0, {}), (1, {"optimizer": "sgd"}),
     (0, {"optimizer": "adam", "precision": "bf16", "network": "UNet", "options": {"width": 8},
          "ema": 0.5})],
)  # fmt: skip
def test_an_interrupted_training_ends_as_an_undisturbed_one(
    pictures: Path, tmp_path: Path, burn_in: int, how: dict[str, Any]
) -> None:
    phases = [phase(steps=4), phase(steps=4, frames=2, losses={"lovasz": 0.5}, burn_in=burn_in)]
    data = [{"folder": str(pictures), "sequence_step": 1 if burn_in else 0}]
    config = tiny_config(pictures, phases=phases, train_on=data, **how)
    whole = Trainer(config, tmp_path / "whole", quiet)
    whole.run()
    # Stopped in the second phase, a step after the last checkpoint.
    first = Trainer(config, tmp_path / "parts", quiet)
    stop_at(first, 7)
    with pytest.raises(Stop):
        first.run()
    second = Trainer(config, tmp_path / "parts", quiet)
    second.resume()
    assert second.step == 6
    second.run()
    assert weights_equal(whole.average, second.average)
    assert load(str(tmp_path / "parts" / "phase_1"))[1].training["steps"] == 4
    # And from the end of the first phase, in a folder of its own.
    third = Trainer(config, tmp_path / "again", quiet)
    third.resume(tmp_path / "parts" / "phase_1.pt")
    assert third.step == 4
    third.run()
    assert weights_equal(whole.average, third.average)
    assert weights_equal(whole.network, third.network)
    assert not weights_equal(whole.average, first.average)


def test_a_phase_may_train_a_part_alone(pictures: Path, tmp_path: Path) -> None:
    phases = [phase(steps=3), phase(steps=3, frames=2, only="recall|finest"), phase(steps=1)]
    weights: list[dict[str, torch.Tensor]] = []
    trainer = Trainer(
        tiny_config(pictures, phases=phases), tmp_path, quiet,
        lambda done, total: weights.append(
            {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
        ),
    )  # fmt: skip
    trainer.run()

    def changed(before: int, after: int) -> set[str]:
        one, other = weights[before - 1], weights[after - 1]
        return {name.split(".")[0] for name in one if not torch.equal(one[name], other[name])}

    assert changed(3, 6) == {"recall", "finest_gru", "lateral_finest"}
    assert {"stem", "head", "gru", "recall"} <= changed(6, 7)


def test_motion_can_be_trained_alone(tmp_path: Path) -> None:
    """On rendered clips, whose motion is optical flow."""
    write_rendered(tmp_path / "rendered")
    losses = {"cross_entropy": 0.0, "auxiliary": 0.0, "motion": 1.0}
    phases = [phase(steps=4, frames=3, only="motion", losses=losses)]
    config = tiny_config(tmp_path / "rendered", phases=phases, log_every=1)
    trainer = Trainer(config, tmp_path / "out", quiet)
    before = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    trainer.run()
    after = trainer.network.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"motion"}
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    found = [line["loss"] for line in lines if "loss" in line]
    assert all(terms.keys() == {"loss", "motion"} and terms["motion"] > 0 for terms in found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"options": {"motion": False}}, r"losses\.motion of phase 0 is over 0, but RoadNet finds no motion"),
     ({"frames": 1}, r"losses\.motion of phase 0 is over 0: it wants clips")],
)  # fmt: skip
def test_motion_that_cannot_be_trained_is_named(
    pictures: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    raw = raw_config(
        pictures, phases=[phase(frames=changes.get("frames", 2), losses={"motion": 1.0})]
    )
    raw["options"] = {**raw["options"], **changes.get("options", {})}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(DataError, match=message):
        main(path, tmp_path / "out", [])


@pytest.mark.parametrize(
    ("only", "message"),
    [("attention2", r"phases\.0\.only: 'attention2' is found in no parameter's name, such as stem"),
     ("(", r"phases\.0\.only: .*no regular expression")],
)  # fmt: skip
def test_a_part_that_is_not_there_is_named(
    pictures: Path, tmp_path: Path, only: str, message: str
) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(raw_config(pictures, phases=[phase(only=only)])))
    with pytest.raises(DataError, match=message):
        main(path, tmp_path / "out", [])


def test_a_checkpoint_of_another_training_is_refused(pictures: Path, tmp_path: Path) -> None:
    Trainer(tiny_config(pictures), tmp_path, quiet).run()
    with pytest.raises(
        DataError, match=r"last\.pt was trained with seed 0, the configuration says seed 1"
    ):
        Trainer(tiny_config(pictures, seed=1), tmp_path, quiet).resume()
    lines: list[str] = []
    Trainer(tiny_config(pictures, clip_norm=1.0), tmp_path, lines.append).resume()
    assert lines == ["resumed at step 4; changed since then: clip_norm"]
    (tmp_path / "last.pt").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"last\.pt is no checkpoint") as caught:
        Trainer(tiny_config(pictures), tmp_path, quiet).resume()
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"cannot read checkpoint .*none\.pt: No such file"):
        Trainer(tiny_config(pictures), tmp_path, quiet).resume(tmp_path / "none.pt")


@pytest.mark.parametrize("spoilt", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    pictures: Path, tmp_path: Path, spoilt: str
) -> None:
    config = tiny_config(pictures, phases=[phase(steps=8)])
    trainer = Trainer(config, tmp_path, quiet)
    update = trainer._update

    def spoiling(*arguments: Any) -> dict[str, float]:
        if trainer.step == 5:
            if spoilt == "loss":
                trainer.network.head.bias.data[:] = torch.nan  # type: ignore[union-attr,operator]
            else:
                trainer.network.head.bias.register_hook(lambda gradient: gradient * torch.inf)  # type: ignore[union-attr,operator]
        return update(*arguments)

    trainer._update = spoiling  # type: ignore[method-assign]
    with pytest.raises(
        FloatingPointError, match=rf"the {spoilt} is (nan|inf) at step 5: the last good .*last\.pt"
    ):
        trainer.run()
    again = Trainer(config, tmp_path, quiet)
    again.resume()
    assert again.step == 3
    assert all(tensor.isfinite().all() for tensor in again.network.state_dict().values())
    again.run()
    assert again.step == 8


def test_a_first_step_that_is_not_finite_says_that_there_is_no_checkpoint(
    pictures: Path, tmp_path: Path
) -> None:
    trainer = Trainer(tiny_config(pictures), tmp_path, quiet)
    trainer.network.head.bias.data[:] = torch.nan  # type: ignore[union-attr,operator]
    with pytest.raises(
        FloatingPointError, match="loss is nan at step 0: no checkpoint was written"
    ):
        trainer.run()


def test_every_loss_and_the_boundary_head_train_together(
    pictures: Path, teacher: str, tmp_path: Path
) -> None:
    rendered = write_rendered(tmp_path / "rendered")
    losses = dict.fromkeys(("cross_entropy", "hard_pixels", "lovasz", "dice", "auxiliary",
              "boundary", "steadiness", "flow_steadiness", "distillation"), 0.5)  # fmt: skip
    config = tiny_config(
        pictures, train_on=[str(pictures), str(rendered)], boundary=True, teacher=teacher,
        losses=losses, log_every=1, workers=1,
        augment={"rain": 0.5, "glare": 0.5, "jpeg": 0.5},
        phases=[phase(steps=3, frames=3, rendered_share=0.5, schedule="poly")],
    )  # fmt: skip
    trainer = Trainer(config, tmp_path / "out", quiet)
    assert trainer.teacher is not None
    before = {name: tensor.clone() for name, tensor in trainer.teacher.state_dict().items()}
    _, spec = load(str(trainer.run()))
    assert spec.boundary
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert all(set(line["loss"]) == {"loss", *losses} for line in lines)
    assert sum(line["loss"]["flow_steadiness"] for line in lines) > 0
    assert all(torch.equal(before[name], now) for name, now in trainer.teacher.state_dict().items())


def test_a_student_comes_to_say_what_its_teacher_says(
    teacher: str, pictures: Path, tmp_path: Path
) -> None:
    config = tiny_config(
        pictures, teacher=teacher, seed=9, log_every=5, phases=[phase(steps=25)],
        losses={"cross_entropy": 0, "auxiliary": 0, "distillation": 1.0},
    )  # fmt: skip
    Trainer(config, tmp_path, quiet).run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    divergence = [line["loss"]["distillation"] for line in lines]
    assert divergence[-1] < 0.5 * divergence[0]


def test_a_sigmoid_head_learns_masks_that_overlap_from_five_channels(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "train")
    for kind in ("masks", "planes"):
        (folder / kind).mkdir()
    for number in range(4):
        labels = scene(number)[1]
        masks = np.where(
            labels == 2, 0b110, 1 << labels.astype(np.uint16)
        )  # a car stands on the road
        masks[labels == 3] = UNLABELLED_MASK
        cv2.imwrite(str(folder / "masks" / f"{number:02d}.png"), masks.astype(np.uint16))
        hot = (labels == 2)[..., None] * np.array([255.0, 100.0])
        np.save(folder / "planes" / f"{number:02d}.npy", hot)
        (folder / "labels" / f"{number:02d}.png").unlink()
    config = tiny_config(
        folder, head="sigmoid", in_channels=5, validate_on=[str(folder)],
        losses={"dice": 0.5, "lovasz": 0.5}, phases=[phase(steps=40, peak_rate=0.01)],
    )  # fmt: skip
    trainer = Trainer(config, tmp_path / "out", quiet)
    network, spec = load(str(trainer.run()))
    assert (spec.head, spec.in_channels, network.in_channels) == ("sigmoid", 5, 5)
    score = trainer.validate()
    assert isinstance(score, MaskCounts)
    assert score.class_iou().min() > 0.6
    with pytest.raises(DataError, match="softmax head needs labels/"):
        Trainer(tiny_config(folder, in_channels=5), tmp_path / "no", quiet)


def test_weights_of_another_model_can_be_the_start(
    pictures: Path, teacher: str, tmp_path: Path
) -> None:
    lines: list[str] = []
    trainer = Trainer(tiny_config(pictures, init=teacher), tmp_path, lines.append)
    stored = load(teacher)[0]
    assert weights_equal(trainer.network, stored)
    assert weights_equal(trainer.average, stored)
    other = tiny_config(pictures, init=teacher, classes=["sky", "road", "car", "none"],
                        allow_empty_classes=True)  # fmt: skip
    trainer = Trainer(other, tmp_path, lines.append)
    assert torch.equal(
        trainer.network.state_dict()["gru.gates.weight"], stored.state_dict()["gru.gates.weight"]
    )
    assert re.search(r"started from .*: \d+ of \d+ tensors; new: head\.weight", lines[-1])


def test_a_pruned_model_is_trained_on_in_its_shapes(pictures: Path, tmp_path: Path) -> None:
    """Four of the stem's eight inner channels are gone."""
    norms = ("weight", "bias", "running_mean", "running_var")
    shapes = {"stem.0.0.weight": (4, 3, 3, 3), "stem.1.0.weight": (16, 4, 3, 3),
              **{f"stem.0.1.{name}": (4,) for name in norms}}  # fmt: skip
    whole = tiny_config(pictures).spec()
    slim = build(replace(whole, shapes=shapes))
    for parameter in slim.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    save(tmp_path / "slim", slim, replace(whole, shapes=shapes))
    config = tiny_config(pictures, init=str(tmp_path / "slim"))
    trained, spec = load(str(Trainer(config, tmp_path / "out", quiet).run()))
    assert spec.shapes == shapes
    assert trained.state_dict()["stem.0.0.weight"].shape == (4, 3, 3, 3)
    Trainer(config, tmp_path / "out", quiet).resume()
    other = tiny_config(pictures, init=str(tmp_path / "slim"), network="UNet", options={"width": 8})
    with pytest.raises(DataError, match="is pruned: network must be RoadNet, got UNet"):
        Trainer(other, tmp_path / "other", quiet)


def test_validation_carries_the_state_in_a_clip_and_starts_anew_in_the_next() -> None:
    class Counting(torch.nn.Module):
        """Says the class that its state counts."""

        classes, multi_label, mean = 3, False, torch.zeros(1)

        def state_shape(self, size_hw: tuple[int, int]) -> tuple[int, int, int]:
            assert size_hw == (32, 64)  # the model's size for such a frame
            return 1, 1, 1

        def forward(
            self, frames: torch.Tensor, state: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            here = torch.nn.functional.one_hot(state[:, 0].long(), 3).movedim(-1, 1).float()
            return here.expand(1, 3, 16, 32), state + 1

    labels = np.arange(3, dtype=np.uint8)[:, None, None].repeat(10, 1).repeat(20, 2)
    clip = Clip("x", np.zeros((3, 10, 20, 3), np.uint8), labels)
    spec = Spec("x", classes=("a", "b", "c"), palette_rgb=((0, 0, 0),) * 3, short_side=32)
    seen: list[int] = []
    score = score_clips(
        Counting(),
        spec,
        [clip, clip],
        "f32",
        lambda n, c, f, p: seen.append(p[0, 0]),  # type: ignore[arg-type]
    )
    assert score.mean_iou() == 1
    assert seen == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_validation_scores_as_the_evaluation_does(tmp_path: Path, head: str) -> None:
    """On pictures whose size is not the model's."""
    folder = write_pictures(tmp_path / "data")
    if head == "sigmoid":
        (folder / "masks").mkdir()
        for path in (folder / "labels").glob("*.png"):
            labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            masks = np.where(labels == 3, UNLABELLED_MASK, 1 << labels.astype(np.uint16))
            cv2.imwrite(str(folder / "masks" / path.name), masks.astype(np.uint16))
    config = tiny_config(folder, head=head, short_side=40)
    spec = config.spec()
    torch.manual_seed(2)
    save(tmp_path / "model", build(spec), spec)
    network, _ = load(str(tmp_path / "model"))
    source = Source(folder=folder, sequence_step=1)
    clips = read_source(source, len(CLASSES), masks=head == "sigmoid")
    score = score_clips(network, spec, clips, "f32")
    evaluation, _ = evaluate(EvalConfig(str(tmp_path / "model"), folder, sequence_step=1))
    assert 0 < score.mean_iou() == pytest.approx(evaluation.modes["carried"].quality.miou, abs=1e-6)


def test_validating_on_what_is_trained_on_is_told_by_files_and_not_by_names(
    pictures: Path, tmp_path: Path
) -> None:
    """The same drive read as stills and as a clip; and another drive with the same names."""
    other = write_pictures(tmp_path / "other")
    rendered = write_rendered(tmp_path / "rendered")
    elsewhere = write_rendered(tmp_path / "elsewhere")
    for folder, told in (
        (str(pictures), True), ({"folder": str(pictures), "sequence_step": 1}, True),
        (str(other), False), (str(rendered), True), (str(elsewhere), False),
    ):  # fmt: skip
        config = tiny_config(
            pictures, train_on=[str(pictures), str(rendered)], validate_on=[folder]
        )
        assert TrainingData.read(config).seen_twice() == told


# Burn-in


def burnt_in(pictures: Path, folder: Path, **changes: Any) -> Trainer:
    """A training whose odd steps see up to two frames before the two that they learn from."""
    phases = [phase(steps=6, frames=2, burn_in=2)]
    data = [{"folder": str(pictures), "sequence_step": 1}]
    return Trainer(tiny_config(pictures, train_on=data, phases=phases, **changes), folder, quiet)


def test_after_a_burn_in_a_network_says_what_it_says_in_an_unbroken_pass(
    pictures: Path, tmp_path: Path
) -> None:
    trainer = burnt_in(pictures, tmp_path)
    network, (only,) = trainer.network.eval(), trainer.config.phases
    batch = trainer._sampler(only).batch(1, 2, 2, 2)
    frames = batch.frames()
    state = trainer._remembered(network, frames[:, :2])
    assert not state.requires_grad
    later = batch.after(2)
    assert later.motions.shape[1] == 1
    torch.testing.assert_close(later.motions, batch.motions[:, 2:], equal_nan=True)
    with torch.inference_mode():
        whole, last, _ = network.clip(frames)
        rest, ended, _ = network.clip(later.frames(), state)
        without, *_ = network.clip(later.frames())
    torch.testing.assert_close(rest, whole[:, 2:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ended, last, atol=1e-4, rtol=1e-4)
    assert (without - rest).abs().max() > 1e-3  # else there would be nothing to remember


def test_every_other_step_burns_in_for_few_frames_or_many() -> None:
    only = Phase.model_validate(phase(burn_in=40))
    assert {only.burn_in_of(step) for step in range(0, 400, 2)} == {0}
    lengths = [only.burn_in_of(step) for step in range(1, 401, 2)]
    assert (min(lengths), max(lengths)) == (1, 40)
    short = np.mean([length < 6.3 for length in lengths])  # 40 to the power of a half
    assert short == pytest.approx(0.5, abs=0.05)
    assert {Phase.model_validate(phase(burn_in=1)).burn_in_of(step) for step in (1, 3, 5)} == {1}
    assert {Phase.model_validate(phase()).burn_in_of(step) for step in range(8)} == {0}


def test_frames_of_burn_in_are_seen_and_not_learnt_from(pictures: Path, tmp_path: Path) -> None:
    """What is seen before changes the loss; it has no labels there and no gradient."""
    trainer = burnt_in(pictures, tmp_path)
    (only,) = trainer.config.phases
    objective = trainer._objective(only)
    batch = trainer._sampler(only).batch(1, 2, 2, 2)
    other = batch._replace(rgb=batch.rgb.clone(), labels=batch.labels.clone())
    other.rgb[:, :2] = 255 - other.rgb[:, :2]
    relabelled = batch._replace(labels=batch.labels.clone())
    relabelled.labels[:, :2] = 0
    weights = {name: t.clone() for name, t in trainer.network.state_dict().items()}

    def loss(of: Batch) -> float:
        trainer.network.load_state_dict(weights)
        return trainer._update(of, objective, 0.0, 2)["loss"]

    assert loss(other) != loss(batch) == loss(relabelled)
    inside: list[bool] = []
    for module in trainer.network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda m, i, output: inside.append(output.requires_grad))
    trainer._update(batch, objective, 0.0, 2)
    half = len(inside) // 2
    assert not any(inside[:half])  # the frames before
    assert all(inside[half:])


def test_a_teacher_has_seen_what_its_student_has(
    pictures: Path, teacher: str, tmp_path: Path
) -> None:
    trainer = burnt_in(pictures, tmp_path, teacher=teacher, losses={"distillation": 1.0})
    (only,) = trainer.config.phases
    batch = trainer._sampler(only).batch(1, 2, 2, 2)
    assert trainer.teacher is not None
    with torch.inference_mode():
        warm, cold = (
            trainer.teacher.clip(part.frames())[0][:, -2:] for part in (batch, batch.after(2))
        )
    assert (warm - cold).abs().max() > 1e-4
    objective = trainer._objective(only)
    taught: list[torch.Tensor] = []
    terms = type(objective).terms

    def keep(*arguments: Any) -> dict[str, torch.Tensor]:
        taught.append(arguments[-1])
        return terms(objective, *arguments)

    object.__setattr__(objective, "terms", keep)
    for of, burn_in, expected in ((batch.after(2), 0, cold), (batch, 2, warm)):
        trainer._update(of, objective, 0.0, burn_in)
        torch.testing.assert_close(taught[-1], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("how", [{}, {"burn_in": 2, "losses": {"auxiliary": 0.0}}])
def test_two_processes_train_one_network(
    pictures: Path, tmp_path: Path, how: dict[str, Any]
) -> None:
    """By torchrun on the CPU: gradients and weights equal in both, though each sees clips of its own."""
    script = tmp_path / "together.py"
    script.write_text(
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from models.training.config import TrainConfig\n"
        "from models.training.train import Trainer\n"
        "out = Path(sys.argv[2])\n"
        "trainer = Trainer(TrainConfig.read(Path(sys.argv[1])), out, print)\n"
        "seen = []\n"
        "update = trainer._update\n"
        "def keep(batch, *rest):\n"
        "    seen.append(batch.rgb.clone())\n"
        "    return update(batch, *rest)\n"
        "trainer._update = keep\n"
        "trainer.resume()\n"
        "trainer.run()\n"
        "gradients = [p.grad for p in trainer.network.parameters() if p.grad is not None]\n"
        "kept = {'weights': list(trainer.network.parameters()), 'gradients': gradients, 'seen': seen}\n"
        "torch.save(kept, out / f'rank{trainer.place.rank}.pt')\n"
    )
    path = tmp_path / "tiny.yaml"
    phases = [phase(steps=3, frames=2, **how)]
    config = raw_config(pictures, validate_on=[str(pictures)], phases=phases)
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
               str(script), str(path), str(tmp_path / "out")]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("saved") == 2  # by the first process alone: model and best
    one, other = (torch.load(tmp_path / "out" / f"rank{rank}.pt") for rank in (0, 1))
    for kind in ("weights", "gradients"):
        assert all(torch.equal(a, b) for a, b in zip(one[kind], other[kind], strict=True)), kind
    everything = len(one["weights"]) == len(one["gradients"])
    assert everything == (not how)  # the auxiliary head has no gradient without its loss
    assert [len(rgb) for rgb in one["seen"]] == [1, 1, 1]  # of a batch of 2
    assert not any(torch.equal(a, b) for a, b in zip(one["seen"], other["seen"], strict=True))
    assert load(str(tmp_path / "out" / "model"))[1].training["machine"]["processes"] == 2
