"""Files that look the same by size and mtime: replaced ones are taken, touched ones make no second frame."""

import os
import sqlite3
from contextlib import closing

import pytest

from tests.faults.drop_world import picture


def replace(world, name, content):
    """Write other content of the same size over a file, and give it the mtime it had."""
    path = world.folder / name
    before = path.stat()
    world.drop(name, content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    now = path.stat()
    assert (now.st_size, now.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def change_times(world):
    """Those of the catalog, by name."""
    return {name: fact.changed_ns for name, fact in world.buffer.catalog.known_files().items()}


@pytest.mark.parametrize("mode", ["events", "polling"])
def test_another_content_of_the_same_size_and_mtime_is_another_frame(drop_world, mode):
    world = drop_world(mode=mode, advanced={"rescan_seconds": 600.0 if mode == "events" else 0.1})
    world.until(lambda: world.ingest.activity[0].mode == mode)
    world.drop("a.png", picture(1))
    world.until(lambda: world.buffer.catalog.counts().frames == 1)
    replace(world, "a.png", picture(2))
    if mode == "polling":
        world.ingest._watcher.rescan_soon()  # a deep one, as every minute
    world.until(lambda: world.buffer.catalog.counts().frames == 2)


def test_mode_and_links_make_no_second_frame_and_no_second_refusal(drop_world):
    world = drop_world(mode="polling", advanced={"rescan_seconds": 0.1})
    world.drop("a.png", picture(1))
    world.drop("bad.png", b"no image")
    world.until(lambda: len(world.buffer.catalog.known_files()) == 2)
    for turn in range(2):
        for name in ("a.png", "bad.png"):
            (world.folder / name).chmod(0o640 + 4 * turn)
            os.link(world.folder / name, world.folder.parent / f"backup-{turn}-{name}")
        world.ingest._watcher.rescan_soon()
        now = {name: (world.folder / name).stat().st_ctime_ns for name in ("a.png", "bad.png")}
        world.until(lambda now=now: change_times(world) == now)
    counts = world.buffer.catalog.counts()
    assert (counts.frames, counts.duplicates, counts.refused) == (1, 0, {"not_an_image": 1})
    assert world.value("mfmd_ingest_rejected_total", reason="not_an_image") == 1


def test_a_catalog_without_change_times_is_brought_up_and_believed_until_the_file_changes(drop_world):
    world = drop_world(mode="polling", advanced={"rescan_seconds": 0.1})
    world.drop("a.png", picture(1))
    world.drop("b.png", picture(2))
    world.settled()
    world.close()
    path = world.state / "buffer" / "catalog.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("ALTER TABLE files DROP COLUMN changed_ns; DROP TABLE kept;")
        connection.executescript("ALTER TABLE frames DROP COLUMN resample; PRAGMA user_version = 2;")
    replace(world, "b.png", picture(3))
    again = drop_world(mode="polling", advanced={"rescan_seconds": 0.1})
    again.dropped = world.dropped
    again.until(lambda: again.buffer.catalog.counts().frames == 3)
    again.settled()
    assert again.value("mfmd_ingest_files_total", outcome="duplicate") == 0, "a.png is not read again"
    world.tampered = True
