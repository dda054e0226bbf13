"""Class weights: median-frequency balancing, and how a recipe's step counts with them."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from adapters.networks.build import build_network
from adapters.networks.step_rng import StepRng
from adapters.recipes.build import dacs
from adapters.recipes.recipe import RecipeInputs, StepBatch
from adapters.sampling.rare_class import balanced_weights
from adapters.sampling.streams import SourceBatch, TargetBatch
from configs.mfm import MfmSettings
from configs.network import Architecture
from tests.sections import recipe_settings


def test_class_weights_are_median_frequency_balancing() -> None:
    pixels = np.array([[80, 20, 0, 0], [60, 0, 40, 0]])  # frequencies 0.7, 0.2, 0.4, never
    weights = balanced_weights(pixels, 1.0)
    torch.testing.assert_close(weights[:4], torch.tensor([0.4 / 0.7, 2.0, 1.0, 0.0]))
    torch.testing.assert_close(balanced_weights(pixels, 0.5)[:3] ** 2, weights[:3])
    torch.testing.assert_close(balanced_weights(pixels, 0.0)[:3], torch.ones(3))
    assert weights[255] == 0


CLASSES, CROP = 4, (64, 96)


def losses_of(weights: torch.Tensor | None, *, threshold: float = 0.0, classmix: bool = False) -> dict[str, float]:
    """Losses of one DACS step, unaugmented."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    student = build_network(Architecture(name="deeplabv2", encoder="resnet_tiny"), CLASSES).train()
    settings = recipe_settings(threshold=threshold, jitter_probability=0.0, blur_probability=0.0, classmix=classmix)
    names = tuple("abcd")
    common = (student, None, None, settings, MfmSettings(), names, Accelerator(cpu=True), StepRng(2))
    inputs = RecipeInputs(*common, class_weights=weights)
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (2, 2, *CROP, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (2, *CROP), dtype=torch.uint8, generator=generator)
    valid = torch.ones(2, *CROP, dtype=torch.bool)
    batch = StepBatch(TargetBatch(images[0], valid, valid), SourceBatch(images[1], labels))
    return {name: float(loss) for name, loss in dacs(inputs).step(batch).losses.items()}


def test_weights_of_one_change_nothing_and_of_two_double_the_loss_of_true_labels_only() -> None:
    plain, same, double = (losses_of(weights) for weights in (None, torch.ones(256), torch.full((256,), 2.0)))
    assert same == pytest.approx(plain)
    assert double["source"] == pytest.approx(2 * plain["source"], rel=1e-5)
    assert double["mix"] == pytest.approx(plain["mix"], rel=1e-5)  # unmixed: pseudo-labels only


def test_pasted_labels_weigh_as_in_the_source() -> None:
    """With every pseudo-label unsure, only pasted pixels give loss, and theirs doubles."""
    plain, double = (losses_of(weights, threshold=1.0, classmix=True) for weights in (None, torch.full((256,), 2.0)))
    assert plain["mix"] > 0
    assert double["mix"] == pytest.approx(2 * plain["mix"], rel=1e-5)


def test_a_class_of_weight_0_gives_no_loss() -> None:
    weights = torch.ones(256)
    weights[0] = 0.0
    assert 0 < losses_of(weights)["source"] < losses_of(None)["source"]
