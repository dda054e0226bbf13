"""What benchmarks/serving.py serves: versions of a small real network, pictures, and what each version must answer."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from crop_photos import QUALITY, draw_photo
from PIL import Image

from adapters.checkpoints.checkpoint import make_manifest, save_weights
from adapters.inference.forward import ServedForward
from adapters.inference.segment import segment_image
from adapters.networks.build import build_network
from adapters.networks.network import SegmentationNetwork
from configs.serving import ServingSettings
from configs.settings import Settings
from daemon.demo.driving import read_plain_settings
from daemon.serving.api.answers import png
from storage.layout import StateLayout
from storage.media.images import decode_image
from storage.registry.registry import CheckpointRegistry

HEIGHT, WIDTH = 240, 320
PICTURES = 4
LARGE = 1 << 30
FAVOUR = 0.5
"""Logit that a version adds to a class of its own, so that every version's masks differ."""


@dataclass
class ServingWorld:
    """A state directory whose registry gets versions of one architecture with different weights."""

    root: Path
    serving: dict[str, Any] = field(default_factory=dict)
    """Settings of the section `serving` besides those of the benchmark."""
    seeds: dict[int, int] = field(default_factory=dict)
    """Version -> seed of its weights."""

    @cached_property
    def config(self) -> Path:
        """The configuration file, written on first use."""
        serving = {"port": 0, "device": "cpu", "threads": 1, **self.serving}
        content = {
            "state": "state", "classes": "camvid", "watch": {"folder": "drop"},
            "buffer": {
                "height": HEIGHT, "width": WIDTH, "reserve_bytes": 0, "capacity_frames": 2048, "advanced": {"tile": 64},
            },
            "network": {"name": "deeplabv3plus", "encoder": "resnet_tiny", "channels": 64},
            "serving": serving, "control": {"port": 0}, "log": {"level": "warning"},
        }  # fmt: skip
        self.root.mkdir(parents=True, exist_ok=True)
        path = self.root / "mfmd.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return path

    @cached_property
    def settings(self) -> Settings:
        """The settings of the file."""
        return read_plain_settings(self.config)

    @cached_property
    def registry(self) -> CheckpointRegistry:
        """The registry."""
        layout = StateLayout(self.settings.state)
        layout.create()
        return CheckpointRegistry(layout.checkpoints)

    def network(self, seed: int) -> SegmentationNetwork:
        """Build the network with the weights of that seed, in eval mode."""
        torch.manual_seed(seed)
        network = build_network(self.settings.network.architecture(), len(self.settings.classes)).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.shape == (len(self.settings.classes),):
                    parameter[seed % len(self.settings.classes)] += FAVOUR
        return network

    def add(self, seed: int) -> int:
        """Add a version with the weights of that seed, and return its number; it does not serve yet."""
        weights = self.root / f"weights-{seed}.safetensors"
        if not weights.exists():
            save_weights(self.network(seed), weights)
        version = self.registry.add(weights, make_manifest(self.settings, origin="pretrain"), by="benchmark").version
        self.seeds[version] = seed
        return version

    def expected(self, seed: int, serving: ServingSettings | None = None) -> list[str]:
        """SHA-256 of the PNG that these weights give for each picture, served as these settings or the world's say."""
        forward = ServedForward(self.network(seed), serving or self.settings.serving, torch.device("cpu"))
        found = list[str]()
        for content in pictures():
            pixels = decode_image(content, max_bytes=LARGE, max_pixels=LARGE)
            found.append(hashlib.sha256(png(segment_image(forward, pixels, (HEIGHT, WIDTH)))).hexdigest())
        return found

    def expected_of(self, seeds: Sequence[int]) -> dict[int, list[str]]:
        """Return `expected` by seed. Raises ValueError if two seeds give the same answer: that would hide a mix."""
        found = {seed: self.expected(seed) for seed in seeds}
        for picture in range(PICTURES):
            if len({digests[picture] for digests in found.values()}) != len(found):
                raise ValueError(f"two versions answer the same to picture {picture}; choose other seeds")
        return found


def pictures() -> list[bytes]:
    """JPEG files of drawn photographs, all of the input's size."""
    contents = []
    for number in range(PICTURES):
        stream = io.BytesIO()
        Image.fromarray(np.asarray(draw_photo(number, HEIGHT, WIDTH))).save(stream, "JPEG", quality=QUALITY)
        contents.append(stream.getvalue())
    return contents
