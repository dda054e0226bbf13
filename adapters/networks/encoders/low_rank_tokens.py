"""A frozen ViT with low-rank tokens in every block: Rein (Wei et al., CVPR 2024, arXiv 2312.04265), as MFM-DA has it.

MFM-DA: Jiang et al., arXiv 2503.00802. After each block every patch compares itself with the block's learnt tokens, and
what it reads from them is added to it. Only the tokens and two layers that all blocks share are trained. The ViT keeps
the weights that it came with: none of them requires a gradient.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.networks.encoders.layered import LayeredEncoder
from adapters.networks.encoders.vit import Density, PlainVit, as_map
from configs.network import TokenSettings

SHARES = (1 / 3, 1 / 2, 2 / 3, 1.0)
"""Depths of the four maps: after blocks 8, 12, 16 and 24 of 24, as published."""
DENSITY = Density(1, 16)
"""Image pixels per token. So levels have strides 4 to 32, also with patches of 14, for which images are scaled to 14/16
of their size."""


class LowRankTokens(nn.Module):
    """The tokens of all blocks, each block's a product [length, rank] x [rank, width], and the two shared layers."""

    def __init__(self, width: int, blocks: int, patch: int, settings: TokenSettings) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.empty(blocks, settings.length, settings.rank))
        self.right = nn.Parameter(torch.empty(blocks, settings.rank, width))
        self.to_features, self.mix = nn.Linear(width, width), nn.Linear(width, width)
        self.scale = nn.Parameter(torch.tensor(settings.scale))
        bound = math.sqrt(6.0 / (3 * patch**2 + math.sqrt(width * settings.rank)))  # Rein's
        for factor in (self.left, self.right):
            nn.init.uniform_(factor, -bound, bound)

    def forward(self, patches: Tensor, block: int) -> Tensor:
        """Return `patches` [B, N, C] behind the block of index `block`, changed by its tokens.

        A patch's shares of all tokens sum to 1. That of the first token is dropped: a patch that has it all reads
        nothing.
        """
        tokens = self.left[block] @ self.right[block]  # [length, C]
        shares = torch.softmax(patches @ tokens.T / math.sqrt(tokens.shape[-1]), dim=-1)  # [B, N, length]
        read = shares[..., 1:] @ self.to_features(tokens[1:])
        changed: Tensor = patches + self.scale * self.mix(patches + read)
        return changed


class TokenVit(LayeredEncoder):
    """A frozen plain ViT with its tokens: four maps of the ViT's width, finest first, strides 4, 8, 16 and 32.

    They are the patches after a third, half, two thirds and all of the blocks, resized bilinearly by 4, 2, 1 and 1/2.
    Class token and registers pass by the tokens, as published. The ViT's own last norm is not used.
    """

    def __init__(self, vit: PlainVit, settings: TokenSettings) -> None:
        super().__init__()
        self.vit = vit.requires_grad_(False)
        blocks = len(vit.blocks())
        self.depths = tuple(max(1, round(share * blocks)) for share in SHARES)
        """After how many blocks each map is taken."""
        self.feature_channels: tuple[int, ...] = (vit.width,) * len(SHARES)
        self.tokens = LowRankTokens(vit.width, blocks, vit.PATCH, settings)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the maps of normalised images `[B, 3, H, W]`."""
        rows, columns = DENSITY.along(images.shape[-2]), DENSITY.along(images.shape[-1])
        sizes = (4 * rows, 4 * columns), (2 * rows, 2 * columns), (rows, columns), ((rows + 1) // 2, (columns + 1) // 2)
        return tuple(
            F.interpolate(as_map(patches, rows, columns), size, mode="bilinear", align_corners=False)
            for patches, size in zip(self._seen(images, rows, columns), sizes, strict=True)
        )

    def _seen(self, images: Tensor, rows: int, columns: int) -> list[Tensor]:
        """Return the patches [B, rows * columns, C] at each of `depths`."""
        first, after = self.vit.prefix(), list[Tensor]()
        hidden, options = self.vit.begin(images, rows, columns)
        for place, block in enumerate(self.vit.blocks()):
            hidden = block(hidden, **options)
            patches = self.tokens(hidden[:, first:], place)
            hidden = torch.cat([hidden[:, :first], patches], dim=1)
            after.append(patches)
        return [after[depth - 1] for depth in self.depths]

    def added(self) -> Sequence[nn.Module]:
        """Return the tokens."""
        return [self.tokens]
