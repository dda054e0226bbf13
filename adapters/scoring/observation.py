"""Describe one frame by a version's output without labels: entropy, confidence, class areas, and a fixed embedding.

None of these is ever a vote, because a confident model is not a better one. They describe the stream.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.inference.palette import class_map
from adapters.inference.segment import logits_of
from adapters.networks.network import SegmentationNetwork, normalise
from adapters.scoring.candidate import evenly
from adapters.scoring.scores.diversity import area, mean_entropy
from adapters.scoring.scores.frames import enlarged
from storage.source.labelled import LabelledSet


@dataclass(frozen=True, slots=True)
class FrameStatistics:
    """Numbers of one frame."""

    entropy: float
    """Mean softmax entropy (nats)."""
    confidence: float
    """Mean largest softmax probability (0-1)."""
    area: NDArray[np.float32]
    """Share of pixels predicted per class, [K] (0-1)."""
    embedding: NDArray[np.float32]
    """Mean-pooled deepest map of the released version's encoder, [D]."""
    style: NDArray[np.float32]
    """Log-variance of each channel of its shallowest map, [S] (`style_of`)."""


SOURCE_IMAGES = 256
"""Most source images that get a style vector."""
LEAST_VARIANCE = 1e-6
"""Floor of a channel's variance: a channel that is constant has no logarithm."""


def style_of(features: Tensor) -> NDArray[np.float32]:
    """Return the log-variance of each channel over the cells of `features` [1, S, h, w], as [S].

    Channel statistics of a shallow layer describe light, weather and sensor rather than content. ReservoirTTA
    (arXiv 2505.14511) takes three layers of a VGG; here it is one of the released encoder, which is loaded anyway.
    """
    variance = features.float().var(dim=(2, 3), correction=0)[0]
    return variance.clamp(min=LEAST_VARIANCE).log().cpu().numpy()


@torch.inference_mode()
def image_style(released: SegmentationNetwork, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the style vector [S] of an image [h, w, 3] without padding."""
    image = torch.from_numpy(np.ascontiguousarray(pixels))[None].to(next(released.parameters()).device)
    return style_of(released.encode(enlarged(normalise(image)))[0])


def source_styles(released: SegmentationNetwork, source: LabelledSet) -> dict[int, NDArray[np.float32]]:
    """Return the style vector [S] of at most `SOURCE_IMAGES` source images, by index; padding does not count."""
    found = {}
    for index in evenly(range(len(source)), SOURCE_IMAGES):
        height, width = source.valid[index]
        found[index] = image_style(released, source.images.read(index)[:height, :width])
    return found


@torch.inference_mode()
def observe_frame(
    serving: SegmentationNetwork, released: SegmentationNetwork, pixels: NDArray[np.uint8]
) -> FrameStatistics:
    """Return statistics of `pixels` [h, w, 3], the valid region of a frame; both networks are in eval mode."""
    device = next(serving.parameters()).device
    images = normalise(torch.from_numpy(np.ascontiguousarray(pixels))[None].to(device))  # [1, 3, h, w]
    logits = logits_of(serving, images)[0]
    probabilities = logits.softmax(dim=0)
    maps = released.encode(enlarged(images))  # [1, C_l, h_l, w_l], deepest last
    return FrameStatistics(
        entropy=mean_entropy(probabilities),
        confidence=float(probabilities.amax(dim=0).mean()),
        area=area(class_map(logits), len(logits)).float().cpu().numpy(),
        embedding=maps[-1].mean(dim=(2, 3))[0].float().cpu().numpy(),
        style=style_of(maps[0]),
    )
