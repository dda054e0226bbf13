"""Masked Feature Modeling as one more loss of a recipe, or two: on the target, on the source (arXiv 2509.13801)."""

from torch import Tensor

from adapters.augmentation.augment import normalise_unit
from adapters.errors import AdapterError
from adapters.mfm.branch import mfm_loss
from adapters.mfm.rebuilder import Rebuilder
from adapters.recipes.recipe import RecipeInputs
from adapters.recipes.self_training import StepImages, Term
from configs.recipe import RecipeBase


class MfmTerm:
    """`mfm`: lambda times the loss of the rebuilt target, against pseudo-labels and their weight."""

    def __init__(self, inputs: RecipeInputs[RecipeBase], rebuilder: Rebuilder) -> None:
        self._inputs, self._rebuilder = inputs, rebuilder

    def __call__(self, images: StepImages) -> dict[str, Tensor]:
        """Return the loss of one batch."""
        return {"mfm": self._loss(images, images.target, images.pseudo.labels, images.pseudo.weight)}

    def _loss(self, step: StepImages, images: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
        inputs = self._inputs
        with inputs.autocast():
            loss = mfm_loss(
                inputs.student,
                self._rebuilder,
                normalise_unit(images),
                labels,
                weight,
                inputs.draws,
                teacher=step.teacher,
            )
        return inputs.mfm.weight * loss


class MfmSourceTerm(MfmTerm):
    """`mfm_source`: lambda times the loss of the rebuilt source, clean, against true labels with their weights."""

    def __call__(self, images: StepImages) -> dict[str, Tensor]:
        """Return the loss of one batch. Raises AdapterError when there are no source images."""
        if images.source is None or images.source_labels is None:
            domain = self._inputs.mfm.ablation.domain
            raise AdapterError(
                f"mfm.ablation.domain: {domain} needs labelled source images; without them choose target"
            )
        weight = self._inputs.label_weight(images.source_labels)
        return {"mfm_source": self._loss(images, images.source, images.source_labels, weight)}


def with_mfm(inputs: RecipeInputs[RecipeBase], terms: list[Term]) -> list[Term]:
    """Return the recipe's `terms`, followed by those of MFM when there is a Rebuilder.

    Source and target are separate passes, each back-propagated by itself.
    """
    if inputs.rebuilder is None:
        return terms
    domain = inputs.mfm.ablation.domain
    target = [MfmTerm(inputs, inputs.rebuilder)] if domain != "source" else []
    source = [MfmSourceTerm(inputs, inputs.rebuilder)] if domain != "target" else []
    return [*terms, *target, *source]
