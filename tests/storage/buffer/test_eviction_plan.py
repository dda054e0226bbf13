"""Who leaves a real buffer: shares of sources, leases, bytes, samples; the same after a restart."""

import errno
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from configs.buffer import BufferSettings
from storage import durable
from storage.buffer.eviction_plan import BLOCK
from storage.buffer.frame_writer import NOT_KEPT
from storage.buffer.frames import FrameBuffer, NewFrame
from storage.errors import BufferFull, FrameEvicted
from storage.layout import StateLayout
from tests.sections import changed

Maker = Callable[..., NewFrame]
RAW = 64 * 96 * 3


def shards(layout: StateLayout) -> list[Path]:
    return list((layout.frames_zarr / "frames").glob("c.*"))


def bytes_of(layout: StateLayout) -> int:
    """Counted from the files."""
    return sum(-(-path.stat().st_size // BLOCK) * BLOCK for path in shards(layout))


def counted(buffer: FrameBuffer) -> int:
    """Counted by the writer, commit by commit."""
    assert buffer._writer is not None
    return buffer._writer._sizes.total


def noise(make: Maker, number: int) -> NewFrame:
    """A frame that hardly compresses."""
    new = make(number)
    pixels = np.random.default_rng(number).integers(0, 256, new.frame.pixels.shape, np.uint8)
    return replace(new, frame=replace(new.frame, pixels=pixels))


def sources(buffer: FrameBuffer) -> Counter:
    return Counter(record.source for record in buffer.records())


@pytest.fixture
def opened(layout: StateLayout, small: BufferSettings):
    """Open the buffer with other settings."""

    def open_(**changes) -> FrameBuffer:
        return FrameBuffer.open(layout, changed(small, **changes), writable=True)

    return open_


def test_a_source_at_its_share_pushes_out_its_own_frames_only(opened, new_frame: Maker):
    with opened(advanced={"max_source_share": 0.5}) as buffer:
        buffer.append([replace(new_frame(number), source="a") for number in range(2)])
        buffer.append([replace(new_frame(number), source="b") for number in range(2, 5)])
        for number in range(5, 30):
            buffer.append([replace(new_frame(number), source="b")])
            assert sources(buffer) == {"a": 2, "b": 3}
        assert [record.name for record in buffer.records() if record.source == "b"] == [
            f"cam/{number:04d}.png" for number in (27, 28, 29)
        ]
        buffer.append([replace(new_frame(number), source="c") for number in range(30, 36)])
        assert sources(buffer)["c"] == 3, "a group larger than the share keeps its newest"
        assert buffer.catalog.counts().committed_total == 36


def test_frames_without_a_source_have_no_share(opened, new_frame: Maker):
    with opened(advanced={"max_source_share": 0.2}) as buffer:
        buffer.append([new_frame(number) for number in range(6)])
        assert len(buffer.records()) == 6


def test_a_source_whose_frames_are_leased_does_not_stop_the_others(opened, new_frame: Maker):
    with opened(advanced={"max_source_share": 0.5}) as buffer:
        buffer.append([replace(new_frame(number), source="a") for number in range(3)])
        buffer.lease(1)
        buffer.append([replace(new_frame(3), source="a"), replace(new_frame(4), source="b")])
        assert sources(buffer) == {"a": 4, "b": 1}, "nothing of its own may leave, and there is room"
        buffer.append([replace(new_frame(5), source="b")])
        with pytest.raises(BufferFull):
            buffer.lease(2)
            buffer.append([replace(new_frame(6), source="a")])
        buffer.release(1)
        buffer.release(2)
        buffer.append([replace(new_frame(7), source="b")])
        assert sources(buffer) == {"a": 3, "b": 3}


def test_a_frame_that_a_condition_keeps_stays_until_another_is_kept(opened, new_frame: Maker):
    with opened(capacity_frames=4) as buffer:
        buffer.append([new_frame(number) for number in range(4)])
        buffer.keep({1: 1, 2: 7, 99: 7})
        assert buffer.catalog.kept() == {1: 1, 2: 7}, "frame 99 is not there"
        buffer.append([new_frame(number) for number in range(4, 8)])
        assert [record.id for record in buffer.records()] == [1, 2, 7, 8]
    with opened(capacity_frames=4) as buffer:
        buffer.keep({2: 7})
        buffer.append([new_frame(8)])
        assert [record.id for record in buffer.records()] == [2, 7, 8, 9]


def test_a_source_above_its_share_never_pushes_out_another(opened, new_frame: Maker):
    with opened(advanced={"max_source_share": 0.5}) as buffer:
        buffer.append([replace(new_frame(number), source="a") for number in range(3)])
        buffer.lease(1)
        buffer.append([replace(new_frame(number), source="b") for number in range(3, 6)])
        with pytest.raises(BufferFull):
            buffer.append([replace(new_frame(6), source="a")])
        assert sources(buffer) == {"a": 3, "b": 3}


def test_a_reservoir_commits_every_frame_and_keeps_the_same_sample_whatever_happens(
    opened, layout: StateLayout, new_frame: Maker
):
    frames = [new_frame(number) for number in range(40)]
    best = sorted(frames, key=lambda new: new.digest[16:32])[:6]
    returned = []
    for start in range(0, 40, 5):  # a restart after each group
        with opened(eviction="reservoir") as buffer:
            returned += buffer.append(frames[start : start + 5])
    with opened(eviction="reservoir") as buffer:
        assert {record.digest for record in buffer.records()} == {new.digest for new in best}
        counts = buffer.catalog.counts()
        assert (counts.frames, counts.committed_total, counts.evicted_total) == (6, 40, 34)
        assert [record.id for record in returned] == list(range(1, 41)), "ids count every frame that came"
        assert len(shards(layout)) == 6
        for record in buffer.records():
            assert np.array_equal(buffer.read(record), frames[record.id - 1].frame.pixels)
        passed = [record for record in returned if record.slot == NOT_KEPT]
        assert passed, "some never were in the buffer"
        with pytest.raises(FrameEvicted):
            buffer.read(passed[0])
        assert buffer.append([frames[passed[0].id - 1]]) == [], "known content for ever"
        assert all(buffer.catalog.known(new.file) for new in frames)


def test_a_reservoir_waits_while_a_round_holds_everything(opened, new_frame: Maker):
    with opened(eviction="reservoir") as buffer:
        buffer.append([new_frame(number) for number in range(6)])
        buffer.lease(1)
        with pytest.raises(BufferFull):
            buffer.append([new_frame(number) for number in range(6, 20)])
        assert buffer.catalog.counts().committed_total == 6


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    eviction=st.sampled_from(["fifo", "reservoir", "diverse"]),
    share=st.sampled_from([0.34, 1.0]),
    quota=st.sampled_from([0, 9 * RAW]),
    steps=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 4), st.booleans()), min_size=1, max_size=8),
)
def test_whatever_comes_leased_frames_stay_and_limits_hold(
    eviction, share, quota, steps, tmp_path_factory, small: BufferSettings, new_frame: Maker
):
    layout = StateLayout(tmp_path_factory.mktemp("room"))
    layout.create()
    options = changed(small, eviction=eviction, advanced={"max_source_share": share}, max_bytes=quota)
    number = 0
    with FrameBuffer.open(layout, options, writable=True) as buffer:
        for round_, (count, lease, grow) in enumerate(steps, 1):
            group = [replace(new_frame(number + i), source="ab"[(number + i) % 2]) for i in range(count)]
            number += count
            leased = {record.id for record in buffer.lease(round_, limit=lease)} if lease else set()
            before, size = buffer.catalog.counts(), counted(buffer)
            try:
                records = buffer.append(group, grow=grow)
            except (BufferFull, OSError):
                records, number = [], number - count
            after, ids = buffer.catalog.counts(), {record.id for record in buffer.records()}
            assert leased <= ids
            assert after.frames <= options.capacity_frames
            assert after.committed_total == before.committed_total + len(records)
            assert after.frames + after.evicted_total == after.committed_total
            assert len(shards(layout)) == after.frames
            assert counted(buffer) == bytes_of(layout)
            assert grow or counted(buffer) <= size
            assert not quota or counted(buffer) <= quota
            buffer.release(round_)


