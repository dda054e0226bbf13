"""Photometric augmentation of source training: it makes a network depend less on light and colour.

Strong settings substitute for the weather and the light that the source never shows. Published source models of driving
scenes that generalise are trained like this (for example Choi et al. 2021, RobustNet: jitter 0.4, blur). Each image
draws for itself; all random numbers come from the caller's `Draws`.
"""

import math

import torch
from kornia.color import rgb_to_grayscale
from torch import Tensor

from adapters.augmentation.augment import color_jitter, gaussian_blur
from adapters.draws import Draws
from configs.network import PretrainSettings


def photometric(images: Tensor, settings: PretrainSettings, draws: Draws) -> Tensor:
    """Apply jitter, gamma, greying and blur to `images` [B, 3, H, W] in [0, 1], each to a random part of the batch.

    A change that the settings switch off draws no random numbers and costs nothing.
    """
    advanced = settings.advanced
    if settings.jitter > 0.0:
        images = _sometimes(images, color_jitter(images, settings.jitter, draws), advanced.jitter_probability, draws)
    if advanced.gamma > 0.0:
        images = random_gamma(images, advanced.gamma, draws)
    if advanced.grayscale_probability > 0.0:
        grey = rgb_to_grayscale(images).expand_as(images)
        images = _sometimes(images, grey, advanced.grayscale_probability, draws)
    if advanced.blur_probability > 0.0:
        images = _sometimes(images, gaussian_blur(images, draws), advanced.blur_probability, draws)
    return images


def random_gamma(images: Tensor, strength: float, draws: Draws) -> Tensor:
    """Raise `images` [B, 3, H, W] in [0, 1] to a power between 1 / (1 + `strength`) and 1 + `strength`, one per image.

    The logarithm of the power is uniform, so darker and lighter are equally likely.
    """
    draw = 2.0 * draws.per_image(images.shape[0], 1, 1, 1) - 1.0
    exponent = torch.exp(math.log1p(strength) * draw).to(images.device, non_blocking=True)
    return images.clamp(min=0.0) ** exponent


def _sometimes(images: Tensor, changed: Tensor, probability: float, draws: Draws) -> Tensor:
    """Return `changed` for each image with `probability`, else the image unchanged."""
    if probability >= 1.0:
        return changed
    chosen = draws.per_image(images.shape[0], 1, 1, 1) < probability
    return torch.where(chosen.to(images.device, non_blocking=True), changed, images)
