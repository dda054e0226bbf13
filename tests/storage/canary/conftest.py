"""Frames with pre-filled masks, as a person gets them to correct."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from configs.settings import Settings
from storage.canary.adding import Added, add_canary
from storage.canary.images import IGNORED, import_canary
from storage.canary.suggesting import write_suggestions
from storage.layout import StateLayout

CLASSES = [
    {"name": "sky", "color": (0, 0, 0)},
    {"name": "road", "color": (128, 64, 128)},
    {"name": "tree", "color": (107, 142, 35)},
]
"""A class is black, which is CVAT's background."""
HEIGHT, WIDTH = 48, 64


@dataclass
class World:
    """Frames with pre-filled masks in a folder, and what a person makes of the masks: `truth`."""

    settings: Settings
    layout: StateLayout
    folder: Path
    truth: dict[str, NDArray[np.uint8]]

    def add(self, export: Path | None = None, **more: Any) -> Added:
        return add_canary(self.settings, self.layout, export or self.folder, **more)

    def read(self) -> dict[str, NDArray[np.uint8]]:
        found = import_canary(self.settings, self.layout)
        return {item.name.removeprefix("added/").removesuffix(".png"): item.label for item in found}


@pytest.fixture
def world(layout: StateLayout, tmp_path: Path) -> World:
    settings = Settings.model_validate({
        "state": layout.root, "classes": CLASSES, "watch": {"folder": tmp_path / "drop"},
        "buffer": {"height": HEIGHT, "width": WIDTH, "advanced": {"tile": 16}},
    })  # fmt: skip
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, HEIGHT, WIDTH, 3), np.uint8)
    classes = np.repeat(rng.integers(0, 3, (3, HEIGHT, WIDTH // 16)).astype(np.uint8), 16, axis=2)
    frames = [(number + 1, pixels[number], classes[number]) for number in range(3)]
    folder = tmp_path / "canary"
    names = write_suggestions(settings, layout, folder, frames)
    truth = {name: mask.copy() for name, (_, _, mask) in zip(names, frames, strict=True)}
    for mask in truth.values():
        mask[:20], mask[20:24] = 1, IGNORED
    return World(settings, layout, folder, truth)
