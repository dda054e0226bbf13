"""Tiny Hugging Face segmentation models with random weights, one for each kind that can be imported."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import torch.nn.functional as F

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
_EOMT = {
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "image_size": 96,
    "patch_size": 16,
    "num_labels": CLASSES,
    "num_blocks": 2,
    "num_queries": 10,
    "num_register_tokens": 2,
}
_QUERIES = {
    "hidden_dim": 32,
    "encoder_feedforward_dim": 32,
    "encoder_layers": 1,
    "decoder_layers": 4,
    "num_attention_heads": 4,
    "dim_feedforward": 32,
    "num_queries": 10,
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
    return _upernet(_swin())


def upernet_resnet() -> Any:
    """UPerNet on ResNet."""
    return _upernet(_resnet())


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


def mask2former() -> Any:
    """Mask2Former on Swin."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    return Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(backbone_config=_swin(), feature_size=32, mask_feature_size=32, **_QUERIES)
    )


def maskformer() -> Any:
    """MaskFormer on ResNet, as its small models are."""
    from transformers import DetrConfig, MaskFormerConfig, MaskFormerForInstanceSegmentation

    detr = DetrConfig(d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=32, num_queries=10)
    sizes = {"fpn_feature_size": 32, "mask_feature_size": 32}
    return MaskFormerForInstanceSegmentation(
        MaskFormerConfig(backbone_config=_resnet(), decoder_config=detr, num_labels=CLASSES, **sizes)
    )


def maskformer_swin() -> Any:
    """MaskFormer on Swin, for which transformers has a second implementation."""
    from transformers import DetrConfig, MaskFormerConfig, MaskFormerForInstanceSegmentation

    detr = DetrConfig(d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=32, num_queries=10)
    sizes = {"fpn_feature_size": 32, "mask_feature_size": 32}
    return MaskFormerForInstanceSegmentation(
        MaskFormerConfig(backbone_config=_swin(), decoder_config=detr, num_labels=CLASSES, **sizes)
    )


def oneformer() -> Any:
    """OneFormer on Swin."""
    from transformers import OneFormerConfig, OneFormerForUniversalSegmentation

    sizes = {"conv_dim": 32, "mask_dim": 32, "query_dec_layers": 1}
    return OneFormerForUniversalSegmentation(OneFormerConfig(backbone_config=_swin(), **_QUERIES, **sizes))


def tips() -> Any:
    """TIPSv2 with DPT; a block that nothing reads at the end."""
    from transformers import Tipsv2DptConfig, Tipsv2DptForSemanticSegmentation, Tipsv2VisionConfig

    vit = Tipsv2VisionConfig(
        hidden_size=24,
        num_hidden_layers=5,
        num_attention_heads=3,
        image_size=96,
        patch_size=16,
        num_register_tokens=1,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )
    sizes = {"neck_hidden_sizes": [8, 12, 16, 24], "fusion_hidden_size": 16}
    return Tipsv2DptForSemanticSegmentation(Tipsv2DptConfig(backbone_config=vit, **sizes, num_labels=CLASSES))


def sapiens() -> Any:
    """Sapiens2 for segmentation."""
    from transformers import Sapiens2Config, Sapiens2ForSemanticSegmentation

    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    head = {"upsample_out_channels": [16, 8], "conv_out_channels": [8]}
    return Sapiens2ForSemanticSegmentation(
        Sapiens2Config(**sizes, image_size=96, num_register_tokens=2, head_config=head, num_labels=CLASSES)
    )


def eomt() -> Any:
    """EoMT as transformers trains it: queries are bound to their masks in all of the last blocks."""
    from transformers import EomtConfig, EomtForUniversalSegmentation

    return EomtForUniversalSegmentation(EomtConfig(**_EOMT))


def eomt_annealed() -> Any:
    """EoMT as published: no masks are left in attention; here the last block still has one."""
    from transformers import EomtConfig, EomtForUniversalSegmentation

    made = EomtForUniversalSegmentation(EomtConfig(**_EOMT))
    made.attn_mask_probs.copy_(torch.tensor([0.0, 1.0]))
    return made


def eomt_dinov3() -> Any:
    """EoMT on DINOv3."""
    from transformers import EomtDinov3Config, EomtDinov3ForUniversalSegmentation

    return EomtDinov3ForUniversalSegmentation(EomtDinov3Config(**_EOMT, intermediate_size=192))


MODELS: dict[str, Callable[[], Any]] = {
    make.__name__: make
    for make in (
        segformer, upernet_convnext, upernet_swin, upernet_resnet, beit, beit_shared, data2vec, dpt,
        mobilevit, mobilevitv2, mobilenetv2, tips, sapiens, mask2former, maskformer, maskformer_swin, oneformer,
        eomt, eomt_annealed, eomt_dinov3,
    )
}  # fmt: skip
MASKS = (
    "mask2former",
    "maskformer",
    "maskformer_swin",
    "oneformer",
    "eomt",
    "eomt_annealed",
    "eomt_dinov3",
)
"""Mask transformers; transformers builds them only beside scipy (the extra `masks`)."""
NEEDS_SCIPY = pytest.mark.skipif(
    find_spec("scipy") is None, reason="scipy (pip install 'mfmd[masks]') is not installed"
)
FEW = ("segformer", "beit", "mobilenetv2", "mask2former", "eomt_annealed")


