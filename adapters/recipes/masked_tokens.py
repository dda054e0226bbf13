"""Masked tokens: the masked-image loss, with tokens of a ViT hidden instead of blocks of the image.

Englert et al., "Exploring the Benefits of Vision Foundation Models for Unsupervised Domain Adaptation" (VFM-UDA; CVPRW
2024, arXiv 2406.09896), from its code: each token is replaced before the position code, with probability 0.7.
"""

from typing import Any

import torch
from torch import Tensor, nn

from adapters.augmentation.augment import normalise_unit, strong_augment
from adapters.errors import NetworkMismatch
from adapters.networks.encoders.vit import PlainVit
from adapters.networks.step_rng import StepRng
from adapters.networks.training_pass import encode, prediction_loss
from adapters.recipes.recipe import RecipeInputs
from adapters.recipes.self_training import StepImages, TermModule
from configs.recipe import MicSettings


class MaskToken(nn.Module):
    """The token that stands for hidden ones."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, patches: Tensor, ratio: float, draws: StepRng) -> Tensor:
        """Return `patches` [B, N, C], each replaced with probability `ratio`."""
        kept = draws.per_image(patches.shape[0], patches.shape[1], 1) >= ratio
        return torch.where(kept.to(patches.device, non_blocking=True), patches, self.weight.to(patches.dtype))


class MaskedTokens(TermModule):
    """The loss and its token, which learns as the encoder does.

    It begins at 0, as DINOv2's own did before its pre-training; the published code takes that one, which no version
    holds.
    """

    name = "masked_tokens"

    def __init__(self, inputs: RecipeInputs[MicSettings]) -> None:
        """Build the token on the student's device. Raises NetworkMismatch unless the encoder is a plain ViT."""
        super().__init__()
        vit = inputs.student.encoder
        if not isinstance(vit, PlainVit):
            raise NetworkMismatch(
                "recipe.advanced.masked_tokens hides tokens of a DINOv2 or DINOv3 without an adapter, and this network "
                "has another encoder; set it to false, which hides blocks of the image"
            )
        self.encoder = MaskToken(vit.width).to(inputs.accelerator.device)

    def forward(self, inputs: RecipeInputs[Any], images: StepImages) -> dict[str, Tensor]:
        """Return `masked_image`: cross-entropy on the jittered and blurred target with hidden tokens."""
        recipe, draws, vit = inputs.recipe, inputs.draws, inputs.student.encoder
        assert isinstance(vit, PlainVit)
        augmented = normalise_unit(strong_augment(images.target, recipe, draws))
        ratio = recipe.advanced.masked_image_ratio
        with inputs.autocast():
            with vit.hiding(lambda patches: self.encoder(patches, ratio, draws)):
                encoded = encode(inputs.student, augmented, draws)
            loss = prediction_loss(inputs.student, encoded, images.pseudo.labels, images.pseudo.weight)
        return {"masked_image": recipe.masked_image_weight * loss}
