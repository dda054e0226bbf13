"""Foundation distance: features of masked target images stay near those that a frozen DINOv2 has of the whole images.

A reading of OMUDA's feature level (Ou et al., arXiv 2512.12303), of which only the abstract is public:
"feature-distillation masking transfers knowledge from pre-trained models". Distance and constants are those of
VFM-UDA++ (Englert et al., arXiv 2503.10685), which shows the student whole images; masks are those of MaskTwins.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.augmentation.augment import normalise_unit, strong_augment
from adapters.errors import AdapterError
from adapters.networks.encoders.dinov2 import PATCH, DinoV2Encoder, load_dinov2
from adapters.networks.initialisation import LayerNorm2d
from adapters.recipes.recipe import RecipeInputs
from adapters.recipes.self_training import StepImages, TermModule
from adapters.recipes.terms import mask_blocks
from configs.recipe import SelfTrainingSettings

WIDENING = 4
"""Width of the projection between its layers, in channels of the student's map; published."""


class FoundationDistance(TermModule):
    """The projection of the student's deepest map to the frozen encoder's width, and the distance of the two.

    Only the projection is saved and trained. The frozen encoder is read from its directory by each round.
    """

    name = "foundation"

    def __init__(self, inputs: RecipeInputs[SelfTrainingSettings]) -> None:
        """Build it on the student's device.

        Raises UnsupportedModel or NetworkMismatch when the directory does not hold a DINOv2.
        """
        super().__init__()
        self._settings = settings = inputs.recipe.advanced.foundation
        assert settings.directory is not None  # a check of the settings
        try:
            frozen = load_dinov2(settings.directory)
        except AdapterError as error:
            raise type(error)(f"recipe.advanced.foundation.directory: {error}") from error
        frozen.requires_grad_(False).eval().to(inputs.accelerator.device)
        self._frozen: tuple[DinoV2Encoder] = (frozen,)  # in a tuple it is no part of this module, which is saved
        mine, theirs = inputs.student.feature_channels[-1], frozen.feature_channels[-1]
        self.projection = nn.Sequential(
            nn.Conv2d(mine, WIDENING * mine, 1),
            LayerNorm2d(WIDENING * mine),
            nn.GELU(),
            nn.Conv2d(WIDENING * mine, theirs, 1),
        )
        self.to(inputs.accelerator.device)

    def forward(self, inputs: RecipeInputs[Any], images: StepImages) -> dict[str, Tensor]:
        """Return `foundation`: the distance on the jittered, blurred and masked target, times its weight.

        With several views it is of the first, the context of a multi-resolution network; the others are not encoded.
        """
        settings, draws = self._settings, inputs.draws
        augmented = normalise_unit(strong_augment(images.target, inputs.recipe, draws))
        masked = mask_blocks(augmented, settings.block, settings.ratio, draws)
        with inputs.autocast():
            wanted = self.seen_whole(normalise_unit(images.target))
            deepest = inputs.student.encode(inputs.student.views(masked, draws)[0].images)[-1]
            projected = F.interpolate(self.projection(deepest), wanted.shape[-2:], mode="bilinear", align_corners=False)
        return {"foundation": settings.weight * feature_distance(projected.float(), wanted.float())}

    @torch.no_grad()
    def seen_whole(self, images: Tensor) -> Tensor:
        """Return the frozen encoder's tokens of normalised `images` [B, 3, H, W], [B, C, rows, columns].

        The shorter side has `tokens` of them.
        """
        height, width = images.shape[-2:]
        scale = PATCH * self._settings.tokens / min(height, width)
        size = [max(PATCH, round(scale * side)) for side in (height, width)]
        resized = F.interpolate(images, size, mode="bilinear", align_corners=False)
        tokens: Tensor = self._frozen[0](resized)[-1]
        return tokens


def feature_distance(one: Tensor, other: Tensor) -> Tensor:
    """Return 0.1 * smooth L1 + 0.9 * (1 - cosine) over channels, the mean over positions of [B, C, h, w], a scalar."""
    smooth = F.smooth_l1_loss(one, other)
    cosine = F.cosine_similarity(one, other, dim=1).mean()
    return SMOOTH_SHARE * smooth + (1.0 - SMOOTH_SHARE) * (1.0 - cosine)


SMOOTH_SHARE = 0.1
"""Share of smooth L1 in the distance; published."""
