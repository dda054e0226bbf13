"""torch.compile, once for each served shape, and never while a request waits."""

import torch
from torch import Tensor, nn

KEPT = 64
"""Shapes that torch may keep compiled code for; its own limit of 8 is less than two places with their sizes."""


class Compiled:
    """Runs a network compiled for the shapes it was prepared for, and as it is for all others.

    New weights are copied into the same tensors, so what was compiled stays valid from version to version.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._compiled = torch.compile(network, dynamic=False)
        self._shapes: set[tuple[int, ...]] = set()

    def prepare(self, images: Tensor) -> Tensor:
        """Compile for the shape of `images` unless that is done; returns the logits that the compiled code gives."""
        with torch._dynamo.config.patch(recompile_limit=KEPT):
            logits: Tensor = self._compiled(images)
        self._shapes.add(tuple(images.shape))
        return logits

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of `images`."""
        run = self._compiled if tuple(images.shape) in self._shapes else self._network
        logits: Tensor = run(images)
        return logits
