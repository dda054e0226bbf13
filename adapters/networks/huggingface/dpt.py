"""DPT (Ranftl et al. 2021) on a plain ViT: transformer and reassemble stage | convolutions, fusion and head.

The cut lies behind the reassemble stage. Before that stage there is a class token beside the patches, which is no map
and would carry the content of masked cells past the mask. Behind it there are four maps of strides 4 to 32 that already
include the class token.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from adapters.errors import UnsupportedModel
from adapters.networks.huggingface.family import Encoder, Family, Parts


class DptEncoder(Encoder):
    """The blocks up to the last one that is read, and the reassemble stage: four maps."""

    def __init__(self, model: Any, reassemble: nn.Module, *, patch: int, taps: Sequence[int]) -> None:
        """Take tokens for the four maps after the blocks that `taps` numbers."""
        super().__init__(patch)
        self.model = model
        self.reassemble = reassemble
        self.taps = tuple(taps)

    def maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the reassembled maps."""
        rows, columns = images.shape[-2] // self.multiple, images.shape[-1] // self.multiple
        tokens = [self.model.embeddings(images).last_hidden_states]
        for block in self.model.encoder.layer[: max(self.taps)]:
            tokens.append(block(tokens[-1]))
        return tuple(self.reassemble([tokens[tap] for tap in self.taps], rows, columns))


class DptDecoder(nn.Module):
    """The rest of the neck, and the head."""

    def __init__(self, neck: Any, head: nn.Module) -> None:
        super().__init__()
        self.convs = neck.convs
        self.fusion = neck.fusion_stage
        self.head = head

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits `[B, K, 2 H_1, 2 W_1]` of the maps."""
        logits: Tensor = self.head(self.fusion([conv(level) for conv, level in zip(self.convs, features, strict=True)]))
        return logits


def _model_of(hf_config: dict[str, Any]) -> tuple[Any, Any]:
    from transformers.models.dpt.configuration_dpt import DPTConfig
    from transformers.models.dpt.modeling_dpt import DPTForSemanticSegmentation

    if hf_config.get("is_hybrid") or hf_config.get("backbone_config") is not None:
        raise UnsupportedModel("config.json: this dpt is a hybrid; only DPT on its own plain ViT can be split")
    return DPTForSemanticSegmentation, DPTConfig.from_dict({**hf_config, "use_auxiliary_head": False})


def _split(model: Any) -> Parts:
    config = model.config
    taps = [index + 1 for index in config.backbone_out_indices]
    encoder = DptEncoder(model.dpt, model.neck.reassemble_stage, patch=config.patch_size, taps=sorted(taps))
    unused = (
        model.dpt.layernorm,
        model.dpt.encoder.layer[max(taps) :],
        model.neck.fusion_stage.layers[0].residual_layer1,  # the first fusion has nothing to add
    )
    return Parts(encoder, DptDecoder(model.neck, model.head), config.neck_hidden_sizes, unused)


DPT = Family("dpt", _model_of, _split)
"""DPT."""
