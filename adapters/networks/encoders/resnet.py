"""ResNet encoders with a chosen output stride: He et al. 2016, dilated as in DeepLab, and a tiny one for small CPUs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers.models.resnet.configuration_resnet import ResNetConfig
from transformers.models.resnet.modeling_resnet import ResNetModel

from adapters.networks.hf_directory import load_pretrained

_ARCHITECTURE = ("embedding_size", "hidden_sizes", "depths", "layer_type")
_FULL_STRIDE = 32


@dataclass(frozen=True, slots=True)
class ResNetSpec:
    """Dimensions of a ResNet."""

    layer_type: str
    """`basic` (two 3x3 convolutions) or `bottleneck`."""
    hidden_sizes: tuple[int, int, int, int]
    """Channels of the four stages."""
    depths: tuple[int, int, int, int]
    """Blocks of the four stages."""
    embedding: int = 64
    """Channels of the stem."""


_BASIC, _BOTTLENECK = (64, 128, 256, 512), (256, 512, 1024, 2048)
RESNET_SPECS = {
    "resnet_tiny": ResNetSpec("basic", (32, 64, 96, 128), (1, 2, 2, 1), embedding=32),
    "resnet18": ResNetSpec("basic", _BASIC, (2, 2, 2, 2)),
    "resnet34": ResNetSpec("basic", _BASIC, (3, 4, 6, 3)),
    "resnet50": ResNetSpec("bottleneck", _BOTTLENECK, (3, 4, 6, 3)),
    "resnet101": ResNetSpec("bottleneck", _BOTTLENECK, (3, 4, 23, 3)),
    "resnet152": ResNetSpec("bottleneck", _BOTTLENECK, (3, 8, 36, 3)),
}


class ResNetEncoder(nn.Module):
    """A ResNet; returns the maps of the chosen stages (1 to 4), stage 1 at stride 4."""

    def __init__(self, model: ResNetModel, channels: Sequence[int], stages: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.stages = tuple(stages)
        self.feature_channels = tuple(channels[stage - 1] for stage in stages)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return maps `[B, C_l, H_l, W_l]` of normalised images `[B, 3, H, W]`, deepest last."""
        maps = self.model(images, output_hidden_states=True).hidden_states  # the stem's map comes first
        return tuple(maps[stage] for stage in self.stages)


def build_resnet(name: str, output_stride: int, stages: Sequence[int], pretrained: Path | None) -> ResNetEncoder:
    """Build the encoder `name` of `RESNET_SPECS` with its deepest map at `output_stride` (8, 16 or 32 pixels).

    Raises NetworkMismatch or UnsupportedModel when `pretrained` does not fit.
    """
    spec = RESNET_SPECS[name]
    config = ResNetConfig(
        embedding_size=spec.embedding,
        hidden_sizes=list(spec.hidden_sizes),
        depths=list(spec.depths),
        layer_type=spec.layer_type,
    )
    if pretrained is None:
        model = ResNetModel(config)  # initialised Kaiming-normal, fan-out, by transformers
    else:
        model = load_pretrained(ResNetModel, config, pretrained, _ARCHITECTURE)
    _dilate(list(model.encoder.stages), output_stride)
    return ResNetEncoder(model, spec.hidden_sizes, stages)


def _dilate(stages: Sequence[Any], output_stride: int) -> None:
    """Replace the strides of the last stages by dilation until the deepest map has `output_stride`.

    The convolution that lost its stride keeps the dilation of the stage before it, because its input was never
    subsampled. The convolutions after it are dilated. So every second position sees exactly what the strided network
    sees.
    """
    dilation, excess = 1, _FULL_STRIDE // output_stride
    for position, stage in enumerate(stages, start=1):
        first = dilation
        if position > 1 and excess >= 2 ** (len(stages) - position + 1):
            dilation *= 2
            _drop_stride(stage.layers[0])
        for number, block in enumerate(stage.layers):
            _set_dilation(block, first if number == 0 else dilation, dilation)


def _drop_stride(block: nn.Module) -> None:
    for layer in block.modules():
        if isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)


def _set_dilation(block: nn.Module, first: int, others: int) -> None:
    """Dilate the 3x3 convolutions of a block; dilate its first one (the one with a stride, if any) by `first`."""
    layers = [layer for layer in block.modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)]
    for number, layer in enumerate(layers):
        dilation = first if number == 0 else others
        layer.dilation = (dilation, dilation)
        layer.padding = (dilation, dilation)
