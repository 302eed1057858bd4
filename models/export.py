"""From weights to OpenVINO: the compiled step for any frame size, in float or in INT8.

The converted model is dynamic in height and width; `fix_size` sets them. An INT8 model is made once, by
NNCF's post-training quantisation, and lies beside its weights as `int8.xml`, `int8.bin` and `int8.json`.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from models.errors import QuantizationError
from models.spec import ModelFiles, SpecError

_CORE_LOCK = Lock()
_FORM = 2  # of INT8 models: to be counted on when `convert` or `quantize` give another
# Names of convolutions that no layer holds: the step's, the network's own and its motion's averages.
FIXED_KERNELS = r"(__module\.network(\.motion)?/)?aten::_convolution.*"


def core() -> Any:
    """OpenVINO's runtime."""
    with _CORE_LOCK:
        return _core()


@cache
def _core() -> Any:
    """The runtime, used once already.

    Its bindings fill tables of number types on first use, and while they do they may let go of the
    interpreter's lock and wait for it again: threads whose first inferences come at once then wait for each
    other for ever (OpenVINO 2026.4). Here nobody else has it yet.
    """
    module = openvino()
    runtime = module.Core()
    values = module.opset13.parameter([1], np.float32)
    smallest = module.Model([module.opset13.relu(values)], [values])
    request = runtime.compile_model(smallest, "CPU").create_infer_request()
    request.infer([np.zeros(1, np.float32)], share_inputs=True, share_outputs=True)
    return runtime


def openvino() -> Any:
    """The package, without its telemetry: converting a network must not tell anybody outside."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # its stub is used
    import openvino

    return openvino


def convert(files: ModelFiles) -> Any:
    """The model's step as an OpenVINO model of any height and width.

    Its inputs are uint8 [1, h * 3 // 2, w, 1], I420 in BT.601 limited range, and the state. Colours are
    converted by OpenVINO, in one pass over the bytes: the step's own way (`models.step.StreamStep`) costs
    it three times as much.

    Raises SpecError if the weights do not fit the specification.
    """
    import torch

    from models.registry import load
    from models.step import PhasedStep

    network, spec = load(str(files.folder))
    height, width = spec.model_hw((360, 480))
    frame = torch.zeros(1, 3, height, width)
    state = network.first_state(frame)
    channels = state.shape[1]
    with torch.inference_mode():
        rows, columns = network(frame, state)[0].shape[-2:]
    times = width // columns
    if (times * rows, times * columns) != (height, width):
        raise SpecError(
            f"logits of {rows}x{columns} for frames of {height}x{width}: OpenVINO's step wants a"
            " network whose logits are smaller by a whole number"
        )
    model = openvino().convert_model(
        PhasedStep(network, times).eval(),
        example_input=(frame, state),
        input=[[1, 3, -1, -1], [1, channels, -1, -1]],
    )
    return _with_colors(model)


def _with_colors(model: Any) -> Any:
    """A model of RGB frames as one of I420 frames."""
    types, colors = openvino().Type, openvino().preprocess.ColorFormat
    preprocess = openvino().preprocess.PrePostProcessor(model)
    frames = preprocess.input(0)
    frames.tensor().set_element_type(types.u8).set_color_format(colors.I420_SINGLE_PLANE)
    frames.preprocess().convert_element_type(types.f32).convert_color(colors.RGB)
    frames.model().set_layout(openvino().Layout("NCHW"))
    return preprocess.build()


def fix_size(model: Any, model_hw: tuple[int, int]) -> tuple[int, int, int]:
    """Fix a converted model's input size, in place; returns the shape [C, h, w] of a stream's state."""
    height, width = model_hw
    planes, channels = [1, height * 3 // 2, width, 1], model.input(1).partial_shape[1].get_length()
    # The next state's shape follows from the frame's; a network without memory just hands it on.
    model.reshape({0: planes, 1: [1, channels, -1, -1]})
    following = model.output(1).partial_shape
    rows, columns = (d.get_length() if d.is_static else 1 for d in list(following)[2:])
    model.reshape({0: planes, 1: [1, channels, rows, columns]})
    return channels, rows, columns


def save_whole(model: Any, path: Path) -> None:
    """Write PATH.xml and PATH.bin so that neither is ever seen half-written. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".making-") as folder:
        part = Path(folder) / "model.xml"
        try:
            openvino().save_model(model, part, compress_to_fp16=False)
        except RuntimeError as error:
            raise OSError(str(error)) from error
        # Weights first: who finds the .xml finds its .bin.
        part.with_suffix(".bin").replace(path.with_suffix(".bin"))
        part.replace(path)


