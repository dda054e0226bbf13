"""Weighted cross-entropy, pseudo-labels, parameter groups and the learning rate."""

import copy

import pytest
import torch
from torch.nn import functional as F

from adapters.errors import NetworkMismatch
from adapters.networks.build import build_network
from adapters.networks.training_pass import weighted_cross_entropy
from adapters.rounds.optim import build_optimizer, learning_rate_factor, set_learning_rates
from adapters.self_training.pseudo_labels import pseudo_label
from configs.network import Architecture, OptimSettings
from tests.sections import section


def test_cross_entropy_is_a_mean_over_all_pixels_ignored_ones_included() -> None:
    logits = torch.randn(1, 3, 2, 2)
    labels = torch.tensor([[[0, 1], [2, 255]]])
    expected = F.cross_entropy(logits[..., :1].flatten(2), labels[..., :1].flatten(1), reduction="sum")
    expected = expected + F.cross_entropy(logits[:, :, 0, 1], labels[:, 0, 1], reduction="sum")
    torch.testing.assert_close(weighted_cross_entropy(logits, labels), expected / 4)


def test_weights_scale_each_pixel() -> None:
    logits, labels = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    weight = torch.rand(2, 4, 4)
    expected = (weight * F.cross_entropy(logits, labels, reduction="none")).sum() / 32
    torch.testing.assert_close(weighted_cross_entropy(logits, labels, weight), expected)


def test_all_pixels_ignored_is_zero_and_not_nan() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = weighted_cross_entropy(logits, torch.full((1, 2, 2), 255))
    loss.backward()
    assert loss.item() == 0.0 and logits.grad is not None and not logits.grad.any()


def certain(classes: torch.Tensor, probability: float) -> torch.Tensor:
    """Logits of two classes that give `classes` this probability."""
    logits = torch.zeros(*classes.shape, 2)
    logits.scatter_(-1, classes.unsqueeze(-1), float(torch.logit(torch.tensor(probability))))
    return logits.movedim(-1, 1)


def test_weight_is_the_confident_share_of_the_whole_batch() -> None:
    """Image 0 is certain, image 1 is not: both weigh one half."""
    classes = torch.tensor([[[0, 1]], [[1, 0]]])
    logits = torch.cat([certain(classes[:1], 0.99), certain(classes[1:], 0.7)])
    everywhere = torch.ones(2, 1, 2, dtype=torch.bool)
    result = pseudo_label(logits, everywhere, everywhere, 0.968)
    assert torch.equal(result.labels, classes)
    assert result.kept_ratio.item() == 0.5
    assert result.weight.tolist() == [[[0.5, 0.5]], [[0.5, 0.5]]]


def test_padding_is_ignored_weighs_nothing_and_does_not_count() -> None:
    classes = torch.tensor([[[0, 1, 0]]])
    valid = torch.tensor([[[True, True, False]]])
    result = pseudo_label(certain(classes, 0.99), valid, valid, 0.968)
    assert result.labels.tolist() == [[[0, 1, 255]]]
    assert result.weight.tolist() == [[[1.0, 1.0, 0.0]]] and result.kept_ratio.item() == 1.0


def test_batch_of_nothing_but_padding_is_finite() -> None:
    nowhere = torch.zeros(1, 2, 2, dtype=torch.bool)
    result = pseudo_label(torch.randn(1, 2, 2, 2), nowhere, nowhere, 0.5)
    assert result.kept_ratio.item() == 0.0


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build_network(Architecture(name="deeplabv3plus", encoder="resnet_tiny", channels=16), 3)


