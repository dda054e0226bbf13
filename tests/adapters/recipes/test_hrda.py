"""The HRDA recipe: one step of it, whole rounds of it, and what the other recipes make of its network."""

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from adapters.augmentation.augment import normalise_unit, to_unit
from adapters.checkpoints.checkpoint import load_version, load_weights, network_of
from adapters.errors import NetworkMismatch
from adapters.mfm.rebuilder import build_rebuilder
from adapters.networks.build import build_network
from adapters.networks.multi_resolution import MultiResolutionNetwork
from adapters.networks.network import SegmentationNetwork
from adapters.networks.step_rng import StepRng
from adapters.networks.training_pass import encode, prediction_loss
from adapters.recipes.build import build_recipe
from adapters.recipes.recipe import Recipe, RecipeInputs, StepBatch
from adapters.rounds.run import train_and_score
from adapters.rounds.source_training import pretrain
from adapters.rounds.stop import StopRequest
from adapters.sampling.streams import SourceBatch, TargetBatch
from configs.mfm import MfmSettings
from configs.network import Architecture
from configs.recipe import RecipeSettings
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundFolder
from tests.sections import recipe_settings, section

pytestmark = pytest.mark.usefixtures("few_statistics")

CLASSES, CROP = 3, (64, 96)
NOTHING_DRAWN = {"threshold": 0.0, "jitter_probability": 0.0, "blur_probability": 0.0}
BARE = {**NOTHING_DRAWN, "rare_class_sampling": False, "feature_distance_weight": 0.0}
PLAIN = recipe_settings("hrda", **BARE)
HRDA_TERMS = {"source", "feature_distance", "mix"}


SETTINGS = Architecture(
    name="deeplabv2", encoder="resnet_tiny", channels=16, dropout=0.0, multi_resolution=True
)  # fmt: skip


def network(*, multi_resolution: bool = True) -> SegmentationNetwork:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    settings = SETTINGS.model_copy(update={"multi_resolution": multi_resolution})
    return build_network(settings, CLASSES).train()


def recipe_of(
    student: SegmentationNetwork,
    recipe: RecipeSettings = PLAIN,
    *,
    mfm: bool = True,
    reference: SegmentationNetwork | None = None,
) -> Recipe:
    settings = section(MfmSettings, dim=32, heads=4, blocks=1)
    rebuilder = build_rebuilder(student, student.view_size(CROP), settings) if mfm else None
    names = tuple(f"class {index}" for index in range(CLASSES))
    accelerator = Accelerator(cpu=True)
    inputs = RecipeInputs(
        student, rebuilder, None, recipe, settings, names, accelerator, StepRng(2), reference=reference
    )
    return build_recipe(inputs)


def batch(*, source: bool = True) -> StepBatch:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (2, 2, *CROP, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (2, *CROP), dtype=torch.uint8, generator=generator)
    valid = torch.ones(2, *CROP, dtype=torch.bool)
    return StepBatch(TargetBatch(images[0], valid, valid), SourceBatch(images[1], labels) if source else None)


def run(folder: RoundFolder) -> int:
    with StopRequest() as stop:
        return train_and_score(folder.spec_path, stop)


@pytest.mark.parametrize("mfm", [True, False])
def test_step_gives_finite_losses_and_gradients_everywhere(mfm) -> None:
    student = network()
    recipe = recipe_of(student, mfm=mfm)
    result = recipe.step(batch())
    assert set(result.losses) == {"source", "mix"} | ({"mfm"} if mfm else set())
    assert all(loss.isfinite() and loss > 0 for loss in result.losses.values())
    assert all(value.grad is not None and value.grad.isfinite().all() for value in student.parameters())
    assert all(value.grad.any() for value in student.decoder.attention.parameters())


def test_source_loss_counts_the_fused_answer_and_the_detail() -> None:
    """The first random number of a step is the window of the source."""
    student, source = network(), batch().source
    encoded = encode(student, normalise_unit(to_unit(source.images)), StepRng(2))
    expected = prediction_loss(student, encoded, source.labels)
    torch.testing.assert_close(recipe_of(student).step(batch()).losses["source"], expected.detach())


def test_pseudo_labels_come_from_overlapped_windows() -> None:
    """Source-free, without augmentation: the student learns the teacher's whole answer, windows and all."""
    student = network()
    recipe = recipe_of(student, mfm=False)
    images = normalise_unit(to_unit(batch().target.images))
    with torch.no_grad():
        answer = recipe.teacher.network.predict(recipe.teacher.network.encode_all(images), CROP)
    assert torch.equal(recipe.teacher(images), answer)
    student.eval()  # draws and BatchNorm as in the step below
    recipe.teacher.network.eval()
    labels = recipe.teacher(images).argmax(1)
    draws = StepRng(2)
    draws.shared(2)  # jitter and blur, drawn before the window
    expected = prediction_loss(student, encode(student, images, draws), labels)
    torch.testing.assert_close(recipe.step(batch(source=False)).losses["mix"], expected.detach())


