"""ClassMix: which classes are pasted, how often, and how images, labels and weights follow."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.augmentation.augment import class_mask, paste
from adapters.networks.step_rng import StepRng


def seeded(seed: int = 0) -> StepRng:
    return StepRng(seed)


@given(values=st.lists(st.integers(0, 255), min_size=1, max_size=12, unique=True), seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_half_of_the_values_rounded_up_is_pasted_whole(values: list[int], seed: int) -> None:
    """Every image holds every value here: exactly ceil(n/2) of them are pasted, each with all its pixels."""
    labels = torch.tensor(values).repeat(3, 4, 1)  # [3, 4, n]: one column a value
    mask = class_mask(labels, seeded(seed))
    columns = mask.all(dim=1)  # [3, n]
    assert torch.equal(columns, mask.any(dim=1))
    assert columns.sum(dim=1).tolist() == [(len(values) + 1) // 2] * 3


def test_values_are_counted_over_the_whole_batch() -> None:
    """Two values in the batch, one in each image: one of two is drawn, so an image is pasted whole or not at all."""
    labels = torch.stack([torch.zeros(4, 4), torch.ones(4, 4)]).byte()
    generator, pasted = seeded(), []
    for _ in range(200):
        mask = class_mask(labels, generator)
        assert torch.equal(mask.flatten(1).any(1), mask.flatten(1).all(1))
        pasted.append(mask[:, 0, 0].float())
    assert torch.stack(pasted).mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.12)


def test_each_image_draws_its_own_classes() -> None:
    labels = torch.arange(8).repeat(16, 2, 1)
    masks = class_mask(labels, seeded())[:, 0]
    assert len({tuple(row.tolist()) for row in masks}) > 8


def test_repeats_under_a_seed() -> None:
    labels = torch.randint(0, 5, (2, 8, 8), generator=seeded(1).generator)
    assert torch.equal(class_mask(labels, seeded(7)), class_mask(labels, seeded(7)))


def test_paste_takes_masked_pixels_from_the_source() -> None:
    mask = torch.tensor([[[True, False]]])
    images = paste(mask, torch.ones(1, 3, 1, 2), torch.zeros(1, 3, 1, 2))
    labels = paste(mask, torch.tensor([[[4, 4]]]), torch.tensor([[[9, 9]]]))
    assert images[0, :, 0].tolist() == [[1.0, 0.0]] * 3
    assert labels.tolist() == [[[4, 9]]]
