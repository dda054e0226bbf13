"""Mask transformers in every recipe: one step moves encoder and decoder, with finite losses."""

from typing import Any

import pytest
import torch

from adapters.errors import AdapterError
from adapters.networks.build import build_network
from adapters.networks.network import SegmentationNetwork
from configs.network import Architecture
from tests.adapters.recipes import adaptation_steps, recipe_steps
from tests.adapters.recipes.recipe_steps import CLASSES
from tests.adapters.tiny_models import FEW, MASKS, NEEDS_SCIPY, model

pytestmark = NEEDS_SCIPY
SUPERVISED: dict[str, dict[str, Any]] = {
    "dacs": {"name": "dacs", "mfm": True},
    "daformer": {"name": "daformer", "feature_distance_weight": 0.005, "thing_classes": ("class 1",)},
    "hrda": {"name": "hrda"},
    "mic": {"name": "mic", "mfm": True},
}
SOURCE_FREE: dict[str, dict[str, Any]] = {"tent": {"name": "tent"}, "cotta": {"name": "cotta", "mfm": True}}
ROWS = [pytest.param(name, marks=[pytest.mark.nightly] * (name not in FEW)) for name in MASKS]


def student_of(name: str, **options: Any) -> SegmentationNetwork:
    torch.set_num_threads(1)
    config = model(name).config.to_dict()
    names = [f"class {index}" for index in range(CLASSES)]
    config |= {"id2label": dict(enumerate(names)), "label2id": {label: index for index, label in enumerate(names)}}
    torch.manual_seed(0)
    return build_network(Architecture(name="huggingface", hf_config=config, **options), CLASSES).train()


def moved(before: dict[str, torch.Tensor], student: SegmentationNetwork) -> set[str]:
    """Halves of the network in which a weight moved."""
    return {name.partition(".")[0] for name in adaptation_steps.changed(before, student)}


@pytest.mark.parametrize("recipe", SUPERVISED)
@pytest.mark.parametrize("name", ROWS)
def test_one_step_with_a_source(name: str, recipe: str) -> None:
    student = student_of(name, multi_resolution=recipe == "hrda", channels=16)
    before, settings = adaptation_steps.weights(student), dict(SUPERVISED[recipe])
    if "feature_distance_weight" in settings:
        settings["reference"] = recipe_steps.frozen(student)
    (result,) = recipe_steps.train(student, 1, **settings)
    assert all(loss.isfinite() for loss in result.losses.values())
    assert ("mfm" in result.losses) == settings.get("mfm", False)
    assert moved(before, student) == {"encoder", "decoder"}


@pytest.mark.parametrize("recipe", SOURCE_FREE)
@pytest.mark.parametrize("name", ROWS)
def test_one_step_without_a_source(name: str, recipe: str) -> None:
    student = student_of(name)
    before, released = adaptation_steps.weights(student), adaptation_steps.frozen(student)
    (result,) = adaptation_steps.adapt(adaptation_steps.recipe_of(student, released, **SOURCE_FREE[recipe]), 1)
    assert all(loss.isfinite() for loss in result.losses.values())
    assert moved(before, student) == {"encoder", "decoder"}


def test_without_batch_norm_there_are_no_statistics_to_adapt() -> None:
    with pytest.raises(AdapterError, match="BatchNorm"):
        adaptation_steps.recipe_of(student_of("mask2former"), name="bn_statistics")