def test_every_parameter_is_in_one_group_with_its_rate_and_decay(network) -> None:
    rebuilder = torch.nn.Linear(2, 2)
    settings = section(OptimSettings, learning_rate=1e-3, head_multiplier=10.0, weight_decay=0.05)
    optimizer = build_optimizer(network, settings, rebuilder=rebuilder, rebuilder_lr=3e-4)
    rates = {group["name"]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups}
    assert rates == {
        "encoder": (1e-3, 0.05),
        "encoder_no_decay": (1e-3, 0.0),
        "decoder": (pytest.approx(1e-2), 0.05),
        "decoder_no_decay": (pytest.approx(1e-2), 0.0),
        "rebuilder": (3e-4, 0.05),
        "rebuilder_no_decay": (3e-4, 0.0),
    }
    members = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(members) == sorted(map(id, [*network.parameters(), *rebuilder.parameters()]))
    names = dict(network.named_parameters())
    spared = {id(p) for group in optimizer.param_groups if not group["weight_decay"] for p in group["params"]}
    assert {name for name, p in names.items() if id(p) in spared} == {n for n, p in names.items() if p.ndim < 2}


def test_early_layers_learn_more_slowly_and_the_adapter_as_the_decoder() -> None:
    """VFM-UDA++: the last block at the encoder's rate, each layer before it at 0.9 of the next, embeddings first."""
    network = build_network(Architecture(name="pyramid", encoder="dinov3_adapter_tiny"), 3)
    optimizer = build_optimizer(network, section(OptimSettings, learning_rate=1e-3, layer_decay=0.9))
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups if not group["name"].endswith("_no_decay")}
    assert rates == pytest.approx(
        {f"encoder_layer_{index}": 1e-3 * 0.9 ** (4 - index) for index in range(5)} | {"adapter": 1e-2, "decoder": 1e-2}
    )
    members = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(members) == sorted(id(value) for value in network.parameters() if value.requires_grad)
    settings = section(OptimSettings, learning_rate=1e-3, layer_decay=0.9)
    copied = torch.nn.ModuleDict({"encoder": copy.deepcopy(network.encoder), "head": torch.nn.Linear(2, 2)})
    groups = {
        group["name"]: group["lr"] for group in build_optimizer(network, settings, added={"t": copied}).param_groups
    }
    assert all(groups[f"t_{name}"] == groups[name] for name in rates if name != "decoder")
    assert groups["t"] == groups["t_adapter"] == groups["decoder"] and "t_encoder" not in groups
    plain = build_optimizer(network, OptimSettings(learning_rate=1e-3)).param_groups
    assert {group["name"]: group["lr"] for group in plain}["encoder"] == 1e-3


def test_layer_decay_needs_layers(network) -> None:
    with pytest.raises(NetworkMismatch, match=r"layer_decay is 0\.9, .* set it to 1, or take a DINOv2"):
        build_optimizer(network, section(OptimSettings, layer_decay=0.9))


def test_warm_up_then_polynomial_decay_to_zero() -> None:
    settings = section(OptimSettings, warmup_steps=10, power=1.0)
    factors = [learning_rate_factor(step, 100, settings) for step in range(101)]
    assert factors[0] < 1e-5 and factors[5] == pytest.approx(0.5 * 0.95, rel=1e-3)
    assert factors[10] == pytest.approx(0.9) and factors[55] == pytest.approx(0.45) and factors[100] == 0.0
    assert max(factors) == factors[10]


def test_power_zero_keeps_the_rate() -> None:
    settings = section(OptimSettings, warmup_steps=0, power=0.0)
    assert [learning_rate_factor(step, 10, settings, 0.9) for step in (0, 9)] == [1.0, 1.0]


def test_time_cuts_in_only_when_the_steps_would_not_be_done_in_time() -> None:
    settings = section(OptimSettings, warmup_steps=0)
    assert learning_rate_factor(60, 100, settings, time_used=0.6) == pytest.approx(0.4)
    assert learning_rate_factor(0, 100, settings, time_used=0.3) == 1.0
    assert learning_rate_factor(10, 100, settings, time_used=0.9) == pytest.approx(0.2)
    assert learning_rate_factor(10, 100, settings, time_used=1.3) == 0.0


def test_rates_are_set_from_the_initial_ones(network) -> None:
    optimizer = build_optimizer(network, OptimSettings(learning_rate=1e-3, head_multiplier=2.0))
    for factor in (0.5, 0.1):
        set_learning_rates(optimizer, factor)
    rates = sorted({group["lr"] for group in optimizer.param_groups})
    assert rates == pytest.approx([1e-4, 2e-4])
