"""`mfmd buffer resize` as a function: what the frames are afterwards, what is refused, and what an interruption leaves.

That a kill at any durable step leaves one whole buffer is held by tests/faults (the job `rebuild_buffer`).
"""

import errno
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.buffer import BufferSettings
from storage import durable, failpoints
from storage.buffer.catalog_records import FileFact, FrameRecord
from storage.buffer.files import FRESH, RESIZED
from storage.buffer.fits import made_otherwise
from storage.buffer.frames import FrameBuffer, NewFrame
from storage.buffer.lost import give_up, lost_frames
from storage.buffer.resize import resize_buffer
from storage.checking.state import check_state
from storage.errors import AlreadyRunning, BufferBusy, BufferMismatch, CorruptBuffer, DurabilityLost, StorageError
from storage.layout import StateLayout
from storage.media.images import fit_frame
from tests.sections import changed

Maker = Callable[..., NewFrame]
ROOT = Path(__file__).parents[3]
SHAPES = ((32, 48), (20, 96), (64, 30), (64, 96))
"""Sizes of the images in `filled`: a smaller one of the frame's aspect, a wide, a tall, one that fills the frame."""


@pytest.fixture(autouse=True)
def _no_hook_stays():
    yield
    failpoints.watch(None)


@pytest.fixture
def filled(layout: StateLayout, small: BufferSettings, new_frame: Maker) -> list[FrameRecord]:
    """Four frames of different valid regions in a closed buffer; their records."""
    with FrameBuffer.open(layout, small, writable=True) as buffer:
        buffer.catalog.note(FileFact("bad.png", 1, 2), "refused", "truncated", "cut off")
        return buffer.append([smooth(new_frame(number), *shape) for number, shape in enumerate(SHAPES)])


def smooth(new: NewFrame, height: int, width: int) -> NewFrame:
    """The frame of an image of this size whose colours change slowly: scaling it there and back changes little."""
    rows, columns = np.mgrid[0:height, 0:width]
    ramp = np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) * 127 // (height + width)], axis=2)
    pixels = ramp.astype(np.uint8)
    return replace(new, source_height=height, source_width=width, frame=fit_frame(pixels, 64, 96))


def read_all(layout: StateLayout, settings: BufferSettings) -> dict[int, np.ndarray]:
    with FrameBuffer.open(layout, settings, writable=False) as buffer:
        return {record.id: buffer.read(record) for record in buffer.records()}


