"""First in, first out: the buffer is a window on the newest frames."""

from collections.abc import Collection, Iterator, Sequence

from storage.eviction.policy import Held


class Fifo:
    """Evicts the oldest frame."""

    newcomers_may_leave = False

    def order(self, frames: Sequence[Held], may_leave: Collection[int]) -> Iterator[int]:
        """Yield frames by age."""
        return (frame.id for frame in frames if frame.id in may_leave)
