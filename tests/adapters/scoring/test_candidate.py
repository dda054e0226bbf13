"""A candidate is a network of its own: asking for one leaves the training as it was found."""

from typing import Any

import pytest
import torch

from adapters.recipes.build import RECIPES
from adapters.rounds.training import Training
from tests.adapters.recipes.adaptation_steps import training_of
from tests.adapters.recipes.added_terms import named


def everything(training: Training) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, bool]]:
    """Counters and positions, every weight and statistic, and every layer's mode."""
    modules = torch.nn.ModuleDict(training.recipe.modules())
    tensors = {name: tensor.clone() for name, tensor in modules.state_dict().items()}
    modes = {name: layer.training for name, layer in modules.named_modules(remove_duplicate=False) if name}
    return training.state_dict(), tensors, modes


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in ("dacs", "hrda", "cotta") else pytest.mark.nightly) for name in RECIPES],
)
def test_training_is_as_it_was_found(training_state, name: str) -> None:
    sections = {"network": {"multi_resolution": name == "hrda", "dropout": 0.2}}
    training = training_of(training_state, recipe=named(name), round={"crop_height": 32, "crop_width": 32}, **sections)
    for _ in range(2):
        training.step(1.0)
    state, tensors, modes = everything(training)
    dropout = torch.get_rng_state()
    first, second = training.candidate(), training.candidate()
    assert not any(layer.training for layer in first.modules())
    later, kept, modes_kept = everything(training)
    assert later["recipe"]["steps"] == state["recipe"]["steps"] and modes_kept == modes
    assert (later["target"], later["source"]) == (state["target"], state["source"])
    assert [key for key in tensors if not torch.equal(tensors[key], kept[key])] == []
    assert torch.equal(torch.get_rng_state(), dropout)
    theirs = second.state_dict()
    assert [key for key, tensor in first.state_dict().items() if not torch.equal(tensor, theirs[key])] == []
