"""`mfmd init --from-model`: one command writes the configuration that a model asks for, and imports the model."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from configs.class_list import distinct_colors, load_class_list
from configs.load import load_settings
from storage.layout import StateLayout
from storage.registry.registry import CheckpointRegistry
from tests.adapters.tiny_models import model

ADE20K = [str(entry["name"]) for entry in load_class_list("ade20k")]
SIZE = {"height": 64, "width": 96}


def save(folder: Path, names: Sequence[str] | None, processor: dict[str, Any] | None) -> None:
    """Save a tiny SegFormer with these class names."""
    network = model("segformer") if names is None else _named(names)
    network.save_pretrained(folder)
    if processor is not None:
        about = {"image_processor_type": "SegformerImageProcessor"} | processor
        (folder / "preprocessor_config.json").write_text(json.dumps(about))


def _named(names: Sequence[str]) -> Any:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    sizes = {"hidden_sizes": [8, 16, 40, 64], "depths": [1, 1, 1, 1], "decoder_hidden_size": 16}
    return SegformerForSemanticSegmentation(SegformerConfig(**sizes, id2label=dict(enumerate(names))))


@pytest.fixture(autouse=True)
def _fresh(config: Path) -> None:
    """No configuration yet."""
    torch.set_num_threads(1)
    config.unlink()


@pytest.fixture
def folder(config: Path) -> Path:
    return config.parent / "model"


def registry_of(config: Path) -> CheckpointRegistry:
    return CheckpointRegistry(StateLayout(load_settings(config).state).checkpoints)


def test_a_model_with_150_classes_serves_after_one_command(mfmd, config: Path, folder: Path) -> None:
    save(folder, [*ADE20K[:7], "bed ", *ADE20K[8:]], {"do_reduce_labels": True, "size": SIZE})
    answer = mfmd("init", "incoming", "--from-model", folder)
    assert answer.code == 0, answer.err
    assert "Classes (150): wall, building" in answer.out and "and 110 more" in answer.out
    assert "Frames: 64x96 (height x width)." in answer.out
    assert f"It serves. Next: mfmd run, and drop images into {config.parent / 'incoming'}" in answer.out
    text = config.read_text(encoding="utf-8")
    assert "\nclasses: ade20k  " in text and "0.018 MiB a frame" in text and "mfmd pretrain`, then" not in text
    settings = load_settings(config)
    assert (settings.buffer.height, settings.buffer.width) == (64, 96)
    assert settings.buffer.advanced.fit == "squash"
    registry = registry_of(config)
    assert registry.serving().version == 1 and (config.parent / "incoming").is_dir()
    assert [event.reason for event in registry.history()] == [f"imported from {folder}"] * 2
    assert registry.manifest(1).classes[149] == {"name": "flag", "color": [92, 0, 255]}
    assert mfmd("config", "validate").code == 0


@pytest.mark.parametrize(
    ("names", "colors"),
    [
        (["road", "Car", "traffic_light"], [(128, 64, 128), (0, 0, 142), (250, 170, 30)]),
        (["person", "chair", "lamp"], [(150, 5, 61), (204, 70, 3), (224, 255, 8)]),
        (["no", "1e3", "it's: #x", "übung", "a,b"], [tuple(color) for color in distinct_colors()[:5]]),
        ([f"class of number {number}" for number in range(60)], [tuple(color) for color in distinct_colors()[:60]]),
    ],
)
def test_other_names_get_the_colours_of_a_list_that_has_them_or_generated_ones(
    mfmd, config: Path, folder: Path, names: list[str], colors: list[tuple[int, int, int]]
) -> None:
    if len(names) > 8:
        names = [f"thing {number}" for number in range(60)]
    save(folder, names, {"size": SIZE})
    answer = mfmd("init", "--from-model", folder)
    assert answer.code == 0, answer.err
    assert [(item.name, item.color) for item in load_settings(config).classes] == list(zip(names, colors, strict=True))
    text = config.read_text(encoding="utf-8")
    assert all(len(line) <= 120 for line in text.splitlines()) and "# the model's own, in its order" in text


def test_a_model_without_names_needs_them(mfmd, config: Path, folder: Path) -> None:
    save(folder, None, None)
    answer = mfmd("init", "--from-model", folder)
    assert answer.code == 1 and "--classes road,car" in answer.err and not config.exists()
    answer = mfmd("init", "--from-model", folder, "--classes", "demo")
    assert answer.code == 0 and "no preprocessor_config.json" in answer.err
    assert "name no size that frames can have; if it was trained at another one, set buffer.height" in answer.err
    settings = load_settings(config)
    assert len(settings.classes) == 8 and (settings.buffer.height, settings.buffer.width) == (512, 1024)


@pytest.mark.parametrize(("twice", "said"), [("road", "2 classes the name 'road'"), (" ", "1 classes the name ''")])
def test_names_that_do_not_tell_classes_apart_are_told(mfmd, config: Path, folder: Path, twice: str, said: str) -> None:
    save(folder, [twice, "road", "sky"], None)
    answer = mfmd("init", "incoming", "--from-model", folder)
    assert answer.code != 0 and said in answer.err and "--classes road,car" in answer.err
    assert not config.exists()


def test_a_refused_model_leaves_no_configuration(mfmd, config: Path, folder: Path) -> None:
    save(folder, ["road", "car"], {"size": SIZE})
    path = folder / "config.json"
    content = json.loads(path.read_text())
    for change, says in (
        ({"model_type": "detr"}, "cannot be split"),
        ({"id2label": {"0": "road", "1": "road"}}, "2 classes the name 'road'"),
        ({"id2label": {str(number): f"c{number}" for number in range(300)}}, "300 classes; at least 2 and at most 255"),
        ({"id2label": {"0": "road"}}, "the model has 1 classes; .* a model of one class answers by a threshold"),
        ({"num_labels": 3}, "num_labels is 3, id2label names 2 classes; correct one"),
    ):
        path.write_text(json.dumps(content | change))
        answer = mfmd("init", "incoming", "--from-model", folder)
        assert answer.code != 0 and re.search(says, answer.err) and "Traceback" not in answer.err
        assert not config.exists() and not (config.parent / "incoming").exists()
    answer = mfmd("init", "--from-model", "nothing/here")
    assert answer.code == 1 and "nothing/here: no such directory here, and the hub cannot be reached" in answer.err
    answer = mfmd("init", "--from-model", "nothing")
    assert answer.code == 1 and "nothing: no such directory; give" in answer.err
    assert not config.exists()


def test_an_existing_file_is_kept_and_a_serving_version_keeps_serving(mfmd, config: Path, folder: Path) -> None:
    save(folder, ["road", "car"], {"size": SIZE})
    config.write_text("classes: demo")
    assert mfmd("init", "--from-model", folder).code == 2 and config.read_text() == "classes: demo"
    for _ in range(2):
        answer = mfmd("init", "--from-model", folder, "--force")
    assert "Version 1 keeps serving; `mfmd promote 2` serves the new one" in answer.out
    assert registry_of(config).versions() == [1, 2]


def test_pickles_need_the_flag(mfmd, config: Path, folder: Path) -> None:
    save(folder, ["road", "car"], {"size": SIZE})
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    answer = mfmd("init", "--from-model", folder)
    assert answer.code == 1 and "--unsafe-pickle" in answer.err and not config.exists()
    other = config.parent / "etc" / "mfmd.yaml"
    answer = mfmd("init", "--from-model", folder, "--unsafe-pickle", "--config", other)
    assert answer.code == 0 and "reading it runs code" in answer.err
    assert f"Next: mfmd run --config {other}, and drop" in answer.out


def test_options_that_do_not_go_together_are_refused(mfmd, config: Path, folder: Path) -> None:
    answer = mfmd("init", "--from-model", folder, "--preset", "demo")
    assert answer.code == 2 and "leave out --from-model" in re.sub(r"\s+", " ", answer.err)
    answer = mfmd("init", "--unsafe-pickle")
    assert answer.code == 2 and "--unsafe-pickle is for the model of --from-model" in answer.err
    assert not config.exists()
