"""Deformable attention: the same as a slow loop over queries, heads, maps and places."""

import math

import torch
from torch import Tensor

from adapters.networks.encoders.deformable_attention import (
    POINTS,
    DeformableAttention,
    places,
    read_between_cells,
)

SIZES = [(3, 5), (2, 2)]
WIDTH, HEADS = 12, 3


def cell_or_zero(level: Tensor, row: int, column: int) -> Tensor:
    inside = 0 <= row < level.shape[-2] and 0 <= column < level.shape[-1]
    return level[:, row, column] if inside else torch.zeros(level.shape[0])


def read_slowly(level: Tensor, x: float, y: float) -> Tensor:
    """The value `[D]` of a map `[D, H, W]` at a place (shares of the image), between the four cells around it."""
    column, row = x * level.shape[-1] - 0.5, y * level.shape[-2] - 0.5
    left, top = math.floor(column), math.floor(row)
    right_share, bottom_share = column - left, row - top
    above = (1 - right_share) * cell_or_zero(level, top, left) + right_share * cell_or_zero(level, top, left + 1)
    below = (1 - right_share) * cell_or_zero(level, top + 1, left) + right_share * cell_or_zero(
        level, top + 1, left + 1
    )
    return (1 - bottom_share) * above + bottom_share * below


def attention() -> DeformableAttention:
    torch.manual_seed(0)
    made = DeformableAttention(WIDTH, HEADS, len(SIZES), 0.5)
    torch.nn.init.normal_(made.offsets.weight)  # several cells far, also out of the maps
    return made


@torch.no_grad()
def test_it_is_what_a_loop_over_queries_and_places_gives() -> None:
    module, own = attention(), places(SIZES, torch.device("cpu"))
    cells = sum(height * width for height, width in SIZES)
    queries, tokens = torch.randn(2, cells, WIDTH), torch.randn(2, cells, WIDTH)
    values, inner = module.value(tokens), WIDTH // 2 // HEADS
    expected = torch.zeros(2, cells, WIDTH // 2)
    for image in range(2):
        for query in range(cells):
            offsets = module.offsets(queries[image, query]).view(HEADS, len(SIZES), POINTS, 2).tolist()
            weights = module.weights(queries[image, query]).view(HEADS, -1).softmax(-1).view(HEADS, len(SIZES), POINTS)
            for head in range(HEADS):
                start, part = 0, slice(head * inner, (head + 1) * inner)
                for index, (height, width) in enumerate(SIZES):
                    level = values[image, start : start + height * width, part].T.reshape(inner, height, width)
                    start += height * width
                    for point in range(POINTS):
                        x, y = offsets[head][index][point]
                        read = read_slowly(level, own[query, 0].item() + x / width, own[query, 1].item() + y / height)
                        expected[image, query, part] += weights[head, index, point] * read
    found = module(queries, own, tokens, SIZES)
    torch.testing.assert_close(found, module.output(expected), atol=1e-5, rtol=1e-5)


def test_places_are_the_centres_of_cells_as_x_and_y() -> None:
    expected = [[0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75]]
    assert places([(1, 2), (2, 1)], torch.device("cpu")).tolist() == expected


def test_at_first_each_head_reads_in_a_direction_of_its_own() -> None:
    module = DeformableAttention(16, 4, 1, 0.5)
    module.initialise()
    offsets = module.offsets(torch.randn(16)).view(4, POINTS, 2)
    for head, direction in enumerate([(1, 0), (0, 1), (-1, 0), (0, -1)]):
        steps = torch.tensor(direction) * torch.arange(1.0, POINTS + 1)[:, None]
        torch.testing.assert_close(offsets[head], steps, atol=1e-5, rtol=0)
    assert torch.equal(module.weights(torch.randn(16)), torch.zeros(4 * POINTS))


def test_places_keep_their_precision_in_bfloat16() -> None:
    """A map of 256 cells: bfloat16 has 8 bits, so neighbours would be read as one."""
    level = torch.arange(256.0).view(1, 1, 1, 256).bfloat16()
    where = ((torch.arange(256) + 0.5) / 256).view(1, 256, 1, 1).expand(-1, -1, -1, 2).clone()
    where[..., 1] = 0.5
    read = read_between_cells([level], [where], torch.ones(1, 256, 1))
    torch.testing.assert_close(read.flatten(), torch.arange(256.0), atol=1e-2, rtol=0)
