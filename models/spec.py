"""`spec.json`: what stands beside the weights and rebuilds everything that is needed to use them.

Reading a specification imports neither torch nor NumPy, so that a command can check a model's name, classes
and input size before it pays for either.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
DEFAULT_MODEL = "roadnet"
HEADS = ("softmax", "sigmoid")

CAMVID_CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree",
    "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
# The colours of the data set's own label files (Brostow et al., 2009), in the SegNet order.
CAMVID_RGB = (
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (0, 0, 192), (128, 128, 0),
    (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
)  # fmt: skip


class SpecError(ValueError):
    """A model that does not exist, or a specification that contradicts itself or its weights."""


@dataclass(frozen=True)
class Spec:
    """A model, without its weights.

    Attributes:
        name: the model's name.
        network: name of the network class in `models.registry`.
        classes: class names, in the order of their ids.
        palette_rgb: a colour a class, 0-255.
        short_side: rows (or columns, if upright) the network was trained for, pixels.
        longest_aspect: a frame is never made longer than this many times its short side.
        stride: the network's input is a multiple of this many pixels each way.
        head: "softmax", one class a pixel; or "sigmoid", a mask a class, of which several may hold.
        in_channels: planes of a frame: red, green, blue and then those of other sensors.
        boundary: the network also learns where classes meet, as a second task in training.
        recurrent: the network has a memory; without one its state is a single number that it ignores.
        options: further arguments of the network's constructor.
        shapes: of the tensors that pruning has made smaller than the constructor makes them.
        training: command, seed, data, time and machine of the shipped weights.
        measured: accuracy and cost as measured, with the command that measured them.
    """

    name: str
    network: str = "RoadNet"
    classes: tuple[str, ...] = CAMVID_CLASSES
    palette_rgb: tuple[tuple[int, int, int], ...] = CAMVID_RGB
    short_side: int = 360
    longest_aspect: float = 2.4
    stride: int = 8
    head: str = "softmax"
    in_channels: int = 3
    boundary: bool = False
    recurrent: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.palette_rgb) != len(self.classes):
            raise SpecError(
                f"palette_rgb must have {len(self.classes)} colours, one a class,"
                f" got {len(self.palette_rgb)}"
            )
        if not 1 <= len(self.classes) <= 254:
            raise SpecError(f"a model has 1 to 254 classes, got {len(self.classes)}")
        if any(not 0 <= value <= 255 for colour in self.palette_rgb for value in colour):
            raise SpecError(f"colours must be 0-255, got {self.palette_rgb}")
        if self.stride < 8 or self.stride % 8:
            raise SpecError(f"stride must be a multiple of 8 pixels, got {self.stride}")
        if self.short_side < self.stride or self.short_side % self.stride:
            raise SpecError(
                f"short_side must be a multiple of stride {self.stride}, got {self.short_side}"
            )
        if self.longest_aspect < 1:
            raise SpecError(f"longest_aspect must be at least 1, got {self.longest_aspect}")
        if self.head not in HEADS:
            raise SpecError(f"head must be one of {', '.join(HEADS)}, got {self.head!r}")
        if type(self.in_channels) is not int or self.in_channels < 3:
            raise SpecError(
                f"in_channels must be a whole number of at least 3, got {self.in_channels!r}"
            )
        for name in ("boundary", "recurrent"):
            if not isinstance(getattr(self, name), bool):
                raise SpecError(f"{name} must be true or false, got {getattr(self, name)!r}")

    def model_hw(self, source_hw: tuple[int, int]) -> tuple[int, int]:
        """The network's input size for a frame of `source_hw`: short side fixed, aspect kept.

        A very long frame is squeezed to `longest_aspect` so that no source can exhaust the memory.
        """
        height, width = source_hw
        aspect = min(max(height, width) / min(height, width), self.longest_aspect)
        long_side = round(self.short_side * aspect / self.stride) * self.stride
        return (self.short_side, long_side) if height <= width else (long_side, self.short_side)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> Spec:
        """Raises SpecError, naming `where`, if `text` is not a specification."""
        try:
            raw = json.loads(text)
            raw["classes"] = tuple(raw["classes"])
            raw["palette_rgb"] = tuple((int(r), int(g), int(b)) for r, g, b in raw["palette_rgb"])
            shapes = raw.get("shapes", {})
            raw["shapes"] = {name: tuple(map(int, shape)) for name, shape in shapes.items()}
            return cls(**raw)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise SpecError(f"{where} is not a model specification: {error!r}") from error


@dataclass(frozen=True)
class ModelFiles:
    """Where a model lies: a folder with `spec.json` and `weights.safetensors`."""

    folder: Path

    @property
    def spec_path(self) -> Path:
        return self.folder / "spec.json"

    @property
    def weights_path(self) -> Path:
        return self.folder / "weights.safetensors"

    def spec(self) -> Spec:
        """Raises SpecError for a file that is no specification, OSError for one not to be read."""
        try:
            text = self.spec_path.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise SpecError(f"{self.spec_path} is not a model specification: {error}") from error
        return Spec.from_json(text, str(self.spec_path))

    def weights_sha256(self) -> str:
        return hashlib.sha256(self.weights_path.read_bytes()).hexdigest()


def shipped_models() -> list[str]:
    """Names of the models that come with the package, the default first."""
    names = sorted(path.parent.name for path in WEIGHTS_FOLDER.glob("*/spec.json"))
    return sorted(names, key=lambda name: name != DEFAULT_MODEL)


def find_model(name_or_path: str) -> ModelFiles:
    """The files of a shipped model by name, or of any model by its folder (or a file in it).

    Raises SpecError if there is no such model; the message lists the shipped ones.
    """
    if name_or_path in shipped_models():
        files = ModelFiles(WEIGHTS_FOLDER / name_or_path)
    else:
        path = Path(name_or_path)
        files = ModelFiles(path.parent if path.is_file() else path)
        if not files.folder.is_dir():
            known = ", ".join(shipped_models()) or "none"
            raise SpecError(
                f"unknown model {name_or_path!r}: give a shipped model ({known}) or a folder with"
                " spec.json and weights.safetensors"
            )
    for path in (files.spec_path, files.weights_path):
        if not path.is_file():
            raise SpecError(f"model {name_or_path!r} has no {path.name} in {files.folder}")
    return files
