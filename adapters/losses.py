"""Pixel-weighted cross-entropy, the only loss of source training and of self-training."""

from torch import Tensor
from torch.nn import functional as F

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
