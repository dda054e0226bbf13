"""Foundation distance: features of masked target images stay near those that a frozen model has of them whole.

A reading of OMUDA's feature level (Ou et al., arXiv 2512.12303), of which only the abstract is public:
"feature-distillation masking transfers knowledge from pre-trained models". Distance and constants are those of
VFM-UDA++ (Englert et al., arXiv 2503.10685), masks are those of MaskTwins. VFM-UDA++ shows the student whole images,
target and source in a pass each, lightly jittered. Here the target is jittered and blurred as the mix is, and the
distance of the source shares the pass that learns its labels; both are ours.
"""

from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from adapters.augmentation.augment import normalise_unit, strong_augment
from adapters.errors import AdapterError
from adapters.networks.foundation_model import FoundationModel, load_foundation_model
from adapters.networks.initialisation import LayerNorm2d
from adapters.networks.training_pass import IGNORE_INDEX
from adapters.recipes.recipe import RecipeInputs
from adapters.recipes.self_training import StepImages, Supervised, TermModule
from adapters.recipes.terms import mask_blocks
from adapters.self_training.pseudo_labels import mean_over
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

        Raises UnsupportedModel or NetworkMismatch when the directory holds none of `KINDS`.
        """
        super().__init__()
        self._settings = settings = inputs.recipe.advanced.foundation
        assert settings.directory is not None  # a check of the settings
        try:
            frozen = load_foundation_model(settings.directory)
        except AdapterError as error:
            raise type(error)(f"recipe.advanced.foundation.directory: {error}") from error
        frozen.to(inputs.accelerator.device)
        self._frozen: tuple[FoundationModel] = (frozen,)  # in a tuple it is no part of this module, which is saved
        mine, theirs = inputs.student.feature_channels[-1], frozen.width
        self.projection = nn.Sequential(
            nn.Conv2d(mine, WIDENING * mine, 1),
            LayerNorm2d(WIDENING * mine),
            nn.GELU(),
            nn.Conv2d(WIDENING * mine, theirs, 1),
        )
        self.to(inputs.accelerator.device)

    def prepare(self, inputs: RecipeInputs[Any], images: StepImages) -> StepImages:
        """Add `foundation_source` to the losses of the source pass, whose maps it shares (`source_weight`)."""
        weight, whole, compare = self._settings.source_weight, images.source, images.compare
        if weight == 0.0 or whole is None:
            return images

        def compared(inputs: RecipeInputs[Any], seen: Supervised) -> dict[str, Tensor]:
            losses = compare(inputs, seen)
            if seen.name == "source":
                known = seen.labels != IGNORE_INDEX
                losses["foundation_source"] = weight * self.distance(seen.encoded.features[0][-1], whole, known)
            return losses

        return replace(images, compare=compared)

    def forward(self, inputs: RecipeInputs[Any], images: StepImages) -> dict[str, Tensor]:
        """Return `foundation`: the distance on the jittered, blurred and masked target, times its weight.

        With several views it is of the first, the context of a multi-resolution network; the others are not encoded.
        """
        settings, draws = self._settings, inputs.draws
        augmented = normalise_unit(strong_augment(images.target, inputs.recipe, draws))
        masked = mask_blocks(augmented, settings.block, settings.ratio, draws)
        with inputs.autocast():
            deepest = inputs.student.encode(inputs.student.views(masked, draws)[0].images)[-1]
            distance = self.distance(deepest, images.target, images.valid)
        return {"foundation": settings.weight * distance}

    def distance(self, deepest: Tensor, images: Tensor, known: Tensor) -> Tensor:
        """Return the distance of the student's map [B, C, h, w] to the frozen one's of `images` [B, 3, H, W], a scalar.

        `images` are in [0, 1]. A token counts when at least half of its pixels are `known`, bool [B, H, W]: the rest is
        padding, or unlabelled source; ours.
        """
        wanted = self._frozen[0](normalise_unit(images), self._settings.tokens)
        size = wanted.shape[-2:]
        projected = F.interpolate(self.projection(deepest), size, mode="bilinear", align_corners=False)
        counted = F.interpolate(known.float().unsqueeze(1), size, mode="area").squeeze(1) >= 0.5
        return feature_distance(projected.float(), wanted.float(), counted)


def feature_distance(one: Tensor, other: Tensor, counted: Tensor) -> Tensor:
    """Return 0.1 * smooth L1 + 0.9 * (1 - cosine) over channels of [B, C, h, w], a scalar.

    It is the mean over the `counted` positions, bool [B, h, w], of all processes; 0 without any.
    """
    smooth = F.smooth_l1_loss(one, other, reduction="none").mean(dim=1)
    cosine = F.cosine_similarity(one, other, dim=1)
    return mean_over(SMOOTH_SHARE * smooth + (1.0 - SMOOTH_SHARE) * (1.0 - cosine), counted)


SMOOTH_SHARE = 0.1
"""Share of smooth L1 in the distance; published."""
