"""All label-free scores of one model on one hold-out frame."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.inference.palette import class_map
from adapters.networks.network import MIN_SIDE, SegmentationNetwork
from adapters.scoring.scores.disagreement import dropout_disagreement, flip_consistency
from adapters.scoring.scores.diversity import area, gram_matrix, marginal, mean_entropy


class NotFinite(ArithmeticError):
    """Weights or logits hold NaN or infinity."""


def frame_scores(network: SegmentationNetwork, image: Tensor, index: int) -> tuple[dict[str, Any], Tensor]:
    """Return the scores of a normalised image [1, 3, h, w], named as in `ModelScores`, and its class map uint8 [h, w].

    `index`, its place among the frames, seeds its dropout masks. Raises NotFinite.
    """
    features = network.encode_all(image)
    height, width = image.shape[-2:]
    logits = check_finite(network.predict(features, (height, width))[0])  # [K, h, w]
    probabilities, prediction = logits.softmax(dim=0), class_map(logits)
    scores = {
        "area": area(prediction, network.num_classes).tolist(),
        "gram": gram_matrix(probabilities).tolist(),
        "marginal": marginal(probabilities).tolist(),
        "dropout_disagreement": dropout_disagreement(network, features, prediction, index),
        "flip_consistency": flip_consistency(network, image, prediction),
        "entropy": mean_entropy(probabilities),
    }
    return scores, prediction.to(torch.uint8)


def enlarged(image: Tensor) -> Tensor:
    """Extend sides of `image` [1, 3, h, w] that are below a network's smallest with copies of the edge."""
    height, width = image.shape[-2:]
    return F.pad(image, (0, max(0, MIN_SIDE - width), 0, max(0, MIN_SIDE - height)), mode="replicate")


def check_finite(tensor: Tensor) -> Tensor:
    """Return `tensor` unchanged. Raises NotFinite when it holds NaN or infinity."""
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise NotFinite("a tensor holds NaN or infinity")
    return tensor
