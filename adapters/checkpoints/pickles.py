"""Read weights from pickle files (`.pt`, `.pth`): the only place that does, and only for `import --unsafe-pickle`.

A pickle is a program. torch's own restricted reader, which builds only tensors and plain containers, is tried first.
Only a file that it refuses is read in full, which runs whatever the file's author put in.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from adapters.errors import UnsupportedModel
from adapters.networks.weight_files import INDEX, PICKLED, PICKLED_INDEX, WHOLE, impostor, indexed_files

Warn = Callable[[str], None]
"""Called with a warning before anything is read."""

_INSIDE = ("state_dict", "model_state_dict", "model", "net", "ema")
"""Keys under which training programs save the weights."""
_WRAPPED = "module."
"""Prefix that DataParallel adds to every name."""


def read_pickle(path: Path, warn: Warn) -> dict[str, Tensor]:
    """Return the weights by name in a file of `torch.save`: a state dict, a container of one, or a module.

    Runs the code in the file when it holds more than tensors; `warn` is called before that. Raises UnsupportedModel
    when the file cannot be read or holds no weights.
    """
    if found := impostor(path):
        raise UnsupportedModel(f"{path}: {found}")
    warn(f"{path}: a pickle; if it holds more than tensors, reading it runs code that its author wrote, as you")
    try:
        content = _load(path, warn)
    except Exception as error:  # whatever the code in it does
        raise UnsupportedModel(f"{path}: cannot be read as a file of torch.save: {_line(error)}") from error
    weights = _weights_in(content)
    if not weights:
        raise UnsupportedModel(
            f"{path}: holds no weights (a {type(content).__name__}); save `model.state_dict()` with safetensors"
        )
    return weights


def convert_directory(folder: Path, target: Path, warn: Warn) -> dict[str, str]:
    """Write pytorch_model.bin of a Hugging Face directory, or its shards, as safetensors into the folder `target`.

    Return the name of each pickle by that of its safetensors file. `warn` is called for each as by `read_pickle`.
    Raises UnsupportedModel for a file that is missing or cannot be read.
    """
    if (folder / PICKLED).is_file():
        files = {folder / PICKLED: WHOLE}
    elif (folder / PICKLED_INDEX).is_file():
        files = {path: f"{path.stem}.safetensors" for path in indexed_files(folder / PICKLED_INDEX)}
    else:
        raise UnsupportedModel(
            f"{folder}: has neither {PICKLED} nor {PICKLED_INDEX}; name the file itself if it holds `network`"
        )
    places: dict[str, str] = {}
    for path, name in files.items():
        weights = read_pickle(path, warn)
        save_file(weights, target / name, metadata={"format": "pt"})
        places |= dict.fromkeys(weights, name)
    if WHOLE not in files.values():
        (target / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8")
    return {name: path.name for path, name in files.items()}


def _load(path: Path, warn: Warn) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        warn(f"{path}: holds more than tensors; running its code now")
        return torch.load(path, map_location="cpu", weights_only=False)


def _weights_in(content: Any) -> dict[str, Tensor]:
    """Return the outermost mapping of names to tensors; other entries of it (step counts) are ignored."""
    if isinstance(content, nn.Module):
        content = content.state_dict()
    if not isinstance(content, Mapping):
        return {}
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if tensors:
        wrapped = all(name.startswith(_WRAPPED) for name in tensors)
        # A copy of each: weights that share memory cannot be written as safetensors.
        return {
            name.removeprefix(_WRAPPED) if wrapped else name: value.detach().contiguous().clone()
            for name, value in tensors.items()
        }
    return next(filter(None, (_weights_in(content[key]) for key in _INSIDE if key in content)), {})


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
