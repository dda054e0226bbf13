"""Describe one frame by a version's output without labels: entropy, confidence, class areas, and a fixed embedding.

None of these is ever a vote, because a confident model is not a better one. They describe the stream.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from adapters.inference.segment import logits_of
from adapters.networks.network import MIN_SIDE, SegmentationNetwork, normalise


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
    """Return statistics of `pixels` [h, w, 3], the valid region of a frame.

    Both networks are in eval mode on one device.
    """
    device = next(serving.parameters()).device
    images = normalise(torch.from_numpy(np.ascontiguousarray(pixels))[None].to(device))  # [1, 3, h, w]
    logits = logits_of(serving, images)
    log_probability = logits.log_softmax(dim=1)
    probability = log_probability.exp()
    classes = logits.shape[1]
    labels = logits.argmax(dim=1).flatten()
    area = torch.bincount(labels, minlength=classes).float() / labels.numel()
    return FrameStatistics(
        entropy=float(-(probability * log_probability).sum(dim=1).mean()),
        confidence=float(probability.amax(dim=1).mean()),
        area=area.cpu().numpy(),
        embedding=_embedding(released, images),
    )


def _embedding(network: SegmentationNetwork, images: Tensor) -> NDArray[np.float32]:
    height, width = images.shape[-2:]
    missing = (0, max(0, MIN_SIDE - width), 0, max(0, MIN_SIDE - height))
    deepest = network.encode(F.pad(images, missing, mode="replicate"))[-1]  # [1, D, h', w']
    embedding: NDArray[np.float32] = deepest.mean(dim=(2, 3))[0].float().cpu().numpy()
    return embedding
