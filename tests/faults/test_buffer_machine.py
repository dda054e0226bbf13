"""Hypothesis drives the real FrameBuffer through all that can happen to it, beside a dict that says what is right."""

import os
import shutil
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from storage.checking import check_state
from storage.errors import BufferFull
from storage.layout import StateLayout
from tests.faults import processes, world

GROUP = 3
"""Most frames in one append, and the smallest capacity: an append is then always one commit."""
BEFORE, AFTER = (
    ("frames.written", "frames.synced", "frames.folder_synced", "transaction.filled"),
    ("transaction.committed",),
)


class BufferMachine(RuleBasedStateMachine):
    """`frames`: number of the image by frame id; `ever`: all that were committed; `leases`: frame ids by round."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="mfmd-machine-", dir=os.environ.get("PYTEST_DEBUG_TEMPROOT")))
        self.frames: dict[int, int] = {}
        self.ever: set[int] = set()
        self.leases: dict[int, set[int]] = {}

    @initialize(capacity=st.integers(GROUP, 6))
    def begin(self, capacity: int) -> None:
        self.capacity = capacity
        self.buffer = world.open_buffer(self.root, capacity)

    @rule(numbers=st.lists(st.integers(0, 24), min_size=1, max_size=GROUP))
    def append(self, numbers: list[int]) -> None:
        """New content is stored, known content is not; the oldest frames that nobody leases make room."""
        frames, stored, full = self._play(numbers)
        new = [world.frame(number) for number in numbers]
        if full:
            with pytest.raises(BufferFull):
                self.buffer.append(new)
        else:
            assert [record.digest for record in self.buffer.append(new)] == [world.frame(n).digest for n in stored]
        self._learn(frames, stored)

    @rule(round=st.integers(1, 3), limit=st.none() | st.integers(0, 4))
    def lease(self, round: int, limit: int | None) -> None:
        newest = sorted(self.frames, reverse=True)[:limit]
        held = self.leases.setdefault(round, set())
        held.update(newest)
        assert [record.id for record in self.buffer.lease(round, limit)] == sorted(held)

    @rule(round=st.integers(1, 3))
    def release(self, round: int) -> None:
        self.buffer.release(round)
        self.leases.pop(round, None)

    @rule(capacity=st.integers(GROUP, 6))
    def reopen(self, capacity: int) -> None:
        """Another process takes over, with another capacity."""
        self.buffer.close()
        self.capacity = capacity
        self.buffer = world.open_buffer(self.root, capacity)

    @rule(numbers=st.lists(st.integers(0, 24), min_size=1, max_size=GROUP), place=st.sampled_from((*BEFORE, *AFTER)))
    def killed(self, numbers: list[int], place: str) -> None:
        """A process dies in the middle of an append: all of it is there, or none."""
        frames, stored, full = self._play(numbers)
        if full or not stored or len(numbers) > self._group():
            return
        self.buffer.close()
        job = partial(world.append_frames, numbers=numbers, capacity=self.capacity)
        assert processes.killed_at(job, self.root, place)
        if place in AFTER:
            self._learn(frames, stored)
        self.buffer = world.open_buffer(self.root, self.capacity)

    @invariant()
    def is_what_the_dict_says(self) -> None:
        if not hasattr(self, "buffer"):
            return
        records = self.buffer.records()
        assert [record.id for record in records] == sorted(self.frames)
        for record in records:
            assert np.array_equal(self.buffer.read(record), world.frame(self.frames[record.id]).frame.pixels)
        assert self.buffer.leases() == sorted(round for round, held in self.leases.items() if held)
        counts = self.buffer.catalog.counts()
        assert (counts.frames, counts.committed_total) == (len(self.frames), len(self.ever))
        assert all(self.buffer.catalog.has_digest(world.frame(number).digest) for number in self.ever)
        assert {item.split(".")[1] for item in self._shards()} == {str(record.slot) for record in records}

    def teardown(self) -> None:
        if hasattr(self, "buffer"):
            self.buffer.close()
            problems = check_state(StateLayout(self.root / "state"), read_data=True)
            assert {problem.code for problem in problems} <= {"lease_stale"}, problems
        shutil.rmtree(self.root)

    def _shards(self) -> list[str]:
        return [path.name for path in (self.root / "state" / "buffer" / "frames.zarr" / "frames").glob("c.*")]

    def _group(self) -> int:
        """Most frames in one commit now."""
        return max(1, min(self.capacity, self.capacity - len(self._leased())))

    def _leased(self) -> set[int]:
        return set().union(*self.leases.values())

    def _play(self, numbers: list[int]) -> tuple[dict[int, int], list[int], bool]:
        """An append of these images: frames afterwards, the images stored, and whether there was no room for all."""
        frames, stored, size = dict(self.frames), list[int](), self._group()
        for start in range(0, len(numbers), size):
            group = dict.fromkeys(numbers[start : start + size])
            fresh = [number for number in group if number not in self.ever and number not in stored]
            wanted = max(0, len(frames) + len(fresh) - self.capacity) if fresh else 0
            victims = [frame for frame in sorted(frames) if frame not in self._leased()][:wanted]
            if len(victims) < wanted:
                return frames, stored, True
            for frame in victims:
                del frames[frame]
            first = len(self.ever) + len(stored) + 1
            frames |= {first + offset: number for offset, number in enumerate(fresh)}
            stored += fresh
        return frames, stored, False

    def _learn(self, frames: dict[int, int], stored: list[int]) -> None:
        self.frames = frames
        self.ever |= set(stored)


SETTINGS = settings(
    max_examples=12,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


class TestBufferMachine(BufferMachine.TestCase):
    settings = SETTINGS


@pytest.mark.nightly
class TestBufferMachineLonger(BufferMachine.TestCase):
    settings = settings(SETTINGS, max_examples=100)
