"""Source images in the appearance of the target: their maps are aligned with the image's, and their labels are learnt.

Jiang et al., "MFM-DA" (arXiv 2503.00802, its code), second stage. What translates is exchangeable: the paper trains a
diffusion model, whose sampler is not public; `style` is the statistics transfer that the gate trusts.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.augmentation.augment import normalise_unit
from adapters.augmentation.styled import restyled
from adapters.errors import AdapterError
from adapters.networks.training_pass import IGNORE_INDEX, encode
from adapters.recipes.recipe import RecipeInputs
from adapters.recipes.self_training import StepImages, Supervised
from configs.plugins import TRANSLATIONS as PLUGINS
from configs.plugins import load_plugin
from configs.recipe import SelfTrainingSettings


class Translation(Protocol):
    """What gives source images the appearance of the target; structures stay where they are."""

    def __call__(self, source: Tensor, target: Tensor, counted: Tensor) -> Tensor:
        """Return `source` [B, 3, H, W] in the appearance of `target` [B, 3, H, W]; RGB in [0, 1], on the device.

        `counted` [B, H, W] bool is False on padding of the target. Gradients are off.
        """
        ...


def style(inputs: RecipeInputs[SelfTrainingSettings]) -> Translation:
    """Build the swap of low frequencies and colour statistics, each source crop with the target crop of its row."""
    settings = inputs.recipe.advanced.translation
    return partial(restyled, reach=settings.reach, max_gain=settings.max_gain)


BUILT_IN: dict[str, Callable[[RecipeInputs[Any]], Translation]] = {"style": style}
"""By `recipe.advanced.translation.translate`."""


def build_translation(inputs: RecipeInputs[SelfTrainingSettings]) -> Translation:
    """Build the translation that settings name, or the plug-in. Raises ConfigError when that cannot be imported."""
    name = inputs.recipe.advanced.translation.translate
    build = BUILT_IN.get(name) or load_plugin(name, PLUGINS, "recipe.advanced.translation.translate")
    translation: Translation = build(inputs)
    return translation


class Translated:
    """Both terms: `alignment` and `loss`. The translation has no weights that the round trains."""

    def __init__(self, inputs: RecipeInputs[SelfTrainingSettings]) -> None:
        """Build the translation. Raises AdapterError without source images, ConfigError for a plug-in."""
        self._settings = inputs.recipe.advanced.translation
        if inputs.source_free:
            raise AdapterError(
                "recipe.advanced.translation: translates labelled source images; without them set enabled to false "
                "and take another recipe than mfm_da"
            )
        self._translate = build_translation(inputs)

    def alignment(self, inputs: RecipeInputs[Any], images: StepImages) -> dict[str, Tensor]:
        """Return `alignment`: the distance of the maps of source images and of their translations, in one pass.

        With several views it is of the first, the context of a multi-resolution network.
        """
        if images.source is None:
            return {}
        both = normalise_unit(torch.cat([images.source, self.of(images, images.source)]))
        with inputs.autocast():
            maps = inputs.student.encode(inputs.student.views(both, inputs.draws)[0].images)
            distance = pyramid_distance(maps)
        return {"alignment": self._settings.alignment_weight * distance}

    def loss(self, inputs: RecipeInputs[Any], images: StepImages) -> dict[str, Tensor]:
        """Return `translated`: the loss on the translations against the labels of the source images."""
        if images.source is None or images.source_labels is None:
            return {}
        translated = normalise_unit(self.of(images, images.source))
        weight = inputs.label_weight(images.source_labels)
        with inputs.autocast():
            encoded = encode(inputs.student, translated, inputs.draws)
            losses = images.compared(inputs, Supervised("translated", encoded, images.source_labels, weight))
        return {name: self._settings.weight * loss for name, loss in losses.items()}

    @torch.no_grad()
    def of(self, images: StepImages, source: Tensor) -> Tensor:
        """Return the translation of `source` [B, 3, H, W]. Raises AdapterError when a plug-in returns another shape."""
        translated = self._translate(source, images.target, images.pseudo.labels != IGNORE_INDEX)
        if not isinstance(translated, Tensor) or translated.shape != source.shape:
            found = list(translated.shape) if isinstance(translated, Tensor) else type(translated).__name__
            raise AdapterError(
                f"recipe.advanced.translation.translate: {self._settings.translate!r} returned {found}, expected "
                f"images {list(source.shape)}; correct that plug-in"
            )
        return translated


def pyramid_distance(maps: Sequence[Tensor]) -> Tensor:
    """Return the mean over `maps` [2B, C, h, w] of 1 - cosine of the two halves, over positions, a scalar.

    The cosine is over channels, in float32.
    """
    halves = [level.float().chunk(2) for level in maps]
    return torch.stack([1.0 - F.cosine_similarity(one, other, dim=1).mean() for one, other in halves]).mean()
