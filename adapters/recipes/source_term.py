"""The losses on source crops: cross-entropy against their labels, and feature distance on the same forward pass."""

from torch import Tensor

from adapters.augmentation.augment import color_jitter, normalise_unit
from adapters.recipes.feature_distance import feature_distance
from adapters.recipes.recipe import RecipeInputs
from adapters.recipes.self_training import StepImages
from adapters.training_pass import encode, prediction_loss


class SourceTerm:
    """`source`: plain cross-entropy, weight 1; `feature_distance`, where the recipe has it (arXiv 2111.14887).

    Nothing when source-free.
    """

    def __init__(self, inputs: RecipeInputs) -> None:
        self._inputs = inputs
        self._distance = feature_distance(inputs)

    def __call__(self, images: StepImages) -> dict[str, Tensor]:
        """The losses of one batch."""
        if images.source is None or images.source_labels is None:
            return {}
        inputs, source = self._inputs, images.source
        if inputs.recipe.source_jitter > 0.0:
            source = color_jitter(source, inputs.recipe.source_jitter, inputs.draws)
        with inputs.autocast():
            encoded = encode(inputs.student, normalise_unit(source), inputs.draws)
            weight = inputs.label_weight(images.source_labels)
            losses = {"source": prediction_loss(inputs.student, encoded, images.source_labels, weight)}
            if self._distance is not None:
                distance = self._distance(encoded, images.source_labels)
                losses["feature_distance"] = inputs.recipe.feature_distance_weight * distance
        return losses
