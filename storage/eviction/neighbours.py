"""Nearest neighbours among changing embeddings, updated at a cost proportional to the change."""

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

BLOCK = 256
"""Rows compared at once; bounds memory to this times the number of frames."""


class Neighbours:
    """The nearest neighbour of each of n vectors, Euclidean. A change of m vectors costs m x n distances, not n x n."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        """Frame of each row, ascending."""
        self._vectors = np.zeros((0, 0), np.float32)
        self._norms = np.zeros(0, np.float32)
        self._distance = np.zeros(0, np.float32)
        self._nearest = np.zeros(0, np.int64)

    def keep(self, ids: Collection[int]) -> None:
        """Remove the vectors of all other frames."""
        kept = np.array([frame in ids for frame in self.ids], bool)
        if kept.all():
            return
        orphans = kept & ~kept[self._nearest]
        place = np.cumsum(kept) - 1
        self._nearest = place[self._nearest][kept]
        self.ids = [frame for frame, stays in zip(self.ids, kept, strict=True) if stays]
        self._vectors, self._norms, self._distance = self._vectors[kept], self._norms[kept], self._distance[kept]
        rows = place[orphans]
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            self._update_nearest(block, self._squares(block))

    def add(self, vectors: Mapping[int, NDArray[np.float32]]) -> None:
        """Add vectors of further frames, all of the same length."""
        if not vectors:
            return
        ids = sorted(vectors)
        new = np.stack([vectors[frame] for frame in ids])
        old = len(self.ids)
        self.ids += ids
        self._vectors = np.concatenate([self._vectors, new]) if old else new
        self._norms = np.einsum("nd,nd->n", self._vectors, self._vectors)
        self._distance = np.concatenate([self._distance, np.full(len(ids), np.inf, np.float32)])
        self._nearest = np.concatenate([self._nearest, np.arange(old, old + len(ids))])
        for start in range(old, len(self.ids), BLOCK):
            rows = np.arange(start, min(start + BLOCK, len(self.ids)))
            squares = self._squares(rows)
            self._update_nearest(rows, squares)
            closest = squares.argmin(axis=0)
            found = squares[closest, np.arange(len(self.ids))]
            nearer = found < self._distance
            self._distance[nearer], self._nearest[nearer] = found[nearer], rows[closest[nearer]]
        self._sort()

    def closest_first(self, may_leave: Collection[int]) -> Iterator[int]:
        """Yield frames of `may_leave`: each time the one with the closest neighbour, of two neighbours the older.

        A yielded frame is no longer a neighbour. The stored vectors do not change.
        """
        leaves = np.array([frame in may_leave for frame in self.ids], bool)
        there = np.ones(len(self.ids), bool)
        distance, nearest = np.where(leaves, self._distance, np.inf), self._nearest.copy()
        for _ in range(int(leaves.sum())):
            row = self._closest(distance, nearest, there, leaves)
            other = int(nearest[row])
            if there[other] and leaves[other] and other < row:
                row = other
            there[row] = leaves[row] = False
            distance[row] = np.inf
            yield self.ids[row]

    def _closest(
        self,
        distance: NDArray[np.floating],
        nearest: NDArray[np.int64],
        there: NDArray[np.bool_],
        leaves: NDArray[np.bool_],
    ) -> int:
        """Return the row with the closest neighbour.

        The distance to a removed row is a lower bound; only then is the neighbour searched again.
        """
        while True:
            row = int(distance.argmin())
            if not np.isfinite(distance[row]):  # it has no neighbour left
                return int(leaves.argmax())
            if there[nearest[row]]:
                return row
            squares = self._squares(np.array([row]))[0]
            squares[~there] = np.inf
            nearest[row] = squares.argmin()
            distance[row] = squares[nearest[row]]

    def _update_nearest(self, rows: NDArray[np.int64], squares: NDArray[np.float32]) -> None:
        self._nearest[rows] = squares.argmin(axis=1)
        self._distance[rows] = squares[np.arange(len(rows)), self._nearest[rows]]

    def _squares(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return squared distances of these rows to all, [rows, n]; infinite to themselves."""
        products = self._vectors[rows] @ self._vectors.T
        squares: NDArray[np.float32] = self._norms[rows, None] + self._norms - 2 * products
        np.maximum(squares, 0, out=squares)
        squares[np.arange(len(rows)), rows] = np.inf
        return squares

    def _sort(self) -> None:
        """Sort rows in commit order, so that the older of two is the one with the smaller row."""
        order: Sequence[int] = np.argsort(self.ids, kind="stable").tolist()
        if order == list(range(len(order))):
            return
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        self.ids = [self.ids[row] for row in order]
        self._vectors, self._norms, self._distance = self._vectors[order], self._norms[order], self._distance[order]
        self._nearest = place[self._nearest[order]]
