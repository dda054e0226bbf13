"""Weights on disk: exactly the plain network's, strictly checked; versions that load; manifests that explain."""

import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.checkpoints.checkpoint import (
    load_version,
    load_weights,
    make_manifest,
    network_of,
    save_weights,
)
from adapters.mfm.rebuilder import build_rebuilder
from adapters.networks.build import build_network
from adapters.networks.network import SegmentationNetwork
from configs.network import Architecture
from configs.settings import Settings
from storage.errors import CorruptCheckpoint, UnknownVersion
from storage.registry.registry import CheckpointRegistry


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.model_validate(
        {
            "state": tmp_path / "state",
            "classes": "demo",
            "watch": {"folder": tmp_path / "drop"},
            "buffer": {"height": 64, "width": 96},
            "network": {"name": "deeplabv3plus", "encoder": "resnet_tiny", "channels": 16},
        }
    )


@pytest.fixture
def network(settings: Settings) -> SegmentationNetwork:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = build_network(settings.network.architecture(), len(settings.classes))
    network.train()(torch.randn(2, 3, 64, 64))  # BatchNorm statistics that are no longer the initial ones
    return network.eval()


@pytest.fixture
def registry(settings: Settings) -> CheckpointRegistry:
    return CheckpointRegistry(settings.state / "checkpoints")


