"""EoMT and EoMT-DINOv3 (Kerssies et al., "Your ViT is Secretly an Image Segmentation Model", CVPR 2025).

A plain ViT whose last blocks see queries beside the patches. The cut lies before these blocks, at the token grid.

There the ViT also has a class token and register tokens, which the last blocks read. Beside the map they would carry
the content of masked cells past the mask, whole and untouched; without them the logits are not the model's. So every
cell of the map carries a copy of them behind its own channels, and the decoder reads the mean of all copies. A masked
cell loses its copy with everything else, and what is rebuilt has its share in the mean. Kept cells still know the
image's summary, as they do anyway: each patch attended to all others.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.errors import UnsupportedModel
from adapters.networks.huggingface.family import Encoder, Parts
from adapters.networks.huggingface.queries import MaskNetwork, pixel_logits
from adapters.networks.huggingface.transformer import without_drawn_positions

MASK_FIELD = "attn_mask_probs"
"""Buffer of transformers: in which of the last blocks a query only attends to its own mask (1), or to all (0).

It decides what is computed, so it belongs to the architecture: importing records it in `hf_config` under this name.
"""


class EomtEncoder(Encoder):
    """The first blocks: one map `[B, (1 + P) * C, rows, columns]`, patches first, then the P other tokens."""

    embeddings: Any
    blocks: Any

    def __init__(self, model: Any, count: int, **parts: nn.Module) -> None:
        super().__init__(
            model.config.patch_size, embeddings=model.embeddings, blocks=nn.ModuleList(model.layers[:count]), **parts
        )

    def _maps(self, images: Tensor) -> Sequence[Tensor]:
        grid = (images.shape[-2] // self.multiple, images.shape[-1] // self.multiple)
        hidden = self._embedded(images, grid)
        options = self._positions(hidden, grid)
        for block in self.blocks:
            hidden = block(hidden, **options)
        return [_as_map(hidden, self.embeddings.num_prefix_tokens, grid)]

    def _embedded(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return tokens `[B, P + rows * columns, C]`; the position code is resized to the grid."""
        parts, batch = self.embeddings, images.shape[0]
        code, side = parts.position_embeddings.weight, parts.config.image_size // self.multiple  # [side * side, C]
        if torch.compiler.is_compiling() or grid != (side, side):
            square = torch.unflatten(code.T[None], 2, (side, side))
            code = F.interpolate(square, grid, mode="bicubic", align_corners=False)[0].flatten(1).T
        others = [parts.cls_token.expand(batch, -1, -1), parts.register_tokens.expand(batch, -1, -1)]
        tokens: Tensor = parts.dropout(torch.cat([*others, parts.patch_embeddings(images) + code], dim=1))
        return tokens

    def _positions(self, hidden: Tensor, grid: tuple[int, int]) -> dict[str, Any]:
        return {}


