"""A uniform sample of every frame that ever came.

Each frame has a number that nobody chose, 64 bits of its SHA-256, and the buffer keeps the frames with the smallest
ones. So every frame that ever came has the same chance to be in a full buffer, as with Vitter's algorithm R, but
without a counter or the state of a generator: the sample follows from the images alone, whatever the order in which
they came, how they were grouped, and how often the daemon was restarted. Other digits of the digest choose the held-out
frames (`frame_writer.is_holdout`), so that both choices are independent.
"""

from collections.abc import Collection, Iterator, Sequence

from storage.eviction.policy import Held


class Reservoir:
    """The frame with the largest number leaves, though it be a new one."""

    newcomers_may_leave = True

    def order(self, frames: Sequence[Held], may_leave: Collection[int]) -> Iterator[int]:
        """By number, the largest first."""
        leaving = [frame for frame in frames if frame.id in may_leave]
        leaving.sort(key=lambda frame: frame.digest[16:32], reverse=True)
        return (frame.id for frame in leaving)
