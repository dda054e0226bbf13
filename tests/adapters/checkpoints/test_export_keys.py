"""What a round hands on is the plain network: its keys, its FLOPs, its logits, however it was trained."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from adapters.checkpoints.checkpoint import load_weights, read_weights, save_weights
from adapters.mfm.branch import mfm_loss
from adapters.mfm.rebuilder import build_rebuilder
from adapters.networks.activation_checkpointing import checkpoint_encoder
from adapters.networks.build import build_network
from adapters.networks.network import SegmentationNetwork
from adapters.networks.step_rng import StepRng
from adapters.rounds.optim import build_optimizer
from configs.mfm import MfmSettings
from configs.network import Architecture, OptimSettings
from tests.sections import section

CLASSES = 5
NETWORKS = {
    "daformer": Architecture(name="daformer", encoder="mit_tiny", channels=32),
    "deeplabv2": Architecture(name="deeplabv2", encoder="resnet_tiny"),
    "deeplabv3plus": Architecture(name="deeplabv3plus", encoder="resnet_tiny", channels=32),
    "dinov2": Architecture(name="daformer", encoder="dinov2_tiny", channels=32),
}


def flops(network: SegmentationNetwork, images: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(images)
    return counter.get_total_flops()


def train(network: SegmentationNetwork) -> None:
    """One step of Masked Feature Modeling."""
    rebuilder = build_rebuilder(network.train(), (64, 64), section(MfmSettings, dim=32, heads=4, blocks=1))
    optimizer = build_optimizer(network, OptimSettings(), rebuilder=rebuilder, rebuilder_lr=1e-3)
    labels = torch.randint(0, CLASSES, (2, 64, 64))
    mfm_loss(network, rebuilder, torch.randn(2, 3, 64, 64), labels, torch.ones(2, 64, 64), StepRng(0)).backward()
    optimizer.step()


@pytest.mark.parametrize("name", NETWORKS)
def test_trained_with_mfm_it_is_the_plain_network(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    plain, trained = (build_network(NETWORKS[name], CLASSES) for _ in range(2))
    checkpoint_encoder(trained)
    train(trained)
    save_weights(trained, tmp_path / "weights.safetensors")
    exported = read_weights(tmp_path / "weights.safetensors")
    assert exported.keys() == plain.state_dict().keys()
    assert any(not torch.equal(value, plain.state_dict()[key]) for key, value in exported.items()), "nothing trained"
    images = torch.randn(1, 3, 96, 128)
    assert flops(trained, images) == flops(plain, images) > 1e6
    load_weights(plain, tmp_path / "weights.safetensors")
    with torch.no_grad():
        assert torch.equal(plain.eval()(images), trained.eval()(images))
