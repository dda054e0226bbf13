"""TENT: entropy falls, and only scale and shift of normalisation layers move."""

import copy

import pytest
import torch
from torch import nn

from adapters.augmentation.augment import normalise_unit, to_unit
from adapters.errors import AdapterError
from adapters.networks.batch_norm import without_noise
from adapters.networks.network import SegmentationNetwork
from adapters.recipes.tent import NORMALISATION, norm_parameters
from adapters.self_training.pseudo_labels import entropy
from tests.adapters.recipes.adaptation_steps import NETWORKS, adapt, batch, changed, network, recipe_of, weights

RECIPE = {"name": "tent"}


def norm_names(of: SegmentationNetwork) -> set[str]:
    """Names of the parameters of normalisation layers."""
    return {
        f"{name}.{part}"
        for name, layer in of.named_modules()
        if isinstance(layer, NORMALISATION)
        for part, _ in layer.named_parameters()
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_only_scales_and_shifts_move(name) -> None:
    student = network(name)
    before = weights(student)
    adapt(recipe_of(student, **RECIPE), 3, rate=1e-2)
    assert changed(before, student) == norm_names(student)


def test_both_kinds_of_normalisation_are_found_in_a_transformer() -> None:
    """mit_tiny has LayerNorm in the encoder, and the DAFormer head BatchNorm."""
    student = network("daformer")
    found = {id(parameter) for parameter in norm_parameters(student)}
    for kind in (nn.LayerNorm, nn.BatchNorm2d):
        layers = [layer for layer in student.modules() if isinstance(layer, kind)]
        assert layers and all(id(layer.weight) in found and id(layer.bias) in found for layer in layers)


@pytest.mark.parametrize("name", NETWORKS)
def test_entropy_falls_on_the_same_frames(name) -> None:
    student = network(name)
    recipe = recipe_of(student, **RECIPE)
    optimizer = torch.optim.Adam(norm_parameters(student), lr=3e-2)
    seen = []
    for _ in range(12):
        optimizer.zero_grad()
        seen.append(recipe.step(batch()).losses["entropy"].item())
        optimizer.step()
    assert seen[-1] < 0.9 * seen[0]
    assert seen == sorted(seen, reverse=True)


def test_loss_is_the_entropy_with_batch_statistics_and_without_dropout() -> None:
    student = network("deeplabv3plus")
    twin = copy.deepcopy(student)
    without_noise(twin.train())
    taken = batch(padding=32)
    with torch.no_grad():
        logits = twin(normalise_unit(to_unit(taken.target.images)))
    recipe = recipe_of(student, threshold=0.3, **RECIPE)
    student.train()  # as whoever built the recipe may do
    result = recipe.step(taken)
    torch.testing.assert_close(result.losses["entropy"], entropy(logits[..., :64], taken.target.valid[..., :64]))
    confident = logits.softmax(1).amax(1)[..., :64] >= 0.3
    torch.testing.assert_close(result.kept_ratio, confident.float().mean())


def test_accumulated_gradient_is_the_mean_over_batches() -> None:
    single = []
    for seed in (3, 4):
        student = network()
        recipe_of(student, **RECIPE).step(batch(seed=seed))
        single.append([parameter.grad.clone() for parameter in norm_parameters(student)])
    student = network()
    recipe_of(student, **RECIPE).step(batch(seed=3), batch(seed=4))
    for both, one, other in zip(norm_parameters(student), *single, strict=True):
        torch.testing.assert_close(both.grad, (one + other) / 2)


def test_steps_repeat() -> None:
    found = []
    for _ in range(2):
        student = network("daformer")
        adapt(recipe_of(student, **RECIPE), 2)
        found.append(weights(student))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_network_without_normalisation_is_refused() -> None:
    plain = SegmentationNetwork(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), num_classes=4, feature_channels=(4,))
    with pytest.raises(AdapterError, match=r"recipe\.name tent: .*use cotta"):
        recipe_of(plain, **RECIPE)