def failing_fsync(handle: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def sized(settings: BufferSettings, height: int, width: int, **more: object) -> BufferSettings:
    return changed(settings, height=height, width=width, **more)


def whole(layout: StateLayout) -> bool:
    """Whether `mfmd check --read-data` finds nothing, not even leftovers."""
    return not check_state(layout, read_data=True)


@pytest.mark.parametrize(("height", "width"), [(128, 192), (32, 48), (96, 96), (33, 200)])
def test_every_frame_is_its_image_at_the_new_size(layout, small, filled, height, width):
    before, wanted, seen = read_all(layout, small), sized(small, height, width), []
    assert resize_buffer(layout, wanted, lambda done, total: seen.append((done, total))) == 4
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    with FrameBuffer.open(layout, wanted, writable=True) as buffer:
        records = buffer.records()
        for old, new in zip(filled, records, strict=True):
            frame = buffer.read(new)
            assert frame.shape == (height, width, 3)
            image = Image.fromarray(before[old.id][: old.valid_height, : old.valid_width])
            expected = image.resize((new.valid_width, new.valid_height), Image.Resampling.BILINEAR)
            found = frame[: new.valid_height, : new.valid_width]
            assert np.abs(found.astype(int) - np.asarray(expected).astype(int)).max() <= 1
            assert not frame[new.valid_height :].any() and not frame[:, new.valid_width :].any()
            assert new.valid_height == height or new.valid_width == width, "it fills the frame one way"
            assert new.valid_height / new.valid_width == pytest.approx(old.valid_height / old.valid_width, rel=0.06)
    assert whole(layout)


def test_a_new_fit_is_made_from_the_stored_frames_and_back(layout, small, filled):
    squash = small.model_copy(update={"advanced": small.advanced.model_copy(update={"fit": "squash"})})
    assert made_otherwise(filled, small) == [] and len(made_otherwise(filled, squash)) == 2, (
        "two have the frame's aspect"
    )
    before = read_all(layout, small)
    resize_buffer(layout, squash)
    with FrameBuffer.open(layout, squash, writable=False) as buffer:
        records = buffer.records()
    assert {(record.valid_height, record.valid_width) for record in records} == {(64, 96)}
    assert made_otherwise(records, squash) == [] and len(made_otherwise(records, small)) == 2
    resize_buffer(layout, small)
    after = read_all(layout, small)
    with FrameBuffer.open(layout, small, writable=False) as buffer:
        for old, new in zip(filled, buffer.records(), strict=True):
            assert (new.valid_height, new.valid_width) == (old.valid_height, old.valid_width)
            assert np.abs(after[new.id].astype(int) - before[old.id].astype(int)).mean() < 2
    assert whole(layout)


def test_frames_of_another_filter_are_named_until_a_resize(layout, small, filled):
    box = small.model_copy(update={"advanced": small.advanced.model_copy(update={"resample": "box"})})
    scaled = [it for it in filled if (it.source_height, it.source_width) != (it.valid_height, it.valid_width)]
    assert 0 < len(scaled) < len(filled) and made_otherwise(filled, box) == scaled
    resize_buffer(layout, box)
    with FrameBuffer.open(layout, box, writable=False) as buffer:
        assert made_otherwise(buffer.records(), box) == [] != made_otherwise(buffer.records(), small)


def test_all_else_of_a_frame_stays_and_ingest_goes_on(layout, small, filled, new_frame):
    wanted = sized(small, 32, 48)
    resize_buffer(layout, wanted)
    with FrameBuffer.open(layout, wanted, writable=True) as buffer:
        same = {"slot": 0, "valid_height": 0, "valid_width": 0, "crc32": 0, "resample": ""}
        assert [replace(new, **same) for new in buffer.records()] == [replace(old, **same) for old in filled]
        assert [item.file.path for item in buffer.catalog.refused()] == ["bad.png"]
        assert all(buffer.catalog.known(new_frame(number).file) for number in range(4))
        again = replace(new_frame(8, 32, 48), digest=filled[3].digest)
        assert buffer.append([again]) == [], "what was committed before is a duplicate still"
        (record,) = buffer.append([new_frame(9, 32, 48)])
        assert record.id == 5
        assert np.array_equal(buffer.read(record), new_frame(9, 32, 48).frame.pixels)


def test_the_old_settings_do_not_fit_any_more_and_the_error_says_how_to_go_on(layout, small, filled):
    resize_buffer(layout, sized(small, 32, 48))
    with pytest.raises(BufferMismatch, match=r"buffer.height 32, the configuration says 64.*mfmd buffer resize"):
        FrameBuffer.open(layout, small, writable=True)
    resize_buffer(layout, small)
    assert len(read_all(layout, small)) == 4


def test_fewer_frames_keeps_the_newest(layout, small, filled):
    wanted = sized(small, 64, 96, capacity_frames=2)
    before = read_all(layout, small)
    assert resize_buffer(layout, wanted) == 2
    after = read_all(layout, wanted)
    assert list(after) == [3, 4]
    assert all(np.array_equal(after[frame], before[frame]) for frame in after), "same size, same pixels"
    with FrameBuffer.open(layout, wanted, writable=True) as buffer:
        counts = buffer.catalog.counts()
        assert (counts.frames, counts.committed_total, counts.evicted_total) == (2, 4, 2)
        assert buffer.catalog.has_digest(filled[0].digest), "what left was committed once and is not taken again"
    assert whole(layout)


def test_another_tile_and_compression_come_with_it(layout, small, filled):
    before, wanted = read_all(layout, small), sized(small, 64, 96, tile=16, compression="zstd")
    resize_buffer(layout, wanted)
    after = read_all(layout, wanted)
    assert all(np.array_equal(after[frame], before[frame]) for frame in before)


def test_what_the_observer_found_goes_and_the_journal_of_lost_frames_stays(layout, small, filled):
    give_up(layout, filled[0], "test", 1.0)
    layout.observations.write_bytes(b"any")
    assert resize_buffer(layout, sized(small, 32, 48)) == 3
    assert [lost.frame for lost in lost_frames(layout)] == [1]
    assert not layout.observations.exists()


def test_an_empty_buffer(layout, small):
    FrameBuffer.open(layout, small, writable=True).close()
    assert resize_buffer(layout, sized(small, 32, 48)) == 0
    assert read_all(layout, sized(small, 32, 48)) == {}


def test_frames_that_a_round_holds_are_left_alone(layout, small, filled):
    with FrameBuffer.open(layout, small, writable=True) as buffer:
        buffer.lease(17)
    with pytest.raises(BufferBusy, match=r"rounds \[17\] hold frames.*mfmd adapt"):
        resize_buffer(layout, sized(small, 32, 48))
    assert len(read_all(layout, small)) == 4 and not (layout.root / FRESH).exists()
    with FrameBuffer.open(layout, small, writable=True) as buffer:
        buffer.release(17)
    assert resize_buffer(layout, sized(small, 32, 48)) == 4


def test_refused_beside_a_daemon_or_a_writer(layout, small, filled):
    with layout.lock(), pytest.raises(AlreadyRunning, match="already works on this state directory"):
        resize_buffer(layout, sized(small, 32, 48))
    with FrameBuffer.open(layout, small, writable=True), pytest.raises(AlreadyRunning, match="writes to this buffer"):
        resize_buffer(layout, sized(small, 32, 48))
    assert len(read_all(layout, small)) == 4


def test_without_a_buffer(tmp_path, small):
    nothing = StateLayout(tmp_path / "nothing")
    with pytest.raises(StorageError, match="no frame buffer yet"):
        resize_buffer(nothing, small)
    assert not nothing.root.exists()


def test_a_buffer_behind_a_link_is_refused(layout, small, filled, tmp_path):
    place = layout.buffer.rename(tmp_path / "elsewhere")
    layout.buffer.symlink_to(place)
    with pytest.raises(StorageError, match="is a link"):
        resize_buffer(layout, sized(small, 32, 48))
    assert len(read_all(layout, small)) == 4


def test_a_damaged_frame_stops_it_and_nothing_has_changed(layout, small, filled):
    with closing(sqlite3.connect(layout.catalog)) as connection, connection:
        connection.execute("UPDATE frames SET crc32 = crc32 + 1 WHERE id = 3")
    with pytest.raises(CorruptBuffer, match=r"frame 3 \(cam/0002.png\).*check --read-data --repair"):
        resize_buffer(layout, sized(small, 32, 48))
    assert not (layout.root / FRESH).exists()
    with FrameBuffer.open(layout, small, writable=False) as buffer:
        assert len(buffer.records()) == 4 and np.array_equal(buffer.read(buffer.records()[0]).shape, (64, 96, 3))


@pytest.mark.parametrize("moment", [1, 3])
def test_interrupted_while_it_builds_the_old_buffer_is_whole(layout, small, filled, moment):
    def stop(done: int, total: int) -> None:
        if done == moment:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resize_buffer(layout, sized(small, 32, 48), stop)
    assert len(read_all(layout, small)) == 4
    assert not (layout.root / FRESH).exists()
    assert resize_buffer(layout, sized(small, 32, 48)) == 4


@pytest.mark.parametrize(
    ("place", "size"),
    [
        ("publish.files_synced:2", 64),
        ("publish.folders_synced:2", 64),
        ("publish.renamed:2", 32),
        *[(f"folder.{step}:{number}", 32) for step in ("renamed", "synced", "done") for number in (1, 2)],
    ],
)
def test_killed_while_it_takes_over_one_whole_buffer_is_left(layout, small, filled, place, size):
    wanted = sized(small, 32, 48)
    code = (
        "import sys; from pathlib import Path; from configs.settings import BufferSettings\n"
        "from storage.buffer.resize import resize_buffer; from storage.layout import StateLayout\n"
        "resize_buffer(StateLayout(Path(sys.argv[1])), BufferSettings.model_validate_json(sys.argv[2]))"
    )
    # The array of the new buffer is published first, so the second pass of these places is the buffer's.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MFMD_FAILPOINT": place}
    command = [sys.executable, "-c", code, str(layout.root), wanted.model_dump_json()]
    assert subprocess.run(command, env=environment, timeout=120, check=False).returncode == -9
    assert (layout.root / FRESH).is_dir() == (size == 64)
    assert any(problem.code == "unfinished" for problem in check_state(layout))
    layout.create()  # as a daemon does first
    settings = small if size == 64 else wanted
    with FrameBuffer.open(layout, settings, writable=True) as buffer:
        assert [buffer.read(record).shape[0] for record in buffer.records()] == [size] * 4
    assert not (layout.root / FRESH).exists() and not (layout.root / RESIZED).exists()
    assert whole(layout)


@pytest.mark.parametrize("number", [1, 2])
def test_an_fsync_that_fails_while_it_takes_over_loses_no_buffer(layout, small, filled, monkeypatch, number):
    passes = []

    def fail(place: str) -> None:
        passes.append(place)
        if passes.count("folder.renamed") == number:
            monkeypatch.setattr(os, "fsync", failing_fsync)

    with monkeypatch.context() as patched:
        monkeypatch = patched
        failpoints.watch(fail)
        with pytest.raises(DurabilityLost, match="fsync failed"):
            resize_buffer(layout, sized(small, 32, 48))
    failpoints.watch(None)
    assert (layout.root / RESIZED / "old" / "catalog.sqlite").exists(), "the old one stays until the disk has the names"
    with FrameBuffer.open(layout, sized(small, 32, 48), writable=True) as buffer:
        assert len(buffer.records()) == 4
    assert not (layout.root / RESIZED).exists() and whole(layout)


def test_the_old_buffer_is_removed_only_when_the_new_name_is_on_the_disk(layout, small, filled, monkeypatch):
    """A kill right after the second rename, then an fsync that fails."""
    old = layout.root / RESIZED / "old"
    old.mkdir(parents=True)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing_fsync)
        with pytest.raises(DurabilityLost):
            FrameBuffer.open(layout, small, writable=True)
        assert old.is_dir()
    FrameBuffer.open(layout, small, writable=True).close()
    assert not old.exists()


def test_no_writer_takes_over_beside_a_living_resize(layout, small, filled):
    old = layout.root / RESIZED / "old"
    old.mkdir(parents=True)
    with durable.exclusive_lock(old / ".lock"), pytest.raises(AlreadyRunning, match="is resizing it"):
        FrameBuffer.open(layout, small, writable=True)
