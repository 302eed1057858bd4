"""The loops people use, on the same weights: what this pipeline is measured against.

The same network and recurrent state as the pipeline's, argmax at the network's own size, labels enlarged and
coloured, a video written. None of them is slowed down on purpose: they use all cores, and encode as fast.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from models.spec import Spec, SpecError
from pipeline.errors import ConfigError, ModelError
from pipeline.settings import available_cores

Stamp = tuple[float, int]
WRITER_OPTIONS = {"preset": "ultrafast", "crf": "23"}


def plain_loop(
    source: str,
    model: str,
    out: str,
    frames: int,
    channels_last: bool = False,
    device: str = "cpu",
) -> Iterator[Stamp]:
    """OpenCV reads, eager PyTorch labels a frame, NumPy colours, OpenCV writes.

    Args:
        source: a video file.
        model: name or folder.
        out: where the video goes.
        frames: it is slow: it stops after so many.
        device: "cpu" or "cuda": where the network runs.

    Returns: (seconds since some start, frames done by then) after each frame.
    """
    import torch

    network, spec = _load(model, device)
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
    state: Any = None
    with torch.inference_mode(), closing(_VideoLoop(source, out, spec)) as video:
        for count, small in enumerate(video.frames(frames), 1):
            tensor = torch.from_numpy(small).to(device).permute(2, 0, 1)[None].float()
            if state is None:
                state = network.first_state(tensor)
            logits, state = network(tensor, state)
            video.write(_labels(logits, video.model_hw)[0])
            yield time.monotonic(), count


def onnx_loop(
    source: str, model: str, out: str, frames: int, onnx_file: Path, device: str = "cpu"
) -> Iterator[Stamp]:
    """OpenCV reads, ONNX Runtime labels a frame, NumPy colours, OpenCV writes.

    Args:
        onnx_file: where `export_onnx` has put the model, at this source's size.
        device: "cuda" if ONNX Runtime's CUDA provider shall run it, where that is installed.
        others: as `plain_loop` has them.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cores()
    wanted = ["CUDAExecutionProvider"] if device == "cuda" else []
    wanted = [p for p in wanted if p in onnxruntime.get_available_providers()]
    session = onnxruntime.InferenceSession(
        str(onnx_file), options, providers=[*wanted, "CPUExecutionProvider"]
    )
    cv2.setNumThreads(-1)
    state = np.zeros(session.get_inputs()[1].shape, np.float32)
    with closing(_VideoLoop(source, out, _spec(model))) as video:
        for count, small in enumerate(video.frames(frames), 1):
            pixels = np.ascontiguousarray(small.transpose(2, 0, 1)[None], np.float32)
            labels, state = session.run(None, {"frames": pixels, "state": state})
            video.write(labels[0].astype(np.uint8))
            yield time.monotonic(), count


def export_onnx(model: str, source_hw: tuple[int, int], path: Path) -> None:
    """Write a model's step for RGB frames as ONNX, float32, at the size it takes for a source's.

    The step holds normalisation, upsampling and argmax: a stricter opponent than the bare network.

    Raises ConfigError if the extra `bench` is not installed.
    """
    import torch

    from models.step import FrameStep

    check_bench_extra()
    network, spec = _load(model, "cpu")
    model_hw = spec.model_hw(source_hw)
    frame = torch.zeros(1, 3, *model_hw)
    with _silence():
        torch.onnx.export(
            FrameStep(network).eval(), (frame, network.first_state(frame)), str(path),
            input_names=["frames", "state"], output_names=["labels", "next_state"],
            dynamo=True, verbose=False,
        )  # fmt: skip


def reader_model_writer_loop(
    source: str, model: str, out: str, frames: int, chunk: int = 12, device: str = "cpu"
) -> Iterator[Stamp]:
    """The loop that RobustVideoMatting publishes (Lin et al., WACV 2022): PyAV reads frames into a
    `DataLoader`, the network takes chunks of them with its state, PyAV writes each chunk; one after the
    other.

    Args:
        chunk: frames a chunk; 12 is what its authors recommend.
        others: as `plain_loop` has them.
    """
    import torch
    from torch.utils.data import DataLoader

    network, spec = _load(model, device)
    dataset = _frames_dataset(source, spec, frames)
    palette = torch.tensor(spec.palette_rgb, dtype=torch.uint8)
    state, count = None, 0
    with torch.inference_mode(), _Writer(source, out) as writer:
        for part in DataLoader(dataset, batch_size=chunk):
            logits, state, _ = network.clip(part.to(device)[None].float(), state)
            labels = _labels(logits[0], (part.shape[-2], part.shape[-1]))
            for one in labels:
                full = cv2.resize(one, writer.size_wh, interpolation=cv2.INTER_NEAREST)
                writer.write(palette[torch.from_numpy(full).long()].numpy())
            count += len(part)
            yield time.monotonic(), count


