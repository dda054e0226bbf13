import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from configs.buffer import BufferSettings
from storage.buffer.frames import FrameBuffer, HoldoutRule, NewFrame, is_holdout
from storage.errors import (
    AlreadyRunning,
    BufferMismatch,
    CorruptBuffer,
    FrameEvicted,
    StorageError,
)
from storage.layout import StateLayout
from tests.sections import changed, section

Maker = Callable[..., NewFrame]


def shards(layout: StateLayout) -> set[int]:
    return {int(path.name.split(".")[1]) for path in (layout.frames_zarr / "frames").glob("c.*")}


def slots(buffer: FrameBuffer) -> set[int]:
    return {record.slot for record in buffer.records()}


def test_frames_come_back_as_they_went_in(buffer: FrameBuffer, new_frame: Maker):
    frames = [new_frame(number) for number in range(4)]
    records = buffer.append(frames)
    assert [record.id for record in records] == [1, 2, 3, 4]
    assert buffer.records() == records
    for record, new in zip(records, frames, strict=True):
        assert np.array_equal(buffer.read(record), new.frame.pixels)
        assert np.array_equal(buffer.read_crop(record, 7, 9, 40, 33), new.frame.pixels[7:47, 9:42])
        assert (record.digest, record.name, record.captured_at) == (new.digest, new.file.path, new.captured_at)
        assert (record.source_height, record.source_width) == (new.source_height, new.source_width)
        assert (record.valid_height, record.valid_width) == (new.frame.valid_height, new.frame.valid_width)
        assert record.committed_at > 1_000_000
        assert buffer.catalog.known(new.file) and buffer.catalog.has_digest(new.digest)
    counts = buffer.catalog.counts()
    assert (counts.frames, counts.committed_total, counts.evicted_total) == (4, 4, 0)
    assert counts.last_committed_at == records[-1].committed_at


def test_what_was_committed_is_there_after_reopening(layout: StateLayout, small: BufferSettings, new_frame: Maker):
    with FrameBuffer.open(layout, small, writable=True) as buffer:
        records = buffer.append([new_frame(1), new_frame(2)])
    for writable in (True, False):
        with FrameBuffer.open(layout, small, writable=writable) as buffer:
            assert buffer.records() == records
            assert np.array_equal(buffer.read(records[1]), new_frame(2).frame.pixels)


def test_a_reader_follows_a_living_writer(layout: StateLayout, small: BufferSettings, buffer, new_frame: Maker):
    with FrameBuffer.open(layout, small, writable=False) as reader:
        assert reader.records() == []
        (record,) = buffer.append([new_frame(1)])
        assert np.array_equal(reader.read(reader.records()[0]), new_frame(1).frame.pixels)
        assert reader.records() == [record]
        for call in (lambda: reader.append([new_frame(2)]), lambda: reader.lease(1), lambda: reader.release(1)):
            with pytest.raises(StorageError, match="reading only"):
                call()


def test_a_black_frame_is_a_file_like_any_other(buffer: FrameBuffer, new_frame: Maker, layout: StateLayout):
    black = new_frame(1)
    black.frame.pixels[:] = 0
    (record,) = buffer.append([black])
    assert shards(layout) == {record.slot}
    assert not buffer.read(record).any()


def test_a_frame_that_left_is_not_corrupt_but_evicted(buffer: FrameBuffer, new_frame: Maker):
    (old,) = buffer.append([new_frame(0)])
    buffer.append([new_frame(number) for number in range(1, 7)])
    for call in (lambda: buffer.read(old), lambda: buffer.read_crop(old, 0, 0, 8, 8)):
        with pytest.raises(FrameEvicted, match=r"cam/0000\.png"):
            call()
    buffer.append([new_frame(number) for number in range(7, 20)])  # its slot holds another frame by now
    for call in (lambda: buffer.read(old), lambda: buffer.read_crop(old, 0, 0, 8, 8)):
        with pytest.raises(FrameEvicted):
            call()


def test_holdout_is_a_fixed_share_by_content(buffer: FrameBuffer, new_frame: Maker):
    digests = [new_frame(number).digest for number in range(400)]
    share = sum(is_holdout(digest, 0.1) for digest in digests) / len(digests)
    assert 0.05 < share < 0.15
    assert not any(is_holdout(digest, 0.0) for digest in digests)
    assert all(is_holdout(digest, 1.0) for digest in ("f" * 64, "0" * 64))
    records = buffer.append([new_frame(number) for number in range(6)])
    assert [record.holdout for record in records] == [is_holdout(digest, 0.25) for digest in digests[:6]]
    assert {record.id for record in buffer.records(holdout=True)} == {r.id for r in records if r.holdout}


