"""Ready Hugging Face segmentation models, split into `encode` and `decode`: SegFormer and UPerNet."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from adapters.errors import NetworkMismatch, UnsupportedModel
from adapters.hf_directory import load_directory
from adapters.network import SegmentationNetwork
from configs.settings import NetworkSettings

WORKING = ("segformer", "upernet")
"""Values of `model_type` in config.json that can be split."""


def build_huggingface(settings: NetworkSettings, num_classes: int) -> SegmentationNetwork:
    """The network of `settings.hf_config`, with fresh weights.

    Raises UnsupportedModel for a kind that cannot be split, NetworkMismatch when its class count is not `num_classes`.
    """
    if settings.hf_config is None:
        raise UnsupportedModel("network.name: 'huggingface' has no hf_config; bring such a model in with `mfmd import`")
    model_class, config = _config_of(settings.hf_config)
    return _split(model_class(config), num_classes)


def load_huggingface(directory: Path, hf_config: dict[str, Any], num_classes: int) -> SegmentationNetwork:
    """The network and weights of a local Hugging Face directory whose config.json holds `hf_config`.

    Reads safetensors only, downloads nothing. Raises UnsupportedModel or NetworkMismatch.
    """
    model_class, config = _config_of(hf_config)
    return _split(load_directory(model_class, config, directory), num_classes)


class SegformerEncoder(nn.Module):
    """The four stages of a SegFormer, strides 4 to 32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps `[B, C_l, H_l, W_l]` of normalised images `[B, 3, H, W]`, deepest last."""
        return tuple(self.model(images, output_hidden_states=True).hidden_states)


class BackboneEncoder(nn.Module):
    """Any backbone of transformers with `feature_maps`."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps `[B, C_l, H_l, W_l]` of normalised images `[B, 3, H, W]`, deepest last."""
        return tuple(self.backbone(images).feature_maps)


class Head(nn.Module):
    """A decode head of transformers that takes the maps and gives logits."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Logits `[B, K, H_1, W_1]` of the maps."""
        logits: Tensor = self.head(list(features))
        return logits


def _config_of(hf_config: dict[str, Any]) -> tuple[Any, Any]:
    """Model class and config object; only the submodule that is needed is imported (transformers is slow to import)."""
    kind = hf_config.get("model_type")
    if kind == "segformer":
        from transformers.models.segformer.configuration_segformer import SegformerConfig
        from transformers.models.segformer.modeling_segformer import SegformerForSemanticSegmentation

        return SegformerForSemanticSegmentation, SegformerConfig.from_dict(hf_config)
    if kind == "upernet":
        from transformers.models.upernet.configuration_upernet import UperNetConfig
        from transformers.models.upernet.modeling_upernet import UperNetForSemanticSegmentation

        if not isinstance(hf_config.get("backbone_config"), dict):
            raise UnsupportedModel(
                "config.json: this upernet names its backbone without backbone_config; save it again"
            )
        # The auxiliary head serves training in its home framework only; its weights are left out of the version.
        config = UperNetConfig.from_dict({**hf_config, "use_auxiliary_head": False})
        return UperNetForSemanticSegmentation, config
    raise UnsupportedModel(f"config.json: model_type {kind!r} cannot be split; these work: {', '.join(WORKING)}")


def _split(model: Any, num_classes: int) -> SegmentationNetwork:
    if model.config.num_labels != num_classes:
        raise NetworkMismatch(
            f"config.json: the model has {model.config.num_labels} classes, the configuration lists {num_classes}"
        )
    encoder: nn.Module
    if model.config.model_type == "segformer":
        encoder, channels = SegformerEncoder(model.segformer), model.config.hidden_sizes
    else:
        encoder, channels = BackboneEncoder(model.backbone), model.backbone.channels
    return SegmentationNetwork(encoder, Head(model.decode_head), num_classes=num_classes, feature_channels=channels)
