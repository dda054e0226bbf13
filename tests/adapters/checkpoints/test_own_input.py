"""An imported model serves the masks that it gives in transformers, when frames are what its processor makes."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.nn import functional as F

from adapters.checkpoints.checkpoint import load_version
from adapters.checkpoints.importing import import_checkpoint
from adapters.errors import UnsupportedModel
from adapters.inference.segment import segment_fitted, segment_image
from adapters.inference.windows import Window
from adapters.networks.huggingface.input_size import input_notes, own_input
from adapters.scoring.prediction import predict_files
from configs.settings import Settings
from storage.media.images import Fit
from storage.registry.registry import CheckpointRegistry
from tests.adapters.tiny_models import MASKS, NEEDS_SCIPY, model, tell_apart

PROCESSORS: dict[str, dict[str, Any]] = {
    "segformer": {"image_processor_type": "SegformerImageProcessor", "size": {"height": 64, "width": 96}},
    "beit": {"image_processor_type": "BeitImageProcessor", "size": {"height": 64, "width": 64}},
    "dpt": {"image_processor_type": "DPTImageProcessor", "size": {"height": 64, "width": 64}},
    "upernet_swin": {"image_processor_type": "SegformerImageProcessor", "size": {"height": 64, "width": 64}},
    "upernet_convnext": {"image_processor_type": "SegformerImageProcessor", "size": {"height": 64, "width": 64}},
    "mobilenetv2": {
        "image_processor_type": "MobileNetV2ImageProcessor",
        "size": {"shortest_edge": 64},
        "do_center_crop": False,
    },
    "mask2former": {
        "image_processor_type": "Mask2FormerImageProcessor",
        "size": {"shortest_edge": 64, "longest_edge": 96},
    },
}
PHOTO = np.random.default_rng(3).integers(0, 256, (12, 16, 3), np.uint8).repeat(10, 0).repeat(10, 1)
"""A photograph of 120x160: of another aspect than the models' inputs."""
FAST = ("segformer", "dpt")
MOST_APART = {"mask2former": 0.02}
"""Share of pixels that may differ, if not 0.01: mfmd resizes logits to the frame and then to the image, transformers at
once; it scales an image for a Mask2Former twice, to the frame and to multiples of 32."""


def settings_for(folder: Path, frames: dict[str, Any]) -> Settings:
    return Settings.model_validate(
        {
            "state": folder / "state",
            "classes": "demo",
            "watch": {"folder": folder / "drop"},
            "buffer": frames,
            "serving": {"device": "cpu"},
        }
    )


def undecided(kind: str) -> Any:
    """A tiny model whose classes are all about as likely on the photograph, so that its mask has several."""
    found = model(kind)
    if kind in MASKS:
        images = torch.from_numpy(PHOTO).permute(2, 0, 1)[None].float()
        tell_apart(found, F.interpolate(images, (96, 96)) / 127.5 - 1)
        return found
    heads = [
        name for name, item in found.named_modules() if getattr(item, "out_channels", 0) == found.config.num_labels
    ]
    head = found.get_submodule([name for name in heads if "auxiliary" not in name][-1])
    head.bias = torch.nn.Parameter(torch.zeros(found.config.num_labels)) if head.bias is None else head.bias
    with torch.no_grad():
        images = torch.from_numpy(PHOTO).permute(2, 0, 1)[None, :, :96, :96] / 127.5 - 1
        head.bias -= found(images).logits.mean((0, 2, 3))
    return found


def their_mask(original: Any, folder: Path) -> np.ndarray[Any, Any]:
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    inputs = processor(Image.fromarray(PHOTO), return_tensors="pt")
    tiles = inputs.pop("patch_offsets", None)
    with torch.no_grad():
        outputs = original(**inputs)
    if tiles:
        outputs["patch_offsets"] = [tile.tolist() for tile in tiles]
    return np.asarray(processor.post_process_semantic_segmentation(outputs, [PHOTO.shape[:2]])[0])


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[NEEDS_SCIPY] * (kind in MASKS) + [pytest.mark.nightly] * (kind not in FAST))
        for kind in PROCESSORS
    ],
)
def test_masks_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    folder = tmp_path / "model"
    original = undecided(kind)
    original.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[kind]))
    own = own_input(PROCESSORS[kind])
    assert own is not None
    settings, notes = settings_for(tmp_path, own.settings()), list[str]()
    registry = CheckpointRegistry(settings.state / "checkpoints")
    manifest = import_checkpoint(folder, settings, registry, by_position=True, note=notes.append)
    assert not any("processor" in note for note in notes)
    Image.fromarray(PHOTO).save(tmp_path / "photo.png")
    (predicted,) = predict_files(settings, [tmp_path / "photo.png"], tmp_path / "out", manifest.version)
    assert predicted.index is not None
    ours, theirs = np.asarray(Image.open(predicted.index)), their_mask(original, folder)
    assert len(np.unique(theirs)) > 1
    assert (ours != theirs).mean() <= MOST_APART.get(kind, 0.01)


