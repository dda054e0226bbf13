"""The dilated depthwise convolution: the plain one's answer and gradients, whatever way it takes."""

import pytest
import torch
from torch import nn

from adapters.networks.decoders.layers import WIDE, DepthwiseConv, separable_conv

CHANNELS = 6


def pair(dilation: int) -> tuple[DepthwiseConv, nn.Conv2d]:
    torch.manual_seed(0)
    ours = DepthwiseConv(CHANNELS, dilation)
    plain = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=dilation, dilation=dilation, groups=CHANNELS, bias=False)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


@pytest.mark.parametrize("dilation", [1, 2, 3, 6, WIDE + 1, 18])
@pytest.mark.parametrize("size", [(16, 16), (9, 13), (4, 5)])
def test_answers_and_gradients_are_those_of_the_plain_convolution(dilation, size) -> None:
    ours, plain = pair(dilation)
    maps = torch.randn(2, CHANNELS, *size).to(memory_format=torch.channels_last)
    upstream = torch.randn(2, CHANNELS, *size)
    answers = []
    for layer in (ours, plain):
        seen = maps.clone().requires_grad_()
        output = layer(seen)
        answers.append([output, *torch.autograd.grad(output, (seen, layer.weight), upstream)])
    for mine, theirs in zip(*answers, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(ours(maps), plain(maps), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dilation", [1, 3, 12])
def test_maps_stay_channels_last(dilation) -> None:
    ours, _ = pair(dilation)
    ours.to(memory_format=torch.channels_last)
    output = ours(torch.randn(2, CHANNELS, 10, 12).to(memory_format=torch.channels_last))
    assert output.is_contiguous(memory_format=torch.channels_last)


def test_checkpoints_keep_their_keys() -> None:
    """Weights of versions that are already registered must still load."""
    names = ["0.0.weight", "1.0.weight"]
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {*names, *(f"{part}.{name}" for part in ("0.1", "1.1") for name in norm)}
    assert set(separable_conv(CHANNELS, 4, 3).state_dict()) == expected


def test_an_exported_graph_holds_the_plain_convolution() -> None:
    """Serving elsewhere must not inherit what helps a CPU here."""
    ours, plain = pair(9)
    exported = torch.export.export(ours, (torch.randn(1, CHANNELS, 16, 16),))
    calls = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert calls == ["aten.conv2d.default"]
    maps = torch.randn(1, CHANNELS, 16, 16)
    torch.testing.assert_close(exported.module()(maps), plain(maps))
