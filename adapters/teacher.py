"""The EMA teacher: a slow copy of the student, whose only use is to give pseudo-labels (papers.md 5)."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from adapters.network import SegmentationNetwork


class Teacher:
    """Exponential moving average of a student's parameters.

    The teacher stays in train mode with dropout and drop path off, as in the DAFormer code base: BatchNorm normalises
    with the statistics of the target batch itself, and its running statistics are neither copied from the student nor
    used. Measured on CamVid day to dusk (deeplabv2 on resnet_tiny, 100 steps, docs/decisions/0005): mIoU on dusk after
    a round 15.9 -> 29.5 this way, 24.6 with the student's statistics copied, 27.6 with their moving average.
    """

    def __init__(self, student: SegmentationNetwork, decay: float) -> None:
        """Copies `student` as it is now; `decay` is alpha."""
        self.network = copy.deepcopy(student).requires_grad_(False).train()
        self.decay = decay
        for layer in _noisy_layers(self.network):
            layer.eval()

    @torch.no_grad()
    def update(self, student: SegmentationNetwork, step: int) -> None:
        """teacher <- a * teacher + (1 - a) * student, a = min(1 - 1/(t + 1), decay) at step t; nothing at step 0."""
        if step > 0:
            decay = min(1.0 - 1.0 / (step + 1), self.decay)
            torch._foreach_lerp_(list(self.network.parameters()), list(student.parameters()), 1.0 - decay)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits [B, K, H, W] of normalised images [B, 3, H, W]."""
        logits: Tensor = self.network(images)
        return logits


def _noisy_layers(network: nn.Module) -> Iterator[nn.Module]:
    """Dropout and drop path, by class name: each library brings its own drop path."""
    return (layer for layer in network.modules() if "drop" in type(layer).__name__.lower())
