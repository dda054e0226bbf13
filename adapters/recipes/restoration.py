"""Random restoration: a few weights are reset to the released ones after each step (CoTTA, eq. 7-8)."""

import torch

from adapters.networks.network import SegmentationNetwork
from adapters.networks.step_rng import StepRng

SEEDS = 2**24
"""Number of seeds that a uniform float32 can distinguish."""


class Restoration:
    """weight <- M * released weight + (1 - M) * weight, M a fresh Bernoulli mask over single weights.

    Masks as large as the network are drawn on its device, by a generator whose seed comes from the step's `Draws`. So
    they repeat under the round's seed, continue after a restart, and are equal in all processes.
    """

    def __init__(self, student: SegmentationNetwork, released: SegmentationNetwork, probability: float) -> None:
        """Prepare it; `probability` is that of a weight at one step, 0 restores nothing."""
        self._probability = probability
        if probability == 0.0:
            return
        pairs = zip(student.parameters(), released.parameters(), strict=True)
        trained = [(mine, theirs.detach()) for mine, theirs in pairs if mine.requires_grad]
        self._weights = [mine for mine, _ in trained]
        self._released = [theirs for _, theirs in trained]
        self._generator = torch.Generator(self._weights[0].device)

    @torch.no_grad()
    def restore(self, draws: StepRng) -> None:
        """Restore after one step."""
        if self._probability == 0.0:
            return
        self._generator.manual_seed(int(SEEDS * draws.shared(1).item()))
        for mine, theirs in zip(self._weights, self._released, strict=True):
            mask = torch.empty_like(mine).bernoulli_(self._probability, generator=self._generator)
            mine.lerp_(theirs, mask)  # exact at 0 and at 1
