"""A model's step, on a device."""

from __future__ import annotations

from models.program import make_step
from models.spec import ModelFiles, SpecError
from models.step import StreamStep
from pipeline.engines.device import Device, reporting
from pipeline.errors import ModelError


def load_step(
    files: ModelFiles, precision: str, device: Device, model_hw: tuple[int, int], streams: int
) -> StreamStep:
    """A model's step with weights in `precision`.

    Raises ModelError for weights that do not fit, EngineError for a device that fails.
    """
    try:
        step = make_step(files, precision)
    except SpecError as error:
        raise ModelError(str(error)) from error
    with reporting(device, model_hw, streams):
        return step.to(device.torch_device)
