"""UPerNet (Xiao et al. 2018) on any backbone of transformers (Swin, ConvNeXt, ResNet, ...): backbone | UPerNet head."""

from typing import Any

from torch import Tensor, nn

from adapters.errors import UnsupportedModel
from adapters.networks.huggingface.family import Encoder, Family, Head, Parts


class BackboneEncoder(Encoder):
    """Any backbone of transformers with `feature_maps`."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the backbone's maps."""
        return tuple(self.backbone(images).feature_maps)


def _model_of(hf_config: dict[str, Any]) -> tuple[Any, Any]:
    from transformers.models.upernet.configuration_upernet import UperNetConfig
    from transformers.models.upernet.modeling_upernet import UperNetForSemanticSegmentation

    if not isinstance(hf_config.get("backbone_config"), dict):
        raise UnsupportedModel("config.json: this upernet names its backbone without backbone_config; save it again")
    return UperNetForSemanticSegmentation, UperNetConfig.from_dict({**hf_config, "use_auxiliary_head": False})


def _split(model: Any) -> Parts:
    swin = getattr(model.backbone, "swin", None)  # its last norm serves classification only
    unused = () if swin is None else (swin.layernorm,)
    return Parts(BackboneEncoder(model.backbone), Head(model.decode_head), model.backbone.channels, unused)


UPERNET = Family("upernet", _model_of, _split)
"""UPerNet."""
