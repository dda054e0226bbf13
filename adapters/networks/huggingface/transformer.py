"""Plain vision transformers: BEiT and Data2Vec-Vision with UPerNet head, DPT, TIPSv2-DPT, Sapiens2.

The cut lies behind the stage that makes maps of the tokens. Its maps have strides 4 to 32, and Masked Feature Modeling
masks the same cells in all of them. Before that stage there is a class token beside the patches, which is no map and
would carry the content of masked cells past the mask. Sapiens2 has no such stage: its head reads the patches alone.
"""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adapters.errors import UnsupportedModel
from adapters.networks.huggingface.family import Encoder, Head, Parts


class TokenEncoder(Encoder):
    """The blocks up to the last one that is read, and the stage behind them: four maps."""

    neck: Any
    reassemble: Any

    def __init__(self, model: Any, taps: Sequence[int], **stage: nn.Module) -> None:
        """Take tokens for the four maps after the blocks that `taps` numbers."""
        super().__init__(model.config.patch_size, model=model, **stage)
        self.taps = tuple(taps)

    def _grid(self, images: Tensor) -> tuple[int, int]:
        return images.shape[-2] // self.multiple, images.shape[-1] // self.multiple

    def _tapped(self, blocks: nn.ModuleList, hidden: Tensor, **options: Any) -> list[Tensor]:
        """Return tokens `[B, 1 + rows * columns, C]` at the taps; 0 is before the first block."""
        tokens = [hidden]
        for block in blocks[: max(self.taps)]:
            answer = block(tokens[-1], **options)
            tokens.append(answer if isinstance(answer, Tensor) else answer[0])
        return [tokens[tap] for tap in self.taps]


class BeitEncoder(TokenEncoder):
    """BEiT up to its neck."""

    def _maps(self, images: Tensor) -> Sequence[Tensor]:
        grid = self._grid(images)
        hidden, bias = self.model.embeddings(images), None
        if self.model.shared_position_bias is not None:
            bias = self.model.shared_position_bias(grid, dim_size=hidden.shape[1])
        size = (images.shape[-2], images.shape[-1])
        tapped = self._tapped(self.model.layers, hidden, attention_mask=bias, resolution=size)
        maps: Sequence[Tensor] = self.neck(_token_maps(tapped, grid))
        return maps


class Data2VecEncoder(TokenEncoder):
    """Data2Vec-Vision up to its neck, one module a level."""

    def _maps(self, images: Tensor) -> Sequence[Tensor]:
        grid, encoder = self._grid(images), self.model.encoder
        hidden, bias = self.model.embeddings(images)[0], None
        if encoder.has_relative_position_bias:
            bias = encoder.relative_position_bias(grid, dim_size=hidden.shape[1])
        size = (images.shape[-2], images.shape[-1])
        tapped = self._tapped(encoder.layer, hidden, relative_position_bias=bias, resolution=size)
        return [level(tokens) for level, tokens in zip(self.neck, _token_maps(tapped, grid), strict=True)]


class DptEncoder(TokenEncoder):
    """DPT's transformer and reassemble stage, which includes the class token in the maps."""

    def _maps(self, images: Tensor) -> Sequence[Tensor]:
        tapped = self._tapped(self.model.encoder.layer, self.model.embeddings(images).last_hidden_states)
        maps: Sequence[Tensor] = self.reassemble(tapped, *self._grid(images))
        return maps


class TipsEncoder(Encoder):
    """TIPSv2 and the reassemble stage of its DPT, which includes the class token in the maps."""

    backbone: Any
    reassemble: Any

    def _maps(self, images: Tensor) -> Sequence[Tensor]:
        rows, columns = images.shape[-2] // self.multiple, images.shape[-1] // self.multiple
        maps: Sequence[Tensor] = self.reassemble(self.backbone(images).feature_maps, rows, columns)
        return maps


