"""Colour jitter and blur on a batch of images in [0, 1], before normalisation (strong augmentation of DACS).

All random numbers come from the caller's `Draws`.
"""

import functools
import math

import torch
from kornia import enhance
from kornia.filters import gaussian_blur2d
from torch import Tensor

from adapters.draws import Draws
from adapters.networks.pixels import IMAGENET_MEAN, IMAGENET_STD

BLUR_SIGMA = (0.15, 1.15)
"""Range of the blur's standard deviation (pixels)."""
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


def color_jitter(images: Tensor, strength: float, draws: Draws) -> Tensor:
    """Change brightness, contrast, saturation (factors 1 +- `strength`) and hue (+- `strength` turns) at random.

    `images` [B, 3, H, W] float in [0, 1]. Each image draws its own amounts; the batch shares a random order.
    """
    draw = 2.0 * draws.per_image(images.shape[0], 4).T - 1.0  # [4, B] in -1..1
    amount = (strength * draw).to(images.device, non_blocking=True)
    for index in draws.order(4):
        images = _change(images, index, amount[index])
    return images


def _change(images: Tensor, index: int, amount: Tensor) -> Tensor:
    """Apply change number `index` by `amount` [B]; 0 changes nothing."""
    if index == 0:
        changed = enhance.adjust_brightness_accumulative(images, 1.0 + amount)
    elif index == 1:
        changed = enhance.adjust_contrast_with_mean_subtraction(images, 1.0 + amount)
    elif index == 2:
        changed = enhance.adjust_saturation_with_gray_subtraction(images, 1.0 + amount)
    else:
        changed = enhance.adjust_hue(images, 2.0 * math.pi * amount)
    return torch.as_tensor(changed)


def gaussian_blur(images: Tensor, draws: Draws) -> Tensor:
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


def strong_augment(
    images: Tensor, *, jitter: float, jitter_probability: float, blur_probability: float, draws: Draws
) -> Tensor:
    """Apply colour jitter and blur, each drawn once for the whole batch; `images` [B, 3, H, W] float in [0, 1]."""
    jitter_draw, blur_draw = draws.shared(2).tolist()
    if jitter > 0.0 and jitter_draw < jitter_probability:
        images = color_jitter(images, jitter, draws)
    return gaussian_blur(images, draws) if blur_draw < blur_probability else images
