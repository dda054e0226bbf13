"""All Hugging Face segmentation models that can be split, and how to build, load and split one."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from adapters.errors import AdapterError, NetworkMismatch, UnsupportedModel
from adapters.networks.hf_directory import load_directory
from adapters.networks.huggingface import convolutional, eomt, mask_transformer, transformer
from adapters.networks.huggingface.config_fields import check_fields, odd_fields
from adapters.networks.huggingface.family import Parts
from adapters.networks.huggingface.pixels import allow_single_values, pixel_change
from adapters.networks.network import SegmentationNetwork
from configs.network import Architecture

FAMILIES: dict[str, Callable[[Any], Parts]] = {
    "beit": transformer.split_beit,
    "data2vec-vision": transformer.split_data2vec,
    "dpt": transformer.split_dpt,
    "eomt": eomt.split_eomt,
    "eomt_dinov3": eomt.split_eomt_dinov3,
    "mask2former": mask_transformer.split_mask2former,
    "maskformer": mask_transformer.split_maskformer,
    "mobilenet_v2": convolutional.split_mobilenet,
    "mobilevit": convolutional.split_mobilevit,
    "mobilevitv2": convolutional.split_mobilevitv2,
    "oneformer": mask_transformer.split_oneformer,
    "sapiens2": transformer.split_sapiens,
    "segformer": convolutional.split_segformer,
    "tipsv2_dpt": transformer.split_tips,
    "upernet": convolutional.split_upernet,
}
"""What cuts a model in two, by `model_type` in config.json."""
WHY_NOT = {
    "detr": "it finds objects, and gives a map of classes in its panoptic variant alone; use mask2former or maskformer",
    "videomt": "it reads several frames of a video at once, and mfmd one; use eomt, whose blocks it has",
}
"""Why a kind that looks like one of those that work is refused, and what to take."""
ON_BACKBONES = ("mask2former", "maskformer", "oneformer", "tipsv2_dpt", "upernet")
"""Kinds whose backbone is another model of transformers, described by `backbone_config`."""
DIVIDED = ("mask2former", "maskformer")
"""Kinds whose processor scales images up until a number divides both sides."""
WITH_SCIPY = ("eomt", "eomt_dinov3", "mask2former", "maskformer", "oneformer")
"""Kinds whose losses in transformers need scipy; it builds none without its loss."""


def build_huggingface(settings: Architecture, num_classes: int) -> tuple[SegmentationNetwork, Any]:
    """Build the network of `settings.hf_config`, untrained, and the transformers model whose modules it shares.

    Raises UnsupportedModel for a kind that cannot be split, NetworkMismatch when its class count is not `num_classes`.
    """
    with _refusing(settings.hf_config or {}):
        model_class, config = _model_of(settings, num_classes)
        model = model_class(config)
        return _split(model, settings, num_classes), model


def load_huggingface(directory: Path, settings: Architecture, num_classes: int) -> SegmentationNetwork:
    """Load the network of `settings.hf_config` with the weights in a local Hugging Face directory.

    Reads safetensors only, downloads nothing. Raises UnsupportedModel or NetworkMismatch.
    """
    with _refusing(settings.hf_config or {}):
        model_class, config = _model_of(settings, num_classes)
        vars(config).pop(eomt.MASK_FIELD, None)  # the weights say it
        with torch.device("meta"):
            model_class(config)  # what the configuration alone makes impossible is not blamed on the weights
        return _split(load_directory(model_class, config, directory), settings, num_classes)


def with_recorded(settings: Architecture, network: SegmentationNetwork) -> Architecture:
    """Return `settings` with what only the loaded weights of `network` say, so that they build the same network."""
    found = eomt.recorded_masks(network.decoder)
    return settings.model_copy(update={"hf_config": {**(settings.hf_config or {}), **found}}) if found else settings


@contextmanager
def _refusing(hf_config: Mapping[str, Any]) -> Iterator[None]:
    """Raise UnsupportedModel, naming odd fields, for any exception that transformers raises on an odd config.json."""
    try:
        yield
    except AdapterError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        odd = "; ".join(dict.fromkeys(odd_fields(hf_config, what)))
        raise UnsupportedModel(
            f"config.json: transformers cannot build the model that it describes: {what}{odd and f'; look at {odd}'}"
        ) from error


def _model_of(settings: Architecture, num_classes: int) -> tuple[Any, Any]:
    """Return model class and config object of a config.json; transformers imports only the module of its kind."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
        MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING,
    )

    hf_config = settings.hf_config
    if hf_config is None:
        raise UnsupportedModel("network.name: 'huggingface' has no hf_config; bring such a model in with `mfmd import`")
    kind, backbone = str(hf_config.get("model_type")), hf_config.get("backbone_config")
    if kind not in FAMILIES:
        why = f" ({WHY_NOT[kind]})" if kind in WHY_NOT else ""
        raise UnsupportedModel(
            f"config.json: model_type {kind!r} cannot be split{why}; these work: {', '.join(FAMILIES)}"
        )
    if kind == "dpt" and hf_config.get("is_hybrid"):
        raise UnsupportedModel("config.json: this dpt is a hybrid; only DPT on its own plain ViT can be split")
    if kind == "dpt" and (backbone is not None or hf_config.get("backbone")):
        raise UnsupportedModel(
            "config.json: this dpt has a backbone_config, which transformers reads for depth only: for segmentation it "
            "would build a plain ViT in its place; use an upernet on that backbone"
        )
    if kind in ON_BACKBONES and not isinstance(backbone, dict):
        raise UnsupportedModel(f"config.json: this {kind} names its backbone without backbone_config; save it again")
    if kind in WITH_SCIPY and find_spec("scipy") is None:
        raise UnsupportedModel(f"config.json: transformers builds {kind} only beside scipy; pip install 'mfmd[masks]'")
    if "quantization_config" in hf_config:
        raise UnsupportedModel("config.json: quantization_config: quantised weights are not read; save it as float32")
    check_fields(hf_config)
    config: Any = CONFIG_MAPPING[kind].from_dict(_without_answers(hf_config))
    if config.num_labels != num_classes:
        raise NetworkMismatch(
            f"config.json: the model has {config.num_labels} classes, the configuration lists {num_classes}; "
            "give `classes` in mfmd.yaml as many names, in the model's order"
        )
    channels = getattr(getattr(config, "backbone_config", None) or config, "num_channels", 3)
    if channels != 3:
        raise UnsupportedModel(f"config.json: num_channels is {channels}; images have 3 (RGB), and so must the model")
    if hasattr(config, "use_auxiliary_head"):
        config.use_auxiliary_head = False
    classes = MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING
    if type(config) not in classes:
        classes = MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING
    return classes[type(config)], config


def _without_answers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without what a call returns: the encoders ask for what they need."""
    return {
        key: _without_answers(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if key not in ("return_dict", "output_hidden_states", "output_attentions")
    }


def _split(model: Any, settings: Architecture, num_classes: int) -> SegmentationNetwork:
    encoder, decoder, channels, unused, network = FAMILIES[model.config.model_type](model)
    encoder.pixels = pixel_change(settings.hf_preprocessor)
    if model.config.model_type in DIVIDED:
        encoder.multiple = mask_transformer.size_divisor(settings.hf_preprocessor)
    allow_single_values(decoder)
    for part in unused:
        if part is not None:
            part.requires_grad_(False)
    return network(encoder, decoder, num_classes=num_classes, feature_channels=channels)
