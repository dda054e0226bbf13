"""DiDA as a term: the schedule, the noise, the second encoder, both losses against plain computations, what learns."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from adapters.augmentation.augment import normalise_unit, to_unit
from adapters.checkpoints.checkpoint import read_weights, save_weights
from adapters.recipes.dida import EMBEDDING, Dida, Modulation, degraded, kept_signal, time_embedding
from adapters.recipes.recipe import Recipe
from adapters.recipes.self_training import SelfTraining
from adapters.rounds.optim import build_optimizer
from configs.network import OptimSettings
from tests.adapters.recipes.recipe_steps import batch, gradients, network, recipe_of
from tests.sections import recipe_settings

ON = {"dida": {"enabled": True}}


def term_of(recipe: Recipe) -> Dida:
    term = recipe.modules()["dida"]
    assert isinstance(term, Dida)
    return term


def test_constants_are_the_published_ones_and_it_is_off() -> None:
    settings = recipe_settings().advanced.dida
    assert not settings.enabled and "dida" not in recipe_of(network()).modules()
    assert (settings.weight, settings.noise_weight, settings.steps) == (0.5, 5.0, 100)


def test_the_schedule_is_a_sigmoid_from_all_signal_to_none() -> None:
    def logistic(value: float) -> float:
        return 1 / (1 + math.exp(-value))

    expected = [(logistic(3) - logistic(6 * t / 100 - 3)) / (logistic(3) - logistic(-3)) for t in range(101)]
    torch.testing.assert_close(kept_signal(torch.arange(101), 100), torch.tensor(expected), rtol=1e-5, atol=1e-6)
    assert expected[0] == 1.0 and expected[100] == 0.0


def test_degraded_images_keep_the_share_of_variance_of_their_time() -> None:
    generator = torch.Generator().manual_seed(0)
    images, noise = torch.randn(2, 3, 3, 8, 8, generator=generator)
    kept = torch.tensor([0.0, 0.36, 1.0])
    found = degraded(images, noise, kept)
    assert torch.equal(found[0], noise[0]) and torch.equal(found[2], images[2])
    np.testing.assert_allclose(found[1], 0.6 * images[1].numpy() + 0.8 * noise[1].numpy(), rtol=1e-5)


def test_time_is_embedded_by_sines_and_levels_are_scaled_and_shifted_by_it() -> None:
    times = torch.tensor([1.0, 70.0])
    embedded = time_embedding(times)
    rates = [10000 ** (-index / 64) for index in range(64)]
    for row, time in zip(embedded, (1, 70), strict=True):
        expected = [math.sin(time * rate) for rate in rates] + [math.cos(time * rate) for rate in rates]
        torch.testing.assert_close(row, torch.tensor(expected), rtol=1e-4, atol=1e-4)
    modulation = Modulation(3)
    level = torch.randn(2, 3, 4, 4)
    assert torch.equal(modulation(level, embedded), torch.zeros_like(level)), "nothing is added before it has learnt"
    torch.nn.init.normal_(modulation.layers[-1].weight)
    scale, shift = modulation.layers(embedded).split(3, dim=1)
    expected = level * (scale[:, :, None, None] + 1) + shift[:, :, None, None]
    torch.testing.assert_close(modulation(level, embedded), expected)
    assert embedded.shape == (2, EMBEDDING)


def test_losses_are_those_of_the_noisy_images() -> None:
    """At first nothing is added, so the answer is the student's own for the noisy image."""
    student = network()
    recipe = recipe_of(student, **ON)
    seen: list[torch.Tensor] = []
    student.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    noises: list[torch.Tensor] = []
    normal = recipe.inputs.draws.normal
    recipe.inputs.draws.normal = lambda like: noises.append(normal(like)) or noises[-1]  # type: ignore[method-assign]
    losses, term = recipe.step(batch()).losses, term_of(recipe)
    assert list(losses) == ["source", "mix", "dida_source", "dida_source_noise", "dida", "dida_noise"]
    clean = normalise_unit(to_unit(batch().target.images))
    labels, plain = recipe.teacher(clean).argmax(1), network()
    torch.testing.assert_close(losses["dida"], 0.5 * F.cross_entropy(plain(seen[-1]), labels).detach())
    true = batch().source.labels.long()
    torch.testing.assert_close(losses["dida_source"], 0.5 * F.cross_entropy(plain(seen[-2]), true).detach())
    maps = plain.encode(seen[-1])
    assert term.patch == 4 and maps[0].shape[-1] * 4 == clean.shape[-1]
    answer = F.pixel_shuffle(term.head(maps), 4)
    torch.testing.assert_close(losses["dida_noise"], 5.0 * F.mse_loss(answer, noises[-1]).detach())
    assert len(noises) == 2 and not torch.equal(*noises)
    assert not torch.equal(seen[-1], clean) and F.mse_loss(seen[-1], noises[-1]) > 0.0


