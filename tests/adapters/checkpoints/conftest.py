"""A tiny SegFormer as a Hugging Face directory, and a configuration that it fits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.settings import Settings
from storage.registry.registry import CheckpointRegistry
from tests.adapters.tiny_models import model

Edit = Callable[..., None]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    torch.set_num_threads(1)
    return Settings.model_validate(
        {
            "state": tmp_path / "state",
            "classes": "demo",
            "watch": {"folder": tmp_path / "drop"},
            "buffer": {"height": 64, "width": 96},
            "serving": {"device": "cpu"},
            "network": {"name": "deeplabv2", "encoder": "resnet_tiny"},
        }
    )


@pytest.fixture
def registry(settings: Settings) -> CheckpointRegistry:
    return CheckpointRegistry(settings.state / "checkpoints")


@pytest.fixture(scope="session")
def segformer_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("segformer")
    model("segformer").save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def saved(tmp_path: Path, segformer_files: dict[str, bytes]) -> Path:
    """The directory of a SegFormer, for a test to change."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in segformer_files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def configure(saved: Path) -> Edit:
    """Change fields of its config.json."""

    def edit(**fields: Any) -> None:
        path = saved / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return edit
