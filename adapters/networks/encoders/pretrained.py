"""Load encoder weights from a local directory in Hugging Face format."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapters.errors import NetworkMismatch, UnsupportedModel
from adapters.networks.hf_directory import load_directory


def load_pretrained(model_class: Any, config: Any, directory: Path, fields: Sequence[str]) -> Any:
    """Load `model_class` with the architecture of `config` and the weights in `directory` (config.json + safetensors).

    `fields` are the config fields that must agree. Nothing is downloaded and no pickle is read. Raises UnsupportedModel
    when the directory cannot be read, NetworkMismatch when it holds another architecture.
    """
    if not (directory / "config.json").is_file():
        raise UnsupportedModel(f"network.pretrained: {directory} holds no config.json; give a Hugging Face directory")
    try:
        found = type(config).from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"network.pretrained: {directory}: {' '.join(str(error).split())}") from error
    _compare(found, config, directory, fields)
    return load_directory(model_class, config, directory)


def _compare(found: Any, wanted: Any, directory: Path, fields: Sequence[str]) -> None:
    for field in fields:
        ours, theirs = getattr(wanted, field), getattr(found, field, None)
        same = list(ours) == list(theirs or ()) if isinstance(ours, (list, tuple)) else ours == theirs
        if not same:
            raise NetworkMismatch(
                f"network.pretrained: {directory} has {field} {theirs}, network.encoder needs {ours}; "
                "choose the encoder that these weights were made for"
            )
