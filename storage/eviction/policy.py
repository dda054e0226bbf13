"""The interface of eviction: a policy says in which order frames leave; how many leave is not its business."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Held:
    """What a policy may know of a frame that is in the buffer or about to be."""

    id: int
    """Ascending in commit order; a new frame has the number that it will be committed under."""
    digest: str
    """Hex SHA-256 of the file it came from."""
    source: str
    """Source label; empty when there is none."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """Where one frame lies."""

    frame: int
    """Id of the frame in the catalog."""
    released: int
    """Version whose encoder made it; only embeddings of the same one can be compared."""
    vector: NDArray[np.float32]
    """[D]."""


class Eviction(Protocol):
    """An order in which frames leave. It must follow from what is stored, so that a restart changes nothing."""

    newcomers_may_leave: bool
    """Whether a new frame may be the one that leaves, in the commit in which it came."""

    def order(self, frames: Sequence[Held], may_leave: Collection[int]) -> Iterator[int]:
        """Ids out of `may_leave`, all of them, the first to leave first.

        `frames` are all that stay or come, in commit order, also those that may not leave. The caller takes as many as
        it needs and nothing has to be computed for the others. Whether they leave indeed is not known: the commit may
        fail.
        """
        ...
