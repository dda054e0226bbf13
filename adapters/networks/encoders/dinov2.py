"""DINOv2 encoders (Oquab et al. 2023): ViT-S/14, ViT-B/14, ViT-L/14, and a tiny one for small CPUs.

An encoder has two forms: a pyramid of four levels for the DAFormer head, or the plain token map for a DeepLabV2-like
head, which is Masked Feature Modeling's one-map path.

Images of any size work. They are resized bilinearly so that patches of 14 pixels divide them evenly, and the position
code is resized (bicubically) to the number of patches. Because images are resized and not padded, each map still
divides the whole image evenly. So logits and masks return to image size as with any other encoder.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.dinov2.configuration_dinov2 import Dinov2Config
from transformers.models.dinov2.modeling_dinov2 import Dinov2Model

from adapters.networks.hf_directory import load_pretrained
from adapters.networks.initialisation import LayerNorm2d

PATCH = 14
"""Side of a patch (pixels that the transformer sees)."""
PYRAMID_STRIDE = 16
"""Image pixels per token below the pyramid. Images are scaled to 14/16 of their size, so levels have strides 4, 8, 16
and 32 exactly, and a 512 crop has 32x32 tokens."""
_ARCHITECTURE = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio",
    "patch_size", "image_size", "use_swiglu_ffn",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class DinoV2Spec:
    """Dimensions of a DINOv2 transformer."""

    width: int
    """Channels of a token."""
    depth: int
    """Blocks."""
    heads: int
    """Attention heads."""
    image_size: int = 518
    """Side of the images that the position code was made for (pixels)."""


DINOV2_SPECS = {
    "dinov2_tiny": DinoV2Spec(96, 4, 3, image_size=224),
    "dinov2_small": DinoV2Spec(384, 12, 6),
    "dinov2_base": DinoV2Spec(768, 12, 12),
    "dinov2_large": DinoV2Spec(1024, 24, 16),
}


class DinoV2Map(nn.Module):
    """The map of the last block's tokens, stride 14."""

    def __init__(self, model: Dinov2Model) -> None:
        super().__init__()
        self.model = model
        self.feature_channels: tuple[int, ...] = (model.config.hidden_size,)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return one map `[B, C, H / 14, W / 14]` (rounded up) of normalised images `[B, 3, H, W]`."""
        return (token_map(self.model, images, PATCH),)


class DinoV2Pyramid(nn.Module):
    """Four levels, strides 4 to 32, made from the last block's tokens."""

    def __init__(self, model: Dinov2Model) -> None:
        super().__init__()
        self.model = model
        self.pyramid = FeaturePyramid(model.config.hidden_size)
        self.feature_channels: tuple[int, ...] = self.pyramid.channels

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return maps of normalised images `[B, 3, H, W]`, finest first; exactly H / 4 to H / 32 where 32 divides H."""
        levels: tuple[Tensor, ...] = self.pyramid(token_map(self.model, images, PYRAMID_STRIDE))
        return levels


def token_map(model: Any, images: Tensor, stride: int) -> Tensor:
    """Return the last block's patch tokens, normalised, as a map `[B, C, H / stride, W / stride]`, rounded up."""
    # Rounded up without negative numbers, whose quotients ONNX rounds in the other direction.
    rows, columns = (images.shape[-2] + stride - 1) // stride, (images.shape[-1] + stride - 1) // stride
    size = (rows * PATCH, columns * PATCH)
    if torch.compiler.is_compiling() or images.shape[-2:] != size:  # an export must not depend on the example's size
        images = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
    hidden = _embed(model.embeddings, images, rows, columns)
    for block in model.encoder.layer:
        hidden = block(hidden)
    patches = model.layernorm(hidden)[:, 1:].transpose(1, 2)  # [B, C, rows * columns]
    return torch.unflatten(patches, 2, (rows, columns))


def _embed(embeddings: Any, images: Tensor, rows: int, columns: int) -> Tensor:
    """Return tokens `[B, 1 + rows * columns, C]`, class token first; the position code is resized to the patches."""
    patches = embeddings.patch_embeddings(images)
    code = embeddings.position_embeddings  # [1, 1 + side * side, C]
    side = math.isqrt(code.shape[1] - 1)
    grid = torch.unflatten(code[:, 1:].transpose(1, 2), 2, (side, side))
    if torch.compiler.is_compiling() or (rows, columns) != (side, side):
        grid = F.interpolate(grid, (rows, columns), mode="bicubic", align_corners=False)
    first = (embeddings.cls_token + code[:, :1]).expand(patches.shape[0], -1, -1)
    tokens: Tensor = torch.cat([first, patches + grid.flatten(2).transpose(1, 2)], dim=1)
    return tokens


def build_dinov2_map(name: str, pretrained: Path | None) -> DinoV2Map:
    """Build the encoder `name` of `DINOV2_SPECS` with its one map, untrained or with weights of a local directory.

    Raises NetworkMismatch or UnsupportedModel when `pretrained` does not fit.
    """
    return DinoV2Map(_model(name, pretrained))


def build_dinov2_pyramid(name: str, pretrained: Path | None) -> DinoV2Pyramid:
    """Build the encoder `name` of `DINOV2_SPECS` with an untrained pyramid; otherwise like `build_dinov2_map`."""
    return DinoV2Pyramid(_model(name, pretrained))


def _model(name: str, pretrained: Path | None) -> Dinov2Model:
    spec = DINOV2_SPECS[name]
    config = Dinov2Config(
        hidden_size=spec.width,
        num_hidden_layers=spec.depth,
        num_attention_heads=spec.heads,
        image_size=spec.image_size,
        patch_size=PATCH,
        use_mask_token=False,  # serves pre-training only; a saved one is left out
    )
    if pretrained is not None:
        return load_pretrained(Dinov2Model, config, pretrained, _ARCHITECTURE)  # type: ignore[no-any-return]
    return Dinov2Model(config)


class FeaturePyramid(nn.Module):
    """Levels at 4, 2, 1 and 1/2 times the map's resolution, each from the same last map.

    Transposed convolutions scale up and halve the channels each time. Max pooling scales down. A LayerNorm ends each
    level.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        half, quarter = width // 2, width // 4
        self.channels = (quarter, half, width, width)
        self.up4 = nn.Sequential(
            nn.ConvTranspose2d(width, half, 2, stride=2),
            LayerNorm2d(half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, stride=2),
        )
        self.up2 = nn.ConvTranspose2d(width, half, 2, stride=2)
        self.down2 = nn.MaxPool2d(2, ceil_mode=True)
        self.norms = nn.ModuleList(LayerNorm2d(channels) for channels in self.channels)

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Return four maps of `tokens` `[B, C, H, W]`.

        They are `[B, C/4, 4H, 4W]`, `[B, C/2, 2H, 2W]`, `[B, C, H, W]` and `[B, C, H/2, W/2]`, the last one rounded up.
        """
        levels = (self.up4(tokens), self.up2(tokens), tokens, self.down2(tokens))
        return tuple(norm(level) for norm, level in zip(self.norms, levels, strict=True))
