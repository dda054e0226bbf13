"""An operator's network of which most is frozen: a backbone with BatchNorm and a buffer, trained tokens and a head."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapters.checkpoints.bases import save_split
from adapters.checkpoints.checkpoint import make_manifest
from adapters.networks.build import build_network
from adapters.networks.frozen import base_names
from adapters.networks.network import SegmentationNetwork
from configs.settings import Settings
from storage.registry.registry import CheckpointRegistry

NAME = "tests.adapters.frozen_network:Net"
FROZEN = {"stem.0.weight", "stem.0.bias", "stem.1.weight", "stem.1.bias", "mixer.weight", "mixer.bias", "mixer.scale"}


class Mixer(nn.Conv2d):
    """A convolution with a buffer that belongs to its frozen weights."""

    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1)
        self.register_buffer("scale", torch.rand(width, 1, 1) + 0.5)

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps) * self.scale


class Tokens(nn.Module):
    """One vector that is added everywhere."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, width, 1, 1))

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(maps + self.token)


class Net(nn.Module):
    """Called by mfmd with the number of classes and `network.options`."""

    def __init__(self, num_classes: int, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 8, 8), nn.BatchNorm2d(width), nn.ReLU())
        self.mixer, self.tokens = Mixer(width), Tokens(width)
        self.head = nn.Conv2d(width, num_classes, 1)
        for part in (self.stem, self.mixer):
            part.requires_grad_(False)

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.tokens(self.mixer(self.stem(images))),)

    def decode(self, features: tuple[Tensor, ...], size: tuple[int, int]) -> Tensor:
        return F.interpolate(self.head(features[0]), size, mode="bilinear")


def built(settings: Settings, backbone: int = 0, trained: int = 0) -> SegmentationNetwork:
    """The network with a backbone and trained tensors of these seeds."""
    torch.manual_seed(backbone)
    network = build_network(settings.network.architecture(), len(settings.classes)).eval()
    torch.manual_seed(1000 + trained)
    with torch.no_grad():
        for value in network.parameters():
            if value.requires_grad:
                value.normal_()
    return network


def add_version(registry: CheckpointRegistry, settings: Settings, folder: Path, network: SegmentationNetwork) -> int:
    """Register a network as an import does."""
    folder.mkdir(exist_ok=True)
    saved = save_split(network, base_names(network), folder)
    return registry.add(saved.weights, make_manifest(settings, origin="import"), by="import", base=saved.base).version
