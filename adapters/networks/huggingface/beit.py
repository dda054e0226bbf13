"""BEiT (Bao et al. 2021) with UPerNet head: transformer and its four-scale neck | UPerNet head.

The cut lies behind the neck. Its maps have strides 4 to 32, and Masked Feature Modeling masks the same cells in all of
them.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from adapters.networks.huggingface.family import Encoder, Family, Head, Parts, token_map


class BeitEncoder(Encoder):
    """The blocks up to the last one that the neck reads, and the neck: four maps of one width."""

    def __init__(self, model: Any, neck: nn.Module, *, patch: int, taps: Sequence[int]) -> None:
        """Take the token maps for the neck's four levels after the blocks that `taps` numbers."""
        super().__init__(patch)
        self.model = model
        self.neck = neck
        self.taps = tuple(taps)

    def maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the neck's maps."""
        rows, columns = images.shape[-2] // self.multiple, images.shape[-1] // self.multiple
        tokens = self._tokens(images)
        return tuple(self.neck([token_map(tokens[tap], rows, columns) for tap in self.taps]))

    def _tokens(self, images: Tensor) -> list[Tensor]:
        """Yield tokens `[B, 1 + rows * columns, C]` before the first block and after each one."""
        size = (images.shape[-2], images.shape[-1])
        hidden, bias = self.model.embeddings(images), None
        if self.model.shared_position_bias is not None:
            window = (size[0] // self.multiple, size[1] // self.multiple)
            bias = self.model.shared_position_bias(window, dim_size=hidden.shape[1])
        tokens = [hidden]
        for block in self.model.layers[: max(self.taps)]:
            tokens.append(block(tokens[-1], attention_mask=bias, resolution=size))
        return tokens


def _model_of(hf_config: dict[str, Any]) -> tuple[Any, Any]:
    from transformers.models.beit.configuration_beit import BeitConfig
    from transformers.models.beit.modeling_beit import BeitForSemanticSegmentation

    return BeitForSemanticSegmentation, BeitConfig.from_dict({**hf_config, "use_auxiliary_head": False})


def _split(model: Any) -> Parts:
    config = model.config
    taps = [index - 1 for index in config.out_indices]  # transformers counts from the embedding, off by one
    encoder = BeitEncoder(model.beit, model.fpn, patch=config.patch_size, taps=taps)
    unused = (model.beit.layernorm, model.beit.embeddings.mask_token, model.beit.layers[max(taps) :])
    return Parts(encoder, Head(model.decode_head), [config.hidden_size] * 4, unused)


BEIT = Family("beit", _model_of, _split)
"""BEiT."""
