"""The losses that the published recipes are lists of: source, mix, masked image, MFM.

Sources: DACS (arXiv 2007.08702), DAFormer (arXiv 2111.14887), MIC (arXiv 2212.01322), MFM (arXiv 2509.13801).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.augmentation.augment import class_mask, color_jitter, normalise_unit, paste, strong_augment
from adapters.errors import AdapterError
from adapters.mfm.branch import mfm_loss
from adapters.mfm.rebuilder import Rebuilder
from adapters.networks.step_rng import StepRng
from adapters.networks.training_pass import encode, prediction_loss
from adapters.recipes.feature_distance import FeatureDistance
from adapters.recipes.recipe import RecipeInputs
from adapters.recipes.self_training import StepImages, Term
from configs.recipe import MicSettings, RecipeBase, SelfTrainingSettings


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


class MaskedImageTerm:
    """`masked_image`: cross-entropy on the jittered, blurred and masked target against its pseudo-label and weight.

    The normalised image is multiplied by the mask, as in the original. So a masked block holds zeros, which is
    ImageNet's mean colour and not black. The teacher sees the whole image.
    """

    def __init__(self, inputs: RecipeInputs[MicSettings]) -> None:
        self._inputs = inputs

    def __call__(self, images: StepImages) -> dict[str, Tensor]:
        """Return the loss of one batch."""
        inputs, recipe = self._inputs, self._inputs.recipe
        augmented = strong_augment(
            images.target,
            jitter=recipe.jitter,
            jitter_probability=recipe.advanced.jitter_probability,
            blur_probability=recipe.advanced.blur_probability,
            draws=inputs.draws,
        )
        block, ratio = recipe.advanced.masked_image_block, recipe.advanced.masked_image_ratio
        masked = mask_blocks(normalise_unit(augmented), block, ratio, inputs.draws)
        with inputs.autocast():
            encoded = encode(inputs.student, masked, inputs.draws)
            loss = prediction_loss(inputs.student, encoded, images.pseudo.labels, images.pseudo.weight)
        return {"masked_image": recipe.masked_image_weight * loss}


def mask_blocks(images: Tensor, block: float, ratio: float, draws: StepRng) -> Tensor:
    """Set each square block of `images` [B, 3, H, W] to 0 with probability `ratio`, independently for each image.

    `block` is the side of a block as a share of the shorter side. Blocks are as nearly square as fits evenly.
    """
    count, _, height, width = images.shape
    side = max(1.0, block * min(height, width))
    rows, columns = max(1, round(height / side)), max(1, round(width / side))
    keep = (draws.per_image(count, 1, rows, columns) >= ratio).to(images.dtype)  # [B, 1, rows, columns]
    keep = keep.to(images.device, non_blocking=True)
    return images * F.interpolate(keep, (height, width), mode="nearest")


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
