"""What the storage tests share: a small state directory, deterministic frames, label folders, manifests."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.buffer import BufferSettings
from configs.settings import Settings
from storage.buffer.catalog_records import FileFact
from storage.buffer.frames import FrameBuffer, NewFrame
from storage.layout import StateLayout
from storage.media.images import fit_frame
from storage.registry.manifest import Manifest
from tests.sections import section

HEIGHT, WIDTH = 64, 96


@pytest.fixture
def layout(tmp_path: Path) -> StateLayout:
    layout = StateLayout(tmp_path / "state")
    layout.create()
    return layout


@pytest.fixture
def small() -> BufferSettings:
    return section(BufferSettings, height=HEIGHT, width=WIDTH, tile=32, capacity_frames=6, holdout_fraction=0.25)


@pytest.fixture
def buffer(layout: StateLayout, small: BufferSettings):
    with FrameBuffer.open(layout, small, writable=True) as buffer:
        yield buffer


@pytest.fixture
def new_frame() -> Callable[..., NewFrame]:
    """A frame whose pixels, digest and file follow from a number."""

    def make(number: int, height: int = HEIGHT, width: int = WIDTH) -> NewFrame:
        pixels = np.random.default_rng(number).integers(0, 256, (height // 2, width // 2, 3), np.uint8)
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()
        file = FileFact(f"cam/{number:04d}.png", 1000 + number, 10**18 + number)
        return NewFrame(file, digest, 1.5 + number, *pixels.shape[:2], fit_frame(pixels, height, width))

    return make


@pytest.fixture
def weights(tmp_path: Path) -> Callable[[str], Path]:
    """A weights file of given content; the registry looks at bytes, not at tensors."""

    def make(content: str) -> Path:
        path = tmp_path / "candidate.safetensors"
        path.write_text(content)
        return path

    return make


@pytest.fixture(scope="session")
def manifest() -> Callable[..., Manifest]:
    def make(parent: int | None = None, round: int | None = None) -> Manifest:
        return Manifest(
            parent=parent,
            origin="pretrain" if parent is None else "round",
            round=round,
            created=1.0,
            network={"name": "daformer"},
            classes=({"name": "road", "color": (1, 2, 3)}, {"name": "sky", "color": (4, 5, 6)}),
            input_height=HEIGHT,
            input_width=WIDTH,
        )

    return make


@pytest.fixture
def source(tmp_path: Path) -> Callable[..., Settings]:
    """Settings with a folder of `count` images of 80x60 and labels of 3 classes, 255 in the first row."""

    def make(count: int = 12, **more: object) -> Settings:
        images, labels = tmp_path / "images", tmp_path / "labels"
        images.mkdir(exist_ok=True)
        labels.mkdir(exist_ok=True)
        for number in range(count):
            random = np.random.default_rng(number)
            Image.fromarray(random.integers(0, 256, (60, 80, 3), np.uint8)).save(images / f"{number:03d}.png")
            label = random.integers(0, 3, (60, 80)).astype(np.uint8)
            label[0] = 255
            Image.fromarray(label).save(labels / f"{number:03d}.png")
        colors = [{"name": name, "color": (i, i, i)} for i, name in enumerate(["road", "sky", "tree"])]
        return Settings.model_validate(
            {
                "state": tmp_path / "state",
                "classes": colors,
                "watch": {"folder": tmp_path / "drop"},
                "buffer": {"height": HEIGHT, "width": WIDTH, "advanced": {"tile": 32}},
                "source": {"images": images, "labels": labels, **more},
            }
        )

    return make
