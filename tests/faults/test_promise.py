"""The oracle notices each way to break the promise."""

import hashlib
import os

import pytest

from storage.media.images import crc32_of
from tests.faults.drop_world import picture
from tests.faults.promise import check_promise


@pytest.fixture
def world(drop_world):
    """Three frames, a duplicate and a refusal, all dealt with."""
    world = drop_world()
    for number in range(3):
        world.drop(f"{number}.png", picture(number))
    world.drop("again.png", picture(0))
    world.drop("bad.png", b"rubbish")
    world.settled()
    return world


def _break(world, statement: str, *values: object) -> None:
    with world.buffer.catalog.transaction() as connection:
        connection.execute("PRAGMA defer_foreign_keys = ON")
        connection.execute(statement, values)


def test_all_is_well(world):
    kept = world.kept()
    assert (len(kept.committed), len(kept.duplicate)) == (3, 1)
    assert (kept.refused, kept.skipped, kept.waiting) == ({"bad.png"}, set(), set())


def test_a_file_that_waits_is_no_breach(world):
    world.drop("new.png", picture(9))
    assert world.kept().waiting == {"new.png"}
    world.drop("1.png", picture(10))
    assert world.kept().waiting == {"new.png", "1.png"}


def test_a_file_that_vanished_unseen_is(world):
    world.drop("new.png", picture(9)).unlink()
    with pytest.raises(AssertionError, match=r"'new.png': gone from the folder, and nothing is known"):
        world.kept()


def test_a_file_that_was_dealt_with_may_go(world):
    (world.folder / "1.png").unlink()
    assert "1.png" in world.kept().committed


def test_a_refusal_without_a_reason_is(world):
    _break(world, "UPDATE files SET reason = '' WHERE path = 'bad.png'")
    with pytest.raises(AssertionError, match="refused without a reason"):
        world.kept()


def test_a_commit_that_is_none_is(world):
    world.tampered = True
    _break(world, "DELETE FROM digests WHERE digest = ?", hashlib.sha256(picture(1)).hexdigest())
    with pytest.raises(AssertionError, match="no frame of its content was ever committed"):
        world.kept()


def test_a_second_commit_of_one_content_is(world):
    _break(world, "UPDATE sqlite_sequence SET seq = seq + 1 WHERE name = 'frames'")
    with pytest.raises(AssertionError, match="committed twice"):
        world.kept()


def test_a_frame_of_a_half_written_file_is(world):
    fewer = {name: versions for name, versions in world.dropped.items() if name != "2.png"}
    with pytest.raises(AssertionError, match="nobody dropped a whole"):
        check_promise(world.state, world.folder, fewer)


def test_a_file_that_is_taken_for_another_is(world):
    path = world.folder / "1.png"
    before = path.stat()
    world.drop("1.png", picture(7))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(AssertionError, match="another content than lies in the folder"):
        world.kept()


@pytest.mark.parametrize("damage", ["pixels", "shard"])
def test_a_frame_that_changed_or_went_is(world, damage):
    world.tampered = True
    record = world.buffer.records()[0]
    array = world.buffer._array
    if damage == "pixels":
        pixels = array.read(record.slot).copy()
        pixels[0, 0] ^= 255
        array.write(record.slot, pixels)
        assert crc32_of(pixels) != record.crc32
    else:
        array.shard_path(record.slot).unlink()
    with pytest.raises(AssertionError, match=r"its pixels (are not those|cannot be read)"):
        world.kept()