def test_the_quota_is_never_exceeded_not_even_in_the_middle_of_a_commit(
    opened, layout: StateLayout, new_frame: Maker, monkeypatch: pytest.MonkeyPatch
):
    quota, seen = 15 * RAW, []
    real = durable.fsync_directory

    def look(path: Path) -> None:
        real(path)
        seen.append(bytes_of(layout))

    monkeypatch.setattr(durable, "fsync_directory", look)
    with opened(capacity_frames=100, max_bytes=quota) as buffer:
        for number in range(0, 60, 10):
            buffer.append([noise(new_frame, number + i) for i in range(10)])
        frames = len(buffer.records())
        assert 8 <= frames < 15
        assert counted(buffer) == bytes_of(layout)
        assert [record.id for record in buffer.records()] == list(range(61 - frames, 61))
    assert quota * 0.75 < max(seen) <= quota


def test_bytes_are_counted_exactly_after_a_restart_and_a_smaller_quota_holds_from_the_next_commit(
    opened, layout: StateLayout, new_frame: Maker
):
    with opened(capacity_frames=40) as buffer:
        buffer.append([noise(new_frame, number) for number in range(30)])
        before = counted(buffer)
    (layout.frames_zarr / "frames" / "c.39.0.0.0").write_bytes(b"x" * 70_000)  # never committed
    with opened(capacity_frames=40, max_bytes=10 * RAW) as buffer:
        assert counted(buffer) == before == bytes_of(layout)
        buffer.append([noise(new_frame, 30)])
        assert counted(buffer) == bytes_of(layout) <= 10 * RAW
        assert buffer.records()[-1].id == 31


