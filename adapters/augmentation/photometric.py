"""Photometric augmentation of source training: what makes a network read light and colour less literally.

Strong settings stand in for the weather and the light that the source never shows; published source models of driving
scenes that generalise are trained so (for example Choi et al. 2021, RobustNet: jitter 0.4, blur). Each image draws for
itself; all random numbers come from the caller's `Draws`.
"""

import math

import torch
from kornia.color import rgb_to_grayscale
from torch import Tensor

from adapters.augmentation.augment import color_jitter, gaussian_blur
from adapters.draws import Draws
from configs.settings import PretrainSettings


def photometric(images: Tensor, settings: PretrainSettings, draws: Draws) -> Tensor:
    """`images` [B, 3, H, W] in [0, 1] after jitter, gamma, greying and blur, each for a random part of the batch.

    What a setting leaves off draws nothing and costs nothing.
    """
    if settings.jitter > 0.0:
        images = _sometimes(images, color_jitter(images, settings.jitter, draws), settings.jitter_probability, draws)
    if settings.gamma > 0.0:
        images = random_gamma(images, settings.gamma, draws)
    if settings.grayscale_probability > 0.0:
        grey = rgb_to_grayscale(images).expand_as(images)
        images = _sometimes(images, grey, settings.grayscale_probability, draws)
    if settings.blur_probability > 0.0:
        images = _sometimes(images, gaussian_blur(images, draws), settings.blur_probability, draws)
    return images


def random_gamma(images: Tensor, strength: float, draws: Draws) -> Tensor:
    """`images` [B, 3, H, W] in [0, 1] to a power between 1 / (1 + `strength`) and 1 + `strength`, one an image.

    The power's logarithm is uniform, so that darker and lighter are equally likely.
    """
    draw = 2.0 * draws.per_image(images.shape[0], 1, 1, 1) - 1.0
    exponent = torch.exp(math.log1p(strength) * draw).to(images.device, non_blocking=True)
    return images.clamp(min=0.0) ** exponent


def _sometimes(images: Tensor, changed: Tensor, probability: float, draws: Draws) -> Tensor:
    """`changed` for each image with `probability`, else the image as it was."""
    if probability >= 1.0:
        return changed
    chosen = draws.per_image(images.shape[0], 1, 1, 1) < probability
    return torch.where(chosen.to(images.device, non_blocking=True), changed, images)
