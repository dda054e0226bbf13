"""The Rebuilder: published size, what is kept, what is rebuilt, any crop size."""

import math

import pytest
import torch

from adapters.mfm.feature_mask import draw_keep, grid_of, keep_at
from adapters.mfm.rebuilder import Rebuilder, build_rebuilder, feature_sizes, position_code
from adapters.networks.build import build_network
from adapters.networks.step_rng import StepRng
from configs.mfm import MfmSettings
from configs.network import Architecture
from tests.sections import section

SMALL = section(MfmSettings, dim=32, heads=4, blocks=1)
PYRAMID = ((8, 16, 24, 32), ((32, 32), (16, 16), (8, 8), (4, 4)))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def maps(channels: tuple[int, ...], sizes: tuple[tuple[int, int], ...], batch: int = 2) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(batch, width, *size) for width, size in zip(channels, sizes, strict=True))


def draw(rebuilder: Rebuilder, features: tuple[torch.Tensor, ...], draws: StepRng) -> torch.Tensor:
    return draw_keep(features[-1], rebuilder.settings.ablation.grid, rebuilder.settings.mask_ratio, draws)


def checkerboard(rows: int, columns: int, batch: int = 2) -> torch.Tensor:
    keep = (torch.arange(rows)[:, None] + torch.arange(columns)) % 2 == 0
    return keep.expand(batch, 1, rows, columns)


PUBLISHED = {
    "daformer": (Architecture(name="daformer", encoder="mit_b5"), (64, 128, 320, 512), 14.55),
    "deeplabv2": (Architecture(name="deeplabv2", encoder="resnet101"), (2048,), 10.25),
}


def published(name: str) -> Rebuilder:
    """For the paper's network at its 512 crop, with default settings; without memory."""
    with torch.device("meta"):
        return build_rebuilder(build_network(PUBLISHED[name][0], 19), (512, 512), MfmSettings())


def millions(module: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad) / 1e6


@pytest.mark.parametrize("name", PUBLISHED)
def test_has_the_published_parameters(name: str) -> None:
    """The published rebuilder.py: the whole, and each part."""
    _, channels, total = PUBLISHED[name]
    rebuilder = published(name)
    assert millions(rebuilder) == pytest.approx(total, rel=0.005)
    assert millions(rebuilder.transformer.layers[0]) == pytest.approx(3.152, abs=0.001)
    assert millions(rebuilder.transformer) == pytest.approx(6.306, abs=0.001)
    assert tuple(projector.output.out_features for projector in rebuilder.projectors) == channels
    assert rebuilder.embedding.in_features == channels[-1]
    if name == "daformer":
        parts = [millions(projector) for projector in rebuilder.projectors]
        assert parts == pytest.approx([2.893, 2.639, 2.180, 0.264], abs=0.001)


def test_blocks_are_the_published_ones() -> None:
    """As published: pre-norm, 16 heads, MLP ratio 4, qkv bias, exact GELU, LayerNorm eps 1e-5, no dropout."""
    transformer = published("daformer").transformer
    assert len(transformer.layers) == 2 and transformer.norm.eps == 1e-5
    for block in transformer.layers:
        assert block.norm_first and block.norm1.eps == block.norm2.eps == 1e-5
        assert block.self_attn.num_heads == 16 and block.self_attn.in_proj_bias is not None
        assert block.linear1.out_features == 4 * 512
        assert block.activation is torch.nn.functional.gelu  # exact by default
        assert not any(layer.p for layer in block.modules() if isinstance(layer, torch.nn.Dropout))
        assert block.self_attn.dropout == 0.0


def test_starts_as_published() -> None:
    """Xavier-uniform with the bounds of one fused qkv matrix, zero biases, token N(0, 0.02)."""
    rebuilder = Rebuilder((512,), ((16, 16),), MfmSettings())
    first, second = rebuilder.transformer.layers
    bounds = {
        first.self_attn.in_proj_weight: math.sqrt(6 / (512 + 3 * 512)),
        second.self_attn.in_proj_weight: math.sqrt(6 / (512 + 3 * 512)),
        first.self_attn.out_proj.weight: math.sqrt(6 / (512 + 512)),
        first.linear1.weight: math.sqrt(6 / (512 + 2048)),
        second.linear2.weight: math.sqrt(6 / (512 + 2048)),
        rebuilder.embedding.weight: math.sqrt(6 / (512 + 512)),
    }
    for weight, bound in bounds.items():
        assert weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)
    biases = [value for name, value in rebuilder.named_parameters() if "bias" in name and "projectors" not in name]
    assert len(biases) == 2 * 6 + 2 and not any(bias.any() for bias in biases)
    assert not torch.equal(first.linear1.weight, second.linear1.weight)
    assert rebuilder.mask_token.shape == (1, 512, 1, 1)
    assert rebuilder.mask_token.std().item() == pytest.approx(0.02, rel=0.1)


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


