"""The 3x3 convolution by Winograd: answer and gradients of the plain one but for rounding; elsewhere the plain one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adapters.networks.decoders import winograd
from adapters.networks.decoders.layers import conv_norm_relu
from adapters.networks.decoders.winograd import SMALL, WIDE, WinogradConv


def pair(inputs: int = WIDE, outputs: int = WIDE + 3) -> tuple[WinogradConv, nn.Conv2d]:
    torch.manual_seed(0)
    ours = WinogradConv(inputs, outputs)
    plain = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def answers_of(layer: nn.Conv2d, maps: torch.Tensor, upstream: torch.Tensor) -> list[torch.Tensor]:
    seen = maps.clone().requires_grad_()
    output = layer(seen)
    return [output.detach(), *torch.autograd.grad(output, (seen, layer.weight), upstream)]


@pytest.mark.parametrize("size", [(16, 16), (17, 22), (35, 19)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("strip", [1, 9, winograd.STRIP])
def test_answers_and_gradients_are_those_of_the_plain_convolution(size, layout, strip, monkeypatch) -> None:
    monkeypatch.setattr(winograd, "STRIP", strip)
    ours, plain = pair()
    maps = torch.randn(2, WIDE, *size).relu().to(memory_format=layout)
    upstream = torch.randn(2, WIDE + 3, *size)
    assert ours._pays(maps)
    for mine, theirs in zip(answers_of(ours, maps, upstream), answers_of(plain, maps, upstream), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=3e-5 * float(theirs.abs().max()))


def test_rounding_is_a_few_times_that_of_the_plain_convolution() -> None:
    ours, plain = pair()
    maps, upstream = torch.randn(2, WIDE, 32, 32).relu(), torch.randn(2, WIDE + 3, 32, 32)
    mine, theirs = answers_of(ours, maps, upstream), answers_of(plain, maps, upstream)
    exact = answers_of(plain.double(), maps.double(), upstream.double())
    for one, other, truth in zip(mine, theirs, exact, strict=True):
        scale = truth.norm()
        assert (other - truth).norm() / scale < (one - truth).norm() / scale < 1e-5


def test_only_the_gradient_that_is_asked_for_is_computed() -> None:
    ours, plain = pair()
    ours.requires_grad_(False)
    maps = torch.randn(1, WIDE, 16, 16, requires_grad=True)
    (mine,) = torch.autograd.grad(ours(maps).square().sum(), maps)
    (theirs,) = torch.autograd.grad(plain(maps).square().sum(), maps)
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    assert ours.weight.grad is None


@pytest.mark.parametrize(
    "maps",
    [
        torch.zeros(1, WIDE, SMALL - 1, 32),
        torch.zeros(1, WIDE, 32, 32, dtype=torch.float64),
        torch.zeros(1, WIDE, 32, 32, device="meta"),
    ],
    ids=["small", "double", "meta"],
)
def test_elsewhere_it_is_the_plain_convolution(maps) -> None:
    ours, _ = pair()
    assert not ours._pays(maps)
    assert not WinogradConv(WIDE - 1, WIDE)._pays(torch.zeros(1, WIDE - 1, 32, 32))


def test_under_autocast_it_is_the_plain_convolution() -> None:
    ours, plain = pair()
    maps = torch.randn(1, WIDE, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ours(maps), plain(maps))


def test_maps_leave_channels_last() -> None:
    ours, _ = pair()
    assert ours(torch.randn(2, WIDE, 18, 16)).is_contiguous(memory_format=torch.channels_last)


def test_checkpoints_keep_their_keys() -> None:
    """Weights of versions that are already registered must still load."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert set(conv_norm_relu(4, 4, kernel=3).state_dict()) == {"0.weight", *(f"1.{name}" for name in norm)}


def test_an_exported_graph_holds_the_plain_convolution() -> None:
    """Serving elsewhere must not inherit what helps a CPU here."""
    ours, plain = pair()
    exported = torch.export.export(ours, (torch.randn(1, WIDE, 16, 16),))
    calls = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert calls == ["aten.conv2d.default"]
    maps = torch.randn(1, WIDE, 16, 16)
    torch.testing.assert_close(exported.module()(maps), F.conv2d(maps, plain.weight, padding=1))
