"""Run torch.compile once for each served shape, and never while a request waits."""

import torch
from torch import Tensor, nn

KEPT = 64
"""Number of shapes for which torch may keep compiled code; its own limit of 8 is below two slots with their sizes."""


class Compiled:
    """Runs a network compiled for the prepared shapes, and uncompiled for all others.

    New weights are copied into the same tensors, so the compiled code stays valid from version to version.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._compiled = torch.compile(network, dynamic=False)
        self._shapes: set[tuple[int, ...]] = set()

    def prepare(self, images: Tensor) -> Tensor:
        """Compile for the shape of `images` unless it is compiled; return the logits of the compiled code."""
        with torch._dynamo.config.patch(recompile_limit=KEPT):
            logits: Tensor = self._compiled(images)
        self._shapes.add(tuple(images.shape))
        return logits

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits of `images`."""
        run = self._compiled if tuple(images.shape) in self._shapes else self._network
        logits: Tensor = run(images)
        return logits
