"""Complementary masks: what each view shows, the loss against a plain computation, regions, what learns."""

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from adapters.augmentation.augment import normalise_unit, to_unit
from adapters.recipes.complementary import thing_pixels
from adapters.recipes.self_training import SelfTraining
from configs.settings import Settings
from tests.adapters.recipes.recipe_steps import CROP, batch, gradients, inputs_of, network, recipe_of
from tests.sections import recipe_settings

ON = {"complementary": {"enabled": True}}


def seen_by(recipe: SelfTraining) -> list[torch.Tensor]:
    """What the student's encoder is shown from now on, pass by pass."""
    seen: list[torch.Tensor] = []
    recipe.student.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    return seen


def test_constants_are_the_published_ones_and_it_is_off() -> None:
    settings = recipe_settings().advanced.complementary
    assert not settings.enabled and (settings.weight, settings.distance_weight, settings.block, settings.ratio) == (
        1.0,
        0.01,
        1 / 16,
        0.5,
    )


def test_each_view_shows_what_the_other_hides_and_the_loss_is_that_of_both() -> None:
    recipe = recipe_of(network(), **ON)
    seen = seen_by(recipe)
    labels = recipe.teacher(normalise_unit(to_unit(batch().target.images))).argmax(1)
    losses = recipe.step(batch()).losses
    one, other = seen[-1].chunk(2)
    clean = normalise_unit(to_unit(batch().target.images))
    hidden = (one == 0).all(1)
    assert 0.3 < hidden.float().mean() < 0.7
    assert torch.equal(one + other, clean) and torch.equal((other == 0).all(1), ~hidden)
    logits = network()(torch.cat([one, other]))
    expected = sum(F.cross_entropy(part, labels) / 2 for part in logits.chunk(2))
    torch.testing.assert_close(losses["complementary"], expected.detach())
    first, second = (part.detach().double().numpy() for part in logits.chunk(2))
    assert losses["complementary_distance"].item() == pytest.approx(0.01 * ((first - second) ** 2).mean(), rel=1e-4)


def test_padding_counts_in_neither_and_margins_only_in_the_distance() -> None:
    step, shown = batch(), torch.ones(2, *CROP, dtype=torch.bool)
    shown[:, 40:] = False
    untrusted = step._replace(target=step.target._replace(trusted=torch.zeros_like(shown)))
    losses = recipe_of(network(), **ON).step(untrusted).losses
    assert losses["complementary"] == 0.0 and losses["complementary_distance"] > 0.0
    padded = step._replace(target=step.target._replace(valid=torch.zeros_like(shown), trusted=torch.zeros_like(shown)))
    assert recipe_of(network(), **ON).step(padded).losses["complementary_distance"] == 0.0
    recipe = recipe_of(network(), **ON)
    seen = seen_by(recipe)
    part = step._replace(target=step.target._replace(valid=shown, trusted=shown))
    found = recipe.step(part).losses["complementary_distance"]
    first, second = network()(seen[-1]).detach()[:, :, :40].chunk(2)
    torch.testing.assert_close(found, 0.01 * (first - second).square().mean())


def test_both_weights_are_factors_and_the_distance_alone_gives_a_gradient() -> None:
    step = batch()
    step = step._replace(target=step.target._replace(trusted=torch.zeros_like(step.target.trusted)))
    found = []
    for weight, distance in ((1.0, 0.0), (1.0, 1.0), (2.0, 1.0)):
        student = network()
        settings = {"complementary": {"enabled": True, "weight": weight, "distance_weight": distance}}
        losses = recipe_of(student, **settings).step(step._replace(source=None)).losses
        found.append((losses["complementary_distance"], gradients(student)))
    assert found[0][0] == 0.0 and not any(gradient.any() for gradient in found[0][1])
    torch.testing.assert_close(2 * found[1][0], found[2][0])
    for once, twice in zip(found[1][1], found[2][1], strict=True):
        torch.testing.assert_close(2 * once, twice, rtol=1e-3, atol=1e-6)
    assert sum(bool(gradient.any()) for gradient in found[1][1]) > 10


def test_things_and_stuff_are_drawn_separately() -> None:
    things = {"thing_classes": ["class 1", "class 3"], "complementary": {"enabled": True, "by_region": True}}
    inputs = inputs_of(network(), **things)
    labels = torch.tensor([[[0, 1, 2, 3, 255]]])
    assert thing_pixels(inputs, labels).tolist() == [[[[False, True, False, True, False]]]]
    recipe = recipe_of(network(), name="dacs", **things)
    seen = seen_by(recipe)
    recipe.step(batch())
    one, other = seen[-1].chunk(2)
    assert torch.equal(one + other, normalise_unit(to_unit(batch().target.images)))
    side = 4  # of a block: a sixteenth of 64
    blocks = (one == 0).all(1).float().unfold(1, side, side).unfold(2, side, side).flatten(3)
    assert ((blocks.amin(3) == 0) & (blocks.amax(3) == 1)).any(), "a block is split where a thing begins"


def test_regions_need_thing_classes_that_are_classes() -> None:
    def settings(**recipe: object) -> Settings:
        return Settings.model_validate({"classes": ["road", "car"], "watch": {"folder": "drop"}, "recipe": recipe})

    regions = {"complementary": {"enabled": True, "by_region": True}}
    for recipe in ({"name": "dacs", "advanced": regions}, {"name": "omuda"}):
        with pytest.raises(ValidationError, match=r"recipe.thing_classes: masks by region .* need the names"):
            settings(**recipe)
        with pytest.raises(ValidationError, match=r"recipe.thing_classes: no class 'cra'.*car"):
            settings(**recipe, thing_classes=["cra"])
        settings(**recipe, thing_classes=["car"])
