"""ViT-Adapter (Chen et al., arXiv 2205.08534) around a plain ViT: maps of strides 4 to 32 that know the image's edges.

Convolutions make maps of the image (the spatial prior). Before each quarter of the blocks, the ViT's tokens read from
them (injector); after it, they read from the tokens (extractor). All constants are those of VFM-UDA++ (Englert et al.,
arXiv 2503.10685), whose DINOv2 sees 80 tokens and a prior of 1120 pixels along a crop of 1024.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.networks.encoders.deformable_attention import DeformableAttention, places
from adapters.networks.encoders.layered import LayeredEncoder
from adapters.networks.encoders.vit import Density, PlainVit, as_map, resized
from adapters.networks.initialisation import initialise_convolutions

INTERACTIONS = 4
HEAD_WIDTH = 64
"""Channels per head of the deformable attention."""
VALUE_RATIO = 0.5
"""Width that the deformable attention reads, as a share of the tokens'."""
HIDDEN_RATIO = 0.25
"""Width between the layers of the extractors' feed-forward part."""
EXTRA_EXTRACTORS = 2
"""Behind the last block."""
PRIOR_WIDTH, TINY_PRIOR_WIDTH = 64, 16
"""Channels of the spatial prior's first convolutions: published, and for ViTs narrower than a ViT-S (ours)."""
NARROW = 384
MOMENTUM = 0.01
"""Of the running statistics of BatchNorm."""
STRIDE = 32
"""Of the deepest map, in the prior's pixels."""

Sizes = Sequence[tuple[int, int]]


class SpatialPrior(nn.Module):
    """Convolutions from an image to maps of strides 4, 8, 16 and 32, each `width` wide."""

    def __init__(self, width: int, first: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _halving(3, first), _keeping(first, first), _keeping(first, first), nn.MaxPool2d(3, stride=2, padding=1)
        )
        self.stages = nn.ModuleList(
            [_halving(first, 2 * first), _halving(2 * first, 4 * first), _halving(4 * first, 4 * first)]
        )
        self.widen = nn.ModuleList(nn.Conv2d(inner, width, 1) for inner in (first, 2 * first, 4 * first, 4 * first))
        self.codes = nn.Parameter(torch.randn(3, width, 1, 1))
        """What tells cells of the three coarser maps apart when they are joined."""

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the map `[B, width, H / 4, W / 4]` and those of strides 8, 16, 32 with their codes.

        32 divides the sides of `images`.
        """
        maps = [self.stem(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        finest, *coarser = (widen(level) for widen, level in zip(self.widen, maps, strict=True))
        return finest, [level + code for level, code in zip(coarser, self.codes, strict=True)]


def _halving(inputs: int, outputs: int) -> nn.Sequential:
    return _convolution(inputs, outputs, 2)


def _keeping(inputs: int, outputs: int) -> nn.Sequential:
    return _convolution(inputs, outputs, 1)


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs, momentum=MOMENTUM), nn.ReLU(inplace=True))


class Injector(nn.Module):
    """The ViT's tokens read from the prior's three coarser maps; a factor of zero at first leaves the ViT as it was."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query_norm, self.prior_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = DeformableAttention(width, heads, 3, VALUE_RATIO)
        self.gamma = nn.Parameter(torch.zeros(width))

    def forward(self, tokens: Tensor, own: Tensor, prior: Tensor, sizes: Sizes) -> Tensor:
        """Return `tokens` `[B, N, C]` and what they read from the cells `prior` `[B, M, C]` of maps of `sizes`."""
        read: Tensor = self.attention(self.query_norm(tokens), own, self.prior_norm(prior), sizes)
        return tokens + self.gamma * read


