"""First in, first out: the buffer is a window on the newest frames."""

from collections.abc import Collection, Iterator, Sequence

from storage.eviction.policy import Held


class Fifo:
    """The oldest leaves."""

    newcomers_may_leave = False

    def order(self, frames: Sequence[Held], may_leave: Collection[int]) -> Iterator[int]:
        """By age."""
        return (frame.id for frame in frames if frame.id in may_leave)
