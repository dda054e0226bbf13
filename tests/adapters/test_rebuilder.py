"""The Rebuilder: published size, what is kept, what is rebuilt, any crop size."""

import pytest
import torch

from adapters.build import build_network
from adapters.draws import Draws
from adapters.rebuilder import Rebuilder, build_rebuilder, feature_sizes, position_code
from configs.settings import MfmSettings, NetworkSettings

SMALL = MfmSettings(dim=32, heads=4, blocks=1)
PYRAMID = ((8, 16, 24, 32), ((32, 32), (16, 16), (8, 8), (4, 4)))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def maps(channels: tuple[int, ...], sizes: tuple[tuple[int, int], ...], batch: int = 2) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(batch, width, *size) for width, size in zip(channels, sizes, strict=True))


def checkerboard(rows: int, columns: int, batch: int = 2) -> torch.Tensor:
    keep = (torch.arange(rows)[:, None] + torch.arange(columns)) % 2 == 0
    return keep.expand(batch, 1, rows, columns)


@pytest.mark.parametrize(
    ("channels", "sizes", "millions"),
    [
        ((64, 128, 320, 512), ((128, 128), (64, 64), (32, 32), (16, 16)), 14.55),
        ((2048,), ((64, 64),), 10.25),
    ],
    ids=["daformer", "deeplabv2"],
)
def test_has_the_published_parameters(
    channels: tuple[int, ...], sizes: tuple[tuple[int, int], ...], millions: float
) -> None:
    """papers.md 1.4, at the published 512 crop and default settings."""
    rebuilder = Rebuilder(channels, sizes, MfmSettings())
    count = sum(parameter.numel() for parameter in rebuilder.parameters() if parameter.requires_grad)
    assert count / 1e6 == pytest.approx(millions, rel=0.005)


def test_keep_all_gives_the_features_back_bit_for_bit() -> None:
    features = maps(*PYRAMID)
    rebuilt = Rebuilder(*PYRAMID, SMALL)(features, torch.ones(2, 1, 4, 4, dtype=torch.bool))
    assert all(torch.equal(old, new) for old, new in zip(features, rebuilt, strict=True))


def test_masked_cells_take_no_value_from_the_original() -> None:
    """Whatever stands in masked cells, the output is the same everywhere, kept cells included."""
    rebuilder, features, keep = Rebuilder(*PYRAMID, SMALL).eval(), maps(*PYRAMID), checkerboard(4, 4)
    changed = []
    for level in features:
        factor = level.shape[-1] // 4
        mask = keep.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
        changed.append(torch.where(mask, level, torch.full_like(level, 1e3)))
    with torch.no_grad():
        first, second = rebuilder(features, keep), rebuilder(changed, keep)
    assert all(torch.equal(old, new) for old, new in zip(first, second, strict=True))


def test_only_masked_cells_change() -> None:
    features, keep = maps(*PYRAMID), checkerboard(4, 4)
    rebuilt = Rebuilder(*PYRAMID, SMALL)(features, keep)
    for old, new in zip(features, rebuilt, strict=True):
        factor = old.shape[-1] // 4
        mask = keep.repeat_interleave(factor, -2).repeat_interleave(factor, -1).expand_as(old)
        assert torch.equal(old[mask], new[mask])
        assert not torch.isclose(old[~mask], new[~mask]).any(dim=0).all()


def test_masked_cells_are_rebuilt_from_kept_ones() -> None:
    rebuilder, features = Rebuilder(*PYRAMID, SMALL).eval(), maps(*PYRAMID)
    keep = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    keep[..., 0, 0] = False
    elsewhere = (*features[:-1], features[-1].clone())
    elsewhere[-1][..., 3, 3] += 5.0  # a kept cell far from the masked one
    with torch.no_grad():
        first, second = rebuilder(features, keep), rebuilder(elsewhere, keep)
    for one, other in zip(first, second, strict=True):
        assert not torch.allclose(one[..., 0, 0], other[..., 0, 0])


def test_gradient_reaches_features_by_pasting_and_by_attention() -> None:
    features = tuple(level.requires_grad_() for level in maps(*PYRAMID))
    keep = checkerboard(4, 4)
    rebuilder = Rebuilder(*PYRAMID, SMALL)
    rebuilt = rebuilder(features, keep)
    (rebuilt[0] * ~keep.repeat_interleave(8, -2).repeat_interleave(8, -1)).square().sum().backward()
    assert features[-1].grad is not None
    assert features[-1].grad[keep.expand_as(features[-1])].abs().sum() > 0  # kept cells, attended to
    assert rebuilder.mask_token.grad is not None
    assert rebuilder.mask_token.grad.abs().sum() > 0


