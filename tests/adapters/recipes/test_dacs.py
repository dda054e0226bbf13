"""One step of DACS with and without MFM: its order, its gradients, what it teaches, that it repeats."""

import copy

import pytest
import torch
from accelerate import Accelerator
from torch.nn import functional as F

from adapters.augmentation.augment import normalise_unit, to_unit
from adapters.mfm.rebuilder import build_rebuilder
from adapters.networks.build import build_network
from adapters.networks.network import SegmentationNetwork
from adapters.networks.step_rng import StepRng
from adapters.recipes.build import dacs
from adapters.recipes.recipe import RecipeInputs, StepBatch
from adapters.recipes.self_training import SelfTraining
from adapters.sampling.streams import SourceBatch, TargetBatch
from configs.mfm import MfmSettings
from configs.network import Architecture
from configs.recipe import RecipeSettings
from tests.sections import changed, recipe_settings, section

CLASSES, CROP = 4, (64, 96)
NETWORKS = {
    "daformer": Architecture(name="daformer", encoder="mit_tiny", channels=16),
    "deeplabv2": Architecture(name="deeplabv2", encoder="resnet_tiny"),
    "deeplabv3plus": Architecture(name="deeplabv3plus", encoder="resnet_tiny", channels=16, output_stride=16),
}
PLAIN = recipe_settings(threshold=0.0, jitter_probability=0.0, blur_probability=0.0)
"""Every pseudo-label counts in full, and the mix is neither jittered nor blurred."""


def network(name: str = "deeplabv2") -> SegmentationNetwork:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return build_network(NETWORKS[name], CLASSES).train()


def recipe_of(
    student: SegmentationNetwork, recipe: RecipeSettings = PLAIN, *, weight: float = 1.0, mfm: bool = True
) -> SelfTraining:
    settings = section(MfmSettings, dim=32, heads=4, blocks=1, weight=weight)
    torch.manual_seed(1)
    rebuilder = build_rebuilder(student, CROP, settings) if mfm else None
    names = tuple(f"class {index}" for index in range(CLASSES))
    return dacs(RecipeInputs(student, rebuilder, None, recipe, settings, names, Accelerator(cpu=True), StepRng(2)))


def batch(size: int = 2, *, source: bool = True) -> StepBatch:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (2, size, *CROP, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (size, *CROP), dtype=torch.uint8, generator=generator)
    valid = torch.ones(size, *CROP, dtype=torch.bool)
    target = TargetBatch(images[0], valid, valid)
    return StepBatch(target, SourceBatch(images[1], labels) if source else None)


def gradients(student: SegmentationNetwork) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in student.parameters()]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [1, 2])
def test_step_gives_finite_losses_and_gradients_everywhere(name, size) -> None:
    student = network(name)
    recipe = recipe_of(student)
    result = recipe.step(batch(size))
    assert set(result.losses) == {"source", "mix", "mfm"}
    assert all(loss.isfinite() and loss > 0 and not loss.requires_grad for loss in result.losses.values())
    assert all(gradient.isfinite().all() for gradient in gradients(student))
    assert any(parameter.grad.any() for parameter in recipe.rebuilder.parameters())
    assert result.kept_ratio.item() == 1.0


def test_gradients_of_the_losses_add_up() -> None:
    """MFM adds exactly its own, lambda times: g(0.5) lies half-way between g(0) and g(1)."""
    found = []
    for weight in (0.0, 0.5, 1.0):
        student = network()
        recipe = recipe_of(student, weight=weight)
        recipe.step(batch())
        found.append(gradients(student))
    for none, half, full in zip(*found, strict=True):
        torch.testing.assert_close(half, (none + full) / 2, rtol=1e-3, atol=1e-6)
    assert any(not torch.allclose(none, full) for none, _, full in zip(*found, strict=True))


def test_without_mfm_the_step_is_the_bare_recipe() -> None:
    with_branch, without = network(), network()
    recipe_of(with_branch, weight=0.0).step(batch())
    result = recipe_of(without, mfm=False).step(batch())
    assert set(result.losses) == {"source", "mix"}
    for one, other in zip(gradients(with_branch), gradients(without), strict=True):
        torch.testing.assert_close(one, other)


