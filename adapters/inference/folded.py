"""BatchNorm folded into the convolution before it while a version serves: in eval mode both are linear, so one does.

The arithmetic is torch's (`torch.nn.utils.fusion`); the idea is from Ioffe and Szegedy 2015 (arXiv 1502.03167),
section 3.1. Logits stay the same but for rounding.
"""

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

SIDE = 64
"""Side of the image on which the two forms of a network are compared (pixels)."""
CLOSE = 1e-3
"""Largest difference of logits, as a share of the largest logit, at which two forms count as the same network."""


class Pair(NamedTuple):
    """Names of a convolution and of the BatchNorm that is folded into it."""

    convolution: str
    norm: str
    eps: float
    """What the BatchNorm adds to a variance."""


@torch.no_grad()
def fold_batch_norm(network: nn.Module) -> tuple[Pair, ...]:
    """Fold BatchNorm layers of `network`, on a CPU and in eval mode, into convolutions, in place; return the pairs.

    Pairs are neighbours in the module tree. Their order does not prove that one reads the other, so a copy with random
    statistics is folded first: where its logits change by more than rounding, `network` stays as it is.
    """
    pairs = tuple(_neighbours(network))
    if not pairs:
        return ()
    probe = _randomised(copy.deepcopy(network))
    images = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    plain = probe(images)
    _fuse(probe, pairs)
    if not float((probe(images) - plain).abs().max()) <= CLOSE * float(plain.abs().max()):
        return ()
    _fuse(network, pairs)
    return pairs


def _neighbours(network: nn.Module) -> Iterator[Pair]:
    for prefix, parent in network.named_modules():
        for (first, layer), (second, norm) in pairwise(parent.named_children()):
            if not isinstance(layer, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
                continue
            if norm.running_mean is not None and norm.num_features == layer.out_channels:
                start = f"{prefix}." if prefix else ""
                yield Pair(start + first, start + second, norm.eps)


def _randomised(network: nn.Module) -> nn.Module:
    """Return `network` as training could leave it: no BatchNorm does nothing, and no layer gives zeros."""
    random = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.02)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None and layer.running_var is not None:
            layer.running_mean.normal_(0, 0.5, generator=random)
            layer.running_var.uniform_(0.5, 2, generator=random)
    return network


def _fuse(network: nn.Module, pairs: tuple[Pair, ...]) -> None:
    for pair in pairs:
        convolution, norm = network.get_submodule(pair.convolution), network.get_submodule(pair.norm)
        assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        network.set_submodule(pair.convolution, fuse_conv_bn_eval(convolution, norm))
        network.set_submodule(pair.norm, nn.Identity())