def int8_path(files: ModelFiles) -> Path:
    """Where a model's INT8 form lies, whether there is one or not."""
    return files.folder / "int8.xml"


def check_int8(files: ModelFiles) -> str:
    """The SHA-256 of a model's INT8 form.

    Raises QuantizationError unless a whole one, made of just this network and these weights, is there.
    """
    path = int8_path(files)
    how = f"make it with `roadmask compile {files.folder} --precision int8 --calibrate FOOTAGE`"
    if not (path.is_file() and path.with_suffix(".bin").is_file()):
        raise QuantizationError(
            f"{files.folder} holds no int8.xml: {how}, or use another precision"
        )
    try:
        facts = json.loads(path.with_suffix(".json").read_text("utf-8"))
        made_of, digest = facts["made_of"], facts["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        made_of, digest = None, None
    if made_of != _made_of(files):
        raise QuantizationError(f"{path} was made of other weights or by another version: {how}")
    if digest != _int8_sha256(path):
        raise QuantizationError(f"{path} or its .bin is damaged: {how}")
    return str(digest)


def _made_of(files: ModelFiles) -> str:
    """SHA-256 of the weights, of all in the specification that the network depends on, and of the form."""
    spec = replace(files.spec(), training={}, measured={})
    made_of = f"{_FORM} {files.weights_sha256()} {spec.to_json()}"
    return hashlib.sha256(made_of.encode()).hexdigest()


def _int8_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    for part in (path, path.with_suffix(".bin")):
        digest.update(part.read_bytes())
    return digest.hexdigest()


def ensure_quantizer(files: ModelFiles) -> None:
    """Raises QuantizationError if what `quantize` needs is not installed, OSError if the model's folder
    cannot be written to."""
    for package, extra in (("openvino", "openvino"), ("nncf", "'roadmask[int8]'")):
        if find_spec(package) is None:
            raise QuantizationError(f"{package} is not installed: pip install {extra}")
    with tempfile.TemporaryFile(dir=files.folder):
        pass


def quantize(files: ModelFiles, frames: Iterable[np.ndarray], calibrated_with: str) -> Path:
    """Make a model's INT8 form by post-training quantisation and put it beside its weights.

    Args:
        frames: uint8 [h * 3 // 2, w], I420, of one size: footage like what will be seen. The float model
            runs over them in their order, so that its memory's ranges are known too.
        calibrated_with: what they are, for the record.

    Raises QuantizationError if there are no frames, SpecError as `convert`, and as `ensure_quantizer`.
    """
    ensure_quantizer(files)
    pixels = list(frames)
    if not pixels:
        raise QuantizationError(f"{calibrated_with} holds no frames to calibrate with")
    openvino()
    import nncf

    model = convert(files)
    height, width = pixels[0].shape[0] * 2 // 3, pixels[0].shape[1]
    state = fix_size(model, (height, width))
    # INT8 for kernels in steps of their own a channel, activations by their range; what has no INT8
    # form (upsampling, argmax, the gates' sigmoid and tanh) stays in float, and so does what merely
    # averages: pooling and the fixed kernels that no layer holds. Those are slower in INT8.
    with redirect_stdout(sys.stderr):  # it shows its progress
        quantized = nncf.quantize(
            model, nncf.Dataset(list(_with_states(model, pixels, state))),
            preset=nncf.QuantizationPreset.MIXED, subset_size=len(pixels),
            ignored_scope=nncf.IgnoredScope(
                types=["AvgPool"], patterns=[FIXED_KERNELS],
                validate=False,
            ),
        )  # fmt: skip
    path = int8_path(files)
    record = path.with_suffix(".json")
    record.unlink(missing_ok=True)  # until it is back, what lies there counts as damaged
    save_whole(quantized, path)
    facts = {
        "made_of": _made_of(files),
        "sha256": _int8_sha256(path),
        "calibrated_with": f"{len(pixels)} frames of {calibrated_with}, {height}x{width}",
        "nncf": nncf.__version__,
        "openvino": openvino().__version__,
    }
    part = record.with_suffix(".part")
    part.write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    part.replace(record)
    return path


def _with_states(
    model: Any, frames: list[np.ndarray], state_chw: tuple[int, int, int]
) -> Iterator[list[np.ndarray]]:
    """Each frame with the state that the float model has come to before it."""
    request = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    request = request.create_infer_request()
    state = np.zeros((1, *state_chw), np.float32)
    for frame in frames:
        pixels = frame[None, ..., None]
        yield [pixels, state]
        state = request.infer([pixels, state])[1].copy()
