"""The Rebuilder of Masked Feature Modeling (Zhou et al., arXiv 2509.13801; papers.md 1.3 and 1.4).

Training only: it masks cells of the deepest map, fills them from what is left, and writes the filled cells into every
level. It is never part of a checkpoint that serves.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.draws import Draws
from adapters.network import SegmentationNetwork
from configs.settings import MfmSettings

_TEMPERATURE = 10000.0
_TOKEN_STD = 0.02
_MAX_SCALE = 8


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation over the channels of each position: `[B, C, H, W]` -> `[B, C, H, W]`."""

    def forward(self, maps: Tensor) -> Tensor:
        """`maps` with each position's channels normalised."""
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Rebuilder(nn.Module):
    """Mask, rebuild, paste: `forward(features)` gives the maps with their masked cells rebuilt.

    `feature_channels` and `feature_sizes` describe the maps of `SegmentationNetwork.encode`, deepest last, at the crop
    size of training; they fix the mask grid and each projector's up-scaling. Maps of other sizes still work: the grid
    follows the deepest map, and projector outputs are resized where they do not divide.
    """

    def __init__(
        self, feature_channels: Sequence[int], feature_sizes: Sequence[tuple[int, int]], settings: MfmSettings
    ) -> None:
        super().__init__()
        self.mask_ratio = settings.mask_ratio
        self.grid = settings.grid
        rows, columns = self.grid_of(feature_sizes[-1])
        self.embedding = nn.Linear(feature_channels[-1], settings.dim)
        self.mask_token = nn.Parameter(torch.zeros(1, settings.dim, 1, 1))
        self.transformer = _transformer(settings)
        self.projectors = nn.ModuleList(
            _projector(settings.dim, channels, _scale(height / rows, width / columns))
            for channels, (height, width) in zip(feature_channels, feature_sizes, strict=True)
        )
        _initialise(self)

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the mask grid for a deepest map of `size`: at most `settings.grid` a side."""
        return min(self.grid, size[0]), min(self.grid, size[1])

    def draw_mask(self, features: Sequence[Tensor], draws: Draws) -> Tensor:
        """A fresh keep mask, bool `[B, 1, rows, columns]`: each cell is masked with probability `mask_ratio`."""
        deepest = features[-1]
        rows, columns = self.grid_of((deepest.shape[-2], deepest.shape[-1]))
        uniform = draws.per_image(deepest.shape[0], 1, rows, columns)
        return (uniform >= self.mask_ratio).to(deepest.device, non_blocking=True)

    def forward(self, features: Sequence[Tensor], keep: Tensor) -> tuple[Tensor, ...]:
        """Maps `[B, C_l, H_l, W_l]` with the cells that `keep` `[B, 1, rows, columns]` (bool) leaves out rebuilt.

        Kept cells are the original values bit for bit. Nothing is detached: the encoder learns through kept cells that
        are pasted and through kept cells that are attended to.
        """
        filled = self._fill(features[-1], keep)
        return tuple(
            _paste(level, projector(filled), keep) for level, projector in zip(features, self.projectors, strict=True)
        )

    def _fill(self, deepest: Tensor, keep: Tensor) -> Tensor:
        """Tokens `[B, dim, rows, columns]`: embedded, masked cells replaced by the token, passed through attention."""
        rows, columns = keep.shape[-2:]
        embedded = self.embedding(deepest.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # [B, dim, H, W]
        if embedded.shape[-2:] != keep.shape[-2:]:
            embedded = F.interpolate(embedded, (rows, columns), mode="bilinear", align_corners=False)
        tokens = torch.where(keep, embedded, self.mask_token.to(embedded.dtype))
        tokens = tokens.flatten(2).transpose(1, 2)  # [B, rows * columns, dim]
        code = position_code(rows, columns, tokens.shape[-1], device=tokens.device)
        filled: Tensor = self.transformer(tokens + code.to(tokens.dtype))
        return filled.transpose(1, 2).reshape(filled.shape[0], -1, rows, columns)


def build_rebuilder(network: SegmentationNetwork, crop: tuple[int, int], settings: MfmSettings) -> Rebuilder:
    """A Rebuilder for `network` and training crops of `crop` (height, width), on the network's device."""
    device = next(network.parameters()).device
    rebuilder = Rebuilder(network.feature_channels, feature_sizes(network, crop), settings)
    return rebuilder.to(device)


