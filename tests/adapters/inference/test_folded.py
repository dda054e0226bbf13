"""BatchNorm folded into convolutions: the same network, and only where it is sure to be."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from adapters.checkpoints.checkpoint import save_weights
from adapters.inference.copying import CHUNK_ELEMENTS, copy_weights
from adapters.inference.folded import fold_batch_norm
from adapters.inference.forward import ServedForward
from adapters.networks.build import build_network
from adapters.networks.decoders.layers import WIDE as WIDE_PADDING
from adapters.networks.decoders.layers import DepthwiseConv
from adapters.networks.network import SegmentationNetwork
from configs.network import Architecture
from configs.serving import ServingSettings
from storage.errors import CorruptCheckpoint
from tests.sections import section

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
    network = build_network(Architecture(name=name, encoder=encoder, channels=16), 5)  # type: ignore[arg-type]
    lived(network, seed)
    return network


def norms_in(network: nn.Module) -> int:
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())


def folded(network: nn.Module) -> nn.Module:
    """A copy of `network`, folded where that is possible."""
    form = copy.deepcopy(network)
    fold_batch_norm(form)
    return form


@pytest.mark.parametrize(
    ("name", "encoder"), [("deeplabv3plus", "resnet_tiny"), ("deeplabv2", "resnet_tiny"), ("daformer", "mit_tiny")]
)
def test_every_norm_of_our_networks_is_folded_and_logits_stay(name: str, encoder: str) -> None:
    network = tiny(name, encoder)
    form = folded(network)
    assert norms_in(network) > 0 and norms_in(form) == 0
    with torch.inference_mode():
        torch.testing.assert_close(form(IMAGES), network(IMAGES), rtol=1e-4, atol=1e-5)


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
    form = folded(network)
    assert norms_in(form) == 0
    with torch.inference_mode():
        torch.testing.assert_close(form(IMAGES), network(IMAGES), rtol=1e-4, atol=1e-5)


class Branches(nn.Module):
    """What must not be folded: a convolution read twice, one norm after two, and one after something else."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)  # neighbours, so tried as a pair
        self.second, self.other = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
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
    form = folded(network)
    assert norms_in(form) == norms_in(network)
    with torch.inference_mode():
        assert torch.equal(form(IMAGES), network(IMAGES))


@pytest.mark.parametrize("kind", ["changed in place", "functional reader"])
def test_it_is_seen_on_fresh_weights_too_whose_norms_do_nothing(kind: str) -> None:
    network = Branches(kind).eval()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.zeros_(layer.weight)
    assert norms_in(folded(network)) == norms_in(network)


def test_a_norm_that_learns_from_each_batch_is_left() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    assert norms_in(folded(network)) == 1


def loaded(forward: ServedForward, network: nn.Module, path: Path) -> Tensor:
    """Logits of `forward` after it loaded the weights of `network`."""
    save_weights(network, path)
    forward.load(path)
    with torch.inference_mode():
        return forward(IMAGES)


def test_versions_loaded_one_after_the_other_each_answer_for_themselves(tmp_path: Path) -> None:
    forward = ServedForward(tiny("deeplabv3plus", "resnet_tiny"), ServingSettings(), CPU)
    tensors = {name: tensor.data_ptr() for name, tensor in forward.network.state_dict().items()}
    assert norms_in(forward.network) == 0
    for seed in (1, 2, 1):
        network = tiny("deeplabv3plus", "resnet_tiny", seed)
        logits = loaded(forward, network, tmp_path / "w.safetensors")
        with torch.inference_mode():
            torch.testing.assert_close(logits, network(IMAGES), rtol=1e-4, atol=1e-5)
            assert torch.equal(logits, ServedForward(network, ServingSettings(), CPU)(IMAGES)), "as folded in place"
    same = {name: tensor.data_ptr() for name, tensor in forward.network.state_dict().items()}
    assert same == tensors, "copied into the same memory, without a second copy of the weights"


@pytest.mark.parametrize("affine", [True, False])
def test_large_layers_are_folded_in_chunks(tmp_path: Path, affine: bool) -> None:
    network = lived(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3000, 3), nn.BatchNorm2d(3000, affine=affine)))
    form = copy.deepcopy(network)
    plain, pairs = network.state_dict(), fold_batch_norm(form)
    assert len(pairs) == 1 and plain["1.weight"].numel() > 3 * CHUNK_ELEMENTS
    other = lived(copy.deepcopy(network), seed=1)
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    copy_weights(form, tmp_path / "w.safetensors", plain=plain, pairs=pairs)
    with torch.inference_mode():
        torch.testing.assert_close(form(IMAGES), other(IMAGES), rtol=1e-4, atol=1e-5)


def test_a_file_of_folded_weights_or_without_a_norm_does_not_fit(tmp_path: Path) -> None:
    forward = ServedForward(tiny("deeplabv3plus", "resnet_tiny"), ServingSettings(), CPU)
    save_weights(forward.network, tmp_path / "folded.safetensors")
    with pytest.raises(CorruptCheckpoint, match="lacks"):
        forward.load(tmp_path / "folded.safetensors")


@pytest.mark.parametrize("name", ["running_var", "weight"])
def test_a_value_of_a_norm_that_is_not_finite_is_refused(tmp_path: Path, name: str) -> None:
    network = tiny("deeplabv3plus", "resnet_tiny")
    forward = ServedForward(copy.deepcopy(network), ServingSettings(), CPU)
    norm = next(layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d))
    with torch.no_grad():
        getattr(norm, name)[0] = float("inf")
    with pytest.raises(CorruptCheckpoint, match=f"non-finite values in .*{name}"):
        loaded(forward, network, tmp_path / "w.safetensors")


def test_broken_weights_are_left_for_the_warm_up_and_decide_nothing(tmp_path: Path) -> None:
    network = tiny("deeplabv3plus", "resnet_tiny")
    broken = copy.deepcopy(network)
    with torch.no_grad():
        for layer in broken.modules():
            if isinstance(layer, nn.BatchNorm2d) and layer.running_var is not None:
                layer.running_var.fill_(-1)  # finite, but its root is not
    forward = ServedForward(tiny("deeplabv3plus", "resnet_tiny", 2), ServingSettings(), CPU)
    assert not torch.isfinite(loaded(forward, broken, tmp_path / "w.safetensors")).all()
    good = loaded(forward, network, tmp_path / "w.safetensors")
    with torch.inference_mode():
        torch.testing.assert_close(good, network(IMAGES), rtol=1e-4, atol=1e-5)


def test_without_the_option_the_network_runs_as_it_is() -> None:
    network = tiny("deeplabv3plus", "resnet_tiny")
    forward = ServedForward(copy.deepcopy(network), section(ServingSettings, fold_batch_norm=False), CPU)
    with torch.inference_mode():
        assert norms_in(forward.network) > 0 and torch.equal(forward(IMAGES), network(IMAGES))
