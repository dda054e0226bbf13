"""Orders that follow from the records of the frames alone."""

from collections.abc import Collection, Iterator, Sequence

from storage.eviction.policy import Held


class Fifo:
    """First in, first out: evicts the oldest frame, so the buffer is a window on the newest."""

    newcomers_may_leave = False

    def order(self, frames: Sequence[Held], may_leave: Collection[int]) -> Iterator[int]:
        """Yield frames by age."""
        return (frame.id for frame in frames if frame.id in may_leave)


class Reservoir:
    """A uniform sample of every frame that ever came: evicts the frame with the largest number, even a new one.

    The number of a frame is 64 bits of its SHA-256. So every frame that ever came has the same chance to be in a full
    buffer, as with Vitter's algorithm R, but without a counter or the state of a generator: the sample follows from the
    images alone, whatever their order, their groups, and the number of restarts. Other digits of the digest choose the
    held-out frames (`frame_writer.is_holdout`), so both choices are independent.
    """

    newcomers_may_leave = True

    def order(self, frames: Sequence[Held], may_leave: Collection[int]) -> Iterator[int]:
        """Yield frames by number, the largest first."""
        leaving = [frame for frame in frames if frame.id in may_leave]
        leaving.sort(key=lambda frame: frame.digest[16:32], reverse=True)
        return (frame.id for frame in leaving)
