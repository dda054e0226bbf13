"""Feature distance: zero at the reference, only where things are, only into the encoder, on one forward pass."""

import copy
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import ResNetConfig, ResNetModel, SegformerModel

from adapters.augmentation.augment import normalise_unit, to_unit
from adapters.checkpoints.checkpoint import load_version
from adapters.errors import NetworkMismatch
from adapters.networks.network import View
from adapters.networks.step_rng import StepRng
from adapters.networks.training_pass import Encoded, encode
from adapters.recipes.feature_distance import FeatureDistance
from adapters.rounds.inputs import load_inputs, reference_network
from configs.errors import ConfigError
from configs.load import load_settings
from storage.registry.registry import CheckpointRegistry
from tests.adapters.recipes import feature_distance_process
from tests.adapters.recipes.recipe_steps import CLASSES, batch, frozen, gradients, inputs_of, network, recipe_of
from tests.adapters.rounds.forked_rounds import both_do
from tests.sections import recipe_settings

CPU = torch.device("cpu")
THINGS = {"name": "daformer", "thing_classes": ("class 1", "class 3"), "feature_distance_weight": 0.005}


def encoded_of(student, step=None) -> Encoded:
    images = normalise_unit(to_unit((step or batch()).source.images))
    return encode(student, images, StepRng(0))


def distance_of(student, reference, **recipe) -> FeatureDistance:
    return FeatureDistance(inputs_of(student, **{**THINGS, **recipe}), reference)


def test_distance_to_itself_is_zero_and_so_is_its_gradient() -> None:
    student = network()
    loss = distance_of(student, frozen(student))(encoded_of(student), batch().source.labels.long())
    loss.backward()
    assert loss == 0.0 and not any(gradient.any() for gradient in gradients(student))
    assert all(gradient.isfinite().all() for gradient in gradients(student))


def test_distance_is_the_mean_norm_over_thing_cells() -> None:
    """Cells are 32x32 pixels here, and each holds one class."""
    student, other = network(), frozen(network(), seed=1)
    encoded, labels = encoded_of(student), batch().source.labels.long()
    difference = encoded.features[0][-1] - other.encode(encoded.views[0].images)[-1]
    things = torch.isin(labels[:, ::32, ::32], torch.tensor([1, 3]))
    assert 0 < things.sum() < things.numel()
    expected = difference.square().sum(1).sqrt()[things].mean()
    torch.testing.assert_close(distance_of(student, other)(encoded, labels), expected)


def test_other_cells_do_not_contribute() -> None:
    student, other = network(), frozen(network(), seed=1)
    encoded, labels = encoded_of(student), batch().source.labels.long()
    encoded.features[0][-1].retain_grad()
    distance_of(student, other)(encoded, labels).backward()
    touched = encoded.features[0][-1].grad.abs().sum(1) > 0
    assert torch.equal(touched, torch.isin(labels[:, ::32, ::32], torch.tensor([1, 3])))


def test_without_things_it_is_zero_and_finite() -> None:
    student, other = network(), frozen(network(), seed=1)
    for labels in (torch.zeros(2, 64, 96, dtype=torch.long), torch.full((2, 64, 96), 255)):
        loss = distance_of(student, other)(encoded_of(student), labels)
        loss.backward()
        assert loss == 0.0 and all(gradient.isfinite().all() for gradient in gradients(student))


def test_no_names_means_every_class() -> None:
    student = network()
    distance = distance_of(student, frozen(student), thing_classes=())
    labels = batch().source.labels.long()
    assert distance.cells(labels, (2, 3)).all()
    labels[0] = 255
    assert not distance.cells(labels, (2, 3))[0].any()


def test_a_cell_counts_from_three_quarters_of_its_pixels_on() -> None:
    student = network()
    distance = distance_of(student, frozen(student))
    labels = torch.full((1, 32, 96), 2)
    labels[0, :24, :32] = 1  # exactly 768 of 1024 pixels
    labels[0, :24, 32:64] = 1
    labels[0, 0, 32] = 2  # one fewer
    labels[0, :, 64:] = 255  # three quarters are not labelled, the rest is a thing
    labels[0, :8, 64:] = 3
    assert distance.cells(labels, (1, 3)).tolist() == [[[True, False, False]]]


