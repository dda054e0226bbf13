"""Recomputed activations: same loss, same gradients, same statistics, same keys, less memory kept."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapters.networks.activation_checkpointing import blocks_of, checkpoint_encoder
from adapters.networks.build import build_network
from adapters.networks.huggingface.models import build_huggingface
from adapters.networks.network import SegmentationNetwork
from configs.network import Architecture
from tests.adapters.tiny_models import CLASSES, ROWS, model

NATIVE = {
    "mit": Architecture(name="daformer", encoder="mit_tiny", channels=16),
    "resnet": Architecture(name="deeplabv3plus", encoder="resnet_tiny", channels=16),
    "dinov2_pyramid": Architecture(name="daformer", encoder="dinov2_tiny", channels=16),
    "dinov2_map": Architecture(name="deeplabv2", encoder="dinov2_tiny"),
    "vfm": Architecture(name="pyramid", encoder="dinov3_adapter_tiny"),
}


@pytest.fixture(params=[*NATIVE, *ROWS])
def network(request: pytest.FixtureRequest) -> SegmentationNetwork:
    torch.set_num_threads(1)
    if request.param in NATIVE:
        torch.manual_seed(0)
        made = build_network(NATIVE[request.param], CLASSES)
    else:
        config = model(request.param).config.to_dict()
        made = build_huggingface(Architecture(name="huggingface", hf_config=config), CLASSES)[0]
    for layer in made.encoder.modules():
        if "droppath" in type(layer).__name__.lower():
            layer.drop_prob = 0.5  # random numbers that must repeat
        elif isinstance(layer, nn.Dropout):
            layer.p = 0.3
    return made.train()


def step(network: SegmentationNetwork) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one batch, drawn and dropped with a seed of their own."""
    torch.manual_seed(1)
    loss = F.cross_entropy(network(torch.randn(2, 3, 64, 96)), torch.randint(0, CLASSES, (2, 64, 96)))
    loss.backward()
    return loss.detach(), {key: value.grad for key, value in network.named_parameters() if value.grad is not None}


def test_gradients_statistics_and_keys_are_the_same(network: SegmentationNetwork) -> None:
    plain = copy.deepcopy(network)
    checkpoint_encoder(network)
    assert list(network.state_dict()) == list(plain.state_dict())
    expected_loss, expected = step(plain)
    loss, found = step(network)
    assert torch.equal(loss, expected_loss)
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, atol=1e-6, rtol=1e-4, msg=key)
    for key, buffer in plain.named_buffers():
        assert torch.equal(dict(network.named_buffers())[key], buffer), f"{key}: recorded twice"


def test_most_of_every_encoder_is_recomputed(network: SegmentationNetwork) -> None:
    blocks = blocks_of(network.encoder)
    assert len(blocks) > 1
    inside = {id(value) for block in blocks for value in block.parameters()}
    neck = [value for key, value in network.encoder.named_parameters() if not key.startswith(("neck.", "reassemble."))]
    assert sum(value.numel() for value in neck if id(value) in inside) > 0.5 * sum(value.numel() for value in neck)


def saved_bytes(run: Callable[[], object]) -> int:
    """Bytes that autograd keeps for the backward pass of `run`."""
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(sizes.values())


def test_less_is_kept_for_the_backward_pass(network: SegmentationNetwork) -> None:
    images = torch.randn(2, 3, 96, 96)
    weights = sum(value.nbytes for value in network.parameters())
    before = saved_bytes(lambda: network.encode(images))
    checkpoint_encoder(network)
    after = saved_bytes(lambda: network.encode(images))
    assert after < 0.75 * before, (after, before, weights)


@torch.no_grad()
def test_serving_and_teachers_are_left_alone(network: SegmentationNetwork) -> None:
    """Without gradients there is nothing to recompute; a copy of a checkpointed network works on its own weights."""
    checkpoint_encoder(network)
    twin = copy.deepcopy(network).eval()
    network.eval()
    images = torch.randn(1, 3, 64, 64)
    before = network(images)
    assert torch.equal(twin(images), before)
    for value in twin.encoder.parameters():
        value.add_(0.1)
    assert torch.equal(network(images), before)
    assert not torch.equal(twin(images), before)
