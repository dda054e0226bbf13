"""Losses on probabilities instead of labels, for recipes that adapt without pseudo-labels of one class."""

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.parallel import mean_count


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
