"""BN statistics: the plain mean over the batches, mixed with the released ones as asked, and no weight moves."""

import copy

import pytest
import torch
from torch import nn

from adapters.augmentation.augment import normalise_unit, to_unit
from adapters.errors import AdapterError
from adapters.networks.batch_norm import batch_norm_layers, estimate_statistics
from adapters.networks.build import build_network
from adapters.networks.network import SegmentationNetwork
from configs.network import Architecture
from tests.adapters.recipes.adaptation_steps import (
    CLASSES,
    NETWORKS,
    adapt,
    batch,
    changed,
    frozen,
    network,
    recipe_of,
    weights,
)

RECIPE = {"name": "bn_statistics"}


def statistics(of: SegmentationNetwork) -> list[torch.Tensor]:
    """Running means and variances, in the order of the layers."""
    return [part.clone() for layer in batch_norm_layers(of) for part in (layer.running_mean, layer.running_var)]


def images(seed: int) -> torch.Tensor:
    return normalise_unit(to_unit(batch(seed=seed).target.images))


@pytest.mark.parametrize("name", NETWORKS)
def test_statistics_are_those_of_a_plain_estimate_over_the_same_batches(name) -> None:
    student = network(name)
    expected = copy.deepcopy(student)
    estimate_statistics(expected, [images(seed) for seed in (3, 4, 5)])
    recipe = recipe_of(student, **RECIPE)
    adapt(recipe, 3)
    for mine, theirs in zip(statistics(recipe.finished()), statistics(expected), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_first_layer_by_hand() -> None:
    """The network's first BatchNorm sees the first convolution of the images: its statistics need no network."""
    student = network()
    found: list[torch.Tensor] = []
    layer = batch_norm_layers(student)[0]
    hook = layer.register_forward_pre_hook(lambda _, arguments: found.append(arguments[0].detach()))
    recipe = recipe_of(student, **RECIPE)
    adapt(recipe, 2)
    hook.remove()
    mine = batch_norm_layers(recipe.finished())[0]
    torch.testing.assert_close(mine.running_mean, torch.stack([maps.mean((0, 2, 3)) for maps in found]).mean(0))
    torch.testing.assert_close(mine.running_var, torch.stack([maps.var((0, 2, 3)) for maps in found]).mean(0))


def test_no_weight_moves_and_nothing_is_learnt() -> None:
    student = network()
    before = weights(student)
    recipe = recipe_of(student, **RECIPE)
    results = adapt(recipe, 2)
    assert not recipe.learns and not recipe.restate
    assert not changed(before, recipe.finished()) and all(not result.losses for result in results)
    assert all(parameter.grad is None for parameter in student.parameters())


def test_finished_network_is_an_ordinary_one() -> None:
    """Same keys, its own momentum, eval mode; and stepping on afterwards does not change it."""
    student = network()
    keys, momentum = list(student.state_dict()), [layer.momentum for layer in batch_norm_layers(student)]
    recipe = recipe_of(student, **RECIPE)
    adapt(recipe, 1)
    finished = recipe.finished()
    before = statistics(finished)
    assert list(finished.state_dict()) == keys and not any(layer.training for layer in finished.modules())
    assert [layer.momentum for layer in batch_norm_layers(finished)] == momentum
    adapt(recipe, 1, seed=9)
    assert all(torch.equal(*pair) for pair in zip(before, statistics(finished), strict=True))
    assert not all(torch.equal(*pair) for pair in zip(before, statistics(recipe.finished()), strict=True))


@pytest.mark.parametrize("prior", [2.0, 16.0])
def test_prior_counts_like_that_many_crops_of_the_released_version(prior) -> None:
    student, released = network(), frozen(network(seed=7))
    plain = recipe_of(copy.deepcopy(student), released, **RECIPE)
    mixed = recipe_of(student, released, statistics_prior=prior, **RECIPE)
    for recipe in (plain, mixed):
        adapt(recipe, 3)  # 6 crops
    share = 6 / (6 + prior)
    for found, target, source in zip(
        *(statistics(of) for of in (mixed.finished(), plain.finished(), released)), strict=True
    ):
        torch.testing.assert_close(found, share * target + (1 - share) * source)


def test_before_any_step_the_statistics_are_the_released_ones() -> None:
    student = network()
    expected = statistics(student)
    assert all(
        torch.equal(*pair) for pair in zip(expected, statistics(recipe_of(student, **RECIPE).finished()), strict=True)
    )


def test_goes_on_where_its_state_was_taken() -> None:
    whole, first, second = (recipe_of(network(), statistics_prior=3.0, **RECIPE) for _ in range(3))
    adapt(whole, 3)
    adapt(first, 2)
    second.load_state_dict(first.state_dict())
    second.student.load_state_dict(first.student.state_dict())
    adapt(second, 1, seed=5)
    assert all(torch.equal(*pair) for pair in zip(*(statistics(of.finished()) for of in (whole, second)), strict=True))


def test_dropout_is_off_and_batch_statistics_are_used() -> None:
    student = network("deeplabv3plus")
    reference = copy.deepcopy(student)
    for layer in batch_norm_layers(reference):
        layer.train()
    with torch.no_grad():
        probabilities = reference(images(3)).softmax(1).amax(1)
    threshold = probabilities.median().item()
    recipe = recipe_of(student, threshold=threshold, **RECIPE)
    expected = (probabilities >= threshold).float().mean()
    torch.testing.assert_close(recipe.step(batch()).kept_ratio, expected)


def test_network_without_batch_norm_is_refused_with_recipes_that_work() -> None:
    plain = SegmentationNetwork(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), num_classes=4, feature_channels=(4,))
    with pytest.raises(AdapterError, match=r"bn_statistics: .*no BatchNorm.*use tent or cotta"):
        recipe_of(plain, **RECIPE)


def test_every_network_of_mfmd_has_batch_norm_somewhere() -> None:
    for settings in NETWORKS.values():
        assert batch_norm_layers(build_network(Architecture(**settings.model_dump()), CLASSES))
