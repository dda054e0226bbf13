"""Rare-class sampling: source crops are drawn for a class, rare classes more often (DAFormer, arXiv 2111.14887).

Hoyer et al., "DAFormer: Improving Network Architectures and Training Strategies for Domain-Adaptive Semantic
Segmentation" (CVPR 2022), eq. 5 and 6. The original counts 3,000 pixels in an image and 1,500 in a crop of 512. Here
they are shares, so they have the same meaning at every size.
"""

import math
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.sampling.margins import Pixels
from configs.recipe import DaformerAdvanced, RareClassSettings, RecipeBase
from storage.source.labelled import LabelledSet

FALLBACK_SHARE = 0.5
"""Images with at least this share of the largest amount of a class serve it when none holds enough of it."""


class RareClasses:
    """Draws a class c with P(c) = softmax((1 - f_c) / T), then one of the images that hold enough of it, evenly.

    f_c is the share of c in all labelled pixels; classes that never occur are omitted. A class that exceeds the wanted
    share in no image keeps its P(c), as in the paper. It is drawn from the images with at least half as many of its
    pixels as the image with the most, so no single image represents it alone. (The original stops with an error.)
    """

    def __init__(self, pixels: NDArray[np.int64], areas: Sequence[int], settings: DaformerAdvanced) -> None:
        """Count `pixels` [N, K], labelled pixels per image and class, against `areas`, pixels of each image.

        Raises ValueError when nothing is labelled.
        """
        totals = pixels.sum(axis=0)
        if not totals.any():
            raise ValueError("RareClasses needs labelled pixels")
        self.classes: list[int] = np.flatnonzero(totals).tolist()
        """Classes that occur."""
        scores = (1.0 - totals[self.classes] / totals.sum()) / settings.rare_class_temperature
        powers = np.exp(scores - scores.max())
        self.probabilities = powers / powers.sum()
        """P(c) of each of `classes`."""
        wanted = settings.rare_class_image_share * np.asarray(areas)
        self.images = [_holding(pixels[:, index], wanted) for index in self.classes]
        """Indices of the images that each of `classes` is drawn from."""
        self._crop_share = settings.rare_class_crop_share

    @classmethod
    def from_settings(cls, labelled: LabelledSet, recipe: RecipeBase) -> Self | None:
        """Build it over the training images of `labelled`; None when `recipe` has it not, or nothing is labelled."""
        pixels = labelled.class_pixels[list(labelled.train)]
        if not isinstance(recipe, RareClassSettings) or not recipe.rare_class_sampling or not pixels.any():
            return None
        areas = [math.prod(labelled.valid[index]) for index in labelled.train]
        return cls(pixels, areas, recipe.advanced)

    def draw(self, generator: np.random.Generator) -> tuple[int, int]:
        """Draw a class and the index of an image to crop for it."""
        place = int(generator.choice(len(self.classes), p=self.probabilities))
        return self.classes[place], int(generator.choice(self.images[place]))

    def enough(self, labels: Pixels, wanted: int) -> bool:
        """Return whether class `wanted` exceeds its share of a crop with `labels` [h, w], the part that holds image."""
        return bool(np.count_nonzero(labels == wanted) > self._crop_share * labels.size)


def _holding(pixels: NDArray[np.int64], wanted: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return indices of the images with more than `wanted` [N] of `pixels` [N]; else of those with most."""
    enough = np.flatnonzero(pixels > wanted)
    return enough if len(enough) else np.flatnonzero(pixels >= FALLBACK_SHARE * pixels.max())


LABEL_VALUES = 256
"""Labels are bytes."""


def balanced_weights(class_pixels: NDArray[np.int64], exponent: float) -> Tensor:
    """Return the weight of each label value, [256] float32: (median frequency / frequency) ** `exponent`.

    `class_pixels` [N, K]: labelled pixels per image and class. The frequency of a class is its share of the pixels of
    the images that hold it (SegNet, Badrinarayanan 2015). Classes that never occur and other values weigh 0.
    """
    held = class_pixels > 0
    pixels = class_pixels.sum(axis=1, keepdims=True)
    frequency = class_pixels.sum(axis=0) / np.maximum((held * pixels).sum(axis=0), 1)  # [K]
    seen = frequency > 0
    weights = torch.zeros(LABEL_VALUES)
    if seen.any():
        ratio = np.median(frequency[seen]) / np.where(seen, frequency, 1.0)
        weights[: len(frequency)] = torch.from_numpy(np.where(seen, ratio**exponent, 0.0)).float()
    return weights
