"""A small world: drawn scenes at a quarter of the demo's size, a configuration, and a first version that serves."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapters.rounds.source_training import pretrain
from daemon.demo.conditions import DAY, DUSK, Condition
from daemon.demo.driving import DrivenDaemon
from daemon.demo.scenes import write_scene
from daemon.gate.moves import release

HEIGHT, WIDTH = 72, 96
SETTINGS: dict[str, Any] = {
    "state": "state",
    "classes": "demo",
    "watch": {"folder": "drop", "stability_seconds": 0.2, "advanced": {"rescan_seconds": 0.5}},
    "source": {"images": "source/images", "labels": "source/labels"},
    "buffer": {
        "height": HEIGHT, "width": WIDTH, "capacity_frames": 64, "holdout_fraction": 0.3,
        "reserve_bytes": 0, "advanced": {"tile": 48},
    },
    "network": {"name": "deeplabv3plus", "encoder": "resnet_tiny", "channels": 32, "advanced": {"output_stride": 16}},
    "pretrain": {
        "steps": 100, "batch_size": 4, "crop_height": HEIGHT, "crop_width": WIDTH,
        "optim": {"learning_rate": 0.002, "head_multiplier": 1.0, "advanced": {"warmup_steps": 2}},
    },
    "mfm": { "learning_rate": 0.001, "ablation": {"dim": 32, "heads": 4, "blocks": 1}},
    "recipe": {"ema_decay": 0.95, "threshold": 0.7, "jitter": 0.3, "advanced": {"source_jitter": 0.2}},
    "round": {
        "steps": 60, "max_seconds": 60, "batch_size": 4, "crop_height": HEIGHT, "crop_width": WIDTH, "device": "cpu",
        "optim": {"learning_rate": 0.0007, "head_multiplier": 1.0, "advanced": {"warmup_steps": 2}},
        "advanced": {"threads": 1, "score_images": 16, "average_ratios": [0.5]},
    },
    "schedule": {"new_frames": 24, "min_frames": 16},
    "gate": {"advanced": {"min_holdout": 2}},  # eight held-out frames; seeds 0-3 win all four votes
    "serving": {"port": 0, "device": "cpu", "threads": 1},
    "control": {"port": 0},
}  # fmt: skip


def draw(folder: Path, condition: Condition, count: int, labelled: bool = False) -> list[Path]:
    """Draw small scenes as PNG files; return the images' paths."""
    return [write_scene(folder, condition, seed, labelled, HEIGHT, WIDTH) for seed in range(count)]


@pytest.fixture
def camera(tmp_path: Path) -> list[Path]:
    """Dusk images outside the drop folder."""
    return draw(tmp_path / "camera", DUSK, 24)


@pytest.fixture
def driven(tmp_path: Path) -> Iterator[DrivenDaemon]:
    """A daemon, not started yet, whose first version knows day scenes a little."""
    with world(tmp_path, SETTINGS["pretrain"]["steps"]) as daemon:
        yield daemon


@pytest.fixture
def untrained(tmp_path: Path) -> Iterator[DrivenDaemon]:
    """A daemon, not started yet, whose first version knows nothing: for tests that only need answers."""
    with world(tmp_path, steps=1) as daemon:
        yield daemon


@contextmanager
def world(folder: Path, steps: int) -> Iterator[DrivenDaemon]:
    """Scenes, a configuration, a version that serves after `steps` of training; stops the daemon at the end."""
    draw(folder / "source", DAY, 40, labelled=True)
    config = folder / "mfmd.yaml"
    config.write_text(
        yaml.safe_dump(SETTINGS | {"pretrain": SETTINGS["pretrain"] | {"steps": steps}}), encoding="utf-8"
    )
    daemon = DrivenDaemon(config)
    manifest = pretrain(daemon.settings)
    release(daemon.registry, manifest.version, "pretrain", "test")
    try:
        yield daemon
    finally:
        daemon.stop()
