"""Mix Transformer (SegFormer) encoders: MiT-B0..B5 of Xie et al. 2021, and a tiny one for small CPUs."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from transformers.models.segformer.configuration_segformer import SegformerConfig
from transformers.models.segformer.modeling_segformer import SegformerModel

from adapters.networks.hf_directory import load_pretrained
from adapters.networks.initialisation import initialise_convolutions

_ARCHITECTURE = ("hidden_sizes", "depths", "sr_ratios", "num_attention_heads", "mlp_ratios")


@dataclass(frozen=True, slots=True)
class MitSpec:
    """Dimensions of a MiT; strides are 4, 8, 16, 32 for all of them."""

    hidden_sizes: tuple[int, int, int, int]
    """Channels of the four maps."""
    depths: tuple[int, int, int, int]
    """Transformer blocks of the four stages."""
    drop_path: float = 0.1
    """Stochastic depth of the last block (0-1), rising linearly from 0."""
    heads: tuple[int, int, int, int] = (1, 2, 5, 8)
    """Attention heads of the four stages."""
    mlp_ratios: tuple[int, int, int, int] = (4, 4, 4, 4)
    """Hidden width of Mix-FFN over the stage's width."""


MIT_SPECS = {
    "mit_tiny": MitSpec((16, 32, 80, 128), (1, 1, 2, 1), drop_path=0.0),
    "mit_b0": MitSpec((32, 64, 160, 256), (2, 2, 2, 2)),
    "mit_b1": MitSpec((64, 128, 320, 512), (2, 2, 2, 2)),
    "mit_b2": MitSpec((64, 128, 320, 512), (3, 4, 6, 3)),
    "mit_b3": MitSpec((64, 128, 320, 512), (3, 4, 18, 3)),
    "mit_b4": MitSpec((64, 128, 320, 512), (3, 8, 27, 3)),
    "mit_b5": MitSpec((64, 128, 320, 512), (3, 6, 40, 3)),
}


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
    spec = MIT_SPECS[name]
    config = SegformerConfig(
        hidden_sizes=list(spec.hidden_sizes),
        depths=list(spec.depths),
        num_attention_heads=list(spec.heads),
        mlp_ratios=list(spec.mlp_ratios),
        drop_path_rate=spec.drop_path,
    )
    if pretrained is not None:
        return MitEncoder(load_pretrained(SegformerModel, config, pretrained, _ARCHITECTURE))
    model = SegformerModel(config)
    initialise_convolutions(model)
    return MitEncoder(model)
