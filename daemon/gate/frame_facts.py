"""What a frame looks like in a few numbers, for the rules that keep broken frames out. numpy only."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from daemon.gate.bursts import Floats

ROWS, COLUMNS = 12, 16
"""Cells of a thumbnail."""


@dataclass(frozen=True, slots=True)
class FrameFacts:
    """Statistics of the pixels of one frame, without padding."""

    thumbnail: Floats
    """Mean colour of each cell, [ROWS, COLUMNS, 3] RGB (0-1)."""
    detail: float
    """Standard deviation of the cells' grey around a plane (0-1): 0 for black, one colour and smooth gradients."""
    likeness: float
    """Correlation of neighbouring blocks of 2x2 pixels, mean of right and lower neighbours: 0 for noise, scenes 0.7 and
    more."""
    lines: float
    """Mean step between neighbouring rows, divided by that between columns, or the other way round; at least 1."""

    def numbers(self) -> NDArray[np.float32]:
        """Return all of them in one vector, as the observer stores them."""
        return np.concatenate([[self.detail, self.likeness, self.lines], self.thumbnail.ravel()]).astype(np.float32)


def stored_facts(numbers: NDArray[np.float32]) -> FrameFacts:
    """Return the facts that `FrameFacts.numbers` gave."""
    detail, likeness, lines, *cells = numbers.tolist()
    return FrameFacts(np.reshape(np.array(cells), (ROWS, COLUMNS, 3)), detail, likeness, lines)


def facts_of(pixels: NDArray[np.uint8]) -> FrameFacts:
    """Return the facts of a frame [h, w, 3] RGB."""
    colours = pixels.astype(np.float32) / 255.0
    thumbnail = _cells(colours, ROWS, COLUMNS)
    grey = colours.mean(axis=2)
    blocks = _cells(grey[..., None], max(2, grey.shape[0] // 2), max(2, grey.shape[1] // 2))[..., 0]
    down, right = (float(np.abs(np.diff(grey, axis=axis)).sum()) / grey.size + 1e-3 for axis in (0, 1))
    return FrameFacts(
        thumbnail=thumbnail,
        detail=_around_plane(thumbnail.mean(axis=2)),
        likeness=(_correlation(blocks[1:], blocks[:-1]) + _correlation(blocks[:, 1:], blocks[:, :-1])) / 2.0,
        lines=max(down / right, right / down),
    )


def _cells(values: NDArray[np.float32], rows: int, columns: int) -> Floats:
    """Return the mean of each of rows x columns cells of values [h, w, C]; small images repeat pixels."""
    height, width = values.shape[:2]
    top, left = np.arange(rows) * height // rows, np.arange(columns) * width // columns
    sums = np.add.reduceat(np.add.reduceat(values, top, axis=0), left, axis=1).astype(np.float64)
    high = np.maximum(np.diff(top, append=height), 1)[:, None, None]
    wide = np.maximum(np.diff(left, append=width), 1)[None, :, None]
    means: Floats = sums / (high * wide)
    return means


def _around_plane(grey: Floats) -> float:
    rows, columns = np.indices(grey.shape)
    basis = np.stack([np.ones(grey.size), rows.ravel(), columns.ravel()], axis=1)
    weights = np.linalg.lstsq(basis, grey.ravel(), rcond=None)[0]
    return float((grey.ravel() - basis @ weights).std())


def _correlation(first: Floats, second: Floats) -> float:
    a, b = first - first.mean(), second - second.mean()
    spread = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / spread if spread > 1e-9 else 0.0
