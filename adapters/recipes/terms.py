"""The losses that the published recipes are lists of: source, mix, masked image, MFM.

Sources: DACS (arXiv 2007.08702), DAFormer (arXiv 2111.14887), MIC (arXiv 2212.01322), MFM (arXiv 2509.13801).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.augmentation.augment import class_mask, color_jitter, normalise_unit, paste, strong_augment
from adapters.errors import AdapterError
from adapters.mfm.branch import mfm_loss
from adapters.networks.step_rng import StepRng
from adapters.networks.training_pass import encode, prediction_loss
from adapters.recipes.feature_distance import FeatureDistance
from adapters.recipes.recipe import RecipeInputs
from adapters.recipes.self_training import StepImages, Supervised, Term
from configs.recipe import MicSettings, RecipeBase, SelfTrainingSettings


def source_term(
    inputs: RecipeInputs[SelfTrainingSettings], images: StepImages, distance: FeatureDistance | None = None
) -> dict[str, Tensor]:
    """Return `source`, cross-entropy times its weight, and with `distance` also `feature_distance`.

    Nothing when source-free.
    """
    if images.source is None or images.source_labels is None:
        return {}
    source, jitter = images.source, inputs.recipe.advanced.source_jitter
    if jitter > 0.0:
        source = color_jitter(source, jitter, inputs.draws)
    with inputs.autocast():
        encoded = encode(inputs.student, normalise_unit(source), inputs.draws)
        weight = inputs.label_weight(images.source_labels)
        losses = images.compared(inputs, Supervised("source", encoded, images.source_labels, weight))
        losses["source"] = inputs.recipe.advanced.source_weight * losses["source"]
        if distance is not None:
            losses["feature_distance"] = distance.weight * distance(encoded, images.source_labels)
    return losses


def mix_term(inputs: RecipeInputs[SelfTrainingSettings], images: StepImages) -> dict[str, Tensor]:
    """Return `mix`: cross-entropy on the mix; true labels count fully, pseudo-labels with their weight.

    Without source there is nothing to paste, and the student learns the pseudo-labels on the jittered and blurred
    target crops themselves.
    """
    mixed, labels, weight, true = _mix(inputs, images)
    mixed = strong_augment(mixed, inputs.recipe, inputs.draws)
    with inputs.autocast():
        encoded = encode(inputs.student, normalise_unit(mixed), inputs.draws)
        return images.compared(inputs, Supervised("mix", encoded, labels, weight, true))


def _mix(inputs: RecipeInputs[SelfTrainingSettings], images: StepImages) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images [B, 3, H, W], labels [B, H, W], weights [B, H, W], and which labels are true, bool [B, H, W]."""
    labels, weight = images.pseudo.labels, images.pseudo.weight
    if images.source is None or images.source_labels is None or not inputs.recipe.advanced.classmix:
        return images.target, labels, weight, torch.zeros_like(labels, dtype=torch.bool)
    mask = class_mask(images.source_labels, inputs.draws)
    true = inputs.label_weight(images.source_labels)
    return (
        paste(mask, images.source, images.target),
        paste(mask, images.source_labels, labels),
        paste(mask, torch.ones_like(weight) if true is None else true, weight),
        mask,
    )


def masked_image_term(inputs: RecipeInputs[MicSettings], images: StepImages) -> dict[str, Tensor]:
    """Return `masked_image`: cross-entropy on the jittered, blurred and masked target against its pseudo-label.

    The normalised image is multiplied by the mask, as in the original. So a masked block holds zeros, which is
    ImageNet's mean colour and not black. The teacher sees the whole image.
    """
    recipe = inputs.recipe
    augmented = normalise_unit(strong_augment(images.target, recipe, inputs.draws))
    masked = mask_blocks(
        augmented, recipe.advanced.masked_image_block, recipe.advanced.masked_image_ratio, inputs.draws
    )
    with inputs.autocast():
        encoded = encode(inputs.student, masked, inputs.draws)
        loss = prediction_loss(inputs.student, encoded, images.pseudo.labels, images.pseudo.weight)
    return {"masked_image": recipe.masked_image_weight * loss}


def mask_blocks(images: Tensor, block: float, ratio: float, draws: StepRng) -> Tensor:
    """Set each square block of `images` [B, 3, H, W] to 0 with probability `ratio`, independently for each image.

    `block` is the side of a block as a share of the shorter side. Blocks are as nearly square as fits evenly.
    """
    return images * kept_blocks(images, block, ratio, draws)


def kept_blocks(images: Tensor, block: float, ratio: float, draws: StepRng) -> Tensor:
    """Return 0 on each square block with probability `ratio` and 1 elsewhere, `[B, 1, H, W]` for images `[B, 3, H, W]`.

    `block` as for `mask_blocks`.
    """
    count, _, height, width = images.shape
    side = max(1.0, block * min(height, width))
    rows, columns = max(1, round(height / side)), max(1, round(width / side))
    keep = (draws.per_image(count, 1, rows, columns) >= ratio).to(images.dtype)  # [B, 1, rows, columns]
    keep = keep.to(images.device, non_blocking=True)
    return F.interpolate(keep, (height, width), mode="nearest")


def mfm_term(inputs: RecipeInputs[RecipeBase], images: StepImages) -> dict[str, Tensor]:
    """Return `mfm`: lambda times the loss of the rebuilt target, against pseudo-labels and their weight."""
    return {"mfm": _mfm(inputs, images, images.target, images.pseudo.labels, images.pseudo.weight)}


def mfm_source_term(inputs: RecipeInputs[RecipeBase], images: StepImages) -> dict[str, Tensor]:
    """Return `mfm_source`: lambda times the loss of the rebuilt source, clean, against true labels with their weights.

    Raises AdapterError when there are no source images.
    """
    if images.source is None or images.source_labels is None:
        domain = inputs.mfm.ablation.domain
        raise AdapterError(f"mfm.ablation.domain: {domain} needs labelled source images; without them choose target")
    weight = inputs.label_weight(images.source_labels)
    return {"mfm_source": _mfm(inputs, images, images.source, images.source_labels, weight)}


def _mfm(
    inputs: RecipeInputs[RecipeBase], step: StepImages, images: Tensor, labels: Tensor, weight: Tensor | None
) -> Tensor:
    assert inputs.rebuilder is not None  # `with_mfm`
    interval = inputs.mfm.ablation.interval
    if (step.step - 1) % interval:
        return images.new_zeros(())
    normalised = normalise_unit(images)
    with inputs.autocast():
        loss = mfm_loss(
            inputs.student, inputs.rebuilder, normalised, labels, weight, inputs.draws, teacher=step.teacher
        )
    return interval * inputs.mfm.weight * loss


def with_mfm(inputs: RecipeInputs[RecipeBase], terms: list[Term]) -> list[Term]:
    """Return the recipe's `terms`, followed by those of MFM when there is a Rebuilder.

    Source and target are separate passes, each back-propagated by itself.
    """
    if inputs.rebuilder is None:
        return terms
    added: dict[str, list[Term]] = {
        "target": [mfm_term],
        "source": [mfm_source_term],
        "both": [mfm_term, mfm_source_term],
    }
    return [*terms, *added[inputs.mfm.ablation.domain]]