def test_the_detail_has_its_share_of_the_loss() -> None:
    losses = []
    for weight in (0.0, 0.5, 1.0):
        student = network()
        student.detail_loss_weight = weight
        recipe = recipe_of(student, mfm=False)
        losses.append(recipe.step(batch()).losses["source"])
    none, half, full = losses
    torch.testing.assert_close(half, (none + full) / 2)
    assert not torch.allclose(none, full)


def test_steps_repeat_under_a_seed() -> None:
    one, other = (recipe_of(network()).step(batch()).losses for _ in range(2))
    assert one == other


def test_plain_network_is_refused_with_the_setting_and_the_command() -> None:
    with pytest.raises(NetworkMismatch, match=r"network\.multi_resolution: true.*`mfmd pretrain`.*daformer"):
        recipe_of(network(multi_resolution=False))


@pytest.mark.parametrize("name", ["dacs", "daformer", "mic", "hrda"])
def test_every_recipe_of_a_teacher_trains_a_multi_resolution_network(name) -> None:
    student = network()
    recipe = recipe_of(student, recipe_settings(name, **(NOTHING_DRAWN if name == "dacs" else BARE)))
    losses = recipe.step(batch()).losses
    assert set(losses) == {"source", "mix", "mfm"} | ({"masked_image"} if name == "mic" else set())
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    assert all(value.grad.any() for value in student.decoder.attention.parameters())


def test_feature_distance_is_of_the_context() -> None:
    """Of the released network's maps of the half-size images, at each cell of it that one class fills."""
    student, source = network(), batch().source
    torch.manual_seed(7)
    released = build_network(SETTINGS, CLASSES).eval().requires_grad_(False)
    labels = source.labels.clone()
    labels[:] = 0
    labels[:, :, 48:] = 1
    recipe = recipe_of(student, PLAIN.model_copy(update={"feature_distance_weight": 1.0}), reference=released)
    context = student.views(normalise_unit(to_unit(source.images)), StepRng(2))[0].images
    with torch.no_grad():
        gap = student.encode(context)[-1] - released.encode(context)[-1]
    losses = recipe.step(StepBatch(batch().target, SourceBatch(source.images, labels))).losses
    torch.testing.assert_close(losses["feature_distance"], gap.norm(dim=1).mean())


def pretrained(state, **sections):
    """Settings of a state directory in which a multi-resolution version was trained and frames arrived."""
    crop = {"crop_height": 48, "crop_width": 64, "steps": 2}
    sections = {"network": {"multi_resolution": True}, "pretrain": crop, "round": crop, **sections}
    settings = state.settings(recipe={"name": "hrda"}, **sections)
    state.draw_source()
    state.fill_buffer(settings)
    pretrain(settings)
    return settings


@pytest.mark.parametrize("mfm", [True, False])
def test_round_from_a_pretrained_version_to_a_scored_candidate(training_state, mfm) -> None:
    settings = pretrained(training_state, mfm={"enabled": mfm})
    folder = training_state.spec(settings)
    assert run(folder) == 0, folder.scores().reason
    scores = folder.scores()
    assert (scores.status, scores.steps) == ("completed", 2)
    assert scores.candidate.finite and not scores.candidate.missing and scores.candidate.source is not None
    assert len(scores.candidate.dropout_disagreement) == 2
    assert set(folder.progress()[2].losses) == HRDA_TERMS | ({"mfm"} if mfm else set())
    registry = CheckpointRegistry(training_state.layout.checkpoints)
    before, after = load_file(registry.weights_path(1)), load_file(folder.candidate)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("decoder.attention.classifier") for name in changed)
    candidate = network_of(registry.manifest(1))
    load_weights(candidate, folder.candidate)
    assert isinstance(candidate, MultiResolutionNetwork)


def test_pretraining_learns_from_both_scales(training_state) -> None:
    optim = {"learning_rate": 3e-3, "head_multiplier": 1.0, "advanced": {"warmup_steps": 5}}
    steps = {"steps": 40, "batch_size": 4, "crop_height": 48, "crop_width": 64, "optim": optim}
    steps["advanced"] = {"jitter": 0.0}
    settings = training_state.settings(network={"multi_resolution": True}, pretrain=steps)
    training_state.draw_source(12)
    manifest = pretrain(settings)
    assert manifest.scores["source_miou"] > 0.5  # 0.2 at the start; 0.63 to 0.69 with three seeds
    network, _ = load_version(CheckpointRegistry(training_state.layout.checkpoints), 1, torch.device("cpu"))
    assert isinstance(network, MultiResolutionNetwork)


def test_round_source_free(training_state) -> None:
    settings = training_state.settings(
        source=None, network={"multi_resolution": True}, recipe={"name": "hrda"}
    )  # crops of 32x48: the window is as high as the crop
    training_state.fill_buffer(settings)
    training_state.register_network(settings)
    folder = training_state.spec(settings)
    assert run(folder) == 0 and folder.scores().status == "completed"
    assert set(folder.progress()[2].losses) == {"mix", "mfm"}


def test_round_of_hrda_on_a_plain_version_fails_and_says_what_to_do(training_state) -> None:
    folder = training_state.round(recipe={"name": "hrda"})
    assert run(folder) == 1
    assert "network.multi_resolution: true" in folder.scores().reason
    assert folder.scores().candidate is None
