"""Training batches: an endless, seeded stream of augmented clips, made ahead of their use.

The batch of a step depends on the seed and the step alone, whoever makes it: a run that is resumed at step k
sees what an undisturbed one would have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Full, Queue
from threading import Event, Thread
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from models.errors import DataError
from models.labels import NO_CLASS, UNLABELLED_MASK, holds
from models.motion import Motion
from models.training.augment import (
    Burst,
    Look,
    Window,
    draw_windows,
    warp_ids,
    warp_picture,
)
from models.training.config import Augment, Phase, Sampling
from models.training.data import Clip
from models.training.weather import Weather

AHEAD = 3
FLOW_STEP = 4


class Batch(NamedTuple):
    """What one step trains on. Optional parts are None where nothing wants them.

    Attributes:
        rgb: uint8 [N, T, h, w, 3].
        labels: uint8 [N, T, h, w], `NO_CLASS` where unlabelled.
        motions: float32 [N, T - 1, 2, 3], as `steadiness_loss` wants them.
        masks: int32 [N, T, h, w], bit k = class k holds, or `UNLABELLED_MASK`.
        planes: float32 [N, T, h, w, P], further channels.
        flow: float32 [N, T - 1, h / 4, w / 4, 2], in the middles of the cells, as `flow_steadiness_loss`
            wants it.
    """

    rgb: Tensor
    labels: Tensor
    motions: Tensor
    masks: Tensor | None = None
    planes: Tensor | None = None
    flow: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """A batch of the same parts, each changed."""
        parts = self._asdict().items()
        return self._replace(**{name: change(part) for name, part in parts if part is not None})

    def to(self, device: torch.device) -> Batch:
        """Copies on a device; those of pinned memory are made while the device works."""
        return self.each(lambda part: part.to(device, non_blocking=True))

    def after(self, frames: int) -> Batch:
        """The same clips without their first frames; motion and flow lead from one frame to the next."""
        return self.each(lambda part: part[:, frames:])

    def frames(self) -> Tensor:
        """float [N, T, C, h, w], 0-255: RGB, and further planes after it."""
        frames = self.rgb.movedim(-1, 2).float()
        return frames if self.planes is None else torch.cat([frames, self.planes.movedim(-1, 2)], 2)


@dataclass(frozen=True)
class Needs:
    """Parts of a batch that cost something to make: as the head and the losses want them."""

    masks: bool = False
    flow: bool = False


class ClipSampler:
    """Draws the clips of a phase.

    Args:
        pictures, rendered: where frames come from; `rendered_share` of a batch's clips are rendered ones,
            or all if there are no pictures. Of pictures every frame is as likely, of rendered clips every
            clip.
        seed: one number or several.
        phase, augment: sizes and changes of the clips.
        sampling, rare: how often which rare classes (ids) are looked for.
        needs: which optional parts the batches get.
    """

    def __init__(
        self,
        pictures: Sequence[Clip],
        rendered: Sequence[Clip],
        *,
        seed: Sequence[int],
        phase: Phase,
        augment: Augment,
        sampling: Sampling,
        rare: Sequence[int],
        needs: Needs = Needs(),
    ) -> None:
        if not pictures and not rendered:
            raise DataError("there is nothing to train on: neither pictures nor rendered clips")
        self.pictures = pictures
        self.rendered = rendered if phase.rendered_share or not pictures else ()
        self.seed, self.phase, self.augment = tuple(seed), phase, augment
        self.sampling, self.rare, self.needs = sampling, tuple(rare), needs
        self.rendered_share = phase.rendered_share if pictures else 1.0
        frames = [len(clip.labels) for clip in pictures]
        self.last_frame = np.cumsum(frames)  # of each clip, one past it, in a row of all frames
        self.holders = self._holders() if sampling.rare_frames else {}

    def _holders(self) -> dict[int, list[tuple[int, int]]]:
        """For each rare class the (clip, frame) of all pictures that hold it."""
        found: dict[int, list[tuple[int, int]]] = {index: [] for index in self.rare}
        for number, clip in enumerate(self.pictures):
            for index, where in found.items():
                frames = np.flatnonzero(holds(clip.truth(), index).any((1, 2)))
                where.extend((number, frame) for frame in frames.tolist())
        return {index: where for index, where in found.items() if where}

    def batch(self, step: int, size: int, frames: int, burn_in: int = 0) -> Batch:
        """The batch of one step: `size` clips of `frames` frames, after `burn_in` that are not trained on."""
        rng = np.random.default_rng((*self.seed, step))
        clips = [self._clip(rng, burn_in + frames, burn_in) for _ in range(size)]
        return Batch._make(
            None if part[0] is None else torch.from_numpy(np.stack(part))
            for part in zip(*clips, strict=True)
        )

    def _clip(
        self, rng: np.random.Generator, frames: int, burn_in: int
    ) -> tuple[np.ndarray | None, ...]:
        """One clip, as the fields of Batch without N."""
        clip, start = self._pick(rng, frames, burn_in)
        still = len(clip.labels) == 1
        # Some stills really stand still: CamVid's own frames must not always seem to move.
        moving = still and frames > 1 and rng.random() < self.augment.moving
        windows = draw_windows(
            rng, clip.labels.shape[1:], self.phase.crop_hw, frames, self.phase.scale_range,
            self.augment, self.augment.drift if moving else 0.0, self._focus(rng, clip, start + burn_in),
            burn_in,
        )  # fmt: skip
        look = Look.draw(rng, self.augment)
        times = [_to_and_fro(start + step, len(clip.labels)) for step in range(frames)]
        clean = [
            warp_picture(clip.rgb[at], window, self.phase.crop_hw)
            for at, window in zip(times, windows, strict=True)
        ]
        labels = self._cut([clip.labels[at] for at in times], windows, NO_CLASS)
        masks = None
        if self.needs.masks:
            bits = [clip.bits(at) for at in times]
            masks = self._cut(bits, windows, UNLABELLED_MASK).astype(np.int32)
        return (
            self._changed(rng, clean, look, burn_in), labels, self._motions(windows, still), masks,
            self._planes(clip, times, windows),
            self._flow(clean, labels if masks is None else masks, still),
        )  # fmt: skip

    def _pick(self, rng: np.random.Generator, frames: int, burn_in: int) -> tuple[Clip, int]:
        """A clip and its first frame."""
        if self.rendered and rng.random() < self.rendered_share:
            clip = self.rendered[int(rng.integers(len(self.rendered)))]
            return clip, int(rng.integers(max(1, len(clip.labels) - frames + 1)))
        if self.holders and rng.random() < self.sampling.rare_frames:
            rare = list(self.holders)
            where = self.holders[rare[int(rng.integers(len(rare)))]]
            number, frame = where[int(rng.integers(len(where)))]
            frame -= burn_in  # those before it are not trained on
        else:
            at = int(rng.integers(self.last_frame[-1]))
            number = int(np.searchsorted(self.last_frame, at, side="right"))
            frame = at - int(self.last_frame[number]) + len(self.pictures[number].labels)
        clip = self.pictures[number]
        return clip, max(0, min(frame, len(clip.labels) - frames))

    def _focus(self, rng: np.random.Generator, clip: Clip, step: int) -> tuple[int, int] | None:
        """A pixel of a rare class for the crop to hold, in the first step that is trained on."""
        if not self.rare or rng.random() < 1 - self.sampling.focus:
            return None
        wanted = self.rare[int(rng.integers(len(self.rare)))]
        frame = _to_and_fro(step, len(clip.labels))
        # A coarse look is enough to find a pixel of the class, and 16 times cheaper.
        rows, columns = np.nonzero(holds(clip.truth()[frame, ::4, ::4], wanted))
        if not rows.size:
            return None
        pick = int(rng.integers(rows.size))
        return int(rows[pick]) * 4, int(columns[pick]) * 4

    def _cut(self, frames: list[np.ndarray], windows: list[Window], outside: int) -> np.ndarray:
        crops = [
            warp_ids(ids, window, self.phase.crop_hw, outside)
            for ids, window in zip(frames, windows, strict=True)
        ]
        return np.stack(crops)

    def _changed(
        self, rng: np.random.Generator, clean: list[np.ndarray], look: Look, burn_in: int
    ) -> np.ndarray:
        """Colour, weather and occlusion over clean pictures: uint8 [T, h, w, 3]."""
        weather = Weather.draw(rng, self.augment)
        pictures = [
            look.apply(weather.before_lens(picture, step), rng)
            for step, picture in enumerate(clean)
        ]
        occluded = len(pictures) > 1 and rng.random() < self.augment.occlusion
        if occluded:
            burst = Burst.draw(rng, len(pictures), burn_in)
            pictures = [burst.apply(picture, step) for step, picture in enumerate(pictures)]
        return np.stack([weather.after_sensor(picture) for picture in pictures])

    def _motions(self, windows: list[Window], still: bool) -> np.ndarray:
        """float32 [T - 1, 2, 3]; NaN where things move by themselves."""
        motions = np.full((len(windows) - 1, 2, 3), np.nan, np.float32)
        if still:
            for step in range(1, len(windows)):
                motions[step - 1] = windows[step].motion_from(windows[step - 1], self.phase.crop_hw)
        return motions

    def _planes(self, clip: Clip, times: list[int], windows: list[Window]) -> np.ndarray | None:
        if clip.planes is None:
            return None
        crops = [
            [warp_picture(plane, window, self.phase.crop_hw)
             for plane in np.moveaxis(clip.planes[at], -1, 0)]
            for at, window in zip(times, windows, strict=True)
        ]  # fmt: skip
        return np.moveaxis(np.array(crops), 1, -1)

    def _flow(self, clean: list[np.ndarray], truth: np.ndarray, still: bool) -> np.ndarray | None:
        """float32 [T - 1, h / 4, w / 4, 2]; NaN for stills, whose motion is known."""
        if not self.needs.flow:
            return None
        height, width = self.phase.crop_hw
        shape = (height // FLOW_STEP, FLOW_STEP, width // FLOW_STEP, FLOW_STEP)
        # A cell's middle lies between its two middle pixels each way.
        middle = slice(FLOW_STEP // 2 - 1, FLOW_STEP // 2 + 1)
        flow = np.full((len(clean) - 1, shape[0], shape[2], 2), np.nan, np.float32)
        for step in range(1, len(clean) if not still else 0):
            motion = Motion.between(clean[step - 1], clean[step])
            # Where the labels contradict the flow, the flow is wrong.
            agree = motion.seen & (motion.bring(truth[step - 1]) == truth[step])
            back = np.where(agree[..., None], motion.back_xy * (2 / width, 2 / height), np.nan)
            flow[step - 1] = back.reshape(*shape, 2)[:, middle, :, middle].mean((1, 3))
        return flow


def _to_and_fro(step: int, frames: int) -> int:
    """The frame at a step of a clip that is played to its end, backwards to its beginning, and so on."""
    if frames == 1:
        return 0
    at = step % (2 * (frames - 1))
    return min(at, 2 * (frames - 1) - at)


class _Steps(Dataset[Batch]):
    """Batches by step, for worker processes."""

    def __init__(self, make: Callable[[int], Batch]) -> None:
        self.make = make

    def __getitem__(self, step: int) -> Batch:
        return self.make(step)


def ahead(
    make: Callable[[int], Batch], steps: range, *, workers: int = 0, pin: bool = False
) -> Generator[Batch, None, None]:
    """The batches of `steps` in order, made before they are wanted: by a thread, or by processes.

    Close the iterator to stop it early.

    Args:
        make: gives the batch of a step; runs in the workers, which share its memory.
        workers: number of processes; 0 is one thread of this one.
        pin: put batches into memory that a GPU copies from in the background.
    """
    if not workers:
        return _by_thread(make, steps, pin)
    loader = DataLoader(
        _Steps(make), batch_size=None, sampler=steps, num_workers=workers, prefetch_factor=AHEAD,
        pin_memory=pin, worker_init_fn=_begin_worker, multiprocessing_context="fork",
    )  # fmt: skip
    return (batch for batch in loader)


def _begin_worker(number: int) -> None:
    cv2.setNumThreads(1)


def _by_thread(
    make: Callable[[int], Batch], steps: range, pin: bool
) -> Generator[Batch, None, None]:
    """Make the batches of `steps` in a thread, at most three ahead of their use."""
    batches: Queue[Batch | Exception] = Queue(maxsize=AHEAD)
    stopped = Event()

    def put(item: Batch | Exception) -> None:
        while not stopped.is_set():
            with suppress(Full):
                batches.put(item, timeout=0.2)
                return

    def produce() -> None:
        try:
            for step in steps:
                if stopped.is_set():
                    return
                batch = make(step)
                put(batch.each(Tensor.pin_memory) if pin else batch)
        except Exception as error:  # else the training would wait for it for ever
            put(error)

    thread = Thread(target=produce, name="batches", daemon=True)
    thread.start()
    try:
        for _ in steps:
            item = batches.get()
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
