"""The MIC recipe: DAFormer and one more loss, last before MFM, on any recipe that learns from a teacher."""

import pytest
import torch

from adapters.recipes.self_training import SelfTraining
from adapters.rounds.run import train_and_score
from adapters.rounds.stop import StopRequest
from tests.adapters.recipes.recipe_steps import batch, frozen, gradients, network, recipe_of, train
from tests.sections import recipe_settings

pytestmark = pytest.mark.usefixtures("few_statistics")


def test_constants_are_the_published_ones() -> None:
    recipe = recipe_settings(name="mic")
    assert (recipe.masked_image_weight, recipe.advanced.masked_image_block, recipe.advanced.masked_image_ratio) == (
        1.0,
        0.0625,
        0.7,
    )
    assert (recipe.ema_decay, recipe.rare_class_sampling, recipe.feature_distance_weight) == (0.999, True, 0.005)
    assert recipe.margin_of == "image"


@pytest.mark.parametrize("mfm", [False, True])
@pytest.mark.parametrize("size", [1, 2])
def test_losses_come_in_the_published_order(mfm, size) -> None:
    student = network()
    recipe = recipe_of(student, name="mic", reference=frozen(network(), seed=1), mfm=mfm)
    assert isinstance(recipe, SelfTraining)
    losses = recipe.step(batch(size)).losses
    assert list(losses) == ["source", "feature_distance", "mix", "masked_image", *(["mfm"] if mfm else [])]
    assert all(loss.isfinite() and loss > 0 and not loss.requires_grad for loss in losses.values())
    assert all(gradient.isfinite().all() for gradient in gradients(student))


@pytest.mark.parametrize("mfm", [False, True])
def test_at_weight_0_it_is_daformer_bit_for_bit(mfm) -> None:
    one, other = network(), network()
    mine = train(one, mfm=mfm, name="mic", reference=frozen(one), masked_image_weight=0.0)
    theirs = train(other, mfm=mfm, name="daformer", reference=frozen(other))
    assert all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))
    for ours, daformer in zip(mine, theirs, strict=True):
        assert ours.losses.keys() == daformer.losses.keys()
        assert all(torch.equal(ours.losses[name], daformer.losses[name]) for name in daformer.losses)


def test_without_daformers_extras_it_is_the_loss_on_top_of_dacs() -> None:
    dacs = recipe_of(network(), name="dacs").step(batch()).losses
    mic = recipe_of(network(), name="mic", feature_distance_weight=0.0, ema_decay=0.99).step(batch()).losses
    assert list(mic) == [*dacs, "masked_image"]
    assert all(torch.equal(mic[name], dacs[name]) for name in dacs)


def test_source_free_it_masks_the_target_all_the_same() -> None:
    losses = recipe_of(network(), name="mic", mfm=True).step(batch(source=False)).losses
    assert list(losses) == ["mix", "masked_image", "mfm"]


def test_each_loss_is_back_propagated_by_itself(monkeypatch) -> None:
    """Only one forward pass's activations are held at a time."""
    recipe, calls = recipe_of(network(), name="mic", mfm=True), []
    backward = recipe.inputs.accelerator.backward
    monkeypatch.setattr(recipe.inputs.accelerator, "backward", lambda loss: (calls.append(loss.item()), backward(loss)))
    losses = recipe.step(batch()).losses
    assert calls == pytest.approx([losses[name].item() for name in ("source", "mix", "masked_image", "mfm")])


@pytest.mark.parametrize("network_settings", [{}, {"name": "daformer", "encoder": "mit_tiny", "channels": 16}])
def test_round_from_spec_to_scores(training_state, network_settings) -> None:
    folder = training_state.round(recipe={"name": "mic"}, network=network_settings)
    with StopRequest() as stop:
        assert train_and_score(folder.spec_path, stop) == 0
    assert folder.scores().status == "completed" and folder.scores().candidate.finite
    assert set(folder.progress()[2].losses) == {"source", "feature_distance", "mix", "masked_image", "mfm"}
