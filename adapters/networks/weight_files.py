"""Say what is wrong with weights and their files before a network uses them, so that the right file is named."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from adapters.errors import NetworkMismatch, UnsupportedModel

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""Names in a Hugging Face directory: the whole model, or the index of its shards."""
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
"""The same two of a directory of pickles."""
PICKLES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})
"""Suffixes of files that run code when read."""
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_AGAIN = "copy or download it again"
_PAGE = (b"<!doctype", b"<html", b"<?xml")
_SHOWN = 3
_START = 512
"""Bytes of a file that tell what it really is."""


def damage_of(path: Path) -> str:
    """Return what is wrong with a safetensors file, ready to follow its name; empty when its header fits its size."""
    if found := impostor(path):
        return found
    try:
        with safe_open(path, framework="pt"):
            return ""
    except (SafetensorError, OSError) as error:
        return f"not a readable safetensors file, cut off or damaged ({error}); {_AGAIN}"


def impostor(path: Path) -> str:
    """Return what a file is in place of weights (nothing, a Git LFS pointer, a web page); empty if not known."""
    try:
        with path.open("rb") as file:
            start = file.read(_START)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not start:
        return f"empty (0 bytes), not weights; {_AGAIN}"
    if not any(start):
        return f"begins with zeros only, as an interrupted copy leaves it, not weights; {_AGAIN}"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the weights; run `git lfs pull` where it was cloned, or download the file"
    if start.lstrip().lower().startswith(_PAGE):
        return f"a web page, not weights; {_AGAIN}, signed in if need be"
    if start[:16].decode("latin-1").isprintable() and start[:16].isascii() and len(start) >= 16:
        return f"text ({start[:40].decode('latin-1').splitlines()[0]!r}), not weights; {_AGAIN}"
    return ""


def tensor_names(path: Path) -> frozenset[str]:
    """Return the names of the tensors in a readable safetensors file."""
    with safe_open(path, framework="pt") as file:
        return frozenset(file.keys())


def only_pickles(folder: Path) -> bool:
    """Return whether a Hugging Face directory has a model as pickles, or none at all, and not as safetensors."""
    if (folder / WHOLE).exists() or (folder / INDEX).exists():
        return False
    pickled = (folder / PICKLED).exists() or (folder / PICKLED_INDEX).exists()
    return pickled or not any(folder.glob("*.safetensors"))


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a Hugging Face directory, each readable: one, or all that its index names.

    Raises UnsupportedModel, naming the file that is missing or damaged.
    """
    files = [folder / WHOLE] if (folder / WHOLE).is_file() else _shards(folder)
    for path in files:
        if not path.is_file():
            raise UnsupportedModel(f"{path}: missing, though {INDEX} names it; {_AGAIN}")
        if damage := damage_of(path):
            raise UnsupportedModel(f"{path}: {damage}")
    return files


def _shards(folder: Path) -> list[Path]:
    if (folder / INDEX).exists():
        return indexed_files(folder / INDEX)
    others = ", ".join(sorted(path.name for path in folder.glob("*.safetensors")))
    what = (
        f"{others}, but neither {WHOLE} nor {INDEX}; rename the file with the whole model"
        if others
        else "no safetensors"
    )
    raise UnsupportedModel(f"{folder}: cannot be loaded: holds {what}")


def indexed_files(index: Path) -> list[Path]:
    """Return the files that the index of a model in shards names, all of its own folder; whether they exist is open.

    Raises UnsupportedModel when it is no such index.
    """
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        names = sorted(set(content["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnsupportedModel(f"{index}: no index of files of weights ({error!r}); {_AGAIN}") from error
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise UnsupportedModel(f"{index}: weight_map must name files of its own folder; {_AGAIN}")
    return [index.parent / name for name in names]


def check_types(files: list[Path], floats: set[str]) -> None:
    """Raise UnsupportedModel for a tensor in `floats` (names) that a file stores as whole numbers or in 8 bits."""
    for path in files:
        with safe_open(path, framework="pt") as weights:
            for name in sorted(floats.intersection(weights.keys())):
                kind = weights.get_slice(name).get_dtype()
                if kind not in _FLOATS:
                    raise UnsupportedModel(
                        f"{path}: {name} is stored as {kind}, which is quantised; save the model as float32, float16 "
                        "or bfloat16"
                    )


def check_values(files: list[Path], loaded: Mapping[str, Tensor]) -> None:
    """Raise NetworkMismatch when a tensor of `loaded`, a model's, has non-finite values; it names file and tensor."""
    if not (bad := [name for name, tensor in loaded.items() if not _finite(tensor)]):
        return
    place = next(_non_finite(files), f"{', '.join(map(str, files))}: {bad[0]}")  # what float32 cannot hold is finite
    raise NetworkMismatch(f"{place} has non-finite values (NaN or infinity); {_AGAIN}, or train the model anew")


def _non_finite(files: list[Path]) -> Iterator[str]:
    """Yield the file and, as it calls it, the name of each tensor with non-finite values."""
    for path in files:
        with safe_open(path, framework="pt") as weights:
            for name in sorted(weights.keys()):
                if weights.get_slice(name).get_dtype() in _FLOATS and not _finite(weights.get_tensor(name)):
                    yield f"{path}: {name}"


def weight_problems(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Return what is wrong with `found` as weights for a state dict `expected`; empty when they fit."""
    bad = sorted(name for name in expected.keys() & found.keys() if not _finite(found[name]))
    return misfits(expected, found) + ([f"has non-finite values in {_some(bad)}"] if bad else [])


def misfits(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Return names, shapes and types that differ between `found` and `expected`; reads no value."""
    both = expected.keys() & found.keys()
    groups = {
        "lacks": sorted(expected.keys() - found.keys()),
        "holds unknown": sorted(found.keys() - expected.keys()),
        "has a wrong shape for": sorted(name for name in both if expected[name].shape != found[name].shape),
        "has a wrong type for": sorted(name for name in both if expected[name].dtype != found[name].dtype),
    }
    return [f"{what} {_some(names)}" for what, names in groups.items() if names]


def _finite(tensor: Tensor) -> bool:
    """Return whether all values are finite. Their sum is only if they are, and takes an eighth of the time."""
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum()) or torch.isfinite(tensor).all())


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