class ConvolutionalFeedForward(nn.Module):
    """Two linear layers with a depthwise 3x3 convolution between them, on cells of several maps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = int(width * HIDDEN_RATIO)
        self.first, self.second = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.near = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, cells: Tensor, sizes: Sizes) -> Tensor:
        """Return `[B, M, C]` of the `cells` `[B, M, C]` of maps of `sizes`."""
        mixed = [self.near(level).flatten(2).transpose(1, 2) for level in _apart(self.first(cells), sizes)]
        result: Tensor = self.second(F.gelu(torch.cat(mixed, dim=1)))
        return result


class Extractor(nn.Module):
    """The prior's cells read from the ViT's tokens, then mix with their neighbours."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query_norm, self.token_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = DeformableAttention(width, heads, 1, VALUE_RATIO)
        self.mix_norm = nn.LayerNorm(width)
        self.mix = ConvolutionalFeedForward(width)

    def forward(self, prior: Tensor, sizes: Sizes, own: Tensor, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the cells `prior` `[B, M, C]` of maps of `sizes`, changed by the `tokens` `[B, N, C]` of `grid`."""
        prior = prior + self.attention(self.query_norm(prior), own, self.token_norm(tokens), [grid])
        return prior + self.mix(self.mix_norm(prior), sizes)  # type: ignore[no-any-return]


class AdaptedVit(LayeredEncoder):
    """A plain ViT with its adapter: four maps of the ViT's width, finest first.

    The prior sees the image enlarged as the ViT does (by 35/32 for DINOv2's patches of 14, not at all for patches of
    16), its sides rounded to the nearest multiples of 32. The maps have strides 4, 8, 16 and 32 of that image. The
    ViT's own last norm is not used.
    """

    def __init__(self, vit: PlainVit) -> None:
        super().__init__()
        self.vit = vit
        vit.last_norm().requires_grad_(False)
        width, heads = vit.width, max(1, vit.width // HEAD_WIDTH)
        self.feature_channels: tuple[int, ...] = (width,) * 4
        self.prior = SpatialPrior(width, TINY_PRIOR_WIDTH if width < NARROW else PRIOR_WIDTH)
        self.injectors = nn.ModuleList(Injector(width, heads) for _ in range(INTERACTIONS))
        self.extractors = nn.ModuleList(Extractor(width, heads) for _ in range(INTERACTIONS + EXTRA_EXTRACTORS))
        self.up = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, momentum=MOMENTUM) for _ in range(4))
        for part in self.added():
            _initialise(part)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the maps of normalised images `[B, 3, H, W]`."""
        vit, (height, width) = self.vit, images.shape[-2:]
        grid = vit.DENSE.along(height), vit.DENSE.along(width)
        cells = Density(vit.PATCH * vit.DENSE.tokens, STRIDE * vit.DENSE.pixels)
        finest, coarser = self.prior(resized(images, STRIDE * cells.nearest(height), STRIDE * cells.nearest(width)))
        sizes = [(level.shape[-2], level.shape[-1]) for level in coarser]
        joined = torch.cat([level.flatten(2).transpose(1, 2) for level in coarser], dim=1)
        prior, seen = self._interact(images, grid, joined, sizes)
        coarser = _apart(prior, sizes)
        maps = [self.up(coarser[0]) + finest, *coarser]
        return tuple(
            norm(level + F.interpolate(tokens, level.shape[-2:], mode="bilinear", align_corners=False))
            for norm, level, tokens in zip(self.norms, maps, seen, strict=True)
        )

    def _interact(
        self, images: Tensor, grid: tuple[int, int], prior: Tensor, sizes: Sizes
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the prior's cells after all blocks, and the ViT's tokens after each quarter, as maps of `grid`."""
        vit, seen = self.vit, list[Tensor]()
        hidden, options = vit.begin(images, *grid)
        first, blocks = vit.prefix(), vit.blocks()
        of_tokens, of_cells = places([grid], images.device), places(sizes, images.device)
        for turn, injector in enumerate(self.injectors):
            patches = injector(hidden[:, first:], of_tokens, prior, sizes)
            hidden = torch.cat([hidden[:, :first], patches], dim=1)
            for block in blocks[turn * len(blocks) // INTERACTIONS : (turn + 1) * len(blocks) // INTERACTIONS]:
                hidden = block(hidden, **options)
            patches = hidden[:, first:]
            last = turn == INTERACTIONS - 1
            for extractor in self.extractors[turn:] if last else [self.extractors[turn]]:
                prior = extractor(prior, sizes, of_cells, patches, grid)
            seen.append(as_map(patches, *grid))
        return prior, seen

    def layers(self) -> Sequence[nn.Module]:
        """Return the ViT's embeddings and blocks."""
        return self.vit.layers()

    def added(self) -> Sequence[nn.Module]:
        """Return the adapter."""
        return [self.prior, self.injectors, self.extractors, self.up, self.norms]


def _apart(cells: Tensor, sizes: Sizes) -> list[Tensor]:
    """Return cells `[B, M, C]` as the maps `[B, C, H, W]` of `sizes` that they were joined from."""
    parts = cells.split([height * width for height, width in sizes], dim=1)
    return [as_map(part, height, width) for part, (height, width) in zip(parts, sizes, strict=True)]


def _initialise(part: nn.Module) -> None:
    """Set first weights as published: He's for convolutions, small normal ones for linear layers."""
    initialise_convolutions(part)
    for layer in part.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0.0, math.sqrt(2.0 / (math.prod(layer.kernel_size) * layer.out_channels)))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for layer in part.modules():
        if isinstance(layer, DeformableAttention):
            layer.initialise()
