"""Gradient checkpointing of an encoder: activations inside its blocks are computed again in the backward pass.

Less memory for about a third more time (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016).
"""

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from adapters.network import SegmentationNetwork


def checkpoint_encoder(network: SegmentationNetwork) -> None:
    """Checkpoint every block of the encoder, in place; once is enough. Names of weights stay, eval mode is untouched.

    Blocks are the members of the innermost lists of modules. BatchNorm layers record their statistics in the first
    pass only, and dropout draws the same numbers in both.
    """
    for block in _blocks(network.encoder):
        if not isinstance(block, _Checkpointed):
            # A class and not a wrapped method: the teacher is a deep copy, and must call its own blocks.
            block.__class__ = _checkpointed(type(block))  # type: ignore[arg-type]  # classes are hashable


class _Checkpointed:
    """Marks the classes made by `_checkpointed`."""


@functools.cache
def _checkpointed(kind: type[nn.Module]) -> type[nn.Module]:
    """`kind` with a forward pass that is run again in the backward pass."""

    def forward(self: nn.Module, *inputs: Any, **options: Any) -> Any:
        if not (self.training and torch.is_grad_enabled()):
            return kind.forward(self, *inputs, **options)

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _recorded_already(self)

        run = functools.partial(kind.forward, self, **options)
        return checkpoint(run, *inputs, use_reentrant=False, context_fn=contexts)

    return type(kind.__name__, (_Checkpointed, kind), {"forward": forward})


@contextmanager
def _recorded_already(block: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm layers compute what they did before, and their running statistics do not move."""
    layers = [layer for layer in block.modules() if isinstance(layer, _BatchNorm)]
    before = [(layer.momentum, layer.num_batches_tracked) for layer in layers]
    for layer in layers:
        # Not `track_running_stats`: without it other tensors would be saved for the backward pass.
        layer.momentum, layer.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for layer, (momentum, tracked) in zip(layers, before, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, tracked


def _blocks(encoder: nn.Module) -> Iterator[nn.Module]:
    for module in encoder.modules():
        inner = (child for child in module.modules() if child is not module)
        if isinstance(module, nn.ModuleList) and not any(isinstance(child, nn.ModuleList) for child in inner):
            yield from module
