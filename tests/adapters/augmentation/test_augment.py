"""Colour jitter and blur: ranges, shapes, one decision a batch, one amount an image, repeatable."""

import pytest
import torch

from adapters.augmentation.augment import (
    color_jitter,
    gaussian_blur,
    normalise_unit,
    odd_kernel,
    strong_augment,
    to_unit,
)
from adapters.networks.network import normalise
from adapters.networks.step_rng import StepRng
from configs.recipe import RecipeBase
from tests.sections import recipe_settings


def seeded(seed: int = 0) -> StepRng:
    return StepRng(seed)


def recipe(jitter_probability: float, blur_probability: float) -> RecipeBase:
    return recipe_settings(jitter=0.2, jitter_probability=jitter_probability, blur_probability=blur_probability)


@pytest.fixture
def images() -> torch.Tensor:
    torch.set_num_threads(1)
    return torch.rand(4, 3, 32, 48, generator=seeded(3).generator)


def test_bytes_to_network_input_equals_what_serving_does() -> None:
    frames = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8, generator=seeded().generator)
    torch.testing.assert_close(normalise_unit(to_unit(frames)), normalise(frames))


@pytest.mark.parametrize(("side", "kernel"), [(512, 51), (1024, 103), (128, 13), (32, 3), (180, 17), (8, 1)])
def test_kernel_is_odd_and_about_a_tenth(side, kernel) -> None:
    assert odd_kernel(side) == kernel


def test_jitter_stays_in_range_and_changes_each_image_by_its_own_amount(images) -> None:
    same = images[:1].expand(4, -1, -1, -1)
    changed = color_jitter(same, 0.2, seeded())
    assert changed.min() >= 0.0 and changed.max() <= 1.0
    assert all(not torch.allclose(changed[0], other) for other in changed[1:])


def test_jitter_of_no_strength_changes_nothing(images) -> None:
    torch.testing.assert_close(color_jitter(images, 0.0, seeded()), images, atol=1e-5, rtol=0)


def test_blur_smooths_and_keeps_the_mean(images) -> None:
    blurred = gaussian_blur(images, seeded(1))
    assert blurred.shape == images.shape
    assert (blurred.diff(dim=-1).abs().mean() < images.diff(dim=-1).abs().mean()).item()
    assert blurred.mean().item() == pytest.approx(images.mean().item(), abs=0.01)


def test_flags_are_drawn_once_for_the_batch(images) -> None:
    draws, changed = seeded(), []
    for _ in range(60):
        result = strong_augment(images, recipe(0.5, 0.0), draws)
        touched = [not torch.equal(one, other) for one, other in zip(result, images, strict=True)]
        assert len(set(touched)) == 1
        changed.append(touched[0])
    assert 0.25 < sum(changed) / len(changed) < 0.75


def test_nothing_happens_at_probability_zero(images) -> None:
    result = strong_augment(images, recipe(0.0, 0.0), seeded())
    assert result is images


def test_repeats_under_a_seed(images) -> None:
    one, same = (strong_augment(images, recipe(1.0, 1.0), seeded(5)) for _ in range(2))
    assert torch.equal(one, same)
