"""Everybody who uses a network takes a multi-resolution one: registry, inference, scores, observer."""

import pytest
import torch

from adapters.checkpoints.checkpoint import load_version, make_manifest, save_weights
from adapters.inference.segment import segment_image
from adapters.networks.multi_resolution import MultiResolutionNetwork
from adapters.scoring.observation import observe_frame
from adapters.scoring.scores.frames import frame_scores
from storage.registry.registry import CheckpointRegistry
from tests.adapters.networks.multi_resolution_networks import (
    ALWAYS,
    CLASSES,
    CROP,
    NETWORKS,
    NEVER,
    attend,
    network_of,
    pictures,
)


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> MultiResolutionNetwork:
    return network_of(request.param)


@pytest.fixture
def deeplab() -> MultiResolutionNetwork:
    return network_of("deeplabv2")


def test_version_round_trips_through_the_registry(training_state) -> None:
    settings = training_state.settings(network={"multi_resolution": True})
    version = training_state.register_network(settings)
    registry = CheckpointRegistry(training_state.layout.checkpoints)
    network, manifest = load_version(registry, version, torch.device("cpu"))
    assert isinstance(network, MultiResolutionNetwork) and manifest.network["multi_resolution"] is True
    again = registry.add(_saved(network, training_state.folder), make_manifest(settings, origin="import"), by="import")
    images = pictures(48, 64)
    with torch.no_grad():
        assert torch.equal(load_version(registry, again.version, torch.device("cpu"))[0](images), network(images))


def _saved(network, folder):
    save_weights(network, folder / "again.safetensors")
    return folder / "again.safetensors"


@pytest.mark.parametrize("size", [(300, 200), (31, 47), (1, 400), (7, 9)])
def test_it_serves_images_of_any_size(network, drawing, size) -> None:
    pixels, _ = drawing(0, height=max(size[0], 10), width=max(size[1], 10))
    labels = segment_image(network.eval(), pixels[: size[0], : size[1]], CROP)
    assert labels.shape == size and labels.max() < CLASSES


@torch.inference_mode()
def test_scores_of_frames_take_it(network) -> None:
    network.eval()
    image = pictures(*CROP, images=1)
    scores, prediction = frame_scores(network, image, 0)
    assert torch.equal(prediction.long(), network(image)[0].argmax(0))
    assert 0.0 <= scores["dropout_disagreement"] < 1.0 and 0.0 < scores["flip_consistency"] <= 1.0


@pytest.mark.parametrize("logit", [NEVER, ALWAYS], ids=["context alone", "detail alone"])
@torch.inference_mode()
def test_disagreement_drops_channels_of_both_scales(deeplab, logit) -> None:
    attend(deeplab, logit).eval()
    scores, _ = frame_scores(deeplab, pictures(*CROP, images=1), 0)
    assert 0.0 < scores["dropout_disagreement"] < 1.0


def test_observer_describes_frames_with_it(deeplab, drawing) -> None:
    seen = observe_frame(deeplab.eval(), deeplab, drawing(0)[0])
    assert seen.embedding.shape == (deeplab.feature_channels[-1],) and seen.area.sum() == pytest.approx(1.0)