def feature_sizes(network: SegmentationNetwork, crop: tuple[int, int]) -> list[tuple[int, int]]:
    """Height and width of each map of `network.encode` for images of `crop` (height, width)."""
    training = [module for module in network.modules() if module.training]
    network.eval()  # BatchNorm must not learn from an empty image
    try:
        with torch.no_grad():
            maps = network.encode(torch.zeros(1, 3, *crop, device=next(network.parameters()).device))
    finally:
        for module in training:
            module.training = True
    return [(level.shape[-2], level.shape[-1]) for level in maps]


def position_code(rows: int, columns: int, dim: int, *, device: torch.device | None = None) -> Tensor:
    """Fixed 2-D sin-cos code `[1, rows * columns, dim]`: the row in the first half of the channels, the column after.

    Each half is sines, then cosines, of dim / 4 frequencies with temperature 10000 (papers.md 1.4.3).
    """
    quarter = dim // 4
    frequency = torch.exp(torch.arange(quarter, device=device) * (-math.log(_TEMPERATURE) / quarter))
    row = torch.arange(rows, device=device).repeat_interleave(columns)
    column = torch.arange(columns, device=device).repeat(rows)
    angles = [place[:, None] * frequency for place in (row, column)]  # each [rows * columns, dim / 4]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)[None]


def _transformer(settings: MfmSettings) -> nn.TransformerEncoder:
    """Pre-norm ViT blocks (MLP ratio 4, GELU, no dropout) and a final LayerNorm."""
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


def _scale(*ratios: float) -> int:
    """The projector's up-scaling: the power of two, from 1 to 8, that is nearest to the mean of `ratios`."""
    exponent = round(math.log2(sum(ratios) / len(ratios)))
    return int(2 ** min(max(exponent, 0), int(math.log2(_MAX_SCALE))))


def _projector(dim: int, channels: int, scale: int) -> nn.Sequential:
    """Tokens `[B, dim, h, w]` -> `[B, channels, scale * h, scale * w]`, layers as in papers.md 1.4.4."""
    widths = {1: (dim,), 2: (dim, dim // 2), 4: (dim, dim // 2, dim // 4), 8: (dim, dim // 2, dim // 4, dim // 4)}[
        scale
    ]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        if layers:
            layers += [LayerNorm2d(inputs), nn.GELU()]
        layers.append(nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1))
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], channels, 1), LayerNorm2d(channels))


def _paste(level: Tensor, rebuilt: Tensor, keep: Tensor) -> Tensor:
    """`level` where its cell is kept, `rebuilt` elsewhere; `torch.where`, so that kept values stay bit for bit."""
    size = (level.shape[-2], level.shape[-1])
    if rebuilt.shape[-2:] != level.shape[-2:]:
        rebuilt = F.interpolate(rebuilt, size, mode="bilinear", align_corners=False)
    mask = F.interpolate(keep.float(), size, mode="nearest-exact") > 0.5
    return torch.where(mask, level, rebuilt.to(level.dtype))


def _initialise(rebuilder: Rebuilder) -> None:
    """Xavier-uniform weights and zero biases for every linear layer, N(0, 0.02) for the mask token."""
    for name, parameter in rebuilder.named_parameters():
        if name.startswith(("embedding.", "transformer.")) and "norm" not in name:
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.zeros_(parameter)
    nn.init.normal_(rebuilder.mask_token, std=_TOKEN_STD)
