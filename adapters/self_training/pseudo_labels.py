"""Pseudo-labels of the teacher and their weights (DACS, arXiv 2007.08702)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.losses import IGNORE_INDEX
from adapters.parallel import sum_over_processes


@dataclass(frozen=True, slots=True)
class PseudoLabel:
    """The teacher's answer for a batch of target crops."""

    labels: Tensor
    """Most probable class, `IGNORE_INDEX` on padding, [B, H, W] int64."""
    weight: Tensor
    """Loss weight of each pixel: `kept_ratio`, 0 where it is not trusted, [B, H, W] float32."""
    kept_ratio: Tensor
    """Share q of valid pixels whose probability reaches the threshold, over the batch of all processes; a scalar on the
    device (0-1)."""


@torch.no_grad()
def pseudo_label(logits: Tensor, valid: Tensor, trusted: Tensor, threshold: float) -> PseudoLabel:
    """Return hard labels with one weight q for the whole batch: q = #(max softmax >= threshold) / #pixels.

    Low confidence lowers the weight of every pixel. Uncertain pixels are not removed, because they contain the borders
    and the rare classes. `logits` [B, K, H, W]; `valid` [B, H, W] bool, False on padding, which counts nowhere;
    `trusted` [B, H, W] bool, False also on the margins, which count in q but have no loss.
    """
    confidence, labels = logits.float().softmax(dim=1).max(dim=1)
    kept, pixels = sum_over_processes(torch.stack([((confidence >= threshold) & valid).sum(), valid.sum()]))
    kept_ratio = kept / pixels.clamp(min=1)
    return PseudoLabel(
        labels=labels.masked_fill(~valid, IGNORE_INDEX),
        weight=kept_ratio * (valid & trusted),
        kept_ratio=kept_ratio,
    )
