"""What the test-time recipes share: no value is read inside a step, settings, whole rounds to a scored candidate."""

import dataclasses
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from pydantic import ValidationError
from safetensors.torch import load_file

from adapters.checkpoints.checkpoint import load_version
from adapters.networks.batch_norm import batch_norm_layers
from adapters.recipes.build import build_recipe
from adapters.recipes.tent import norm_parameters
from adapters.rounds.run import train_and_score
from adapters.rounds.stop import StopRequest
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundFolder
from tests.adapters.recipes.adaptation_steps import batch, frozen, inputs_of, network, training_of
from tests.sections import recipe_settings

pytestmark = pytest.mark.usefixtures("few_statistics")

TEST_TIME: dict[str, dict[str, Any]] = {
    "bn_statistics": {},
    "tent": {},
    "cotta": {"augment_scales": (0.75, 1.0), "restore_probability": 0.05},
}
LOSSES = {"bn_statistics": set(), "tent": {"entropy"}, "cotta": {"consistency"}}


class MetaAccelerator(Accelerator):
    """Tensors have shapes and no values: whoever asks for one, as `.item()` and `bool(...)` do, gets an error."""

    device = torch.device("meta")


@pytest.mark.parametrize("name", TEST_TIME)
def test_no_value_is_read_inside_a_step(name) -> None:
    """Of a network of BatchNorm; of DAFormer: tests/adapters/networks/test_no_sync.py."""
    student = network("deeplabv2").to("meta")
    settings = TEST_TIME[name] | ({"restore_probability": 0.0} if name == "cotta" else {})  # meta has no generator
    inputs = inputs_of(student, frozen(student), name=name, **settings)
    recipe = build_recipe(dataclasses.replace(inputs, accelerator=MetaAccelerator(cpu=True)))
    result = recipe.step(batch(), batch(padding=8))
    recipe.after_step(None)
    with pytest.raises(RuntimeError, match="meta"):
        result.kept_ratio.item()


def run(folder: RoundFolder) -> int:
    with StopRequest() as stop:
        return train_and_score(folder.spec_path, stop)


@pytest.mark.parametrize("name", TEST_TIME)
@pytest.mark.parametrize("decoder", ["deeplabv2", "daformer"])
def test_round_to_a_scored_candidate(training_state, name, decoder) -> None:
    """With source images configured and MFM on: the recipe trains on neither, and the source guard has its scores."""
    encoder = "mit_tiny" if decoder == "daformer" else "resnet_tiny"
    folder = training_state.round(
        recipe={"name": name, **TEST_TIME[name]},
        network={"name": decoder, "encoder": encoder},
        round={"optim": {"learning_rate": 1e-3, "advanced": {"warmup_steps": 0}}},
    )
    assert run(folder) == 0
    scores, trained = folder.scores(), folder.progress()[2]
    assert (scores.status, scores.reason, scores.steps) == ("completed", "step budget", 3)
    assert scores.candidate.finite and not scores.candidate.missing and len(scores.candidate.area) == 2
    assert scores.candidate.source is not None and scores.released.source is not None
    assert set(trained.losses) == LOSSES[name] and 0 <= trained.kept_ratio <= 1 and trained.images_per_second > 0
    before = load_file(CheckpointRegistry(training_state.layout.checkpoints).weights_path(1))
    after = load_file(folder.candidate)
    assert before.keys() == after.keys() and all(before[key].shape == after[key].shape for key in before)
    assert moved(training_state, before, after) == EXPECTED[name]


def moved(training_state, before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> tuple[bool, bool, bool]:
    """Whether statistics, normalisation weights and other weights of the candidate changed."""
    registry = CheckpointRegistry(training_state.layout.checkpoints)
    student, _ = load_version(registry, 1, torch.device("cpu"))
    norm = {id(parameter) for parameter in norm_parameters(student)}
    names = {name: id(parameter) in norm for name, parameter in student.named_parameters()}
    differ = {name for name in before if not torch.equal(before[name], after[name])}
    return (
        any(name.endswith(("running_mean", "running_var")) for name in differ),
        any(names.get(name) is True for name in differ),
        any(names.get(name) is False for name in differ),
    )


EXPECTED = {"bn_statistics": (True, False, False), "tent": (True, True, False), "cotta": (True, True, True)}


@pytest.mark.parametrize("name", TEST_TIME)
def test_rounds_repeat_under_a_seed(training_state, name) -> None:
    first = training_state.round(source=None, recipe={"name": name, **TEST_TIME[name]})
    again = RoundFolder(training_state.folder / "again")
    again.path.mkdir()
    again.spec_path.write_bytes(first.spec_path.read_bytes())
    found = []
    for folder in (first, again):
        assert run(folder) == 0
        found.append(load_file(folder.candidate))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_tent_trains_norm_layers_only_and_without_dropout(training_state) -> None:
    training = training_of(
        training_state, recipe={"name": "tent"}, network={"name": "deeplabv3plus", "advanced": {"output_stride": 16}}
    )
    training.step(1.0)
    trained = [parameter for group in training.optimizer.param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in trained} == {
        id(parameter) for parameter in norm_parameters(training.student)
    }
    noise = [layer for layer in training.student.modules() if "drop" in type(layer).__name__.lower()]
    assert noise and not any(layer.training for layer in noise)
    assert all(layer.training for layer in batch_norm_layers(training.student))


@pytest.mark.parametrize("name", TEST_TIME)
def test_neither_mfm_nor_source_is_built(training_state, name) -> None:
    training = training_of(training_state, recipe={"name": name, **TEST_TIME[name]}, mfm={"enabled": True})
    assert training.recipe.rebuilder is None and training.images_per_step == 2
    assert (training.optimizer is None) is (name == "bn_statistics")


def test_bn_statistics_measures_its_prior_against_the_released_version(training_state) -> None:
    training = training_of(training_state, recipe={"name": "bn_statistics", "statistics_prior": 1e12})
    training.step(1.0)
    released = training.recipe.inputs.released
    for mine, theirs in zip(batch_norm_layers(training.candidate()), batch_norm_layers(released), strict=True):
        torch.testing.assert_close(mine.running_mean, theirs.running_mean)
        torch.testing.assert_close(mine.running_var, theirs.running_var)


@pytest.mark.parametrize(
    ("field", "value"),
    [("augment_scales", []), ("augment_scales", [0.0]), ("statistics_prior", -1), ("advanced", {"augment_below": 2})],
)
def test_settings_out_of_range_are_refused(field, value) -> None:
    with pytest.raises(ValidationError, match=field):
        recipe_settings("cotta", **{field: value})
