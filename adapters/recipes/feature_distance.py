"""Thing-class feature distance: source features of countable things stay near those of a frozen network.

Hoyer et al., "DAFormer" (CVPR 2022), eq. 7 to 9, constants of the published code. Self-training on one domain loses
what the encoder learnt about rare things. The distance applies only where the label is a thing, only to source images,
only to the deepest map.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.errors import NetworkMismatch
from adapters.networks.network import SegmentationNetwork
from adapters.networks.parallel import mean_count
from adapters.networks.training_pass import IGNORE_INDEX, Encoded
from adapters.recipes.recipe import RecipeInputs
from configs.recipe import RareClassSettings


class FeatureDistance:
    """Mean L2 norm of the difference of two deepest maps, over the cells of thing classes."""

    def __init__(self, inputs: RecipeInputs[RareClassSettings], reference: SegmentationNetwork) -> None:
        """Prepare it. Raises NetworkMismatch when the maps of `reference` differ in width from the student's."""
        mine, theirs = inputs.student.feature_channels[-1], reference.feature_channels[-1]
        if mine != theirs:
            raise NetworkMismatch(
                f"recipe.feature_distance_weight: the deepest map has {mine} channels, that of the "
                f"{inputs.recipe.advanced.feature_distance_from} network {theirs}; set the weight to 0, or use another "
                "recipe.advanced.feature_distance_from"
            )
        recipe = inputs.recipe
        self.weight = recipe.feature_distance_weight
        self._reference, self._share = reference, recipe.advanced.feature_distance_share
        things = [not recipe.thing_classes or name in recipe.thing_classes for name in inputs.class_names]
        self._things = torch.tensor([*things, False], device=inputs.accelerator.device)  # [K + 1], ignored last

    def __call__(self, encoded: Encoded, labels: Tensor) -> Tensor:
        """Return the distance, a scalar; 0 when no cell counts. It is not yet multiplied by its weight.

        `encoded` are the student's maps of source images with `labels` [B, H, W]; the reference sees the same images,
        jittered or not. With several views it is the first, the context of a multi-resolution network.
        """
        deepest = encoded.features[0][-1].float()  # [B, C, h, w]; float32, since squares of half precision overflow
        with torch.no_grad():
            frozen = self._reference.encode(encoded.views[0].images)[-1].float()
            counted = self.cells(labels, (deepest.shape[-2], deepest.shape[-1]))
        distance = torch.linalg.vector_norm(deepest - frozen, dim=1)  # [B, h, w]
        mean: Tensor = (distance * counted).sum() / mean_count(counted)
        return mean

    def cells(self, labels: Tensor, size: tuple[int, int]) -> Tensor:
        """Return which cells of a map of `size` count, bool [B, *size]: one thing class fills the share of its pixels.

        Ignored pixels are a class of their own that never counts. Where `size` does not divide the labels, cells are as
        equal as pixels allow, and neighbours share a row.
        """
        classes = len(self._things)
        known = labels.masked_fill(labels == IGNORE_INDEX, classes - 1)
        one_hot = known.unsqueeze(1) == torch.arange(classes, device=labels.device).view(1, -1, 1, 1)  # [B, K+1, H, W]
        share, winner = F.adaptive_avg_pool2d(one_hot.float(), size).max(dim=1)  # each [B, h, w]
        return (share >= self._share) & self._things[winner]
