"""The DeepLab models for phones: MobileViT and MobileViTV2 with DeepLabV3, MobileNetV2 with DeepLabV3+.

All of them decode one map, the last layer's, at the model's output stride: convolutions and blocks | ASPP head.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from adapters.networks.huggingface.family import Encoder, Family, Head, Parts


class MobileVitEncoder(Encoder):
    """MobileViT or MobileViTV2 up to its last layer."""

    def __init__(self, model: Any, multiple: int = 1) -> None:
        super().__init__(multiple)
        self.model = model

    def maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return one map."""
        return (_through([self.model.conv_stem, *self.model.encoder.layer], images),)


class MobileNetEncoder(Encoder):
    """MobileNetV2 up to its last block; the 1x1 convolution behind it is for classification only."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return one map."""
        return (_through([self.model.conv_stem, *self.model.layer], images),)


class LastMapHead(nn.Module):
    """A decode head of transformers that takes the last map."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits `[B, K, H, W]` at the size of the last map."""
        logits: Tensor = self.head(features[-1])
        return logits


def _through(layers: Iterable[nn.Module], images: Tensor) -> Tensor:
    for layer in layers:
        images = layer(images)
    return images


def _mobilevit(hf_config: dict[str, Any]) -> tuple[Any, Any]:
    from transformers.models.mobilevit.configuration_mobilevit import MobileViTConfig
    from transformers.models.mobilevit.modeling_mobilevit import MobileViTForSemanticSegmentation

    return MobileViTForSemanticSegmentation, MobileViTConfig.from_dict(hf_config)


def _mobilevitv2(hf_config: dict[str, Any]) -> tuple[Any, Any]:
    from transformers.models.mobilevitv2.configuration_mobilevitv2 import MobileViTV2Config
    from transformers.models.mobilevitv2.modeling_mobilevitv2 import MobileViTV2ForSemanticSegmentation

    return MobileViTV2ForSemanticSegmentation, MobileViTV2Config.from_dict(hf_config)


def _mobilenet(hf_config: dict[str, Any]) -> tuple[Any, Any]:
    from transformers.models.mobilenet_v2.configuration_mobilenet_v2 import MobileNetV2Config
    from transformers.models.mobilenet_v2.modeling_mobilenet_v2 import MobileNetV2ForSemanticSegmentation

    return MobileNetV2ForSemanticSegmentation, MobileNetV2Config.from_dict(hf_config)


def _split_mobilevit(model: Any) -> Parts:
    channels = [model.config.neck_hidden_sizes[-2]]
    return Parts(MobileVitEncoder(model.mobilevit), Head(model.segmentation_head), channels)


def _split_mobilevitv2(model: Any) -> Parts:
    encoder = MobileVitEncoder(model.mobilevitv2, multiple=2 * model.config.output_stride)  # 2x2 patches of every map
    channels = [model.segmentation_head.aspp.convs[0].convolution.in_channels]
    return Parts(encoder, Head(model.segmentation_head), channels)


def _split_mobilenet(model: Any) -> Parts:
    channels = [model.segmentation_head.conv_aspp.convolution.in_channels]
    unused = (model.mobilenet_v2.conv_1x1,)
    return Parts(MobileNetEncoder(model.mobilenet_v2), LastMapHead(model.segmentation_head), channels, unused)


MOBILEVIT = Family("mobilevit", _mobilevit, _split_mobilevit)
"""MobileViT (Mehta and Rastegari 2022) with DeepLabV3."""
MOBILEVITV2 = Family("mobilevitv2", _mobilevitv2, _split_mobilevitv2)
"""MobileViTV2 (Mehta and Rastegari 2022) with DeepLabV3."""
MOBILENETV2 = Family("mobilenet_v2", _mobilenet, _split_mobilenet)
"""MobileNetV2 (Sandler et al. 2018) with DeepLabV3+."""