@pytest.mark.parametrize("group", [1, 5, 20])
def test_a_small_buffer_holds_out_enough_for_a_round(layout: StateLayout, new_frame: Maker, group: int):
    """20 images are too few for one in ten to be 4; what is stored keeps its choice when more come."""
    rule = HoldoutRule(0.001, least=4, within=16)
    with FrameBuffer.open(layout, section(BufferSettings, height=64, width=96, tile=32), writable=True) as buffer:
        seen: dict[int, bool] = {}
        for start in range(0, 40, group):
            buffer.append([new_frame(number) for number in range(start, start + group)], holdout=rule)
            now = {record.id: record.holdout for record in buffer.records()}
            assert seen.items() <= now.items()
            assert sum(now.values()) == min(4, len(now) // 4)
            seen = now


def test_the_rule_for_small_buffers_bends_to_what_is_there():
    never, always = "f" * 64, "0" * 64
    assert HoldoutRule(0.1).holds(always, 1, 0) and not HoldoutRule(0.1).holds(never, 100, 0)
    assert not HoldoutRule(0.0, least=4, within=16).holds(always, 16, 0), "0 holds out none"
    greedy = HoldoutRule(0.1, least=8, within=4)
    assert [greedy.holds(never, frames, 0) for frames in (1, 2, 3)] == [False, True, True]
    assert not greedy.holds(never, 4, 2), "half of the frames stay to train on"
    late = HoldoutRule(0.1, least=4, within=16)
    assert late.holds(never, 21, 1) and not late.holds(never, 21, 4), "an older buffer catches up with new frames"


def test_a_reservoir_counts_what_it_keeps(layout: StateLayout, new_frame: Maker):
    settings = section(BufferSettings, height=64, width=96, tile=32, capacity_frames=16, eviction="reservoir")
    with FrameBuffer.open(layout, settings, writable=True) as buffer:
        for start in range(0, 64, 8):
            group = [new_frame(number) for number in range(start, start + 8)]
            buffer.append(group, holdout=HoldoutRule(0.001, least=4, within=16))
        assert 1 <= len(buffer.records(holdout=True)) <= 8


def test_bytes_gone_bad_are_found(buffer: FrameBuffer, new_frame: Maker):
    record, other, third = buffer.append([new_frame(1), new_frame(2), new_frame(3)])
    buffer._array.shard_path(record.slot).unlink()
    with pytest.raises(CorruptBuffer, match="missing"):
        buffer.read(record)
    with pytest.raises(CorruptBuffer, match="missing"):
        buffer.read_crop(record, 0, 0, 8, 8)
    path = buffer._array.shard_path(other.slot)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(CorruptBuffer):
        buffer.read(other)
    with pytest.raises(CorruptBuffer, match="checksum"):
        buffer.read(replace(third, crc32=third.crc32 ^ 1))


def test_only_one_writes(layout: StateLayout, small: BufferSettings, buffer: FrameBuffer):
    with pytest.raises(AlreadyRunning, match=str(os.getpid())):
        FrameBuffer.open(layout, small, writable=True)
    buffer.close()
    FrameBuffer.open(layout, small, writable=True).close()


@pytest.mark.parametrize(("field", "value"), [("height", 32), ("width", 64), ("tile", 16)])
def test_another_geometry_is_refused(
    layout: StateLayout, small: BufferSettings, buffer: FrameBuffer, field: str, value: int
):
    buffer.close()
    for writable in (True, False):
        with pytest.raises(BufferMismatch, match=rf"buffer\.(advanced\.)?{field} .*{value}"):
            FrameBuffer.open(layout, changed(small, **{field: value}), writable=writable)
    FrameBuffer.open(layout, small, writable=True).close()


def test_capacity_may_grow_and_shrink(layout: StateLayout, small: BufferSettings, new_frame: Maker):
    with FrameBuffer.open(layout, small, writable=True) as buffer:
        buffer.append([new_frame(number) for number in range(6)])
    with FrameBuffer.open(layout, small.model_copy(update={"capacity_frames": 50}), writable=True) as buffer:
        buffer.append([new_frame(number) for number in range(6, 40)])
        assert len(buffer.records()) == 40
        assert np.array_equal(buffer.read(buffer.records()[0]), new_frame(0).frame.pixels)
    with FrameBuffer.open(layout, small.model_copy(update={"capacity_frames": 3}), writable=True) as buffer:
        assert len(buffer.records()) == 40
        buffer.append([new_frame(41)])
        assert [record.name for record in buffer.records()] == ["cam/0038.png", "cam/0039.png", "cam/0041.png"]
        assert shards(layout) == slots(buffer)


def test_a_frame_of_another_size_is_an_error(buffer: FrameBuffer, new_frame: Maker):
    with pytest.raises(ValueError, match=r"\(32, 32, 3\), an image here is"):
        buffer.append([new_frame(1), new_frame(2, 32, 32)])
    assert buffer.records() == []


def test_a_reader_without_a_buffer_is_told(tmp_path: Path, small: BufferSettings):
    with pytest.raises(StorageError, match="no frame buffer yet"):
        FrameBuffer.open(StateLayout(tmp_path), small, writable=False)
    assert not list(tmp_path.iterdir())


def test_files_that_do_not_belong_together_are_refused(
    layout: StateLayout, small: BufferSettings, buffer: FrameBuffer, new_frame: Maker
):
    buffer.append([new_frame(number) for number in range(6)])
    buffer.close()
    layout.frames_zarr.rename(layout.buffer / "moved")
    with pytest.raises(CorruptBuffer, match="is missing"):
        FrameBuffer.open(layout, small, writable=True)
    (layout.buffer / "moved").rename(layout.frames_zarr)
    FrameBuffer.open(layout, small, writable=True).close()


@pytest.mark.parametrize("content", [None, b""])
def test_pixels_whose_catalog_is_gone_are_not_removed(layout, small, new_frame, content):
    with FrameBuffer.open(layout, small, writable=True) as buffer:
        (record,) = buffer.append([new_frame(1)])
        shard = buffer._array.shard_path(record.slot)
    for path in layout.buffer.glob("catalog.sqlite*"):
        path.unlink()
    if content is not None:
        layout.catalog.write_bytes(content)
    with pytest.raises(CorruptBuffer, match="restore"):
        FrameBuffer.open(layout, small, writable=True)
    assert shard.exists()
