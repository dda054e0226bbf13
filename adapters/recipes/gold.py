"""GOLD-like: what trains is the normalisation layers and one scale for each main direction of the classifier.

Lai et al., "The Golden Subspace" (CVPR 2026, arXiv 2603.21928): the smallest change of features that suffices lies in
the rows of the classifier. With directions V [C, r] and scales s [r], features f become f + V (s * V^T f). The
classifier W is linear, so the same network has W + W V diag(s) V^T in its place. Here that is its weight at any time:
the student stays a plain network, and nothing is left to fold in. The losses are those of DACS, not the paper's.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adapters.errors import NetworkMismatch
from adapters.networks.network import SegmentationNetwork
from adapters.networks.parallel import sum_over_processes
from adapters.recipes.recipe import RecipeInputs, StepBatch, StepLosses
from adapters.recipes.self_training import SelfTraining, StepImages, Term, TermModule
from adapters.recipes.tent import norm_parameters
from adapters.self_training.pseudo_labels import PseudoLabel
from configs.recipe import GoldSettings

ITERATIONS = 20
"""Steps of orthogonal iteration from one set of directions to the next; ours. Two directions whose eigenvalues have the
ratio 0.8 are then apart to 1 %. Where eigenvalues are nearer, either direction does as well as the other."""


class Directions(TermModule):
    """Directions and scales; it has no loss of its own.

    G = W^T W at first. With each batch it follows the mean of g g^T over confident pixels, where g is the gradient of
    the highest logit with respect to the features: the class's row of W. So there are at most as many directions as
    classes.
    """

    name = "directions"
    has_losses = False
    base: Tensor
    """W without scales, [K, C]."""
    gram: Tensor
    """G, [C, C]."""
    axes: Tensor
    """V: eigenvectors of the largest eigenvalues of G, [C, r], largest first."""

    def __init__(self, inputs: RecipeInputs[GoldSettings], weight: Tensor) -> None:
        """Take the classifier's `weight` [K, C, 1, 1] as it is now; scales of 0 leave it so."""
        super().__init__()
        self._settings, self._threshold = inputs.recipe.advanced, inputs.recipe.threshold
        rows = weight.detach().flatten(1).float()
        self.scales = nn.Parameter(torch.zeros(min(self._settings.directions, *rows.shape), device=rows.device))
        self.register_buffer("base", rows.clone())
        self.register_buffer("gram", rows.T @ rows)
        leading = torch.linalg.eigh(self.gram).eigenvectors.flip(1)[:, : len(self.scales)]
        self.register_buffer("axes", leading.contiguous())
        self._point()

    @torch.no_grad()
    def prepare(self, inputs: RecipeInputs[Any], images: StepImages) -> StepImages:
        """Let G follow the batch; nothing changes in it without a confident pixel."""
        shares = self._confident_shares(images.pseudo)
        rows = self.scaled()
        found = torch.where(shares.sum() > 0, (rows.T * shares) @ rows, self.gram)
        self.gram.lerp_(found, 1.0 - self._settings.gram_momentum)
        return images

    def _confident_shares(self, pseudo: PseudoLabel) -> Tensor:
        """Return the share of each class among the confident pixels of all processes, [K]; zeros without any."""
        confident = (pseudo.confidence >= self._threshold) & pseudo.trusted
        counts = torch.zeros(len(self.base), dtype=torch.int64, device=self.base.device)
        counts.scatter_add_(0, pseudo.labels.clamp(0, len(counts) - 1).flatten(), confident.flatten().long())
        total = sum_over_processes(counts).float()
        return total / total.sum().clamp(min=1.0)

    def scaled(self) -> Tensor:
        """Return W + W V diag(s) V^T, [K, C]."""
        return self.base + (self.base @ self.axes * self.scales) @ self.axes.T

    @torch.no_grad()
    def turn(self) -> None:
        """Begin again from the scaled weight, in the directions of G as it is now."""
        self.base.copy_(self.scaled())
        self.scales.zero_()
        self.axes.copy_(self._followed())
        self._point()

    def _followed(self) -> Tensor:
        """Return the leading eigenvectors of G as it is now, by orthogonal iteration from the directions so far.

        torch's solver of eigenvalues makes the CPU wait for a GPU; its products and, by its documentation, QR do not.
        G has moved little since (at most by a share of 1 - `gram_momentum` a batch), so the start is near.
        """
        axes = self.axes
        for _ in range(ITERATIONS):
            axes = torch.linalg.qr(self.gram @ axes).Q
        return axes

    def _point(self) -> None:
        """Give each direction the sign that makes its largest entry positive: the optimizer's moments need one sign."""
        largest = self.axes.gather(0, self.axes.abs().argmax(dim=0, keepdim=True))
        self.axes.mul_(torch.where(largest < 0, -1.0, 1.0))

    @torch.no_grad()
    def take_gradient(self, weight: Tensor) -> None:
        """Turn the gradient of `weight` [K, C, 1, 1] into that of the scales, by the chain rule."""
        if weight.grad is not None:
            found = weight.grad.flatten(1).float()
            self.scales.grad = ((self.base @ self.axes) * (found @ self.axes)).sum(dim=0)
        weight.grad = None  # the optimizer passes over it

    @torch.no_grad()
    def write(self, weight: Tensor) -> None:
        """Set `weight` [K, C, 1, 1] to the scaled one."""
        weight.copy_(self.scaled().view_as(weight))


class Gold(SelfTraining):
    """DACS's step, in which only normalisation layers and scales learn.

    `recipe.anchor_weight` pulls the normalisation layers alone: the classifier is written from the scales.
    """

    def __init__(self, inputs: RecipeInputs[GoldSettings], terms: Sequence[Term]) -> None:
        """Freeze everything else. Raises NetworkMismatch when the network has no single linear classifier."""
        self._classifier = linear_classifier(inputs.student).weight
        trained = (*norm_parameters(inputs.student), self._classifier)
        inputs.student.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        self._directions = Directions(inputs, self._classifier)
        self._refresh = inputs.recipe.advanced.refresh_steps
        super().__init__(inputs, [*terms, self._directions])

    def _prepare(self) -> None:
        super()._prepare()
        if self.steps > 0 and self.steps % self._refresh == 0:
            self._directions.turn()

    def step(self, *batches: StepBatch) -> StepLosses:
        """Add the mean gradient of `batches` to the normalisation layers and the scales."""
        losses = super().step(*batches)
        self._directions.take_gradient(self._classifier)
        return losses

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Pull the normalisation layers towards the released weights, then write the scaled classifier."""
        super().after_step(optimizer)
        self._directions.write(self._classifier)


def linear_classifier(network: SegmentationNetwork) -> nn.Conv2d:
    """Return the 1x1 convolution that gives the logits. Raises NetworkMismatch unless there is exactly one."""
    found = [
        layer
        for layer in network.decoder.modules()
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.out_channels == network.num_classes
    ]
    if len(found) != 1:
        raise NetworkMismatch(
            f"recipe.name: 'gold' trains the directions of one linear classifier, and the decoder of this network has "
            f"{len(found)} of them (1x1 convolutions to {network.num_classes} channels); set recipe.name: tent or dacs"
        )
    return found[0]
