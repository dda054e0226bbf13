"""DINOv2 encoders (Oquab et al. 2023): ViT-S/14, ViT-B/14, ViT-L/14, and a tiny one for small CPUs.

An encoder has three forms: a pyramid of four levels for the DAFormer head; the plain token map for a DeepLabV2-like
head, which is Masked Feature Modeling's one-map path; the same map with more tokens for the light head of VFM-UDA. The
position code is resized (bicubically) to the number of patches.
"""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.dinov2.configuration_dinov2 import Dinov2Config
from transformers.models.dinov2.modeling_dinov2 import Dinov2Model

from adapters.networks.encoders.vit import Density, PlainVit, Tokens
from adapters.networks.hf_directory import build_model

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


class DinoV2Encoder(PlainVit):
    """The last block's tokens as one map of stride 14, or four levels of strides 4 to 32 made from them.

    The one map is `[B, C, H / 14, W / 14]`, rounded up; `dense`, it has 80 tokens along 1024 pixels. The levels are
    exactly H / 4 to H / 32 where 32 divides H.
    """

    PATCH = PATCH
    DENSE = Density(5, 64)
    """80 tokens along the 1024 pixels of a training crop, which VFM-UDA and VFM-UDA++ scale to 1120."""

    def __init__(self, model: Dinov2Model, *, pyramid: bool, dense: bool = False) -> None:
        super().__init__(
            model, self.DENSE if dense else Density(1, PYRAMID_STRIDE if pyramid else PATCH), pyramid=pyramid
        )

    def embed(self, images: Tensor, rows: int, columns: int) -> Tokens:
        """Return tokens `[B, 1 + rows * columns, C]`, class token first; the position code has the patches' grid."""
        embeddings: Any = self.model.embeddings
        patches = embeddings.patch_embeddings(images)
        if self.hide is not None:
            patches = self.hide(patches)
        code = embeddings.position_embeddings  # [1, 1 + side * side, C]
        side = math.isqrt(code.shape[1] - 1)
        grid = torch.unflatten(code[:, 1:].transpose(1, 2), 2, (side, side))
        if torch.compiler.is_compiling() or (rows, columns) != (side, side):
            grid = F.interpolate(grid, (rows, columns), mode="bicubic", align_corners=False)
        first = (embeddings.cls_token + code[:, :1]).expand(patches.shape[0], -1, -1)
        return Tokens(torch.cat([first, patches + grid.flatten(2).transpose(1, 2)], dim=1), {})


def build_dinov2(name: str, pretrained: Path | None, *, pyramid: bool, dense: bool = False) -> DinoV2Encoder:
    """Build the encoder `name` of `DINOV2_SPECS`, untrained or with weights of a local directory below the `pyramid`.

    Raises NetworkMismatch or UnsupportedModel when `pretrained` does not fit.
    """
    config = Dinov2Config(**{**_COMMON, **DINOV2_SPECS[name]})
    model = build_model(Dinov2Model, config, pretrained, _ARCHITECTURE)
    return DinoV2Encoder(model, pyramid=pyramid, dense=dense)
