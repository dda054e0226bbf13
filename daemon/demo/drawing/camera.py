"""A pinhole camera that looks along a street."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Camera:
    """World coordinates are metres: x to the right, y up from the ground, z ahead; the camera stands at (0, eye, 0)."""

    height: int
    """Rows of the canvas (pixels)."""
    width: int
    """Columns of the canvas (pixels)."""
    focal: float
    """Focal length (pixels)."""
    center_x: float
    """Column of the vanishing point (pixels)."""
    horizon: float
    """Row of the horizon (pixels)."""
    eye: float
    """Height of the camera above the ground (metres)."""

    def project(self, points: NDArray[np.floating]) -> Floats:
        """Pixel positions [N, 2] (column, row) of world points [N, 3]; every z must be positive."""
        x, y, z = np.asarray(points, dtype=np.float32).T
        return np.stack([self.center_x + self.focal * x / z, self.horizon - self.focal * (y - self.eye) / z], axis=1)

    def right(self, columns: slice = slice(None)) -> Floats:
        """x / z of the rays through the centres of `columns`, [1, W]."""
        pixels = np.arange(self.width, dtype=np.float32)[columns]
        return ((pixels + 0.5 - self.center_x) / self.focal)[None, :]

    def up(self, rows: slice = slice(None)) -> Floats:
        """(y - eye) / z of the rays through the centres of `rows`, [H, 1]."""
        pixels = np.arange(self.height, dtype=np.float32)[rows]
        return ((self.horizon - pixels - 0.5) / self.focal)[:, None]

    def column(self, x: float, z: float) -> float:
        """Column of the world point (x, any height, z)."""
        return self.center_x + self.focal * x / z

    def row(self, y: float, z: float) -> float:
        """Row of the world point (any x, y, z)."""
        return self.horizon - self.focal * (y - self.eye) / z
