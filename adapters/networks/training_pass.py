"""A training pass of a network, in the parts that Masked Feature Modeling needs: encode the views, predict, compare.

A plain network has one view and one prediction, a multi-resolution one several (`adapters.networks.network`). Training
code need not know which kind it has.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from adapters.networks.network import Output, SegmentationNetwork, View, Window
from adapters.networks.step_rng import StepRng

Maps = tuple[Tensor, ...]


class Encoded(NamedTuple):
    """Encoder output for a batch."""

    features: tuple[Maps, ...]
    """Maps `[B, C_l, H_l, W_l]` of each view, deepest last."""
    views: tuple[View, ...]
    """What the encoder saw."""
    size: tuple[int, int]
    """Height and width of the images."""


def encode(network: SegmentationNetwork, images: Tensor, draws: StepRng) -> Encoded:
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
    return outputs_loss(
        network.outputs(encoded.features if features is None else features, encoded.views, encoded.size), labels, weight
    )


PixelLoss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""A loss of logits [B, K, H, W], labels [B, H, W] and weights of pixels [B, H, W] (None: all 1), a scalar."""


def outputs_loss(
    outputs: Sequence[Output], labels: Tensor, weight: Tensor | None = None, loss: PixelLoss | None = None
) -> Tensor:
    """Return the `loss` of the predictions of a pass against `labels` `[B, H, W]`, times `weight` `[B, H, W]`.

    It is a scalar; None is the cross-entropy.
    """
    of_pixels = loss or weighted_cross_entropy

    def of_output(output: Output) -> Tensor:
        importance = None if weight is None else part_of(output.window, weight)
        return of_pixels(output.logits, part_of(output.window, labels), importance)

    return mean_over_outputs(outputs, of_output)


def mean_over_outputs(outputs: Sequence[Output], measure: Callable[[Output], Tensor]) -> Tensor:
    """Return the mean of `measure`, a scalar of each prediction of a pass, by the predictions' shares."""
    measured = [output.share * measure(output) for output in outputs]
    return measured[0] if len(measured) == 1 else torch.stack(measured).sum()


def part_of(window: Window | None, maps: Tensor) -> Tensor:
    """Return the part of `maps` `[..., H, W]` that a prediction covers."""
    return maps if window is None else window.of(maps)


IGNORE_INDEX = 255
"""Label value without a class, in training; no class has it, since there are at most 255."""


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean over ALL pixels of `weight * cross-entropy`, a scalar: sum(w * ce) / N.

    This is the definition of the published code of DAFormer. Pixels labelled `IGNORE_INDEX` give no loss but count in
    N: a crop with few labelled pixels weighs less than a full one. `logits` [B, K, H, W] of any float type; `labels`
    [B, H, W] integer; `weight` [B, H, W], None means 1 everywhere.
    """
    # float32: under autocast the logits arrive in half precision, in which a sum over pixels loses digits
    per_pixel = F.cross_entropy(logits.float(), labels.long(), ignore_index=IGNORE_INDEX, reduction="none")
    return per_pixel.mean() if weight is None else (weight * per_pixel).mean()
