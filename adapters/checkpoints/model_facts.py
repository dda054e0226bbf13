"""What a model's own files say that a configuration needs: its class names, and the size of its images."""

from pathlib import Path
from typing import Any, NamedTuple

from adapters.checkpoints.class_names import names_of
from adapters.checkpoints.model_files import read_config, read_preprocessor
from adapters.errors import UnsupportedModel
from adapters.networks.huggingface.input_size import own_input


class ModelFacts(NamedTuple):
    """What the files of a model say."""

    names: list[str] | None
    """Class names by index; None when config.json names none."""
    buffer: dict[str, Any]
    """Values of `buffer` that fit its image processor; empty when there is none."""


def facts_of(folder: Path) -> ModelFacts:
    """Return what a Hugging Face directory says of its model.

    Raises UnsupportedModel when it is none, or when a file in it cannot be read.
    """
    if not folder.is_dir():
        raise UnsupportedModel(f"{folder}: no such directory; give a Hugging Face directory or a hub id")
    names = names_of(read_config(folder))
    own = own_input(read_preprocessor(folder))
    return ModelFacts(names, own.settings() if own else {})
