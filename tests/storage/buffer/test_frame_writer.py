"""How groups of frames are committed, evicted, leased, refused by a full disk and recovered."""

import errno
import os
import pickle
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from configs.buffer import BufferSettings
from storage import durable
from storage.buffer import frame_writer
from storage.buffer.catalog_records import FileFact
from storage.buffer.frames import FrameBuffer, NewFrame
from storage.errors import (
    BufferFull,
    DurabilityLost,
)
from storage.layout import StateLayout

Maker = Callable[..., NewFrame]


def shards(layout: StateLayout) -> set[int]:
    return {int(path.name.split(".")[1]) for path in (layout.frames_zarr / "frames").glob("c.*")}


def slots(buffer: FrameBuffer) -> set[int]:
    return {record.slot for record in buffer.records()}


def test_files_are_synced_before_and_the_folder_after_them_and_the_commit_comes_last(
    buffer: FrameBuffer, new_frame: Maker, monkeypatch: pytest.MonkeyPatch
):
    order: list[str] = []
    real = os.fsync  # noqa: TID251 - watched, not replaced

    def fsync(handle: int) -> None:
        order.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with buffer.catalog.reading() as connection:
        connection.set_trace_callback(lambda text: order.append(text.split(" ")[0]))
    buffer.append([new_frame(1), new_frame(2)])
    start = next(index for index, entry in enumerate(order) if entry.startswith("c."))
    writes = [entry for entry in order[start:] if entry in ("BEGIN", "COMMIT", "frames") or entry.startswith("c.")]
    assert sorted(writes[:2]) == ["c.0.0.0.0", "c.1.0.0.0"], order
    assert writes[2:] == ["frames", "BEGIN", "COMMIT"], order
    assert "COMMIT" not in order[:start]


def test_duplicates_are_recorded_and_not_stored(buffer: FrameBuffer, new_frame: Maker):
    first = new_frame(1)
    inside = replace(first, file=FileFact("copy.png", 5, 5))
    assert len(buffer.append([first, inside])) == 1
    later = replace(first, file=FileFact("later.png", 6, 6))
    assert buffer.append([later]) == []
    counts = buffer.catalog.counts()
    assert (counts.frames, counts.committed_total, counts.duplicates) == (1, 1, 2)
    assert buffer.catalog.known(inside.file) and buffer.catalog.known(later.file)


def test_a_touched_file_stays_the_one_its_frame_came_from(buffer: FrameBuffer, new_frame: Maker):
    first = new_frame(1)
    buffer.append([first])
    touched = FileFact(first.file.path, first.file.size, first.file.mtime_ns + 1)
    buffer.catalog.note(touched, "duplicate", digest=first.digest)
    assert buffer.catalog.known(touched)
    assert buffer.catalog.counts().duplicates == 0


def test_an_evicted_image_is_not_taken_again(buffer: FrameBuffer, new_frame: Maker):
    for number in range(8):
        buffer.append([new_frame(number)])
    assert buffer.append([new_frame(0)]) == []
    assert buffer.catalog.has_digest(new_frame(0).digest)


def test_when_full_the_oldest_leave(buffer: FrameBuffer, new_frame: Maker, layout: StateLayout):
    for start in range(0, 20, 4):
        buffer.append([new_frame(number) for number in range(start, start + 4)])
    assert [record.name for record in buffer.records()] == [f"cam/{number:04d}.png" for number in range(14, 20)]
    assert [record.id for record in buffer.records()] == list(range(15, 21)), "ids are never used twice"
    assert shards(layout) == slots(buffer), "no file without a committed frame"
    for record in buffer.records():
        assert np.array_equal(buffer.read(record), new_frame(record.id - 1).frame.pixels)
    counts = buffer.catalog.counts()
    assert (counts.frames, counts.committed_total, counts.evicted_total) == (6, 20, 14)


def test_more_frames_than_slots_keep_the_newest(buffer: FrameBuffer, new_frame: Maker):
    assert len(buffer.append([new_frame(number) for number in range(15)])) == 15
    assert [record.id for record in buffer.records()] == list(range(10, 16))


def test_new_frames_never_touch_a_slot_that_a_committed_row_points_at(
    buffer: FrameBuffer, new_frame: Maker, monkeypatch: pytest.MonkeyPatch
):
    """Not even that of a frame which leaves in the same transaction: until the commit it is whole."""
    buffer.append([new_frame(number) for number in range(6)])
    before = buffer.records()
    written: list[int] = []

    def refuse(*_: object) -> None:
        written.extend(buffer._array.shard_indices())
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable, "fsync_files", refuse)
    with pytest.raises(OSError, match="No space"):
        buffer.append([new_frame(number) for number in range(6, 12)])
    assert len(written) == 12, "six old ones and six new ones lay there at the same time"
    assert buffer.records() == before
    for record in before:
        assert np.array_equal(buffer.read(record), new_frame(record.id - 1).frame.pixels)
    assert set(buffer._array.shard_indices()) == slots(buffer), "what could not be committed is removed"
    monkeypatch.undo()
    assert len(buffer.append([new_frame(number) for number in range(6, 12)])) == 6


