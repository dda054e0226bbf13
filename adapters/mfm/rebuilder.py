"""The Rebuilder of Masked Feature Modeling (Zhou et al., arXiv 2509.13801).

Training only: it replaces masked cells of the deepest map by a token, fills them from what is left, and writes the
filled cells into every level. It is never part of a checkpoint that serves. docs/explanation/mfm.md has the equations.
"""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adapters.draws import Draws
from adapters.mfm.feature_mask import grid_of, paste, resize_to_grid
from adapters.mfm.projector import Projector
from adapters.networks.network import SegmentationNetwork
from configs.settings import MfmSettings

PATCH = 16
"""Side of a masked cell's picture when pixels are the target (pixels, MAE's patch); a cell is resized to it."""
_TEMPERATURE = 10000.0
_TOKEN_STD = 0.02


class Rebuilder(nn.Module):
    """Mask, rebuild, paste: `forward(features, keep)` gives the maps with their masked cells rebuilt.

    `feature_channels` and `feature_sizes` describe the maps of `SegmentationNetwork.encode`, deepest last, at the crop
    size of training; they fix each projector's up-scaling. Maps of other sizes still work: the grid follows the deepest
    map, and projectors resize where they do not divide.

    It holds what `settings` need and nothing else: no projectors but a head for pixels when those are the target; no
    parameters at all when nothing is rebuilt (`MfmSettings.rebuilds`).
    """

    def __init__(
        self, feature_channels: Sequence[int], feature_sizes: Sequence[Sequence[int]], settings: MfmSettings
    ) -> None:
        super().__init__()
        self.settings = settings
        if not settings.rebuilds:
            return
        rows, columns = grid_of(feature_sizes[-1], settings.grid)
        self.embedding = nn.Linear(feature_channels[-1], settings.dim)
        self.mask_token = nn.Parameter(torch.zeros(1, settings.dim, 1, 1))
        self.transformer = _transformer(settings)
        if settings.reconstruction == "pixels":
            self.pixel_head = nn.Conv2d(settings.dim, 3 * PATCH**2, 1)
        else:
            self.projectors = nn.ModuleList(
                Projector(settings.dim, channels, math.sqrt(height * width / (rows * columns)))
                for channels, (height, width) in zip(feature_channels, feature_sizes, strict=True)
            )
        _initialise(self)

    def forward(self, features: Sequence[Tensor], keep: Tensor) -> tuple[Tensor, ...]:
        """Maps `[B, C_l, H_l, W_l]` with the cells that `keep` `[B, 1, rows, columns]` (bool) leaves out rebuilt.

        Kept cells are the original values bit for bit. Nothing is detached: the encoder learns through kept cells that
        are pasted and through kept cells that are attended to. `mask_only` leaves zeros in masked cells; at a mask
        ratio of 0 the maps are given back as they are.
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
        """Tokens `[B, dim, rows, columns]` of the deepest map `[B, C, H, W]`, masked ones filled from kept ones.

        Resize, embed, replace masked cells by the token, add the position code, attend. The published order is embed,
        then resize; both are linear and the weights of the resize add up to 1, so the order changes nothing but the
        cost: on DeepLab's 64x64 map a sixteenth.
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
        """What each cell looks like, `[B, 3 * PATCH * PATCH, rows, columns]`, normalised by cell (target `pixels`)."""
        pictures: Tensor = self.pixel_head(self.fill(deepest, keep))
        return pictures


def build_rebuilder(network: SegmentationNetwork, crop: tuple[int, int], settings: MfmSettings) -> Rebuilder:
    """A Rebuilder for `network` and training crops of `crop` (height, width), on the network's device.

    Its tokens are channels-last at any setting, so its transposed convolutions are too.
    """
    device = next(network.parameters()).device
    rebuilder = Rebuilder(network.feature_channels, feature_sizes(network, crop), settings)
    return rebuilder.to(device).to(memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]


def feature_sizes(network: SegmentationNetwork, crop: tuple[int, int]) -> list[tuple[int, int]]:
    """Height and width of each map that `network` encodes in training for crops of `crop` (height, width).

    Of several views the first counts: one Rebuilder serves them all.
    """
    training = [module for module in network.modules() if module.training]
    network.eval()  # BatchNorm must not learn from an empty image
    try:
        with torch.no_grad():
            blank = torch.zeros(1, 3, *crop, device=next(network.parameters()).device)
            maps = network.encode(network.views(blank, Draws(0))[0].images)
    finally:
        for module in training:
            module.training = True
    return [(level.shape[-2], level.shape[-1]) for level in maps]


@functools.lru_cache(maxsize=16)
def position_code(rows: int, columns: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Fixed 2-D sin-cos code `[1, rows * columns, dim]`: the row in the first half of the channels, the column after.

    Each half is sines, then cosines, of dim / 4 frequencies with temperature 10000 (as published). Kept from call to
    call: do not write to it.
    """
    quarter = dim // 4
    frequency = torch.exp(torch.arange(quarter, device=device) * (-math.log(_TEMPERATURE) / quarter))
    row = torch.arange(rows, device=device).repeat_interleave(columns)
    column = torch.arange(columns, device=device).repeat(rows)
    angles = [place[:, None] * frequency for place in (row, column)]  # each [rows * columns, dim / 4]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)[None]


def _transformer(settings: MfmSettings) -> nn.TransformerEncoder:
    """Pre-norm ViT blocks (MLP ratio 4, exact GELU, no dropout, biases everywhere) and a final LayerNorm."""
    block = nn.TransformerEncoderLayer(
        settings.dim,
        settings.heads,
        dim_feedforward=4 * settings.dim,
        dropout=0.0,
        activation="gelu",
        layer_norm_eps=1e-5,
        batch_first=True,
        norm_first=True,
    )
    return nn.TransformerEncoder(block, settings.blocks, norm=nn.LayerNorm(settings.dim), enable_nested_tensor=False)


def _initialise(rebuilder: Rebuilder) -> None:
    """Xavier-uniform weights and zero biases for every linear layer, N(0, 0.02) for the mask token.

    Queries, keys and values are one matrix `[3 dim, dim]`, as in the published blocks: its fan-out is 3 dim, and its
    bound sqrt(6 / (4 dim)), not the sqrt(6 / (2 dim)) of three matrices. Convolutions keep torch's start.
    """
    for name, parameter in rebuilder.named_parameters():
        if name.startswith(("embedding.", "transformer.")) and "norm" not in name:
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.zeros_(parameter)
    nn.init.normal_(rebuilder.mask_token, std=_TOKEN_STD)
