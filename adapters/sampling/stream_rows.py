"""Rows of an endless stream of crops: each has a number, and random numbers that follow from it.

So the whole position of a stream is one integer. The stream continues from any position without drawing the earlier
rows. Each of several processes draws its rows of the common batch without touching the rows of the others.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

_CROPS, _ORDER = 0, 1


class StreamRow(NamedTuple):
    """One crop to draw."""

    number: int
    """Place in the stream, from 0, counted over the batches of all processes."""
    generator: np.random.Generator
    """Random numbers of the row; the same in whichever process draws it."""


class StreamRows:
    """The rows that one process draws: `batch_size` of every common batch of `batch_size * processes`."""

    def __init__(self, seed: Sequence[int], *, rank: int = 0, processes: int = 1) -> None:
        """Select rows: `seed` defines the stream in every process; `rank` of `processes` names this one."""
        self._seed = tuple(seed)
        self._rank, self._processes = rank, processes
        self.start = 0
        """Batches that come before the first of `batches`."""

    def batches(self, batch_size: int) -> Iterator[list[StreamRow]]:
        """Yield this process's rows of each batch, without end."""
        first = (self.start * self._processes + self._rank) * batch_size
        while True:
            yield [self._row(number) for number in range(first, first + batch_size)]
            first += self._processes * batch_size

    def _row(self, number: int) -> StreamRow:
        return StreamRow(number, np.random.default_rng((*self._seed, _CROPS, number)))


class ShuffledOrder:
    """Indices 0..count-1 in one random order after another, without end; `order[row number]` is an index."""

    def __init__(self, count: int, seed: Sequence[int]) -> None:
        self._count, self._seed = count, tuple(seed)
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __getitem__(self, number: int) -> int:
        """Return the index of a row; every index occurs once in each `count` rows."""
        epoch, place = divmod(number, self._count)
        if epoch != self._epoch:
            generator = np.random.default_rng((*self._seed, _ORDER, epoch))
            self._epoch, self._order = epoch, generator.permutation(self._count)
        return int(self._order[place])
