"""The EMA teacher: a slow copy of the student that gives pseudo-labels and, at the end, the candidate."""

import copy

import torch
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
        """Copy `student` as it is now; `decay` is alpha."""
        self.network = copy.deepcopy(student).requires_grad_(False).train()
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
        torch._foreach_lerp_(list(self.network.parameters()), list(student.parameters()), 1.0 - decay)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return logits [B, K, H, W] of normalised images [B, 3, H, W]."""
        logits: Tensor = self.network(images)
        return logits
