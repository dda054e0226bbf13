"""BatchNorm folded into convolutions: the same network, and only where it is sure to be."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.checkpoints.checkpoint import save_weights
from adapters.inference.folded import Folded
from adapters.inference.forward import ServedForward
from adapters.networks.build import build_network
from adapters.networks.decoders.depthwise import WIDE as WIDE_PADDING
from adapters.networks.decoders.depthwise import DepthwiseConv
from adapters.networks.decoders.winograd import WIDE, WinogradConv
from adapters.networks.network import SegmentationNetwork
from configs.serving import ServingSettings
from configs.settings import NetworkSettings

CPU = torch.device("cpu")
IMAGES = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(0))


def lived(network: nn.Module, seed: int = 0) -> nn.Module:
    """`network` in eval mode with statistics and weights in its BatchNorm as training leaves them."""
    random = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None and layer.running_var is not None:
            layer.running_mean.normal_(0, 0.2, generator=random)
            layer.running_var.uniform_(0.3, 2, generator=random)
            if layer.affine:
                nn.init.uniform_(layer.weight, 0.3, 2, generator=random)
                nn.init.normal_(layer.bias, 0, 0.2, generator=random)
    return network.eval()


def tiny(name: str, encoder: str, seed: int = 0) -> SegmentationNetwork:
    torch.manual_seed(seed)
    network = build_network(NetworkSettings(name=name, encoder=encoder, channels=16), 5)  # type: ignore[arg-type]
    lived(network, seed)
    return network


def norms_in(network: nn.Module) -> int:
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())


def folded(network: nn.Module, images: Tensor = IMAGES) -> tuple[Folded, Tensor]:
    """The folded form of a copy, and its logits."""
    made = Folded(copy.deepcopy(network))
    made.renew(images)
    with torch.inference_mode():
        return made, made.form(images)


@pytest.mark.parametrize(
    ("name", "encoder"), [("deeplabv3plus", "resnet_tiny"), ("deeplabv2", "resnet_tiny"), ("daformer", "mit_tiny")]
)
def test_every_norm_of_our_networks_is_folded_and_logits_stay(name: str, encoder: str) -> None:
    network = tiny(name, encoder)
    form, logits = folded(network)
    assert norms_in(network) == len(form) > 0 and norms_in(form.form) == 0
    with torch.inference_mode():
        torch.testing.assert_close(logits, network(IMAGES), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.Conv2d(3, 9, 1, bias=False),
        DepthwiseConv(3, 2),
        DepthwiseConv(3, WIDE_PADDING + 2),
    ],
)
@pytest.mark.parametrize("affine", [True, False])
def test_any_convolution_takes_its_norm(layer: nn.Conv2d, affine: bool) -> None:
    network = lived(nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels, affine=affine), nn.ReLU()))
    form, logits = folded(network)
    assert len(form) == 1 and norms_in(form.form) == 0
    with torch.inference_mode():
        torch.testing.assert_close(logits, network(IMAGES), rtol=1e-4, atol=1e-5)


def test_a_winograd_convolution_takes_its_norm() -> None:
    torch.manual_seed(0)
    maps = torch.randn(1, WIDE, 24, 24)
    network = lived(nn.Sequential(WinogradConv(WIDE, WIDE), nn.BatchNorm2d(WIDE)))
    form, logits = folded(network, maps)
    assert len(form) == 1
    with torch.inference_mode():
        torch.testing.assert_close(logits, network(maps), rtol=1e-3, atol=1e-4)


class Branches(nn.Module):
    """What must not be folded: a convolution read twice, one norm after two, and one after something else."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.norm, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.kind = kind

    def forward(self, images: Tensor) -> Tensor:
        first: Tensor = self.first(images)
        if self.kind == "two norms":
            answer = self.norm(first) - self.other(first)
        elif self.kind == "one norm for two":
            answer = self.norm(first) * self.norm(self.second(images))
        elif self.kind == "a sum before":
            answer = self.norm(first + self.second(images))
        elif self.kind == "changed in place":
            answer = self.norm(first.relu_())
        elif self.kind == "functional reader":
            answer = self.norm(first) + F.avg_pool2d(first, 3, stride=1, padding=1)
        else:
            answer = self.norm(first) if self.kind == "used once with, once without" else first
            answer = answer + self.first(images.flip(3))
        return torch.as_tensor(answer)


@pytest.mark.parametrize(
    "kind",
    [
        "two norms",
        "one norm for two",
        "a sum before",
        "changed in place",
        "functional reader",
        "used once with, once without",
    ],
)
def test_what_cannot_be_folded_runs_as_it_is(kind: str) -> None:
    torch.manual_seed(1)
    network = lived(Branches(kind))
    form, logits = folded(network)
    assert len(form) == 0 and norms_in(form.form) == norms_in(network)
    with torch.inference_mode():
        assert torch.equal(logits, network(IMAGES))