def test_a_quota_that_leases_keep_from_being_met_waits(opened, new_frame: Maker):
    with opened(capacity_frames=40) as buffer:
        buffer.append([noise(new_frame, number) for number in range(30)])
        buffer.lease(1)
    with opened(capacity_frames=40, max_bytes=10 * RAW) as buffer:
        with pytest.raises(BufferFull, match="max_bytes"):
            buffer.append([noise(new_frame, 30)])
        assert len(buffer.records()) == 30
        buffer.release(1)
        assert len(buffer.append([noise(new_frame, 30)])) == 1


def test_a_quota_that_holds_hardly_a_frame_is_refused():
    with pytest.raises(ValidationError, match="max_bytes"):
        BufferSettings(height=64, width=96, max_bytes=RAW)


def test_a_buffer_that_must_not_grow_replaces_byte_for_byte(opened, new_frame: Maker):
    with opened(capacity_frames=40) as buffer:
        with pytest.raises(OSError, match="must not grow") as refused:
            buffer.append([noise(new_frame, 0)], grow=False)
        assert refused.value.errno == errno.ENOSPC
        assert counted(buffer) == 0
        buffer.append([noise(new_frame, number) for number in range(8)])
        size = counted(buffer)
        buffer.append([noise(new_frame, number) for number in range(8, 12)], grow=False)
        assert counted(buffer) <= size
        assert [record.id for record in buffer.records()] == list(range(5, 13))


def test_the_largest_shard_is_what_noise_takes_at_most(opened, layout: StateLayout, new_frame: Maker):
    with opened() as buffer:
        buffer.append([noise(new_frame, 1)])
        assert max(path.stat().st_size for path in shards(layout)) <= buffer._array.largest_shard < 1.2 * RAW
