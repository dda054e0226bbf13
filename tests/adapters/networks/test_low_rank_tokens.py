"""Frozen ViTs with low-rank tokens: the published formula and sizes, what trains, which directories are refused."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from adapters.errors import NetworkMismatch, UnsupportedModel
from adapters.networks.build import build_network
from adapters.networks.encoders.dinov2 import build_dinov2
from adapters.networks.encoders.low_rank_tokens import LowRankTokens, TokenVit
from adapters.networks.network import SegmentationNetwork
from adapters.recipes.recipe import Recipe
from adapters.rounds.optim import build_optimizer
from adapters.testing import NetworkContract
from configs.network import Architecture, NetworkSettings, OptimSettings, TokenSettings
from tests.adapters.recipes import adaptation_steps, recipe_steps
from tests.adapters.recipes.recipe_steps import train

PAIRS = {
    "unet": ("unet", "dinov2_tokens_tiny"),
    "unet_dinov3": ("unet", "dinov3_tokens_tiny"),
    "daformer": ("daformer", "dinov2_tokens_tiny"),
}
ROWS = [pytest.param(name, marks=[pytest.mark.nightly] * (name != "unet")) for name in PAIRS]
SMALL = TokenSettings(length=5, rank=2, head_width=8)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def settings_of(name: str = "unet", **more: Any) -> Architecture:
    decoder, encoder = PAIRS[name]
    return Architecture(name=decoder, encoder=encoder, channels=16, tokens=SMALL, **more)


def network(name: str = "unet", **more: Any) -> SegmentationNetwork:
    return build_network(settings_of(name, dropout=0.0, **more), 4)


def base_of(made: SegmentationNetwork) -> nn.Module:
    assert isinstance(made.encoder, TokenVit)
    return made.encoder.vit


def trained(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters() if value.requires_grad)


class TestContract(NetworkContract):
    """What the author of a network tests."""

    num_classes = 4

    @pytest.fixture(autouse=True, params=ROWS)
    def _settings(self, request: pytest.FixtureRequest) -> None:
        self.settings = settings_of(request.param)

    def build(self) -> SegmentationNetwork:
        return build_network(self.settings, self.num_classes)


@torch.no_grad()
def test_tokens_follow_the_published_formula() -> None:
    """One patch at a time: shares of all tokens, what it reads from all but the first, two layers, a factor."""
    tokens = LowRankTokens(6, 3, 14, TokenSettings(length=5, rank=2, scale=0.25))
    patches = torch.randn(2, 4, 6)
    found = tokens(patches, 1)
    matrix = (tokens.left[1] @ tokens.right[1]).numpy()
    first, second = ((layer.weight.numpy(), layer.bias.numpy()) for layer in (tokens.to_features, tokens.mix))
    for image, place in np.ndindex(2, 4):
        patch = patches[image, place].numpy()
        similar = np.exp(matrix @ patch / math.sqrt(6))
        shares = similar / similar.sum()
        read = sum(shares[n] * (first[0] @ matrix[n] + first[1]) for n in range(1, 5))
        expected = patch + 0.25 * (second[0] @ (patch + read) + second[1])
        np.testing.assert_allclose(found[image, place].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_constants_and_weights_are_the_published_ones() -> None:
    """On a ViT-L Rein has 2.99 million weights; 0.46 million of them feed the queries of a mask head, absent here."""
    with torch.device("meta"):
        made = build_network(Architecture(name="unet", encoder="dinov2_tokens_large"), 2)
    assert isinstance(made.encoder, TokenVit) and made.encoder.depths == (8, 12, 16, 24)
    tokens = 24 * (100 * 16 + 16 * 1024) + 2 * (1024 * 1024 + 1024) + 1
    queries = (1024 * 256 + 256) + (3 * 256 * 256 + 256)
    assert trained(made.encoder) == tokens and (tokens + queries) / 1e6 == pytest.approx(2.99, abs=0.005)
    assert TokenSettings().scale == 0.001
    widths = (64, 128, 256, 512)
    head = sum(1024 * width + 2 * width for width in widths) + 64 * 2 + 2
    head += sum(
        9 * (3 * fine) * fine + 2 * fine + 9 * fine * fine + 2 * fine for fine in widths[:-1]
    )  # a level and the deeper one, twice as wide
    assert trained(made.decoder) == head
    frozen = sum(value.numel() for value in base_of(made).parameters())
    assert frozen / 1e6 == pytest.approx(304.4, abs=0.1) and trained(base_of(made)) == 0


@torch.no_grad()
def test_maps_are_those_of_the_vit_where_tokens_add_nothing() -> None:
    made = network().eval()
    encoder = made.encoder
    assert isinstance(encoder, TokenVit)
    encoder.tokens.scale.zero_()
    seen: list[Tensor] = []
    for block in encoder.vit.blocks():
        block.register_forward_hook(lambda block, inputs, output: seen.append(output[:, 1:]))
    maps = made.encode(torch.randn(1, 3, 64, 96))
    assert [tuple(level.shape) for level in maps] == [(1, 96, *size) for size in ((16, 24), (8, 12), (4, 6), (2, 3))]
    torch.testing.assert_close(maps[2], seen[2].transpose(1, 2).unflatten(2, (4, 6)))
    mean = seen[3].transpose(1, 2).unflatten(2, (4, 6)).unflatten(3, (3, 2)).unflatten(2, (2, 2)).mean((3, 5))
    torch.testing.assert_close(maps[3], mean)


@pytest.mark.parametrize("name", ROWS)
def test_a_round_changes_tokens_and_head_alone(name: str) -> None:
    made = network(name)
    assert not any(value.requires_grad for value in base_of(made).parameters()), "right after it is built"
    before = {key: value.clone() for key, value in base_of(made).state_dict().items()}
    losses = train(made.train(), steps=2, name="dacs", mfm=True)[-1].losses
    assert losses["mfm"] > 0
    assert all(torch.equal(value, before[key]) for key, value in base_of(made).state_dict().items())
    idle = [key for key, value in made.named_parameters() if value.requires_grad and not value.grad.abs().sum() > 0]
    assert idle == []


def test_tokens_learn_at_the_rate_of_the_head() -> None:
    made = network()
    groups = build_optimizer(made, OptimSettings(learning_rate=1e-3, head_multiplier=5.0)).param_groups
    assert {group["lr"] for group in groups} == {5e-3}
    held = sum(value.numel() for group in groups for value in group["params"])
    assert held == trained(made)


@pytest.mark.parametrize(("recipe", "built"), [("tent", adaptation_steps.recipe_of), ("gold", recipe_steps.recipe_of)])
def test_recipes_of_norms_leave_the_base_alone(recipe: str, built: Callable[..., Recipe]) -> None:
    made = network().train()
    built(made, name=recipe)
    assert trained(base_of(made)) == 0 < trained(made)


def test_weights_of_a_directory_are_frozen_below_the_tokens(tmp_path: Path) -> None:
    saved = build_dinov2("dinov2_tiny", None, pyramid=False).model
    saved.save_pretrained(tmp_path)
    base = base_of(network(pretrained=tmp_path))
    assert all(torch.equal(value, base.state_dict()[f"model.{key}"]) for key, value in saved.state_dict().items())
    assert trained(base) == 0


def test_directories_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"network\.pretrained: .*nowhere/config\.json: cannot be read"):
        network(pretrained=tmp_path / "nowhere")
    build_dinov2("dinov2_tiny", None, pyramid=False).model.save_pretrained(tmp_path)
    with pytest.raises(NetworkMismatch, match=r"has hidden_size 96, network\.encoder needs 384; choose the encoder"):
        build_network(Architecture(name="unet", encoder="dinov2_tokens_small", pretrained=tmp_path), 4)
    with pytest.raises(ValidationError, match=r"dinov2_tokens_small' is frozen.*set encoder to 'dinov2_small'"):
        NetworkSettings(name="unet", encoder="dinov2_tokens_small")
