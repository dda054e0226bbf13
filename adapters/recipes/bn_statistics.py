"""BN statistics: the incumbent's weights with BatchNorm statistics of the target, without learning.

Schneider et al., "Improving robustness against common corruptions by covariate shift adaptation" (NeurIPS 2020); Nado
et al. 2020. Weights stay, so a round costs one forward pass a step, and the source can lose much
(docs/explanation/decisions/0004-teacher-and-candidate.md).
"""

import copy
from typing import Any

import torch
from torch import Tensor

from adapters.augmentation.augment import normalise_unit
from adapters.errors import AdapterError
from adapters.networks.batch_norm import batch_norm_layers, forget_statistics
from adapters.networks.network import SegmentationNetwork
from adapters.networks.parallel import average_buffers
from adapters.recipes.recipe import Recipe, RecipeInputs, StepBatch, StepLosses
from adapters.self_training.pseudo_labels import confident_share
from configs.recipe import BnStatisticsSettings


class BnStatistics(Recipe[BnStatisticsSettings]):
    """Each step feeds one batch into the running statistics, a plain mean over the round's batches.

    The finished network has share * target + (1 - share) * released statistics, share = n / (n + `statistics_prior`)
    after n crops (their eq. 2). `kept_ratio` is the share of confident pixels, seen with the batch's own statistics.
    """

    learns = False
    restate = False

    def __init__(self, inputs: RecipeInputs[BnStatisticsSettings]) -> None:
        """Prepare the network. Raises AdapterError when it has no BatchNorm."""
        super().__init__(inputs)
        self._layers = batch_norm_layers(self.student)
        if not self._layers:
            raise AdapterError(
                "recipe.name bn_statistics: this network has no BatchNorm layer, so no statistics can be estimated; "
                "use tent or cotta, which adapt LayerNorm networks too"
            )
        self._released = copy.deepcopy(batch_norm_layers(inputs.released or self.student))
        self._crops = 0
        for layer in self._layers:
            forget_statistics(layer)
            # torch reads this counter in every pass: on the CPU that waits for no GPU
            layer.num_batches_tracked = torch.zeros((), dtype=torch.long)

    def _prepare(self) -> None:
        self.student.eval()
        for layer in self._layers:
            layer.train()

    @torch.no_grad()
    def _backward(self, batch: StepBatch, share: float) -> StepLosses:
        inputs = self.inputs
        images = inputs.images(batch.target.images)
        with inputs.autocast():
            logits: Tensor = self.student(normalise_unit(images))
        self._crops += images.shape[0] * inputs.accelerator.num_processes
        counted = inputs.on_device(batch.target.trusted)
        return StepLosses({}, confident_share(logits.float().softmax(dim=1), counted, inputs.recipe.threshold))

    @torch.no_grad()
    def finished(self) -> SegmentationNetwork:
        """Return a copy of the student with the mixed statistics, in eval mode; before any step the released ones."""
        network = copy.deepcopy(self.student).eval()
        average_buffers(self.inputs.accelerator, network)  # the released statistics are mixed with those of all crops
        prior = self.inputs.recipe.statistics_prior
        share = self._crops / (self._crops + prior) if self._crops else 0.0
        for layer, released in zip(batch_norm_layers(network), self._released, strict=True):
            for name in ("running_mean", "running_var"):
                mine = getattr(layer, name)
                mine.copy_(torch.lerp(getattr(released, name), mine, share))
            layer.momentum = released.momentum
            layer.num_batches_tracked = layer.num_batches_tracked.to(mine.device)  # type: ignore[union-attr]
        return network

    def state_dict(self) -> dict[str, Any]:
        """Return the counters; the statistics so far are buffers of the student."""
        return {**super().state_dict(), "crops": self._crops}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        super().load_state_dict(state)
        self._crops = int(state["crops"])
