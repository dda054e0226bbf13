"""Move logits of each class to the distribution that all classes share (BLDA, arXiv 2512.06886).

A logit with the quantile q in its own distribution becomes the logit with the quantile q in the anchor: the
distribution of all own logits of the source, or of all others. Tables hold the result for every class and logit.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from adapters.self_training.logit_distributions import LogitDistributions, Mixture

REACH = 3.0
"""Deviations beyond the outermost components that a table covers; published."""
POINTS = 256
"""Places of a table, with straight lines between them; ours: the published code evaluates each pixel."""
ANCHOR_POINTS = 1000
"""Places at which an anchor is inverted, with straight lines between them; published."""


class Tables(NamedTuple):
    """For R rows (classes, once a domain) and C logits, at P evenly spaced places."""

    low: Tensor
    """First place, [R, C]."""
    step: Tensor
    """Distance of two places, [R, C]."""
    aligned: Tensor
    """Aligned logit, [R, C, P]."""
    quantile: Tensor
    """Cumulative distribution, [R, C, P]."""
    seen: Tensor
    """Whether the distribution has been fitted, bool [R, C]."""


@torch.no_grad()
def tables_of(distributions: LogitDistributions, anchors: LogitDistributions, trim: float) -> Tables:
    """Return the tables of `distributions` with the tied `anchors`; quantiles are limited to `trim` and 1 - `trim`."""
    mixture = distributions.mixture()
    low, high = mixture.ends(REACH)
    step = (high - low) / (POINTS - 1)
    places = low.unsqueeze(-1) + step.unsqueeze(-1) * torch.arange(POINTS, device=low.device)
    quantile = mixture.cdf(places)
    limited = quantile.clamp(trim, 1.0 - trim)
    own = torch.eye(len(low), dtype=torch.bool, device=low.device).unsqueeze(-1)
    both = anchors.mixture()
    first, rest = (Mixture(*(field[:1, column : column + 1] for field in both)) for column in (0, 1))
    aligned = torch.where(own, inverse_of(first, limited), inverse_of(rest, limited))
    return Tables(low, step, aligned, quantile, (distributions.seen > 0) & (anchors.seen > 0))


def inverse_of(mixture: Mixture, quantiles: Tensor) -> Tensor:
    """Return the logits that have `quantiles` (any shape, 0-1) in the one `mixture`, each field [1, 1, K]."""
    low, high = (end.squeeze() for end in mixture.ends(REACH))
    places = low + (high - low) * torch.linspace(0.0, 1.0, ANCHOR_POINTS, device=low.device)
    values = mixture.cdf(places.view(1, 1, -1)).flatten()
    right = torch.searchsorted(values, quantiles.contiguous()).clamp(1, ANCHOR_POINTS - 1)
    left = right - 1
    share = (quantiles - values[left]) / (values[right] - values[left]).clamp(min=1e-12)
    return torch.lerp(places[left], places[right], share.clamp(0.0, 1.0))


@torch.no_grad()
def looked_up(tables: Tables, logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the alignment and the quantile of `logits` [B, C, H, W] of pixels in `rows` [B, H, W] int64.

    Both are [B, C, H, W]. The alignment is the aligned logit minus the logit, and 0 where a distribution has not been
    fitted.
    """
    low, step, seen = (field[rows].permute(0, 3, 1, 2) for field in (tables.low, tables.step, tables.seen))
    place = ((logits - low) / step).clamp(0.0, POINTS - 1.0)
    left = place.floor().clamp(max=POINTS - 2.0)
    share = place - left
    columns = torch.arange(logits.shape[1], device=logits.device).view(1, -1, 1, 1)
    index = (rows.unsqueeze(1) * logits.shape[1] + columns) * POINTS + left.long()  # [B, C, H, W]
    aligned, quantile = (
        torch.lerp(table.flatten()[index], table.flatten()[index + 1], share)
        for table in (tables.aligned, tables.quantile)
    )
    return torch.where(seen, aligned - logits, 0.0), quantile


def stacked(one: Tables, other: Tables) -> Tables:
    """Return the rows of both, those of `other` after those of `one`."""
    return Tables(*(torch.cat(pair) for pair in zip(one, other, strict=True)))
