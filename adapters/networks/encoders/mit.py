"""Mix Transformer (SegFormer) encoders: MiT-B0..B5 of Xie et al. 2021, and a tiny one for small CPUs."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers.models.segformer.configuration_segformer import SegformerConfig
from transformers.models.segformer.modeling_segformer import SegformerModel

from adapters.networks.hf_directory import build_model
from adapters.networks.initialisation import initialise_convolutions

_ARCHITECTURE = ("hidden_sizes", "depths", "sr_ratios", "num_attention_heads", "mlp_ratios")
_WIDE = [64, 128, 320, 512]
MIT_SPECS: dict[str, dict[str, Any]] = {
    "mit_tiny": {"hidden_sizes": [16, 32, 80, 128], "depths": [1, 1, 2, 1], "drop_path_rate": 0.0},
    "mit_b0": {"hidden_sizes": [32, 64, 160, 256], "depths": [2, 2, 2, 2]},
    "mit_b1": {"hidden_sizes": _WIDE, "depths": [2, 2, 2, 2]},
    "mit_b2": {"hidden_sizes": _WIDE, "depths": [3, 4, 6, 3]},
    "mit_b3": {"hidden_sizes": _WIDE, "depths": [3, 4, 18, 3]},
    "mit_b4": {"hidden_sizes": _WIDE, "depths": [3, 8, 27, 3]},
    "mit_b5": {"hidden_sizes": _WIDE, "depths": [3, 6, 40, 3]},
}
"""What differs in SegformerConfig: channels of the four maps, blocks of the four stages. Strides are 4 to 32."""
_COMMON: dict[str, Any] = {"num_attention_heads": [1, 2, 5, 8], "mlp_ratios": [4, 4, 4, 4], "drop_path_rate": 0.1}


class MitEncoder(nn.Module):
    """A SegFormer encoder; returns the maps of all four stages, strides 4, 8, 16 and 32."""

    def __init__(self, model: SegformerModel) -> None:
        super().__init__()
        self.model = model
        self.feature_channels: tuple[int, ...] = tuple(model.config.hidden_sizes)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return maps `[B, C_l, H / s_l, W / s_l]` of normalised images `[B, 3, H, W]`, rounded up."""
        return tuple(self.model(images, output_hidden_states=True).hidden_states)


def build_mit(name: str, pretrained: Path | None) -> MitEncoder:
    """Build the encoder `name` of `MIT_SPECS`, untrained or with weights of a local directory.

    Raises NetworkMismatch or UnsupportedModel when `pretrained` does not fit.
    """
    config = SegformerConfig(**{**_COMMON, **MIT_SPECS[name]})
    model = build_model(SegformerModel, config, pretrained, _ARCHITECTURE)
    if pretrained is None:
        initialise_convolutions(model)
    return MitEncoder(model)
