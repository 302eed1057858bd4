"""A memory of what was said of the frame before, moved along with the picture.

A street glides through the picture by up to twenty pixels a frame and more. A memory that stays where it is
smears every edge, or learns to keep little; one that moves along can be trusted. Motion is found by comparing
the frames themselves, and what is brought along is mixed with what is seen now by a learnt gate (as in
GRFP, Nilsson and Sminchisescu, "Semantic Video Segmentation by Gated Recurrent Flow Propagation", CVPR 2018,
where a network for optical flow of its own finds the motion).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks.blocks import enlarge, resize_like

PICTURE_STRIDE = 4  # of the small picture by which frames are compared, and of what is carried
MOTION_STRIDE = 16
PATCH = 6  # height and width, in cells of the small picture, of what a key describes
REACH = 3  # cells of 8 pixels that are searched to each side: up to 24 pixels from frame to frame
LARGEST = 32.0  # logit that is carried: a certainty of 1e-14 is certainty
FLAT = 0.5  # norm of a normalised picture's patch under which it says little


class FrameMotion(nn.Module):
    """Where each cell of a frame was in the frame before.

    Patches of the two pictures are compared by normalised cross-correlation within `REACH` cells each way: a
    local cost volume, as in PWC-Net (Sun et al., CVPR 2018). Most of a road has no texture, so that only
    some matches are trusted: their mean around each cell, weighted by how well they match, is where an
    hourglass of convolutions over the volume starts from. Its output starts at zero.
    """

    offsets: Tensor

    def __init__(self, keys: int = 16, width: int = 48) -> None:
        super().__init__()
        self.describe = nn.Conv2d(1, keys, PATCH, stride=2, padding=PATCH // 2 - 1, bias=False)
        nn.init.orthogonal_(self.describe.weight.view(keys, -1))
        self.sharpness = nn.Parameter(torch.tensor(8.0))
        self.trust = nn.Parameter(torch.tensor([10.0, 0.7]))  # its slope, and a match half trusted
        steps = torch.arange(-REACH, REACH + 1.0)
        offsets = torch.stack(torch.meshgrid(steps, steps, indexing="xy"))
        self.register_buffer("offsets", offsets.view(2, -1, 1, 1), persistent=False)
        coarse = width * 4 // 3
        self.matching = _conv_relu(offsets[0].numel(), width, stride=2)
        self.starting = _conv_relu(width + 3, width)
        self.around = nn.Sequential(
            _conv_relu(width, coarse, stride=2),
            *[_conv_relu(coarse, coarse, dilation=dilation) for dilation in (1, 2, 4)],
        )
        self.correcting = _conv_relu(width + coarse, width)
        self.correction = nn.Conv2d(width, 2, 3, padding=1)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)  # type: ignore[arg-type]

    @staticmethod
    def picture(frames: Tensor, deviation: Tensor) -> Tensor:
        """What frames are compared by: grey at a quarter of the size, less its mean around each cell.

        Args:
            frames: [M, C, H, W], red, green and blue first.
            deviation: [1, C, 1, 1], of their values.

        Returns [M, 1, H / 4, W / 4].
        """
        # Of the frames as they come, and in one convolution: engines are fast at that.
        mean = 1 / (3 * PICTURE_STRIDE**2 * deviation[:, :3])
        mean = mean.expand(1, 3, PICTURE_STRIDE, PICTURE_STRIDE).to(frames.dtype)
        grey = functional.conv2d(frames[:, :3], mean, stride=PICTURE_STRIDE)
        return grey - functional.avg_pool2d(grey, 9, 1, 4, count_include_pad=False)

    def forward(self, picture: Tensor, before: Tensor) -> Tensor:
        """picture, before: [M, 1, h, w], of frames and of the ones before them, zeros if there were none.

        Returns [M, 2, h / 4, w / 4], rounded up, x and y: from each cell of 16 pixels to its place in the
        frame before, in such cells.
        """
        matches = self._matches(self._keys(picture), self._keys(before))
        best = functional.conv2d((matches * self.sharpness).softmax(1), self.offsets.to(matches))
        clear = matches.amax(1, keepdim=True) - matches.mean(1, keepdim=True)
        trust = torch.sigmoid(self.trust[0] * (clear - self.trust[1]))
        mean = functional.avg_pool2d(
            torch.cat([best * trust, trust], 1), 9, 2, 4, count_include_pad=False
        )
        trusted = mean[:, :2] / (mean[:, 2:] + 0.01)
        fine = self.starting(torch.cat([self.matching(matches), trusted, mean[:, 2:]], 1))
        wide = resize_like(self.around(fine), fine)
        correction = self.correction(self.correcting(torch.cat([fine, wide], 1)))
        return (trusted + correction) / 2  # cells of 8 pixels to cells of 16

    def _keys(self, picture: Tensor) -> Tensor:
        """[M, 1, h, w] -> [M, keys, h / 2, w / 2], of length 1 where there is contrast, else shorter."""
        keys = self.describe(picture)
        return keys * (keys.square().sum(1, keepdim=True) + FLAT**2).rsqrt()

    @staticmethod
    def _matches(keys: Tensor, before: Tensor) -> Tensor:
        """[M, keys, h, w] each -> [M, offsets, h, w], -1 to 1."""
        rows, columns = keys.shape[-2:]
        width = 2 * REACH + 1
        searched = functional.pad(before, [REACH] * 4)
        rows_on = torch.stack([searched[:, :, y : y + rows] for y in range(width)], 1)
        # Each row's keys with all of a row at once: one product of matrices, of which a band is wanted.
        rows_of_keys = keys.movedim(1, -1)[:, None]  # [M, 1, h, w, keys]
        products = rows_of_keys @ rows_on.transpose(2, 3)  # [M, width, h, w, w + 2 REACH]
        # In rows of one cell more, the band is the first columns.
        skewed = functional.pad(products.flatten(-2), [0, columns]).unflatten(-1, (columns, -1))
        return skewed[..., :width].movedim(-1, 2).flatten(1, 2)


class CarriedLogits(nn.Module):
    """What was said of each place, brought along the motion and mixed with what is seen there now.

    Args:
        looks: channels of features that help to decide, 0 for none.
        classes: of the logits.
    """

    def __init__(self, looks: int, classes: int) -> None:
        super().__init__()
        self.looks, self.channels = looks, classes + 1  # and whether anything was said
        self.gate = nn.Sequential(
            _conv_relu(looks + 2 * classes, 16), nn.Conv2d(16, 1, 3, padding=1)
        )
        nn.init.constant_(self.gate[-1].bias, -3.0)  # type: ignore[arg-type]

    def forward(
        self, looks: Tensor, logits: Tensor, said: Tensor, motion: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A clip.

        Args:
            looks: [N, T, looks, h, w].
            logits: [N, T, classes, h, w], of each frame by itself.
            said: [N, classes + 1, h, w], of the frame before the first; zeros if there was none.
            motion: [N, T, 2, h', w'], as `FrameMotion` gives it.

        Returns what is to be added to the logits, [N, T, classes, h, w], and what is said of the last frame.
        """
        changes = []
        for look, now, path in zip(
            looks.unbind(1), logits.unbind(1), motion.unbind(1), strict=True
        ):
            before = moved(said, path)
            # Nothing where nothing was said, or where the picture did not reach.
            change = before[:, :-1] - before[:, -1:] * now
            shown = [look, now, change] if self.looks else [now, change]
            change = torch.sigmoid(self.gate(torch.cat(shown, 1))) * change
            said = (now + change).clamp(-LARGEST, LARGEST)
            said = torch.cat([said, torch.ones_like(said[:, :1])], 1)
            changes.append(change)
        return torch.stack(changes, 1), said


def moved(maps: Tensor, motion: Tensor) -> Tensor:
    """Maps [N, C, h, w] of the frame before as they would lie in this one; zero where it ended.

    Args:
        motion: [N, 2, h', w'], as `FrameMotion` gives it.
    """
    rows, columns = maps.shape[-2:]
    times = MOTION_STRIDE // PICTURE_STRIDE
    # In full precision: a half one has too few digits for a place in a picture. OpenVINO takes its bf16 all
    # the same, and is off by up to a quarter of a cell at the sides.
    flow = times * enlarge(motion.float(), times)[..., :rows, :columns]
    x = torch.arange(columns, device=maps.device) + flow[:, 0]
    y = torch.arange(rows, device=maps.device)[:, None] + flow[:, 1]
    places = torch.stack([(2 * x + 1) / columns - 1, (2 * y + 1) / rows - 1], -1)
    return functional.grid_sample(maps.float(), places, align_corners=False).to(maps.dtype)


def _conv_relu(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Without a norm: these run frame by frame, or over pairs of frames that may be all alike."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation), nn.ReLU(inplace=True)
    )