def _marks(name: str, others: bool) -> list[pytest.MarkDecorator]:
    return [NEEDS_SCIPY] * (name in MASKS) + [pytest.mark.nightly] * (others and name not in FEW)


ROWS = [pytest.param(name, marks=_marks(name, True)) for name in MODELS]
"""Each model: one of every sort of encoder in every `make test`, the others nightly."""
EVERY = [pytest.param(name, marks=_marks(name, False)) for name in MODELS]
"""Each model in every `make test`."""
SQUARE_ONLY = ("data2vec", "dpt", "eomt", "eomt_annealed", "eomt_dinov3")
"""Models that transformers itself runs on square images only."""
ANY_SIZE = (
    "segformer",
    "upernet_convnext",
    "upernet_swin",
    "upernet_resnet",
    "mobilevit",
    "mobilenetv2",
    "oneformer",
)
"""Models that transformers runs on sizes that no stride divides."""


def model(name: str, seed: int = 0) -> Any:
    """The model in eval mode; what starts at zero or one is drawn too, so that no weight can be left out unnoticed."""
    torch.manual_seed(seed)
    made = MODELS[name]()
    with torch.no_grad():
        for value in made.parameters():
            if value.numel() == 1 or value.std() == 0:
                value.add_(torch.randn_like(value) * 0.1)
        for buffer_name, value in made.named_buffers():
            if buffer_name.endswith("running_mean"):
                value.normal_(0, 0.1)
            elif buffer_name.endswith("running_var"):
                value.uniform_(0.8, 1.2)
    return made.eval()


@torch.no_grad()
def tell_apart(made: Any, images: torch.Tensor) -> None:
    """Let the queries of a mask transformer differ in class and mask on `images`: drawn ones answer all alike."""
    for key, module in made.named_modules():
        if key.endswith(("query", "queries_features", "queries_embedder")):
            module.weight.normal_()
        elif isinstance(module, torch.nn.Linear) and any(part in key for part in ("mask_embed", "mask_head")):
            torch.nn.init.orthogonal_(module.weight, 3.0 if "mask_embed" in key else 2.0)
            module.bias.zero_()
        elif isinstance(module, torch.nn.Linear) and "transformer_module" in key:
            torch.nn.init.orthogonal_(module.weight)
    classes = _answer(made, images).class_queries_logits
    predictor = next(module for key, module in made.named_modules() if key.endswith(("class_predictor", "class_embed")))
    predictor.bias.sub_(classes.mean((0, 1)))
    scale = 5.0 / classes.std(1).mean()
    predictor.weight.mul_(scale)
    predictor.bias.mul_(scale)


def _answer(original: Any, images: torch.Tensor) -> Any:
    if original.config.model_type != "oneformer":
        return original(images)
    task = torch.tensor([49406, 518, 10549, 533, 29119, 1550, 49407, *[0] * 70])  # "the task is semantic" in CLIP's
    return original(images, task_inputs=task.expand(len(images), -1))


def logits_of(original: Any, images: torch.Tensor) -> torch.Tensor:
    """The answer of transformers alone, at image size; of a mask transformer, the log of what its processor returns."""
    answer, size = _answer(original, images), (images.shape[-2], images.shape[-1])
    if "logits" in answer:
        return F.interpolate(answer.logits, size, mode="bilinear", align_corners=False)
    scores = [item.segmentation_scores for item in answers_of(original, images)]
    return torch.stack(scores).clamp(min=1e-20).log()


def answers_of(original: Any, images: torch.Tensor) -> Any:
    """What the image processor of a mask transformer makes of its answer for `images`, at their size."""
    from transformers.models.eomt.image_processing_pil_eomt import EomtImageProcessorPil
    from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil
    from transformers.models.maskformer.image_processing_pil_maskformer import MaskFormerImageProcessorPil
    from transformers.models.oneformer.image_processing_pil_oneformer import OneFormerImageProcessorPil

    processors = {
        "eomt": EomtImageProcessorPil,
        "eomt_dinov3": EomtImageProcessorPil,
        "mask2former": Mask2FormerImageProcessorPil,
        "maskformer": MaskFormerImageProcessorPil,
        "oneformer": OneFormerImageProcessorPil,
    }
    size = (images.shape[-2], images.shape[-1])
    options: dict[str, Any] = {"target_sizes": [size] * len(images), "return_segmentation_scores": True}
    kind = original.config.model_type
    if kind.startswith("eomt"):
        options["size"] = {"shortest_edge": size[0], "longest_edge": size[0]}
    return processors[kind]().post_process_semantic_segmentation(_answer(original, images), **options)


def _swin() -> Any:
    from transformers import SwinConfig

    return SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 2, 1, 1], num_heads=[1, 2, 2, 4], window_size=4, out_features=_STAGES
    )


def _resnet() -> Any:
    from transformers import ResNetConfig

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
    return ResNetConfig(**sizes, layer_type="basic", out_features=_STAGES)


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
