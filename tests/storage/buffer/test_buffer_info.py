"""`mfmd buffer info` as a function: what it says of a quiet buffer, of one that is written to, and of none."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import zarr

from configs.buffer import BufferSettings
from storage.buffer.frames import FrameBuffer, NewFrame
from storage.buffer.info import BufferInfo, buffer_info
from storage.buffer.lost import give_up
from storage.errors import CorruptBuffer, StorageError
from storage.layout import StateLayout
from tests.sections import changed, section

Maker = Callable[..., NewFrame]
WRITER = Path(__file__).with_name("frame_writer_process.py")
WRITTEN = section(BufferSettings, height=64, width=96, tile=32, capacity_frames=10, holdout_fraction=0.25)
"""The settings of that process."""
PATIENCE = 60.0
"""Deadline (seconds): far more than an idle machine needs."""


def test_a_filled_buffer(layout: StateLayout, small: BufferSettings, new_frame: Maker):
    settings = small.model_copy(update={"max_bytes": 10_000_000})
    with FrameBuffer.open(layout, settings, writable=True) as buffer:
        sources = ["north", "north", "", "south", "south", "south", "south", "south"]
        buffer.append([replace(new_frame(number), source=source) for number, source in enumerate(sources)])
        buffer.lease(3)
        buffer.lease(4, limit=2)
        records = buffer.records()
        found = buffer_info(layout, settings)
        assert found.pixel_bytes == buffer._writer._sizes.total > 6 * 64 * 96 * 3, "as the quota counts them"
    assert found.model_copy(update={"pixel_bytes": 0, "catalog_bytes": 0}) == BufferInfo(
        frames=6,
        holdout=sum(record.holdout for record in records),
        capacity_frames=6,
        height=64,
        width=96,
        tile=32,
        pixel_bytes=0,
        catalog_bytes=0,
        max_bytes=10_000_000,
        oldest=3.5,  # the first two of eight left
        newest=8.5,
        sources={"": 1, "south": 5},
        leases={3: 6, 4: 2},
        committed_total=8,
        evicted_total=2,
        lost_total=0,
    )
    assert 0 < found.holdout < 6
    assert found.catalog_bytes >= layout.catalog.stat().st_size


def test_an_empty_one_and_its_json(layout: StateLayout, small: BufferSettings, buffer: FrameBuffer):
    found = json.loads(buffer_info(layout, small).model_dump_json())
    assert (found["frames"], found["oldest"], found["newest"], found["pixel_bytes"]) == (0, None, None, 0)
    assert (found["sources"], found["leases"]) == ({}, {})


def test_frames_that_were_given_up_are_counted(layout: StateLayout, small: BufferSettings, new_frame: Maker):
    with FrameBuffer.open(layout, small, writable=True) as buffer:
        records = buffer.append([new_frame(1), new_frame(2)])
    give_up(layout, records[0], "test", 1.0)
    found = buffer_info(layout, small)
    assert (found.frames, found.evicted_total, found.lost_total) == (1, 1, 1)


def test_it_shows_the_size_on_the_disk_also_when_the_configuration_says_another(layout, small, buffer):
    found = buffer_info(layout, changed(small, height=512, tile=256))
    assert (found.height, found.width, found.tile) == (64, 96, 32)


def test_beside_a_process_that_writes_all_numbers_are_of_one_moment(layout: StateLayout):
    command = [sys.executable, str(WRITER), str(layout.root), "0", "4"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "open\n"
            seen, deadline = [buffer_info(layout, WRITTEN)], time.monotonic() + PATIENCE
            while seen[-1].committed_total < 40 and time.monotonic() < deadline:
                seen.append(buffer_info(layout, WRITTEN))
        finally:
            writer.kill()
    assert seen[-1].committed_total >= 40
    assert [found.committed_total for found in seen] == sorted(found.committed_total for found in seen)
    for found in seen:
        assert found.frames == min(found.committed_total, 10) == sum(found.sources.values())
        assert found.committed_total % 4 == 0 and found.evicted_total == found.committed_total - found.frames


def test_frames_and_their_sources_are_counted_together(layout: StateLayout, small: BufferSettings, new_frame: Maker):
    """A buffer that grows all the time, one frame a commit: two statements of two moments would differ now and then."""
    settings, frames = small.model_copy(update={"capacity_frames": 400}), [new_frame(number) for number in range(200)]
    with FrameBuffer.open(layout, settings, writable=True) as buffer, ThreadPoolExecutor(1) as pool:
        writing = pool.submit(lambda: [buffer.append([new]) for new in frames])
        while not writing.done():
            found = buffer_info(layout, settings)
            assert found.frames == sum(found.sources.values()) == found.committed_total
        writing.result()
    assert buffer_info(layout, settings).frames == 200


def test_without_a_buffer_it_says_so_and_makes_none(tmp_path: Path, small: BufferSettings):
    nothing = StateLayout(tmp_path / "nothing")
    with pytest.raises(StorageError, match="no frame buffer yet"):
        buffer_info(nothing, small)
    assert not nothing.root.exists()


def test_an_array_of_somebody_else_is_named(layout: StateLayout, small: BufferSettings, buffer: FrameBuffer):
    array = zarr.open_array(layout.frames_zarr, path="frames", mode="r+")
    del array.attrs["mfmd"]
    with pytest.raises(CorruptBuffer, match=r"frames.zarr/frames: not an array of mfmd"):
        buffer_info(layout, small)
