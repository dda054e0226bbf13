"""Build a network from `Architecture`."""

from collections.abc import Sequence
from typing import Any

import torch

from adapters.errors import NetworkMismatch
from adapters.networks.contract import check_contract
from adapters.networks.decoders import daformer, deeplab
from adapters.networks.decoders.unet import NarrowedUnetHead, UnetHead
from adapters.networks.decoders.vfm import LightHead, PyramidHead
from adapters.networks.encoders.unet import UnetEncoder
from adapters.networks.multi_resolution import MultiResolutionNetwork
from adapters.networks.network import SegmentationNetwork
from adapters.networks.own import build_own
from adapters.networks.source_digest import source_digest
from configs.network import Architecture, is_own

ENCODER_FAMILIES = {
    "daformer": (
        "mit", "dinov2", "dinov3", "dinov2_adapter", "dinov3_adapter", "dinov3_convnext",
        "dinov2_tokens", "dinov3_tokens",
    ),
    "deeplabv2": ("resnet", "dinov2", "dinov3"),
    "deeplabv3plus": ("resnet",),
    "unet": ("unet", "dinov2_tokens", "dinov3_tokens"),
    "light": ("dinov2", "dinov3"),
    "pyramid": ("dinov2_adapter", "dinov3_adapter", "dinov3_convnext"),
}  # fmt: skip
"""Encoders that each decoder can read: DAFormer needs four levels, DeepLabV2 one, DeepLabV3+ the deepest map and stride
4, U-Net one at full size or four of a frozen ViT, the light head a ViT's tokens, the pyramid head four levels that
double in size."""


def family_of(encoder: str) -> str:
    """Return the family of `encoder`: its name without the size, `resnet` of `resnet50`."""
    return encoder.rpartition("_")[0] or encoder.rstrip("0123456789")


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
        "light": _light,
        "pyramid": _pyramid,
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
    if (family := family_of(settings.encoder)) not in families:
        fitting = [decoder for decoder, known in ENCODER_FAMILIES.items() if family in known]
        raise NetworkMismatch(
            f"network: decoder {settings.name!r} does not fit encoder {settings.encoder!r}: it takes encoders "
            f"{_either(families)}; {settings.encoder} fits {_either(fitting)}"
        )
    if settings.hf_config is not None or settings.hf_preprocessor is not None:
        raise NetworkMismatch(f"network: hf_config and hf_preprocessor belong to 'huggingface', not {settings.name!r}")


def _either(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def _four_levels(settings: Architecture) -> Any:
    """Build an encoder of four levels; transformers is imported only by those that need it."""
    name, pretrained = settings.encoder, settings.pretrained
    match family_of(name):
        case "mit":
            from adapters.networks.encoders.mit import build_mit

            return build_mit(name, pretrained)
        case "dinov3_convnext":
            from adapters.networks.encoders.dinov3 import build_convnext

            return build_convnext(name, pretrained)
        case "dinov2" | "dinov3":
            return _vit(settings, pyramid=True)
        case "dinov2_tokens" | "dinov3_tokens":
            from adapters.networks.encoders.low_rank_tokens import TokenVit

            plain = settings.model_copy(update={"encoder": name.replace("_tokens", "")})
            return TokenVit(_vit(plain, pyramid=False), settings.tokens)
        case _:
            from adapters.networks.encoders.vit_adapter import AdaptedVit

            plain = settings.model_copy(update={"encoder": name.replace("_adapter", "")})
            return AdaptedVit(_vit(plain, pyramid=False))


def _vit(settings: Architecture, *, pyramid: bool, dense: bool = False) -> Any:
    if family_of(settings.encoder) == "dinov3":
        from adapters.networks.encoders.dinov3 import build_dinov3

        return build_dinov3(settings.encoder, settings.pretrained, pyramid=pyramid)
    from adapters.networks.encoders.dinov2 import build_dinov2

    return build_dinov2(settings.encoder, settings.pretrained, pyramid=pyramid, dense=dense)


def _daformer(settings: Architecture, num_classes: int) -> SegmentationNetwork:
    encoder = _four_levels(settings)
    dilations = daformer.TINY_DILATIONS if _tiny(settings) else daformer.DILATIONS
    head = daformer.DaformerHead(encoder.feature_channels, settings.channels, num_classes, settings.dropout, dilations)
    return SegmentationNetwork(encoder, head, num_classes=num_classes, feature_channels=encoder.feature_channels)


def _pyramid(settings: Architecture, num_classes: int) -> SegmentationNetwork:
    encoder = _four_levels(settings)
    head = PyramidHead(encoder.feature_channels, num_classes)
    return SegmentationNetwork(encoder, head, num_classes=num_classes, feature_channels=encoder.feature_channels)


def _light(settings: Architecture, num_classes: int) -> SegmentationNetwork:
    encoder = _vit(settings, pyramid=False, dense=True)
    head = LightHead(encoder.feature_channels[-1], num_classes)
    return SegmentationNetwork(encoder, head, num_classes=num_classes, feature_channels=encoder.feature_channels)


def _deeplabv2(settings: Architecture, num_classes: int) -> SegmentationNetwork:
    family = family_of(settings.encoder)
    if family == "resnet":
        from adapters.networks.encoders.resnet import build_resnet

        encoder: Any = build_resnet(settings.encoder, settings.output_stride, (4,), settings.pretrained)
    else:
        encoder = _vit(settings, pyramid=False)
    dilations: Sequence[int] = deeplab.V2_DILATIONS[family]
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
    if family_of(settings.encoder) != "unet":
        vit = _four_levels(settings)
        sizes = (vit.feature_channels, settings.tokens.head_width, num_classes, settings.dropout)
        return SegmentationNetwork(
            vit, NarrowedUnetHead(*sizes), num_classes=num_classes, feature_channels=vit.feature_channels
        )
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
