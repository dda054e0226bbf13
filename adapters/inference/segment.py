"""From images to label maps: the one path of serving, prediction, evaluation and scores."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from adapters.inference.palette import class_map
from adapters.networks.network import MIN_SIDE, normalise
from storage.media.images import ASPECT, Fit, FittedFrame, fit_frame

_BAND_VALUES = 8_000_000
"""Largest number of logits in memory while a label map is computed at the original resolution."""


def choose_device(name: Literal["auto", "cpu"]) -> torch.device:
    """Return the GPU when `name` is `auto` and there is one, otherwise the CPU."""
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else "cpu")


@torch.inference_mode()
def segment_fitted(
    network: nn.Module,
    frames: Sequence[FittedFrame],
    sizes: Sequence[tuple[int, int]],
    forward: Callable[[nn.Module, Tensor], Tensor] | None = None,
) -> list[Tensor]:
    """Return label maps, uint8 `[h, w]` at the original sizes `(h, w)`, of frames that share one valid size.

    Arguments and errors are those of `logits_fitted`; also ValueError unless there is one size for each frame.
    """
    return [labels_at(logit, size) for logit, size in zip(logits_fitted(network, frames, forward), sizes, strict=True)]


def logits_fitted(
    network: nn.Module,
    frames: Sequence[FittedFrame],
    forward: Callable[[nn.Module, Tensor], Tensor] | None = None,
) -> Iterator[Tensor]:
    """Yield logits `[K, H, W]` of frames that share one valid size, one after another, at that size.

    Only the valid region enters the network, so padding cannot change the answer of a frame. Runs on the network's
    device; the network should be in eval mode. On a CPU images pass one by one: that takes a tenth to a half more time,
    and an answer never depends on the other images of its batch. On a GPU they pass as one batch, whose rounding may
    decide a pixel where two classes are equally likely. `forward` gives logits like `logits_of`, the default; sliding
    windows pass their own function. Raises ValueError when valid sizes differ.
    """
    valid = {(frame.valid_height, frame.valid_width) for frame in frames}
    if len(valid) != 1:
        raise ValueError(f"expected frames of one valid size, got {sorted(valid)}")
    device = next(network.parameters()).device
    with torch.inference_mode():
        images = normalise(torch.from_numpy(np.stack([frame.cropped() for frame in frames])).to(device))
    step = 1 if device.type == "cpu" else len(frames)
    for start in range(0, len(frames), step):
        with torch.inference_mode():  # not around the yield: between two images the caller's mode is its own
            logits = (forward or logits_of)(network, images[start : start + step])
        yield from logits


def segment_image(
    network: nn.Module, pixels: NDArray[np.uint8], input_size: tuple[int, int], fit: Fit = ASPECT
) -> NDArray[np.uint8]:
    """Return the label map, uint8 `[h, w]`, of one image `[h, w, 3]`, scaled into `input_size` (h, w) by `fit`."""
    height, width = pixels.shape[:2]
    labels = segment_fitted(network, [fit_frame(pixels, *input_size, fit)], [(height, width)])[0]
    result: NDArray[np.uint8] = labels.cpu().numpy()
    return result


def segment_stored(network: nn.Module, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the label map, uint8 `[h, w]`, of the valid region `[h, w, 3]` of a frame, which is scaled already."""
    height, width = pixels.shape[:2]
    return segment_image(network, pixels, (height, width))


def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    """Return logits `[B, K, H, W]` of normalised images `[B, 3, H, W]` of any size.

    Sides below `MIN_SIDE` are first extended with copies of the last row or column: a very wide or tall image leaves a
    valid region of a few pixels, too small for the strides of an encoder.
    """
    height, width = images.shape[-2:]
    missing = (0, max(0, MIN_SIDE - width), 0, max(0, MIN_SIDE - height))
    padded = F.pad(images, missing, mode="replicate") if any(missing) else images
    logits: Tensor = network(padded)
    return logits[..., :height, :width]


def labels_at(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the argmax, uint8 `[h, w]`, of logits `[K, H, W]` resized bilinearly to `size`, in bounded memory."""
    height, width = size
    classes, rows, columns = logits.shape
    if size == (rows, columns):  # nothing to resize: the same labels in about a third of the time
        return class_map(logits).to(torch.uint8)
    wide = F.interpolate(logits[None], (rows, width), mode="bilinear", align_corners=False)[0]  # [K, H, w]
    # The same source coordinates as F.interpolate(align_corners=False), one band of output rows at a time.
    source = ((torch.arange(height, device=logits.device) + 0.5) * (rows / height) - 0.5).clamp(0, rows - 1)
    above = source.floor().long()
    below = (above + 1).clamp(max=rows - 1)
    share = (source - above).to(logits.dtype).view(1, -1, 1)
    band = max(1, _BAND_VALUES // (classes * width))
    labels = torch.empty(size, dtype=torch.uint8, device=logits.device)
    for start in range(0, height, band):
        part = slice(start, min(start + band, height))
        mixed = torch.lerp(wide[:, above[part]], wide[:, below[part]], share[:, part])  # [K, band, w]
        labels[part] = class_map(mixed).to(torch.uint8)
    return labels