@pytest.mark.parametrize("crop", [(128, 128), (192, 256), (180, 240), (64, 160)])
def test_any_crop_size_works(crop: tuple[int, int]) -> None:
    network = build_network(Architecture(name="daformer", encoder="mit_tiny", channels=16), 3)
    rebuilder = build_rebuilder(network, crop, SMALL)
    features = network.encode(torch.randn(1, 3, *crop))
    keep = draw(rebuilder, features, StepRng(0))
    rebuilt = rebuilder(features, keep)
    assert [level.shape for level in rebuilt] == [level.shape for level in features]
    assert keep.shape == (1, 1, *features[-1].shape[-2:])


def test_other_sizes_than_it_was_built_for_work() -> None:
    rebuilder = Rebuilder(*PYRAMID, SMALL)
    features = maps(PYRAMID[0], ((45, 60), (23, 30), (12, 15), (6, 8)))
    keep = draw(rebuilder, features, StepRng(0))
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


def test_embedding_after_the_resize_equals_the_published_order() -> None:
    """Embed the 64x64 map, then resize: the same tokens, at sixteen times the cost."""
    rebuilder, deepest = Rebuilder((8,), ((64, 64),), SMALL), maps((8,), ((64, 64),))[0]
    keep = checkerboard(16, 16)
    torch.nn.init.normal_(rebuilder.embedding.bias)
    embedded = rebuilder.embedding(deepest.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(embedded, (16, 16), mode="bilinear", align_corners=False)
    tokens = torch.where(keep, resized, rebuilder.mask_token).flatten(2).transpose(1, 2)
    expected = rebuilder.transformer(tokens + position_code(16, 16, 32))
    torch.testing.assert_close(rebuilder.fill(deepest, keep).flatten(2).transpose(1, 2), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [16, 23, 24, 37, 64])
def test_masked_cells_of_any_map_leak_nothing(side: int) -> None:
    """A ViT's 37x37, DeepLab's 64x64, cells of one position and a half: what is masked changes no value at all."""
    rebuilder = Rebuilder((8,), ((side, side),), SMALL).eval()
    features = maps((8,), ((side, side),), batch=2)
    keep = draw(rebuilder, features, StepRng(1))
    assert keep.shape[-2:] == (16, 16)
    changed = features[0].masked_fill(~keep_at(keep, (side, side)), 1e3)
    with torch.no_grad():
        (first,), (second,) = rebuilder(features, keep), rebuilder((changed,), keep)
    assert torch.equal(first, second)


def test_levels_of_a_plain_vit_and_of_a_fine_stem_are_rebuilt_at_their_size() -> None:
    """Several maps of one size, one level (x1 or nearly), and a level sixteen times the grid."""
    for sizes in (((37, 37),) * 4, ((64, 64), (4, 4))):
        channels = (8,) * len(sizes)
        features = maps(channels, sizes, batch=1)
        rebuilder = Rebuilder(channels, sizes, SMALL)
        keep = torch.zeros(1, 1, *grid_of(sizes[-1], 16), dtype=torch.bool)
        rebuilt = rebuilder(features, keep)
        assert [level.shape for level in rebuilt] == [level.shape for level in features]
        assert all(level.mean(dim=1).abs().max() < 1e-5 for level in rebuilt), "each ends with its LayerNorm"


def test_holds_what_its_settings_need() -> None:
    def names(**switches: object) -> set[str]:
        rebuilder = Rebuilder(*PYRAMID, section(MfmSettings, dim=32, heads=4, blocks=1, **switches))
        return {name.split(".")[0] for name, _ in rebuilder.named_parameters()}

    trunk = {"embedding", "mask_token", "transformer"}
    assert names() == names(reconstruction="teacher_feature") == trunk | {"projectors"}
    assert names(reconstruction="pixels") == trunk | {"pixel_head"}
    assert names(reconstruction="mask_only") == names(mask_ratio=0.0) == set()


def test_mask_only_leaves_holes() -> None:
    features, keep = maps(*PYRAMID), checkerboard(4, 4)
    holes = Rebuilder(*PYRAMID, section(MfmSettings, reconstruction="mask_only"))(features, keep)
    for old, new in zip(features, holes, strict=True):
        assert torch.equal(new, old.masked_fill(~keep_at(keep, old.shape[-2:]), 0.0))


def test_building_leaves_the_network_as_it_was() -> None:
    network = build_network(Architecture(name="deeplabv3plus", encoder="resnet_tiny", channels=16), 3).train()
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


def test_position_code_is_the_published_one() -> None:
    """Row code, then column code; in each, all sines, then all cosines, of 1 / 10000^(k / (dim / 4))."""
    code, (rows, columns, quarter) = position_code(3, 4, 16)[0], (3, 4, 4)
    for row in range(rows):
        for column in range(columns):
            expected = [
                wave(place / 10000 ** (k / quarter))
                for place in (row, column)
                for wave in (math.sin, math.cos)
                for k in range(quarter)
            ]
            assert code[row * columns + column].tolist() == pytest.approx(expected, abs=1e-5)


def test_half_precision_keeps_kept_cells_and_dtype() -> None:
    features, keep = maps(*PYRAMID), checkerboard(4, 4)
    rebuilder = Rebuilder(*PYRAMID, SMALL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rebuilt = rebuilder(features, keep)
    assert all(level.dtype == torch.float32 for level in rebuilt)
    assert torch.equal(rebuilt[-1][keep.expand_as(rebuilt[-1])], features[-1][keep.expand_as(features[-1])])
