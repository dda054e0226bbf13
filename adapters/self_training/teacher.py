"""The EMA teacher: a slow copy of the student that gives pseudo-labels and, at the end, the candidate."""

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.networks.batch_norm import without_noise
from adapters.networks.network import SegmentationNetwork


class Teacher:
    """Exponential moving average of a student's parameters.

    The teacher stays in train mode with dropout and drop path off, as in the DAFormer code base. BatchNorm normalises
    with the statistics of the target batch itself. Its running statistics are not used: they would be those of the
    source at first, and the student would learn the wrong pseudo-labels that result. `candidate` gives it statistics of
    its own. Scores of the alternatives: docs/explanation/decisions/0004-teacher-and-candidate.md.
    """

    def __init__(self, student: SegmentationNetwork, decay: float) -> None:
        """Copy `student` as it is now, but for its base, which both share; `decay` is alpha."""
        self.network = copy.deepcopy(student, shared_parameters(student)).requires_grad_(False).train()
        self.decay = decay
        without_noise(self.network)

    def update(self, student: SegmentationNetwork, step: int) -> None:
        """Set teacher <- a * teacher + (1 - a) * student, a = min(1 - 1/(t + 1), decay), at step t.

        Nothing changes at step 0.
        """
        if step > 0:
            self.follow(student, min(1.0 - 1.0 / (step + 1), self.decay))

    @torch.no_grad()
    def follow(self, student: SegmentationNetwork, decay: float) -> None:
        """Set teacher <- `decay` * teacher + (1 - `decay`) * student."""
        pairs = zip(self.network.parameters(), student.parameters(), strict=True)
        apart = [(mine, theirs) for mine, theirs in pairs if mine is not theirs]
        torch._foreach_lerp_([mine for mine, _ in apart], [theirs for _, theirs in apart], 1.0 - decay)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return logits [B, K, H, W] of normalised images [B, 3, H, W]."""
        logits: Tensor = self.network(images)
        return logits


def shared_parameters(network: SegmentationNetwork) -> dict[int, Tensor]:
    """Return the frozen parameters of the base of `network` as `deepcopy` leaves them alone: each its own copy."""
    names = network.base.names if network.base is not None else frozenset()
    frozen = (value for name, value in network.named_parameters() if name in names and not value.requires_grad)
    return {id(value): value for value in frozen}


SMALLEST_SIDE = 32
"""Smallest side of a scaled image (pixels): below it the deepest map of an encoder of stride 32 has no cell."""


@torch.no_grad()
def average_over(network: Callable[[Tensor], Tensor], images: Tensor, scales: Sequence[float], plain: Tensor) -> Tensor:
    """Return the mean softmax of `network` over `images` [B, 3, H, W] at every scale, plain and mirrored: [B, K, H, W].

    `plain` [B, K, H, W] is the softmax at scale 1, which is not computed again.
    """
    total = torch.zeros_like(plain)
    for scale in scales:
        for flipped in (False, True):
            total += plain if scale == 1.0 and not flipped else _probabilities(network, images, scale, flipped)
    return total / (2 * len(scales))


@torch.no_grad()
def mean_confidence(logits: Tensor, valid: Tensor) -> Tensor:
    """Return the mean largest probability over each image's `valid` pixels [B, H, W]: [B]; 0 without any."""
    confidence = logits.float().softmax(dim=1).amax(dim=1)
    return (confidence * valid).sum(dim=(1, 2)) / valid.sum(dim=(1, 2)).clamp(min=1)


def _probabilities(network: Callable[[Tensor], Tensor], images: Tensor, scale: float, flipped: bool) -> Tensor:
    """Return the softmax [B, K, H, W] of `images` at `scale`, mapped back to where their pixels are."""
    height, width = images.shape[-2:]
    size = [max(min(side, SMALLEST_SIDE), round(scale * side)) for side in (height, width)]
    seen = images if scale == 1.0 else F.interpolate(images, size, mode="bilinear", align_corners=False)
    logits = network(seen.flip(-1) if flipped else seen)
    probabilities = logits.float().softmax(dim=1)
    if scale != 1.0:
        probabilities = F.interpolate(probabilities, (height, width), mode="bilinear", align_corners=False)
    return probabilities.flip(-1) if flipped else probabilities
