"""U-Net encoder (Ronneberger et al., arXiv 1505.04597, figure 1): convolutions at full size, then at half of it, ...

Its first map has stride 1, so structures of a few pixels (vessels, wires, cracks) reach the decoder. BatchNorm and
padded convolutions, which the paper does not have, let it train from scratch on whole images.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from adapters.networks.decoders.layers import double_conv


class UnetSize(NamedTuple):
    """Width and depth of a U-Net."""

    width: int
    """Channels at full size; each level has twice as many as the one above."""
    levels: int
    """Maps; level n has stride 2^n (n from 0)."""


UNET_SIZES = {"unet_tiny": UnetSize(16, 3), "unet_small": UnetSize(16, 4), "unet_base": UnetSize(64, 5)}
"""unet_base is the paper's; unet_small is for small data sets and CPUs, unet_tiny for tests."""


class UnetEncoder(nn.Module):
    """Contracting path: two convolutions a level, halved by max pooling in between."""

    def __init__(self, name: str) -> None:
        super().__init__()
        width, levels = UNET_SIZES[name]
        self.feature_channels = tuple(width * 2**level for level in range(levels))
        inputs = (3, *self.feature_channels[:-1])
        self.blocks = nn.ModuleList(double_conv(*sizes) for sizes in zip(inputs, self.feature_channels, strict=True))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return maps `[B, C_l, H / 2^l, W / 2^l]` of normalised images `[B, 3, H, W]`, deepest last."""
        maps = [self.blocks[0](images)]
        for block in self.blocks[1:]:
            maps.append(block(F.max_pool2d(maps[-1], 2)))
        return tuple(maps)
