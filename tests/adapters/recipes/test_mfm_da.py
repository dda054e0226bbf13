"""The recipe mfm_da and its terms: losses by definition, one optimizer step for each, what it needs, plug-ins."""

import dataclasses
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from adapters.augmentation.augment import normalise_unit, to_unit
from adapters.augmentation.styled import match_colours, restyled, swap_low_frequencies
from adapters.errors import AdapterError
from adapters.networks.training_pass import IGNORE_INDEX, weighted_cross_entropy
from adapters.recipes.build import build_recipe
from adapters.recipes.translation import BUILT_IN, pyramid_distance, without_padding
from adapters.self_training.class_bce import ClassBce, members_of
from configs.recipe import MfmDaSettings
from configs.settings import Settings
from tests.adapters.recipes.recipe_steps import CLASSES, batch, gradients, inputs_of, network, recipe_of
from tests.sections import changed, recipe_settings

TOGETHER: dict[str, Any] = {"name": "mfm_da", "separate_steps": False}


def test_constants_are_the_published_ones() -> None:
    settings = recipe_settings("mfm_da").advanced
    assert (settings.target_images, settings.separate_steps, settings.translation.translate) == (10, True, "style")
    assert (settings.translation.alignment_weight, settings.translation.weight) == (1.0, 1.0)
    assert settings.class_bce.enabled and settings.translation.enabled
    others = recipe_settings("dacs").advanced
    assert not (others.class_bce.enabled or others.translation.enabled or others.separate_steps)


def test_losses_are_those_of_the_paper() -> None:
    """Alignment of all maps; each class's question on source, and on its translation with the same labels."""
    student, step = network(), batch()
    losses = recipe_of(student, **TOGETHER, class_bce={"nested": [["class 1", "class 2"]]}).step(step).losses
    source, target = (to_unit(part.images) for part in (step.source, step.target))
    translated = restyled(source, target, step.target.valid, reach=0.05, max_gain=4.0)
    plain = network()
    maps = [plain.encode(normalise_unit(torch.cat([source, translated])))]
    far = [1 - F.cosine_similarity(*level.chunk(2), dim=1).mean() for level in maps[0]]
    torch.testing.assert_close(losses["alignment"], torch.stack(far).mean())
    names = [f"class {index}" for index in range(CLASSES)]
    asked, labels = ClassBce(members_of(names, {"class 2": {"class 1"}})), step.source.labels.long()
    assert list(losses) == ["alignment", "source", "translated"]
    for name, images in (("source", source), ("translated", translated)):
        torch.testing.assert_close(losses[name], asked(plain(normalise_unit(images)), labels))