def test_an_interrupt_just_after_the_commit_loses_nothing(
    buffer: FrameBuffer, new_frame: Maker, monkeypatch: pytest.MonkeyPatch
):
    real = frame_writer.FrameWriter._commit

    def interrupted(self: frame_writer.FrameWriter, *arguments) -> None:
        real(self, *arguments)
        raise KeyboardInterrupt

    buffer.append([new_frame(number) for number in range(4)])
    with monkeypatch.context() as patch:
        patch.setattr(frame_writer.FrameWriter, "_commit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            buffer.append([new_frame(number) for number in range(4, 8)])
    buffer.append([new_frame(8)])
    assert [record.id for record in buffer.records()] == [4, 5, 6, 7, 8, 9]
    for record in buffer.records():
        assert np.array_equal(buffer.read(record), new_frame(record.id - 1).frame.pixels)


def test_leased_frames_stay_until_released(buffer: FrameBuffer, new_frame: Maker):
    buffer.append([new_frame(number) for number in range(3)])
    leased = buffer.lease(7)
    assert [record.id for record in leased] == [1, 2, 3]
    assert buffer.leases() == [7]
    buffer.append([new_frame(number) for number in range(3, 8)])
    assert [record.id for record in buffer.records()] == [1, 2, 3, 6, 7, 8]
    assert np.array_equal(buffer.read(leased[0]), new_frame(0).frame.pixels)
    buffer.release(7)
    buffer.release(7)
    assert buffer.leases() == []
    buffer.append([new_frame(8), new_frame(9)])
    assert [record.id for record in buffer.records()] == [3, 6, 7, 8, 9, 10]


def test_all_leased_is_full_and_changes_nothing(buffer: FrameBuffer, new_frame: Maker, layout: StateLayout):
    buffer.append([new_frame(number) for number in range(6)])
    buffer.lease(1)
    buffer.lease(2)
    buffer.release(1)
    before = buffer.records()
    with pytest.raises(BufferFull, match=r"rounds \[2\]"):
        buffer.append([new_frame(6)])
    assert buffer.records() == before and shards(layout) == slots(buffer)
    assert not buffer.catalog.known(new_frame(6).file)
    assert buffer.append([new_frame(0)]) == [], "a duplicate needs no room"
    buffer.release(2)
    assert len(buffer.append([new_frame(6)])) == 1


def test_a_lease_may_be_limited_to_the_newest(buffer: FrameBuffer, new_frame: Maker):
    buffer.append([new_frame(number) for number in range(6)])
    assert [record.id for record in buffer.lease(1, limit=2)] == [5, 6]
    buffer.append([new_frame(number) for number in range(6, 10)])
    assert [record.id for record in buffer.records()] == [5, 6, 7, 8, 9, 10]


def test_leases_outlive_the_process(layout: StateLayout, small: BufferSettings, new_frame: Maker):
    with FrameBuffer.open(layout, small, writable=True) as buffer:
        buffer.append([new_frame(1)])
        buffer.lease(3)
    with FrameBuffer.open(layout, small, writable=True) as buffer:
        assert buffer.leases() == [3]


def test_what_was_written_and_never_committed_is_not_there(
    layout: StateLayout, small: BufferSettings, new_frame: Maker
):
    with FrameBuffer.open(layout, small, writable=True) as buffer:
        buffer.append([new_frame(1)])
        buffer._array.write(4, new_frame(2).frame.pixels)  # as a crash before the commit leaves it
        (layout.frames_zarr / "frames" / "c.5.0.0.abc.partial").write_bytes(b"half")
    with FrameBuffer.open(layout, small, writable=False) as reader:
        assert len(reader.records()) == 1
    with FrameBuffer.open(layout, small, writable=True) as buffer:
        assert len(buffer.records()) == 1
        assert shards(layout) == slots(buffer)
        assert not list(layout.frames_zarr.rglob("*.partial"))


def test_after_a_failed_fsync_nothing_more_is_taken(
    buffer: FrameBuffer, new_frame: Maker, monkeypatch: pytest.MonkeyPatch
):
    def fsync(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(DurabilityLost):
            buffer.append([new_frame(1)])
    with pytest.raises(DurabilityLost, match="accepts no more"):
        buffer.append([new_frame(2)])
    assert buffer.records() == []


FULL_DISK = """
import resource, sys
from pathlib import Path
import pickle
from configs.buffer import BufferSettings
from storage.buffer.frames import FrameBuffer
from storage.layout import StateLayout
settings = BufferSettings.model_validate_json(sys.argv[2])
buffer = FrameBuffer.open(StateLayout(Path(sys.argv[1])), settings, writable=True)
frames = pickle.load(sys.stdin.buffer)
resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, resource.RLIM_INFINITY))
try:
    buffer.append(frames)
except OSError as error:
    print("refused", error.errno)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert sorted(buffer._array.shard_indices()) == sorted(record.slot for record in buffer.records())
assert not list(buffer._array.folder.glob("*.partial"))
print("then", len(buffer.append(frames)))
"""


def test_when_the_disk_takes_no_more_nothing_is_lost_and_it_resumes(
    layout: StateLayout, small: BufferSettings, new_frame: Maker
):
    """The file size limit of a real process: the kernel refuses the write of a shard, as it does on a full disk."""
    with FrameBuffer.open(layout, small, writable=True) as buffer:
        buffer.append([new_frame(number) for number in range(6)])
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(layout.root), small.model_dump_json()],
        input=pickle.dumps([new_frame(number) for number in range(6, 9)]),
        capture_output=True,
        check=False,
    )
    assert done.stdout.decode().split() == ["refused", str(errno.EFBIG), "then", "3"], done.stderr.decode()
    with FrameBuffer.open(layout, small, writable=True) as buffer:
        assert [record.id for record in buffer.records()] == [4, 5, 6, 7, 8, 9]
        for record in buffer.records():
            assert np.array_equal(buffer.read(record), new_frame(record.id - 1).frame.pixels)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
