"""The recipe omuda: DAFormer with the three levels of the abstract, each of which can be switched off."""

from pathlib import Path

import torch

from adapters.networks.encoders.dinov2 import build_dinov2
from tests.adapters.recipes.recipe_steps import batch, frozen, network, recipe_of
from tests.sections import recipe_settings

THINGS = {"thing_classes": ["class 1"]}


def test_its_settings_are_daformers_with_two_levels_switched_on() -> None:
    omuda, daformer = recipe_settings("omuda"), recipe_settings("daformer")
    on = omuda.advanced
    assert on.complementary.enabled and on.complementary.by_region and on.class_confidence.enabled
    assert not on.foundation.enabled and not on.blda.enabled and not on.dida.enabled
    common = [name for name in type(daformer).model_fields if name not in ("name", "advanced")]
    assert all(getattr(omuda, name) == getattr(daformer, name) for name in common)
    changed = recipe_settings("omuda", complementary={"ratio": 0.3}, class_confidence={"quantile": 0.2})
    assert changed.advanced.complementary.enabled and changed.advanced.complementary.by_region
    assert changed.advanced.class_confidence.enabled and changed.advanced.complementary.ratio == 0.3


def test_its_losses_are_those_of_its_levels(tmp_path: Path) -> None:
    build_dinov2("dinov2_tiny", None, pyramid=False).model.save_pretrained(tmp_path)
    foundation = {"enabled": True, "directory": str(tmp_path), "tokens": 3}
    recipe = recipe_of(
        network(), name="omuda", reference=frozen(network(), seed=1), mfm=True, foundation=foundation, **THINGS
    )
    losses = recipe.step(batch()).losses
    context = ["complementary", "complementary_distance"]
    assert list(losses) == ["source", "foundation_source", "feature_distance", "mix", *context, "foundation", "mfm"]
    assert set(recipe.modules()) == {"student", "teacher", "rebuilder", "class_confidence", "foundation"}
    assert all(loss.isfinite() for loss in losses.values())


def test_with_every_level_off_it_is_daformer_bit_for_bit() -> None:
    off = {"complementary": {"enabled": False}, "class_confidence": {"enabled": False}}
    mine = recipe_of(network(), name="omuda", mfm=True, **off).step(batch()).losses
    theirs = recipe_of(network(), name="daformer", mfm=True).step(batch()).losses
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in theirs)
