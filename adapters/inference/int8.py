"""Convolutions and linear layers on a CPU in int8: weights by output channel, activations by tensor.

Both kinds run in oneDNN, which takes 8-bit inputs and gives float32, so only layers that gain are exchanged and all
the rest of a network stays as it is. Post-training, static: activation ranges are measured on images beforehand.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from adapters.inference.int8_weights import INPUT_STEPS, by_channel
from adapters.networks.decoders.winograd import WinogradConv

COLOURS = 3
_NONE: tuple[str, list[float], str] = ("none", [], "")
"""What oneDNN does after the product: nothing."""


class Range(NamedTuple):
    """Least and greatest value of a layer's inputs; zero lies within."""

    low: float
    high: float

    @property
    def scale(self) -> float:
        """Width of one of 255 steps."""
        return max(self.high - self.low, 1e-8) / INPUT_STEPS

    @property
    def zero_point(self) -> int:
        """The step that stands for 0.0."""
        return round(-self.low / self.scale)

    def with_values(self, values: Tensor) -> "Range":
        """The range that also covers `values`."""
        low, high = torch.aminmax(values)
        return Range(min(self.low, float(low)), max(self.high, float(high)))


class Int8Conv2d(nn.Module):
    """A convolution `[B, C, H, W]` with 8-bit inputs and weights; float32 in and out."""

    def __init__(self, layer: nn.Conv2d, inputs: Range) -> None:
        super().__init__()
        self._inputs = inputs
        self._geometry = (list(layer.stride), [int(side) for side in layer.padding], list(layer.dilation), layer.groups)
        weights, self._scales, self._zeros = by_channel(layer.weight)
        self._weights = torch.ops.onednn.qconv_prepack(
            weights, self._scales, inputs.scale, inputs.zero_point, *self._geometry, None
        )
        self._bias = None if layer.bias is None else layer.bias.detach()

    def forward(self, images: Tensor) -> Tensor:
        """The convolution of `images`."""
        scale, zero = self._inputs.scale, self._inputs.zero_point
        steps = _to_steps(images.contiguous(memory_format=torch.channels_last), scale, zero)
        weights = (self._weights, self._scales, self._zeros, self._bias)
        answer: Tensor = torch.ops.onednn.qconv2d_pointwise(
            steps, scale, zero, *weights, *self._geometry, 1.0, 0, torch.float32, *_NONE
        )
        return answer


class Int8Linear(nn.Module):
    """A linear layer `[..., C]` with 8-bit inputs and weights; float32 in and out."""

    def __init__(self, layer: nn.Linear, inputs: Range) -> None:
        super().__init__()
        self._inputs = inputs
        weights, self._scales, self._zeros = by_channel(layer.weight)
        self._weights = torch.ops.onednn.qlinear_prepack(weights, None)
        self._bias = None if layer.bias is None else layer.bias.detach()

    def forward(self, values: Tensor) -> Tensor:
        """The layer's output for `values`."""
        scale, zero = self._inputs.scale, self._inputs.zero_point
        weights = (self._weights, self._scales, self._zeros, self._bias)
        answer: Tensor = torch.ops.onednn.qlinear_pointwise(
            _to_steps(values.contiguous(), scale, zero), scale, zero, *weights, 1.0, 0, torch.float32, *_NONE
        )
        return answer


class Int8Pointwise(nn.Module):
    """A convolution with 1x1 kernels as a linear layer: as a convolution it takes oneDNN up to ten times as long."""

    def __init__(self, layer: nn.Conv2d, inputs: Range) -> None:
        super().__init__()
        flat = nn.Linear(layer.in_channels, layer.out_channels, bias=layer.bias is not None, device="meta")
        flat.weight = nn.Parameter(layer.weight.detach().flatten(1), requires_grad=False)
        if layer.bias is not None:
            flat.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
        self._linear = Int8Linear(flat, inputs)
        self._down, self._across = layer.stride

    def forward(self, images: Tensor) -> Tensor:
        """The convolution of `images`."""
        answer: Tensor = self._linear(images[..., :: self._down, :: self._across].permute(0, 2, 3, 1))
        return answer.permute(0, 3, 1, 2)


@torch.inference_mode()
def quantized(network: nn.Module, images: Sequence[Tensor]) -> nn.Module:
    """A copy of `network` in eval mode that runs in int8 where that pays; all other weights are shared with it.

    `images`, normalised `[B, 3, H, W]`, set the ranges of activations. Layers that they never reach stay float.
    """
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    twin = copy.deepcopy(network, shared)
    ranges = _ranges(twin, images)
    for parent, name, layer in list(_layers(twin)):
        if layer in ranges:
            setattr(parent, name, _exchange(layer, ranges[layer]))
    return twin


def _exchange(layer: nn.Module, inputs: Range) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return Int8Linear(layer, inputs)
    assert isinstance(layer, nn.Conv2d)
    pointwise = layer.kernel_size == (1, 1) and not any(layer.padding)
    return Int8Pointwise(layer, inputs) if pointwise else Int8Conv2d(layer, inputs)


def _layers(network: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Parent, name and layer of everything that gains from int8."""
    for parent in network.modules():
        for name, child in parent.named_children():
            if _gains(child):
                yield parent, name, child


def _gains(layer: nn.Module) -> bool:
    """Depthwise convolutions are bound by memory, not arithmetic; subclasses may do more than the layer they extend.

    A layer that reads the image itself stays float: it is cheap, and most of what int8 changes comes from there (labels
    as in float32 on unfamiliar images: 97.0 % with it, 99.0 % without; docs/benchmarks.md).
    """
    if type(layer) in (nn.Conv2d, WinogradConv):
        assert isinstance(layer, nn.Conv2d)
        return (
            layer.groups == 1
            and layer.in_channels > COLOURS
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
        )
    return type(layer) is nn.Linear


def _ranges(network: nn.Module, images: Sequence[Tensor]) -> dict[nn.Module, Range]:
    ranges: dict[nn.Module, Range] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        ranges[layer] = ranges.get(layer, Range(0.0, 0.0)).with_values(inputs[0])

    handles = [layer.register_forward_pre_hook(note) for layer in {layer for _, _, layer in _layers(network)}]
    try:
        for batch in images:
            network(batch)
    finally:
        for handle in handles:
            handle.remove()
    return ranges


def _to_steps(values: Tensor, scale: float, zero_point: int) -> Tensor:
    """Values as 8-bit steps, rounded to the nearest, cut off at the ends of the range."""
    shifted = torch.add(values.new_tensor(zero_point + 0.5), values, alpha=1 / scale)
    return shifted.clamp_(0, INPUT_STEPS).to(torch.uint8)
