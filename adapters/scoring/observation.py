"""Describe one frame by a version's output without labels: entropy, confidence, class areas, and a fixed embedding.

None of these is ever a vote, because a confident model is not a better one. They describe the stream.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from adapters.inference.palette import class_map
from adapters.inference.segment import logits_of
from adapters.networks.network import SegmentationNetwork, normalise
from adapters.scoring.scores.diversity import area, mean_entropy
from adapters.scoring.scores.frames import enlarged


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


@torch.inference_mode()
def observe_frame(
    serving: SegmentationNetwork, released: SegmentationNetwork, pixels: NDArray[np.uint8]
) -> FrameStatistics:
    """Return statistics of `pixels` [h, w, 3], the valid region of a frame; both networks are in eval mode."""
    device = next(serving.parameters()).device
    images = normalise(torch.from_numpy(np.ascontiguousarray(pixels))[None].to(device))  # [1, 3, h, w]
    logits = logits_of(serving, images)[0]
    probabilities = logits.softmax(dim=0)
    deepest = released.encode(enlarged(images))[-1]  # [1, D, h', w']
    return FrameStatistics(
        entropy=mean_entropy(probabilities),
        confidence=float(probabilities.amax(dim=0).mean()),
        area=area(class_map(logits), len(logits)).float().cpu().numpy(),
        embedding=deepest.mean(dim=(2, 3))[0].float().cpu().numpy(),
    )
