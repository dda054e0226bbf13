"""Damage to catalog and pixels: found, repaired, found clean again."""

import shutil
import sqlite3
from contextlib import closing

import numpy as np
import pytest

from storage.buffer.catalog import Catalog
from storage.buffer.catalog_records import FrameRecord
from storage.buffer.catalog_schema import SCHEMA_VERSION
from storage.buffer.frames import FrameBuffer
from storage.buffer.lost import lost_frames
from storage.checking import check_state, repair_state
from storage.layout import StateLayout


def records(layout: StateLayout) -> list[FrameRecord]:
    with closing(Catalog.open(layout.catalog, writable=False)) as catalog:
        return catalog.records()


def shard(layout: StateLayout, slot: int):
    return layout.frames_zarr / "frames" / f"c.{slot}.0.0.0"


@pytest.mark.parametrize("read_data", [False, True])
def test_a_good_state_has_no_problem(whole, read_data):
    assert check_state(whole, read_data=read_data) == []
    done = repair_state(whole, read_data=read_data)
    assert (done.repaired, done.left) == ([], [])


def test_an_empty_state_has_no_problem(tmp_path):
    layout = StateLayout(tmp_path / "nothing")
    assert check_state(layout, read_data=True) == [] and repair_state(layout).left == []
    assert not layout.root.exists()


def test_frames_without_digest_are_told_apart_again(whole, sql, expect):
    sql("DELETE FROM digests WHERE frame = 2")
    expect("digest_missing", naming=whole.catalog)
    with closing(Catalog.open(whole.catalog, writable=False)) as catalog:
        assert all(catalog.has_digest(record.digest) for record in catalog.records())


def test_a_file_that_counts_as_taken_but_never_was_is_taken_again(whole, sql, expect, new_frame):
    sql(f"UPDATE files SET state = 'committed', digest = '{'0' * 64}' WHERE path = '{new_frame(9).file.path}'")
    expect("file_without_frame")
    with closing(Catalog.open(whole.catalog, writable=False)) as catalog:
        assert not catalog.known(new_frame(9).file) and catalog.known(new_frame(1).file)


def test_a_lease_of_a_frame_that_is_gone(sql, expect):
    sql("INSERT INTO leases (round, frame) VALUES (2, 77)")
    expect("lease_without_frame")


def test_leases_of_rounds_that_do_not_go_on(whole, sql, expect):
    sql("INSERT INTO leases (round, frame) VALUES (1, 1), (9, 1)")
    expect("lease_stale", "lease_stale")
    with closing(Catalog.open(whole.catalog, writable=False)) as catalog:
        assert catalog.leases() == [2]


@pytest.mark.parametrize("damage", ["UPDATE sqlite_sequence SET seq = 3", "DELETE FROM sqlite_sequence"])
def test_frame_numbers_are_never_used_twice(whole, small, sql, expect, new_frame, damage):
    sql(damage)
    expect("frame_numbers")
    with FrameBuffer.open(whole, small, writable=True) as buffer:
        assert buffer.append([new_frame(20)])[0].id == 6


def test_a_valid_region_that_leaves_the_frame(whole, sql, expect):
    before = records(whole)
    sql("UPDATE frames SET valid_height = 1000 WHERE id = 2", "UPDATE frames SET valid_width = 0 WHERE id = 3")
    expect("valid_region", "valid_region")
    assert records(whole) == before


def test_a_valid_region_among_squashed_frames_is_the_whole_frame(whole, sql, expect):
    sql("UPDATE frames SET source_height = 200, source_width = 100")  # other aspects than the frames that they fill
    before = records(whole)
    sql("UPDATE frames SET valid_height = 1000 WHERE id = 2")
    expect("valid_region")
    assert records(whole) == before


def test_an_index_is_made_anew(whole, sql, expect):
    sql(
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_master SET sql = sql || ' WHERE 0' WHERE name = 'frames_by_capture'",
    )
    sql("UPDATE frames SET captured_at = captured_at + 1")
    sql(
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_master SET sql = replace(sql, ' WHERE 0', '') WHERE name = 'frames_by_capture'",
    )
    expect("catalog_index")
    assert len(records(whole)) == 5


def test_a_damaged_catalog_is_told_and_left(whole):
    data = bytearray(whole.catalog.read_bytes())
    data[100:] = b"\xff" * (len(data) - 100)
    whole.catalog.write_bytes(data)
    assert {problem.code for problem in check_state(whole)} == {"catalog_damaged"}
    assert {problem.code for problem in repair_state(whole).left} == {"catalog_damaged"}
    assert whole.catalog.read_bytes() == bytes(data) and shard(whole, 0).exists()


def test_pixels_without_catalog_are_told_and_kept(whole):
    for path in whole.buffer.glob("catalog.sqlite*"):
        path.unlink()
    found = check_state(whole)
    assert [problem.code for problem in found] == ["catalog_missing"] and not found[0].repairable
    repair_state(whole)
    assert shard(whole, 0).exists() and not whole.catalog.exists()


@pytest.mark.parametrize("content", [b"", None])
def test_what_a_kill_leaves_of_a_new_buffer_is_no_problem(layout, small, content):
    FrameBuffer.open(layout, small, writable=True).close()
    for path in layout.buffer.glob("catalog.sqlite*"):
        path.unlink()
    if content is not None:
        layout.catalog.write_bytes(content)
    assert check_state(layout) == []


