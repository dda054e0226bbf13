"""Estimate BatchNorm statistics for weights that never saw the data of their target domain."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def estimate_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics of `network` by the plain mean over `batches` of images [B, 3, H, W], normalised.

    Averaged weights need statistics of their own. The recorded ones belong to other weights, and the last few batches
    weigh too much in them. Dropout and drop path are off during the estimate; the mode of every layer is restored.
    """
    layers = batch_norm_layers(network)
    if not layers:
        return
    modes = [(module, module.training) for module in network.modules()]
    momenta = [layer.momentum for layer in layers]
    without_noise(network.train())
    for layer in layers:
        forget_statistics(layer)
    try:
        for images in batches:
            network(images)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, mode in modes:
            module.training = mode


def batch_norm_layers(network: nn.Module) -> list[_BatchNorm]:
    """Return every BatchNorm layer of `network`, in the order of its modules."""
    return [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]


@torch.no_grad()
def forget_statistics(layer: _BatchNorm) -> None:
    """Make the running statistics the plain mean over all following batches.

    The first batch replaces the old statistics (its share is 1 / 1). A layer that only meets batches with one value a
    channel cannot learn from them. It keeps its statistics and is never left at mean 0 and variance 1.
    """
    layer.momentum = None
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.zero_()


def without_noise(network: nn.Module) -> None:
    """Switch off dropout and drop path, found by class name because each library has its own drop path."""
    for layer in network.modules():
        if "drop" in type(layer).__name__.lower():
            layer.eval()
