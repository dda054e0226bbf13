"""Foundation models: frozen ViTs of transformers, read from a local directory for the tokens of whole images.

They teach a student in training only. Nothing of them is trained or saved.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import AutoModel

from adapters.errors import NetworkMismatch, UnsupportedModel
from adapters.networks.encoders.vit import as_map
from adapters.networks.hf_directory import as_config, load_directory, read_config
from adapters.networks.huggingface.config_fields import check_fields

KINDS = ("dinov2", "dinov2_with_registers", "dinov3_vit")
"""`model_type` in config.json of the models that work."""


class FoundationModel(nn.Module):
    """A frozen ViT of any size. `forward` gives its last block's tokens, normalised, without class token and registers.

    Positions are fitted to the image as in pre-training: codes are resized, DINOv3's rotations are made for the grid.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.patch: int = model.config.patch_size
        """Side of a patch (pixels)."""
        self.width: int = model.config.hidden_size
        """Channels of a token."""
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Tensor, tokens: int) -> Tensor:
        """Return the tokens `[B, width, rows, columns]` of normalised `images` `[B, 3, H, W]`.

        The images are resized, so that the shorter side has `tokens` of them and a patch stays a square.
        """
        shorter = min(images.shape[-2:])
        rows, columns = (max(1, round(tokens * side / shorter)) for side in images.shape[-2:])
        size = (rows * self.patch, columns * self.patch)
        resized = F.interpolate(images, size, mode="bilinear", align_corners=False)
        found = self.model(resized).last_hidden_state  # class token and registers come first
        return as_map(found[:, -rows * columns :], rows, columns)


def load_foundation_model(directory: Path) -> FoundationModel:
    """Load the DINOv2 (with registers or without) or DINOv3 ViT that a local `directory` holds in Hugging Face format.

    Raises UnsupportedModel when the directory or its weights cannot be read, NetworkMismatch when it holds another
    model.
    """
    values = read_config(directory, KINDS, "the foundation distance")
    try:
        check_fields(values)
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{directory}: {error}") from error
    config = as_config(CONFIG_MAPPING[values["model_type"]], values, directory)
    if not isinstance(config.patch_size, int):
        raise NetworkMismatch(f"{directory}: config.json: patch_size is {config.patch_size}; one number is needed")
    return FoundationModel(load_directory(AutoModel, config, directory))
