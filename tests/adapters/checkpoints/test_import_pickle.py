"""Pickles: never opened without the flag, read without running anything where that will do, and told in any case."""

import os
from pathlib import Path

import pytest
import torch

from adapters.checkpoints.checkpoint import load_version
from adapters.checkpoints.importing import import_checkpoint
from adapters.errors import NetworkMismatch, UnsupportedModel
from adapters.networks.build import build_network
from configs.settings import Settings
from storage.registry.registry import CheckpointRegistry
from tests.adapters.tiny_models import CLASSES

NETWORK = {"name": "deeplabv2", "encoder": "resnet_tiny"}


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    torch.set_num_threads(1)
    folder = {"folder": tmp_path / "drop"}
    return Settings.model_validate(
        {"state": tmp_path / "state", "classes": "demo", "watch": folder, "network": NETWORK}
    )


@pytest.fixture
def registry(settings: Settings) -> CheckpointRegistry:
    return CheckpointRegistry(settings.state / "checkpoints")


@pytest.fixture
def network(settings: Settings) -> torch.nn.Module:
    return build_network(settings.network.architecture(), CLASSES).eval()


@pytest.mark.parametrize("ending", ["pt", "pth", "bin", "ckpt", "pkl", "pickle"])
def test_a_malicious_pickle_does_not_run_without_the_flag(
    settings: Settings, registry: CheckpointRegistry, tmp_path: Path, ending: str
) -> None:
    path, proof = tmp_path / f"weights.{ending}", tmp_path / "it ran"
    torch.save({"state_dict": {}, "extra": Malicious(proof)}, path)
    with pytest.raises(UnsupportedModel, match=r"run code when read.*--unsafe-pickle"):
        import_checkpoint(path, settings, registry)
    assert not proof.exists()
    assert registry.versions() == []


def test_with_the_flag_it_runs_after_a_warning_that_says_so(
    settings: Settings, registry: CheckpointRegistry, network: torch.nn.Module, tmp_path: Path
) -> None:
    path, proof = tmp_path / "weights.pt", tmp_path / "it ran"
    torch.save({"state_dict": network.state_dict(), "extra": Malicious(proof)}, path)
    heard: list[tuple[str, bool]] = []
    import_checkpoint(path, settings, registry, unsafe_pickle=lambda text: heard.append((text, proof.exists())))
    assert proof.is_dir()
    assert ["running its code now" in text for text, _ in heard] == [False, True]
    assert not any(ran for _, ran in heard), "warned before, not after"


def test_plain_weights_are_read_without_running_anything(
    settings: Settings, registry: CheckpointRegistry, network: torch.nn.Module, tmp_path: Path
) -> None:
    weights = network.state_dict()
    contents = {
        "plain.pt": weights,
        "wrapped.pth": {"epoch": 3, "model": {f"module.{name}": value for name, value in weights.items()}},
    }
    for name, content in contents.items():
        torch.save(content, tmp_path / name)
        heard: list[str] = []
        version = import_checkpoint(tmp_path / name, settings, registry, unsafe_pickle=heard.append).version
        assert len(heard) == 1 and "reading it runs code" in heard[0]
        loaded, _ = load_version(registry, version, torch.device("cpu"))
        assert all(torch.equal(value, weights[key]) for key, value in loaded.state_dict().items())
        assert registry.weights_path(version).suffix == ".safetensors"


def test_a_whole_module_is_read_too(
    settings: Settings, registry: CheckpointRegistry, network: torch.nn.Module, tmp_path: Path
) -> None:
    torch.save(network, tmp_path / "module.pt")
    heard: list[str] = []
    version = import_checkpoint(tmp_path / "module.pt", settings, registry, unsafe_pickle=heard.append).version
    assert len(heard) == 2, "a module is more than tensors"
    loaded, _ = load_version(registry, version, torch.device("cpu"))
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_files_that_hold_no_fitting_weights_are_refused_by_name(
    settings: Settings, registry: CheckpointRegistry, tmp_path: Path
) -> None:
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    (tmp_path / "rubbish.pt").write_bytes(b"rubbish")
    torch.save(build_network(settings.network.architecture(), CLASSES + 1).state_dict(), tmp_path / "other.pt")
    for name, kind, reason in (
        ("none.pt", UnsupportedModel, "no weights"),
        ("rubbish.pt", UnsupportedModel, "cannot be read"),
        ("other.pt", NetworkMismatch, "wrong shape"),
        ("missing.pt", UnsupportedModel, "no such file"),
    ):
        with pytest.raises(kind, match=rf"{name}.*{reason}"):
            import_checkpoint(tmp_path / name, settings, registry, unsafe_pickle=lambda _: None)
    assert registry.versions() == []
