"""Mask transformers on a backbone: Mask2Former, MaskFormer and OneFormer.

The cut lies between backbone and pixel decoder: there the model has plain maps of strides 4 to 32. Behind it, attention
over all levels at once mixes them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.errors import UnsupportedModel
from adapters.networks.huggingface.convolutional import BackboneEncoder, unread_parts
from adapters.networks.huggingface.family import Parts
from adapters.networks.huggingface.queries import MaskNetwork, pixel_logits

MASK_SIDE = 384
"""Height and width to which transformers resizes every mask of Mask2Former before its sigmoid (pixels)."""

SEMANTIC_TASK = (49406, 518, 10549, 533, 29119, 1550, 49407)
"""The sentence "the task is semantic" between start and end, in tokens of CLIP's vocabulary.

OneFormer reads the numbers themselves, zeros behind them, through a small network. They are constants of its training:
every published model has CLIP's vocabulary, and another one would need other weights.
"""


SIZE_DIVISOR = 32
"""Default of `size_divisor` in the processors of Mask2Former and MaskFormer (pixels)."""
LARGEST_DIVISOR = 1024
"""No processor has a larger one."""


def size_divisor(preprocessor: Mapping[str, Any] | None) -> int:
    """Return the multiple to which the processor of a Mask2Former or MaskFormer scales both sides up (pixels).

    It is part of resizing: without `do_resize` sides stay as they are. Raises UnsupportedModel, naming the field, for a
    number that no processor has.
    """
    given = preprocessor or {}
    value = given.get("size_divisor", SIZE_DIVISOR)
    if value is None or not given.get("do_resize", True):
        return 1
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST_DIVISOR:
        raise UnsupportedModel(
            f"preprocessor_config.json: size_divisor is {value!r}; a number of pixels up to {LARGEST_DIVISOR} is needed"
        )
    return max(1, value)


class Mask2FormerDecoder(nn.Module):
    """Pixel decoder, transformer and class predictor; the answer of the last layer counts."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.pixel_decoder = model.model.pixel_level_module.decoder
        self.transformer = model.model.transformer_module
        self.transformer.decoder.layerdrop = 0.0  # whole layers, by each process's own random numbers
        self.class_predictor = model.class_predictor

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits `[B, K, h, w]` of the maps: in eval mode of transformers' size, in train mode of the masks'.

        Training compares masks at stride 4, as the model's own loss does: a tenth of the memory of full-size masks.
        """
        pixels = self.pixel_decoder(list(features))
        answer = self.transformer(multi_scale_features=pixels.multi_scale_features, mask_features=pixels.mask_features)
        masks, queries = answer.masks_queries_logits[-1], answer.intermediate_hidden_states[-1]
        if not self.training:
            masks = F.interpolate(masks, (MASK_SIDE, MASK_SIDE), mode="bilinear", align_corners=False)
        return pixel_logits(self.class_predictor(queries.transpose(0, 1)), masks)


def split_mask2former(model: Any) -> Parts:
    """Mask2Former (Cheng et al. 2022): backbone | pixel decoder, masked-attention transformer, class predictor."""
    backbone = model.model.pixel_level_module.encoder
    encoder = BackboneEncoder(backbone=backbone)
    return Parts(encoder, Mask2FormerDecoder(model), backbone.channels, unread_parts(backbone), MaskNetwork)


class MaskFormerDecoder(nn.Module):
    """Feature pyramid, transformer on the deepest map, heads for classes and masks."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.pixel_decoder = model.model.pixel_level_module.decoder
        self.transformer = model.model.transformer_module
        self.class_predictor = model.class_predictor
        self.mask_embedder = model.mask_embedder

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits `[B, K, h, w]` of the maps, at the size of the finest."""
        pixels = self.pixel_decoder(list(features)).last_hidden_state
        queries = self.transformer(features[-1]).last_hidden_state
        masks = torch.einsum("bqc,bchw->bqhw", self.mask_embedder(queries), pixels)
        return pixel_logits(self.class_predictor(queries), masks)


class OneFormerDecoder(nn.Module):
    """Pixel decoder and transformer, told that the task is semantic."""

    task: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.pixel_decoder = model.model.pixel_level_module.decoder
        self.transformer = model.model.transformer_module
        self.task_encoder = model.model.task_encoder
        self.training_only = nn.ModuleList(filter(None, (model.criterion, model.model.text_mapper)))
        padding = model.config.task_seq_len - len(SEMANTIC_TASK)
        numbers = torch.tensor([*SEMANTIC_TASK, *(padding * [0])], dtype=torch.float32)
        self.register_buffer("task", numbers[None], persistent=False)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits `[B, K, h, w]` of the maps, at the size of the finest."""
        pixels = self.pixel_decoder(list(features))
        with torch.autocast(self.task.device.type, enabled=False):  # bf16 would make another token of most numbers
            task = self.task_encoder(self.task).expand(features[-1].shape[0], -1)
        answer = self.transformer(
            multi_scale_features=pixels.multi_scale_features, mask_features=pixels.mask_features, task_token=task
        )
        return pixel_logits(answer.prediction_class, answer.prediction_masks)


def split_maskformer(model: Any) -> Parts:
    """MaskFormer (Cheng et al. 2021): backbone | feature pyramid, transformer, heads."""
    backbone = model.model.pixel_level_module.encoder
    encoder = BackboneEncoder(backbone=backbone)
    return Parts(encoder, MaskFormerDecoder(model), backbone.channels, unread_parts(backbone), MaskNetwork)


def split_oneformer(model: Any) -> Parts:
    """OneFormer (Jain et al. 2023): backbone | pixel decoder, task token, transformer. Raises UnsupportedModel."""
    config = model.config
    if config.conv_dim != config.hidden_dim or config.enforce_input_proj:
        raise UnsupportedModel(
            f"config.json: conv_dim is {config.conv_dim}, hidden_dim {config.hidden_dim}, enforce_input_proj "
            f"{config.enforce_input_proj}; transformers neither loads nor saves the projections between the two"
        )
    if config.task_seq_len < len(SEMANTIC_TASK):
        raise UnsupportedModel(
            f"config.json: task_seq_len is {config.task_seq_len}; the task takes {len(SEMANTIC_TASK)} tokens"
        )
    backbone, decoder = model.model.pixel_level_module.encoder, OneFormerDecoder(model)
    unused = (*unread_parts(backbone), decoder.training_only)
    return Parts(BackboneEncoder(backbone=backbone), decoder, backbone.channels, unused, MaskNetwork)
