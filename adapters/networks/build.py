"""Build a network from `Architecture`."""

from collections.abc import Sequence
from typing import Any

import torch

from adapters.errors import NetworkMismatch
from adapters.networks.contract import check_contract
from adapters.networks.decoders import daformer, deeplab
from adapters.networks.decoders.unet import UnetHead
from adapters.networks.encoders.unet import UnetEncoder
from adapters.networks.multi_resolution import MultiResolutionNetwork
from adapters.networks.network import SegmentationNetwork
from adapters.networks.own import build_own
from adapters.networks.source_digest import source_digest
from configs.network import Architecture, is_own

ENCODER_FAMILIES = {
    "daformer": ("mit", "dinov2"),
    "deeplabv2": ("resnet", "dinov2"),
    "deeplabv3plus": ("resnet",),
    "unet": ("unet",),
}
"""Encoders that each decoder can read: DAFormer needs four levels, DeepLabV2 one, DeepLabV3+ the deepest map and stride
4, U-Net one at full size."""


def build_network(settings: Architecture, num_classes: int) -> SegmentationNetwork:
    """Build the network of `settings` with untrained weights (encoder weights from `settings.pretrained` if set).

    Convolution weights lie channels-last in memory. That trains up to a third faster on CPUs and on tensor cores, and
    answers a sixth faster on CPUs; the layout of the images makes no difference there. Raises NetworkMismatch when
    encoder and decoder do not fit, or when a network of an operator's own is not as it must be, UnsupportedModel when
    weights cannot be read.
    """
    _check_pair(settings)
    builders = {
        "daformer": _daformer,
        "deeplabv2": _deeplabv2,
        "deeplabv3plus": _deeplabv3plus,
        "unet": _unet,
        "huggingface": _huggingface,
    }
    network = (build_own if is_own(settings.name) else builders[settings.name])(settings, num_classes)
    if is_own(settings.name):
        network.source_digest = source_digest(settings.name, network)
    if settings.multi_resolution:
        sizes = (network.feature_channels, settings.channels, num_classes, settings.dropout)
        network = MultiResolutionNetwork(network, daformer.ScaleAttention(*sizes))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack this overload
    return network


def build_checked(settings: Architecture, num_classes: int) -> SegmentationNetwork:
    """Build the network of `settings`; one of an operator's own has kept the whole contract before it is returned.

    For the start of a network (training, import). A registered version was checked then. Raises as `build_network`.
    """
    if is_own(settings.name):
        try:
            check_contract(lambda: build_network(settings, num_classes))
        except NetworkMismatch as error:
            prefix = "" if str(error).startswith("network.") else f"network.name: {settings.name}: "
            raise NetworkMismatch(f"{prefix}{error}") from error
    return build_network(settings, num_classes)


def _check_pair(settings: Architecture) -> None:
    if settings.name == "huggingface" or is_own(settings.name):
        return
    families = ENCODER_FAMILIES[settings.name]
    if not settings.encoder.startswith(families):
        fitting = [decoder for decoder, known in ENCODER_FAMILIES.items() if settings.encoder.startswith(known)]
        raise NetworkMismatch(
            f"network: decoder {settings.name!r} does not fit encoder {settings.encoder!r}: it takes encoders "
            f"{' and '.join(families)}; {settings.encoder} fits {' and '.join(fitting)}"
        )
    if settings.hf_config is not None or settings.hf_preprocessor is not None:
        raise NetworkMismatch(f"network: hf_config and hf_preprocessor belong to 'huggingface', not {settings.name!r}")


def _daformer(settings: Architecture, num_classes: int) -> SegmentationNetwork:
    encoder: Any
    if settings.encoder.startswith("mit"):
        from adapters.networks.encoders.mit import build_mit  # transformers is imported only by those who need it

        encoder = build_mit(settings.encoder, settings.pretrained)
    else:
        from adapters.networks.encoders.dinov2 import build_dinov2

        encoder = build_dinov2(settings.encoder, settings.pretrained, pyramid=True)
    dilations = daformer.TINY_DILATIONS if _tiny(settings) else daformer.DILATIONS
    head = daformer.DaformerHead(encoder.feature_channels, settings.channels, num_classes, settings.dropout, dilations)
    return SegmentationNetwork(encoder, head, num_classes=num_classes, feature_channels=encoder.feature_channels)


def _deeplabv2(settings: Architecture, num_classes: int) -> SegmentationNetwork:
    encoder: Any
    if settings.encoder.startswith("resnet"):
        from adapters.networks.encoders.resnet import build_resnet

        encoder = build_resnet(settings.encoder, settings.output_stride, (4,), settings.pretrained)
        dilations: Sequence[int] = deeplab.V2_DILATIONS["resnet"]
    else:
        from adapters.networks.encoders.dinov2 import build_dinov2

        encoder = build_dinov2(settings.encoder, settings.pretrained, pyramid=False)
        dilations = deeplab.V2_DILATIONS["dinov2"]
    if _tiny(settings):
        dilations = deeplab.for_small_crops(dilations)
    head = deeplab.DeepLabV2Head(encoder.feature_channels[-1], num_classes, dilations)
    return SegmentationNetwork(encoder, head, num_classes=num_classes, feature_channels=encoder.feature_channels)


def _deeplabv3plus(settings: Architecture, num_classes: int) -> SegmentationNetwork:
    from adapters.networks.encoders.resnet import build_resnet

    encoder = build_resnet(settings.encoder, settings.output_stride, (1, 4), settings.pretrained)
    dilations: Sequence[int] = deeplab.DILATIONS[settings.output_stride]
    if _tiny(settings):
        dilations = deeplab.for_small_crops(dilations)
    sizes = (encoder.feature_channels, settings.channels, num_classes, settings.dropout)
    head = deeplab.DeepLabV3PlusHead(*sizes, dilations)
    return SegmentationNetwork(encoder, head, num_classes=num_classes, feature_channels=encoder.feature_channels)


def _unet(settings: Architecture, num_classes: int) -> SegmentationNetwork:
    if settings.pretrained is not None:
        raise NetworkMismatch("network.pretrained: U-Nets have no encoder weights; leave it out")
    encoder = UnetEncoder(settings.encoder)
    head = UnetHead(encoder.feature_channels, num_classes, settings.dropout)
    return SegmentationNetwork(encoder, head, num_classes=num_classes, feature_channels=encoder.feature_channels)


def _huggingface(settings: Architecture, num_classes: int) -> SegmentationNetwork:
    from adapters.networks.huggingface.models import build_huggingface

    return build_huggingface(settings, num_classes)[0]


def _tiny(settings: Architecture) -> bool:
    return settings.encoder.endswith("_tiny")