def test_noise_differs_between_steps_and_images_and_repeats_under_a_seed() -> None:
    def shown() -> list[torch.Tensor]:
        student = network()
        recipe, seen = recipe_of(student, **ON), []
        student.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
        recipe.step(batch())
        recipe.step(batch())
        return [seen[3], seen[7]]

    one, two = shown(), shown()
    assert all(torch.equal(*pair) for pair in zip(one, two, strict=True)) and not torch.equal(one[0], one[1])


def test_everything_learns_the_second_encoder_at_the_encoders_rate() -> None:
    student = network()
    recipe = recipe_of(student, **ON)
    term = term_of(recipe)
    optimizer = build_optimizer(student, OptimSettings(), added={"dida": term})
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates["dida_encoder"] == rates["encoder"] and rates["dida"] == rates["decoder"] > rates["encoder"]
    recipe.step(batch())
    assert not any(gradient.any() for gradient in gradients(term.encoder)), "its first weights change nothing"
    optimizer.step()
    optimizer.zero_grad()
    before = [parameter.clone() for parameter in term.parameters()]
    recipe.step(batch())
    found = gradients(term)
    assert sum(bool(gradient.any()) for gradient in found) > 0.9 * len(found) and all(g.isfinite().all() for g in found)
    optimizer.step()
    assert sum(not torch.equal(*pair) for pair in zip(before, term.parameters(), strict=True)) > 0.9 * len(before)
    assert any(bool(gradient.any()) for gradient in gradients(student))


def test_the_second_encoder_trains_in_train_mode_and_the_last_level_is_noise_alone() -> None:
    student = network().eval()  # as a round gets it
    recipe = recipe_of(student, dida={"enabled": True, "steps": 1})
    assert all(module.training for module in term_of(recipe).modules())
    seen: list[torch.Tensor] = []
    student.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    noises: list[torch.Tensor] = []
    normal = recipe.inputs.draws.normal
    recipe.inputs.draws.normal = lambda like: noises.append(normal(like)) or noises[-1]  # type: ignore[method-assign]
    recipe.step(batch(source=False))
    torch.testing.assert_close(seen[-1], noises[-1], rtol=0, atol=0.01)


def test_a_weight_is_a_factor_and_without_source_only_the_target_is_left() -> None:
    losses = [
        recipe_of(network(), dida={"enabled": True, "weight": weight, "noise_weight": 2 * weight})
        .step(batch(source=False))
        .losses
        for weight in (1.0, 2.0)
    ]
    assert list(losses[0]) == ["mix", "dida", "dida_noise"]
    assert all(2 * losses[0][name] == losses[1][name] for name in ("dida", "dida_noise"))


@pytest.mark.parametrize("name", ["deeplabv2", "daformer"])
def test_the_candidate_is_the_plain_network(name: str, tmp_path: Path) -> None:
    recipe = recipe_of(network(name), **ON)
    recipe.step(batch())
    assert isinstance(recipe, SelfTraining)
    save_weights(recipe.finished(), tmp_path / "weights.safetensors")
    assert read_weights(tmp_path / "weights.safetensors").keys() == network(name).state_dict().keys()
    assert len([*recipe.modules()]) == 3