@pytest.mark.parametrize("ratio", [0.0, 0.4, 1.0])
def test_cells_are_masked_at_the_ratio_each_on_its_own(ratio: float) -> None:
    settings = SMALL.model_copy(update={"mask_ratio": ratio})
    sizes = ((16, 16),)
    rebuilder = Rebuilder((8,), sizes, settings)
    keep = rebuilder.draw_mask(maps((8,), sizes, batch=64), Draws(0))
    assert keep.shape == (64, 1, 16, 16)
    assert (~keep).float().mean().item() == pytest.approx(ratio, abs=0.02)
    if ratio == 0.4:
        counts = (~keep).flatten(1).sum(1)
        assert counts.float().std() > 3, "Bernoulli per cell, not an exact count"


def test_mask_is_fresh_per_draw_and_follows_the_seed() -> None:
    rebuilder, features, draws = Rebuilder(*PYRAMID, SMALL), maps(*PYRAMID, batch=8), Draws(1)
    first, second = rebuilder.draw_mask(features, draws), rebuilder.draw_mask(features, draws)
    again = rebuilder.draw_mask(features, Draws(1))
    assert not torch.equal(first, second)
    assert torch.equal(first, again)


@pytest.mark.parametrize("crop", [(128, 128), (192, 256), (180, 240), (64, 160)])
def test_any_crop_size_works(crop: tuple[int, int]) -> None:
    network = build_network(NetworkSettings(name="daformer", encoder="mit_tiny", channels=16), 3)
    rebuilder = build_rebuilder(network, crop, SMALL)
    features = network.encode(torch.randn(1, 3, *crop))
    keep = rebuilder.draw_mask(features, Draws(0))
    rebuilt = rebuilder(features, keep)
    assert [level.shape for level in rebuilt] == [level.shape for level in features]
    deepest = features[-1].shape[-2:]
    assert keep.shape == (1, 1, min(16, deepest[0]), min(16, deepest[1]))


def test_other_sizes_than_it_was_built_for_work() -> None:
    rebuilder = Rebuilder(*PYRAMID, SMALL)
    features = maps(PYRAMID[0], ((45, 60), (23, 30), (12, 15), (6, 8)))
    keep = rebuilder.draw_mask(features, Draws(0))
    rebuilt = rebuilder(features, keep)
    assert keep.shape == (2, 1, 6, 8)
    assert [level.shape for level in rebuilt] == [level.shape for level in features]


def test_deepest_map_above_the_grid_is_masked_in_blocks() -> None:
    """DeepLab: a 64x64 map, a 16x16 grid, cells of 4x4."""
    rebuilder = Rebuilder((8,), ((64, 64),), SMALL)
    features = maps((8,), ((64, 64),), batch=1)
    keep = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    keep[..., 2, 3] = False
    rebuilt = rebuilder(features, keep)[0]
    changed = (rebuilt != features[0]).any(dim=1)[0]
    expected = torch.zeros(64, 64, dtype=torch.bool)
    expected[8:12, 12:16] = True
    assert torch.equal(changed, expected)


def test_building_leaves_the_network_as_it_was() -> None:
    network = build_network(NetworkSettings(name="deeplabv3plus", encoder="resnet_tiny", channels=16), 3).train()
    network.decoder.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    sizes = feature_sizes(network, (128, 128))
    assert sizes == [(32, 32), (16, 16)]
    assert network.training and network.encoder.training and not network.decoder.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_position_code_tells_all_cells_apart() -> None:
    code = position_code(5, 7, 32)[0]
    assert code.shape == (35, 32)
    assert torch.cdist(code, code).add(torch.eye(35)).min() > 0.1
    rows, columns = code[:, :16].view(5, 7, 16), code[:, 16:].view(5, 7, 16)
    assert torch.equal(rows[:, 0], rows[:, 6]), "the first half is the row alone"
    assert torch.equal(columns[0], columns[4]), "the second half is the column alone"
    assert rows[1, 0, 0].item() == pytest.approx(0.841471, abs=1e-5)  # sin(1)


def test_half_precision_keeps_kept_cells_and_dtype() -> None:
    features, keep = maps(*PYRAMID), checkerboard(4, 4)
    rebuilder = Rebuilder(*PYRAMID, SMALL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rebuilt = rebuilder(features, keep)
    assert all(level.dtype == torch.float32 for level in rebuilt)
    assert torch.equal(rebuilt[-1][keep.expand_as(rebuilt[-1])], features[-1][keep.expand_as(features[-1])])
