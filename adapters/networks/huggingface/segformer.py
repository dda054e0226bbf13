"""SegFormer (Xie et al. 2021): four stages of the Mix Transformer | all-MLP head."""

from typing import Any

from torch import Tensor, nn

from adapters.networks.huggingface.family import Encoder, Family, Head, Parts


class SegformerEncoder(Encoder):
    """The four stages of a SegFormer, strides 4 to 32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the stages' maps."""
        return tuple(self.model(images, output_hidden_states=True).hidden_states)


def _model_of(hf_config: dict[str, Any]) -> tuple[Any, Any]:
    from transformers.models.segformer.configuration_segformer import SegformerConfig
    from transformers.models.segformer.modeling_segformer import SegformerForSemanticSegmentation

    return SegformerForSemanticSegmentation, SegformerConfig.from_dict(hf_config)


def _split(model: Any) -> Parts:
    return Parts(SegformerEncoder(model.segformer), Head(model.decode_head), model.config.hidden_sizes)


SEGFORMER = Family("segformer", _model_of, _split)
"""SegFormer."""