def test_source_loss_is_plain_cross_entropy() -> None:
    student = network()
    source = batch().source
    expected = F.cross_entropy(copy.deepcopy(student)(normalise_unit(to_unit(source.images))), source.labels.long())
    torch.testing.assert_close(recipe_of(student).step(batch()).losses["source"], expected.detach())


def test_source_weight_scales_the_loss_on_source_labels_alone() -> None:
    source = batch().source
    plain = network()
    F.cross_entropy(plain(normalise_unit(to_unit(source.images))), source.labels.long()).backward()
    found = []
    for weight in (1.0, 3.0):
        student = network()
        losses = recipe_of(student, changed(PLAIN, source_weight=weight), mfm=False).step(batch()).losses
        found.append((losses, gradients(student)))
    (once, one), (thrice, three) = found
    torch.testing.assert_close(thrice["source"], 3 * once["source"])
    torch.testing.assert_close(thrice["mix"], once["mix"])
    for first, more, alone in zip(one, three, gradients(plain), strict=True):
        torch.testing.assert_close(more - first, 2 * alone, rtol=1e-3, atol=1e-6)


def test_source_free_step_learns_the_pseudo_labels_of_the_target() -> None:
    student = network()
    images = normalise_unit(to_unit(batch().target.images))
    recipe = recipe_of(student)
    expected = F.cross_entropy(copy.deepcopy(student)(images), recipe.teacher(images).argmax(1))
    result = recipe.step(batch(source=False))
    assert set(result.losses) == {"mix", "mfm"}
    torch.testing.assert_close(result.losses["mix"], expected.detach())


def test_classmix_off_trains_on_the_whole_target() -> None:
    student = network()
    images = normalise_unit(to_unit(batch().target.images))
    recipe = recipe_of(student, changed(PLAIN, classmix=False))
    expected = F.cross_entropy(copy.deepcopy(student)(images), recipe.teacher(images).argmax(1))
    torch.testing.assert_close(recipe.step(batch()).losses["mix"], expected.detach())


def test_mix_holds_true_labels_at_full_weight_even_when_no_pseudo_label_is_sure() -> None:
    unsure = PLAIN.model_copy(update={"threshold": 1.0})
    result = recipe_of(network(), unsure).step(batch())
    assert result.kept_ratio.item() == 0.0
    assert result.losses["mix"].item() > 0.1 and result.losses["mfm"].item() == 0.0
    assert recipe_of(network(), unsure).step(batch(source=False)).losses["mix"].item() == 0.0


def test_teacher_moves_at_the_start_of_every_step_but_the_first() -> None:
    student = network()
    recipe = recipe_of(student)
    weight, taught = next(student.parameters()), next(recipe.teacher.network.parameters())
    first = weight.detach().clone()
    recipe.step(batch())
    assert torch.equal(taught, first)
    with torch.no_grad():
        weight += 1.0  # the optimizer's step
    recipe.step(batch())
    torch.testing.assert_close(taught, first + 0.5)  # alpha is 1/2 at t = 1
    assert taught.grad is None


def test_steps_repeat_under_a_seed() -> None:
    strong = recipe_settings(threshold=0.3, jitter_probability=1.0, blur_probability=1.0, source_jitter=0.2)
    found = []
    for _ in range(2):
        student = network("daformer")
        recipe = recipe_of(student, strong)
        torch.manual_seed(5)
        losses = [recipe.step(batch()).losses for _ in range(2)]
        found.append((losses, gradients(student)))
    (losses, one), (same_losses, same) = found
    assert losses == same_losses
    assert all(torch.equal(*pair) for pair in zip(one, same, strict=True))


def test_source_jitter_changes_the_source_only() -> None:
    jittered = changed(PLAIN, source_jitter=0.5)
    calm, shaken = (recipe_of(network(), recipe).step(batch()).losses for recipe in (PLAIN, jittered))
    assert not torch.equal(calm["source"], shaken["source"])
