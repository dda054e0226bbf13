"""Models whose encoder gives maps by itself: SegFormer, UPerNet on any backbone, and the DeepLab models for phones."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from adapters.networks.huggingface.family import Encoder, Head, Parts


class SegformerEncoder(Encoder):
    """The four stages of a SegFormer, strides 4 to 32."""

    def _maps(self, images: Tensor) -> Sequence[Tensor]:
        maps: Sequence[Tensor] = self.model(images, output_hidden_states=True).hidden_states
        return maps


class BackboneEncoder(Encoder):
    """Any backbone of transformers with `feature_maps`."""

    backbone: Any

    def _maps(self, images: Tensor) -> Sequence[Tensor]:
        maps: Sequence[Tensor] = self.backbone(images).feature_maps
        return maps


class MobileVitEncoder(Encoder):
    """MobileViT or MobileViTV2 up to its last layer: one map."""

    def _maps(self, images: Tensor) -> Sequence[Tensor]:
        return [_through([self.model.conv_stem, *self.model.encoder.layer], images)]


class MobileNetEncoder(Encoder):
    """MobileNetV2 up to its last block: one map; the 1x1 convolution behind it is for classification only."""

    def _maps(self, images: Tensor) -> Sequence[Tensor]:
        return [_through([self.model.conv_stem, *self.model.layer], images)]


def _through(layers: Iterable[nn.Module], images: Tensor) -> Tensor:
    for layer in layers:
        images = layer(images)
    return images


def split_segformer(model: Any) -> Parts:
    """SegFormer (Xie et al. 2021): four stages of the Mix Transformer | all-MLP head."""
    return Parts(SegformerEncoder(model=model.segformer), Head(model.decode_head), model.config.hidden_sizes)


def split_upernet(model: Any) -> Parts:
    """UPerNet (Xiao et al. 2018) on any backbone of transformers (Swin, ConvNeXt, ResNet, ...): backbone | head."""
    backbone = model.backbone
    unused = unread_parts(backbone)
    return Parts(BackboneEncoder(backbone=backbone), Head(model.decode_head), backbone.channels, unused)


def unread_parts(backbone: Any) -> tuple[nn.Module | nn.Parameter, ...]:
    """Return what no map of a backbone depends on: the last norm of a Swin, only for classes of images, mask tokens."""
    kind = backbone.config.model_type
    swin = backbone.model if kind == "maskformer-swin" else getattr(backbone, "swin", None)
    tokens = [value for name, value in backbone.named_parameters() if name.endswith("mask_token")]
    return (*tokens, *(() if swin is None else (swin.layernorm,)))


def split_mobilevit(model: Any) -> Parts:
    """MobileViT (Mehta and Rastegari 2022) with DeepLabV3: convolutions and blocks | ASPP head."""
    channels = [model.config.neck_hidden_sizes[-2]]
    return Parts(MobileVitEncoder(model=model.mobilevit), Head(model.segmentation_head), channels)


def split_mobilevitv2(model: Any) -> Parts:
    """MobileViTV2 (Mehta and Rastegari 2022) with DeepLabV3: convolutions and blocks | ASPP head."""
    encoder = MobileVitEncoder(2 * model.config.output_stride, model=model.mobilevitv2)  # 2x2 patches of every map
    channels = [model.segmentation_head.aspp.convs[0].convolution.in_channels]
    return Parts(encoder, Head(model.segmentation_head), channels)


def split_mobilenet(model: Any) -> Parts:
    """MobileNetV2 (Sandler et al. 2018) with DeepLabV3+: convolutions | ASPP head."""
    channels = [model.segmentation_head.conv_aspp.convolution.in_channels]
    unused = (model.mobilenet_v2.conv_1x1,)
    encoder = MobileNetEncoder(model=model.mobilenet_v2)
    return Parts(encoder, Head(model.segmentation_head, last=True), channels, unused)