def check_bench_extra() -> None:
    """Raises ConfigError if what the comparison with ONNX Runtime needs is not installed."""
    from importlib.util import find_spec

    missing = [n for n in ("onnx", "onnxscript", "onnxruntime") if find_spec(n) is None]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} must be installed to measure against ONNX Runtime:"
            " pip install 'roadmask[bench]'"
        )


def _spec(model: str) -> Spec:
    from models.spec import find_model

    try:
        return find_model(model).spec()
    except SpecError as error:
        raise ModelError(str(error)) from error


def _load(model: str, device: str) -> tuple[Any, Spec]:
    """The network in PyTorch, with all cores to itself if it runs on them."""
    import torch

    from models import load

    torch.set_num_threads(available_cores())
    cv2.setNumThreads(-1)
    try:
        network, spec = load(model)
    except SpecError as error:
        raise ModelError(str(error)) from error
    return network.to(device), spec


def _labels(logits: Any, model_hw: tuple[int, int]) -> np.ndarray:
    """Logits [T, K, h', w'] -> uint8 [T, h, w]."""
    from torch.nn import functional

    logits = functional.interpolate(logits, model_hw, mode="bilinear", align_corners=False)
    labels: np.ndarray = logits.argmax(1).cpu().numpy().astype(np.uint8)
    return labels


class _VideoLoop:
    """OpenCV's ends of a loop: frames of the network's size in, class colours out."""

    def __init__(self, source: str, out: str, spec: Spec) -> None:
        self._capture = cv2.VideoCapture(source)
        width, height = (
            int(self._capture.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
        )
        if not self._capture.isOpened() or not width:
            raise ConfigError(f"{source} cannot be read by OpenCV: give a video file")
        self.size_wh, self.model_hw = (width, height), spec.model_hw((height, width))
        self._palette = np.array(spec.palette_rgb, np.uint8)[:, ::-1]
        self._writer = cv2.VideoWriter(
            out, cv2.VideoWriter.fourcc(*"mp4v"), self._capture.get(cv2.CAP_PROP_FPS), self.size_wh
        )

    def frames(self, most: int) -> Iterator[np.ndarray]:
        """RGB at the network's size, uint8 [h, w, 3]."""
        for _ in range(most):
            there, bgr = self._capture.read()
            if not there:
                return
            yield cv2.cvtColor(cv2.resize(bgr, self.model_hw[::-1]), cv2.COLOR_BGR2RGB)

    def write(self, labels: np.ndarray) -> None:
        full = cv2.resize(labels, self.size_wh, interpolation=cv2.INTER_NEAREST)
        self._writer.write(self._palette[full])

    def close(self) -> None:
        self._writer.release()
        self._capture.release()


def _frames_dataset(source: str, spec: Spec, most: int) -> Any:
    """Frames of a video at the network's size, uint8 [3, h, w], as a torch data set."""
    import av
    import torch

    class Frames(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[torch.Tensor]:
            with av.open(source) as container:
                for number, frame in enumerate(container.decode(video=0)):
                    if number == most:
                        return
                    height, width = spec.model_hw((frame.height, frame.width))
                    small = frame.reformat(width, height, "rgb24").to_ndarray()
                    yield torch.from_numpy(small).permute(2, 0, 1)

    return Frames()


class _Writer:
    """PyAV's end of a loop: RGB frames to an H.264 file of the source's size and rate."""

    def __init__(self, source: str, out: str) -> None:
        import av

        with av.open(source) as container:
            stream = container.streams.video[0]
            self.size_wh, rate = (stream.width, stream.height), stream.average_rate
        self._container = av.open(out, "w")
        self._stream = self._container.add_stream("libx264", rate or 30, options=WRITER_OPTIONS)
        self._stream.width, self._stream.height = self.size_wh
        self._stream.pix_fmt = "yuv420p"

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self._container.mux(self._stream.encode())
        self._container.close()

    def write(self, rgb: np.ndarray) -> None:
        import av

        frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
        self._container.mux(self._stream.encode(frame))


@contextmanager
def _silence() -> Iterator[None]:
    """Keep torch's exporter from telling of its own inner workings."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