@pytest.mark.parametrize("separate", [False, True])
def test_images_that_two_losses_share_are_translated_once(monkeypatch: pytest.MonkeyPatch, separate: bool) -> None:
    """A translation may draw: both losses see the same one. Separate steps have a batch each."""
    drawn: list[torch.Tensor] = []

    def translate(source: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        drawn.append(torch.rand_like(source))
        return drawn[-1]

    monkeypatch.setitem(BUILT_IN, "style", lambda inputs: translate)
    recipe, seen = recipe_of(network(), name="mfm_da", separate_steps=separate), list[torch.Tensor]()
    recipe.student.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    for number in range(6 if separate else 2):
        recipe.step(batch(seed=number))
    assert len(drawn) == (4 if separate else 2)
    aligned, learnt = [whole[2:] for whole in seen if len(whole) == 4], seen[2::3]
    for place in range(2):
        assert torch.equal(aligned[place], normalise_unit(drawn[2 * place if separate else place]))
        assert torch.equal(learnt[place], normalise_unit(drawn[2 * place + 1 if separate else place]))


def test_distance_is_one_minus_cosine_over_channels() -> None:
    level = torch.randn(2, 3, 2, 2)
    assert pyramid_distance([torch.cat([level, 3 * level])]).item() == pytest.approx(0, abs=1e-6)
    assert pyramid_distance([torch.cat([level, -level]), torch.cat([level, level])]).item() == pytest.approx(1.0)


def test_each_loss_has_a_step_of_its_own_in_turn() -> None:
    student = network()
    recipe = recipe_of(student, name="mfm_da", mfm=True, class_confidence={"enabled": True})
    seen = []
    for number in range(5):
        student.zero_grad()
        seen.append(list(recipe.step(batch(seed=number)).losses))
        assert any(gradient.abs().sum() > 0 for gradient in gradients(student))
        if number == 0:
            assert all(value.grad is None for value in student.decoder.parameters()), "alignment is of maps alone"
    assert seen == [["alignment"], ["source"], ["translated"], ["mfm"], ["alignment"]]


def test_weights_by_class_do_not_make_the_teacher_answer() -> None:
    recipe, answers = recipe_of(network(), name="mfm_da", mfm=True, class_confidence={"enabled": True}), []
    recipe.teacher.network.register_forward_hook(lambda *_: answers.append(recipe.steps))
    for number in range(4):
        recipe.step(batch(seed=number))
    assert answers == [4], "MFM alone learns pseudo-labels"


def test_the_teacher_answers_only_what_a_loss_reads_and_gradients_are_the_same() -> None:
    lazy, asked = (recipe_of(network(), name="mfm_da", mfm=True) for _ in range(2))
    asked._turns = [lambda inputs, images, term=term: (images.pseudo, term(inputs, images))[1] for term in asked._turns]
    answers, kept = [], []
    lazy.teacher.network.register_forward_hook(lambda *_: answers.append(lazy.steps))
    for number in range(4):
        found, wanted = (recipe.step(batch(seed=number)) for recipe in (lazy, asked))
        kept.append(found.kept_ratio is not None)
        assert wanted.kept_ratio is not None and found.losses.keys() == wanted.losses.keys()
    assert kept == [False, False, False, True] and answers == [4], "MFM alone learns pseudo-labels"
    for mine, theirs in zip(lazy.student.parameters(), asked.student.parameters(), strict=True):
        assert mine.grad is not None and theirs.grad is not None and torch.equal(mine.grad, theirs.grad)


def test_every_second_turn_of_mfm_has_a_loss_at_interval_two() -> None:
    inputs = inputs_of(network(), name="mfm_da", mfm=True)
    recipe = build_recipe(dataclasses.replace(inputs, mfm=changed(inputs.mfm, interval=2)))
    found = []
    for done in (3, 7, 11):  # each time the next one is the fourth loss's step
        recipe.steps = done
        found.append(recipe.step(batch()).losses["mfm"].item() > 0)
    assert found == [True, False, True]


def test_styled_images_ignore_padding_of_the_frame() -> None:
    generator = torch.Generator().manual_seed(0)
    images, frames = torch.rand(2, 1, 3, 40, 48, generator=generator)
    frames = 0.2 + 0.3 * frames
    counted = torch.ones(1, 40, 48, dtype=torch.bool)
    whole = restyled(images, frames, counted, reach=0.05, max_gain=4.0)[0]
    torch.testing.assert_close(
        whole, match_colours(swap_low_frequencies(images[0], frames[0]), frames[0]), atol=1e-4, rtol=0
    )
    counted[:, :, 30:] = False
    padded = restyled(images, frames * counted, counted, reach=0.05, max_gain=4.0)[0]
    assert (padded.mean() - whole.mean()).abs() < 0.02 and (padded.std() - whole.std()).abs() < 0.02


def test_padding_of_the_source_does_not_change_its_translation() -> None:
    """Below and right of the image; a black border with labels is image."""
    images = torch.rand(2, 3, 40, 48, generator=torch.Generator().manual_seed(0))
    images[0, :, 36:], labels = 0.0, torch.zeros(2, 40, 48, dtype=torch.int64)
    images[1, :, 20:], images[1, :, :, 24:] = 0.0, 0.0
    labels[1, 20:], labels[1, :, 24:] = IGNORE_INDEX, IGNORE_INDEX
    held, repeated = without_padding(images, labels)
    assert held[0].all() and torch.equal(repeated[0], images[0])
    assert held[1].sum() == 20 * 24 and torch.equal(repeated[1], images[1, :, :20, :24].repeat(1, 2, 2))
    step = batch()
    step.source.images[:, 32:], step.source.labels[:, 32:] = 0, IGNORE_INDEX
    source, target = (to_unit(part.images) for part in (step.source, step.target))
    recipe = recipe_of(network(), name="mfm_da", class_bce={"enabled": False})
    recipe.steps = 2  # the next one is that of the translation
    losses = recipe.step(step).losses
    whole = restyled(source[:, :, :32].repeat(1, 1, 2, 1), target, step.target.valid, reach=0.05, max_gain=4.0)
    whole[:, :, 32:] = 0.0
    expected = weighted_cross_entropy(network()(normalise_unit(whole)), step.source.labels.long())
    torch.testing.assert_close(losses["translated"], expected.detach())


def test_fewer_target_images_than_it_needs_are_refused() -> None:
    inputs = inputs_of(network(), name="mfm_da")
    with pytest.raises(AdapterError, match=r"needs 10 target images \(recipe\.advanced\.target_images\).*has 9; drop"):
        build_recipe(dataclasses.replace(inputs, target_images=9))
    build_recipe(dataclasses.replace(inputs, target_images=10))


def test_without_source_it_is_refused() -> None:
    inputs = dataclasses.replace(inputs_of(network(), name="mfm_da"), source_free=True)
    with pytest.raises(AdapterError, match="'mfm_da' learns from labelled source images"):
        build_recipe(inputs)
    bare = {"classes": ["a", "b"], "watch": {"folder": "drop"}}
    with pytest.raises(ValueError, match=r"recipe\.advanced\.translation .*`source` is not set"):
        Settings.model_validate({**bare, "recipe": {"name": "mfm_da"}})
    with pytest.raises(ValueError, match=r"class_bce\.nested: no class 'cups' in `classes`"):
        nested = {"advanced": {"class_bce": {"enabled": True, "nested": [["a", "cups"]]}}}
        Settings.model_validate({**bare, "recipe": nested})
    assert isinstance(recipe_settings("mfm_da"), MfmDaSettings)


def test_a_translation_of_another_shape_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILT_IN, "style", lambda inputs: lambda source, target, counted: source[..., :-1])
    with pytest.raises(AdapterError, match=r"'style' returned \[2, 3, 64, 95\], expected images \[2, 3, 64, 96\]"):
        recipe_of(network(), **TOGETHER).step(batch())
