"""The interface of eviction: a policy gives the order in which frames leave; others decide how many."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # the catalog needs no numpy
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Held:
    """A frame in the buffer or in the current commit."""

    id: int
    """Ascending in commit order; a new frame has the number that it will be committed under."""
    digest: str
    """Hex SHA-256 of the file it came from."""
    source: str
    """Source label; empty when there is none."""
    slot: int = -1
    """Index into the zarr array; -1 for a new frame."""
    leased: bool = False
    """Whether any round leases it, or a condition keeps it."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """Embedding of one frame."""

    frame: int
    """Id of the frame in the catalog."""
    released: int
    """Version whose encoder computed it; only embeddings of the same one can be compared."""
    vector: "NDArray[np.float32]"
    """[D]."""


class Eviction(Protocol):
    """An order in which frames leave. It must follow from what is stored, so that a restart changes nothing."""

    newcomers_may_leave: bool
    """Whether a new frame may leave in the commit in which it came."""

    def order(self, frames: Sequence[Held], may_leave: Collection[int]) -> Iterator[int]:
        """Yield all ids of `may_leave`, in the order of eviction.

        `frames` are all that stay or come, in commit order, also those that may not leave. The caller takes as many as
        it needs, and nothing has to be computed for the others. The frames may stay after all, because the commit may
        fail.
        """
        ...
