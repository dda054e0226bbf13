"""Losses on source crops: cross-entropy against their labels, and feature distance on the same forward pass."""

from torch import Tensor

from adapters.augmentation.augment import color_jitter, normalise_unit
from adapters.networks.training_pass import encode, prediction_loss
from adapters.recipes.feature_distance import FeatureDistance
from adapters.recipes.recipe import RecipeInputs
from adapters.recipes.self_training import StepImages
from configs.recipe import SelfTrainingSettings


class SourceTerm:
    """`source`: plain cross-entropy, weight 1; `feature_distance`, if the recipe has it (arXiv 2111.14887).

    Empty when source-free.
    """

    def __init__(self, inputs: RecipeInputs[SelfTrainingSettings], distance: FeatureDistance | None = None) -> None:
        self._inputs = inputs
        self._distance = distance

    def __call__(self, images: StepImages) -> dict[str, Tensor]:
        """Return the losses of one batch."""
        if images.source is None or images.source_labels is None:
            return {}
        inputs, source = self._inputs, images.source
        if inputs.recipe.advanced.source_jitter > 0.0:
            source = color_jitter(source, inputs.recipe.advanced.source_jitter, inputs.draws)
        with inputs.autocast():
            encoded = encode(inputs.student, normalise_unit(source), inputs.draws)
            weight = inputs.label_weight(images.source_labels)
            losses = {"source": prediction_loss(inputs.student, encoded, images.source_labels, weight)}
            if self._distance is not None:
                distance = self._distance(encoded, images.source_labels)
                losses["feature_distance"] = self._distance.weight * distance
        return losses
