"""CoTTA: teacher, pseudo-labels averaged where the released model is unsure, consistency, random restoration."""

import copy

import pytest
import torch

from adapters.augmentation.augment import normalise_unit, to_unit
from adapters.networks.step_rng import StepRng
from adapters.recipes.cotta import Restoration
from adapters.self_training.pseudo_labels import soft_cross_entropy
from adapters.self_training.teacher import average_over, mean_confidence
from tests.adapters.recipes.adaptation_steps import (
    NETWORKS,
    adapt,
    batch,
    changed,
    frozen,
    inputs_of,
    network,
    recipe_of,
    weights,
)

RECIPE = {"name": "cotta", "augment_scales": (1.0,)}
IMAGES = normalise_unit(to_unit(batch().target.images))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_learns_and_the_loss_falls(name) -> None:
    student = network(name)
    before = weights(student)
    recipe = recipe_of(student, frozen(student), restore_probability=0.0, ema_decay=0.5, **RECIPE)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    seen = []
    for _ in range(6):
        optimizer.zero_grad()
        seen.append(recipe.step(batch()).losses["consistency"].item())
        optimizer.step()
        recipe.after_step(optimizer)
    assert changed(before, student) == set(before)
    assert seen[-1] < seen[0]


def test_loss_is_cross_entropy_with_the_teachers_probabilities() -> None:
    student = network("daformer")
    for layer in student.modules():
        if isinstance(layer, torch.nn.Dropout | torch.nn.Dropout2d):
            layer.p = 0.0
    recipe = recipe_of(student, frozen(student), augment_below=0.0, threshold=0.3, **RECIPE)
    taken = batch(padding=32)
    probabilities = recipe.teacher(IMAGES := normalise_unit(to_unit(taken.target.images))).softmax(1)
    with torch.no_grad():
        logits = copy.deepcopy(student).train()(IMAGES)
    result = recipe.step(taken)
    expected = soft_cross_entropy(logits[..., :64], probabilities[..., :64], taken.target.valid[..., :64])
    torch.testing.assert_close(result.losses["consistency"], expected)
    confident = probabilities[..., :64].amax(1) >= 0.3
    torch.testing.assert_close(result.kept_ratio, confident.float().mean())


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.5)])
def test_average_is_over_every_scale_as_it_is_and_mirrored(scales) -> None:
    answered = []

    def answer(images: torch.Tensor) -> torch.Tensor:
        answered.append(tuple(images.shape[-2:]))
        return 3.0 * images  # its channels are the logits

    plain = answer(IMAGES).softmax(1)
    average = average_over(answer, IMAGES, scales, plain)
    if scales == (1.0,):
        assert answered == [(64, 96)] * 2  # once plain, once mirrored: it is not computed again
        torch.testing.assert_close(average, plain)  # pixel by pixel, so the mirror image agrees once it is turned back
    else:
        assert answered[1:] == [(32, 48)] * 2 + [(96, 144)] * 2
    torch.testing.assert_close(average.sum(1), torch.ones_like(average[:, 0]))


def test_average_of_a_mirrored_answer_is_turned_back() -> None:
    def left(images: torch.Tensor) -> torch.Tensor:
        """Class 1 on the left of whatever it sees, class 0 on the right."""
        logits = torch.zeros(images.shape[0], 2, *images.shape[-2:])
        middle = images.shape[-1] // 2
        logits[:, 1, :, :middle] = logits[:, 0, :, middle:] = 100.0
        return logits

    average = average_over(left, IMAGES, (1.0, 2.0), left(IMAGES).softmax(1))
    torch.testing.assert_close(average, torch.full_like(average, 0.5))


def test_small_images_are_not_scaled_to_nothing() -> None:
    answered = []

    def answer(images: torch.Tensor) -> torch.Tensor:
        answered.append(tuple(images.shape[-2:]))
        return images

    small = IMAGES[:, :, :16, :48]
    average_over(answer, small, (0.25,), small.softmax(1))
    assert answered == [(16, 32)] * 2


def test_mean_confidence_is_of_each_image_where_it_is_valid() -> None:
    logits = torch.zeros(2, 2, 2, 2)
    logits[0, 1] = 100.0
    logits[1, 1, :, 0] = 100.0
    valid = torch.ones(2, 2, 2, dtype=torch.bool)
    torch.testing.assert_close(mean_confidence(logits, valid), torch.tensor([1.0, 0.75]))
    valid[1, :, 1] = False
    torch.testing.assert_close(mean_confidence(logits, valid), torch.tensor([1.0, 1.0]))
    assert mean_confidence(logits, torch.zeros_like(valid)).tolist() == [0.0, 0.0]


def test_each_crop_is_averaged_only_where_the_released_model_is_unsure() -> None:
    student = network("deeplabv3plus")
    released = frozen(student)
    sure, unsure = (
        value.item() for value in mean_confidence(released(IMAGES), batch().target.valid).sort(0)[0].flip(0)
    )
    assert unsure < sure
    threshold = (sure + unsure) / 2
    recipe = recipe_of(student, released, augment_below=threshold, **{**RECIPE, "augment_scales": (0.5, 1.0)})
    plain = recipe.teacher(IMAGES).softmax(1)
    average = average_over(recipe.teacher, IMAGES, (0.5, 1.0), plain)
    found = recipe._pseudo_label(IMAGES, batch().target.valid)
    confidence = mean_confidence(released(IMAGES), batch().target.valid)
    for index in range(2):
        assert torch.equal(found[index], (average if confidence[index] < threshold else plain)[index])
    assert not torch.allclose(plain, average)


