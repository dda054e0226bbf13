"""DINOv3 encoders (Siméoni et al., arXiv 2508.10104): ViT-S/16, B/16, L/16, ConvNeXt-T, -S, -B, -L, and tiny ones.

The ViTs have four registers beside the class token, and their positions are rotations, made for the grid at hand. The
ConvNeXts are pyramids already: their four stages have strides 4 to 32.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.dinov3_convnext.configuration_dinov3_convnext import DINOv3ConvNextConfig
from transformers.models.dinov3_convnext.modeling_dinov3_convnext import DINOv3ConvNextModel
from transformers.models.dinov3_vit.configuration_dinov3_vit import DINOv3ViTConfig
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTModel

from adapters.networks.encoders.layered import LayeredEncoder
from adapters.networks.encoders.vit import Density, PlainVit, Tokens, resized
from adapters.networks.hf_directory import build_model

_VIT_ARCHITECTURE = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_register_tokens",
    "patch_size", "use_gated_mlp", "rope_theta",
)  # fmt: skip
_VIT_COMMON: dict[str, Any] = {
    "patch_size": 16,
    "num_register_tokens": 4,
    "pos_embed_rescale": None,  # pre-training draws a scale of the positions in every pass; here passes repeat (ours)
}
DINOV3_SPECS: dict[str, dict[str, Any]] = {
    "dinov3_tiny": {
        "hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 3,
    },
    "dinov3_small": {
        "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 6,
    },
    "dinov3_base": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    },
    "dinov3_large": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    },
}  # fmt: skip
"""What differs in DINOv3ViTConfig."""
CONVNEXT_SPECS: dict[str, dict[str, Any]] = {
    "dinov3_convnext_tiny": {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 2, 1], "layer_scale_init_value": 1.0},
    "dinov3_convnext_t": {"hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 9, 3]},
    "dinov3_convnext_s": {"hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 27, 3]},
    "dinov3_convnext_b": {"hidden_sizes": [128, 256, 512, 1024], "depths": [3, 3, 27, 3]},
    "dinov3_convnext_l": {"hidden_sizes": [192, 384, 768, 1536], "depths": [3, 3, 27, 3]},
}
"""What differs in DINOv3ConvNextConfig. Blocks of the tiny one, which nobody has pretrained, count in full at once."""
STRIDE = 32
"""Of ConvNeXt's deepest map."""


class DinoV3Encoder(PlainVit):
    """The last block's tokens as one map of stride 16, or four levels of strides 4 to 32 made from them."""

    PATCH = 16
    DENSE = Density(1, 16)
    """As many as there are patches (ours: the papers that use more tokens have patches of 14)."""

    def __init__(self, model: DINOv3ViTModel, *, pyramid: bool) -> None:
        super().__init__(model, self.DENSE, pyramid=pyramid)
        model.embeddings.mask_token.requires_grad_(False)  # serves pre-training only

    def embed(self, images: Tensor, rows: int, columns: int) -> Tokens:
        """Return tokens `[B, 5 + rows * columns, C]`, class token and registers first, and the rotations."""
        hidden = self.model.embeddings(images)
        if self.hide is not None:  # positions are rotations inside the blocks, so nothing is added to patches yet
            hidden = torch.cat([hidden[:, : self.prefix()], self.hide(hidden[:, self.prefix() :])], dim=1)
        return Tokens(hidden, {"position_embeddings": self.model.rope_embeddings(images)})

    def prefix(self) -> int:
        """Return 1 + the number of registers."""
        return 1 + int(self.model.config.num_register_tokens)

    def blocks(self) -> Sequence[nn.Module]:
        """Return the transformer's blocks, first one first."""
        return list(self.model.model.layer)

    def last_norm(self) -> nn.Module:
        """Return the norm behind the last block."""
        norm: nn.Module = self.model.norm
        return norm


class ConvNextEncoder(LayeredEncoder):
    """Four maps of strides 4, 8, 16 and 32; the last one normalised, as in transformers' own output.

    Images are resized bilinearly, up to the next multiple of 32.
    """

    def __init__(self, model: DINOv3ConvNextModel) -> None:
        super().__init__()
        self.model = model
        self.feature_channels: tuple[int, ...] = tuple(model.config.hidden_sizes or ())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return maps of normalised images `[B, 3, H, W]`, finest first."""
        cells = Density(1, STRIDE)
        maps = resized(images, STRIDE * cells.along(images.shape[-2]), STRIDE * cells.along(images.shape[-1]))
        levels = list[Tensor]()
        for stage in self.model.model.stages:
            maps = stage(maps)
            levels.append(maps)
        levels[-1] = self.model.layer_norm(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return tuple(levels)

    def layers(self) -> Sequence[nn.Module]:
        """Return each stage's change of resolution and its blocks, in order."""
        return [layer for stage in self.model.model.stages for layer in (stage.downsample_layers, *stage.layers)]


def build_dinov3(name: str, pretrained: Path | None, *, pyramid: bool) -> DinoV3Encoder:
    """Build the ViT `name` of `DINOV3_SPECS`, untrained or with weights of a local directory below the `pyramid`.

    Raises NetworkMismatch or UnsupportedModel when `pretrained` does not fit.
    """
    config = DINOv3ViTConfig(**{**_VIT_COMMON, **DINOV3_SPECS[name]})
    return DinoV3Encoder(build_model(DINOv3ViTModel, config, pretrained, _VIT_ARCHITECTURE), pyramid=pyramid)


def build_convnext(name: str, pretrained: Path | None) -> ConvNextEncoder:
    """Build the ConvNeXt `name` of `CONVNEXT_SPECS`, untrained or with weights of a local directory.

    Raises NetworkMismatch or UnsupportedModel when `pretrained` does not fit.
    """
    config = DINOv3ConvNextConfig(**CONVNEXT_SPECS[name])
    return ConvNextEncoder(build_model(DINOv3ConvNextModel, config, pretrained, ("hidden_sizes", "depths")))
