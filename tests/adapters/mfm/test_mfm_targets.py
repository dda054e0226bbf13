"""What rebuilt cells are compared with: zero for a perfect answer, masked cells only, no scale."""

import pytest
import torch

from adapters.mfm.targets import feature_distance, pictures_of, pixel_distance

KEEP = torch.tensor([[True, False], [False, True]]).expand(2, 1, 2, 2)


def maps(seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, 6, side, side, generator=generator) for side in (8, 4))


def test_features_that_are_the_target_have_no_distance() -> None:
    assert feature_distance(maps(0), maps(0), KEEP).item() == 0.0
    assert feature_distance(maps(0), maps(1), KEEP) > 0.5


def test_feature_distance_knows_no_scale_and_no_offset() -> None:
    """Levels of large values do not outweigh the others, and the closing LayerNorm2d can reach any target."""
    scaled = tuple(3.0 * level + 5.0 for level in maps(0))
    assert feature_distance(maps(0), scaled, KEEP).item() == pytest.approx(0.0, abs=1e-4)
    opposite = tuple(-level for level in maps(0))
    assert feature_distance(maps(0), opposite, KEEP).item() == pytest.approx(4.0, abs=1e-3)


def test_features_of_kept_cells_do_not_count() -> None:
    other = tuple(
        torch.where(KEEP.repeat_interleave(side // 2, -2).repeat_interleave(side // 2, -1), 100.0, level)
        for level, side in zip(maps(0), (8, 4), strict=True)
    )
    assert feature_distance(maps(0), other, KEEP).item() == 0.0


def test_nothing_masked_is_no_distance() -> None:
    everything = torch.ones_like(KEEP)
    assert feature_distance(maps(0), maps(1), everything).item() == 0.0
    assert pixel_distance(torch.zeros(2, 12, 2, 2), torch.rand(2, 3, 8, 8), everything).item() == 0.0


def test_pictures_are_the_cells_of_the_image() -> None:
    images = torch.arange(3 * 8 * 12.0).view(1, 3, 8, 12)
    pictures = pictures_of(images, torch.empty(1, 3 * 4 * 4, 2, 3))
    for row in range(2):
        for column in range(3):
            cell = images[0, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            assert torch.equal(pictures[0, :, row, column].view(3, 4, 4), cell)


def test_pixels_that_are_the_target_have_no_distance() -> None:
    images = torch.randn(2, 3, 30, 42, generator=torch.Generator().manual_seed(0))  # no multiple of the picture
    cells = pictures_of(images, torch.empty(2, 3 * 4 * 4, 2, 2))
    perfect = (cells - cells.mean(1, keepdim=True)) / cells.std(1, keepdim=True, unbiased=False)
    assert pixel_distance(perfect, images, KEEP).item() == pytest.approx(0.0, abs=1e-6)
    assert pixel_distance(perfect, 3.0 * images + 2.0, KEEP).item() == pytest.approx(0.0, abs=1e-6)
    assert pixel_distance(torch.zeros_like(perfect), images, KEEP).item() == pytest.approx(1.0, abs=1e-3)
    wrong_where_kept = torch.where(KEEP, 50.0, perfect)
    assert pixel_distance(wrong_where_kept, images, KEEP).item() == pytest.approx(0.0, abs=1e-6)
