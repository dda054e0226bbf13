"""MFM as terms of a recipe: whose images, which labels, the sum of both, the control, what the optimizer gets."""

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load, save

from adapters.augmentation.augment import normalise_unit
from adapters.errors import AdapterError
from adapters.mfm.branch import mfm_loss
from adapters.mfm.rebuilder import build_rebuilder
from adapters.networks.build import build_network
from adapters.networks.network import SegmentationNetwork
from adapters.networks.step_rng import StepRng
from adapters.recipes.build import dacs
from adapters.recipes.recipe import RecipeInputs, StepBatch
from adapters.recipes.self_training import Answer, StepImages
from adapters.recipes.terms import with_mfm
from adapters.rounds.optim import build_optimizer
from adapters.sampling.streams import SourceBatch, TargetBatch
from adapters.self_training.pseudo_labels import PseudoLabel
from configs.mfm import MfmSettings
from configs.network import Architecture, OptimSettings
from tests.sections import recipe_settings, section

CROP, CLASSES = (64, 96), 4
NETWORK = Architecture(name="daformer", encoder="mit_tiny", channels=16, dropout=0.0)
TARGETS = ("classify", "teacher_feature", "student_feature", "pixels", "mask_only")


def inputs_of(**switches: object) -> RecipeInputs:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    student = build_network(NETWORK, CLASSES).train()
    settings = section(MfmSettings, dim=32, heads=4, blocks=1, **switches)
    rebuilder = build_rebuilder(student, CROP, settings)
    names = tuple("abcd")
    recipe = recipe_settings(threshold=0.0)
    return RecipeInputs(student, rebuilder, None, recipe, settings, names, Accelerator(cpu=True), StepRng(2))


def step_images(teacher: SegmentationNetwork, *, source: bool = True) -> StepImages:
    generator = torch.Generator().manual_seed(3)
    target, other = torch.rand(2, 2, 3, *CROP, generator=generator)
    labels, true = torch.randint(0, CLASSES, (2, 2, *CROP), generator=generator)
    weight, everywhere = torch.rand(2, *CROP, generator=generator), torch.ones(2, *CROP, dtype=torch.bool)
    pseudo = PseudoLabel(labels, weight, torch.tensor(1.0), weight, everywhere)
    answer = Answer(lambda: pseudo)
    return StepImages(target, everywhere, answer, other if source else None, true if source else None, teacher)


def batch() -> StepBatch:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (2, 2, *CROP, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (2, *CROP), dtype=torch.uint8, generator=generator)
    valid = torch.ones(2, *CROP, dtype=torch.bool)
    return StepBatch(TargetBatch(images[0], valid, valid), SourceBatch(images[1], labels))


def losses_of(inputs: RecipeInputs, images: StepImages) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for term in with_mfm(inputs, []):
        found |= term(inputs, images)
    return found


@pytest.mark.parametrize(
    ("domain", "names"), [("target", ["mfm"]), ("source", ["mfm_source"]), ("both", ["mfm", "mfm_source"])]
)
def test_domain_says_whose_images(domain: str, names: list[str]) -> None:
    """Pseudo-labels with their weight on the target, true labels at full weight on the source, clean images."""
    inputs = inputs_of(domain=domain, weight=0.5)
    images, draws = step_images(inputs.student), StepRng(2)
    expected = {}
    if "mfm" in names:
        labels, weight = images.pseudo.labels, images.pseudo.weight
        expected["mfm"] = mfm_loss(
            inputs.student, inputs.rebuilder, normalise_unit(images.target), labels, weight, draws
        )
    if "mfm_source" in names:
        weight = torch.ones(2, *CROP)
        expected["mfm_source"] = mfm_loss(
            inputs.student, inputs.rebuilder, normalise_unit(images.source), images.source_labels, weight, draws
        )
    found = losses_of(inputs, images)
    assert list(found) == names
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], 0.5 * loss)


def test_both_domains_are_the_sum_of_the_two() -> None:
    """The gradient of a step with both is the sum of the gradients of each, under the same masks."""
    found = {}
    for domain in ("target", "source", "both"):
        inputs = inputs_of(domain=domain)
        if domain == "source":
            inputs.draws.per_image(2, 1, 2, 3)  # `both` masks the target first
        sum(losses_of(inputs, step_images(inputs.student)).values()).backward()
        trained = [*inputs.student.parameters(), *inputs.rebuilder.parameters()]
        found[domain] = [value.grad for value in trained]
    for target, source, both in zip(found["target"], found["source"], found["both"], strict=True):
        torch.testing.assert_close(both, target + source)


def test_source_domain_without_source_is_refused() -> None:
    inputs = inputs_of(domain="both")
    with pytest.raises(AdapterError, match=r"mfm\.ablation\.domain: both needs labelled source images"):
        losses_of(inputs, step_images(inputs.student, source=False))


@pytest.mark.parametrize("target", TARGETS)
def test_recipe_steps_with_every_target(target: str) -> None:
    inputs = inputs_of(reconstruction=target, domain="both")
    recipe = dacs(inputs)
    optimizer = build_optimizer(recipe.student, OptimSettings(), rebuilder=recipe.rebuilder, rebuilder_lr=2e-4)
    before = {name: value.clone() for name, value in inputs.rebuilder.named_parameters()}
    result = recipe.step(batch())
    optimizer.step()
    assert set(result.losses) == {"source", "mix", "mfm", "mfm_source"}
    assert all(loss.isfinite() and loss > 0 for loss in result.losses.values())
    moved = {name for name, value in inputs.rebuilder.named_parameters() if not torch.equal(value, before[name])}
    assert moved == set(before), "the optimizer has every part of the branch, the head for pixels too"
    assert (
        load(
            save({name: value.contiguous() for name, value in recipe.modules()["rebuilder"].state_dict().items()})
        ).keys()
        == before.keys()
    )


def test_control_sees_the_mixes_of_the_masked_arm() -> None:
    """Two arms that differ in the masking alone: same draws, same source and mix losses in the first step."""
    found = [dacs(inputs_of(mask_ratio=ratio)) for ratio in (0.0, 0.4)]
    control, masked = (recipe.step(batch()).losses for recipe in found)
    assert list(found[0].rebuilder.parameters()) == []
    assert torch.equal(control["source"], masked["source"]) and torch.equal(control["mix"], masked["mix"])
    assert not torch.equal(control["mfm"], masked["mfm"])
    states = [recipe.state_dict()["draws"]["generator"] for recipe in found]
    assert torch.equal(*states)


def test_interval_pauses_the_branch_and_makes_up_for_it() -> None:
    """Every third step from the first on, three times as strong; paused steps give zeros and train nothing of it."""
    inputs = inputs_of(interval=3)
    recipe, found = dacs(inputs), []
    for _ in range(4):
        inputs.rebuilder.zero_grad(set_to_none=True)
        found.append(recipe.step(batch()).losses["mfm"])
        assert (inputs.rebuilder.mask_token.grad is None) == (found[-1] == 0)
    assert [bool(loss > 0) for loss in found] == [True, False, False, True]
    assert list(recipe.step(batch(), batch()).losses) == ["source", "mix", "mfm"]
    every = dacs(inputs_of()).step(batch()).losses
    torch.testing.assert_close(found[0], 3 * every["mfm"])
