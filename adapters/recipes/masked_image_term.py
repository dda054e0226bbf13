"""Masked-image consistency: the student must predict the teacher's answer with most of the target image masked.

Hoyer et al., "MIC: Masked Image Consistency for Context-Enhanced Domain Adaptation" (CVPR 2023, arXiv 2212.01322).
"""

import torch.nn.functional as F
from torch import Tensor

from adapters.augmentation.augment import normalise_unit, strong_augment
from adapters.networks.step_rng import StepRng
from adapters.networks.training_pass import encode, prediction_loss
from adapters.recipes.recipe import RecipeInputs
from adapters.recipes.self_training import StepImages
from configs.recipe import MicSettings


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