def test_teacher_follows_with_the_same_decay_from_the_first_step_on() -> None:
    student = network()
    recipe = recipe_of(student, frozen(student), ema_decay=0.9, restore_probability=0.0, **RECIPE)
    taught, first = next(recipe.teacher.network.parameters()), next(student.parameters()).detach().clone()
    recipe.step(batch())
    with torch.no_grad():
        next(student.parameters()).add_(1.0)  # the optimizer's step
    recipe.after_step(None)
    torch.testing.assert_close(taught, first + 0.1)
    finished = recipe.finished()
    assert finished is not recipe.teacher.network
    assert all(
        torch.equal(*pair) for pair in zip(finished.parameters(), recipe.teacher.network.parameters(), strict=True)
    )


def test_teacher_follows_what_was_learnt_before_it_is_restored() -> None:
    student = network()
    recipe = recipe_of(student, frozen(student), ema_decay=0.9, restore_probability=1.0, **RECIPE)
    taught, first = next(recipe.teacher.network.parameters()), next(student.parameters()).detach().clone()
    with torch.no_grad():
        next(student.parameters()).add_(1.0)
    recipe.after_step(None)
    torch.testing.assert_close(taught, first + 0.1)
    assert torch.equal(next(student.parameters()), first)


def test_restored_weights_are_the_released_ones_and_as_many_as_asked() -> None:
    student = network("daformer")
    released = frozen(student)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 1.0
    before = weights(student)
    Restoration(student, released, 0.05).restore(StepRng(0))
    restored = total = 0
    for (name, mine), theirs in zip(student.named_parameters(), released.parameters(), strict=True):
        back = mine == theirs
        assert torch.equal(mine[~back], before[name][~back])
        restored, total = restored + int(back.sum()), total + back.numel()
    spread = (0.05 * 0.95 / total) ** 0.5
    assert total > 100_000 and abs(restored / total - 0.05) < 4 * spread


def test_masks_differ_between_steps_and_weights() -> None:
    student = network("daformer")
    released = frozen(student)
    draws, restoration = StepRng(0), Restoration(student, released, 0.5)
    masks = []
    for _ in range(2):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter += 1.0
        restoration.restore(draws)
        masks.append([mine == theirs for mine, theirs in zip(student.parameters(), released.parameters(), strict=True)])
        student.load_state_dict(released.state_dict())
    wide = [index for index, mask in enumerate(masks[0]) if mask.numel() > 1000]
    assert all(0.4 < (masks[0][index] == masks[1][index]).float().mean() < 0.6 for index in wide)
    same = [index for index in wide if masks[0][index].shape == masks[0][wide[0]].shape]
    assert all(not torch.equal(masks[0][index], masks[0][wide[0]]) for index in same[1:])


@pytest.mark.parametrize(("probability", "expected"), [(0.0, False), (1.0, True)])
def test_restoring_nothing_and_everything(probability, expected) -> None:
    student = network()
    released = frozen(student)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 1.0
    Restoration(student, released, probability).restore(StepRng(0))
    pairs = zip(student.parameters(), released.parameters(), strict=True)
    assert all(torch.equal(mine, theirs) is expected for mine, theirs in pairs)


def test_restoration_holds_the_student_near_the_released_weights() -> None:
    distances = []
    for probability in (0.0, 0.2):
        student = network()
        released = frozen(student)
        adapt(recipe_of(student, released, restore_probability=probability, **RECIPE), 8)
        pairs = zip(student.parameters(), released.parameters(), strict=True)
        distances.append(sum((mine - theirs).square().sum().item() for mine, theirs in pairs) ** 0.5)
    assert distances[1] < 0.8 * distances[0]


def test_steps_repeat_under_a_seed_and_go_on_from_a_state() -> None:
    def run(seed: int, steps: int) -> tuple[list[float], dict[str, torch.Tensor]]:
        student = network()
        recipe = recipe_of(student, frozen(student), seed=seed, restore_probability=0.1, **RECIPE)
        torch.manual_seed(5)
        losses = [result.losses["consistency"].item() for result in adapt(recipe, steps)]
        return losses, weights(student)

    (losses, one), (same_losses, same), (_, other) = run(2, 3), run(2, 3), run(4, 3)
    assert losses == same_losses
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_masks_go_on_from_a_saved_state() -> None:
    student = network()
    released = frozen(student)
    first = recipe_of(student, released, restore_probability=0.1, **RECIPE)
    first.after_step(None)
    state = first.state_dict()
    second = recipe_of(network(), released, seed=99, restore_probability=0.1, **RECIPE)
    second.load_state_dict(state)
    for recipe in (first, second):
        with torch.no_grad():
            for parameter in recipe.student.parameters():
                parameter.fill_(9.0)
        recipe.after_step(None)
    assert all(torch.equal(*pair) for pair in zip(first.student.parameters(), second.student.parameters(), strict=True))
    assert any((parameter != 9.0).any() for parameter in second.student.parameters())


def test_released_version_is_needed_and_stays() -> None:
    student = network()
    with pytest.raises(ValueError, match="released"):
        recipe_of(student, None, **RECIPE)
    released = frozen(student)
    before = copy.deepcopy(released.state_dict())
    adapt(recipe_of(student, released, **RECIPE), 2)
    assert all(torch.equal(before[name], tensor) for name, tensor in released.state_dict().items())


def test_published_constants_are_the_defaults() -> None:
    recipe = inputs_of(network(), name="cotta").recipe
    assert (recipe.ema_decay, recipe.restore_probability, recipe.advanced.augment_below) == (0.999, 0.01, 0.69)
    assert recipe.augment_scales == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