class SapiensEncoder(Encoder):
    """Sapiens2: one map of its patches."""

    model: Any

    def _maps(self, images: Tensor) -> Sequence[Tensor]:
        grid = (images.shape[-2] // self.multiple, images.shape[-1] // self.multiple)
        others = 1 + self.model.config.num_register_tokens
        patches = self.model(images).last_hidden_state[:, others:].transpose(1, 2)
        return [torch.unflatten(patches, 2, grid)]


class DptDecoder(nn.Module):
    """The rest of DPT's neck, and its head."""

    def __init__(self, neck: Any, head: nn.Module) -> None:
        super().__init__()
        self.convs = neck.convs
        self.fusion = neck.fusion_stage
        self.head = head

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits `[B, K, 2 H_1, 2 W_1]` of the maps."""
        logits: Tensor = self.head(self.fused(features))
        return logits

    def fused(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the maps of all fusion stages, finest last."""
        maps: list[Tensor] = self.fusion([conv(level) for conv, level in zip(self.convs, features, strict=True)])
        return maps


class TipsDecoder(DptDecoder):
    """The same of TIPSv2-DPT, whose head takes the last map alone."""

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits `[B, K, 2 H_1, 2 W_1]` of the maps."""
        logits: Tensor = self.head(self.fused(features)[-1])
        return logits


def _token_maps(tapped: Iterable[Tensor], grid: tuple[int, int]) -> list[Tensor]:
    """Return patch tokens, behind the class token, as maps `[B, C, *grid]`."""
    return [torch.unflatten(tokens[:, 1:].transpose(1, 2), 2, grid) for tokens in tapped]


def _taps(config: Any, field: str, shift: int) -> list[int]:
    """Return after how many blocks to take the four maps. Raises UnsupportedModel unless `field` names four."""
    indices, blocks = getattr(config, field), range(config.num_hidden_layers + 1)
    taps = sorted({index + shift for index in indices})
    if len(taps) != 4 or not all(tap in blocks for tap in taps):
        raise UnsupportedModel(
            f"config.json: {field} is {indices}; four different places among {len(blocks) - 1} blocks are needed"
        )
    return taps


def split_beit(model: Any) -> Parts:
    """BEiT (Bao et al. 2021): transformer and four-scale neck | UPerNet head."""
    taps = _taps(model.config, "out_indices", -1)  # transformers counts from the embedding, off by one
    unused = (model.beit.layernorm, model.beit.embeddings.mask_token, model.beit.layers[max(taps) :])
    encoder = BeitEncoder(model.beit, taps, neck=model.fpn)
    return Parts(encoder, Head(model.decode_head), [model.config.hidden_size] * 4, unused)


def split_data2vec(model: Any) -> Parts:
    """Data2Vec-Vision (Baevski et al. 2022): transformer and four-scale neck | UPerNet head."""
    base, taps = model.data2vec_vision, _taps(model.config, "out_indices", -1)
    unused = (base.layernorm, base.embeddings.mask_token, base.encoder.layer[max(taps) :])
    neck = nn.ModuleList([model.fpn1, model.fpn2, model.fpn3, model.fpn4])
    encoder = Data2VecEncoder(base, taps, neck=neck)
    return Parts(encoder, Head(model.decode_head), [model.config.hidden_size] * 4, unused)


def split_dpt(model: Any) -> Parts:
    """DPT (Ranftl et al. 2021) on a plain ViT: transformer and reassemble stage | convolutions, fusion and head."""
    taps = _taps(model.config, "backbone_out_indices", 1)
    unused = (
        model.dpt.layernorm,
        model.dpt.encoder.layer[max(taps) :],
        model.neck.fusion_stage.layers[0].residual_layer1,  # the first fusion has nothing to add
    )
    encoder = DptEncoder(model.dpt, taps, reassemble=model.neck.reassemble_stage)
    return Parts(encoder, DptDecoder(model.neck, model.head), model.config.neck_hidden_sizes, unused)


def split_tips(model: Any) -> Parts:
    """TIPSv2 with DPT: transformer and reassemble stage | convolutions, fusion and head. Raises UnsupportedModel."""
    backbone, config = model.backbone, model.config.backbone_config
    if config.reshape_hidden_states:
        raise UnsupportedModel("config.json: backbone_config.reshape_hidden_states is True; DPT needs the class token")
    last = max(backbone.stage_names.index(name) for name in backbone.out_features)
    unused = [backbone.embeddings.mask_token, backbone.encoder.layer[last:]]
    if not config.apply_layernorm:
        unused.append(backbone.layernorm)
    encoder = TipsEncoder(_patch_side(config), backbone=backbone, reassemble=model.neck.reassemble_stage)
    return Parts(encoder, TipsDecoder(model.neck, model.decoder), model.config.neck_hidden_sizes, unused)


def split_sapiens(model: Any) -> Parts:
    """Sapiens2 (one transformer, one head for each task), for segmentation: transformer | head of convolutions.

    In train mode transformers draws a random scale for the positions of each pass, not from the round's own random
    numbers; here it draws none.
    """
    without_drawn_positions(model.model.rope_embeddings)
    unused = (getattr(model.model.embeddings, "mask_token", None),)
    encoder = SapiensEncoder(_patch_side(model.config), model=model.model)
    return Parts(encoder, Head(model.decode_head, last=True), [model.config.hidden_size], unused)


def without_drawn_positions(rope: Any) -> None:
    """Let rotary positions be the same in train mode; the config of the model, which is exported, stays."""
    plain = copy.deepcopy(rope.config)
    plain.pos_embed_shift = plain.pos_embed_jitter = plain.pos_embed_rescale = None
    rope.config = plain


def _patch_side(config: Any) -> int:
    """Return the side of a patch (pixels). Raises UnsupportedModel unless it is square."""
    sides = {config.patch_size} if isinstance(config.patch_size, int) else set(config.patch_size)
    if len(sides) != 1:
        raise UnsupportedModel(f"config.json: patch_size is {config.patch_size}; patches must be square")
    return int(sides.pop())