def test_a_norm_that_learns_from_each_batch_is_left() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    assert len(folded(network)[0]) == 0


def test_versions_loaded_one_after_the_other_each_answer_for_themselves(tmp_path: Path) -> None:
    forward = ServedForward(tiny("deeplabv3plus", "resnet_tiny"), ServingSettings(), CPU)
    for seed in (1, 2, 1):
        network = tiny("deeplabv3plus", "resnet_tiny", seed)
        save_weights(network, tmp_path / "w.safetensors")
        forward.load(tmp_path / "w.safetensors", IMAGES)
        forward.settle(IMAGES)  # once more changes nothing
        assert forward.layers_folded == norms_in(network)
        with torch.inference_mode():
            torch.testing.assert_close(forward(IMAGES), network(IMAGES), rtol=1e-4, atol=1e-5)


def loaded(forward: ServedForward, network: nn.Module, path: Path) -> Tensor:
    """Logits of `forward` after it loaded the weights of `network`."""
    save_weights(network, path)
    forward.load(path, IMAGES)
    with torch.inference_mode():
        return forward(IMAGES)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", ["changed in place", "functional reader"])
def test_what_shows_only_in_a_later_version_that_it_cannot_be_folded_is_served_as_it_is(
    kind: str, compiled: bool, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    fresh = Branches(kind).eval()
    assert isinstance(fresh.norm, nn.BatchNorm2d) and fresh.norm.running_var is not None
    fresh.norm.running_var.fill_(1 - fresh.norm.eps)  # it does nothing until it is trained
    forward = ServedForward(copy.deepcopy(fresh), ServingSettings(compile=compiled), CPU)  # type: ignore[arg-type]
    loaded(forward, fresh, tmp_path / "w.safetensors")
    assert forward.layers_folded == 1, "else this tests nothing"
    for seed in (2, 3):
        network = lived(Branches(kind), seed)
        logits = loaded(forward, network, tmp_path / "w.safetensors")
        with torch.inference_mode():
            assert forward.layers_folded == 0 and torch.equal(logits, network(IMAGES))


def test_broken_weights_after_good_ones_are_left_for_the_warm_up_and_decide_nothing(tmp_path: Path) -> None:
    network = tiny("deeplabv3plus", "resnet_tiny")
    forward = ServedForward(copy.deepcopy(network), ServingSettings(), CPU)
    loaded(forward, network, tmp_path / "w.safetensors")
    broken = copy.deepcopy(network)
    with torch.no_grad():
        for layer in broken.modules():
            if isinstance(layer, nn.BatchNorm2d) and layer.running_var is not None:
                layer.running_var.fill_(-1)  # finite, but its root is not
    assert not torch.isfinite(loaded(forward, broken, tmp_path / "w.safetensors")).all()
    good = loaded(forward, network, tmp_path / "w.safetensors")
    with torch.inference_mode():
        torch.testing.assert_close(good, network(IMAGES), rtol=1e-4, atol=1e-5)
    assert forward.layers_folded == norms_in(network)


def test_broken_weights_do_not_decide_for_those_to_come(tmp_path: Path) -> None:
    network = tiny("deeplabv3plus", "resnet_tiny")
    broken = copy.deepcopy(network)
    with torch.no_grad():
        for layer in broken.modules():
            if isinstance(layer, nn.BatchNorm2d) and layer.running_var is not None:
                layer.running_var.fill_(-1)  # finite, but its root is not
    forward = ServedForward(tiny("deeplabv3plus", "resnet_tiny", 2), ServingSettings(), CPU)
    save_weights(broken, tmp_path / "broken.safetensors")
    forward.load(tmp_path / "broken.safetensors", IMAGES)
    with torch.inference_mode():
        assert not torch.isfinite(forward(IMAGES)).all(), "left for the warm-up to refuse"
    save_weights(network, tmp_path / "w.safetensors")
    forward.load(tmp_path / "w.safetensors", IMAGES)
    assert forward.layers_folded == norms_in(network)
    with torch.inference_mode():
        torch.testing.assert_close(forward(IMAGES), network(IMAGES), rtol=1e-4, atol=1e-5)


def test_without_the_option_the_network_runs_as_it_is() -> None:
    network = tiny("deeplabv3plus", "resnet_tiny")
    forward = ServedForward(copy.deepcopy(network), ServingSettings(fold_batch_norm=False), CPU)
    forward.settle(IMAGES)
    with torch.inference_mode():
        assert forward.layers_folded == 0 and torch.equal(forward(IMAGES), network(IMAGES))


def test_folding_holds_no_second_copy_of_the_weights() -> None:
    form, _ = folded(tiny("deeplabv3plus", "resnet_tiny"))
    own = {tensor.data_ptr() for tensor in form._network.parameters()}
    new = [tensor for tensor in form.form.parameters() if tensor.data_ptr() not in own]
    assert all(tensor.dim() == 1 for tensor in new), "only biases are new"
