"""Pixel scaling of an imported model, from its preprocessor_config.json, and the change from mfmd's scaling.

mfmd gives every network RGB with ImageNet mean and deviation (`adapters.networks.network.normalise`). BEiT, DPT and
MobileNetV2 were trained on pixels in [-1, 1], MobileViT on BGR in [0, 1]. The encoder applies an affine change of each
channel.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.errors import UnsupportedModel
from adapters.networks.network import IMAGENET_MEAN, IMAGENET_STD

Triple = tuple[float, float, float]
_HALF: Triple = (0.5, 0.5, 0.5)
_SAME = 1e-6


class PixelScaling(NamedTuple):
    """Model input = (RGB in [0, 1] - mean) / std, then BGR if the model expects it."""

    mean: Triple
    std: Triple
    bgr: bool = False


IMAGENET = PixelScaling(IMAGENET_MEAN, IMAGENET_STD)
"""mfmd's own scaling."""
_SYMMETRIC = PixelScaling(_HALF, _HALF)
_PLAIN_BGR = PixelScaling((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), bgr=True)
_DEFAULTS = {
    "Segformer": IMAGENET,
    "Mask2Former": IMAGENET,
    "MaskFormer": IMAGENET,
    "OneFormer": IMAGENET,
    "Eomt": IMAGENET,
    "ConvNext": _SYMMETRIC,
    "Beit": _SYMMETRIC,
    "DPT": _SYMMETRIC,
    "MobileNetV2": _SYMMETRIC,
    "MobileViT": _PLAIN_BGR,
}
"""Defaults of the image processors of transformers, by the prefix of their names."""


class PixelChange(nn.Module):
    """Change from mfmd's scaling to another; holds no weights."""

    factor: Tensor
    offset: Tensor

    def __init__(self, scaling: PixelScaling) -> None:
        super().__init__()
        own_mean, own_std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        mean, std = torch.tensor(scaling.mean), torch.tensor(scaling.std)
        self.bgr = scaling.bgr
        self.register_buffer("factor", (own_std / std).view(3, 1, 1), persistent=False)
        self.register_buffer("offset", ((own_mean - mean) / std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Change `[B, 3, H, W]` from ImageNet-normalised RGB to what the model expects."""
        changed = images * self.factor + self.offset
        return changed.flip(1) if self.bgr else changed


def pixel_change(preprocessor: dict[str, Any] | None) -> nn.Module:
    """Return the change for a model with this preprocessor_config.json; None means mfmd's own scaling.

    Raises UnsupportedModel when the file does not define the scaling.
    """
    scaling = scaling_of(preprocessor)
    pairs = zip((*scaling.mean, *scaling.std), (*IMAGENET.mean, *IMAGENET.std), strict=True)
    if not scaling.bgr and all(abs(theirs - ours) < _SAME for theirs, ours in pairs):
        return nn.Identity()
    return PixelChange(scaling)


def scaling_of(preprocessor: dict[str, Any] | None) -> PixelScaling:
    """Return the scaling of a preprocessor_config.json. Raises UnsupportedModel when it defines none."""
    if preprocessor is None:
        return IMAGENET
    default = _default_of(preprocessor)
    rescaled = preprocessor.get("do_rescale", True)
    rescale = preprocessor.get("rescale_factor", 1 / 255)
    if rescaled and not (_number(rescale) and rescale > 0):
        raise UnsupportedModel(f"preprocessor_config.json: rescale_factor is {rescale!r}; a number above 0 is needed")
    factor = 255.0 * float(rescale) if rescaled else 255.0
    normalised = preprocessor.get("do_normalize")
    if default is not _PLAIN_BGR if normalised is None else normalised:
        mean = _triple(preprocessor, "image_mean", default and default.mean)
        std = _triple(preprocessor, "image_std", default and default.std)
    else:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    bgr = bool(preprocessor.get("do_flip_channel_order", default is not None and default.bgr))
    if bgr and any(mean):
        raise UnsupportedModel("preprocessor_config.json: do_flip_channel_order and do_normalize at once are not read")
    return PixelScaling(_divided(mean, factor), _divided(std, factor), bgr)


def processor_name(preprocessor: Mapping[str, Any]) -> str:
    """Return the class of a processor as its file names it, in either generation; empty when it does not."""
    return str(preprocessor.get("image_processor_type") or preprocessor.get("feature_extractor_type") or "")


def _default_of(preprocessor: dict[str, Any]) -> PixelScaling | None:
    name = processor_name(preprocessor)
    return next((scaling for start, scaling in _DEFAULTS.items() if name.startswith(start)), None)


def _triple(preprocessor: dict[str, Any], key: str, default: Triple | None) -> Triple:
    value = preprocessor.get(key) or default
    if isinstance(value, (int, float)):
        value = (value,) * 3
    if not isinstance(value, (list, tuple)) or len(value) != 3 or not all(_number(x) for x in value):
        known = "" if default else f"; {processor_name(preprocessor) or 'a file without a name'} has no known default"
        raise UnsupportedModel(
            f"preprocessor_config.json: {key} is {value}; three numbers are needed, one a channel{known}"
        )
    if key == "image_std" and min(value) <= 0:
        raise UnsupportedModel(f"preprocessor_config.json: {key} is {value}; a deviation is above 0")
    return float(value[0]), float(value[1]), float(value[2])


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _divided(values: Triple, factor: float) -> Triple:
    # (factor * x - mean) / std is (x - mean / factor) / (std / factor)
    return values[0] / factor, values[1] / factor, values[2] / factor


class SingleValueBatchNorm(nn.BatchNorm2d):
    """BatchNorm2d that uses its running statistics when a channel has only one value to learn from.

    torch refuses such a batch, so the pooled branches of UPerNet and DeepLab could not train on one image at a time.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise `maps` `[B, C, H, W]`."""
        if self.training and maps.shape[0] * maps.shape[2] * maps.shape[3] == 1:
            return F.batch_norm(maps, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(maps)


def allow_single_values(module: nn.Module) -> None:
    """Let each BatchNorm2d below `module` accept single values; weights, statistics and names stay."""
    for layer in module.modules():
        if type(layer) is nn.BatchNorm2d:
            layer.__class__ = SingleValueBatchNorm  # it differs in `forward` alone
