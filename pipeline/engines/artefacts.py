"""Engines that were built beforehand, in the cache folder, each beside a record of all that it depends on.

Its name says which model, size and precision it is for; whether it still fits this machine, its packages and
this code is told by the record, so that a stale or foreign one can be named for what it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import models
from models.quantization import FORMATS
from models.spec import ModelFiles
from pipeline.errors import EngineError, OutputError
from pipeline.settings import cache_folder


@dataclass(frozen=True)
class Artefact:
    """One built engine, there or not.

    Attributes:
        engine: "tensorrt" or "cuda".
        files: the model.
        model_hw: size of its frames.
        precision: what it multiplies in.
        facts: all that it depends on, as words; those of an engine that fits are the same.
    """

    engine: str
    files: ModelFiles
    model_hw: tuple[int, int]
    precision: str
    facts: dict[str, str]

    @property
    def path(self) -> Path:
        height, width = self.model_hw
        weights = self.files.weights_sha256()[:16]
        name = f"{self.engine}-{weights}-{height}x{width}-{self.precision}"
        return cache_folder() / (name + (".pt2" if self.engine == "cuda" else ".engine"))

    @property
    def command(self) -> str:
        """What makes it."""
        height, width = self.model_hw
        model = self.files.folder
        calibrate = " --calibrate FOOTAGE" if self.precision in FORMATS else ""
        return (
            f"roadmask compile {model} --engine {self.engine} --precision {self.precision}"
            f" --size {height}x{width}{calibrate}"
        )

    def save(self, data: bytes, more: dict[str, Any]) -> None:
        """Keep an engine and its record. Neither is ever seen half-written. Raises OutputError."""
        record = {"facts": self.facts, "sha256": hashlib.sha256(data).hexdigest(), **more}
        path = self.path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _record_path(path).unlink(missing_ok=True)  # without one, an engine is as good as none
            for target, content in (
                (path, data), (_record_path(path), (json.dumps(record, indent=2) + "\n").encode()),
            ):  # fmt: skip
                part = target.with_name(f".{target.name}.part")
                part.write_bytes(content)
                part.replace(target)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error

    def forget(self) -> None:
        """Let it count as not there. Raises OutputError."""
        try:
            _record_path(self.path).unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot remove {self.path}: {error.strerror or error}") from error

    def read(self) -> tuple[bytes, dict[str, Any]]:
        """The engine and its record.

        Raises EngineError, saying why and what to run, unless a whole one that fits is there.
        """
        height, width = self.model_hw
        what = f"{self.engine} engine of {self.files.folder.name} at {height}x{width}"
        try:
            data = self.path.read_bytes()
            record = json.loads(_record_path(self.path).read_bytes())
            facts, digest = dict(record["facts"]), record["sha256"]
        except FileNotFoundError:
            raise EngineError(f"there is no {what}: run `{self.command}`") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EngineError(f"the {what} cannot be read: run `{self.command}`") from error
        for name in sorted(self.facts.keys() | facts.keys()):
            then, now = facts.get(name, "none"), self.facts.get(name, "none")
            if then != now:
                raise EngineError(
                    f"the {what} was built for another {name} ({then}, here {now}):"
                    f" run `{self.command}`"
                )
        if hashlib.sha256(data).hexdigest() != digest:
            raise EngineError(f"the {what} is damaged: run `{self.command}`")
        return data, record


def built_sizes(engine: str, files: ModelFiles, precision: str) -> list[str]:
    """Sizes HxW that there is an engine of a model for, whether it still fits or not."""
    start = f"{engine}-{files.weights_sha256()[:16]}-"
    paths = cache_folder().glob(f"{start}*-{precision}.json")
    return sorted(path.stem[len(start) : -len(precision) - 1] for path in paths)


def calibrations(files: ModelFiles, precision: str) -> str | None:
    """SHA-256 of what a model's engines of a precision were calibrated with, all sizes together.

    None for a precision that is not calibrated, and where there is no engine.
    """
    if precision not in FORMATS:
        return None
    found = []
    for path in cache_folder().glob(f"tensorrt-{files.weights_sha256()[:16]}-*-{precision}.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            found.append(f"{path.name} {json.loads(path.read_bytes())['calibration']}")
    return hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest() if found else None


def calibration_of(footage: Sequence[np.ndarray]) -> str:
    """SHA-256 of frames to calibrate with."""
    digest = hashlib.sha256()
    for frame in footage:
        digest.update(frame.tobytes())
    return digest.hexdigest()


def model_facts(files: ModelFiles, precision: str, model_hw: tuple[int, int]) -> dict[str, str]:
    """What every engine of a model depends on, wherever it runs. The state's shape follows from this."""
    spec = replace(files.spec(), training={}, measured={})
    return {
        "weights": files.weights_sha256(),
        "specification": hashlib.sha256(spec.to_json().encode()).hexdigest(),
        "code of the networks": _code_sha256(),
        "precision": precision,
        "input": f"uint8 [streams, {model_hw[0] * 3 // 2}, {model_hw[1]}]",
    }


def _code_sha256() -> str:
    folder = Path(models.__path__[0])
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.py"), *folder.glob("networks/*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _record_path(path: Path) -> Path:
    return path.with_suffix(".json")
