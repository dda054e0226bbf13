"""Dense 3x3 convolution with a quarter of the multiplications, for wide layers on CPUs."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

OUT, IN = 4, 6
"""Sides of a tile: what it answers, and what it reads for that."""
WIDE = 128
"""Channels, in and out, from which on the transforms cost less than they save."""
SMALL = 16
"""Side of a map from which on they do (positions)."""
STRIP = 256
"""Tiles transformed at a time, at most: their copies (36 values a channel) stay a small part of the maps."""
_READ = torch.tensor(
    [
        [4.0, 0.0, -5.0, 0.0, 1.0, 0.0],
        [0.0, -4.0, -4.0, 1.0, 1.0, 0.0],
        [0.0, 4.0, -4.0, -1.0, 1.0, 0.0],
        [0.0, -2.0, -1.0, 2.0, 1.0, 0.0],
        [0.0, 2.0, -1.0, -2.0, 1.0, 0.0],
        [0.0, 4.0, 0.0, -5.0, 0.0, 1.0],
    ]
)
_WEIGHT = torch.tensor([[6.0, 0.0, 0.0], [-4.0, -4.0, -4.0], [-4.0, 4.0, -4.0], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
_ANSWER = torch.tensor(
    [
        [1.0, 1.0, 1.0, 1.0, 1.0, 0.0],
        [0.0, 1.0, -1.0, 2.0, -2.0, 0.0],
        [0.0, 1.0, 1.0, 4.0, 4.0, 0.0],
        [0.0, 1.0, -1.0, 8.0, -8.0, 1.0],
    ]
)
READ, WEIGHT, ANSWER = (torch.kron(matrix, matrix) for matrix in (_READ, _WEIGHT, _ANSWER))
"""B^T, G, A^T of F(4x4, 3x3), whole tiles: [36, 36], [36, 9], [16, 36] (Lavin and Gray 2016, arXiv 1509.09308)."""


class WinogradConv(nn.Conv2d):
    """A 3x3 convolution, padding 1, made without bias: `[B, inputs, H, W]` -> `[B, outputs, H, W]`; same weights, keys.

    On a CPU in float32, wide layers answer 4x4 tiles by 36 products a pair of channels instead of 144 (Winograd), in
    both directions: exact but for rounding, which is about three times the plain convolution's (tested). Everywhere
    else it is the plain convolution.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Convolve `maps`; their sides stay the same."""
        if torch.compiler.is_compiling() or not self._pays(maps):
            return super().forward(maps)
        answer: Tensor = _Winograd.apply(maps, self.weight)  # type: ignore[no-untyped-call]
        return answer if self.bias is None else answer + self.bias.view(-1, 1, 1)

    def _pays(self, maps: Tensor) -> bool:
        return (
            maps.device.type == "cpu"
            and maps.dtype == self.weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and min(self.in_channels, self.out_channels) >= WIDE
            and min(maps.shape[-2:]) >= SMALL
        )


class _Winograd(torch.autograd.Function):
    """Neither direction keeps transformed maps: transforming them again is cheaper than holding 2.25 times as much."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(maps, weight)
        return _correlate(maps, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        maps, weight = ctx.saved_tensors
        for_maps, for_weight = ctx.needs_input_grad
        turned = weight.flip(2, 3).transpose(0, 1)
        return (
            _correlate(gradient, turned) if for_maps else None,
            _weight_gradient(maps, gradient) if for_weight else None,
        )


def _correlate(maps: Tensor, weight: Tensor) -> Tensor:
    """3x3 correlation of `maps` [B, C, H, W] with `weight` [K, C, 3, 3], [B, K, H, W] channels-last."""
    batch, channels, height, width = maps.shape
    outputs = weight.shape[0]
    kernels = (WEIGHT @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(IN * IN, channels, outputs)
    padded = _padded(maps)
    rows, columns = _tiles(height), _tiles(width)
    answer = maps.new_empty(batch, rows, OUT, columns, OUT, outputs)
    for image in range(batch):
        for strip in _strips(rows, columns):
            products = torch.bmm(_read(padded[image], strip, columns).transpose(0, 1), kernels)  # [36, tiles, K]
            tiles = torch.matmul(ANSWER, products.transpose(0, 1)).view(-1, columns, OUT, OUT, outputs)
            answer[image, strip] = tiles.transpose(1, 2)
    pixels = answer.view(batch, rows * OUT, columns * OUT, outputs)[:, :height, :width]
    return pixels.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _weight_gradient(maps: Tensor, gradient: Tensor) -> Tensor:
    """Gradient [K, C, 3, 3] of `_correlate` for its weights, from its `maps` and `gradient` [B, K, H, W]."""
    batch, outputs, height, width = gradient.shape
    rows, columns = _tiles(height), _tiles(width)
    padded, pixels = _padded(maps), gradient.permute(0, 2, 3, 1)
    pixels = F.pad(pixels, (0, 0, 0, columns * OUT - width, 0, rows * OUT - height))
    pixels = pixels.view(batch, rows, OUT, columns, OUT, outputs)
    total = maps.new_zeros(IN * IN, maps.shape[1], outputs)
    for image in range(batch):
        for strip in _strips(rows, columns):
            tiles = pixels[image, strip].transpose(1, 2).reshape(-1, OUT * OUT, outputs)
            answers = torch.matmul(ANSWER.t(), tiles).transpose(0, 1)  # [36, tiles, K]
            total.baddbmm_(_read(padded[image], strip, columns).permute(1, 2, 0), answers)
    return (WEIGHT.t() @ total.flatten(1)).view(3, 3, -1, outputs).permute(3, 2, 0, 1)


def _tiles(side: int) -> int:
    return -(-side // OUT)


def _strips(rows: int, columns: int) -> list[slice]:
    """Rows of tiles, some at a time."""
    step = max(1, STRIP // columns)
    return [slice(first, min(rows, first + step)) for first in range(0, rows, step)]


def _padded(maps: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, 4 rows + 2, 4 columns + 2, C], contiguous: every tile with its margin."""
    height, width = maps.shape[-2:]
    below, right = _tiles(height) * OUT + 1 - height, _tiles(width) * OUT + 1 - width
    return F.pad(maps.permute(0, 2, 3, 1), (0, 0, 1, right, 1, below)).contiguous()


def _read(image: Tensor, strip: slice, columns: int) -> Tensor:
    """Tiles of a padded `image` [H', W', C] in rows `strip`, transformed: [tiles, 36, C]."""
    down, right, _ = image.stride()
    part = image[strip.start * OUT :]
    shape = (strip.stop - strip.start, columns, IN, IN, image.shape[-1])
    tiles = part.as_strided(shape, (OUT * down, OUT * right, down, right, 1), part.storage_offset())
    return torch.matmul(READ, tiles.reshape(-1, IN * IN, image.shape[-1]))
