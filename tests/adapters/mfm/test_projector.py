"""The projectors: published stacks and sizes, and levels that are no power of two away."""

import pytest
import torch
from torch import nn

from adapters.mfm.targets import Projector
from adapters.networks.initialisation import LayerNorm2d


def layers(scale: int, channels: int) -> tuple[list[tuple[int, int]], int]:
    """Widths of the transposed convolutions, and the input width of the last 1x1."""
    projector = Projector(512, channels, scale)
    doublings = [layer for layer in projector.doublings if isinstance(layer, nn.ConvTranspose2d)]
    assert all(
        layer.kernel_size == (4, 4) and layer.stride == (2, 2) and layer.padding == (1, 1) for layer in doublings
    )
    return [(layer.in_channels, layer.out_channels) for layer in doublings], projector.output.in_features


@pytest.mark.parametrize(
    ("scale", "channels", "widths", "millions"),
    [
        (1, 512, [], 0.264),
        (2, 320, [(512, 256)], 2.180),
        (4, 128, [(512, 256), (256, 128)], 2.639),
        (8, 64, [(512, 256), (256, 128), (128, 128)], 2.893),
        (16, 64, [(512, 256), (256, 128), (128, 128), (128, 128)], 3.156),
    ],
)
def test_stacks_are_the_published_ones(scale, channels, widths, millions) -> None:
    """As in the published rebuilder.py; x16 goes on in the same way."""
    found, last = layers(scale, channels)
    assert found == widths
    assert last == (widths[-1][1] if widths else 512)
    projector = Projector(512, channels, scale)
    count = sum(parameter.numel() for parameter in projector.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.0006)
    between = [type(layer) for layer in projector.doublings]
    one = [nn.ConvTranspose2d]
    assert between == one * min(1, len(widths)) + [LayerNorm2d, nn.GELU, nn.ConvTranspose2d] * max(0, len(widths) - 1)
    assert all(layer.approximate == "none" for layer in projector.doublings if isinstance(layer, nn.GELU))
    assert projector.norm.normalized_shape == (channels,)


@pytest.mark.parametrize(
    ("ratio", "scale"), [(1.0, 1), (1.3, 1), (1.44, 2), (2.3125, 2), (3.0, 4), (5.6, 4), (12.0, 16), (0.5, 1)]
)
def test_scale_is_the_nearest_power_of_two(ratio, scale) -> None:
    raised = Projector(16, 8, ratio).doublings(torch.zeros(1, 16, 3, 3))
    assert raised.shape[-1] == 3 * scale


@pytest.mark.parametrize(("ratio", "size"), [(2.3125, (37, 37)), (2.0, (32, 31)), (16.0, (250, 256)), (4.0, (64, 64))])
def test_ends_with_a_layer_norm_at_the_size_of_the_level(ratio, size) -> None:
    torch.manual_seed(0)
    rebuilt = Projector(16, 8, ratio)(torch.randn(2, 16, 16, 16), size)
    assert rebuilt.shape == (2, 8, *size)
    torch.testing.assert_close(rebuilt.mean(dim=1), torch.zeros(2, *size), atol=1e-5, rtol=0)
    assert (rebuilt.var(dim=1, unbiased=False) > 0.9).float().mean() > 0.95


def test_the_last_linear_layer_is_a_1x1_convolution() -> None:
    torch.manual_seed(0)
    projector, tokens = Projector(16, 8, 1.0), torch.randn(2, 16, 5, 7)
    weight = projector.output.weight[:, :, None, None]
    expected = LayerNorm2d(8)(nn.functional.conv2d(tokens, weight, projector.output.bias))
    torch.testing.assert_close(projector(tokens, (5, 7)), expected)
