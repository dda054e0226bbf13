"""Masked-image consistency: what is hidden, what it is compared with, and what is left without hiding."""

import copy

import pytest
import torch
from torch.nn import functional as F

from adapters.augmentation.augment import normalise_unit, to_unit
from adapters.networks.step_rng import StepRng
from adapters.recipes.terms import mask_blocks
from tests.adapters.recipes.recipe_steps import CROP, batch, gradients, network, recipe_of
from tests.sections import recipe_settings

MASKING = {"name": "mic", "feature_distance_weight": 0.0}


def test_preset_hides_seven_tenths_of_blocks_of_32_at_512_and_64_at_1024() -> None:
    recipe = recipe_settings(name="mic")
    assert (recipe.masked_image_weight, recipe.advanced.masked_image_ratio) == (1.0, 0.7)
    assert recipe.advanced.masked_image_block * 512 == 32 and recipe.advanced.masked_image_block * 1024 == 64


def test_blocks_are_hidden_whole_and_the_rest_is_untouched() -> None:
    images = 1.0 + torch.rand(4, 3, 512, 512, generator=StepRng(0).generator)
    masked = mask_blocks(images, 0.0625, 0.7, StepRng(1))
    blocks = masked.unfold(2, 32, 32).unfold(3, 32, 32)  # [4, 3, 16, 16, 32, 32]
    hidden = (blocks == 0).flatten(4).all(4).all(1)  # [4, 16, 16]
    assert torch.equal(hidden, (blocks == 0).flatten(4).any(4).any(1)), "a block is hidden in all channels or in none"
    assert 0.65 < hidden.float().mean() < 0.75  # 1024 draws: three deviations are 0.043
    assert not torch.equal(hidden[0], hidden[1])
    assert torch.equal(masked[masked != 0], images[masked != 0])


def test_nothing_is_hidden_at_ratio_0_and_everything_at_1() -> None:
    images = torch.rand(2, 3, 48, 64, generator=StepRng(0).generator)
    assert torch.equal(mask_blocks(images, 0.0625, 0.0, StepRng(1)), images)
    assert not mask_blocks(images, 0.0625, 1.0, StepRng(1)).any()


@pytest.mark.parametrize(("size", "block"), [((45, 61), 0.3), ((33, 100), 0.0625), ((8, 8), 0.0), ((20, 30), 1.0)])
def test_sizes_that_blocks_do_not_divide(size, block) -> None:
    images = torch.ones(2, 3, *size)
    masked = mask_blocks(images, block, 0.5, StepRng(1))
    assert masked.shape == images.shape and set(masked.unique().tolist()) <= {0.0, 1.0}


def test_blocks_are_shares_of_the_shorter_side_on_wide_crops_too() -> None:
    masked = mask_blocks(torch.ones(1, 3, 64, 128), 0.25, 0.5, StepRng(3))[0, 0]
    cells = masked.unfold(0, 16, 16).unfold(1, 16, 16)  # [4, 8, 16, 16]
    assert torch.equal(cells.amin((2, 3)), cells.amax((2, 3))) and 0 < cells.mean() < 1


def test_without_masking_and_augmentation_it_is_plain_cross_entropy_on_the_target() -> None:
    student = network()
    recipe = recipe_of(student, **MASKING, masked_image_ratio=0.0)
    images = normalise_unit(to_unit(batch().target.images))
    expected = F.cross_entropy(copy.deepcopy(student)(images), recipe.teacher(images).argmax(1))
    torch.testing.assert_close(recipe.step(batch()).losses["masked_image"], expected.detach())


def test_the_image_is_masked_and_the_label_is_not() -> None:
    """The student is shown zeros in most places, and its answer there counts as everywhere."""
    student, seen = network(), []
    recipe = recipe_of(student, **MASKING)
    student.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    expected_labels = recipe.teacher(normalise_unit(to_unit(batch().target.images))).argmax(1)
    result = recipe.step(batch())
    clean, masked = normalise_unit(to_unit(batch().target.images)), seen[-1]
    hidden = (masked == 0).all(1)  # [B, H, W]
    assert len(seen) == 3 and 0.4 < hidden.float().mean() < 0.95
    assert torch.equal(masked.masked_fill(hidden.unsqueeze(1), 0), clean.masked_fill(hidden.unsqueeze(1), 0))
    expected = F.cross_entropy(network()(masked), expected_labels)
    torch.testing.assert_close(result.losses["masked_image"], expected.detach())


def test_only_pixels_that_are_trusted_count() -> None:
    step = batch()
    trusted = torch.zeros(2, *CROP, dtype=torch.bool)
    step = step._replace(target=step.target._replace(trusted=trusted))
    assert recipe_of(network(), **MASKING).step(step).losses["masked_image"] == 0.0


def test_weight_is_a_factor_of_loss_and_gradient() -> None:
    found = []
    for weight in (0.0, 0.5, 1.0):
        student = network()
        losses = recipe_of(student, **MASKING, masked_image_weight=weight).step(batch()).losses
        found.append((gradients(student), losses.get("masked_image", torch.tensor(0.0))))
    torch.testing.assert_close(2 * found[1][1], found[2][1])
    for none, half, full in zip(*(gradient for gradient, _ in found), strict=True):
        torch.testing.assert_close(half, (none + full) / 2, rtol=1e-3, atol=1e-6)
