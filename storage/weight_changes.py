"""How far the tensors of one weights file are from those of another: read one at a time, no torch needed."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from storage.errors import CorruptCheckpoint

BFLOAT16 = "BF16"
"""numpy has no such type; its values are the upper halves of float32."""


@dataclass(frozen=True, slots=True)
class TensorChange:
    """One tensor of two versions."""

    name: str
    """Key in the file."""
    shape: tuple[int, ...]
    """Its shape in the second version; in the first where only that has it."""
    relative: float | None
    """Norm of the difference over the norm of the first (0: the same; infinite from nothing to something); none where
    there is nothing to compare.
    """
    note: str = ""
    """Why not: only one has it, or shapes differ."""


def weight_changes(before: Path, after: Path) -> list[TensorChange]:
    """Every tensor of two safetensors files, in order of names. Raises CorruptCheckpoint when one cannot be read."""
    try:
        with safe_open(before, framework="numpy") as one, safe_open(after, framework="numpy") as other:
            names = sorted({*one.keys(), *other.keys()})
            return [_change(name, one, other) for name in names]
    except (SafetensorError, OSError) as error:
        raise CorruptCheckpoint(f"{before} or {after}: not a readable safetensors file: {error}") from error


def _change(name: str, one: "safe_open", other: "safe_open") -> TensorChange:
    has = [name in file.keys() for file in (one, other)]  # noqa: SIM118 - not a mapping
    if not all(has):
        owner = one if has[0] else other
        which = "first" if has[0] else "second"
        return TensorChange(name, tuple(owner.get_slice(name).get_shape()), None, f"only in the {which}")
    first, second = (tuple(file.get_slice(name).get_shape()) for file in (one, other))
    if first != second:
        return TensorChange(name, second, None, f"shape {list(first)} became {list(second)}")
    old, new = _values(one, name), _values(other, name)
    return TensorChange(name, second, _relative(old, new))


def _relative(old: NDArray[np.float64], new: NDArray[np.float64]) -> float:
    size, step = float(np.linalg.norm(old)), float(np.linalg.norm(new - old))
    if size == 0.0:
        return 0.0 if step == 0.0 else float("inf")
    return step / size


def _values(file: "safe_open", name: str) -> NDArray[np.float64]:
    return np.asarray(file.get_tensor(name), dtype=np.float64).ravel()
