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

        Padding of the source holds the image again, and what is returned there does not count. `counted` [B, H, W] bool
        is False on padding of the target. Gradients are off.
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
        joint = not inputs.recipe.advanced.separate_steps
        self._shares = joint and min(self._settings.alignment_weight, self._settings.weight) > 0.0
        self._shared: tuple[Tensor, Tensor] | None = None
        """Source images that both losses see in one step, and their translation, between the two."""

    def alignment(self, inputs: RecipeInputs[Any], images: StepImages) -> dict[str, Tensor]:
        """Return `alignment`: the distance of the maps of source images and of their translations, in one pass.

        With several views it is of the first, the context of a multi-resolution network.
        """
        if images.source is None or images.source_labels is None:
            return {}
        translated = self.of(images, images.source, images.source_labels)
        if self._shares:
            self._shared = images.source, translated
        both = normalise_unit(torch.cat([images.source, translated]))
        with inputs.autocast():
            maps = inputs.student.encode(inputs.student.views(both, inputs.draws)[0].images)
            distance = pyramid_distance(maps)
        return {"alignment": self._settings.alignment_weight * distance}

    def loss(self, inputs: RecipeInputs[Any], images: StepImages) -> dict[str, Tensor]:
        """Return `translated`: the loss on the translations against the labels of the source images."""
        if images.source is None or images.source_labels is None:
            return {}
        shared, self._shared = self._shared, None
        if shared is not None and shared[0] is images.source:
            translated = shared[1]
        else:
            translated = self.of(images, images.source, images.source_labels)
        weight = inputs.label_weight(images.source_labels)
        with inputs.autocast():
            encoded = encode(inputs.student, normalise_unit(translated), inputs.draws)
            losses = images.compared(inputs, Supervised("translated", encoded, images.source_labels, weight))
        return {name: self._settings.weight * loss for name, loss in losses.items()}

    @torch.no_grad()
    def of(self, images: StepImages, source: Tensor, labels: Tensor) -> Tensor:
        """Return the translation of `source` [B, 3, H, W] with `labels` [B, H, W]; padding stays 0.

        The translation sees the image again in the place of its padding, which would count in statistics. Raises
        AdapterError when a plug-in returns another shape.
        """
        held, repeated = without_padding(source, labels)
        translated = self._translate(repeated, images.target, images.valid)
        if not isinstance(translated, Tensor) or translated.shape != source.shape:
            found = list(translated.shape) if isinstance(translated, Tensor) else type(translated).__name__
            raise AdapterError(
                f"recipe.advanced.translation.translate: {self._settings.translate!r} returned {found}, expected "
                f"images {list(source.shape)}; correct that plug-in"
            )
        return translated * held


def without_padding(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return where `images` [B, 3, H, W] hold image, bool [B, 1, H, W], and the images repeated into the rest.

    Padding: the black, unlabelled rows and columns in which an image ends below and to the right; `labels` [B, H, W].
    """
    seen = (labels != IGNORE_INDEX) | (images > 0).any(dim=1)
    rows, columns = (torch.arange(side, device=images.device) for side in seen.shape[1:])
    height = ((rows + 1) * seen.any(dim=2)).amax(dim=1).clamp(min=1)[:, None, None]
    width = ((columns + 1) * seen.any(dim=1)).amax(dim=1).clamp(min=1)[:, None, None]
    held = (rows[:, None] < height) & (columns < width)
    each = torch.arange(len(images), device=images.device)[:, None, None]
    repeated = images[each, :, rows[:, None] % height, columns % width]  # [B, H, W, 3]
    return held.unsqueeze(1), repeated.permute(0, 3, 1, 2).contiguous()


def pyramid_distance(maps: Sequence[Tensor]) -> Tensor:
    """Return the mean over `maps` [2B, C, h, w] of 1 - cosine of the two halves, over positions, a scalar.

    The cosine is over channels, in float32.
    """
    halves = [level.float().chunk(2) for level in maps]
    return torch.stack([1.0 - F.cosine_similarity(one, other, dim=1).mean() for one, other in halves]).mean()
