"""Differences of the weights of two versions: names, types, shapes, and relative change of each tensor. No torch."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from storage.errors import CorruptCheckpoint

BFLOAT16 = "BF16"
"""numpy has no such type: its values are the upper halves of float32."""
LENGTH_BYTES = 8
"""Bytes of the header's length (little endian) at the start; positions of tensors count from its end."""


@dataclass(frozen=True, slots=True)
class TensorChange:
    """One tensor of two versions."""

    name: str
    """Key in the file."""
    shape: tuple[int, ...]
    """Shape in the second version; in the first when only that has it."""
    relative: float | None
    """Norm of the difference over the norm of the first (0: equal); None when that is undefined."""
    note: str = ""
    """Why it is undefined: only one has it, shapes differ, the first was all zeros, or values are not finite."""


def weight_changes(before: Sequence[Path], after: Sequence[Path]) -> list[TensorChange]:
    """Return every tensor of two versions, in order of names; each is one or more safetensors files.

    Tensors of a file that both have in common are equal and are not read. Raises CorruptCheckpoint.
    """
    one, other = _Weights(*before), _Weights(*after)
    return [_change(name, one, other) for name in sorted(one.shapes.keys() | other.shapes.keys())]


def tensor_headers(*paths: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return type and shape of each tensor of safetensors files. Raises CorruptCheckpoint when one is unreadable."""
    weights = _Weights(*paths)
    return {name: (weights.types[name], shape) for name, shape in weights.shapes.items()}


def differing_tensors(expected: Mapping[str, object], found: Mapping[str, object]) -> list[str]:
    """Return names that only one side has, or whose values (shapes, or types and shapes) differ; sorted."""
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


class _Weights:
    """Files that are mapped into memory until the last reference goes; values are read on demand."""

    def __init__(self, *paths: Path) -> None:
        self.places: dict[str, Path] = {}
        """The file of each tensor."""
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, str] = {}
        self._files = {path: self._opened(path) for path in paths}

    def _opened(self, path: Path) -> Any:
        try:
            opened: Any = safe_open(path, framework="numpy")
        except (SafetensorError, OSError) as error:
            raise CorruptCheckpoint(f"{path}: not a readable safetensors file: {error}") from error
        for name in opened.keys():  # noqa: SIM118 - not a mapping
            if name in self.places:
                raise CorruptCheckpoint(f"{path}: holds {name}, which is in {self.places[name]} too")
            part = opened.get_slice(name)
            self.places[name], self.shapes[name], self.types[name] = path, tuple(part.get_shape()), part.get_dtype()
        return opened

    def values(self, name: str) -> NDArray[np.float64]:
        """Return a tensor as one row of numbers."""
        path = self.places[name]
        if self.types[name] != BFLOAT16:
            return np.asarray(self._files[path].get_tensor(name), dtype=np.float64).ravel()
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(LENGTH_BYTES), "little")))
            begin, end = header[name]["data_offsets"]
            file.seek(begin, io.SEEK_CUR)
            halves = np.frombuffer(file.read(end - begin), dtype="<u2")
        return (halves.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def _change(name: str, one: _Weights, other: _Weights) -> TensorChange:
    first, second = one.shapes.get(name), other.shapes.get(name)
    if first is None or second is None:
        return TensorChange(name, first or second or (), None, f"only in the {'second' if first is None else 'first'}")
    if first != second:
        return TensorChange(name, second, None, f"shape {list(first)} became {list(second)}")
    if one.places[name] == other.places[name]:
        return TensorChange(name, second, 0.0)
    old, new = one.values(name), other.values(name)
    size, step = float(np.linalg.norm(old)), float(np.linalg.norm(new - old))
    if not (math.isfinite(size) and math.isfinite(step)):
        return TensorChange(name, second, None, "values are not finite")
    if size == 0.0 and step > 0.0:
        return TensorChange(name, second, None, "was all zeros")
    return TensorChange(name, second, step / size if step else 0.0)