@NEEDS_SCIPY
@pytest.mark.nightly
def test_sliding_windows_come_nearer_to_the_tiles_of_eomt(tmp_path: Path) -> None:
    """Its processor cuts an image into overlapping squares and averages their sums; windows average logarithms."""
    torch.set_num_threads(1)
    folder, original = tmp_path / "model", undecided("eomt")
    original.save_pretrained(folder)
    processor = {"image_processor_type": "EomtImageProcessor", "size": {"shortest_edge": 96}, "do_split_image": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    own = own_input(processor)
    assert own is not None
    settings = settings_for(tmp_path, own.settings())
    registry = CheckpointRegistry(settings.state / "checkpoints")
    number = import_checkpoint(folder, settings, registry, by_position=True).version
    network, manifest = load_version(registry, number, torch.device("cpu"))
    theirs = their_mask(original, folder)
    assert len(np.unique(theirs)) > 2
    whole = segment_image(network, PHOTO, (manifest.input_height, manifest.input_width))
    tiles = Window(96, 96, 0.0)
    (slid,) = segment_fitted(network, [tiles.fit(PHOTO)], [PHOTO.shape[:2]], forward=tiles.logits)
    apart = (slid.numpy() != theirs).mean()
    assert apart < 0.25 and apart < (whole != theirs).mean() / 1.5


SEGFORMER, MASK2FORMER = {"image_processor_type": "SegformerImageProcessor"}, "Mask2FormerImageProcessor"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (SEGFORMER, (512, 512, Fit("squash", "bilinear"))),
        (SEGFORMER | {"size": 640, "resample": 3}, (640, 640, Fit("squash", "bicubic"))),
        (SEGFORMER | {"size": [480, 640]}, (480, 640, Fit("squash", "bilinear"))),
        ({"image_processor_type": "BeitImageProcessorPil"}, (224, 224, Fit("squash", "bicubic"))),
        ({"image_processor_type": MASK2FORMER}, (800, 1333, Fit("aspect", "bilinear"))),
        ({"image_processor_type": MASK2FORMER, "size": 512, "max_size": 1024}, (512, 1024, Fit())),
        ({"size": {"max_height": 400, "max_width": 500}}, (400, 500, Fit())),
        ({"size": {"shortest_edge": 256}}, (256, 448, Fit())),
        ({"size": {"height": 384, "width": 384}, "keep_aspect_ratio": True}, (384, 384, Fit())),
        (SEGFORMER | {"do_resize": False}, None),
        (SEGFORMER | {"size": {"height": 16, "width": 16}}, None),
        ({}, None),
        (None, None),
    ],
)
def test_what_processors_make_of_an_image(content: dict[str, Any] | None, expected: tuple[Any, ...] | None) -> None:
    assert own_input(content) == expected


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"size": {"height": "big", "width": 5}}, "size.height is 'big'"),
        ({"size": {"height": 64.5, "width": 64}}, "size.height is 64.5"),
        ({"size": {"height": float("inf"), "width": 64}}, "size.height is inf"),
        ({"size": {"height": float("nan"), "width": 64}}, "size.height is nan"),
        ({"size": {"depth": 64}}, "shortest_edge"),
        (SEGFORMER | {"resample": 9}, "resample is 9"),
        (SEGFORMER | {"resample": [2]}, "resample is"),
    ],
)
def test_a_size_that_no_processor_has_is_refused_by_its_name(content: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModel, match=re.escape(named)):
        own_input(content)


def test_an_import_says_which_settings_give_the_models_own_masks(tmp_path: Path) -> None:
    content = SEGFORMER | {"do_center_crop": True, "do_reduce_labels": True}
    crop, labels, size = input_notes(content, settings_for(tmp_path, {"height": 64, "width": 96}))
    assert "do_center_crop" in crop
    assert "source.label_format: ade20k" in labels
    told = size.rpartition("its own: ")[2]
    wanted = settings_for(tmp_path, yaml.safe_load(told)["buffer"])
    assert input_notes(SEGFORMER, wanted) == []
