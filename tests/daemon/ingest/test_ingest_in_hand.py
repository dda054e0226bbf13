"""Files in hand when something fails half-way: they go back, or on, and none is forgotten."""

import os
import time
from pathlib import Path

import pytest

from daemon.ingest.originals import Originals
from daemon.watch.arrival import FileChanged, find_arrival, read_arrival
from storage.buffer.catalog import Catalog
from storage.buffer.frames import FrameBuffer
from storage.errors import DurabilityLost, StorageError
from storage.media.images import fit_frame


def fail_once(monkeypatch, owner, function, at):
    """Let the `at`-th call of a method find a catalog that cannot be read just then."""
    real, calls = getattr(owner, function), []

    def method(self, *arguments):
        calls.append(1)
        if len(calls) == at:
            raise StorageError("disk I/O error")
        return real(self, *arguments)

    monkeypatch.setattr(owner, function, method)


def step_through(world):
    """Steps until one has failed, as `Worker` goes on after it."""
    with pytest.raises(StorageError, match="disk I/O"):
        world.until(lambda: False)


def test_files_in_hand_go_back_when_the_catalog_cannot_be_asked_about_the_next(bench, drop, write_image, monkeypatch):
    for number in range(4):
        write_image(drop / f"{number}.png", number)
    world = bench()
    world.until(lambda: world.activity.watch.pending == 4)
    fail_once(monkeypatch, Catalog, "known", 3)
    step_through(world)
    world.until(lambda: world.counts.frames == 4)
    world.until(lambda: world.activity.watch.pending == 0)


def test_files_that_no_thread_can_decode_just_now_go_back(bench, drop, write_image, monkeypatch):
    for number in range(4):
        write_image(drop / f"{number}.png", number)
    world = bench()
    real, calls = world.ingest._pool.submit, []

    def submit(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("can't start new thread")
        return real(*arguments)

    monkeypatch.setattr(world.ingest._pool, "submit", submit)
    with pytest.raises(RuntimeError, match="new thread"):
        world.until(lambda: False)
    world.until(lambda: world.counts.frames == 4)


def test_a_committed_group_is_settled_to_its_end(bench, drop, tmp_path, write_image, monkeypatch):
    for number in range(3):
        write_image(drop / f"{number}.png", number)
    world = bench(watch={"after_commit": "move", "done_folder": tmp_path / "done"})
    fail_once(monkeypatch, Originals, "dispose", 2)
    step_through(world)
    assert world.counts.frames == 3
    world.until(lambda: not list(drop.iterdir()))
    world.until(lambda: world.activity.watch.pending == 0)
    write_image(drop / "2.png", 7)
    world.until(lambda: world.counts.frames == 4)


def test_a_moment_without_memory_refuses_no_file(bench, drop, write_image, monkeypatch):
    real, calls = fit_frame, []

    def fit(*arguments):
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError
        return real(*arguments)

    monkeypatch.setattr("daemon.ingest.decode.fit_frame", fit)
    write_image(drop / "a.png", 1)
    world = bench()
    world.until(lambda: world.counts.frames == 1 or world.counts.refused)
    assert world.counts.refused == {}


@pytest.mark.parametrize("error", [DurabilityLost("fsync failed"), StorageError("disk I/O error")])
def test_an_end_without_a_disk_lets_go_of_folder_and_threads(bench, drop, write_image, monkeypatch, error):
    write_image(drop / "a.png", 1)
    world = bench(watch={"advanced": {"group_seconds": 600}})
    world.until(lambda: world.ingest.batch)

    def append(*_, **__):
        raise error

    with monkeypatch.context() as failing:
        failing.setattr(FrameBuffer, "append", append)
        world.ingest.close()
    assert world.activity.watch.state == "stopped"
    assert world.counts.frames == 0 and (drop / "a.png").exists()


def test_a_file_renamed_over_one_in_hand_is_taken_though_it_looks_the_same(bench, drop, write_image):
    """Size and mtime equal, as with frames of one size from a camera whose clock counts seconds."""
    path = write_image(drop / "a.bmp", 1)
    newer = write_image(drop.parent / "b.bmp", 2)
    for item in (path, newer):
        os.utime(item, ns=(10**18, 10**18))
    world = bench(watch={"advanced": {"group_seconds": 0.5, "rescan_seconds": 600}})
    world.until(lambda: world.ingest.batch)
    told = world.wakes
    newer.rename(path)
    world.until(lambda: world.wakes > told)  # a hint itself may be gone again: a step takes it
    world.until(lambda: world.counts.frames == 2)


def test_content_rewritten_under_the_same_size_and_mtime_is_not_of_one_moment(tmp_path: Path):
    """A writer may put the mtime back while the file is read; its change time tells."""
    path = tmp_path / "a.png"
    path.write_bytes(b"aaaa")
    seen = find_arrival(tmp_path, "a.png")
    assert seen is not None
    until = time.monotonic() + 10
    while path.stat().st_ctime_ns == seen.changed_ns:  # the clock of a file system has ticks
        assert time.monotonic() < until
        path.write_bytes(b"aabb")
        os.utime(path, ns=(seen.file.mtime_ns, seen.file.mtime_ns))
    with pytest.raises(FileChanged):
        read_arrival(tmp_path, seen, 10)
