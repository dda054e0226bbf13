"""The loss on mixed images: half of the source classes pasted over the target, jittered and blurred (DACS)."""

import torch
from torch import Tensor

from adapters.augmentation.augment import class_mask, normalise_unit, paste, strong_augment
from adapters.networks.training_pass import encode, prediction_loss
from adapters.recipes.recipe import RecipeInputs
from adapters.recipes.self_training import StepImages
from configs.recipe import SelfTrainingSettings


class MixTerm:
    """`mix`: cross-entropy on the mix; true labels count fully, pseudo-labels with their weight (arXiv 2007.08702).

    Without source there is nothing to paste, and the student learns the pseudo-labels on the jittered and blurred
    target crops themselves.
    """

    def __init__(self, inputs: RecipeInputs[SelfTrainingSettings]) -> None:
        self._inputs = inputs

    def __call__(self, images: StepImages) -> dict[str, Tensor]:
        """Return the loss of one batch."""
        inputs = self._inputs
        mixed, labels, weight = self._mix(images)
        mixed = strong_augment(
            mixed,
            jitter=inputs.recipe.jitter,
            jitter_probability=inputs.recipe.advanced.jitter_probability,
            blur_probability=inputs.recipe.advanced.blur_probability,
            draws=inputs.draws,
        )
        with inputs.autocast():
            encoded = encode(inputs.student, normalise_unit(mixed), inputs.draws)
            return {"mix": prediction_loss(inputs.student, encoded, labels, weight)}

    def _mix(self, images: StepImages) -> tuple[Tensor, Tensor, Tensor]:
        """Return images [B, 3, H, W], labels [B, H, W], weights [B, H, W]."""
        labels, weight = images.pseudo.labels, images.pseudo.weight
        if images.source is None or images.source_labels is None or not self._inputs.recipe.advanced.classmix:
            return images.target, labels, weight
        mask = class_mask(images.source_labels, self._inputs.draws)
        true = self._inputs.label_weight(images.source_labels)
        return (
            paste(mask, images.source, images.target),
            paste(mask, images.source_labels, labels),
            paste(mask, torch.ones_like(weight) if true is None else true, weight),
        )
