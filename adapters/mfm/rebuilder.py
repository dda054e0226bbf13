"""The Rebuilder of Masked Feature Modeling (Zhou et al., arXiv 2509.13801).

It exists in training only. It replaces masked cells of the deepest map by a token, fills them from the kept cells, and
writes the filled cells into every level. A serving checkpoint never contains it. docs/explanation/mfm.md has the
equations.
"""

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adapters.mfm.feature_mask import grid_of, paste, resize_to_grid
from adapters.mfm.targets import Projector
from adapters.networks.network import SegmentationNetwork
from adapters.networks.step_rng import StepRng
from configs.mfm import MfmAblation, MfmSettings

PATCH = 16
"""Side of a masked cell when pixels are the target (pixels, MAE's patch); a cell is resized to it."""


class Rebuilder(nn.Module):
    """Mask, rebuild, paste: `forward(features, keep)` returns the maps with their masked cells rebuilt.

    `feature_channels` and `feature_sizes` describe the maps of `SegmentationNetwork.encode`, deepest last, at the crop
    size of training. They fix the up-scaling of each projector. Maps of other sizes still work: the grid follows the
    deepest map, and projectors resize where sizes do not divide.

    It holds only what `settings` need: a head for pixels instead of projectors when pixels are the target, and no
    parameters at all when nothing is rebuilt (`MfmSettings.rebuilds`).
    """

    def __init__(
        self, feature_channels: Sequence[int], feature_sizes: Sequence[Sequence[int]], settings: MfmSettings
    ) -> None:
        super().__init__()
        self.settings = settings
        if not settings.rebuilds:
            return
        size = settings.ablation
        rows, columns = grid_of(feature_sizes[-1], size.grid)
        self.embedding = nn.Linear(feature_channels[-1], size.dim)
        self.mask_token = nn.Parameter(torch.zeros(1, size.dim, 1, 1))
        self.transformer = _transformer(size)
        if size.reconstruction == "pixels":
            self.pixel_head = nn.Conv2d(size.dim, 3 * PATCH**2, 1)
        else:
            self.projectors = nn.ModuleList(
                Projector(size.dim, channels, math.sqrt(height * width / (rows * columns)))
                for channels, (height, width) in zip(feature_channels, feature_sizes, strict=True)
            )
        _initialise(self)

    def forward(self, features: Sequence[Tensor], keep: Tensor) -> tuple[Tensor, ...]:
        """Return the maps `[B, C_l, H_l, W_l]` with the cells rebuilt that are false in `keep`.

        `keep` is bool `[B, 1, rows, columns]`. Kept cells are the original values bit for bit. Nothing is detached: the
        encoder learns through kept cells that are pasted and through kept cells that are attended to. `mask_only`
        leaves zeros in masked cells. At a mask ratio of 0 the maps are returned unchanged.
        """
        if self.settings.mask_ratio == 0.0:
            return tuple(features)
        if not self.settings.rebuilds:
            return tuple(paste(level, level.new_zeros(()), keep) for level in features)
        filled = self.fill(features[-1], keep)
        return tuple(
            paste(level, projector(filled, level.shape[-2:]), keep)
            for level, projector in zip(features, self.projectors, strict=True)
        )

    def fill(self, deepest: Tensor, keep: Tensor) -> Tensor:
        """Return tokens `[B, dim, rows, columns]` of the deepest map `[B, C, H, W]`, masked ones filled from kept ones.

        The order is resize, embed, replace masked cells by the token, add the position code, attend. The published
        order is embed, then resize. Both are linear and the weights of the resize sum to 1, so only the cost differs:
        on DeepLab's 64x64 map it is a sixteenth.
        """
        rows, columns = keep.shape[-2:]
        cells = resize_to_grid(deepest, keep).flatten(2).transpose(1, 2)  # [B, rows * columns, C]
        embedded = self.embedding(cells)  # [B, rows * columns, dim]
        token = self.mask_token.to(embedded.dtype).view(1, 1, -1)
        tokens = torch.where(keep.flatten(2).transpose(1, 2), embedded, token)
        code = position_code(rows, columns, tokens.shape[-1], tokens.device).to(tokens.dtype)
        filled: Tensor = self.transformer(tokens + code)
        # [B, rows * columns, dim] -> [B, dim, rows, columns], channels-last in memory
        return filled.transpose(1, 2).reshape(filled.shape[0], -1, rows, columns)

    def pixels(self, deepest: Tensor, keep: Tensor) -> Tensor:
        """Predict each cell's pixels, `[B, 3 * PATCH * PATCH, rows, columns]`, normalised by cell (target `pixels`)."""
        pictures: Tensor = self.pixel_head(self.fill(deepest, keep))
        return pictures