def test_below_one_half_the_largest_share_decides() -> None:
    student = network()
    distance = distance_of(student, frozen(student), feature_distance_share=0.25)
    labels = torch.zeros(1, 4, 8, dtype=torch.long)
    labels[0, 0, :4] = 1  # a quarter of the first cell, the rest is class 0
    labels[0, :3, 4:] = 3
    assert distance.cells(labels, (1, 2)).tolist() == [[[False, True]]]


@pytest.mark.parametrize("size", [(45, 61), (33, 100), (32, 47)])
def test_sizes_that_the_stride_does_not_divide(size) -> None:
    student = network()
    images = torch.rand(1, 3, *size)
    encoded = encode(student, images, StepRng(0))
    loss = distance_of(student, frozen(network(), seed=1))(encoded, torch.ones(1, *size, dtype=torch.long))
    assert loss > 0 and loss.isfinite()


def test_the_gradient_reaches_the_encoder_only() -> None:
    student, other = network(), frozen(network(), seed=1)
    distance_of(student, other)(encoded_of(student), batch().source.labels.long()).backward()
    assert all(parameter.grad is None for parameter in student.decoder.parameters())
    assert all(parameter.grad is None for parameter in other.parameters())
    assert sum(parameter.grad.abs().sum() for parameter in student.encoder.parameters()) > 0


def test_of_several_views_the_first_counts() -> None:
    student, other = network(), frozen(network(), seed=1)
    context, detail = torch.rand(1, 3, 32, 48), torch.rand(1, 3, 32, 48)
    views = (View(context, None), View(detail, None))
    both = Encoded(tuple(student.encode(view.images) for view in views), views, (64, 96))
    alone = Encoded(both.features[:1], views[:1], (64, 96))
    labels = torch.ones(1, 64, 96, dtype=torch.long)
    distance = distance_of(student, other)
    assert torch.equal(distance(both, labels), distance(alone, labels))


def test_it_shares_the_pass_of_the_source_loss() -> None:
    """As many student passes as without it, and exactly weight times its own gradient on top."""
    other, found = frozen(network(), seed=1), []
    for weight in (0.0, 0.5, 1.0):
        student, passes = network(), []
        recipe = recipe_of(
            student, name="daformer", reference=other, thing_classes=("class 1",), feature_distance_weight=weight
        )
        student.encoder.register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))
        losses = recipe.step(batch()).losses
        assert len(passes) == 2
        assert ("feature_distance" in losses) == (weight > 0)
        found.append(gradients(student))
    for none, half, full in zip(*found, strict=True):
        torch.testing.assert_close(half, (none + full) / 2, rtol=1e-3, atol=1e-6)
    assert any(not torch.allclose(none, full) for none, _, full in zip(*found, strict=True))


def test_the_reference_sees_the_jittered_image() -> None:
    """The student is its own reference: the distance is 0 only if both see the same."""
    student = network()
    recipe = recipe_of(student, reference=frozen(student), source_jitter=0.5, **THINGS)
    assert recipe.step(batch()).losses["feature_distance"] == 0.0


def test_two_processes_give_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    """Though one of them sees more things than the other."""
    both_do(feature_distance_process.main, tmp_path / "log")


def test_source_free_there_is_none() -> None:
    student = network()
    result = recipe_of(student, reference=frozen(student), **THINGS).step(batch(source=False))
    assert set(result.losses) == {"mix"}
    assert set(recipe_of(student, **THINGS).step(batch()).losses) == {"source", "mix"}, "nothing to compare with"


def test_maps_of_another_width_are_refused() -> None:
    student, other = network(), network("deeplabv2")
    narrow = copy.deepcopy(other)
    narrow.feature_channels = (64,)
    with pytest.raises(NetworkMismatch, match=r"recipe\.feature_distance_weight.*128 channels.*released network 64"):
        distance_of(student, narrow)


def test_preset_is_the_published_one() -> None:
    for name in ("daformer", "hrda", "mic"):
        recipe = recipe_settings(name=name)
        assert (recipe.feature_distance_weight, recipe.advanced.feature_distance_share) == (0.005, 0.75)


MIT = {"network": {"name": "daformer", "encoder": "mit_tiny", "channels": 16}}


def inputs_for(training_state, **sections):
    folder = training_state.round(**{**MIT, **sections})
    inputs = load_inputs(folder.spec(), training_state.settings(**{**MIT, **sections}))
    inputs.buffer.close()
    return inputs


