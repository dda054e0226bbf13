"""Source training: it learns, reports, validates, registers, and says clearly why it cannot."""

import pytest
import torch
from safetensors.torch import load_file

from adapters.checkpoints.checkpoint import load_version
from adapters.errors import TrainingFailed
from adapters.rounds.source_training import PretrainProgress, pretrain, source_scores
from storage.errors import StorageError
from storage.registry.registry import CheckpointRegistry
from storage.source.labelled import LabelledSet

CPU = torch.device("cpu")
FAST = {"learning_rate": 3e-3, "head_multiplier": 1.0, "advanced": {"warmup_steps": 5}}


def test_learns_drawn_scenes_and_registers_the_version(training_state) -> None:
    training_state.draw_source(12)
    settings = training_state.settings(
        pretrain={"steps": 60, "batch_size": 4, "optim": FAST, "advanced": {"jitter": 0.0}}
    )
    news: list[PretrainProgress] = []
    manifest = pretrain(settings, news.append)
    assert manifest.version == 1 and manifest.origin == "pretrain" and manifest.network["name"] == "deeplabv2"
    assert manifest.scores["source_miou"] > 0.6  # 0.2 at the start, see below
    assert set(manifest.scores) == {"source_miou", "source_iou_sky", "source_iou_road", "source_iou_car"}
    registry = CheckpointRegistry(training_state.layout.checkpoints)
    assert registry.versions() == [1] and registry.serving() is None
    network, _ = load_version(registry, 1, CPU)
    scores = source_scores(network, LabelledSet.open(training_state.layout), ["sky", "road", "car"])
    assert scores == manifest.scores
    phases = [item.phase for item in news]
    assert phases[0] == "importing" and phases[-2:] == ["validating", "done"]
    assert sorted(set(phases), key=phases.index) == ["importing", "training", "validating", "done"]
    training = [item for item in news if item.phase == "training"]
    assert (training[0].step, training[0].loss) == (0, None)
    assert (training[-1].step, training[-1].steps) == (60, 60) and training[-1].loss < 0.7
    assert [item.seconds for item in news] == sorted(item.seconds for item in news)


def test_untrained_network_scores_low(training_state) -> None:
    """The bound of the test above is worth something."""
    training_state.draw_source(12)
    settings = training_state.settings(pretrain={"steps": 1})
    assert pretrain(settings).scores["source_miou"] < 0.45


def test_repeats_under_a_seed(training_state) -> None:
    training_state.draw_source()
    weights = []
    for seed in (5, 5, 6):
        manifest = pretrain(training_state.settings(pretrain={"advanced": {"seed": seed}}))
        registry = CheckpointRegistry(training_state.layout.checkpoints)
        weights.append(load_file(registry.weights_path(manifest.version)))
    one, same, other = weights
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_crops_larger_than_the_frames_are_cut_to_them(training_state) -> None:
    training_state.draw_source(4)
    manifest = pretrain(training_state.settings(pretrain={"crop_height": 512, "crop_width": 512}))
    assert manifest.version == 1


def test_loss_that_is_not_finite_is_an_error_and_adds_nothing(training_state) -> None:
    training_state.draw_source(4)
    optim = {"learning_rate": 1e30, "advanced": {"warmup_steps": 0}}
    with pytest.raises(TrainingFailed, match=r"not finite .* lower pretrain\.optim\.learning_rate"):
        pretrain(training_state.settings(pretrain={"steps": 4, "optim": optim}))
    assert CheckpointRegistry(training_state.layout.checkpoints).versions() == []


def test_no_source_says_what_to_set(training_state) -> None:
    with pytest.raises(StorageError, match=r"source\.images"):
        pretrain(training_state.settings(source=None))


def test_without_validation_images_there_are_no_scores(training_state) -> None:
    training_state.draw_source(1)  # its name hash puts the one image into the training part
    assert pretrain(training_state.settings()).scores == {}


@pytest.mark.parametrize("options", [{"mixed_precision": "bf16"}, {"class_balance": 0.5}])
def test_options_of_source_training_learn_too(training_state, options) -> None:
    training_state.draw_source(12)
    advanced = {"jitter": 0.0, **options}
    settings = training_state.settings(pretrain={"steps": 40, "batch_size": 4, "optim": FAST, "advanced": advanced})
    assert pretrain(settings).scores["source_miou"] > 0.4  # 0.2 at the start
