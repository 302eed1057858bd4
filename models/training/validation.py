"""The score by which a training is watched: IoU over validation clips, each with its state carried."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from models.evaluation.metrics import ConfusionMatrix, MaskCounts
from models.labels import is_labelled, unpack_masks
from models.networks.recurrent import Network
from models.predictor import Predictor
from models.spec import Spec
from models.training.data import Clip

Watcher = Callable[[int, Clip, int, np.ndarray], None]


def score_clips(
    network: Network, spec: Spec, clips: Sequence[Clip], precision: str,
    watch: Watcher = lambda *seen: None,
) -> ConfusionMatrix | MaskCounts:  # fmt: skip
    """Predictions of a network over clips against their labels, or their masks for a sigmoid head.

    Args:
        watch: called with clip number, clip, frame and prediction: class ids uint8 [H, W], 255 where
            no class is probable enough.
    """
    predictor = Predictor(network, spec, [True], precision=precision)
    score = (MaskCounts if network.multi_label else ConfusionMatrix)(network.classes)
    for number, clip in enumerate(clips):
        predictor.start()
        for frame in range(len(clip.labels)):
            planes = None if clip.planes is None else clip.planes[frame]
            (prediction,) = predictor.predict([clip.rgb[frame]], planes)
            if isinstance(score, MaskCounts):
                masks = clip.bits(frame)
                truth = unpack_masks(masks, network.classes)
                score.add(truth, prediction.masks(), is_labelled(masks))
            else:
                score.add(clip.labels[frame], prediction.labels)
            watch(number, clip, frame, prediction.labels)
    return score
