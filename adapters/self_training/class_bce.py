"""Binary cross-entropy of each class, for classes that overlap in a mask of one class a pixel.

MFM-DA (Jiang et al., arXiv 2503.00802) trains disc and cup, which lies inside the disc, as two yes-or-no questions with
two outputs. A mask has one class a pixel: a pixel of the cup has the class cup. So here a class's probability is the
sum of the softmax over the class and all classes inside it (ours). The network's logits keep their meaning: their
argmax is a mask, and the cup is never outside its disc.
"""

from collections.abc import Mapping, Sequence, Set

import torch
from torch import Tensor

from adapters.networks.training_pass import IGNORE_INDEX

NEVER = -1e4
"""Logarithm of the probability of a class that is left out."""


def members_of(class_names: Sequence[str], around: Mapping[str, Set[str]]) -> Tensor:
    """Return which classes a pixel's label makes it a pixel of, bool [K, K]: row the class, column the label.

    `around` has the outer classes of each inner one.
    """
    rows = [[row == column or row in around.get(column, ()) for column in class_names] for row in class_names]
    return torch.tensor(rows)


class ClassBce:
    """The mean over classes, and over ALL pixels as in `weighted_cross_entropy`, of each class's cross-entropy."""

    def __init__(self, members: Tensor, device: torch.device | str = "cpu") -> None:
        """Take `members` bool [K, K] of `members_of`, on the CPU; losses are computed on `device`."""
        self._members = members.to(device)
        inside = {row: [place for place, one in enumerate(line) if one] for row, line in enumerate(members.tolist())}
        self._several = {row: places for row, places in inside.items() if len(places) > 1}

    def __call__(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the loss of `logits` [B, K, H, W] of any float type, a scalar; with two classes the cross-entropy.

        `labels` [B, H, W] integer, `IGNORE_INDEX` without loss; `weight` [B, H, W], None means 1 everywhere.
        """
        known = labels != IGNORE_INDEX
        yes, no = self._answers(torch.log_softmax(logits.float(), dim=1))
        own = self._members[:, labels.masked_fill(~known, 0).long()].transpose(0, 1)  # [B, K, H, W]
        per_pixel = -torch.where(own, yes, no).mean(dim=1) * known
        return per_pixel.mean() if weight is None else (weight * per_pixel).mean()

    def _answers(self, single: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p and log (1 - p) of each class with what lies inside it, each [B, K, H, W].

        `single` [B, K, H, W] is the log-softmax. No answer is computed as a difference from 1 that rounds to 0: an
        answer that is sure and wrong still learns.
        """
        top = single.detach().argmax(dim=1, keepdim=True)
        surest = torch.zeros_like(single, dtype=torch.bool).scatter_(1, top, True)
        others = single.masked_fill(surest, NEVER).logsumexp(dim=1, keepdim=True)  # of all but the surest class
        no = torch.where(surest, others, torch.log1p(-single.masked_fill(surest, NEVER).exp()))
        if not self._several:
            return single, no
        yes_rows, no_rows = list(single.unbind(dim=1)), list(no.unbind(dim=1))
        for row, inside in self._several.items():  # few classes have others inside
            outside = [place for place in range(single.shape[1]) if place not in inside]
            yes_rows[row] = single[:, inside].logsumexp(dim=1)
            no_rows[row] = single[:, outside].logsumexp(dim=1) if outside else torch.zeros_like(yes_rows[row])
        return torch.stack(yes_rows, dim=1), torch.stack(no_rows, dim=1)
