"""ResNet encoders with a chosen output stride: He et al. 2016, dilated as in DeepLab, and a tiny one for small CPUs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers.models.resnet.configuration_resnet import ResNetConfig
from transformers.models.resnet.modeling_resnet import ResNetModel

from adapters.networks.hf_directory import build_model

_ARCHITECTURE = ("embedding_size", "hidden_sizes", "depths", "layer_type")
_FULL_STRIDE = 32
_BASIC: dict[str, Any] = {"layer_type": "basic", "embedding_size": 64, "hidden_sizes": [64, 128, 256, 512]}
_BOTTLENECK: dict[str, Any] = {"layer_type": "bottleneck", "embedding_size": 64, "hidden_sizes": [256, 512, 1024, 2048]}
RESNET_SPECS: dict[str, dict[str, Any]] = {
    "resnet_tiny": {**_BASIC, "embedding_size": 32, "hidden_sizes": [32, 64, 96, 128], "depths": [1, 2, 2, 1]},
    "resnet18": {**_BASIC, "depths": [2, 2, 2, 2]},
    "resnet34": {**_BASIC, "depths": [3, 4, 6, 3]},
    "resnet50": {**_BOTTLENECK, "depths": [3, 4, 6, 3]},
    "resnet101": {**_BOTTLENECK, "depths": [3, 4, 23, 3]},
    "resnet152": {**_BOTTLENECK, "depths": [3, 8, 36, 3]},
}
"""Arguments of ResNetConfig."""


class ResNetEncoder(nn.Module):
    """A ResNet; returns the maps of the chosen stages (1 to 4), stage 1 at stride 4."""

    def __init__(self, model: ResNetModel, stages: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.stages = tuple(stages)
        widths: Any = model.config.hidden_sizes
        self.feature_channels: tuple[int, ...] = tuple(widths[stage - 1] for stage in stages)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return maps `[B, C_l, H_l, W_l]` of normalised images `[B, 3, H, W]`, deepest last."""
        maps = self.model(images, output_hidden_states=True).hidden_states  # the stem's map comes first
        return tuple(maps[stage] for stage in self.stages)


def build_resnet(name: str, output_stride: int, stages: Sequence[int], pretrained: Path | None) -> ResNetEncoder:
    """Build the encoder `name` of `RESNET_SPECS` with its deepest map at `output_stride` (8, 16 or 32 pixels).

    Raises NetworkMismatch or UnsupportedModel when `pretrained` does not fit.
    """
    config = ResNetConfig(**RESNET_SPECS[name])
    model = build_model(ResNetModel, config, pretrained, _ARCHITECTURE)  # untrained: He's fan-out weights
    _dilate(list(model.encoder.stages), output_stride)
    return ResNetEncoder(model, stages)


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
