"""ResNet encoders with a chosen output stride: He et al. 2016, dilated as in DeepLab, and a tiny one for small CPUs.

The modules have the names of transformers' ResNetModel, so weights in its format load into them. They are built here
because that class takes seconds and 120 MB of memory to import, in each process (docs/explanation/decisions/0020).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from adapters.networks.initialisation import initialise_convolutions

_FULL_STRIDE = 32


class _Normalised(nn.Module):
    """A convolution without bias and its BatchNorm; the side of the map shrinks by `stride` only."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        padding = kernel // 2 * dilation
        self.convolution = nn.Conv2d(channels, width, kernel, stride, padding, dilation, bias=False)
        self.normalization = nn.BatchNorm2d(width)

    def forward(self, maps: Tensor) -> Tensor:
        found: Tensor = self.normalization(self.convolution(maps))
        return found


class _Activated(_Normalised):
    """The same, followed by ReLU."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__(channels, width, kernel, stride, dilation)
        self.activation = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        found: Tensor = self.activation(super().forward(maps))
        return found


class _ResidualBlock(nn.Module):
    """Adds what `layer` computes to the input; a 1x1 convolution fits the input where shape or stride differ."""

    def __init__(self, channels: int, width: int, stride: int, layer: nn.Sequential) -> None:
        super().__init__()
        same = channels == width and stride == 1
        self.shortcut = nn.Identity() if same else _Normalised(channels, width, 1, stride)
        self.layer = layer
        self.activation = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        """Return `[B, width, H / stride, W / stride]` of maps `[B, channels, H, W]`."""
        found = self.layer(maps)
        found += self.shortcut(maps)
        activated: Tensor = self.activation(found)
        return activated


class BasicBlock(_ResidualBlock):
    """Two 3x3 convolutions; the first one has the stride (He et al. 2016, figure 5 left)."""

    def __init__(self, channels: int, width: int, stride: int, dilations: tuple[int, int]) -> None:
        first, second = dilations
        layers = (_Activated(channels, width, 3, stride, first), _Normalised(width, width, 3, 1, second))
        super().__init__(channels, width, stride, nn.Sequential(*layers))


class BottleneckBlock(_ResidualBlock):
    """A 3x3 convolution of a quarter of the width between two of 1x1 (He et al. 2016, figure 5 right).

    The 3x3 convolution has the stride, as in the weights that torchvision and timm publish; the paper gives it to the
    first one.
    """

    def __init__(self, channels: int, width: int, stride: int, dilations: tuple[int, int]) -> None:
        inner = width // 4
        middle = _Activated(inner, inner, 3, stride, dilations[0])
        layers = (_Activated(channels, inner, 1), middle, _Normalised(inner, width, 1))
        super().__init__(channels, width, stride, nn.Sequential(*layers))


@dataclass(frozen=True, slots=True)
class ResNetSpec:
    """The shape of a ResNet."""

    block: type[BasicBlock | BottleneckBlock]
    depths: tuple[int, int, int, int]
    """Blocks of each stage."""
    widths: tuple[int, int, int, int]
    """Channels of each stage."""
    stem: int = 64
    """Channels of the stem."""


_BASIC, _BOTTLENECK = (64, 128, 256, 512), (256, 512, 1024, 2048)
RESNET_SPECS: dict[str, ResNetSpec] = {
    "resnet_tiny": ResNetSpec(BasicBlock, (1, 2, 2, 1), (32, 64, 96, 128), stem=32),
    "resnet18": ResNetSpec(BasicBlock, (2, 2, 2, 2), _BASIC),
    "resnet34": ResNetSpec(BasicBlock, (3, 4, 6, 3), _BASIC),
    "resnet50": ResNetSpec(BottleneckBlock, (3, 4, 6, 3), _BOTTLENECK),
    "resnet101": ResNetSpec(BottleneckBlock, (3, 4, 23, 3), _BOTTLENECK),
    "resnet152": ResNetSpec(BottleneckBlock, (3, 8, 36, 3), _BOTTLENECK),
}
"""He et al. 2016, table 1; `resnet_tiny` is ours."""


class _Stem(nn.Module):
    """A 7x7 convolution and a max pooling."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedder = _Activated(3, width, 7, 2)
        self.pooler = nn.MaxPool2d(3, 2, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return maps `[B, width, H / 4, W / 4]` of images `[B, 3, H, W]`."""
        found: Tensor = self.pooler(self.embedder(images))
        return found


class _Stage(nn.Module):
    """Blocks of one width; only the first has a stride, and its first 3x3 convolution the dilation of the stage before.

    That convolution's input was never subsampled. So every second position sees what the strided network sees.
    """

    def __init__(self, spec: ResNetSpec, stage: int, stride: int, before: int, dilation: int) -> None:
        super().__init__()
        width = spec.widths[stage]
        channels = spec.widths[stage - 1] if stage else spec.stem
        first = spec.block(channels, width, stride, (before, dilation))
        rest = [spec.block(width, width, 1, (dilation, dilation)) for _ in range(spec.depths[stage] - 1)]
        self.layers = nn.Sequential(first, *rest)

    def forward(self, maps: Tensor) -> Tensor:
        found: Tensor = self.layers(maps)
        return found


class _Stages(nn.Module):
    """The four stages; the strides of the last ones become dilation until the deepest map has `output_stride`."""

    def __init__(self, spec: ResNetSpec, output_stride: int) -> None:
        super().__init__()
        dilation, excess = 1, _FULL_STRIDE // output_stride
        self.stages = nn.ModuleList()
        for stage in range(4):
            before, stride = dilation, 2 if stage else 1
            if stage and excess >= 2 ** (4 - stage):
                dilation, stride = 2 * dilation, 1
            self.stages.append(_Stage(spec, stage, stride, before, dilation))

    def forward(self, maps: Tensor) -> Iterator[Tensor]:
        """Give the map of each stage in turn."""
        for stage in self.stages:
            maps = stage(maps)
            yield maps


class ResNet(nn.Module):
    """Stem and stages; initial weights are He's fan-out ones."""

    def __init__(self, spec: ResNetSpec, output_stride: int) -> None:
        super().__init__()
        self.embedder = _Stem(spec.stem)
        self.encoder = _Stages(spec, output_stride)
        initialise_convolutions(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps `[B, C_l, H_l, W_l]` of the four stages of normalised images `[B, 3, H, W]`."""
        return list(self.encoder(self.embedder(images)))


class ResNetEncoder(nn.Module):
    """A ResNet; returns the maps of the chosen stages (1 to 4), stage 1 at stride 4."""

    def __init__(self, model: ResNet, spec: ResNetSpec, stages: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.stages = tuple(stages)
        self.feature_channels: tuple[int, ...] = tuple(spec.widths[stage - 1] for stage in stages)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return maps `[B, C_l, H_l, W_l]` of normalised images `[B, 3, H, W]`, deepest last."""
        maps = self.model(images)
        return tuple(maps[stage - 1] for stage in self.stages)


def build_resnet(name: str, output_stride: int, stages: Sequence[int], pretrained: Path | None) -> ResNetEncoder:
    """Build the encoder `name` of `RESNET_SPECS` with its deepest map at `output_stride` (8, 16 or 32 pixels).

    `pretrained` is a Hugging Face directory of a ResNet. Raises NetworkMismatch or UnsupportedModel when it does not
    fit.
    """
    spec = RESNET_SPECS[name]
    model = ResNet(spec, output_stride)
    if pretrained is not None:
        model.load_state_dict(_published_weights(spec, pretrained))
    return ResNetEncoder(model, spec, stages)


def _published_weights(spec: ResNetSpec, directory: Path) -> dict[str, Tensor]:
    """Read the weights in `directory` through transformers, which knows older names too."""
    from transformers.models.resnet.configuration_resnet import ResNetConfig
    from transformers.models.resnet.modeling_resnet import ResNetModel

    from adapters.networks.hf_directory import build_model

    kind = "basic" if spec.block is BasicBlock else "bottleneck"
    sizes: dict[str, Any] = {"embedding_size": spec.stem, "hidden_sizes": [*spec.widths], "depths": [*spec.depths]}
    config = ResNetConfig(layer_type=kind, **sizes)
    weights: dict[str, Tensor] = build_model(ResNetModel, config, directory, ("layer_type", *sizes)).state_dict()
    return weights