@pytest.fixture
def saved(network: SegmentationNetwork, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_weights(network, path)
    return path


def fresh(settings: Settings) -> SegmentationNetwork:
    torch.manual_seed(1)
    return build_network(settings.network.architecture(), len(settings.classes)).eval()


def state_of(network: SegmentationNetwork) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_loaded_weights_give_the_same_logits(network: SegmentationNetwork, settings: Settings, saved: Path) -> None:
    images = torch.randn(1, 3, 64, 96)
    other = fresh(settings)
    with torch.no_grad():
        assert not torch.equal(other(images), network(images))
        load_weights(other, saved)
        assert torch.equal(other(images), network(images))


@pytest.mark.parametrize(
    "chosen",
    [
        Architecture(name="daformer", encoder="mit_tiny", channels=16),
        Architecture(name="deeplabv2", encoder="resnet_tiny"),
        Architecture(name="deeplabv3plus", encoder="resnet_tiny", channels=16),
    ],
    ids=lambda chosen: chosen.name,
)
def test_exported_names_are_those_of_the_plain_network(chosen: Architecture, tmp_path: Path) -> None:
    """Training beside a Rebuilder leaves no trace in the file."""
    student = build_network(chosen, 3)
    build_rebuilder(student, (64, 64), Settings.model_fields["mfm"].default.model_copy(update={"dim": 32, "heads": 4}))
    save_weights(student, tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert names == set(build_network(chosen, 3).state_dict())


def damaged(saved: Path, change: str) -> Path:
    """A copy of the weights with one fault."""
    tensors = load_file(saved)
    name = "decoder.classifier.weight"
    if change == "lacks":
        del tensors[name]
    elif change == "holds unknown":
        tensors["rebuilder.mask_token"] = torch.zeros(1)
    elif change == "wrong shape":
        tensors[name] = tensors[name][:-1].clone()
    elif change == "wrong type":
        tensors[name] = tensors[name].half()
    else:
        tensors[name].view(-1)[3] = float(change)
    path = saved.with_name("damaged.safetensors")
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("change", ["lacks", "holds unknown", "wrong shape", "wrong type", "nan", "inf"])
def test_weights_that_do_not_fit_are_refused_and_nothing_is_copied(
    settings: Settings, saved: Path, change: str
) -> None:
    other = fresh(settings)
    before = state_of(other)
    expected = {"nan": "non-finite", "inf": "non-finite"}.get(change, change)
    named = "rebuilder.mask_token" if change == "holds unknown" else r"decoder\.classifier\.weight"
    with pytest.raises(CorruptCheckpoint, match=f"{expected}.*{named}"):
        load_weights(other, damaged(saved, change))
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize("content", [b"", b"not safetensors", struct.pack("<Q", 1 << 40) + b"{}"])
def test_garbage_is_refused(settings: Settings, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "garbage.safetensors"
    path.write_bytes(content)
    with pytest.raises(CorruptCheckpoint, match=r"garbage\.safetensors"):
        load_weights(fresh(settings), path)


def test_truncated_and_missing_files_are_refused(settings: Settings, saved: Path, tmp_path: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:-100])
    for path in (saved, tmp_path / "missing.safetensors"):
        with pytest.raises(CorruptCheckpoint, match=path.name):
            load_weights(fresh(settings), path)


def test_registered_version_loads_as_it_was(
    network: SegmentationNetwork, settings: Settings, registry: CheckpointRegistry, saved: Path
) -> None:
    added = registry.add(saved, make_manifest(settings, origin="pretrain", seed=3), by="test")
    loaded, manifest = load_version(registry, added.version, torch.device("cpu"))
    assert manifest == added
    assert not loaded.training
    found = loaded.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in network.state_dict().items())


def test_damaged_version_does_not_load(settings: Settings, registry: CheckpointRegistry, saved: Path) -> None:
    version = registry.add(saved, make_manifest(settings, origin="pretrain"), by="test").version
    content = bytearray(registry.weights_path(version).read_bytes())
    content[-1] ^= 1
    registry.weights_path(version).write_bytes(content)
    with pytest.raises(CorruptCheckpoint):
        load_version(registry, version, torch.device("cpu"))
    with pytest.raises(UnknownVersion):
        load_version(registry, 99, torch.device("cpu"))


def test_version_of_another_transformers_release_says_so(
    settings: Settings, registry: CheckpointRegistry, saved: Path
) -> None:
    manifest = make_manifest(settings, origin="pretrain")
    older = manifest.model_copy(update={"libraries": {**manifest.libraries, "transformers": "1.2.3"}})
    version = registry.add(damaged(saved, "lacks"), older, by="test").version
    with pytest.raises(CorruptCheckpoint, match=r"made with transformers 1\.2\.3"):
        load_version(registry, version, torch.device("cpu"))


def test_manifest_that_records_no_network_of_ours_is_corrupt(settings: Settings) -> None:
    manifest = make_manifest(settings, origin="pretrain").model_copy(update={"network": {"name": "vgg"}})
    with pytest.raises(CorruptCheckpoint, match=r"network\.name"):
        network_of(manifest)


def test_manifest_records_what_rebuilds_the_network(settings: Settings, tmp_path: Path) -> None:
    somewhere = settings.network.model_copy(update={"pretrained": tmp_path / "gone"})
    manifest = make_manifest(
        settings.model_copy(update={"network": somewhere}), origin="pretrain", scores={"miou": 0.5}
    )
    assert manifest.network["pretrained"] is None, "a version must load where the encoder directory does not exist"
    assert (manifest.input_height, manifest.input_width) == (64, 96)
    assert [entry["name"] for entry in manifest.classes] == [entry.name for entry in settings.classes]
    assert {"mfmd", "python", "torch", "transformers", "safetensors"} <= set(manifest.libraries)
    assert len(manifest.code) == 64
    assert Settings.model_validate(manifest.settings).round == settings.round
    assert manifest.scores == {"miou": 0.5}
    assert network_of(manifest).num_classes == len(settings.classes)


def test_config_hash_follows_settings_but_not_secrets(settings: Settings) -> None:
    other = settings.model_copy(update={"round": settings.round.model_copy(update={"steps": 7})})
    control = Settings.model_validate({**settings.model_dump(mode="json"), "control": {"token": "s3cret"}})
    control_two = Settings.model_validate({**settings.model_dump(mode="json"), "control": {"token": "another"}})

    def hashed(some: Settings) -> str:
        return make_manifest(some, origin="pretrain").config_hash

    assert hashed(settings) == hashed(settings.model_copy())
    assert hashed(settings) != hashed(other)
    assert hashed(control) == hashed(control_two)
    assert "s3cret" not in make_manifest(control, origin="pretrain").model_dump_json()
