"""How many bytes the frames' files take: a running total, counted from the files when the buffer is opened."""

from collections.abc import Iterable

from storage.buffer.pixel_array import PixelArray

BLOCK = 4096
"""What file systems give files in multiples of (bytes). Counted so, and not as `st_blocks` tells: that is wrong on some
file systems until the data is laid out, minutes later."""


class ShardSizes:
    """Bytes of every shard that is there, committed or not."""

    def __init__(self, array: PixelArray) -> None:
        self._array = array
        self._bytes: dict[int, int] = {}
        self.total = 0
        """All of them (bytes)."""
        self.largest = blocks(array.largest_shard)
        """What one shard can take at most, if its pixels do not compress at all (bytes)."""
        self.note(array.shard_indices())

    def note(self, slots: Iterable[int]) -> None:
        """Measure shards that were written or removed."""
        for slot in slots:
            self.total -= self._bytes.pop(slot, 0)
            try:
                size = blocks(self._array.shard_path(slot).stat().st_size)
            except FileNotFoundError:
                continue
            self._bytes[slot] = size
            self.total += size

    def of(self, slots: Iterable[int]) -> int:
        """Bytes of these shards."""
        return sum(self._bytes.get(slot, 0) for slot in slots)


def blocks(size: int) -> int:
    """A file's size in whole blocks (bytes)."""
    return -(-size // BLOCK) * BLOCK
