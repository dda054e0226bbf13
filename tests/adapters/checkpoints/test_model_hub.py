"""Hub ids: resolved from huggingface_hub's cache without network; what cannot be had is one clear line."""

import socket
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from adapters.checkpoints.hub import is_hub_id
from adapters.checkpoints.importing import import_checkpoint
from adapters.errors import UnsupportedModel
from configs.settings import Settings
from storage.registry.registry import CheckpointRegistry
from tests.adapters.tiny_models import model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, offline; a test that would use the network fails."""
    from huggingface_hub import constants

    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a test must not use the network")

    torch.set_num_threads(1)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tmp_path / "hub"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.model_validate(
        {"state": tmp_path / "state", "classes": "demo", "watch": {"folder": tmp_path / "drop"}}
    )


@pytest.fixture
def registry(settings: Settings) -> CheckpointRegistry:
    return CheckpointRegistry(settings.state / "checkpoints")


def lay_out(hub_cache: Path) -> Path:
    """A model `street/segformer-tiny` in the cache, as a download leaves it."""
    folder = hub_cache / "models--street--segformer-tiny"
    model("segformer").save_pretrained(folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    return folder / "snapshots" / COMMIT


def test_hub_id_is_imported_from_the_cache(hub_cache: Path, settings: Settings, registry: CheckpointRegistry) -> None:
    lay_out(hub_cache)
    manifest = import_checkpoint("street/segformer-tiny", settings, registry)
    assert manifest.network["hf_config"]["model_type"] == "segformer"
    assert registry.history()[-1].reason == f"imported from street/segformer-tiny at {COMMIT}"


def test_pickles_in_the_cache_are_refused(hub_cache: Path, settings: Settings, registry: CheckpointRegistry) -> None:
    snapshot = lay_out(hub_cache)
    (snapshot / "model.safetensors").rename(snapshot / "pytorch_model.bin")
    with pytest.raises(UnsupportedModel, match=r"pytorch_model\.bin.*run code"):
        import_checkpoint("street/segformer-tiny", settings, registry)


def test_a_local_directory_comes_first(
    hub_cache: Path, settings: Settings, registry: CheckpointRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(hub_cache)
    (tmp_path / "street" / "segformer-tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsupportedModel, match=r"config\.json"):
        import_checkpoint("street/segformer-tiny", settings, registry)


def test_offline_without_cache_says_what_to_do(settings: Settings, registry: CheckpointRegistry) -> None:
    with pytest.raises(UnsupportedModel, match=r"street/unknown: no such directory here.*connect"):
        import_checkpoint("street/unknown", settings, registry)
    assert registry.versions() == []


def test_an_id_that_cannot_be_one_says_so(settings: Settings, registry: CheckpointRegistry) -> None:
    with pytest.raises(UnsupportedModel, match=r"street/a--b.*check the id"):
        import_checkpoint("street/a--b", settings, registry)


@pytest.mark.parametrize(
    ("source", "is_id"),
    [
        ("nvidia/segformer-b0", True),
        ("models/segformer.safetensors", False),
        ("weights/model.pt", False),
        ("./segformer", False),
        ("segformer", False),
        ("a/b/c", False),
        ("/abs/path", False),
    ],
)
def test_what_counts_as_a_hub_id(source: str, is_id: bool) -> None:
    assert is_hub_id(source) is is_id
