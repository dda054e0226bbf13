"""Tiny Hugging Face segmentation models with random weights, one for each kind that can be imported."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

CLASSES = 8  # of the demo list
_VIT = {
    "hidden_size": 24,
    "num_hidden_layers": 5,
    "num_attention_heads": 3,
    "intermediate_size": 32,
    "image_size": 96,
    "patch_size": 16,
    "num_labels": CLASSES,
}
_STAGES = ["stage1", "stage2", "stage3", "stage4"]


def segformer() -> Any:
    """SegFormer."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    sizes = {"hidden_sizes": [8, 16, 40, 64], "depths": [1, 1, 1, 1], "decoder_hidden_size": 16}
    return SegformerForSemanticSegmentation(SegformerConfig(**sizes, num_labels=CLASSES))


def upernet_convnext() -> Any:
    """UPerNet on ConvNeXt."""
    from transformers import ConvNextConfig

    return _upernet(ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], out_features=_STAGES))


def upernet_swin() -> Any:
    """UPerNet on Swin."""
    from transformers import SwinConfig

    return _upernet(
        SwinConfig(
            image_size=64, embed_dim=8, depths=[1, 2, 1, 1], num_heads=[1, 2, 2, 4], window_size=4, out_features=_STAGES
        )
    )


def upernet_resnet() -> Any:
    """UPerNet on ResNet."""
    from transformers import ResNetConfig

    return _upernet(
        ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 16, 24, 32],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            out_features=_STAGES,
        )
    )


def beit() -> Any:
    """BEiT as its ADE20k models are: relative positions in every block, a block that nothing reads at the end."""
    from transformers import BeitConfig, BeitForSemanticSegmentation

    return BeitForSemanticSegmentation(
        BeitConfig(**_VIT, out_indices=[2, 3, 4, 5], use_relative_position_bias=True, auxiliary_channels=8)
    )


def beit_shared() -> Any:
    """BEiT with one relative position table and absolute positions too."""
    from transformers import BeitConfig, BeitForSemanticSegmentation

    more = {"use_shared_relative_position_bias": True, "use_absolute_position_embeddings": True}
    return BeitForSemanticSegmentation(
        BeitConfig(**_VIT, out_indices=[1, 2, 4, 5], use_auxiliary_head=False, use_mean_pooling=False, **more)
    )


def data2vec() -> Any:
    """Data2Vec-Vision."""
    from transformers import Data2VecVisionConfig, Data2VecVisionForSemanticSegmentation

    more = {"use_shared_relative_position_bias": True, "auxiliary_channels": 8}
    return Data2VecVisionForSemanticSegmentation(Data2VecVisionConfig(**_VIT, out_indices=[2, 3, 4, 5], **more))


def dpt() -> Any:
    """DPT on its own ViT."""
    from transformers import DPTConfig, DPTForSemanticSegmentation

    sizes = {"neck_hidden_sizes": [8, 12, 16, 24], "fusion_hidden_size": 16}
    return DPTForSemanticSegmentation(DPTConfig(**_VIT, **sizes, backbone_out_indices=[0, 1, 2, 3]))


def mobilevit() -> Any:
    """MobileViT with DeepLabV3."""
    from transformers import MobileViTConfig, MobileViTForSemanticSegmentation

    sizes = {"hidden_sizes": [16, 20, 24], "neck_hidden_sizes": [8, 8, 12, 16, 20, 24, 32], "aspp_out_channels": 16}
    return MobileViTForSemanticSegmentation(
        MobileViTConfig(**sizes, num_labels=CLASSES, num_attention_heads=2, output_stride=16)
    )


def mobilevitv2() -> Any:
    """MobileViTV2 with DeepLabV3."""
    from transformers import MobileViTV2Config, MobileViTV2ForSemanticSegmentation

    sizes = {"width_multiplier": 0.125, "n_attn_blocks": [1, 1, 1], "aspp_out_channels": 16}
    return MobileViTV2ForSemanticSegmentation(MobileViTV2Config(**sizes, num_labels=CLASSES, output_stride=16))


def mobilenetv2() -> Any:
    """MobileNetV2 with DeepLabV3+."""
    from transformers import MobileNetV2Config, MobileNetV2ForSemanticSegmentation

    return MobileNetV2ForSemanticSegmentation(
        MobileNetV2Config(depth_multiplier=0.25, num_labels=CLASSES, output_stride=8)
    )


MODELS: dict[str, Callable[[], Any]] = {
    make.__name__: make
    for make in (
        segformer, upernet_convnext, upernet_swin, upernet_resnet, beit, beit_shared, data2vec, dpt,
        mobilevit, mobilevitv2, mobilenetv2,
    )
}  # fmt: skip
FEW = ("segformer", "beit", "mobilenetv2")
ROWS = [pytest.param(name, marks=() if name in FEW else pytest.mark.nightly) for name in MODELS]
"""Each model: a transformer with maps of its own, a plain one and a convolutional one in every `make test`."""
SQUARE_ONLY = ("data2vec", "dpt")
"""Models that transformers itself runs on square images only."""
ANY_SIZE = ("segformer", "upernet_convnext", "upernet_swin", "upernet_resnet", "mobilevit", "mobilenetv2")
"""Models that transformers runs on sizes that no stride divides."""


def model(name: str, seed: int = 0) -> Any:
    """The model in eval mode; what starts at zero or one is drawn too, so that no weight can be left out unnoticed."""
    torch.manual_seed(seed)
    made = MODELS[name]()
    with torch.no_grad():
        for value in made.parameters():
            if value.std() == 0 or value.numel() == 1:
                value.add_(torch.randn_like(value) * 0.1)
        for buffer_name, value in made.named_buffers():
            if buffer_name.endswith("running_mean"):
                value.normal_(0, 0.1)
            elif buffer_name.endswith("running_var"):
                value.uniform_(0.8, 1.2)
    return made.eval()


def _upernet(backbone: Any) -> Any:
    from transformers import UperNetConfig, UperNetForSemanticSegmentation

    return UperNetForSemanticSegmentation(
        UperNetConfig(
            backbone_config=backbone,
            hidden_size=16,
            num_labels=CLASSES,
            auxiliary_in_channels=32 if backbone.model_type == "swin" else 24,
            auxiliary_channels=8,
        )
    )
