"""A tree of numbers, texts and tensors on disk: `state.json` and `state.safetensors`; reading it runs no code."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

_TENSOR = "tensor:"
"""Stands in the JSON where a tensor was, with the tensor's name after it."""


def write_tree(folder: Path, tree: dict[str, Any]) -> None:
    """Write nested dicts and lists of JSON values and tensors into `folder`.

    Raises TypeError for anything else, and for keys that are not text.
    """
    tensors: dict[str, Tensor] = {}
    values = _without_tensors(tree, "", tensors)
    (folder / "state.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    save_file(tensors, folder / "state.safetensors")


def read_tree(folder: Path) -> dict[str, Any]:
    """What `write_tree` wrote, tensors on the CPU. Raises OSError, ValueError or SafetensorError when damaged."""
    tensors = load_file(folder / "state.safetensors")
    tree: dict[str, Any] = _with_tensors(json.loads((folder / "state.json").read_text(encoding="utf-8")), tensors)
    return tree


def _without_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return _TENSOR + name
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"{name}: a training state has text keys only, not {[*value]}")
        return {key: _without_tensors(item, f"{name}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tensors(item, f"{name}/{place}", tensors) for place, item in enumerate(value)]
    return value


def _with_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, str) and value.startswith(_TENSOR):
        return tensors[value.removeprefix(_TENSOR)]
    if isinstance(value, dict):
        return {key: _with_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_tensors(item, tensors) for item in value]
    return value
