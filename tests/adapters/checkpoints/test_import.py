"""Models from elsewhere: Hugging Face directories and safetensors become versions, anything else a clear refusal."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from adapters.checkpoints.checkpoint import load_version, save_weights
from adapters.checkpoints.importing import import_checkpoint
from adapters.errors import NetworkMismatch, UnsupportedModel
from adapters.networks.build import build_network
from adapters.networks.network import normalise
from configs.network import Architecture
from configs.settings import Settings
from storage.registry.registry import CheckpointRegistry
from tests.adapters.tiny_models import CLASSES, EVERY, logits_of, model

CPU = torch.device("cpu")


@pytest.fixture
def saved_segformer(tmp_path: Path) -> Path:
    model("segformer").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", EVERY)
def test_hugging_face_model_gives_the_same_logits_as_a_version(
    name: str, settings: Settings, registry: CheckpointRegistry, tmp_path: Path
) -> None:
    original = model(name)
    original.save_pretrained(tmp_path / "model")
    manifest = import_checkpoint(tmp_path / "model", settings, registry)
    network, _ = load_version(registry, manifest.version, CPU)
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        expected = logits_of(original, images)
        torch.testing.assert_close(network(images), expected, atol=1e-5 * max(5.0, float(expected.max())), rtol=1e-4)
    assert manifest.origin == "import"
    assert manifest.network["name"] == "huggingface"
    assert registry.serving() is None, "an import does not serve by itself"


def test_auxiliary_head_is_left_out(settings: Settings, registry: CheckpointRegistry, tmp_path: Path) -> None:
    original = model("beit")
    assert original.auxiliary_head is not None
    original.save_pretrained(tmp_path / "model")
    version = import_checkpoint(tmp_path / "model", settings, registry).version
    assert not any("auxiliary" in key for key in load_file(registry.weights_path(version)))


def test_safetensors_of_the_configured_network(
    settings: Settings, registry: CheckpointRegistry, tmp_path: Path
) -> None:
    network = build_network(settings.network.architecture(), CLASSES).eval()
    save_weights(network, tmp_path / "weights.safetensors")
    manifest = import_checkpoint(tmp_path / "weights.safetensors", settings, registry)
    loaded, _ = load_version(registry, manifest.version, CPU)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(images), network(images))


def test_safetensors_of_another_network_are_refused(
    settings: Settings, registry: CheckpointRegistry, tmp_path: Path
) -> None:
    save_weights(build_network(settings.network.architecture(), CLASSES + 1), tmp_path / "weights.safetensors")
    with pytest.raises(NetworkMismatch, match=r"wrong shape.*deeplabv2"):
        import_checkpoint(tmp_path / "weights.safetensors", settings, registry)
    assert registry.versions() == []


def test_other_class_count_is_refused(saved_segformer: Path, settings: Settings, registry: CheckpointRegistry) -> None:
    cityscapes = settings.model_copy(update={"classes": settings.classes[:-1]})
    with pytest.raises(NetworkMismatch, match=r"8 classes.*7"):
        import_checkpoint(saved_segformer, cityscapes, registry)


def test_our_classes_in_another_order_are_refused(
    saved_segformer: Path, settings: Settings, registry: CheckpointRegistry
) -> None:
    config = json.loads((saved_segformer / "config.json").read_text())
    names = [entry.name for entry in settings.classes]
    names[0], names[3] = names[3], names[0]
    config["id2label"] = {str(index): name for index, name in enumerate(names)}
    config["label2id"] = {name: index for index, name in enumerate(names)}
    (saved_segformer / "config.json").write_text(json.dumps(config))
    with pytest.raises(NetworkMismatch, match=r"'road'.*'sky'"):
        import_checkpoint(saved_segformer, settings, registry)


def test_other_pixel_scaling_is_kept_and_applied(
    saved_segformer: Path, settings: Settings, registry: CheckpointRegistry
) -> None:
    """A version serves images as mfmd scales them, and its model sees them as it was trained to."""
    (saved_segformer / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    network, _ = load_version(registry, import_checkpoint(saved_segformer, settings, registry).version, CPU)
    frames = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        seen = frames.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        expected = F.interpolate(model("segformer")(seen).logits, (64, 64), mode="bilinear", align_corners=False)
        torch.testing.assert_close(network(normalise(frames)), expected, atol=1e-4, rtol=1e-4)


def test_unclear_pixel_scaling_is_refused(
    saved_segformer: Path, settings: Settings, registry: CheckpointRegistry
) -> None:
    (saved_segformer / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5]}))
    with pytest.raises(UnsupportedModel, match="image_mean"):
        import_checkpoint(saved_segformer, settings, registry)
    assert registry.versions() == []


def test_incomplete_weights_are_refused(
    saved_segformer: Path, settings: Settings, registry: CheckpointRegistry
) -> None:
    tensors = load_file(saved_segformer / "model.safetensors")
    del tensors["decode_head.classifier.weight"]
    save_file(tensors, saved_segformer / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NetworkMismatch, match=r"decode_head\.classifier\.weight"):
        import_checkpoint(saved_segformer, settings, registry)


def test_weights_that_are_not_finite_are_refused(
    saved_segformer: Path, settings: Settings, registry: CheckpointRegistry
) -> None:
    tensors = load_file(saved_segformer / "model.safetensors")
    tensors["decode_head.classifier.weight"][0] = float("nan")
    save_file(tensors, saved_segformer / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NetworkMismatch, match=r"model.safetensors: decode_head\.classifier\.weight has non-fin"):
        import_checkpoint(saved_segformer, settings, registry)
    assert registry.versions() == []


def test_other_hugging_face_models_are_refused_by_name(
    settings: Settings, registry: CheckpointRegistry, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "detr"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UnsupportedModel, match=r"detr.*beit.*segformer.*upernet"):
        import_checkpoint(tmp_path, settings, registry)


@pytest.mark.parametrize("inside", ["model", "snapshots/0123"])
def test_a_directory_around_a_model_names_the_model(
    settings: Settings, registry: CheckpointRegistry, tmp_path: Path, inside: str
) -> None:
    (tmp_path / inside).mkdir(parents=True)
    (tmp_path / inside / "config.json").write_text("{}")
    with pytest.raises(UnsupportedModel, match=f"give the directory of one model: .*{inside}"):
        import_checkpoint(tmp_path, settings, registry)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("weights.pt", b"\x80\x04.", "pickle"),
        ("weights.onnx", b"", "extension"),
        ("missing.safetensors", None, "no such file"),
        ("broken.safetensors", b"abc", "safetensors"),
    ],
)
def test_other_files_are_refused(
    settings: Settings, registry: CheckpointRegistry, tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((UnsupportedModel, NetworkMismatch), match=reason):
        import_checkpoint(tmp_path / name, settings, registry)
    assert registry.versions() == []


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "config.json"),
        ({"config.json": b"{"}, "JSON"),
        ({"config.json": b"[]"}, "JSON object"),
        ({"config.json": b'{"model_type": "segformer"}'}, "no weights"),
        ({"config.json": b'{"model_type": "segformer"}', "pytorch_model.bin": b""}, "pytorch_model.bin.*run code"),
        ({"config.json": b'{"model_type": "segformer", "id2label": {"a": 1}}', "a.safetensors": b""}, "id2label"),
    ],
)
def test_other_directories_are_refused(
    settings: Settings, registry: CheckpointRegistry, tmp_path: Path, files: dict[str, bytes], reason: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with pytest.raises(UnsupportedModel, match=reason):
        import_checkpoint(folder, settings, registry)


def test_hugging_face_network_without_its_config_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="mfmd import"):
        build_network(Architecture(name="huggingface"), CLASSES)
