"""Plan which frames leave for a commit group: capacity, shares of sources, bytes on the disk.

The policy gives the order. Everything is decided from the catalog and the files as they are, before the transaction
that deletes and inserts. A leased frame, or one that a condition keeps, never leaves.
"""

import errno
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from configs.buffer import BufferSettings
from storage import durable
from storage.buffer.catalog import Catalog
from storage.buffer.pixel_array import PixelArray
from storage.errors import BufferFull
from storage.eviction.policy import Eviction, Held

HEADROOM = 4
"""Largest part of `max_bytes` for a commit group: old and new frames coexist until the commit."""
BLOCK = 4096
"""File systems allocate files in multiples of this (bytes). `st_blocks` is not used: on some file systems it is wrong
until the data is laid out, minutes later."""


class ShardSizes:
    """Bytes of every existing shard, committed or not."""

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
            size = blocks(durable.size_of(self._array.shard_path(slot)))
            self.total += size - self._bytes.get(slot, 0)
            self._bytes[slot] = size

    def of(self, slots: Iterable[int]) -> int:
        """Return the bytes of these shards."""
        return sum(self._bytes.get(slot, 0) for slot in slots)


def blocks(size: int) -> int:
    """Return a file's size in whole blocks (bytes)."""
    return -(-size // BLOCK) * BLOCK


@dataclass
class EvictionPlan:
    """Frames that leave with one commit group."""

    held: Sequence[Held]
    """The frames of the buffer, in commit order."""
    fresh: Sequence[Held]
    """The new ones."""
    gone: set[int] = field(default_factory=set)
    """Ids of the frames that leave; a new one among them is committed and never stored."""

    @property
    def victims(self) -> list[Held]:
        """Return the frames of the buffer that leave."""
        return [frame for frame in self.held if frame.id in self.gone]

    @property
    def left(self) -> int:
        """Return the number of frames after the commit."""
        return len(self.held) + len(self.fresh) - len(self.gone)

    def movable(self) -> set[int]:
        """Return frames of the buffer that may leave and do not yet."""
        return {frame.id for frame in self.held if not frame.leased} - self.gone

    def new(self) -> set[int]:
        """Return new frames that do not leave yet."""
        return {frame.id for frame in self.fresh} - self.gone

    def take(
        self, policy: Eviction, amount: int, may_leave: Collection[int], sizes: Mapping[int, int] | None = None
    ) -> int:
        """Mark frames of `may_leave` as leaving until they are `amount`; return how much is still missing.

        It counts frames, or bytes where `sizes` has those of each frame.
        """
        if amount > 0:
            staying = [frame for frame in (*self.held, *self.fresh) if frame.id not in self.gone]
            for frame in policy.order(staying, may_leave):
                self.gone.add(frame)
                amount -= 1 if sizes is None else sizes[frame]
                if amount <= 0:
                    break
        return amount


class EvictionPlanner:
    """Plans evictions of one buffer."""

    def __init__(self, catalog: Catalog, settings: BufferSettings, policy: Eviction, sizes: ShardSizes) -> None:
        self._catalog, self._settings, self._policy, self._sizes = catalog, settings, policy, sizes
        self._per_source = max(1, int(settings.advanced.max_source_share * settings.capacity_frames))

    def group_size(self, most: int) -> int:
        """Return how many frames one commit may hold now, at least 1 and at most `most`."""
        free = self._settings.capacity_frames - self._catalog.leased_frames()
        return max(1, min(most, free, self._headroom() // self._sizes.largest if self._settings.max_bytes else most))

    def plan_for_quota(self) -> EvictionPlan:
        """Plan evictions before anything is written, because `max_bytes` was lowered. Raises BufferFull."""
        plan = EvictionPlan(self._catalog.held(), ())
        self.extend_for_bytes(plan, {}, grow=True)
        return plan

    def plan_for_count(self, fresh: Sequence[Held]) -> EvictionPlan:
        """Plan evictions for the number of new frames. Raises BufferFull when leases leave too few."""
        plan = EvictionPlan(self._catalog.held() if fresh else (), fresh)
        pushing = self._push_out_own(plan)
        wanted, movable = plan.left - self._settings.capacity_frames, plan.movable()
        if wanted > 0 and (pushing or not movable):
            raise self._full()
        plan.take(self._policy, wanted, movable | self._newcomers(plan))
        if plan.left > self._settings.capacity_frames:
            raise self._full()
        return plan

    def extend_for_bytes(self, plan: EvictionPlan, written: dict[int, int], *, grow: bool) -> None:
        """Add evictions for the new frames' size on the disk; `written` is slot by new frame's id.

        Raises BufferFull when the quota cannot be kept, OSError (ENOSPC) when nothing may leave but the buffer must not
        grow.
        """
        if self._settings.max_bytes and self._take_bytes(plan, self._excess(plan), written) > 0:
            raise self._full()
        come = self._sizes.of(slot for frame, slot in written.items() if frame not in plan.gone)
        gone = self._sizes.of(frame.slot for frame in plan.victims)
        if not grow and self._take_bytes(plan, come - gone, written) > 0:
            raise OSError(errno.ENOSPC, "the buffer must not grow, and no frame may be evicted")

    def too_large(self, group: int) -> bool:
        """Return whether a group of this many frames might exceed `max_bytes` while old ones still exist."""
        limit = self._settings.max_bytes
        return bool(limit) and self._sizes.total + group * self._sizes.largest > limit

    def _push_out_own(self, plan: EvictionPlan) -> bool:
        """Let sources above their share evict their own frames; return whether a new frame exceeds it anyway.

        That happens while leases hold the older ones. Those do not count then, because one camera would stop the
        others. The excess of a source is evicted after the lease.
        """
        if self._settings.advanced.max_source_share == 1:
            return False
        old = Counter(frame.source for frame in plan.held if not frame.leased)
        leased = Counter(frame.source for frame in plan.held if frame.leased)
        new = Counter(frame.source for frame in plan.fresh)
        above = False
        for source in {*new, *(old.keys() - leased.keys())} - {""}:
            stay = max(self._per_source - leased[source], min(new[source], self._per_source))
            mine = {frame.id for frame in (*plan.held, *plan.fresh) if frame.source == source}
            surplus, movable = old[source] + new[source] - stay, mine & plan.movable()
            plan.take(self._policy, surplus, movable | (mine & self._newcomers(plan)))
            if not self._policy.newcomers_may_leave:  # unless they are more than the share by themselves
                plan.take(self._policy, surplus - len(movable), mine & plan.new())
            above = above or (new[source] > 0 and stay + leased[source] > self._per_source)
        return above

    def _take_bytes(self, plan: EvictionPlan, size: int, written: dict[int, int]) -> int:
        slots = {frame.id: frame.slot for frame in plan.held} | written
        may_leave = plan.movable() | (self._newcomers(plan) & written.keys())
        sizes = {frame: self._sizes.of([slots[frame]]) for frame in may_leave}
        return plan.take(self._policy, size, may_leave, sizes)

    def _excess(self, plan: EvictionPlan) -> int:
        """Return the bytes above `max_bytes` after the commit, with headroom for the next group."""
        stay = self._sizes.total - self._sizes.of(frame.slot for frame in plan.victims)
        return stay - (self._settings.max_bytes - self._headroom())

    def _headroom(self) -> int:
        return max(self._sizes.largest, self._settings.max_bytes // HEADROOM)

    def _newcomers(self, plan: EvictionPlan) -> set[int]:
        return plan.new() if self._policy.newcomers_may_leave else set()

    def _full(self) -> BufferFull:
        limit = f" and {self._settings.max_bytes} bytes" if self._settings.max_bytes else ""
        return BufferFull(
            f"{self._catalog.path.parent}: no room: rounds {self._catalog.leases()} lease and conditions keep "
            f"{self._catalog.leased_frames()} frames of {self._settings.capacity_frames}{limit}; "
            "wait for the round to end, or raise buffer.capacity_frames or buffer.max_bytes"
        )
