"""A small real state directory to train on: drawn images with exact labels, a buffer, a registered network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from adapters.checkpoints.checkpoint import make_manifest, save_weights
from adapters.networks.build import build_network
from configs.load import merge
from configs.settings import Settings
from storage.buffer.catalog_records import FileFact
from storage.buffer.frames import FrameBuffer, NewFrame
from storage.durable.digest import digest_of
from storage.layout import StateLayout
from storage.media.images import fit_frame
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundFolder, RoundStore
from storage.rounds.records import RoundSpec

HEIGHT, WIDTH = 48, 64
Drawing = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def draw(seed: int, *, dusk: bool = False, height: int = HEIGHT, width: int = WIDTH) -> Drawing:
    """An image [h, w, 3] of sky, road and a car, and its label [h, w] (0, 1, 2); `dusk` darkens the image."""
    generator = np.random.default_rng(seed)
    label = np.zeros((height, width), np.uint8)
    label[int(height * generator.uniform(0.4, 0.6)) :] = 1
    top, left = int(height * 0.6), int(generator.integers(width // 2))
    label[top : top + height // 5, left : left + width // 4] = 2
    colors = np.array([[120, 180, 240], [90, 90, 95], [200, 40, 40]], np.float64)
    pixels = colors[label] + generator.normal(0, 8, (height, width, 3))
    return (np.clip(pixels * (0.4 if dusk else 1.0), 0, 255)).astype(np.uint8), label


class TrainingState:
    """Settings and state directory below `folder`; `settings(...)` overrides sections."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def settings(self, **sections: dict[str, Any] | None) -> Settings:
        """Tiny settings: 48x64 frames, crops of 32x48, two images a batch; `source=None` is source-free."""
        base: dict[str, Any] = {
            "state": self.folder / "state",
            "classes": [
                {"name": "sky", "color": (0, 0, 255)},
                {"name": "road", "color": (128, 128, 128)},
                {"name": "car", "color": (255, 0, 0)},
            ],
            "watch": {"folder": self.folder / "drop"},
            "buffer": {
                "height": HEIGHT,
                "width": WIDTH,
                "capacity_frames": 32,
                "reserve_bytes": 0,
                "advanced": {"tile": 16},
            },
            "source": {"images": self.folder / "source/images", "labels": self.folder / "source/labels"},
            "network": {"name": "deeplabv2", "encoder": "resnet_tiny", "channels": 16},
            "pretrain": {"steps": 3, "batch_size": 2, "crop_height": 32, "crop_width": 48},
            "mfm": {"ablation": {"dim": 32, "heads": 4, "blocks": 1, "grid": 8}},
            "recipe": {"threshold": 0.5},
            "round": {
                "steps": 3,
                "batch_size": 2,
                "crop_height": 32,
                "crop_width": 48,
                "device": "cpu",
                "advanced": {"threads": 1, "average_ratios": []},
            },
        }
        for name, values in sections.items():
            base[name] = None if values is None else merge(base.get(name) or {}, values)
        return Settings.model_validate(base)

    @property
    def layout(self) -> StateLayout:
        """Its state directory."""
        return StateLayout(self.folder / "state")

    def draw_source(self, count: int = 8) -> None:
        """Write labelled day images."""
        for part in ("images", "labels"):
            (self.folder / "source" / part).mkdir(parents=True, exist_ok=True)
        for seed in range(count):
            image, label = draw(seed)
            Image.fromarray(image).save(self.folder / f"source/images/{seed:02d}.png")
            Image.fromarray(label).save(self.folder / f"source/labels/{seed:02d}.png")

    def fill_buffer(self, settings: Settings, count: int = 6) -> None:
        """Commit dusk images of which no content is held out by chance of its hash: ids come back from the catalog."""
        self.layout.create()
        with FrameBuffer.open(self.layout, settings.buffer, writable=True) as buffer:
            frames = []
            for seed in range(100, 100 + count):
                image, _ = draw(seed, dusk=True)
                digest = digest_of(image.tobytes())
                fact = FileFact(f"{seed}.png", image.nbytes, seed)
                frames.append(NewFrame(fact, digest, float(seed), HEIGHT, WIDTH, fit_frame(image, HEIGHT, WIDTH)))
            buffer.append(frames)

    def register_network(self, settings: Settings, seed: int = 0) -> int:
        """Add a version with random weights; returns its number."""
        torch.manual_seed(seed)
        self.layout.create()
        weights = self.folder / "random.safetensors"
        save_weights(build_network(settings.network.architecture(), len(settings.classes)), weights)
        registry = CheckpointRegistry(self.layout.checkpoints)
        return registry.add(weights, make_manifest(settings, origin="import"), by="import").version

    def spec(self, settings: Settings, *, train: int = 4) -> RoundFolder:
        """A round folder as the daemon makes it: the first `train` frames to train on, the rest held out."""
        version = max(CheckpointRegistry(self.layout.checkpoints).versions())
        with FrameBuffer.open(self.layout, settings.buffer, writable=False) as buffer:
            ids = tuple(record.id for record in buffer.records())
        store = RoundStore(self.layout.rounds)
        return store.create(
            RoundSpec(
                round=store.next_number(),
                incumbent=version,
                released=version,
                train_frames=ids[:train],
                holdout_frames=ids[train:],
                settings=settings.model_dump(mode="json"),
                created=0.0,
                trigger="manual",
            )
        )

    def round(self, **sections: dict[str, Any] | None) -> RoundFolder:
        """Everything a round needs, from nothing: source images, buffer, a version, a spec."""
        settings = self.settings(**sections)
        if settings.source is not None:
            self.draw_source()
        self.fill_buffer(settings)
        self.register_network(settings)
        return self.spec(settings)


@pytest.fixture
def training_state(tmp_path: Path) -> TrainingState:
    """An empty state to train in; tensors on one thread, since the tests share the machine."""
    torch.set_num_threads(1)
    return TrainingState(tmp_path)


@pytest.fixture
def few_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates get BatchNorm statistics of two batches, not of 16, which are a third of a tiny round."""
    monkeypatch.setattr("adapters.rounds.training.STATISTICS_BATCHES", 2)


@pytest.fixture
def drawing() -> Callable[..., Drawing]:
    """The function that draws an image with its label."""
    return draw
