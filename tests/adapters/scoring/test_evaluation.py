"""`evaluate_folder` with a real registered version and image files; `evaluate_masks` against sums done by hand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adapters.checkpoints.checkpoint import make_manifest, save_weights
from adapters.errors import AdapterError
from adapters.inference.segment import segment_image
from adapters.networks.build import build_network
from adapters.scoring.evaluation import evaluate_folder, evaluate_masks
from configs.buffer import SourceSettings
from configs.settings import Settings
from storage.errors import RefusedImage, SourceRefused, UnknownVersion
from storage.layout import StateLayout
from storage.media.images import Fit, decode_image
from storage.registry.registry import CheckpointRegistry

NAMES = ["road", "tree", "sky"]


def test_masks_by_hand() -> None:
    truth = np.array([[0, 0, 0, 0], [1, 1, 255, 255]], np.uint8)
    said = np.array([[0, 0, 0, 1], [1, 0, 2, 2]], np.uint8)
    found = evaluate_masks([(said, truth), (truth[:1], truth[:1])], NAMES)
    assert found.iou == {"road": pytest.approx(7 / 9), "tree": pytest.approx(1 / 3), "sky": None}
    assert found.miou == pytest.approx((7 / 9 + 1 / 3) / 2)
    assert found.pixel_accuracy == pytest.approx(8 / 10)
    assert (found.images, found.version) == (2, None)


def test_class_that_is_predicted_but_not_labelled_counts_as_zero() -> None:
    found = evaluate_masks([(np.array([[0, 2]], np.uint8), np.array([[0, 0]], np.uint8))], NAMES)
    assert found.iou == {"road": 0.5, "tree": None, "sky": 0.0}
    assert found.miou == 0.25


def test_another_ignored_value() -> None:
    found = evaluate_masks([(np.array([[0, 1]], np.uint8), np.array([[0, 2]], np.uint8))], NAMES, ignore_index=2)
    assert found.pixel_accuracy == 1.0


@pytest.mark.parametrize("pairs", [[], [(np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8))]])
def test_nothing_to_score(pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    with pytest.raises(AdapterError, match="nothing to evaluate"):
        evaluate_masks(pairs, NAMES)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A state directory with one served version."""
    settings = Settings.model_validate(
        {
            "state": tmp_path / "state",
            "classes": [{"name": name, "color": (n, n, n)} for n, name in enumerate(NAMES)],
            "watch": {"folder": tmp_path / "drop"},
            "buffer": {"height": 64, "width": 64, "advanced": {"fit": "squash", "resample": "bicubic"}},
            "network": {
                "name": "deeplabv3plus",
                "encoder": "resnet_tiny",
                "channels": 16,
                "advanced": {"output_stride": 16},
            },
        }
    )
    torch.manual_seed(0)
    weights = tmp_path / "weights.safetensors"
    network = build_network(settings.network.architecture(), 3).eval()
    with torch.no_grad():  # no class wins everywhere
        classifier = network.get_submodule("decoder.classifier")
        classifier.bias -= network(torch.randn(1, 3, 64, 64)).mean((0, 2, 3))
    save_weights(network, weights)
    registry = CheckpointRegistry(StateLayout(settings.state).checkpoints)
    registry.add(weights, make_manifest(settings, origin="pretrain"), by="test")
    registry.promote(1, by="test", reason="test")
    return settings


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Two images 80x60 with labels of `size` (width, height)."""

    def make(size: tuple[int, int] = (80, 60), values: int = 3) -> tuple[Path, Path]:
        images, labels = tmp_path / "images", tmp_path / "labels"
        images.mkdir()
        labels.mkdir()
        for n in range(2):
            rng = np.random.default_rng(n)
            Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).save(images / f"{n}.png")
            Image.fromarray(rng.integers(0, values, size[::-1]).astype(np.uint8)).save(labels / f"{n}.png")
        return images, labels

    return make


def test_folder_is_scored_as_it_is_predicted(settings: Settings, folder: Callable[..., tuple[Path, Path]]) -> None:
    from adapters.checkpoints.checkpoint import load_version

    images, labels = folder()
    network, _ = load_version(CheckpointRegistry(StateLayout(settings.state).checkpoints), 1, torch.device("cpu"))
    pairs = []
    for n in range(2):
        pixels = decode_image(images / f"{n}.png", max_bytes=10**6, max_pixels=10**6)
        pairs.append(
            (
                segment_image(network, pixels, (64, 64), Fit("squash", "bicubic")),
                np.asarray(Image.open(labels / f"{n}.png")),
            )
        )
    expected = evaluate_masks(pairs, NAMES)
    found = evaluate_folder(settings, images, labels)
    assert (found.iou, found.miou, found.pixel_accuracy) == (expected.iou, expected.miou, expected.pixel_accuracy)
    assert (found.version, found.images) == (1, 2)


def test_labels_have_the_meaning_that_the_configuration_gives_them(
    settings: Settings, folder: Callable[..., tuple[Path, Path]]
) -> None:
    images, labels = folder()
    expected = evaluate_folder(settings, images, labels)
    for path in labels.iterdir():
        Image.fromarray(100 - np.asarray(Image.open(path))).save(path)
    mapped = SourceSettings.model_validate(
        {"images": images, "labels": labels, "label_map": {100: NAMES[0], 99: NAMES[1], 98: NAMES[2]}}
    )
    assert evaluate_folder(settings.model_copy(update={"source": mapped}), images, labels) == expected
    with pytest.raises(RefusedImage, match="label value"):
        evaluate_folder(settings, images, labels)


def test_labels_of_another_resolution(settings: Settings, folder: Callable[..., tuple[Path, Path]]) -> None:
    found = evaluate_folder(settings, *folder(size=(160, 120)), version=1)
    assert found.images == 2
    assert 0.0 <= found.miou <= 1.0


def test_labels_of_another_aspect_are_refused(settings: Settings, folder: Callable[..., tuple[Path, Path]]) -> None:
    with pytest.raises(RefusedImage, match=r"labels/0\.png: 60x80 pixels"):
        evaluate_folder(settings, *folder(size=(60, 80)))


def test_bad_label_value_is_named(settings: Settings, folder: Callable[..., tuple[Path, Path]]) -> None:
    with pytest.raises(RefusedImage, match=r"labels/0\.png: label value [345]"):
        evaluate_folder(settings, *folder(values=6))


def test_image_without_label_is_named(settings: Settings, folder: Callable[..., tuple[Path, Path]]) -> None:
    images, labels = folder()
    (labels / "1.png").unlink()
    with pytest.raises(SourceRefused, match=r"1\.png"):
        evaluate_folder(settings, images, labels)


def test_unknown_version(settings: Settings, folder: Callable[..., tuple[Path, Path]]) -> None:
    with pytest.raises(UnknownVersion, match="9"):
        evaluate_folder(settings, *folder(), version=9)
