"""Mask transformers on a backbone: Mask2Former.

The cut lies between backbone and pixel decoder: there the model has plain maps of strides 4 to 32. Behind it, attention
over all levels at once mixes them.
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from adapters.networks.huggingface.convolutional import BackboneEncoder, unread_norm
from adapters.networks.huggingface.family import Parts
from adapters.networks.huggingface.queries import MaskNetwork, pixel_logits

MASK_SIDE = 384
"""Height and width to which transformers resizes every mask of Mask2Former before its sigmoid (pixels)."""


class Mask2FormerDecoder(nn.Module):
    """Pixel decoder, transformer and class predictor; the answer of the last layer counts."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.pixel_decoder = model.model.pixel_level_module.decoder
        self.transformer = model.model.transformer_module
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
    return Parts(encoder, Mask2FormerDecoder(model), backbone.channels, unread_norm(backbone), MaskNetwork)
