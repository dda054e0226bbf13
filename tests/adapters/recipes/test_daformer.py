"""The DAFormer recipe: its losses in order, DACS without its extras, its streams in a real round."""

import pytest
import torch

from adapters.recipes.self_training import SelfTraining
from adapters.rounds.inputs import load_inputs
from adapters.rounds.run import train_and_score
from adapters.rounds.stop import StopRequest
from adapters.rounds.training import Training
from tests.adapters.recipes.recipe_steps import batch, frozen, gradients, network, recipe_of, train
from tests.sections import recipe_settings

pytestmark = pytest.mark.usefixtures("few_statistics")

OFF = {"name": "daformer", "feature_distance_weight": 0.0, "rare_class_sampling": False}
OFF |= {"margin_top": 0.0, "margin_bottom": 0.0}


def test_constants_are_the_published_ones() -> None:
    recipe = recipe_settings(name="daformer")
    assert (recipe.ema_decay, recipe.threshold) == (0.999, 0.968)
    assert (recipe.margin_top, recipe.margin_bottom, recipe.margin_left, recipe.margin_right) == (
        15 / 512,
        120 / 512,
        0,
        0,
    )
    assert recipe.margin_of == "crop"
    assert (recipe.jitter, recipe.advanced.jitter_probability, recipe.advanced.blur_probability) == (0.2, 0.8, 0.5)


@pytest.mark.parametrize("mfm", [False, True])
def test_losses_come_in_the_published_order(mfm) -> None:
    student = network()
    recipe = recipe_of(student, name="daformer", reference=frozen(network(), seed=1), mfm=mfm)
    assert isinstance(recipe, SelfTraining)
    losses = recipe.step(batch()).losses
    assert list(losses) == ["source", "feature_distance", "mix", *(["mfm"] if mfm else [])]
    assert all(loss.isfinite() and loss > 0 and not loss.requires_grad for loss in losses.values())
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients(student)[-2:])


def test_without_its_extras_it_is_dacs_bit_for_bit() -> None:
    one, other = network(), network()
    mine, theirs = train(one, mfm=True, **OFF), train(other, mfm=True, name="dacs", ema_decay=0.999)
    assert all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))
    for ours, dacs in zip(mine, theirs, strict=True):
        assert ours.losses.keys() == dacs.losses.keys()
        assert all(torch.equal(ours.losses[name], dacs.losses[name]) for name in dacs.losses)


def test_its_teacher_is_slower_than_that_of_dacs() -> None:
    assert recipe_of(network(), name="daformer").teacher.decay == 0.999
    assert recipe_of(network(), name="dacs").teacher.decay == 0.99


def test_feature_distance_keeps_the_encoder_near_the_reference() -> None:
    """The same steps with a large weight leave the deepest map nearer to where it was."""
    moved = []
    for weight in (0.0, 1.0):
        student = network()
        before = frozen(student)
        train(student, steps=8, name="daformer", reference=before, feature_distance_weight=weight)
        image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
        difference = student.eval().encode(image)[-1] - before.encode(image)[-1]
        moved.append(difference.norm(dim=1).mean().item())
    assert moved[1] < 0.7 * moved[0]


def test_round_samples_by_class_and_cuts_margins(training_state) -> None:
    folder = training_state.round(recipe={"name": "daformer", "thing_classes": ["car"]})
    inputs = load_inputs(folder.spec(), training_state.settings(recipe={"name": "daformer", "thing_classes": ["car"]}))
    with inputs.buffer:
        training = Training(inputs)
        cars, trusted = [], []
        for _ in range(20):
            cars += (next(training._source).labels == 2).flatten(1).any(1).tolist()
            trusted.append(next(training._target).trusted)
        losses = training.step(1.0).losses
    assert sum(cars) > 30, "of 40 crops, those without a car were drawn for another class"
    rows = torch.cat(trusted).any(2)
    assert not rows[:, :1].any() and rows[:, 1 : 32 - 8].all() and not rows[:, 32 - 8 :].any()  # shares of 32 rows
    assert set(losses) == {"source", "feature_distance", "mix", "mfm"}


@pytest.mark.parametrize("source", [{}, None])
def test_round_from_spec_to_scores(training_state, source) -> None:
    folder = training_state.round(recipe={"name": "daformer"}, source=source)
    with StopRequest() as stop:
        assert train_and_score(folder.spec_path, stop) == 0
    assert folder.scores().status == "completed" and folder.scores().candidate.finite
    names = {"mix", "mfm"} | (set() if source is None else {"source", "feature_distance"})
    assert set(folder.progress()[2].losses) == names
