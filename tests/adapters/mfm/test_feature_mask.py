"""Masks on maps of any size: the grid, the draw, what a cell covers, what its token may read."""

import pytest
import torch

from adapters.mfm.feature_mask import draw_keep, grid_of, keep_at, masked_mean, paste, resize_to_grid
from adapters.networks.step_rng import StepRng


@pytest.mark.parametrize(
    ("deepest", "grid"),
    [
        ((16, 16), (16, 16)),  # MiT at the published 512 crop
        ((64, 64), (16, 16)),  # DeepLab there: cells of 4x4
        ((37, 37), (16, 16)),  # a ViT with patches of 14 at 518: 256 tokens
        ((32, 64), (16, 32)),  # a wide crop: square cells
        ((64, 32), (32, 16)),
        ((6, 8), (6, 8)),  # never finer than the map
        ((2, 5), (2, 5)),
        ((23, 30), (16, 21)),
        ((1, 1), (1, 1)),
    ],
)
def test_grid_has_square_cells_on_any_map(deepest, grid) -> None:
    assert grid_of(deepest, 16) == grid


@pytest.mark.parametrize("ratio", [0.0, 0.4, 1.0])
def test_cells_are_masked_at_the_ratio_each_on_its_own(ratio) -> None:
    keep = draw_keep(torch.zeros(64, 8, 16, 16), 16, ratio, StepRng(0))
    assert keep.shape == (64, 1, 16, 16) and keep.dtype == torch.bool
    assert (~keep).float().mean().item() == pytest.approx(ratio, abs=0.02)
    if ratio == 0.4:
        counts = (~keep).flatten(1).sum(1)
        assert counts.float().std() > 3, "Bernoulli per cell, not an exact count"
        assert len({tuple(mask.flatten().tolist()) for mask in keep}) == 64, "fresh for every image"


def test_mask_is_fresh_per_draw_and_follows_the_seed() -> None:
    deepest, draws = torch.zeros(8, 4, 16, 16), StepRng(1)
    first, second = draw_keep(deepest, 16, 0.4, draws), draw_keep(deepest, 16, 0.4, draws)
    assert not torch.equal(first, second)
    assert torch.equal(first, draw_keep(deepest, 16, 0.4, StepRng(1)))


def test_two_processes_draw_the_rows_of_one() -> None:
    whole = draw_keep(torch.zeros(4, 2, 8, 8), 16, 0.4, StepRng(3))
    parts = [draw_keep(torch.zeros(2, 2, 8, 8), 16, 0.4, StepRng(3, rank=rank, processes=2)) for rank in (0, 1)]
    assert torch.equal(torch.cat(parts), whole)


def test_a_mask_costs_the_same_random_numbers_at_any_ratio() -> None:
    """So that the control without masking sees the mixes and augmentations of the masked arm."""
    left = []
    for ratio in (0.0, 0.4):
        draws = StepRng(5)
        draw_keep(torch.zeros(2, 4, 8, 8), 16, ratio, draws)
        left.append(draws.shared(3))
    assert torch.equal(*left)


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8])
def test_a_cell_covers_its_block_at_whole_multiples(factor) -> None:
    """There it is the published nearest resize."""
    keep = torch.rand(2, 1, 6, 5, generator=torch.Generator().manual_seed(0)) > 0.4
    found = keep_at(keep, (6 * factor, 5 * factor))
    assert torch.equal(found, keep.repeat_interleave(factor, -2).repeat_interleave(factor, -1))
    published = torch.nn.functional.interpolate(keep.float(), scale_factor=factor, mode="nearest")
    assert torch.equal(found, published > 0.5)


@pytest.mark.parametrize("side", [16, 17, 23, 24, 31, 32, 37, 48, 64, 65])
def test_no_token_of_a_kept_cell_reads_a_masked_one(side) -> None:
    """Not at DeepLab's 64x64, not where cells are smaller than two positions: infinite values there change nothing."""
    keep = draw_keep(torch.zeros(2, 1, side, side), 16, 0.4, StepRng(side))
    deepest = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side))
    poisoned = deepest.masked_fill(~keep_at(keep, (side, side)), float("inf"))
    clean, other = (resize_to_grid(maps, keep).masked_fill(~keep, 0.0) for maps in (deepest, poisoned))
    assert clean.isfinite().all()
    assert torch.equal(clean, other)


@pytest.mark.parametrize("side", [17, 23, 31])
def test_tokens_are_means_with_weights_that_add_up_to_one(side) -> None:
    keep = draw_keep(torch.zeros(2, 1, side, side), 16, 0.4, StepRng(0))
    ones = resize_to_grid(torch.full((2, 3, side, side), 7.0), keep)
    torch.testing.assert_close(ones[keep.expand_as(ones)], torch.tensor(7.0).expand(int(keep.sum()) * 3))


def test_keep_all_is_the_published_bilinear_resize_at_any_size() -> None:
    for side in (23, 37, 64):
        deepest = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        keep = torch.ones(1, 1, 16, 16, dtype=torch.bool)
        published = torch.nn.functional.interpolate(deepest, (16, 16), mode="bilinear", align_corners=False)
        torch.testing.assert_close(resize_to_grid(deepest, keep), published)


def test_paste_keeps_bits_and_blocks_infinities() -> None:
    keep = torch.tensor([[True, False]]).expand(1, 1, 2, 2)
    level = torch.full((1, 3, 2, 2), 0.1).masked_fill(~keep, float("nan"))
    pasted = paste(level, torch.zeros(()), keep)
    assert torch.equal(pasted, torch.full((1, 3, 2, 2), 0.1).masked_fill(~keep, 0.0))


def test_masked_mean_counts_masked_positions_only() -> None:
    keep = torch.tensor([[True, False]]).expand(1, 1, 1, 2)
    values = torch.tensor([[[9.0, 9.0, 1.0, 2.0], [9.0, 9.0, 3.0, 6.0]]])
    assert masked_mean(values, keep).item() == 3.0
    assert masked_mean(values, torch.ones_like(keep)).item() == 0.0
