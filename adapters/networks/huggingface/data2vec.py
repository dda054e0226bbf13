"""Data2Vec-Vision (Baevski et al. 2022) with UPerNet head, cut like BEiT: transformer and neck | UPerNet head."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from adapters.networks.huggingface.family import Encoder, Family, Head, Parts, token_map


class Data2VecEncoder(Encoder):
    """The blocks up to the last one that the neck reads, and the neck: four maps of one width."""

    def __init__(self, model: Any, neck: Sequence[nn.Module], *, patch: int, taps: Sequence[int]) -> None:
        """Take the token maps for the neck's four levels after the blocks that `taps` numbers."""
        super().__init__(patch)
        self.model = model
        self.neck = nn.ModuleList(neck)
        self.taps = tuple(taps)

    def maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the neck's maps."""
        rows, columns = images.shape[-2] // self.multiple, images.shape[-1] // self.multiple
        tokens = self._tokens(images)
        return tuple(
            level(token_map(tokens[tap], rows, columns)) for level, tap in zip(self.neck, self.taps, strict=True)
        )

    def _tokens(self, images: Tensor) -> list[Tensor]:
        """Yield tokens `[B, 1 + rows * columns, C]` before the first block and after each one."""
        size = (images.shape[-2], images.shape[-1])
        hidden, bias = self.model.embeddings(images)[0], None
        if self.model.encoder.has_relative_position_bias:
            window = (size[0] // self.multiple, size[1] // self.multiple)
            bias = self.model.encoder.relative_position_bias(window, dim_size=hidden.shape[1])
        tokens = [hidden]
        for block in self.model.encoder.layer[: max(self.taps)]:
            tokens.append(block(tokens[-1], relative_position_bias=bias, resolution=size)[0])
        return tokens


def _model_of(hf_config: dict[str, Any]) -> tuple[Any, Any]:
    from transformers.models.data2vec.configuration_data2vec_vision import Data2VecVisionConfig
    from transformers.models.data2vec.modeling_data2vec_vision import Data2VecVisionForSemanticSegmentation

    config = Data2VecVisionConfig.from_dict({**hf_config, "use_auxiliary_head": False})
    return Data2VecVisionForSemanticSegmentation, config


def _split(model: Any) -> Parts:
    config, base = model.config, model.data2vec_vision
    taps = sorted(index - 1 for index in config.out_indices)
    neck = (model.fpn1, model.fpn2, model.fpn3, model.fpn4)
    encoder = Data2VecEncoder(base, neck, patch=config.patch_size, taps=taps)
    unused = (base.layernorm, base.embeddings.mask_token, base.encoder.layer[max(taps) :])
    return Parts(encoder, Head(model.decode_head), [config.hidden_size] * 4, unused)


DATA2VEC = Family("data2vec-vision", _model_of, _split)
"""Data2Vec-Vision."""
