"""Other processes read the buffer while one writes it: what they get is a whole frame, or word that it left."""

import random
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from storage.buffer.frames import FrameBuffer
from storage.errors import FrameEvicted, StorageError
from storage.layout import StateLayout
from tests.faults import processes, world

READERS = 3
FRAMES = 200
"""Frames that are written; the buffer holds `world.CAPACITY` of them, so that slots change hands all the time."""


def read_until_the_end(root: Path) -> None:
    """Read frames and crops at random, as rounds and the observer do, until the writer says that it is done."""
    chance, read, left = random.Random(), 0, 0
    with FrameBuffer.open(StateLayout(root / "state"), world.settings(root).buffer, writable=False) as buffer:
        world.acknowledge(root, "reader reads")
        while not world.acknowledged(root, "writer"):
            records = buffer.records()
            assert len({record.slot for record in records}) == len(records)
            record = chance.choice(records)
            expected = world.frame(int(record.name.removesuffix(".png"))).frame.pixels
            top, left_edge = chance.randrange(20), chance.randrange(30)
            try:
                assert np.array_equal(buffer.read(record), expected), f"{record}: another frame's pixels"
                crop = buffer.read_crop(record, top, left_edge, 12, 16)
                assert np.array_equal(crop, expected[top : top + 12, left_edge : left_edge + 16])
                read += 1
            except FrameEvicted:
                left += 1
    world.acknowledge(root, f"read {read}", f"left {left}")


def test_readers_in_other_processes_see_whole_frames_only(tmp_path: Path):
    layout, config = StateLayout(tmp_path / "state"), world.settings(tmp_path).buffer
    layout.create()
    with FrameBuffer.open(layout, config, writable=True) as buffer:
        buffer.append([world.frame(number) for number in range(world.CAPACITY)])
        readers = [processes.start(read_until_the_end, tmp_path) for _ in range(READERS)]
        try:
            wait_for_readers(tmp_path)
            for number in range(world.CAPACITY, FRAMES):
                buffer.append([world.frame(number)])
            world.acknowledge(tmp_path, "writer done")
            for reader in readers:
                reader.join(world.PATIENCE)
                assert reader.exitcode == 0
        finally:
            for reader in readers:
                with suppress(ValueError):
                    reader.kill()
    counts = [int(count) for count in world.acknowledged(tmp_path, "read")]
    assert len(counts) == READERS
    assert min(counts) > 10, f"hardly anything was read: {counts}"


def wait_for_readers(root: Path) -> None:
    """Until every reader has the buffer open."""
    deadline = time.monotonic() + world.PATIENCE
    while len(world.acknowledged(root, "reader")) < READERS:
        assert time.monotonic() < deadline, "the readers did not start"
        time.sleep(0.01)


def test_a_reader_does_not_write(tmp_path: Path):
    layout, config = StateLayout(tmp_path / "state"), world.settings(tmp_path).buffer
    layout.create()
    with FrameBuffer.open(layout, config, writable=True) as buffer:
        buffer.append([world.frame(1)])
        (record,) = buffer.records()
    with FrameBuffer.open(layout, config, writable=False) as reader:
        for write in (
            lambda: reader.append([world.frame(2)]),
            lambda: reader.lease(1),
            lambda: reader.release(1),
            lambda: reader.catalog.note(world.frame(2).file, "refused", "empty"),
        ):
            with pytest.raises(StorageError, match="reading only"):
                write()
        assert reader.records() == [record] and not reader.leases()
        assert np.array_equal(reader.read(record), world.frame(1).frame.pixels)
