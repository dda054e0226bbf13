"""All label-free scores of one model on hold-out frames, frame by frame."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.inference.palette import class_map
from adapters.networks.network import MIN_SIDE, SegmentationNetwork
from adapters.scoring.scores.disagreement import dropout_disagreement, flip_consistency
from adapters.scoring.scores.diversity import area, gram_matrix, marginal, mean_entropy


class NotFinite(ArithmeticError):
    """Weights or logits hold NaN or infinity."""


@dataclass(slots=True)
class FrameScores:
    """Scores of one model, one entry per hold-out frame; the names are those of `ModelScores`."""

    area: list[list[float]] = field(default_factory=list)
    gram: list[list[list[float]]] = field(default_factory=list)
    marginal: list[list[float]] = field(default_factory=list)
    dropout_disagreement: list[float] = field(default_factory=list)
    flip_consistency: list[float] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    """Mean entropy of each frame (nats)."""
    maps: list[Tensor] = field(default_factory=list)
    """Class maps uint8 [h, w]."""

    def add(self, network: SegmentationNetwork, image: Tensor) -> None:
        """Score one normalised image [1, 3, h, w]. Raises NotFinite."""
        features = network.encode_all(image)
        height, width = image.shape[-2:]
        logits = check_finite(network.predict(features, (height, width))[0])  # [K, h, w]
        probabilities, prediction = logits.softmax(dim=0), class_map(logits)
        self.area.append(area(prediction, network.num_classes).tolist())
        self.gram.append(gram_matrix(probabilities).tolist())
        self.marginal.append(marginal(probabilities).tolist())
        self.dropout_disagreement.append(dropout_disagreement(network, features, prediction, len(self.maps)))
        self.flip_consistency.append(flip_consistency(network, image, prediction))
        self.entropy.append(mean_entropy(probabilities))
        self.maps.append(prediction.to(torch.uint8))


def enlarged(image: Tensor) -> Tensor:
    """Extend sides of `image` [1, 3, h, w] that are below a network's smallest with copies of the edge."""
    height, width = image.shape[-2:]
    return F.pad(image, (0, max(0, MIN_SIDE - width), 0, max(0, MIN_SIDE - height)), mode="replicate")


def check_finite(tensor: Tensor) -> Tensor:
    """Return `tensor` unchanged. Raises NotFinite when it holds NaN or infinity."""
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise NotFinite("a tensor holds NaN or infinity")
    return tensor
