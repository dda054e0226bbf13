"""How the logits of each class are distributed, as Gaussian mixtures that follow the training.

Li et al., "Balanced Learning for Domain Adaptive Semantic Segmentation" (BLDA; ICML 2025, arXiv 2512.06886). For pixels
of class c, the logit of class l has the mixture (c, l). Everything has one row for each class c and one column for each
logit l. It is computed in float32 and has no gradients.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.networks.parallel import sum_over_processes
from adapters.networks.training_pass import IGNORE_INDEX

LEAST_VARIANCE = 1e-4
"""Of a component; published."""
STARVED = 1e-3
"""A component with fewer pixels than this keeps its mean and variance, which nothing would determine; ours."""
LEAST_WEIGHT = 1e-8
"""Of a component when its likelihood is taken, so that the logarithm is finite; ours."""


class Mixture(NamedTuple):
    """Parameters of Gaussian mixtures with K components, each [C, C, K]."""

    weight: Tensor
    mean: Tensor
    variance: Tensor

    def cdf(self, places: Tensor) -> Tensor:
        """Return the cumulative distribution of each mixture at its `places` [C, C, P], of the same shape (0-1)."""
        total = torch.zeros_like(places)
        for weight, mean, variance in zip(*(field.unbind(-1) for field in self), strict=True):  # each [C, C]
            scaled = (places - mean.unsqueeze(-1)) / variance.sqrt().unsqueeze(-1)
            total += weight.unsqueeze(-1) * torch.special.ndtr(scaled)
        return total

    def ends(self, reach: float) -> tuple[Tensor, Tensor]:
        """Return the places `reach` deviations below the lowest and above the highest component, each [C, C]."""
        spread = reach * self.variance.sqrt()
        return (self.mean - spread).amin(-1), (self.mean + spread).amax(-1)


class Following(NamedTuple):
    """How the mixtures follow a batch."""

    iterations: int
    """Steps of expectation maximisation."""
    momentum: float
    """Share of the mixture before, once `warmup` updates are done (0-1)."""
    warmup: int
    """Updates over which the momentum rises from 0."""
    share: float
    """Share of the pixels that a class needs in the batch to move its mixtures (0-1)."""


class LogitDistributions(nn.Module):
    """One mixture for each class and logit; or, `tied`, two: one of all own logits, one of all others.

    Buffers hold them, so they are saved and resumed with the training state. A mixture that was never fitted starts
    around the mean of its first pixels.
    """

    weight: Tensor
    mean: Tensor
    variance: Tensor
    seen: Tensor
    age: Tensor
    updates: Tensor

    def __init__(self, classes: int, components: int, *, tied: bool = False) -> None:
        super().__init__()
        self.tied = tied
        shape = (classes, classes, components)
        self.register_buffer("weight", torch.full(shape, 1.0 / components))
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("variance", torch.ones(shape))
        self.register_buffer("seen", torch.zeros(classes, classes))  # updates that moved a mixture
        self.register_buffer("age", torch.ones(classes, classes))  # updates since the last one that moved it
        self.register_buffer("updates", torch.zeros(()))

    def mixture(self) -> Mixture:
        """Return the parameters as they are."""
        return Mixture(self.weight, self.mean, self.variance)

    @torch.no_grad()
    def update(self, logits: Tensor, labels: Tensor, how: Following) -> None:
        """Fit the mixtures to `logits` [N, C] of pixels with `labels` [N] int64, over the pixels of all processes.

        The momentum counts once for each update that a class missed, as published.
        """
        known = labels != IGNORE_INDEX
        classes = logits.shape[1]
        one_hot = F.one_hot(labels.masked_fill(~known, 0), classes).float() * known.unsqueeze(1)  # [N, C]
        before = found = self._begun(logits, one_hot)
        for _ in range(how.iterations):
            found = _maximised(found, self._moments(logits, one_hot, found))
        enough = self._enough(one_hot, how.share)
        decay = (how.momentum * (self.updates / how.warmup).clamp(max=1.0)).pow(self.age).unsqueeze(-1)
        for mine, old, new in zip(self.mixture(), before, found, strict=True):
            mine.copy_(torch.where(enough.unsqueeze(-1), torch.lerp(new, old, decay), mine))
        self.seen.add_(enough)
        self.age.add_(1.0).masked_fill_(enough, 1.0)
        self.updates.add_(1.0)

    def _enough(self, one_hot: Tensor, share: float) -> Tensor:
        """Return which mixtures have pixels enough to move, bool [C, C]."""
        counts = sum_over_processes(torch.cat([one_hot.sum(0), one_hot.new_full((1,), len(one_hot))]))
        pixels, total = counts[:-1], counts[-1]
        own = self._pooled(pixels.view(-1, 1, 1).expand(-1, len(pixels), 1)).squeeze(-1)
        return own >= (share * total).clamp(min=1.0)

    def _begun(self, logits: Tensor, one_hot: Tensor) -> Mixture:
        """Return the mixtures, in place of those never fitted ones spread over the pixels like a normal distribution.

        Published are random means near 0, which no pixel may be near to; ours needs no random numbers.
        """
        alone = Mixture(*(field[..., :1] for field in self.mixture()))
        pixels, first, second = self._moments(logits, one_hot, alone)  # [C, C, 1] each
        shift = first / pixels.clamp(min=1.0)
        variance = (second / pixels.clamp(min=1.0) - shift.square()).clamp(min=LEAST_VARIANCE)
        count = self.weight.shape[-1]
        places = (torch.arange(count, device=logits.device) + 0.5) / count
        mean = alone.mean + shift + variance.sqrt() * torch.special.ndtri(places)
        fresh = Mixture(torch.full_like(mean, 1.0 / count), mean, variance.expand_as(mean))
        unseen = (self.seen == 0).unsqueeze(-1)
        return Mixture(*(torch.where(unseen, new, old) for new, old in zip(fresh, self.mixture(), strict=True)))

    def _moments(self, logits: Tensor, one_hot: Tensor, mixture: Mixture) -> Tensor:
        """Return pixels, and first and second moment about the mean, of each component: [3, C, C, K]."""
        weight, mean, variance = (field[one_hot.argmax(1)] for field in mixture)  # [N, C, K]
        offset = logits.unsqueeze(-1) - mean
        likelihood = weight.clamp(min=LEAST_WEIGHT).log() - 0.5 * (variance.log() + offset.square() / variance)
        part = likelihood.softmax(-1)
        moments = [torch.einsum("nc,nlk->clk", one_hot, part * offset**power) for power in range(3)]
        return torch.stack([self._pooled(moment) for moment in sum_over_processes(torch.stack(moments))])

    def _pooled(self, sums: Tensor) -> Tensor:
        """Return `sums` [C, C, K]; when tied, those of all own logits and of all others in each one's places."""
        if not self.tied:
            return sums
        own = torch.eye(len(sums), device=sums.device, dtype=torch.bool).unsqueeze(-1)
        return torch.where(own, (sums * own).sum((0, 1)), (sums * ~own).sum((0, 1)))


def _maximised(mixture: Mixture, moments: Tensor) -> Mixture:
    pixels, first, second = moments
    shift = first / pixels.clamp(min=STARVED)
    variance = (second / pixels.clamp(min=STARVED) - shift.square()).clamp(min=LEAST_VARIANCE)
    fed = pixels >= STARVED
    return Mixture(
        pixels / pixels.sum(-1, keepdim=True).clamp(min=STARVED),
        torch.where(fed, mixture.mean + shift, mixture.mean),
        torch.where(fed, variance, mixture.variance),
    )
