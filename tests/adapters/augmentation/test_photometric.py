"""Photometric augmentation of source training: off changes nothing, each part does as its setting says, it repeats."""

import pytest
import torch

from adapters.augmentation.augment import color_jitter, photometric, random_gamma
from adapters.networks.step_rng import StepRng
from configs.network import PretrainSettings
from tests.sections import section


def seeded(seed: int = 0) -> StepRng:
    return StepRng(seed)


@pytest.fixture
def images() -> torch.Tensor:
    torch.set_num_threads(1)
    return torch.rand(64, 3, 32, 32, generator=seeded(3).generator)


def test_everything_off_changes_nothing(images) -> None:
    assert photometric(images, section(PretrainSettings, jitter=0.0), seeded()) is images


def test_jitter_alone_is_the_colour_jitter_of_before(images) -> None:
    torch.testing.assert_close(
        photometric(images, section(PretrainSettings, jitter=0.3), seeded()),
        color_jitter(images, 0.3, seeded()),
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize("name", ["jitter_probability", "blur_probability", "grayscale_probability"])
def test_about_the_named_share_of_images_changes(images, name) -> None:
    settings = section(PretrainSettings, **{"jitter": 0.5 if name == "jitter_probability" else 0.0, name: 0.25})
    changed = photometric(images, settings, seeded())
    share = (changed != images).flatten(1).any(dim=1).float().mean()
    assert 0.1 < share < 0.45


def test_grey_images_have_three_equal_channels(images) -> None:
    grey = photometric(images, section(PretrainSettings, jitter=0.0, grayscale_probability=1.0), seeded())
    torch.testing.assert_close(grey[:, 0], grey[:, 2])


def test_gamma_keeps_black_and_white_and_order_and_stays_within_its_powers(images) -> None:
    ramp = torch.linspace(0, 1, 16).expand(64, 3, 4, 16)
    changed = random_gamma(ramp, 1.0, seeded())
    assert bool((changed[..., 0] == 0).all()) and bool((changed[..., -1] == 1).all())
    assert bool((changed.diff(dim=-1) > 0).all())
    assert bool((changed >= ramp**2 - 1e-6).all()) and bool((changed <= ramp**0.5 + 1e-6).all())
    assert len({round(float(value), 5) for value in changed[:, 0, 0, 8]}) > 32  # each image its own power


def test_it_repeats_under_a_seed(images) -> None:
    settings = section(
        PretrainSettings, jitter=0.5, jitter_probability=0.8, gamma=0.5, grayscale_probability=0.1, blur_probability=0.3
    )
    first, again = (photometric(images, settings, seeded(7)) for _ in range(2))
    assert torch.equal(first, again)
    assert bool(torch.isfinite(first).all())
    assert not torch.equal(first, photometric(images, settings, seeded(8)))
