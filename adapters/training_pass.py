"""A training pass of a network, in the parts that Masked Feature Modeling needs: encode the views, predict, compare.

A plain network has one view and one prediction, a multi-resolution one several (`adapters.networks.network`). Training
code need not know which kind it has.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from adapters.draws import Draws
from adapters.losses import weighted_cross_entropy
from adapters.networks.network import Output, SegmentationNetwork, View, Window

Maps = tuple[Tensor, ...]


class Encoded(NamedTuple):
    """Encoder output for a batch."""

    features: tuple[Maps, ...]
    """Maps `[B, C_l, H_l, W_l]` of each view, deepest last."""
    views: tuple[View, ...]
    """What the encoder saw."""
    size: tuple[int, int]
    """Height and width of the images."""


def encode(network: SegmentationNetwork, images: Tensor, draws: Draws) -> Encoded:
    """Encode every view of normalised images `[B, 3, H, W]`."""
    views = network.views(images, draws)
    features = tuple(network.encode(view.images) for view in views)
    return Encoded(features, views, (images.shape[-2], images.shape[-1]))


def prediction_loss(
    network: SegmentationNetwork,
    encoded: Encoded,
    labels: Tensor,
    weight: Tensor | None = None,
    features: Sequence[Maps] | None = None,
) -> Tensor:
    """Return the cross-entropy of the predictions against `labels` `[B, H, W]`, times `weight` `[B, H, W]`.

    It is a scalar. `features` replace those of `encoded` (rebuilt maps).
    """
    outputs = network.outputs(encoded.features if features is None else features, encoded.views, encoded.size)

    def cross_entropy(output: Output) -> Tensor:
        importance = None if weight is None else part_of(output.window, weight)
        return weighted_cross_entropy(output.logits, part_of(output.window, labels), importance)

    return mean_over_outputs(outputs, cross_entropy)


def mean_over_outputs(outputs: Sequence[Output], measure: Callable[[Output], Tensor]) -> Tensor:
    """Return the mean of `measure`, a scalar of each prediction of a pass, by the predictions' shares."""
    measured = [output.share * measure(output) for output in outputs]
    return measured[0] if len(measured) == 1 else torch.stack(measured).sum()


def part_of(window: Window | None, maps: Tensor) -> Tensor:
    """Return the part of `maps` `[..., H, W]` that a prediction covers."""
    return maps if window is None else window.of(maps)
