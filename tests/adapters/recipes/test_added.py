"""Terms that any recipe can add: with each recipe, on each kind of network, alone and together, in half precision."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from adapters.networks.build import build_network
from adapters.networks.network import SegmentationNetwork
from adapters.recipes.build import build_recipe
from configs.network import Architecture
from configs.recipe import RECIPES
from tests.adapters.recipes.added_terms import TERMS, TOGETHER, named, with_encoder
from tests.adapters.recipes.recipe_steps import CLASSES, batch, gradients, inputs_of, network, recipe_of

LOSSES = {
    "class_bce": [],
    "translation": ["alignment", "translated"],
    "complementary": ["complementary", "complementary_distance"],
    "blda": ["source_quantile", "mix_quantile"],
    "dida": ["dida_source", "dida_source_noise", "dida", "dida_noise"],
    "class_confidence": [],
    "foundation": ["foundation_source", "foundation"],
}
"""What each term adds to the losses of a step."""
OWN = {"mfm_da": ("class_bce", "translation"), "omuda": ("complementary", "class_confidence")}
"""Terms that recipes have without being told."""
NEED_SOURCE = ("blda", "translation")
TEACHING = [name for name, recipe in RECIPES.items() if not recipe.test_time and name not in ("plugin", "hrda")]
"""Recipes with a teacher, on a network with one view."""


def two_views() -> SegmentationNetwork:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    settings = Architecture(name="daformer", encoder="mit_tiny", channels=16, dropout=0.0, multi_resolution=True)
    return build_network(settings, CLASSES).train()


def settings_of(recipe: str, terms: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {**named(recipe, "class 1"), **with_encoder(terms, folder)}


@pytest.mark.parametrize(
    "term", [pytest.param(term, marks=[pytest.mark.nightly] * (term == "class_bce")) for term in TERMS]
)
@pytest.mark.parametrize(
    ("recipe", "mfm"),
    [
        pytest.param(name, mfm, marks=() if (name, mfm) == ("daformer", True) else pytest.mark.nightly)
        for name in TEACHING
        for mfm in (False, True)
    ],
)
def test_every_recipe_takes_every_term(tmp_path: Path, recipe: str, term: str, mfm: bool) -> None:
    strict = {"threshold": 0.9} if term == "class_confidence" else {}  # at a threshold of 0 every weight is 1
    plain = recipe_of(network(), **named(recipe, "class 1"), **strict, mfm=mfm).step(batch()).losses
    student, settings = network(), settings_of(recipe, TERMS[term], tmp_path)
    losses = recipe_of(student, **settings, **strict, mfm=mfm).step(batch()).losses
    missing = {"mix_quantile"} - {f"{name}_quantile" for name in plain}  # mfm_da mixes nothing
    assert set(losses) == {*plain, *LOSSES[term]} - missing
    has_it = term in OWN.get(recipe, ())
    unread = term == "class_confidence" and recipe == "mfm_da" and not mfm  # no loss learns pseudo-labels
    changed = losses.keys() != plain.keys() or any(losses[name] != plain[name] for name in plain)
    assert changed != (has_it or unread)
    assert all(loss.isfinite() for loss in losses.values())
    assert all(gradient.isfinite().all() for gradient in gradients(student))


@pytest.mark.parametrize(
    ("recipe", "term"),
    [
        pytest.param(recipe, term, marks=() if (recipe, term) == ("dacs", "foundation") else pytest.mark.nightly)
        for recipe in ("dacs", "mic")
        for term in TERMS
        if term not in NEED_SOURCE
    ],
)
def test_source_free_they_learn_from_the_target_alone(tmp_path: Path, recipe: str, term: str) -> None:
    added = recipe_of(network(), **settings_of(recipe, TERMS[term], tmp_path)).step(batch(source=False)).losses
    plain = recipe_of(network(), name=recipe).step(batch(source=False)).losses
    assert set(added) == {*plain, *(name for name in LOSSES[term] if "source" not in name)}


@pytest.mark.parametrize(
    "term", [*(pytest.param(term, marks=pytest.mark.nightly) for term in TERMS), pytest.param(None, id="all")]
)
def test_they_train_networks_that_see_context_and_detail(tmp_path: Path, term: str | None) -> None:
    terms = TOGETHER if term is None else TERMS[term]
    student = two_views()
    recipe = recipe_of(student, **settings_of("hrda", terms, tmp_path), mfm=True)
    for seed in (1, 2):
        losses = recipe.step(batch(seed=seed)).losses
    names = {"source", "mix", "mfm", *(name for key in terms for name in LOSSES[key])}
    assert set(losses) == names and all(loss.isfinite() for loss in losses.values())
    assert all(gradient.isfinite().all() for gradient in gradients(student))


def flops(served: SegmentationNetwork, images: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        served.eval()(images)
    return int(counter.get_total_flops())


def test_with_all_of_them_the_candidate_is_the_plain_network(tmp_path: Path) -> None:
    recipe = recipe_of(network(), **settings_of("dacs", TOGETHER, tmp_path), mfm=True)
    recipe.step(batch())
    served, plain = recipe.finished(), network()
    assert type(served) is type(plain) and served.state_dict().keys() == plain.state_dict().keys()
    images = torch.zeros(1, 3, 64, 96)
    assert flops(served, images) == flops(plain, images) > 0
    assert {name for name, _ in served.named_modules()} == {name for name, _ in plain.named_modules()}


class Half(Accelerator):
    """An accelerator with bfloat16, whatever those of other tests have."""

    def autocast(self, autocast_handler: AutocastKwargs | None = None) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=autocast_handler is None or autocast_handler.enabled)


def test_in_half_precision_what_is_learnt_stays_in_full(tmp_path: Path) -> None:
    inputs = inputs_of(network(), **settings_of("dacs", TOGETHER, tmp_path), mfm=True)
    recipe = build_recipe(replace(inputs, accelerator=Half(cpu=True)))
    losses, full = (
        recipe.step(batch()).losses,
        recipe_of(network(), **settings_of("dacs", TOGETHER, tmp_path), mfm=True),
    )
    for name, loss in full.step(batch()).losses.items():
        torch.testing.assert_close(losses[name], loss, rtol=0.1, atol=0.01)
    kept = [tensor for module in recipe.modules().values() for tensor in module.state_dict().values()]
    assert {tensor.dtype for tensor in kept if tensor.is_floating_point()} == {torch.float32}