class EomtDinov3Encoder(EomtEncoder):
    """The same on DINOv3, whose positions are rotations in each block: any grid."""

    rope: Any
    dropout: Any

    def _embedded(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        tokens: Tensor = self.dropout(self.embeddings(images))
        return tokens

    def _positions(self, hidden: Tensor, grid: tuple[int, int]) -> dict[str, Any]:
        return _rotations(self.rope, hidden, grid, self.multiple)


class EomtDecoder(nn.Module):
    """The last blocks with the queries, and the heads for classes and masks."""

    def __init__(self, model: Any, first: int, masked: Sequence[bool]) -> None:
        """Take the blocks from `first`; before those in `masked`, each query is bound to its own mask."""
        super().__init__()
        self.blocks = nn.ModuleList(model.layers[first:])
        self.query = model.query
        self.layernorm = model.layernorm
        self.class_predictor = model.class_predictor
        self.mask_head = model.mask_head
        self.upscale_block = model.upscale_block
        self.rope = getattr(model, "rope_embeddings", None)
        self.masked = tuple(masked)
        self.patch = model.config.patch_size
        self.others = model.embeddings.num_prefix_tokens

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits `[B, K, h, w]` of the map: in eval mode of the image's size, in train mode at stride 4.

        Training compares masks there, as the model's own loss does: a sixteenth of the memory of full-size masks.
        """
        grid = (features[-1].shape[-2], features[-1].shape[-1])
        tokens = _as_tokens(features[-1], self.others)
        hidden = torch.cat([self.query.weight.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        options: dict[str, Any] = {} if self.rope is None else _rotations(self.rope, hidden, grid, self.patch)
        allowed = None
        for block, masked in zip(self.blocks, self.masked, strict=True):
            if masked:
                allowed = self._allowed(hidden, grid)  # stays for the blocks behind it, as in transformers
            hidden = block(hidden, attention_mask=allowed, **options)
        classes, masks = self._answers(hidden, grid)
        if not self.training:
            size = (grid[0] * self.patch, grid[1] * self.patch)
            masks = F.interpolate(masks, size, mode="bilinear", align_corners=False)
        return pixel_logits(classes, masks)

    def _answers(self, hidden: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return class logits `[B, Q, K + 1]` and mask logits `[B, Q, h, w]` of all tokens."""
        normed, count = self.layernorm(hidden), self.query.num_embeddings
        queries, patches = normed[:, :count], normed[:, count + self.others :]
        pixels = self.upscale_block(torch.unflatten(patches.transpose(1, 2), 2, grid))
        return self.class_predictor(queries), torch.einsum("bqc,bchw->bqhw", self.mask_head(queries), pixels)

    def _allowed(self, hidden: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return what is added to attention `[B, 1, N, N]`: a query attends to patches inside its own mask only."""
        masks = F.interpolate(self._answers(hidden, grid)[1], grid, mode="bilinear", align_corners=False)
        forbidden = (masks.detach().flatten(2) <= 0).to(hidden.dtype) * -1e9  # [B, Q, rows * columns]
        count, total = masks.shape[1], hidden.shape[1]
        rows = F.pad(forbidden, (count + self.others, 0, 0, total - count))
        return rows[:, None]


def _as_map(hidden: Tensor, others: int, grid: tuple[int, int]) -> Tensor:
    """Return tokens `[B, P + rows * columns, C]` as a map; each cell has a copy of the first P tokens."""
    patches = torch.unflatten(hidden[:, others:].transpose(1, 2), 2, grid)
    copies = hidden[:, :others].flatten(1)[:, :, None, None].expand(-1, -1, *grid)
    return torch.cat([patches, copies], dim=1)


def _as_tokens(level: Tensor, others: int) -> Tensor:
    """Return the tokens of a map of `_as_map`; the first P are the mean of their copies."""
    width = level.shape[1] // (1 + others)
    patches = level[:, :width].flatten(2).transpose(1, 2)
    first = torch.unflatten(level[:, width:].mean((2, 3)), 1, (others, width))
    return torch.cat([first, patches], dim=1)


def _rotations(rope: Any, hidden: Tensor, grid: tuple[int, int], patch: int) -> dict[str, Any]:
    """Return the rotations of all patches; the module only reads the size of an image."""
    blank = hidden.new_empty(()).expand(1, 1, grid[0] * patch, grid[1] * patch)
    return {"position_embeddings": rope(blank)}


def split_eomt(model: Any) -> Parts:
    """EoMT on a ViT of the DINOv2 kind: patches and first blocks | last blocks with queries, and heads."""
    first, masked = _cut(model)
    return _parts(model, EomtEncoder(model, first), EomtDecoder(model, first, masked))


def split_eomt_dinov3(model: Any) -> Parts:
    """EoMT on DINOv3: the same.

    In train mode transformers draws a random scale for the positions of each pass. Encoder and decoder would draw two,
    and neither from the round's own random numbers; so they draw none.
    """
    first, masked = _cut(model)
    without_drawn_positions(model.rope_embeddings)
    encoder = EomtDinov3Encoder(model, first, rope=model.rope_embeddings, dropout=model.dropout)
    return _parts(model, encoder, EomtDecoder(model, first, masked))


def _parts(model: Any, encoder: EomtEncoder, decoder: EomtDecoder) -> Parts:
    return Parts(encoder, decoder, [(1 + decoder.others) * model.config.hidden_size], (), MaskNetwork)


def _cut(model: Any) -> tuple[int, list[bool]]:
    """Return how many blocks the encoder has, and which later ones bind queries to masks. Raises UnsupportedModel."""
    config = model.config
    first = config.num_hidden_layers - config.num_blocks
    if not 0 < config.num_blocks < config.num_hidden_layers:
        raise UnsupportedModel(
            f"config.json: num_blocks is {config.num_blocks}; between 1 and num_hidden_layers - 1 are needed"
        )
    recorded = getattr(config, MASK_FIELD, None)
    if recorded is not None:
        with torch.no_grad():
            model.attn_mask_probs.copy_(torch.tensor(recorded))
        delattr(config, MASK_FIELD)  # transformers reads it from the weights
    probabilities = model.attn_mask_probs.tolist()
    if any(value not in (0.0, 1.0) for value in probabilities):
        raise UnsupportedModel(
            f"the weights: {MASK_FIELD} is {probabilities}; a value between 0 and 1 masks at random, as in the middle "
            "of training: finish the training, or set each to 0 or 1"
        )
    return first, [value == 1.0 for value in probabilities]


def recorded_masks(decoder: nn.Module) -> dict[str, Any]:
    """Return what `hf_config` needs to build the decoder again: the masks of an EoMT, nothing for other decoders."""
    return {MASK_FIELD: [float(value) for value in decoder.masked]} if isinstance(decoder, EomtDecoder) else {}
