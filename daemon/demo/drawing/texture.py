"""Noise: what keeps drawn surfaces from being flat."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from daemon.demo.drawing.camera import Floats

_SIDE = 512
_TABLE: Floats = np.random.default_rng(20240607).random((_SIDE, _SIDE), dtype=np.float32)


def grain(x: Floats, y: Floats, cell: float, shift: int = 0) -> Floats:
    """A fixed random value (0-1) for each square cell of side `cell`; same unit as `x` and `y`, which broadcast."""
    return _TABLE[cells(y, cell, shift), cells(x, cell, shift * 7)]


def cells(values: Floats, cell: float, shift: int = 0) -> NDArray[np.intp]:
    """Index of the cell of side `cell` that each value falls in, wrapped to the table."""
    return np.asarray((np.floor(values / np.float32(cell)).astype(np.intp) + shift) % _SIDE)


def smooth_noise(rng: np.random.Generator, height: int, width: int, rows: int, columns: int) -> Floats:
    """Soft noise [height, width] (0-1) with about `rows` x `columns` bumps."""
    coarse = rng.random((rows + 3, columns + 3), dtype=np.float32)
    fine = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    return np.clip(fine, 0, 1)


def stripes(values: Floats, period: float, share: float) -> NDArray[np.bool_]:
    """True in the first `share` (0-1) of every `period`."""
    return np.asarray(np.mod(values, np.float32(period)) < share * period)
