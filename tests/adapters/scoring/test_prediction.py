"""Masks of image files on disk."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adapters.checkpoints.checkpoint import load_version, make_manifest, save_weights
from adapters.inference.palette import colour_mask
from adapters.inference.segment import segment_image
from adapters.networks.build import build_network
from adapters.scoring.prediction import predict_files
from configs.settings import Settings
from storage.errors import NoCheckpoint, UnknownVersion
from storage.registry.registry import CheckpointRegistry


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A state directory with two versions, the first of which serves."""
    torch.set_num_threads(1)
    settings = Settings.model_validate(
        {
            "state": tmp_path / "state",
            "classes": "demo",
            "watch": {"folder": tmp_path / "drop"},
            "buffer": {"height": 64, "width": 96},
            "network": {"name": "deeplabv2", "encoder": "resnet_tiny"},
        }
    )
    registry = CheckpointRegistry(settings.state / "checkpoints")
    for seed in range(2):
        torch.manual_seed(seed)
        save_weights(
            build_network(settings.network.architecture(), len(settings.classes)), tmp_path / "weights.safetensors"
        )
        registry.add(tmp_path / "weights.safetensors", make_manifest(settings, origin="pretrain"), by="test")
    registry.promote(1, by="test", reason="first")
    return settings


def write_image(path: Path, height: int, width: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_masks_are_those_of_the_serving_version(settings: Settings, tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.png", 80, 60)
    (result,) = predict_files(settings, [image], tmp_path / "out")
    registry = CheckpointRegistry(settings.state / "checkpoints")
    network, _ = load_version(registry, 1, torch.device("cpu"))
    expected = segment_image(network, np.asarray(Image.open(image)), (64, 96))
    assert result.version == 1
    assert result.index == tmp_path / "out" / "a.png"
    assert result.color == tmp_path / "out" / "a_color.png"
    assert np.array_equal(np.asarray(Image.open(result.index)), expected)
    assert np.array_equal(np.asarray(Image.open(result.color)), colour_mask(expected, settings.classes))


def test_another_version_can_be_asked_for(settings: Settings, tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.png", 80, 60)
    (first,) = predict_files(settings, [image], tmp_path / "one", 1)
    (second,) = predict_files(settings, [image], tmp_path / "two", 2)
    assert (first.version, second.version) == (1, 2)
    assert first.index and second.index
    assert first.index.read_bytes() != second.index.read_bytes()


def test_refused_files_are_reported_and_the_rest_goes_on(settings: Settings, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    images = [broken, tmp_path / "missing.png", write_image(tmp_path / "good.png", 40, 40)]
    results = list(predict_files(settings, images, tmp_path / "out"))
    assert [result.source for result in results] == images
    assert results[0].reason is not None
    assert results[0].reason.startswith("not_an_image")
    assert results[1].reason is not None
    assert results[1].reason.startswith("unreadable")
    assert results[0].index is None and results[1].index is None
    assert results[2].reason is None and results[2].index is not None


def test_images_of_one_stem_do_not_overwrite_each_other(settings: Settings, tmp_path: Path) -> None:
    images = [
        write_image(tmp_path / "x" / "a.png", 40, 40),
        write_image(tmp_path / "y" / "a.png", 50, 50),
        write_image(tmp_path / "x" / "a_color.png", 60, 60),
    ]
    results = list(predict_files(settings, images, tmp_path / "out"))
    written = [path for result in results for path in (result.index, result.color) if path]
    assert len(set(written)) == 6
    shapes = [np.asarray(Image.open(result.index)).shape for result in results if result.index]
    assert shapes == [(40, 40), (50, 50), (60, 60)]


def test_nothing_that_serves_is_said_clearly(settings: Settings, tmp_path: Path) -> None:
    empty = settings.model_copy(update={"state": tmp_path / "empty"})
    with pytest.raises(NoCheckpoint, match="mfmd pretrain"):
        list(predict_files(empty, [], tmp_path / "out"))
    with pytest.raises(UnknownVersion, match="7"):
        list(predict_files(settings, [], tmp_path / "out", 7))


def test_masks_never_replace_an_image_or_a_file_of_others(settings: Settings, tmp_path: Path) -> None:
    image = write_image(tmp_path / "photo.png", 40, 40)
    before = image.read_bytes()
    (tmp_path / "hard").mkdir()
    (tmp_path / "hard" / "photo.png").hardlink_to(image)
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "photo_color.png").symlink_to(image)
    (tmp_path / "same").symlink_to(tmp_path)
    for out in (tmp_path, tmp_path / "hard", tmp_path / "link", tmp_path / "same", tmp_path / "x" / ".."):
        (tmp_path / "x").mkdir(exist_ok=True)
        (result,) = predict_files(settings, [image], out)
        assert result.reason is not None and result.reason.startswith("output_exists: ") and result.index is None
        assert image.read_bytes() == before
    assert not (tmp_path / "photo_color.png").exists(), "not even half of a pair"


def test_masks_of_an_earlier_call_are_replaced_only_by_those_of_the_same_image(
    settings: Settings, tmp_path: Path
) -> None:
    first, second = write_image(tmp_path / "a.png", 40, 40), write_image(tmp_path / "a.jpg", 50, 50)
    for _ in range(2):
        names = [predict.index and predict.index.name for image in (first, second) for predict in
                 predict_files(settings, [image], tmp_path / "out", 1)]  # fmt: skip
        assert names == ["a.png", "a_2.png"]
    (mask,) = predict_files(settings, [tmp_path / "out" / "a.png"], tmp_path / "out", 2)
    assert mask.reason is not None and mask.reason.startswith("output_exists"), "a mask is an image too"
    assert len(list((tmp_path / "out").iterdir())) == 4