def test_released_reference_is_the_released_version(training_state) -> None:
    inputs = inputs_for(training_state, recipe={"name": "daformer"})
    assert inputs.reference is inputs.released and not inputs.reference.training
    assert inputs.reference is not inputs.student
    assert not any(parameter.requires_grad for parameter in inputs.reference.parameters())


def test_pretrained_reference_has_the_weights_of_the_directory(training_state, tmp_path) -> None:
    torch.manual_seed(7)
    pretrained = network().encoder.model
    pretrained.save_pretrained(tmp_path / "encoder")
    kind = {**MIT["network"], "pretrained": tmp_path / "encoder"}
    inputs = inputs_for(
        training_state, network=kind, recipe={"name": "daformer", "advanced": {"feature_distance_from": "pretrained"}}
    )
    saved = SegformerModel.from_pretrained(tmp_path / "encoder", local_files_only=True).state_dict()
    found = inputs.reference.encoder.model.state_dict()
    assert all(torch.equal(found[name], saved[name]) for name in saved)
    assert inputs.released is None and not inputs.reference.training
    assert not any(parameter.requires_grad for parameter in inputs.reference.parameters())


def test_pretrained_weights_of_another_encoder_are_refused(training_state, tmp_path) -> None:
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}
    ResNetModel(ResNetConfig(layer_type="basic", **sizes)).save_pretrained(tmp_path / "encoder")
    kind = {**MIT["network"], "pretrained": tmp_path / "encoder"}
    settings = training_state.settings(
        network=kind, recipe={"name": "daformer", "advanced": {"feature_distance_from": "pretrained"}}
    )
    training_state.layout.create()
    training_state.register_network(training_state.settings(**MIT))
    manifest = CheckpointRegistry(training_state.layout.checkpoints).manifest(1)
    with pytest.raises(NetworkMismatch, match=r"network\.pretrained"):
        reference_network(settings, manifest, None, CPU)


def test_imported_network_has_no_pretrained_encoder(training_state) -> None:
    settings = training_state.settings(
        **{**MIT, "network": {**MIT["network"], "pretrained": "somewhere"}},
        recipe={"name": "daformer", "advanced": {"feature_distance_from": "pretrained"}},
    )
    training_state.register_network(training_state.settings(**MIT))
    registry = CheckpointRegistry(training_state.layout.checkpoints)
    imported = registry.manifest(1)
    imported = imported.model_copy(update={"network": {**imported.network, "name": "huggingface"}})
    with pytest.raises(NetworkMismatch, match="set it to 'released'"):
        reference_network(settings, imported, None, CPU)
    assert load_version(registry, 1, CPU)[0].num_classes == CLASSES - 1


def test_no_reference_without_source_or_weight(training_state) -> None:
    assert inputs_for(training_state, source=None, recipe={"name": "daformer"}).reference is None
    settings = training_state.settings(recipe={"name": "dacs"})
    manifest = CheckpointRegistry(training_state.layout.checkpoints).manifest(1)
    assert reference_network(settings, manifest, None, CPU) is None


def test_unknown_thing_class_is_refused_with_the_nearest(training_state, tmp_path) -> None:
    with pytest.raises(
        ValidationError, match=r"recipe\.thing_classes: no class 'carr' in `classes`; did you mean 'car'"
    ):
        training_state.settings(recipe={"name": "daformer", "thing_classes": ["road", "carr"]})
    path = tmp_path / "mfmd.yaml"
    path.write_text("classes: camvid\nwatch: {folder: drop}\nrecipe: {name: mic, thing_classes: [pedestrain]}\n")
    with pytest.raises(ConfigError) as error:
        load_settings(path)
    assert str(error.value).startswith(f"{path}: recipe.thing_classes: no class 'pedestrain'")
    assert str(error.value).endswith("did you mean 'pedestrian'?")


def test_pretrained_reference_needs_a_directory(training_state) -> None:
    with pytest.raises(
        ValidationError, match=r"recipe\.advanced\.feature_distance_from: 'pretrained' needs network\.pretrained"
    ):
        training_state.settings(recipe={"name": "daformer", "advanced": {"feature_distance_from": "pretrained"}})
    unused = {"name": "daformer", "advanced": {"feature_distance_from": "pretrained"}, "feature_distance_weight": 0.0}
    training_state.settings(recipe=unused)
