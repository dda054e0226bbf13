"""All Hugging Face segmentation models that can be split, and how to build, load and split one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from adapters.errors import AdapterError, NetworkMismatch, UnsupportedModel
from adapters.networks.hf_directory import load_directory
from adapters.networks.huggingface.beit import BEIT
from adapters.networks.huggingface.data2vec import DATA2VEC
from adapters.networks.huggingface.dpt import DPT
from adapters.networks.huggingface.family import Family
from adapters.networks.huggingface.mobile import MOBILENETV2, MOBILEVIT, MOBILEVITV2
from adapters.networks.huggingface.pixels import allow_single_values, pixel_change
from adapters.networks.huggingface.segformer import SEGFORMER
from adapters.networks.huggingface.upernet import UPERNET
from adapters.networks.network import SegmentationNetwork
from configs.network import Architecture

_ALL = (BEIT, DATA2VEC, DPT, MOBILENETV2, MOBILEVIT, MOBILEVITV2, SEGFORMER, UPERNET)
FAMILIES = {family.model_type: family for family in _ALL}
"""By `model_type` in config.json."""


def build_huggingface(settings: Architecture, num_classes: int) -> tuple[SegmentationNetwork, Any]:
    """Build the network of `settings.hf_config`, untrained, and the transformers model whose modules it shares.

    Raises UnsupportedModel for a kind that cannot be split, NetworkMismatch when its class count is not `num_classes`.
    """
    family, hf_config = _family_of(settings)
    with _refusing():
        model_class, config = family.model_of(hf_config)
        model = model_class(config)
        return _split(family, model, settings, num_classes), model


def load_huggingface(directory: Path, settings: Architecture, num_classes: int) -> SegmentationNetwork:
    """Load the network of `settings.hf_config` with the weights in a local Hugging Face directory.

    Reads safetensors only, downloads nothing. Raises UnsupportedModel or NetworkMismatch.
    """
    family, hf_config = _family_of(settings)
    with _refusing():
        model_class, config = family.model_of(hf_config)
        return _split(family, load_directory(model_class, config, directory), settings, num_classes)


@contextmanager
def _refusing() -> Iterator[None]:
    """Raise UnsupportedModel for any exception that transformers raises on an odd config.json."""
    try:
        yield
    except AdapterError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UnsupportedModel(f"config.json: transformers cannot build the model that it describes: {what}") from error


def _family_of(settings: Architecture) -> tuple[Family, dict[str, Any]]:
    if settings.hf_config is None:
        raise UnsupportedModel("network.name: 'huggingface' has no hf_config; bring such a model in with `mfmd import`")
    kind = str(settings.hf_config.get("model_type"))
    if kind not in FAMILIES:
        raise UnsupportedModel(f"config.json: model_type {kind!r} cannot be split; these work: {', '.join(FAMILIES)}")
    return FAMILIES[kind], settings.hf_config


def _split(family: Family, model: Any, settings: Architecture, num_classes: int) -> SegmentationNetwork:
    if model.config.num_labels != num_classes:
        raise NetworkMismatch(
            f"config.json: the model has {model.config.num_labels} classes, the configuration lists {num_classes}"
        )
    encoder, decoder, channels, unused = family.split(model)
    encoder.pixels = pixel_change(settings.hf_preprocessor)
    allow_single_values(decoder)
    for part in unused:
        if isinstance(part, nn.Module):
            part.requires_grad_(False)
        elif part is not None:
            part.requires_grad = False
    return SegmentationNetwork(encoder, decoder, num_classes=num_classes, feature_channels=channels)
