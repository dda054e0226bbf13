"""Colour jitter and blur on a batch of images in [0, 1], before normalisation (strong augmentation of DACS).

Strong settings substitute for the weather and the light that the source never shows. Published source models of driving
scenes that generalise are trained like this (for example Choi et al. 2021, RobustNet: jitter 0.4, blur). Each image
draws for itself; all random numbers come from the caller's `StepRng`.
"""

import functools
import math

import torch
from kornia import enhance
from kornia.color import rgb_to_grayscale
from kornia.filters import gaussian_blur2d
from torch import Tensor

from adapters.networks.network import IMAGENET_MEAN, IMAGENET_STD
from adapters.networks.parallel import sum_over_processes
from adapters.networks.step_rng import StepRng
from configs.network import PretrainSettings
from configs.recipe import SelfTrainingSettings

BLUR_SIGMA = (0.15, 1.15)
"""Range of the blur's standard deviation (pixels)."""
CHANGES = (
    enhance.adjust_brightness_accumulative,
    enhance.adjust_contrast_with_mean_subtraction,
    enhance.adjust_saturation_with_gray_subtraction,
    enhance.adjust_hue,
)
"""Changes of colour jitter; the first three take factors, the last an angle."""
BLUR_SHARE = 0.1
"""Side of the blur kernel as a share of the image side."""


def to_unit(frames: Tensor) -> Tensor:
    """Convert RGB bytes [B, H, W, 3] to floats [B, 3, H, W] in [0, 1]."""
    return frames.permute(0, 3, 1, 2).float() / 255.0


def normalise_unit(images: Tensor) -> Tensor:
    """Normalise images [B, 3, H, W] in [0, 1] as a network reads them (like `pixels.normalise`)."""
    mean, deviation = _statistics(images.device)
    return (images - mean) / deviation


@functools.cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and deviation, [3, 1, 1], cached on the device: a new copy would make each step wait for the GPU."""
    return tuple(torch.tensor(values, device=device).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))  # type: ignore[return-value]


def color_jitter(images: Tensor, strength: float, draws: StepRng) -> Tensor:
    """Change brightness, contrast, saturation (factors 1 +- `strength`) and hue (+- `strength` turns) at random.

    `images` [B, 3, H, W] float in [0, 1]. Each image draws its own amounts; the batch shares a random order.
    """
    draw = 2.0 * draws.per_image(images.shape[0], 4).T - 1.0  # [4, B] in -1..1
    amount = (strength * draw).to(images.device, non_blocking=True)
    amounts = (*(1.0 + amount[:3]), 2.0 * math.pi * amount[3])
    for index in draws.order(4):
        images = torch.as_tensor(CHANGES[index](images, amounts[index]))
    return images


def gaussian_blur(images: Tensor, draws: StepRng) -> Tensor:
    """Blur each image with one sigma drawn from `BLUR_SIGMA`; `images` [B, 3, H, W].

    The sigmas stay on the CPU: kornia checks them there and moves them itself, but would read back those of a GPU.
    """
    low, high = BLUR_SIGMA
    sigma = low + (high - low) * draws.per_image(images.shape[0], 1)  # [B, 1]
    kernel = (odd_kernel(images.shape[-2]), odd_kernel(images.shape[-1]))
    blurred = gaussian_blur2d(images, kernel, sigma.expand(-1, 2))
    return torch.as_tensor(blurred)


def odd_kernel(side: int) -> int:
    """Return an odd kernel size of about a tenth of `side` pixels: 51 at 512, 103 at 1024, 13 at 128."""
    size = math.ceil(BLUR_SHARE * side)
    return size if size % 2 else size - 1


def strong_augment(images: Tensor, recipe: SelfTrainingSettings, draws: StepRng) -> Tensor:
    """Apply colour jitter and blur, each drawn once for the whole batch; `images` [B, 3, H, W] float in [0, 1]."""
    jitter_draw, blur_draw = draws.shared(2).tolist()
    if recipe.jitter > 0.0 and jitter_draw < recipe.advanced.jitter_probability:
        images = color_jitter(images, recipe.jitter, draws)
    return gaussian_blur(images, draws) if blur_draw < recipe.advanced.blur_probability else images


def photometric(images: Tensor, settings: PretrainSettings, draws: StepRng) -> Tensor:
    """Apply jitter, gamma, greying and blur to `images` [B, 3, H, W] in [0, 1], each to a random part of the batch.

    A change that the settings switch off draws no random numbers and costs nothing.
    """
    advanced = settings.advanced
    if advanced.jitter > 0.0:
        images = _sometimes(images, color_jitter(images, advanced.jitter, draws), advanced.jitter_probability, draws)
    if advanced.gamma > 0.0:
        images = random_gamma(images, advanced.gamma, draws)
    if advanced.grayscale_probability > 0.0:
        grey = rgb_to_grayscale(images).expand_as(images)
        images = _sometimes(images, grey, advanced.grayscale_probability, draws)
    if advanced.blur_probability > 0.0:
        images = _sometimes(images, gaussian_blur(images, draws), advanced.blur_probability, draws)
    return images


def random_gamma(images: Tensor, strength: float, draws: StepRng) -> Tensor:
    """Raise `images` [B, 3, H, W] in [0, 1] to a power between 1 / (1 + `strength`) and 1 + `strength`, one per image.

    The logarithm of the power is uniform, so darker and lighter are equally likely.
    """
    draw = 2.0 * draws.per_image(images.shape[0], 1, 1, 1) - 1.0
    exponent = torch.exp(math.log1p(strength) * draw).to(images.device, non_blocking=True)
    return images.clamp(min=0.0) ** exponent


def _sometimes(images: Tensor, changed: Tensor, probability: float, draws: StepRng) -> Tensor:
    """Return `changed` for each image with `probability`, else the image unchanged."""
    if probability >= 1.0:
        return changed
    chosen = draws.per_image(images.shape[0], 1, 1, 1) < probability
    return torch.where(chosen.to(images.device, non_blocking=True), changed, images)


LABEL_VALUES = 256
"""Labels are bytes; 255 (ignore) counts as a value of its own, as in DACS."""


def class_mask(labels: Tensor, draws: StepRng) -> Tensor:
    """Return where the source is pasted: the pixels of ceil(n/2) of the n label values of the whole batch, [B, H, W].

    `labels` [B, H, W] integer 0-255; the whole batch is that of all processes. Each image draws its own half. Only
    random numbers cross to the device, and nothing is read back from it, so the step never waits for the GPU.
    """
    batch = labels.shape[0]
    flat = labels.reshape(batch, -1).long()  # [B, H*W]
    found = torch.zeros(LABEL_VALUES, dtype=torch.int32, device=labels.device).index_fill_(0, flat.flatten(), 1)
    present = sum_over_processes(found) > 0
    noise = draws.per_image(batch, LABEL_VALUES).to(labels.device, non_blocking=True)
    # Rank the values of each image by noise, absent values last: the first ceil(n/2) ranks are a uniform draw.
    rank = noise.masked_fill(~present, 2.0).argsort(dim=1).argsort(dim=1)  # [B, 256]
    chosen = rank < (present.sum() + 1) // 2
    return chosen.gather(1, flat).reshape(labels.shape)


def paste(mask: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Return `source` where `mask`, else `target`, for images [B, C, H, W] and for labels and weights [B, H, W]."""
    return torch.where(mask.unsqueeze(1) if source.ndim == mask.ndim + 1 else mask, source, target)