def test_a_catalog_of_another_mfmd(whole, sql):
    sql("PRAGMA user_version = 99")
    found = check_state(whole)
    assert [(problem.code, problem.repairable) for problem in found] == [("catalog_schema", False)]
    assert "99" in found[0].detail and str(SCHEMA_VERSION) in found[0].detail


def test_a_catalog_without_filters_is_brought_up(whole, sql, expect):
    sql("ALTER TABLE frames DROP COLUMN resample", "PRAGMA user_version = 4")
    expect("catalog_schema")
    assert {record.resample for record in records(whole)} == {""}


def test_an_older_catalog_is_brought_up(whole, sql, expect):
    sql(
        "ALTER TABLE frames DROP COLUMN resample",
        "DROP INDEX frames_by_source",
        "DROP INDEX frames_by_capture",
        "ALTER TABLE frames DROP COLUMN source",
        "ALTER TABLE frames DROP COLUMN phash",
        "ALTER TABLE files DROP COLUMN changed_ns",
        "DROP TABLE kept",
        "PRAGMA user_version = 1",
    )
    expect("catalog_schema")
    assert len(records(whole)) == 5


@pytest.mark.parametrize(
    ("damage", "read_data", "code"),
    [
        ("gone", False, "frame_missing"),
        ("empty", False, "frame_damaged"),
        ("cut", True, "frame_damaged"),
        ("flipped", True, "frame_damaged"),
        ("other", True, "frame_damaged"),
    ],
)
def test_a_frame_with_bad_pixels_is_given_up_and_taken_again(
    whole, small, sql, expect, new_frame, damage, read_data, code
):
    record = records(whole)[1]
    path = shard(whole, record.slot)
    data = bytearray(path.read_bytes())
    match damage:
        case "gone":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(data[:-40])
        case "flipped":
            data[30] ^= 1
            path.write_bytes(data)
        case "other":
            shutil.copyfile(shard(whole, record.slot + 1), path)
    if read_data and damage != "cut":
        assert check_state(whole) == [], "only reading shows it"
    sql("DELETE FROM leases")
    expect(code, read_data=read_data, naming=path)
    (lost,) = lost_frames(whole)
    assert (lost.frame, lost.digest, lost.name) == (record.id, record.digest, record.name) and lost.reason
    assert not path.exists()
    with FrameBuffer.open(whole, small, writable=True) as buffer:
        assert not buffer.catalog.known(new_frame(1).file), "the file is looked at again"
        assert not buffer.catalog.known(new_frame(8).file), "and so is its copy"
        assert buffer.catalog.known(new_frame(2).file)
        (again,) = buffer.append([new_frame(1)])
        assert again.id == 6 and np.array_equal(buffer.read(again), new_frame(1).frame.pixels)


def test_pixels_of_no_frame(whole, expect):
    shutil.copyfile(shard(whole, 0), shard(whole, 7))
    expect("shard_orphan", naming=shard(whole, 7))
    assert not shard(whole, 7).exists() and shard(whole, 0).exists()


def test_an_array_that_is_shorter_than_the_catalog_says(whole, small, sql, expect):
    shard(whole, 4).rename(shard(whole, 20))
    sql("UPDATE frames SET slot = 20 WHERE slot = 4")
    expect("slots_missing", naming=whole.frames_zarr / "frames")
    assert len(records(whole)) == 5


@pytest.mark.parametrize(("path", "code"), [(".", "pixels_missing"), ("frames/zarr.json", "pixels_unreadable")])
def test_an_array_that_is_gone_is_told_and_left(whole, path, code):
    target = whole.frames_zarr / path
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    assert [problem.code for problem in check_state(whole)] == [code]
    assert [problem.code for problem in repair_state(whole).left] == [code]
    assert len(records(whole)) == 5


def test_observations_of_frames_that_left(whole, small, new_frame, expect, sql):
    sql("DELETE FROM leases")
    with FrameBuffer.open(whole, small, writable=True) as buffer:
        buffer.append([new_frame(number) for number in range(10, 14)])
    expect("observation_orphan", naming=whole.observations)


def test_a_damaged_database_of_the_observer_is_made_anew(whole, expect):
    whole.observations.write_bytes(b"not a database, " * 300)
    expect("observations_damaged", naming=whole.observations)
    assert not whole.observations.exists()


def test_a_database_of_the_observer_without_tables_is_no_problem(whole):
    for path in whole.buffer.glob("observations.sqlite*"):
        path.unlink()
    with closing(sqlite3.connect(whole.observations)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    assert check_state(whole) == []


def test_what_is_written_now_is_no_leftover(whole, small, new_frame):
    """Beside a writer only errors are told: it may be at work on what looks left."""
    shutil.copyfile(shard(whole, 0), shard(whole, 7))
    assert [problem.severity for problem in check_state(whole)] == ["leftover"]
    with FrameBuffer.open(whole, small, writable=True):
        shutil.copyfile(shard(whole, 0), shard(whole, 7))
        assert check_state(whole) == []
        shard(whole, 1).unlink()
        assert [problem.code for problem in check_state(whole)] == ["frame_missing"]
