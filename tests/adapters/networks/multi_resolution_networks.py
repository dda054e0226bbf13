"""Tiny multi-resolution networks, one a decoder, and what their tests do with them."""

import torch
from torch import Tensor, nn

from adapters.networks.build import build_network
from adapters.networks.multi_resolution import MultiResolutionNetwork
from configs.network import Architecture

CLASSES, CROP = 4, (64, 96)
_SMALL = {"channels": 16, "dropout": 0.0, "multi_resolution": True}
NETWORKS = {
    "daformer": Architecture(name="daformer", encoder="mit_tiny", **_SMALL),
    "deeplabv2": Architecture(name="deeplabv2", encoder="resnet_tiny", **_SMALL),
    "deeplabv3plus": Architecture(name="deeplabv3plus", encoder="resnet_tiny", output_stride=16, **_SMALL),
}
NEVER, ALWAYS = -200.0, 200.0
"""Attention logits whose sigmoid is exactly 0 and 1 in float32."""


def network_of(name: str) -> MultiResolutionNetwork:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = build_network(NETWORKS[name], CLASSES)
    assert isinstance(network, MultiResolutionNetwork)
    return network.train()


def pictures(*size: int, images: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(images, 3, *size, generator=torch.Generator().manual_seed(seed))


def attend(network: MultiResolutionNetwork, logit: float) -> MultiResolutionNetwork:
    """Make the attention the same everywhere."""
    classifier = network.decoder.attention.classifier
    nn.init.zeros_(classifier.weight)
    nn.init.constant_(classifier.bias, logit)
    return network