def build_rebuilder(network: SegmentationNetwork, crop: tuple[int, int], settings: MfmSettings) -> Rebuilder:
    """Build a Rebuilder for `network` and training crops of `crop` (height, width), on the network's device.

    Its tokens are channels-last in every configuration, so its transposed convolutions are too.
    """
    device = next(network.parameters()).device
    rebuilder = Rebuilder(network.feature_channels, feature_sizes(network, crop), settings)
    return rebuilder.to(device).to(memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]


def feature_sizes(network: SegmentationNetwork, crop: tuple[int, int]) -> list[tuple[int, int]]:
    """Return height and width of each map that `network` encodes in training for crops of `crop` (height, width).

    With several views the first one counts, because one Rebuilder serves them all.
    """
    blank = torch.zeros(1, 3, *crop, device=next(network.parameters()).device)
    with torch.no_grad(), switched_off(network.modules(), "training"):  # BatchNorm must not learn from an empty image
        maps = network.encode(network.views(blank, StepRng(0))[0].images)
    return [(level.shape[-2], level.shape[-1]) for level in maps]


@contextmanager
def switched_off(parts: Iterable[Any], switch: str) -> Iterator[None]:
    """Set the attribute `switch` to False inside the context, on those of `parts` where it is True."""
    on = [part for part in parts if getattr(part, switch)]
    for part in on:
        setattr(part, switch, False)
    try:
        yield
    finally:
        for part in on:
            setattr(part, switch, True)


@functools.lru_cache(maxsize=16)
def position_code(rows: int, columns: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Return the fixed 2-D sin-cos code `[1, rows * columns, dim]`: the row in the first half of the channels.

    The column is in the second half. Each half is sines, then cosines, of dim / 4 frequencies with temperature 10000
    (as published). The result is cached between calls: do not write to it.
    """
    quarter = dim // 4
    frequency = torch.exp(torch.arange(quarter, device=device) * (-math.log(10000.0) / quarter))
    row = torch.arange(rows, device=device).repeat_interleave(columns)
    column = torch.arange(columns, device=device).repeat(rows)
    angles = [place[:, None] * frequency for place in (row, column)]  # each [rows * columns, dim / 4]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)[None]


def _transformer(size: MfmAblation) -> nn.TransformerEncoder:
    """Build pre-norm ViT blocks (MLP ratio 4, exact GELU, no dropout, biases everywhere) and a final LayerNorm."""
    block = nn.TransformerEncoderLayer(
        size.dim,
        size.heads,
        dim_feedforward=4 * size.dim,
        dropout=0.0,
        activation="gelu",
        layer_norm_eps=1e-5,
        batch_first=True,
        norm_first=True,
    )
    return nn.TransformerEncoder(block, size.blocks, norm=nn.LayerNorm(size.dim), enable_nested_tensor=False)


def _initialise(rebuilder: Rebuilder) -> None:
    """Set Xavier-uniform weights and zero biases in every linear layer, N(0, 0.02) in the mask token.

    Queries, keys and values are one matrix `[3 dim, dim]`, as in the published blocks. So its fan-out is 3 dim and its
    bound is sqrt(6 / (4 dim)), not the sqrt(6 / (2 dim)) of three matrices. Convolutions keep torch's initial weights.
    """
    for name, parameter in rebuilder.named_parameters():
        if name.startswith(("embedding.", "transformer.")) and "norm" not in name:
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.zeros_(parameter)
    nn.init.normal_(rebuilder.mask_token, std=0.02)
