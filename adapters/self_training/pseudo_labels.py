"""Pseudo-labels of the teacher and their weights (DACS, arXiv 2007.08702)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.networks.parallel import mean_count, sum_over_processes
from adapters.networks.training_pass import IGNORE_INDEX


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
    confidence: Tensor
    """Softmax probability of the label, [B, H, W] float32."""
    trusted: Tensor
    """Where a pixel has a weight at all: neither padding nor margin, bool [B, H, W]."""


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
        confidence=confidence,
        trusted=valid & trusted,
    )


def entropy(logits: Tensor, counted: Tensor) -> Tensor:
    """Return the mean softmax entropy over the `counted` pixels, a scalar in nats.

    `logits` [B, K, H, W]; `counted` [B, H, W] bool.
    """
    log_probabilities = F.log_softmax(logits.float(), dim=1)
    return mean_over(-(log_probabilities.exp() * log_probabilities).sum(dim=1), counted)


def soft_cross_entropy(logits: Tensor, probabilities: Tensor, counted: Tensor) -> Tensor:
    """Return the mean of -sum_c p_c log softmax_c over the `counted` pixels [B, H, W] (bool), a scalar in nats.

    `logits` and `probabilities` p [B, K, H, W].
    """
    return mean_over(-(probabilities * F.log_softmax(logits.float(), dim=1)).sum(dim=1), counted)


@torch.no_grad()
def confident_share(probabilities: Tensor, counted: Tensor, threshold: float) -> Tensor:
    """Return the share of `counted` pixels whose largest of `probabilities` [B, K, H, W] reaches `threshold`."""
    return mean_over((probabilities.amax(dim=1) >= threshold).float(), counted)


def mean_over(values: Tensor, counted: Tensor) -> Tensor:
    """Return the mean of `values` [B, H, W] where `counted`, over all processes, a scalar; 0 without any pixel."""
    return (values * counted).sum() / mean_count(counted)
