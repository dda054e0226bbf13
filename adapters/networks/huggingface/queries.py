"""From the queries of a mask transformer to class logits of each pixel, differentiable.

Such a model answers with queries: each has a distribution over the classes and "no object", and a mask. Its semantic
answer is sum over queries of p(class) * sigmoid(mask) (Cheng et al., "Per-Pixel Classification is Not All You Need for
Semantic Segmentation", NeurIPS 2021). The logits are the logarithm of that sum. So their argmax is the model's own
answer, their softmax is the sums divided by their total, and the ordinary pixel losses train the model.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.networks.network import SegmentationNetwork

LEAST = 1e-20
"""Smallest sum that counts. Far below what a pixel that no query claims has (about 1e-7), so it makes no ties; its
reciprocal, the largest gradient, is far from the end of float32 and bf16, which have the same exponents."""


def pixel_logits(classes: Tensor, masks: Tensor) -> Tensor:
    """Return logits `[B, K, h, w]` of class logits `[B, Q, K + 1]`, "no object" last, and mask logits `[B, Q, h, w]`.

    They are float32, also under autocast: a sum of a hundred small products in bf16 would decide many pixels by chance.
    """
    with torch.autocast(masks.device.type, enabled=False):
        shares = classes.float().softmax(-1)[..., :-1]
        sums = torch.einsum("bqk,bqhw->bkhw", shares, masks.float().sigmoid())
        return _log(sums)


class MaskNetwork(SegmentationNetwork):
    """A mask transformer: `decode` resizes sums, not their logarithms, as transformers does."""

    def decode(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Return logits `[B, K, *size]` of feature maps: the sums are resized bilinearly."""
        sums: Tensor = self.decoder(features).exp().contiguous()
        return _log(F.interpolate(sums, size=size, mode="bilinear", align_corners=False))


def _log(sums: Tensor) -> Tensor:
    return sums.clamp(min=LEAST).log()
