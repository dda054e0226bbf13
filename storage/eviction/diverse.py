"""Keep frames that differ: evict the frame that another one resembles most.

Greedy thinning by the observer's embeddings, the reverse of farthest-point selection: of the two frames that look most
alike the older one is evicted, again and again. A frame without an embedding counts as the newest and stays, unless
such frames are more than half of the buffer: otherwise a burst that is faster than the observer would evict all others.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import numpy as np

from storage.eviction.neighbours import Neighbours
from storage.eviction.policy import Embedding, Held

UNSEEN_SHARE = 0.5
"""Largest share of the buffer that frames without an embedding may hold when others have one (0-1)."""

Reader = Callable[[Collection[int]], Sequence[Embedding]]


class Diverse:
    """Evicts the frame whose nearest neighbour is closest."""

    newcomers_may_leave = False

    def __init__(self, read: Reader) -> None:
        """Prepare it; `read` returns the embeddings of some frames, as far as they exist."""
        self._read = read
        self._neighbours = Neighbours()
        self._released = 0
        self._outdated: set[int] = set()

    def order(self, frames: Sequence[Held], may_leave: Collection[int]) -> Iterator[int]:
        """Yield frames with incomparable embeddings first, then those that others resemble, then those without one.

        Embeddings are incomparable when they are of another released version than the newest one's, or not finite.
        """
        self._learn([frame.id for frame in frames])
        ids = [frame.id for frame in frames]
        unseen = self._unseen(ids)
        surplus = max(0, len(unseen) - int(UNSEEN_SHARE * len(ids))) if self._neighbours.ids else 0
        unseen = [frame for frame in unseen if frame in may_leave]
        yield from (frame for frame in ids if frame in self._outdated and frame in may_leave)
        yield from unseen[:surplus]
        yield from self._neighbours.closest_first(may_leave)
        yield from unseen[surplus:]

    def _unseen(self, ids: Iterable[int]) -> list[int]:
        seen = {*self._neighbours.ids, *self._outdated}
        return [frame for frame in ids if frame not in seen]

    def _learn(self, ids: Sequence[int]) -> None:
        """Remove frames that left, and read the embeddings of those that had none."""
        there = set(ids)
        self._neighbours.keep(there)
        self._outdated &= there
        found = self._read(self._unseen(ids))
        if not found:
            return
        released = found[-1].released
        if released != self._released:
            self._outdated.update(self._neighbours.ids)
            self._neighbours, self._released = Neighbours(), released
        good = {item.frame: item.vector for item in found if item.released == released and _finite(item)}
        self._outdated.update(item.frame for item in found if item.frame not in good)
        self._neighbours.add(good)


def _finite(item: Embedding) -> bool:
    return bool(np.isfinite(item.vector).all())
