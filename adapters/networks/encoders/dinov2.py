"""DINOv2 encoders (Oquab et al. 2023): ViT-S/14, ViT-B/14, ViT-L/14, and a tiny one for small CPUs.

An encoder has two forms: a pyramid of four levels for the DAFormer head, or the plain token map for a DeepLabV2-like
head, which is Masked Feature Modeling's one-map path.

Images of any size work. They are resized bilinearly so that patches of 14 pixels divide them evenly, and the position
code is resized (bicubically) to the number of patches. Because images are resized and not padded, each map still
divides the whole image evenly. So logits and masks return to image size as with any other encoder.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.dinov2.configuration_dinov2 import Dinov2Config
from transformers.models.dinov2.modeling_dinov2 import Dinov2Model

from adapters.errors import NetworkMismatch, UnsupportedModel
from adapters.networks.hf_directory import build_model, load_directory
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
_COMMON: dict[str, Any] = {
    "image_size": 518,  # side of the images that the position code was made for (pixels)
    "patch_size": PATCH,
    "use_mask_token": False,  # serves pre-training only; a saved one is left out
}
DINOV2_SPECS: dict[str, dict[str, Any]] = {
    "dinov2_tiny": {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 3, "image_size": 224},
    "dinov2_small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6},
    "dinov2_base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "dinov2_large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
}
"""What differs in Dinov2Config."""


class DinoV2Encoder(nn.Module):
    """The last block's tokens as one map of stride 14, or four levels of strides 4 to 32 made from them."""

    def __init__(self, model: Dinov2Model, *, pyramid: bool) -> None:
        super().__init__()
        self.model = model
        width = model.config.hidden_size
        self.pyramid = FeaturePyramid(width) if pyramid else None
        self.feature_channels: tuple[int, ...] = self.pyramid.channels if self.pyramid else (width,)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return maps of normalised images `[B, 3, H, W]`, finest first.

        The one map is `[B, C, H / 14, W / 14]`, rounded up. The levels are exactly H / 4 to H / 32 where 32 divides H.
        """
        if self.pyramid is None:
            return (_token_map(self.model, images, PATCH),)
        levels: tuple[Tensor, ...] = self.pyramid(_token_map(self.model, images, PYRAMID_STRIDE))
        return levels


def _token_map(model: Any, images: Tensor, stride: int) -> Tensor:
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


def build_dinov2(name: str, pretrained: Path | None, *, pyramid: bool) -> DinoV2Encoder:
    """Build the encoder `name` of `DINOV2_SPECS`, untrained or with weights of a local directory below the `pyramid`.

    Raises NetworkMismatch or UnsupportedModel when `pretrained` does not fit.
    """
    config = Dinov2Config(**{**_COMMON, **DINOV2_SPECS[name]})
    return DinoV2Encoder(build_model(Dinov2Model, config, pretrained, _ARCHITECTURE), pyramid=pyramid)


def load_dinov2(directory: Path) -> DinoV2Encoder:
    """Load the DINOv2 of any size that a local `directory` holds in Hugging Face format, as one map of stride 14.

    Raises UnsupportedModel when the directory or its weights cannot be read, NetworkMismatch when it holds another
    model.
    """
    path = directory / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = values["model_type"]
    except OSError as error:
        raise UnsupportedModel(f"{path}: cannot be read ({error.strerror}); give a Hugging Face directory") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UnsupportedModel(f"{path}: is no configuration of a Hugging Face model; download it again") from error
    if found != "dinov2":
        raise NetworkMismatch(
            f"{directory} holds a model of type {found!r}, not 'dinov2'; give the directory of a DINOv2"
        )
    config = Dinov2Config.from_dict(values)
    if config.patch_size != PATCH:
        raise NetworkMismatch(f"{directory} has patches of {config.patch_size} pixels, DINOv2 has {PATCH}")
    return DinoV2Encoder(load_directory(Dinov2Model, config, directory), pyramid=False)


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
