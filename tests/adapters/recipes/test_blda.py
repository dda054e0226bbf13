"""BLDA as a term: the losses of source and mix with corrected logits, the quantile head, what learns, what is saved."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from pydantic import ValidationError
from torch.nn import functional as F

from adapters.augmentation.augment import normalise_unit, to_unit
from adapters.checkpoints.checkpoint import read_weights, save_weights
from adapters.errors import AdapterError
from adapters.networks.network import SegmentationNetwork
from adapters.recipes.blda import Blda
from adapters.recipes.build import build_recipe
from adapters.recipes.recipe import Recipe
from adapters.recipes.self_training import SelfTraining
from adapters.rounds.optim import build_optimizer
from adapters.self_training.logit_alignment import looked_up, tables_of
from configs.network import OptimSettings
from configs.settings import Settings
from tests.adapters.recipes.recipe_steps import CLASSES, batch, gradients, inputs_of, network, recipe_of
from tests.sections import recipe_settings

ON = {"blda": {"enabled": True, "class_share": 0.0}}


def term_of(recipe: Recipe) -> Blda:
    term = recipe.modules()["blda"]
    assert isinstance(term, Blda)
    return term


def test_constants_are_the_published_ones_and_it_is_off() -> None:
    settings = recipe_settings().advanced.blda
    assert not settings.enabled and "blda" not in recipe_of(network()).modules()
    assert (settings.strength, settings.quantile_weight, settings.trim) == (0.1, 0.2, 0.01)
    assert (settings.components, settings.iterations, settings.momentum, settings.warmup) == (5, 3, 0.99, 1500)
    assert settings.class_share * 2 * 512**2 == 500


def test_source_loss_is_that_of_corrected_logits_and_the_head_learns_the_quantile() -> None:
    student, step = network(), batch()
    recipe = recipe_of(student, **ON)
    losses, term = recipe.step(step).losses, term_of(recipe)
    assert list(losses) == ["source", "source_quantile", "mix", "mix_quantile"]
    plain, labels = network(), step.source.labels.long()
    images = normalise_unit(to_unit(step.source.images))
    logits = plain(images).detach()
    shift, quantile = looked_up(tables_of(term.source, term.anchors, 0.01), logits, labels)
    assert shift.abs().max() > 0.01
    adjusted = (logits - 0.1 * shift).double()
    expected = -adjusted.log_softmax(1).gather(1, labels.unsqueeze(1)).mean()
    assert losses["source"].item() == pytest.approx(expected.item(), rel=1e-5)
    guess = term.head.resized(plain.encode(images), labels.shape[-2:]).squeeze(1)
    own = quantile.gather(1, labels.unsqueeze(1)).squeeze(1)
    assert losses["source_quantile"].item() == pytest.approx(0.2 * (guess - own).abs().mean().item(), rel=1e-4)
    assert own.min() >= 0.0 and own.max() <= 1.0 and own.std() > 0.1


def test_pseudo_labels_have_distributions_of_their_own_and_true_ones_do_not_move_them() -> None:
    recipe = recipe_of(network(), classmix=False, **ON)
    recipe.step(batch())
    labels = recipe.teacher(normalise_unit(to_unit(batch().target.images))).argmax(1)
    counted = term_of(recipe).target.seen[:, 0] > 0
    assert counted.tolist() == [bool((labels[:, 1::4, 1::4] == index).any()) for index in range(CLASSES)]
    part = batch()
    trusted = torch.zeros_like(part.target.trusted)
    trusted[..., :60] = True
    recipe = recipe_of(network(), classmix=False, **ON)
    losses = recipe.step(part._replace(target=part.target._replace(trusted=trusted))).losses
    plain, images, term = network(), normalise_unit(to_unit(part.target.images)), term_of(recipe)
    _, quantile = looked_up(tables_of(term.target, term.anchors, 0.01), plain(images).detach(), labels)
    far = term.head.resized(plain.encode(images), labels.shape[-2:]) - quantile.gather(1, labels.unsqueeze(1))
    expected = 0.2 * (far.abs().squeeze(1) * trusted).mean().item()
    assert losses["mix_quantile"].item() == pytest.approx(expected, rel=1e-4)
    untrusted = batch()
    nowhere = torch.zeros_like(untrusted.target.trusted)
    recipe = recipe_of(network(), **ON)
    recipe.step(untrusted._replace(target=untrusted.target._replace(trusted=nowhere)))
    assert term_of(recipe).target.seen.eq(0).all() and term_of(recipe).source.seen.gt(0).any()


def test_translated_images_have_the_plain_loss_and_move_no_distribution() -> None:
    recipe = recipe_of(network(), name="mfm_da", **ON)
    before = {name: value.clone() for name, value in term_of(recipe).named_buffers()}
    recipe.steps = 2  # the next one is that of the translation
    assert list(recipe.step(batch()).losses) == ["translated"]
    torch.testing.assert_close(dict(term_of(recipe).named_buffers()), before, equal_nan=True)


def test_with_a_tiny_strength_the_losses_are_the_recipes_own() -> None:
    plain = recipe_of(network(), name="daformer", mfm=True).step(batch()).losses
    faint = {"blda": {"enabled": True, "strength": 1e-9, "quantile_weight": 0.0}}
    losses = recipe_of(network(), name="daformer", mfm=True, **faint).step(batch()).losses
    assert list(losses) == list(plain)
    for name, loss in plain.items():
        torch.testing.assert_close(losses[name], loss)


def test_the_optimizer_trains_the_head_at_the_decoders_rate_and_gradients_reach_everything() -> None:
    student = network()
    recipe = recipe_of(student, **ON)
    recipe.step(batch())
    term = term_of(recipe)
    assert all(bool(gradient.any()) for gradient in gradients(term))
    assert sum(bool(gradient.any()) for gradient in gradients(student)) > 10
    optimizer = build_optimizer(student, OptimSettings(), added={"blda": term})
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates["blda"] == rates["blda_no_decay"] == rates["decoder"] and "blda_encoder" not in rates
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for module in (student, term) for parameter in module.parameters()}


def test_the_candidate_is_the_plain_network(tmp_path: Path) -> None:
    recipe = recipe_of(network(), **ON)
    recipe.step(batch())
    assert isinstance(recipe, SelfTraining)
    finished = recipe.finished()
    assert isinstance(finished, SegmentationNetwork)
    save_weights(finished, tmp_path / "weights.safetensors")
    assert read_weights(tmp_path / "weights.safetensors").keys() == network().state_dict().keys()
    assert F.mse_loss(finished.eval()(torch.zeros(1, 3, 64, 96)), torch.zeros(1, CLASSES, 64, 96)).isfinite()


def test_without_source_it_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"recipe.advanced.blda: needs labelled source images"):
        Settings.model_validate(
            {
                "classes": ["road", "car"],
                "watch": {"folder": "drop"},
                "recipe": {"name": "dacs", "advanced": {"blda": {"enabled": True}}},
            }
        )
    inputs = replace(
        inputs_of(network(), **ON), source_free=True, released=network(), accelerator=Accelerator(cpu=True)
    )
    with pytest.raises(AdapterError, match="needs labelled source images"):
        build_recipe(inputs)
