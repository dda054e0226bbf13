"""Complementary masks: two views of the target image, of which each shows the blocks that the other hides.

Wang et al., "Dual form Complementary Masking for Domain-Adaptive Image Segmentation" (MaskTwins; ICML 2025, arXiv
2507.12008), constants of its published code. With `by_region` it is a reading of OMUDA's context level (Ou et al.,
arXiv 2512.12303), of which only the abstract is public.
"""

import torch
from torch import Tensor

from adapters.augmentation.augment import normalise_unit, strong_augment
from adapters.networks.network import Output
from adapters.networks.parallel import mean_count
from adapters.networks.training_pass import IGNORE_INDEX, encode, mean_over_outputs, outputs_loss, part_of
from adapters.recipes.recipe import RecipeInputs
from adapters.recipes.self_training import StepImages
from adapters.recipes.terms import kept_blocks
from configs.recipe import SelfTrainingSettings


def complementary_term(inputs: RecipeInputs[SelfTrainingSettings], images: StepImages) -> dict[str, Tensor]:
    """Return `complementary` and `complementary_distance`, of both views of the jittered and blurred target.

    The first is the cross-entropy against the pseudo-label, half of each view. The second is the mean squared
    difference of the views' logits. Both views are one batch. So they share the windows of a multi-resolution network,
    and BatchNorm normalises them alike.
    """
    settings = inputs.recipe.advanced.complementary
    keep = _kept(inputs, images)
    augmented = normalise_unit(strong_augment(images.target, inputs.recipe, inputs.draws))
    views = torch.cat([augmented * keep, augmented * (1.0 - keep)])  # [2B, 3, H, W]
    labels, weight = images.pseudo.labels, images.pseudo.weight
    with inputs.autocast():
        encoded = encode(inputs.student, views, inputs.draws)
        outputs = inputs.student.outputs(encoded.features, encoded.views, encoded.size)
        agreement = outputs_loss(outputs, torch.cat([labels, labels]), torch.cat([weight, weight]))
        distance = mean_over_outputs(outputs, lambda output: views_distance(output, labels))
    return {
        "complementary": settings.weight * agreement,
        "complementary_distance": settings.weight * settings.distance_weight * distance,
    }


def views_distance(output: Output, labels: Tensor) -> Tensor:
    """Return the mean squared difference of the logits [2B, K, h, w] of the two halves of the batch, a scalar.

    It is the mean over classes and over pixels that hold image: `labels` [B, H, W] are `IGNORE_INDEX` elsewhere.
    """
    one, other = output.logits.float().chunk(2)
    counted = part_of(output.window, labels) != IGNORE_INDEX  # [B, h, w]
    mean: Tensor = ((one - other).square().mean(dim=1) * counted).sum() / mean_count(counted)
    return mean


def _kept(inputs: RecipeInputs[SelfTrainingSettings], images: StepImages) -> Tensor:
    """Return what the first view shows, 0 or 1, [B, 1, H, W]."""
    settings = inputs.recipe.advanced.complementary
    keep = kept_blocks(images.target, settings.block, settings.ratio, inputs.draws)
    if not settings.by_region:
        return keep
    things = kept_blocks(images.target, settings.block, settings.ratio, inputs.draws)
    return torch.where(thing_pixels(inputs, images.pseudo.labels), things, keep)


def thing_pixels(inputs: RecipeInputs[SelfTrainingSettings], labels: Tensor) -> Tensor:
    """Return where `labels` [B, H, W] are a thing (`recipe.thing_classes`), bool [B, 1, H, W]; padding is stuff."""
    things = [index for index, name in enumerate(inputs.class_names) if name in inputs.recipe.thing_classes]
    found = torch.zeros_like(labels, dtype=torch.bool)
    for index in things:  # numbers of Python: a tensor of them would have to cross to the device each step
        found |= labels == index
    return found.unsqueeze(1)
