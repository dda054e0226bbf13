"""Stochastic disagreement: how many pixels change class when features are dropped at random.

This is the prediction disagreement of AETTA (Lee et al., CVPR 2024, arXiv 2404.01351): the share of dropout passes
whose class differs from that of the plain pass. AETTA drops before the classifier of a ResNet. Several decoders here
have no dropout, so whole channels of the decoder's input are dropped. (Spatial dropout, Tompson et al., CVPR 2015:
neighbouring cells of a dense map are so alike that dropping single cells changes almost nothing.) The gate adds AETTA's
marginal correction.

Jitter, blur and masking do not separate good from bad candidates, because teacher and student are trained to agree on
them (docs/explanation/sources.md). Training never compares an image with its mirror, so flipping remains a fair test.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from adapters.inference.palette import class_map
from adapters.networks.network import SegmentationNetwork

PASSES = 4
"""Dropout passes per image; AETTA uses 10 on small images, but here each pass averages over thousands of pixels."""
RATE = 0.2
"""Probability that a channel is dropped; AETTA's code uses 0.2 to 0.4."""


def dropped(features: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Drop channels of `features` `[N, C_l, H_l, W_l]` at `RATE` and scale the others by 1 / (1 - RATE).

    The mask depends on `seed` and the channel counts alone, so two models of one architecture lose the same channels.
    """
    generator = torch.Generator().manual_seed(seed)
    kept = [torch.rand(1, level.shape[1], 1, 1, generator=generator) >= RATE for level in features]
    return [level * mask.to(level) / (1.0 - RATE) for level, mask in zip(features, kept, strict=True)]


def dropout_disagreement(
    network: SegmentationNetwork, features: Sequence[Sequence[Tensor]], prediction: Tensor, image_index: int
) -> float:
    """Return the share of pixels (0-1) where a dropout pass differs from `prediction` [h, w].

    It is the mean over `PASSES` passes. `features` are the maps of `encode_all` of one image; `image_index` seeds its
    masks. Maps of several views share a decoder and lose the same channels.
    """
    height, width = prediction.shape
    changed = 0.0
    for run in range(PASSES):
        maps = [dropped(view, seed=image_index * PASSES + run) for view in features]
        logits = network.predict(maps, (height, width))
        changed += float((class_map(logits[0]) != prediction).double().mean())
    return changed / PASSES


def flip_consistency(network: SegmentationNetwork, image: Tensor, prediction: Tensor) -> float:
    """Return the share of pixels (0-1) of `prediction` [h, w] that stay when `image` [1, 3, h, w] is mirrored."""
    mirrored = class_map(network(image.flip(-1))[0])  # [h, w]
    return float(torch.eq(mirrored.flip(-1), prediction).double().mean())
