"""The pull towards the released weights: its size, whom it touches, and that source-free rounds have it by default."""

import math

import pytest
import torch

from adapters.networks.network import SegmentationNetwork
from adapters.recipes.self_training import Anchor
from adapters.rounds.inputs import load_inputs
from adapters.rounds.optim import build_optimizer
from adapters.rounds.run import train_and_score
from adapters.rounds.stop import StopRequest
from adapters.rounds.training import Training
from configs.network import OptimSettings
from configs.recipe import SOURCE_FREE_ANCHOR
from configs.settings import Settings
from tests.adapters.recipes.adaptation_steps import adapt, frozen, network, recipe_of, training_of, weights
from tests.sections import recipe_settings

pytestmark = pytest.mark.usefixtures("few_statistics")

RATE = 0.01


def moved_by_one() -> tuple[SegmentationNetwork, SegmentationNetwork, torch.optim.Optimizer]:
    """A student whose every weight is one above the released one, that version, an optimizer (decoder 10x faster)."""
    student = network()
    released = frozen(student)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 1.0
    return student, released, build_optimizer(student, OptimSettings(learning_rate=RATE))


def distance(student: SegmentationNetwork, released: SegmentationNetwork) -> float:
    """Euclidean distance over all parameters."""
    pairs = zip(student.parameters(), released.parameters(), strict=True)
    return sum((mine - theirs).square().sum().item() for mine, theirs in pairs) ** 0.5


def test_pull_is_rate_times_strength_times_distance() -> None:
    student, released, optimizer = moved_by_one()
    Anchor(student, released, 2.0).pull(optimizer)
    for part, rate in ((student.encoder, RATE), (student.decoder, 10 * RATE)):
        base = released.encoder if part is student.encoder else released.decoder
        for mine, theirs in zip(part.parameters(), base.parameters(), strict=True):
            torch.testing.assert_close(mine - theirs, torch.full_like(mine, 1.0 - 2.0 * rate), rtol=1e-4, atol=1e-5)


def test_pull_follows_the_schedule_of_the_learning_rate() -> None:
    student, released, optimizer = moved_by_one()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = weights(student)
    Anchor(student, released, 2.0).pull(optimizer)
    assert all(torch.equal(before[name], weight) for name, weight in weights(student).items())


def test_pull_beyond_the_whole_way_stops_at_the_released_weights() -> None:
    student, released, optimizer = moved_by_one()
    Anchor(student, released, 1e9).pull(optimizer)
    assert all(torch.equal(*pair) for pair in zip(student.parameters(), released.parameters(), strict=True))


def test_frozen_parameters_and_strangers_stay() -> None:
    """The optimizer says whom to pull: frozen weights are not in it, and the Rebuilder has no released weights."""
    student = network()
    released = frozen(student)
    recipe = recipe_of(student, released, anchor_weight=1e9, mfm=True)
    student.encoder.requires_grad_(False)
    optimizer = build_optimizer(student, OptimSettings(), rebuilder=recipe.rebuilder, rebuilder_lr=1.0)
    with torch.no_grad():
        for parameter in [*student.parameters(), *recipe.rebuilder.parameters()]:
            parameter += 1.0
    encoder, rebuilder = weights(student.encoder), weights(recipe.rebuilder)
    recipe.after_step(optimizer)
    assert all(torch.equal(encoder[name], weight) for name, weight in weights(student.encoder).items())
    assert all(torch.equal(rebuilder[name], weight) for name, weight in weights(recipe.rebuilder).items())
    assert all(
        torch.equal(*pair) for pair in zip(student.decoder.parameters(), released.decoder.parameters(), strict=True)
    )


def test_strength_zero_changes_nothing_bit_for_bit() -> None:
    found = []
    for released in (True, False):
        student = network()
        recipe = recipe_of(student, frozen(student) if released else None, anchor_weight=0.0, threshold=0.3)
        torch.manual_seed(5)
        adapt(recipe, 2)
        found.append(weights(student))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_nothing_to_pull_towards_is_an_error() -> None:
    with pytest.raises(ValueError, match="released"):
        Anchor(network(), None, 1.0)
    student, _, optimizer = moved_by_one()
    Anchor(student, None, 0.0).pull(optimizer)


@pytest.mark.parametrize(
    ("recipe", "source_free", "expected"),
    [
        ({}, True, SOURCE_FREE_ANCHOR),
        ({}, False, 0.0),
        ({"anchor_weight": 3.0}, False, 3.0),
        ({"anchor_weight": 0.0}, True, 0.0),
        ({"name": "mic"}, True, SOURCE_FREE_ANCHOR),
        ({"name": "tent"}, True, 0.0),
        ({"name": "cotta"}, True, 0.0),
    ],
)
def test_which_strength_holds(recipe, source_free, expected) -> None:
    assert recipe_settings(**recipe).anchor_strength(source_free=source_free) == expected


def test_default_takes_back_what_the_decision_record_says() -> None:
    """The rates of a default round add up to 500 steps at the peak; made here in 50 steps at ten times the rate."""
    student, released, _ = moved_by_one()
    optimizer = build_optimizer(student, OptimSettings(learning_rate=10 * OptimSettings().learning_rate))
    anchor = Anchor(student, released, SOURCE_FREE_ANCHOR)
    for _ in range(50):
        anchor.pull(optimizer)
    left = next(student.encoder.parameters()) - next(released.encoder.parameters())
    torch.testing.assert_close(left, torch.full_like(left, math.exp(-0.6)), rtol=0.01, atol=0.0)


def test_source_free_rounds_stay_nearer_to_the_released_version(training_state) -> None:
    """DACS with MFM on drawn frames: same weights, frames and draws, the default pull or none."""
    optim = {"learning_rate": 2e-3, "head_multiplier": 1.0, "advanced": {"warmup_steps": 0}}
    spec = training_state.round(source=None, recipe={"threshold": 0.3}, round={"optim": optim}).spec()
    found = []
    for weight in (None, 0.0):
        recipe = {**spec.settings["recipe"], "anchor_weight": weight}
        training = Training(load_inputs(spec, Settings.model_validate({**spec.settings, "recipe": recipe})))
        released = frozen(training.student)  # a round starts from the incumbent, which is the released version here
        for _ in range(12):
            training.step(1.0)
        found.append(distance(training.student, released))
    assert 0.0 < found[0] < 0.9 * found[1], found


def test_round_with_source_does_not_load_the_released_version(training_state) -> None:
    assert training_of(training_state).recipe.inputs.released is None


@pytest.mark.parametrize("mfm", [True, False])
def test_source_free_round_to_a_scored_candidate(training_state, mfm) -> None:
    folder = training_state.round(source=None, mfm={"enabled": mfm})
    with StopRequest() as stop:
        assert train_and_score(folder.spec_path, stop) == 0
    scores = folder.scores()
    assert scores.status == "completed" and scores.candidate.finite and scores.candidate.source is None
